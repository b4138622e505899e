//! The V rows of `docs/conformance.md` that concern the forwarder, packet by packet.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use loden::forward::{
    ConfigError, DatagramMeta, Decap, DropReason, EcnIngress, Encap, Forwarder, ForwarderConfig, Icmpv6Source,
    RejectReason, ReplyTo, SourcePort, TtlPolicy,
};
use loden::route::Route;
use loden::wire::{Ecn, icmpv6};
use loden::{Host as Identity, Mtu};

use support::host::{
    Host, NOBODY_V6, Outcome, POD_A, POD_A_V6, POD_C_V6, POD_V6, dual_identity, dual_routes, host_a, host_c, identity,
    mtu_of, net, net_v6, outbound, own, own_v6, routes,
};
use support::packet::{TCP, UDP, ones_sum, pattern, udp};
use support::packet_v6::{
    DESTINATION_OPTIONS, FRAGMENT, HOP_BY_HOP, ICMPV6, Ipv6, ROUTING, destination_options, fragment, icmpv6 as message,
    segment_routing, with_hop_limit,
};

fn outbound_v6() -> Ipv6 {
    Ipv6::new(POD_V6, POD_A_V6)
}

fn inbound_v6() -> Ipv6 {
    Ipv6::new(POD_A_V6, POD_V6)
}

fn to_nobody() -> Ipv6 {
    Ipv6::new(POD_V6, NOBODY_V6)
}

fn tun_address() -> Ipv6Addr {
    "fd00:96:1:0:ffff:ffff:ffff:ff7f".parse().unwrap()
}

/// Returns a UDP packet of `len` bytes from a local pod to `destination`.
fn of_length(len: usize, destination: Ipv6Addr) -> Vec<u8> {
    Ipv6 { payload: udp(4000, 53, &pattern(len - 48)), ..Ipv6::new(POD_V6, destination) }.bytes()
}

/// Asserts that both directions drop a packet for this reason. It is read as coming from host A.
fn assert_dropped(packet: &[u8], reason: DropReason) {
    let host = Host::dual();
    assert_eq!(host.encapsulate(packet), Outcome::Drop(reason), "out of the TUN: {packet:02x?}");
    assert_eq!(host.decapsulate(packet, host_a()), Outcome::Drop(reason), "from host A: {packet:02x?}");
}

#[test]
fn v1_fewer_bytes_than_a_header_are_too_short() {
    let bytes = outbound_v6().bytes();
    for len in 0..40 {
        assert_dropped(&bytes[..len], DropReason::TooShort);
    }
}

#[test]
fn v2_a_longer_payload_is_truncated_and_a_shorter_one_trimmed() {
    let whole = outbound_v6().bytes();
    for len in 40..whole.len() {
        assert_dropped(&whole[..len], DropReason::Truncated);
    }
    for trailer in [1, 8, 100] {
        let long = Ipv6 { trailer: vec![0xee; trailer], ..outbound_v6() }.bytes();
        let Outcome::Forward { bytes, .. } = Host::dual().encapsulate(&long) else { panic!("{long:02x?}") };
        assert_eq!(bytes, with_hop_limit(&whole, 63));
    }
}

#[test]
fn v3_no_payload_is_a_packet_of_40_bytes_and_no_jumbogram() {
    let empty = Ipv6 { protocol: 59, payload: Vec::new(), trailer: vec![0xee; 30], ..outbound_v6() };
    let Outcome::Forward { bytes, .. } = Host::dual().encapsulate(&empty.bytes()) else { panic!("{empty:?}") };
    assert_eq!(bytes, with_hop_limit(&empty.bytes()[..40], 63));
    // RFC 2675: option 0xc2 with the length of 70,000 bytes.
    let jumbo = vec![UDP, 0, 0xc2, 4, 0, 1, 0x11, 0x70];
    let packet = Ipv6 { extensions: vec![(HOP_BY_HOP, jumbo)], payload_len: Some(0), ..outbound_v6() };
    assert_dropped(&packet.bytes(), DropReason::Jumbogram);
}

/// V4 and V15: for every hop limit and policy, only the hop limit changes.
#[test]
fn v4_v15_every_hop_limit_under_every_policy() {
    for ttl in [TtlPolicy::BothEnds, TtlPolicy::Ingress, TtlPolicy::Preserve] {
        let host = Host::new(ForwarderConfig::new(&dual_identity()).with_ttl(ttl), dual_routes());
        for hop_limit in 0..=255u8 {
            let out = Ipv6 { hop_limit, traffic_class: 0xab, ..outbound_v6() }.bytes();
            let outcome = host.encapsulate(&out);
            let after = if ttl == TtlPolicy::Preserve { hop_limit } else { hop_limit.saturating_sub(1) };
            match (hop_limit, after) {
                (0, _) => assert_eq!(outcome, Outcome::Drop(DropReason::TtlZero)),
                (1, 0) => {
                    let Outcome::Reject { reason: RejectReason::TimeExceeded, answer: Some((to, error)) } = outcome
                    else {
                        panic!("{outcome:?}")
                    };
                    assert_eq!((to, &error[40..42]), (ReplyTo::Tun, &[3, 0][..]));
                }
                (_, after) => {
                    let expected = Outcome::Forward { to: Some(host_a()), bytes: with_hop_limit(&out, after) };
                    assert_eq!(outcome, expected, "hop limit {hop_limit}");
                }
            }
            let back = Ipv6 { hop_limit, ..inbound_v6() }.bytes();
            let outcome = host.decapsulate(&back, host_a());
            match (hop_limit, ttl) {
                (0, _) => assert_eq!(outcome, Outcome::Drop(DropReason::TtlZero)),
                (1, TtlPolicy::BothEnds) => {
                    let Outcome::Reject { reason: RejectReason::TimeExceeded, answer: Some((to, error)) } = outcome
                    else {
                        panic!("{outcome:?}")
                    };
                    assert_eq!((to, &error[40..42]), (ReplyTo::Peer(host_a()), &[3, 0][..]));
                    assert_eq!(error[8..24], tun_address().octets(), "V20");
                }
                (_, TtlPolicy::BothEnds) => {
                    assert_eq!(outcome, Outcome::Forward { to: None, bytes: with_hop_limit(&back, hop_limit - 1) });
                }
                _ => assert_eq!(outcome, Outcome::Forward { to: None, bytes: back }),
            }
        }
    }
}

/// Returns the answer to a packet without a route.
fn answer_about(packet: &Ipv6) -> Option<Vec<u8>> {
    let outcome = Host::dual().encapsulate(&packet.bytes());
    let Outcome::Reject { reason: RejectReason::NetUnreachable, answer } = outcome else { panic!("{outcome:?}") };
    answer.map(|(to, bytes)| {
        assert_eq!(to, ReplyTo::Tun);
        bytes
    })
}

/// Returns one sound extension header of each kind.
fn every_extension() -> Vec<(u8, Vec<u8>)> {
    let eight = |kind| (kind, vec![0, 0, 1, 2, 3, 4, 5, 6]);
    vec![
        (HOP_BY_HOP, vec![0, 0, 5, 2, 0, 0, 1, 0]),
        segment_routing(POD_C_V6),
        fragment(0, true),
        destination_options(3),
        (51, [&[0, 4][..], &[7; 22]].concat()),
        eight(135),
        eight(139),
        eight(140),
    ]
}

/// V5 and V16: the type of an ICMPv6 message is found after every extension header, and after eight of them. A chain
/// that cannot be followed is forwarded unchanged, and is not answered.
#[test]
fn v5_v16_the_upper_layer_is_found_behind_eight_headers() {
    let all = every_extension();
    let chains = all.iter().map(|one| vec![one.clone()]).chain([all.clone()]);
    for extensions in chains {
        let of = |kind| Ipv6 {
            extensions: extensions.clone(),
            protocol: ICMPV6,
            payload: message(POD_V6, NOBODY_V6, kind, b"data"),
            ..to_nobody()
        };
        assert!(answer_about(&of(128)).is_some(), "{extensions:?}");
        assert!(answer_about(&of(1)).is_none(), "{extensions:?}");
    }
    let broken = [
        vec![destination_options(1); 9],
        vec![(DESTINATION_OPTIONS, vec![0, 200, 1, 4, 0, 0, 0, 0])],
        vec![(51, vec![0, 200, 0, 0, 0, 0, 0, 0])],
    ];
    for extensions in broken {
        assert_eq!(answer_about(&Ipv6 { extensions: extensions.clone(), ..to_nobody() }), None, "{extensions:?}");
        let packet = Ipv6 { extensions, ..outbound_v6() }.bytes();
        let expected = Outcome::Forward { to: Some(host_a()), bytes: with_hop_limit(&packet, 63) };
        assert_eq!(Host::dual().encapsulate(&packet), expected);
    }
    // The header ends with the packet.
    let cut = Ipv6 { extensions: vec![fragment(0, true)], payload: Vec::new(), ..to_nobody() };
    assert!(answer_about(&cut).is_some(), "the chain ends at the packet's end");
    let short = Ipv6 { protocol: FRAGMENT, payload: vec![UDP, 0, 0], ..to_nobody() };
    assert_eq!(answer_about(&short), None);
}

#[test]
fn v6_only_routing_headers_of_type_0_are_dropped() {
    let of = |kind: u8| vec![(ROUTING, vec![0, 0, kind, 0, 0, 0, 0, 0])];
    for before in [vec![], vec![destination_options(1); 7]] {
        for kind in 0..=255 {
            let packet = Ipv6 { extensions: [before.clone(), of(kind)].concat(), ..outbound_v6() }.bytes();
            if kind == 0 {
                assert_dropped(&packet, DropReason::SourceRoute);
            } else {
                let expected = Outcome::Forward { to: Some(host_a()), bytes: with_hop_limit(&packet, 63) };
                assert_eq!(Host::dual().encapsulate(&packet), expected);
            }
        }
    }
    // One that ends behind the packet.
    let cut = Ipv6 { protocol: ROUTING, payload: vec![UDP, 2, 0, 1], ..outbound_v6() };
    assert_dropped(&cut.bytes(), DropReason::SourceRoute);
}

/// V7: unknown options too, of every action.
#[test]
fn v7_hop_by_hop_options_are_neither_executed_nor_changed() {
    for option in [5u8, 0x3e, 0x7e, 0xbe, 0xfe, 0xc2] {
        let options = vec![(HOP_BY_HOP, vec![0, 0, option, 4, 1, 2, 3, 4])];
        let packet = Ipv6 { extensions: options, ..outbound_v6() }.bytes();
        let expected = Outcome::Forward { to: Some(host_a()), bytes: with_hop_limit(&packet, 63) };
        assert_eq!(Host::dual().encapsulate(&packet), expected, "option {option:#04x}");
    }
}

#[test]
fn v8_v9_v10_special_addresses_are_dropped_without_an_icmp_error() {
    use DropReason::{Ipv6Multicast, LinkLocal, MartianDestination, MartianSource};
    let nets = [
        ("::", "::1", MartianSource, MartianDestination),
        ("::ffff:0:0", "::ffff:255.255.255.255", MartianSource, MartianDestination),
        ("fe80::", "febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff", LinkLocal, LinkLocal),
        ("ff00::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", MartianSource, Ipv6Multicast),
    ];
    for (first, last, as_source, as_destination) in nets {
        for address in [first, last].map(|address| address.parse::<Ipv6Addr>().unwrap()) {
            for hop_limit in [0, 1, 64] {
                let from = Ipv6 { hop_limit, ..Ipv6::new(address, POD_A_V6) };
                assert_dropped(&from.bytes(), as_source);
                let to = Ipv6 { hop_limit, ..Ipv6::new(POD_A_V6, address) };
                assert_dropped(&to.bytes(), as_destination);
            }
        }
    }
}

/// The kernel's router solicitation and listener report: V9 gives their group as the reason, and not their source.
#[test]
fn v9_what_the_kernel_says_to_groups_is_no_martian() {
    for source in ["::", "fe80::1"] {
        for group in ["ff02::1", "ff02::2", "ff02::16"] {
            let [source, group] = [source, group].map(|address| address.parse::<Ipv6Addr>().unwrap());
            let report = Ipv6 {
                hop_limit: 1,
                extensions: vec![(HOP_BY_HOP, vec![0, 0, 5, 2, 0, 0, 1, 0])],
                protocol: ICMPV6,
                payload: message(source, group, 143, &[0; 20]),
                ..Ipv6::new(source, group)
            };
            assert_dropped(&report.bytes(), DropReason::Ipv6Multicast);
        }
    }
}

#[test]
fn v11_documentation_unique_local_and_site_local_addresses_are_forwarded() {
    let mut routes = dual_routes();
    routes.push(Route::new(net_v6(Ipv6Addr::UNSPECIFIED, 0), host_c()));
    let host = Host::new(ForwarderConfig::new(&dual_identity()), routes);
    for address in ["2001:db8::1", "fc00::1", "fdff:ffff::1", "fec0::1", "feff::1", "::2", "64:ff9b::a00:1"] {
        let address = address.parse::<Ipv6Addr>().unwrap();
        let out = Ipv6::new(POD_V6, address).bytes();
        let expected = Outcome::Forward { to: Some(host_c()), bytes: with_hop_limit(&out, 63) };
        assert_eq!(host.encapsulate(&out), expected);
        let back = Ipv6::new(address, POD_V6).bytes();
        assert_eq!(host.decapsulate(&back, host_c()).reason(), None, "{address}");
    }
}

#[test]
fn v14_no_route_is_answered_whatever_the_hop_limit() {
    for hop_limit in [0, 1, 2, 64, 255] {
        let packet = Ipv6 { hop_limit, ..to_nobody() };
        let answer = answer_about(&packet).unwrap();
        assert_eq!((&answer[40..42], &answer[44..48]), (&[1, 0][..], &[0; 4][..]), "hop limit {hop_limit}");
        assert_eq!(answer[48..], packet.bytes());
    }
}

/// V16 and V17, for every ICMPv6 type: errors and redirects are not answered, other messages are.
#[test]
fn v16_v17_informational_messages_are_answered_and_errors_are_not() {
    for kind in 0..=255u8 {
        let payload = message(POD_V6, NOBODY_V6, kind, b"data");
        let packet = Ipv6 { protocol: ICMPV6, payload, ..to_nobody() };
        assert_eq!(answer_about(&packet).is_some(), kind >= 128 && kind != 137, "type {kind}");
    }
    let no_type = Ipv6 { protocol: ICMPV6, payload: Vec::new(), ..to_nobody() };
    assert_eq!(answer_about(&no_type), None);
    // The public rule knows addresses that the forwarder drops before.
    let may = |source: &str, destination: &str| {
        let [source, destination] = [source, destination].map(|address| address.parse::<Ipv6Addr>().unwrap());
        let bytes = Ipv6::new(source, destination).bytes();
        icmpv6::may_answer(&loden::wire::ipv6::Ipv6Packet::parse(&bytes).unwrap())
    };
    assert!(may("fd00::1", "fd00::2"));
    assert!(!may("::", "fd00::2") && !may("ff02::1", "fd00::2") && !may("fd00::1", "ff02::1"));
}

/// V18 and V19, with the sizes around the limit. The checks of soundness are in `support::icmp`.
#[test]
fn v18_v19_v20_an_error_quotes_what_fits_into_1280_bytes() {
    for len in [48, 49, 500, 1231, 1232, 1233, 1279, 1280, 1281, 1452, 9000] {
        for trailer in [0, 9] {
            let packet = Ipv6 {
                payload: udp(4000, 53, &pattern(len - 48)),
                trailer: vec![0xee; trailer],
                traffic_class: 0xff,
                ..to_nobody()
            };
            let answer = answer_about(&packet).unwrap();
            assert_eq!(answer.len(), (48 + len).min(1280), "{len} bytes");
            assert_eq!(answer[48..], packet.bytes()[..len.min(1232)]);
            assert_eq!(
                answer[..8],
                [0x60, 0, 0, 0, ((answer.len() - 40) >> 8) as u8, (answer.len() - 40) as u8, 58, 64]
            );
            assert_eq!((&answer[8..24], &answer[24..40]), (&tun_address().octets()[..], &POD_V6.octets()[..]));
            let pseudo = [&answer[8..40], &((answer.len() - 40) as u32).to_be_bytes(), &[0, 0, 0, ICMPV6]].concat();
            assert_eq!(ones_sum(&[&pseudo[..], &answer[40..]].concat()), 0xffff, "V19");
        }
    }
    let fixed: Ipv6Addr = "2001:db8::77".parse().unwrap();
    let config = ForwarderConfig::new(&dual_identity()).with_icmpv6_source(Icmpv6Source::Fixed(fixed));
    let host = Host::new(config.with_icmp_ttl(3), dual_routes());
    let outcome = host.encapsulate(&to_nobody().bytes());
    let answer = outcome.icmp().unwrap();
    assert_eq!((&answer[8..24], answer[7]), (&fixed.octets()[..], 3));
    // The far end keeps its TUN address.
    let expired = host.decapsulate(&Ipv6 { hop_limit: 1, ..inbound_v6() }.bytes(), host_a());
    assert_eq!(expired.icmp().unwrap()[8..24], tun_address().octets());
}

#[test]
fn v20_sources_that_are_no_host_are_refused() {
    for address in ["::", "::1", "ff02::1", "fe80::1", "::ffff:1.2.3.4"].map(|address| address.parse().unwrap()) {
        let config = ForwarderConfig::new(&dual_identity()).with_icmpv6_source(Icmpv6Source::Fixed(address));
        assert_eq!(Forwarder::new(config).unwrap_err(), ConfigError::IcmpSource { address: IpAddr::V6(address) });
    }
}

#[test]
fn v22_later_fragments_are_answered_whatever_they_carry() {
    for protocol in [UDP, TCP, ICMPV6, DESTINATION_OPTIONS, ROUTING] {
        for more in [false, true] {
            let extensions = vec![fragment(100, more)];
            let packet = Ipv6 { extensions, protocol, payload: vec![0; 64], ..to_nobody() };
            assert!(answer_about(&packet).is_some(), "{packet:?}");
        }
        // The first fragment shows its type: 0 is an error.
        let first = Ipv6 { extensions: vec![fragment(0, true)], protocol, payload: vec![0; 64], ..to_nobody() };
        if protocol == ICMPV6 {
            assert_eq!(answer_about(&first), None);
        }
    }
}

/// V23 to V25: the peer's family decides how much is left, and no packet is fragmented.
#[test]
fn v23_v25_a_longer_packet_is_answered_with_the_mtu_to_its_peer() {
    let host = Host::dual();
    for (destination, peer, mtu) in [(POD_A_V6, host_a(), 1472), (POD_C_V6, host_c(), 1452)] {
        let fits = of_length(mtu, destination);
        let expected = Outcome::Forward { to: Some(peer), bytes: with_hop_limit(&fits, 63) };
        assert_eq!(host.encapsulate(&fits), expected);
        for len in [mtu + 1, 9000] {
            let long = of_length(len, destination);
            let outcome = host.encapsulate(&long);
            assert_eq!(outcome.reason(), Some(DropReason::FragmentationNeeded), "{len} bytes");
            let answer = outcome.icmp().unwrap();
            assert_eq!((&answer[40..42], &answer[44..48]), (&[2, 0][..], &(mtu as u32).to_be_bytes()[..]));
            // What waited until the path became narrow is what came out of the TUN again.
            let mut sent = with_hop_limit(&long, 63);
            let refused = host.refused_as_too_long(&mut sent, mtu as u16);
            assert_eq!(refused, outcome);
        }
    }
    // IPv4 inside goes by its peer's family as well.
    let narrow =
        Host::new(ForwarderConfig::new(&dual_identity()), vec![Route::new(net([100, 96, 2, 0], 24), host_c())]);
    let of_length = |len: usize| {
        let payload = udp(4000, 53, &pattern(len - 28));
        support::packet::Ipv4 { payload, fragment: support::packet::DF, ..outbound() }.bytes()
    };
    assert_eq!(narrow.encapsulate(&of_length(1452)).reason(), None);
    let Outcome::Reject { reason, .. } = narrow.encapsulate(&of_length(1453)) else { panic!("it does not fit") };
    assert_eq!(reason, RejectReason::FragmentationNeeded { mtu: 1452 });
}

#[test]
fn v24_below_the_minimum_nothing_is_answered_and_nothing_less_is_named() {
    let host = Host::dual();
    for path in [68, 1279, 1280, 1300] {
        for len in [48, 68, 1200, 1279, 1280, 1281, 1400] {
            let packet = of_length(len, POD_A_V6);
            let outcome = host.encapsulate_over(&packet, path);
            let mut sent = with_hop_limit(&packet, 63);
            match len {
                _ if len <= path.into() => assert_eq!(outcome.reason(), None, "{len} bytes over {path}"),
                ..=1280 => {
                    let expected = Outcome::Drop(DropReason::BelowIpv6Minimum);
                    assert_eq!((&outcome, &host.refused_as_too_long(&mut sent, path)), (&expected, &expected));
                }
                _ => {
                    let mtu = path.max(1280);
                    let Outcome::Reject { reason, answer: Some((_, error)) } = &outcome else { panic!("{outcome:?}") };
                    assert_eq!(*reason, RejectReason::FragmentationNeeded { mtu });
                    assert_eq!(error[44..48], u32::from(mtu).to_be_bytes());
                    assert_eq!(host.refused_as_too_long(&mut sent, path), outcome);
                }
            }
        }
    }
}

#[test]
fn v24_a_smaller_mtu_is_refused_where_ipv6_is_carried() {
    let small = mtu_of(1279);
    let of = |identity: &Identity, mtu: Mtu| Forwarder::new(ForwarderConfig::new(identity).with_mtu(mtu)).err();
    assert_eq!(of(&dual_identity(), small), Some(ConfigError::Ipv6Mtu { mtu: small }));
    assert_eq!(of(&dual_identity(), mtu_of(1280)), None);
    assert_eq!(of(&identity(), small), None, "IPv4 alone needs less");
    let over_ipv6 = ForwarderConfig::new(&dual_identity()).with_mtu_over_ipv6(small);
    assert_eq!(Forwarder::new(over_ipv6).unwrap_err(), ConfigError::Ipv6Mtu { mtu: small });
    // Without an IPv6 underlay address its MTU does not matter.
    let subnet = net_v6([0xfd00, 0x96, 1, 0, 0, 0, 0, 0], 64);
    let over_ipv4 = Identity::new(net_v6([0xfd00, 0x96, 0, 0, 0, 0, 0, 0], 32), subnet, own()).unwrap();
    assert!(Forwarder::new(ForwarderConfig::new(&over_ipv4).with_mtu_over_ipv6(small)).is_ok());
}

/// V30: all cells of RFC 6040, for both inner and both outer families.
#[test]
fn v30_ecn_is_the_same_for_every_family_inside_and_outside() {
    use Ecn::{Ce, Ect0, Ect1, NotEct};
    let host = Host::dual();
    // Inner field by outer field; figure 4.
    let figure = [
        (NotEct, [Some(NotEct), Some(NotEct), Some(NotEct), None]),
        (Ect0, [Some(Ect0), Some(Ect1), Some(Ect0), Some(Ce)]),
        (Ect1, [Some(Ect1), Some(Ect1), Some(Ect1), Some(Ce)]),
        (Ce, [Some(Ce); 4]),
    ];
    let inner_v6 =
        |from: Ipv6Addr, ecn: Ecn| Ipv6 { traffic_class: 0xb8 | ecn.bits(), ..Ipv6::new(from, POD_V6) }.bytes();
    for (inner, row) in figure {
        for (outer, expected) in [NotEct, Ect1, Ect0, Ce].into_iter().zip(row) {
            for (peer, pod) in [(host_a(), POD_A_V6), (host_c(), POD_C_V6)] {
                let mut packet = inner_v6(pod, inner);
                let meta = DatagramMeta { from: peer, ecn: outer };
                match (host.forwarder.decapsulate(&mut packet, meta, &host.table), expected) {
                    (Decap::Deliver(bytes), Some(ecn)) => {
                        assert_eq!(bytes.to_vec(), with_hop_limit(&inner_v6(pod, ecn), 63), "{inner:?} in {outer:?}");
                    }
                    (Decap::Drop(reason), None) => assert_eq!(reason, DropReason::EcnNotCapable),
                    (other, expected) => panic!("{inner:?} in {outer:?}: {other:?} instead of {expected:?}"),
                }
            }
        }
        for (ingress, expected) in [(EcnIngress::Compatibility, NotEct), (EcnIngress::Normal, inner)] {
            let config = ForwarderConfig::new(&dual_identity()).with_ecn_ingress(ingress);
            let host = Host::new(config, dual_routes());
            let mut packet = Ipv6 { traffic_class: inner.bits(), ..outbound_v6() }.bytes();
            let Encap::Send(transmit) = host.forwarder.encapsulate(&mut packet, &host.table) else { panic!("routed") };
            assert_eq!(transmit.ecn, expected);
        }
    }
}

#[test]
fn v31_senders_sources_and_destinations_are_checked_as_for_ipv4() {
    let host = Host::dual();
    let reason = |packet: &Ipv6, from| host.decapsulate(&packet.bytes(), from).reason();
    let stranger = (Ipv6Addr::new(0xfd00, 0x168, 0, 0, 0, 0, 0, 9), 8285).into();
    assert_eq!(reason(&inbound_v6(), host_a()), None);
    let mapped = (Ipv4Addr::new(10, 168, 0, 3).to_ipv6_mapped(), 8285).into();
    assert_eq!(reason(&inbound_v6(), mapped), None, "an IPv4-mapped sender is the IPv4 peer");
    assert_eq!(reason(&inbound_v6(), stranger), Some(DropReason::UnknownPeer), "R64");
    assert_eq!(reason(&inbound_v6(), host_c()), Some(DropReason::SpoofedSource), "R65");
    assert_eq!(reason(&Ipv6::new(POD_V6, POD_V6), host_a()), Some(DropReason::SpoofedSource), "R65: our own subnet");
    let IpAddr::V6(underlay) = host_c().ip() else { panic!("host C is reached over IPv6") };
    assert_eq!(reason(&Ipv6::new(underlay, POD_V6), host_c()), None, "R65: the peer's own underlay address");
    assert_eq!(reason(&Ipv6::new(underlay, POD_V6), host_a()), Some(DropReason::SpoofedSource));
    assert_eq!(reason(&Ipv6::new(POD_A_V6, POD_C_V6), host_a()), Some(DropReason::ForeignDestination), "R66");
    let second: Ipv6Addr = "fd00:96:11::1".parse().unwrap();
    assert_eq!(reason(&Ipv6::new(POD_A_V6, second), host_a()), None, "every own subnet counts");
}

/// V31: loops (R62 and fault 6), with an underlay address inside that is routed into the overlay.
#[test]
fn v31_r62_fault_6_own_packets_are_recognised_inside() {
    let mut all = dual_routes();
    all.push(Route::new(net_v6([0xfd00, 0x168, 0, 0, 0, 0, 0, 0], 32), host_c()));
    let host = Host::new(ForwarderConfig::new(&dual_identity()), all);
    let (IpAddr::V6(ours), IpAddr::V6(theirs)) = (own_v6().ip(), host_c().ip()) else { panic!("both are IPv6") };
    let out = |destination, port| Ipv6 { payload: udp(4000, port, b"data"), ..Ipv6::new(POD_V6, destination) };
    let reason = |packet: Ipv6| host.encapsulate(&packet.bytes()).reason();
    assert_eq!(reason(out(theirs, 53)), Some(DropReason::Loop), "R62: its own next hop's address");
    assert_eq!(reason(out(ours, 8285)), Some(DropReason::Loop), "our own socket");
    assert_eq!(reason(out(ours, 53)), None);
    for extensions in [vec![], vec![destination_options(2)], vec![fragment(0, true)]] {
        let inside = Ipv6 { extensions, ..out(ours, 8285) };
        assert_eq!(reason(inside), Some(DropReason::Loop));
    }
    let later = Ipv6 { extensions: vec![fragment(5, true)], ..out(ours, 8285) };
    assert_eq!(reason(later), None, "a later fragment has no ports");
    let back = Ipv6 { payload: udp(4000, 8285, b"data"), ..Ipv6::new(POD_C_V6, ours) };
    assert_eq!(host.decapsulate(&back.bytes(), host_c()).reason(), Some(DropReason::Loop));
}

/// V32: the label decides where it is set, and the ports where it is not. All fragments of a packet have one number.
#[test]
fn v32_flows_have_a_number_of_their_own() {
    let config = ForwarderConfig::new(&dual_identity()).with_source_port(SourcePort::ByFlow);
    let host = Host::new(config, dual_routes());
    let number = |packet: Ipv6| {
        let mut bytes = packet.bytes();
        let Encap::Send(transmit) = host.forwarder.encapsulate(&mut bytes, &host.table) else { panic!("routed") };
        transmit.flow
    };
    let of = |flow_label, port| Ipv6 { flow_label, payload: udp(port, 53, b"data"), ..outbound_v6() };
    assert_eq!(number(of(7, 1)), number(of(7, 2)), "ports do not count beside a label");
    assert_eq!(number(of(7, 1)), number(Ipv6 { hop_limit: 9, traffic_class: 3, ..of(7, 1) }));
    let behind = Ipv6 { extensions: vec![destination_options(2)], ..of(0, 1) };
    assert_eq!(number(of(0, 1)), number(behind));
    let piece = |offset, more| Ipv6 { extensions: vec![fragment(offset, more)], ..of(0, 1) };
    assert_eq!(number(piece(0, true)), number(Ipv6 { payload: vec![9; 80], ..piece(10, false) }));
    // Most flows differ, whatever they differ in.
    let distinct = |packets: Vec<Ipv6>| {
        let count = packets.len();
        let numbers: std::collections::HashSet<_> = packets.into_iter().map(number).collect();
        assert!(numbers.len() > count * 9 / 10, "{} numbers of {count} flows", numbers.len());
        // The low bits choose among few sockets.
        let low: std::collections::HashSet<_> = numbers.iter().map(|number| number % 4).collect();
        assert_eq!(low.len(), 4);
    };
    distinct((1..200).map(|label| of(label, 1)).collect());
    distinct((1..200).map(|port| of(0, port)).collect());
    let pod = |last: u16| Ipv6Addr::new(0xfd00, 0x96, 2, 0, 0, 0, 0, last);
    distinct((1..200).map(|last| Ipv6 { destination: pod(last), ..of(7, 1) }).collect());
    distinct((1..200).map(|last| Ipv6 { source: pod(last), ..of(7, 1) }).collect());
}

/// A family without an own subnet is not carried, and its packets are never called malformed.
#[test]
fn v2_r2_a_family_without_a_subnet_has_a_reason_of_its_own() {
    let subnet = net_v6([0xfd00, 0x96, 1, 0, 0, 0, 0, 0], 64);
    let only_v6 = Identity::new(net_v6([0xfd00, 0x96, 0, 0, 0, 0, 0, 0], 32), subnet, own()).unwrap();
    let host_v6 = Host::new(ForwarderConfig::new(&only_v6), dual_routes());
    let host_v4 = Host::ordinary();
    let (v4, v6) = (outbound().bytes(), outbound_v6().bytes());
    for len in 20..v4.len() {
        assert_eq!(host_v6.encapsulate(&v4[..len]), Outcome::Drop(DropReason::Ipv4NotCarried));
        assert_eq!(host_v6.decapsulate(&v4[..len], host_a()), Outcome::Drop(DropReason::Ipv4NotCarried));
        assert_eq!(host_v4.encapsulate(&v6[..len]), Outcome::Drop(DropReason::Ipv6NotCarried));
        assert_eq!(host_v4.decapsulate(&v6[..len], host_a()), Outcome::Drop(DropReason::Ipv6NotCarried));
    }
    assert_eq!(host_v6.encapsulate(&v6).reason(), None);
    assert_eq!(host_v4.encapsulate(&v4).reason(), None);
    let mut other = v4;
    other[0] = 0x55;
    assert_eq!(host_v6.encapsulate(&other), Outcome::Drop(DropReason::BadVersion));
    assert_eq!(host_v6.encapsulate(&other[..19]), Outcome::Drop(DropReason::TooShort));
}

/// IPv4 packets on a host with both families have the verdicts that they have without IPv6.
#[test]
fn ipv4_is_the_same_beside_ipv6() {
    let (dual, alone) = (Host::dual(), Host::new(ForwarderConfig::new(&identity()), routes()));
    for ttl in [0, 1, 2, 64] {
        let packet = support::packet::Ipv4 { ttl, ..outbound() };
        assert_eq!(dual.encapsulate(&packet.bytes()), alone.encapsulate(&packet.bytes()));
        let back = support::packet::Ipv4 { ttl, ..support::packet::Ipv4::new(POD_A, [100, 96, 1, 2]) };
        assert_eq!(dual.decapsulate(&back.bytes(), host_a()), alone.decapsulate(&back.bytes(), host_a()));
    }
}
