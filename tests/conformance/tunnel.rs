//! The tunnel's checks of senders, sources and destinations, and its loops.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use loden::forward::{DropReason, ForwarderConfig, PeerCheck, ReplyTo, SourceCheck, Transit};
use loden::route::Route;

use support::host::{
    Host, NOBODY, Outcome, POD, POD_A, POD_B, config, host_a, host_b, inbound, net, outbound, own, routes,
};
use support::packet::{Ipv4, TCP, udp};

fn transit() -> ForwarderConfig {
    config().with_transit(Transit::Allowed)
}

fn decap_reason(host: &Host, from: SocketAddr, packet: &Ipv4) -> Option<DropReason> {
    host.decapsulate(&packet.bytes(), from).reason()
}

/// R62: any packet for the underlay address of its own next hop, with any payload.
#[test]
fn r62_the_next_hops_own_address_is_not_tunnelled() {
    let host = Host::with_default_route(config(), host_a());
    for (protocol, payload) in [(TCP, vec![0; 20]), (1, vec![8; 8]), (17, udp(1, 22, b"")), (17, vec![])] {
        let to_a = Ipv4 { protocol, payload, ..Ipv4::new(POD, [10, 168, 0, 3]) };
        assert_eq!(host.encapsulate(&to_a.bytes()).reason(), Some(DropReason::Loop));
        let to_neighbour = Ipv4 { destination: [10, 168, 0, 5].into(), ..to_a };
        assert_eq!(host.encapsulate(&to_neighbour.bytes()).reason(), None, "its neighbour is");
    }
    // B's address is routed to A, so that only B's socket is a loop.
    let to_b = Ipv4 { payload: udp(1, 22, b""), ..Ipv4::new(POD, [10, 168, 0, 4]) };
    assert_eq!(host.encapsulate(&to_b.bytes()).reason(), None);
}

/// Fault 6, in both directions: packets to the own socket and to another host's. To other ports they are forwarded.
#[test]
fn fault_6_a_datagram_of_the_tunnel_inside_the_tunnel() {
    let host = Host::with_default_route(transit(), host_a());
    let from_b = Host::with_default_route(transit(), host_a());
    for socket in [own(), host_b()] {
        let IpAddr::V4(address) = socket.ip() else { panic!("IPv4 all over") };
        for (port, reason) in [(socket.port(), Some(DropReason::Loop)), (socket.port() + 1, None)] {
            let payload = udp(4000, port, b"a packet");
            let out = Ipv4 { payload: payload.clone(), ..Ipv4::new(POD, address) };
            assert_eq!(host.encapsulate(&out.bytes()).reason(), reason, "{address}:{port}");
            let back = Ipv4 { source: POD_B, ..out };
            assert_eq!(decap_reason(&from_b, host_b(), &back), reason, "{address}:{port}");
        }
        let tunnelled = Ipv4 { payload: udp(4000, socket.port(), b"a packet"), ..Ipv4::new(POD, address) };
        let not_udp = Ipv4 { protocol: TCP, ..tunnelled.clone() };
        assert_eq!(host.encapsulate(&not_udp.bytes()).reason(), None, "another protocol");
        // A later fragment has no ports. The bytes in their place have no meaning.
        let later = Ipv4 { fragment: 1, ..tunnelled.clone() };
        assert_eq!(host.encapsulate(&later.bytes()).reason(), None, "a later fragment");
        let first = Ipv4 { fragment: 0x2000, ..tunnelled.clone() };
        assert_eq!(host.encapsulate(&first.bytes()).reason(), Some(DropReason::Loop), "a first fragment");
        let options = Ipv4 { options: vec![1; 8], ..tunnelled.clone() };
        assert_eq!(host.encapsulate(&options.bytes()).reason(), Some(DropReason::Loop), "ports behind options");
        let portless = Ipv4 { payload: tunnelled.payload[..3].to_vec(), ..tunnelled };
        assert_eq!(host.encapsulate(&portless.bytes()).reason(), None, "too short for ports");
    }
}

/// R64 and fault 12: the address counts and not the port. An IPv4-mapped IPv6 address is the same.
#[test]
fn r64_fault_12_only_known_peers_and_from_any_port() {
    let host = Host::ordinary();
    for port in [1, 8285, 8286, 65_535] {
        assert_eq!(decap_reason(&host, (host_a().ip(), port).into(), &inbound()), None, "fault 12");
    }
    let mapped = |last| SocketAddr::new(Ipv4Addr::new(10, 168, 0, last).to_ipv6_mapped().into(), 8285);
    assert_eq!(decap_reason(&host, mapped(3), &inbound()), None);
    for stranger in [
        ([10, 168, 0, 9], 8285).into(),
        mapped(9),
        own(),
        (Ipv6Addr::LOCALHOST, 8285).into(),
        (Ipv4Addr::new(10, 168, 0, 3).to_ipv6_compatible(), 8285).into(),
    ] {
        assert_eq!(decap_reason(&host, stranger, &inbound()), Some(DropReason::UnknownPeer), "{stranger}");
    }
    let nobody = Host::new(config(), Vec::new());
    assert_eq!(decap_reason(&nobody, host_a(), &inbound()), Some(DropReason::UnknownPeer));
}

/// R64, with the underlay over IPv6.
#[test]
fn r64_a_peer_with_an_ipv6_address() {
    let six = SocketAddr::from((Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 3), 8285));
    let host = Host::new(config(), vec![Route::new(net([100, 96, 2, 0], 24), six)]);
    assert_eq!(decap_reason(&host, six, &inbound()), None);
    assert_eq!(decap_reason(&host, host_a(), &inbound()), Some(DropReason::UnknownPeer));
}

/// R68: with `AddressPort` the sender's port must be the next hop's too, and the inner source's route must lead there.
#[test]
fn r68_address_port_tells_the_tunnel_from_others_on_its_host() {
    let neighbour = SocketAddr::new(host_a().ip(), 9000);
    let mut routes = routes();
    routes.push(Route::new(net([100, 96, 5, 0], 24), neighbour));
    let host = Host::new(config().with_peer_check(PeerCheck::AddressPort), routes.clone());
    let any_port = Host::new(config(), routes);
    let of_neighbour = Ipv4::new([100, 96, 5, 5], POD);
    let mapped = |port| SocketAddr::new(Ipv4Addr::new(10, 168, 0, 3).to_ipv6_mapped().into(), port);
    let (spoofed, unknown) = (Some(DropReason::SpoofedSource), Some(DropReason::UnknownPeer));
    for (from, of_a, of_the_neighbour) in [
        (host_a(), None, spoofed),
        (neighbour, spoofed, None),
        (mapped(8285), None, spoofed),
        (mapped(9000), spoofed, None),
        (SocketAddr::new(host_a().ip(), 8286), unknown, unknown),
        (mapped(1), unknown, unknown),
        (([10, 168, 0, 9], 8285).into(), unknown, unknown),
    ] {
        assert_eq!(decap_reason(&host, from, &inbound()), of_a, "{from}");
        assert_eq!(decap_reason(&host, from, &of_neighbour), of_the_neighbour, "{from}");
        let by_address = (from.ip().to_canonical() != host_a().ip()).then_some(DropReason::UnknownPeer);
        assert_eq!(decap_reason(&any_port, from, &inbound()), by_address, "{from} by its address alone");
    }
    assert_eq!(decap_reason(&host, host_a(), &Ipv4::new([10, 168, 0, 3], POD)), None, "its own underlay address");
}

/// R68: a next hop with a scope is the sender with that address and port.
#[test]
fn r68_address_port_of_a_peer_with_a_link_local_address() {
    let scoped = |port, scope| {
        let address = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 3);
        SocketAddr::V6(core::net::SocketAddrV6::new(address, port, 0, scope))
    };
    let config = config().with_peer_check(PeerCheck::AddressPort);
    let host = Host::new(config, vec![Route::new(net([100, 96, 2, 0], 24), scoped(8285, 2))]);
    assert_eq!(decap_reason(&host, scoped(8285, 2), &inbound()), None);
    assert_eq!(decap_reason(&host, scoped(8286, 2), &inbound()), Some(DropReason::UnknownPeer));
}

/// V31: every link has its own link-local addresses. A host on another link that chose a peer's is a stranger.
#[test]
fn r64_v31_a_link_local_peer_is_known_on_its_own_link_only() {
    let at = |port, scope| {
        SocketAddr::V6(core::net::SocketAddrV6::new(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 3), port, 0, scope))
    };
    for config in [config(), config().with_source_check(SourceCheck::Off)] {
        let host = Host::new(config, vec![Route::new(net([100, 96, 2, 0], 24), at(8285, 2))]);
        assert_eq!(decap_reason(&host, at(8285, 2), &inbound()), None);
        assert_eq!(decap_reason(&host, at(9000, 2), &inbound()), None, "any port");
        for scope in [0, 1, 9] {
            assert_eq!(decap_reason(&host, at(8285, scope), &inbound()), Some(DropReason::UnknownPeer), "{scope}");
        }
    }
}

/// R68: with `Off` only the inner source's route counts. The own subnet stays protected (fault 11). The remote host's
/// ICMP error goes to the next hop, not to the sender.
#[test]
fn r68_off_accepts_any_sender_whose_inner_source_has_a_route() {
    let host = Host::new(config().with_peer_check(PeerCheck::Off), routes());
    let spoofed = Some(DropReason::SpoofedSource);
    let behind_nat: SocketAddr = ([192, 0, 2, 9], 40_000).into();
    for from in [behind_nat, (Ipv6Addr::LOCALHOST, 1).into(), host_a(), host_b()] {
        for (source, expected) in [(POD_A, None), (POD_B, None), (NOBODY, spoofed), (POD, spoofed)] {
            assert_eq!(decap_reason(&host, from, &Ipv4::new(source, POD)), expected, "{source} from {from}");
        }
    }
    assert_eq!(decap_reason(&host, host_a(), &Ipv4::new([10, 168, 0, 3], POD)), None, "its own underlay address");
    assert_eq!(decap_reason(&host, behind_nat, &Ipv4::new([192, 0, 2, 9], POD)), spoofed, "that of nobody");
    let wide = Host::with_default_route(host.config().clone(), host_a());
    assert_eq!(decap_reason(&wide, behind_nat, &Ipv4::new([100, 96, 1, 9], POD)), spoofed, "fault 11");
    let outcome = host.decapsulate(&Ipv4 { ttl: 1, ..inbound() }.bytes(), behind_nat);
    assert!(
        matches!(&outcome, Outcome::Reject { answer: Some((ReplyTo::Peer(to), _)), .. } if *to == host_a()),
        "{outcome:?}"
    );
    let unchecked = Host::new(host.config().clone().with_source_check(SourceCheck::Off), routes());
    for (from, source, expected) in [(behind_nat, NOBODY, spoofed), (host_a(), NOBODY, None), (behind_nat, POD_A, None)]
    {
        assert_eq!(decap_reason(&unchecked, from, &Ipv4::new(source, POD)), expected, "{source} from {from}");
    }
}

/// R66 and fault 13 with R68: two peers behind one address are different. A peer behind NAT is identified by its
/// source's route.
#[test]
fn r68_fault_13_a_packet_does_not_go_back_to_the_peer_it_came_from() {
    let neighbour = SocketAddr::new(host_a().ip(), 9000);
    let mut routes = routes();
    routes.push(Route::new(net([100, 96, 5, 0], 24), neighbour));
    let back = Ipv4::new(POD_A, [100, 96, 2, 9]);
    let to_neighbour = Ipv4::new(POD_A, [100, 96, 5, 9]);
    let behind_nat = ([192, 0, 2, 9], 40_000).into();
    let foreign = Some(DropReason::ForeignDestination);
    for (peer_check, from, neighbour) in [
        (PeerCheck::Address, host_a(), foreign),
        (PeerCheck::AddressPort, host_a(), None),
        (PeerCheck::Off, behind_nat, None),
    ] {
        let host = Host::new(transit().with_peer_check(peer_check), routes.clone());
        assert_eq!(decap_reason(&host, from, &back), foreign, "{peer_check:?}");
        assert_eq!(decap_reason(&host, from, &to_neighbour), neighbour, "{peer_check:?}");
        assert_eq!(decap_reason(&host, from, &Ipv4::new(POD_A, POD_B)), None, "{peer_check:?}");
    }
}

/// R65, with B's /28 inside A's /24: each sends from its own part only.
#[test]
fn r65_a_source_belongs_to_the_peer_its_route_leads_to() {
    let host = Host::ordinary();
    let nested = Ipv4Addr::new(100, 96, 2, 241);
    let spoofed = Some(DropReason::SpoofedSource);
    for (source, from_a, from_b) in [
        (POD_A, None, spoofed),
        (POD_B, spoofed, None),
        (nested, spoofed, None),
        (Ipv4Addr::new(100, 96, 2, 239), None, spoofed),
        (NOBODY, spoofed, spoofed),
        (Ipv4Addr::new(10, 168, 0, 3), None, spoofed),
        (Ipv4Addr::new(10, 168, 0, 4), spoofed, None),
        (Ipv4Addr::new(10, 168, 0, 2), spoofed, spoofed),
    ] {
        let packet = Ipv4::new(source, POD);
        assert_eq!(decap_reason(&host, host_a(), &packet), from_a, "{source} from A");
        assert_eq!(decap_reason(&host, host_b(), &packet), from_b, "{source} from B");
    }
}

/// Without the source check of R65 a known peer may send from any source. Strangers stay refused.
#[test]
fn r65_without_the_check_any_peer_may_send_from_anywhere() {
    let host = Host::new(config().with_source_check(SourceCheck::Off), routes());
    for source in [POD_A, POD_B, NOBODY, [8, 8, 8, 8].into()] {
        assert_eq!(decap_reason(&host, host_a(), &Ipv4::new(source, POD)), None, "{source}");
    }
    let stranger = ([10, 168, 0, 9], 8285).into();
    assert_eq!(decap_reason(&host, stranger, &inbound()), Some(DropReason::UnknownPeer));
}

/// Fault 11: also when a wider route leads to the sending peer.
#[test]
fn fault_11_an_address_of_our_own_as_source_from_outside() {
    let mut wide = routes();
    wide.push(Route::new(net([100, 96, 0, 0], 16), host_a()));
    for host in [Host::ordinary(), Host::new(config(), wide), Host::with_default_route(transit(), host_a())] {
        for last in [0, 1, 2, 254, 255] {
            let packet = Ipv4::new([100, 96, 1, last], POD);
            assert_eq!(decap_reason(&host, host_a(), &packet), Some(DropReason::SpoofedSource), "100.96.1.{last}");
        }
    }
}

/// R66: every address of the own subnet, and no other.
#[test]
fn r66_only_our_own_subnet_is_delivered_to() {
    let host = Host::ordinary();
    for last in 0..=255 {
        assert_eq!(decap_reason(&host, host_a(), &Ipv4::new(POD_A, [100, 96, 1, last])), None);
    }
    let foreign = [[100, 96, 0, 255], [100, 96, 2, 0], [100, 96, 2, 4], [100, 96, 3, 4], NOBODY.octets(), [8; 4]];
    for destination in foreign {
        let packet = Ipv4::new(POD_A, destination);
        assert_eq!(decap_reason(&host, host_a(), &packet), Some(DropReason::ForeignDestination), "{destination:?}");
    }
}

/// R66: subnets that are set later are the host's until others are set, for R65 too. Other settings stay.
#[test]
fn r66_subnets_that_are_set_are_delivered_to() {
    let mut host = Host::ordinary();
    let (own, further) = (net([100, 96, 1, 0], 24).into(), net([100, 96, 9, 0], 24).into());
    let to = |last| Ipv4::new(POD_A, [100, 96, 9, last]);
    for subnets in [&[own, further][..], &[further, own]] {
        host.forwarder.set_subnets(subnets).unwrap();
        for last in [0, 1, 255] {
            assert_eq!(decap_reason(&host, host_a(), &to(last)), None);
            assert_eq!(decap_reason(&host, host_a(), &Ipv4::new(POD_A, [100, 96, 1, last])), None);
            for source in [[100, 96, 1, last], [100, 96, 9, last]] {
                let spoofed = Ipv4::new(source, POD);
                assert_eq!(decap_reason(&host, host_a(), &spoofed), Some(DropReason::SpoofedSource), "{source:?}");
            }
        }
        assert_eq!(decap_reason(&host, host_b(), &to(1)), Some(DropReason::SpoofedSource));
        let beside = Ipv4::new(POD_A, [100, 96, 10, 1]);
        assert_eq!(decap_reason(&host, host_a(), &beside), Some(DropReason::ForeignDestination));
    }
    // What is refused changes nothing.
    for wrong in [&[][..], &[net([100, 97, 9, 0], 24).into()]] {
        host.forwarder.set_subnets(wrong).unwrap_err();
        assert_eq!(decap_reason(&host, host_a(), &to(1)), None);
    }
    host.forwarder.set_subnets(&[own]).unwrap();
    assert_eq!(decap_reason(&host, host_a(), &to(1)), Some(DropReason::ForeignDestination));
    assert_eq!(decap_reason(&host, host_a(), &inbound()), None);
    assert_eq!(host.config(), Host::ordinary().config());
}

/// R66 with transit, and fault 13: any next hop but the sender.
#[test]
fn r66_fault_13_transit_goes_anywhere_but_back() {
    let host = Host::new(transit(), routes());
    let foreign = Some(DropReason::ForeignDestination);
    for (destination, from_a, from_b) in [
        (POD, None, None),
        (POD_B, None, foreign),
        (Ipv4Addr::new(100, 96, 2, 9), foreign, None),
        (Ipv4Addr::new(100, 96, 2, 250), None, foreign),
        (NOBODY, None, None),
        (Ipv4Addr::new(8, 8, 8, 8), None, None),
    ] {
        let (of_a, of_b) = (Ipv4::new(POD_A, destination), Ipv4::new(POD_B, destination));
        assert_eq!(decap_reason(&host, host_a(), &of_a), from_a, "{destination} from A");
        assert_eq!(decap_reason(&host, host_b(), &of_b), from_b, "{destination} from B");
        let other_port = (host_b().ip(), 1).into();
        assert_eq!(decap_reason(&host, other_port, &of_b), from_b, "back to a peer, whatever its port");
    }
    let to_next_hop = Host::with_default_route(transit(), host_b());
    let packet = Ipv4::new(POD_A, [10, 168, 0, 4]);
    assert_eq!(decap_reason(&to_next_hop, host_a(), &packet), Some(DropReason::Loop), "R62");
}

/// There is no source check for packets from the TUN.
#[test]
fn sources_out_of_the_tun_are_not_checked() {
    for source in [POD, POD_A, NOBODY, [8, 8, 8, 8].into()] {
        assert_eq!(Host::ordinary().encapsulate(&Ipv4 { source, ..outbound() }.bytes()).reason(), None, "{source}");
    }
}

/// Fault 6 for a host whose underlay address is in the overlay network.
#[test]
fn fault_6_a_next_hop_inside_the_overlay_network() {
    let inside = SocketAddr::from(([100, 96, 200, 7], 8285));
    let mut routes = routes();
    routes.push(Route::new(net([100, 96, 4, 0], 24), inside));
    routes.push(Route::new(net([100, 96, 200, 0], 24), host_a()));
    let packet = Ipv4 { payload: udp(4000, 8285, b""), ..Ipv4::new(POD, [100, 96, 200, 7]) };
    let host = Host::new(config(), routes);
    assert_eq!(host.encapsulate(&packet.bytes()).reason(), Some(DropReason::Loop));
}
