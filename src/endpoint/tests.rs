use super::*;
use crate::forward::ForwarderConfig;
use crate::host::Host;
use crate::offload::{vnet_flag, vnet_gso};
use crate::route::Route;
use alloc::vec::Vec;
use core::net::SocketAddr;
use etherparse::PacketBuilder;

const NOW: Duration = Duration::from_secs(1);

fn peer() -> SocketAddr {
    ([10, 168, 0, 3], 8285).into()
}

fn endpoint() -> (Endpoint, RouteTable) {
    let net = |text: &str| text.parse::<ipnet::Ipv4Net>().unwrap();
    let host = Host::new(net("100.96.0.0/16"), net("100.96.1.0/24"), ([10, 168, 0, 2], 8285)).unwrap();
    let (routes, refused) = RouteTable::try_from_routes([Route::new(net("100.96.2.0/24"), peer())]);
    assert_eq!(refused, []);
    (Endpoint::new(Forwarder::new(ForwarderConfig::new(&host)).unwrap()), routes)
}

/// Returns a UDP packet without DF.
fn packet(from: [u8; 4], to: [u8; 4], data: usize) -> Vec<u8> {
    let mut header = etherparse::Ipv4Header::new(0, 64, etherparse::IpNumber::UDP, from, to).unwrap();
    header.dont_fragment = false;
    let builder = PacketBuilder::ip(etherparse::IpHeaders::Ipv4(header, etherparse::Ipv4Extensions::default()));
    let mut packet = Vec::new();
    builder.udp(4000, 53).write(&mut packet, &alloc::vec![7; data]).unwrap();
    packet
}

const OUT: [[u8; 4]; 2] = [[100, 96, 1, 2], [100, 96, 2, 3]];

fn send(endpoint: &mut Endpoint, routes: &RouteTable, data: usize) -> usize {
    let mut packet = packet(OUT[0], OUT[1], data);
    match endpoint.handle_outbound(&mut packet, &VnetHeader::default(), routes, NOW) {
        Outbound::Send(_) => 1,
        Outbound::SendAll(mut datagrams) => {
            let mut room = [0; 65_535];
            let mut count = 0;
            while let Some(transmit) = datagrams.next_into(&mut room) {
                assert_eq!((transmit.destination, transmit.segment_size), (peer(), None));
                count += 1;
            }
            count
        }
        other @ (Outbound::Reply(_) | Outbound::Drop(_)) => panic!("{other:?}"),
    }
}

#[test]
fn an_action_that_failed_moves_its_packet_to_another_counter() {
    let (mut endpoint, routes) = endpoint();
    assert_eq!(send(&mut endpoint, &routes, 100), 1);
    endpoint.handle_send_error(peer().ip(), DropReason::SendRefused, 1);
    let mut datagram = packet(OUT[1], OUT[0], 100);
    assert!(matches!(endpoint.handle_inbound(&mut datagram, peer(), &routes, NOW), Inbound::Deliver(_)));
    endpoint.handle_write_error(DropReason::TunDown, 1);
    let mut nowhere = packet(OUT[0], [100, 96, 9, 9], 100);
    let outbound = endpoint.handle_outbound(&mut nowhere, &VnetHeader::default(), &routes, NOW);
    let Outbound::Reply(Reply { to, reason, .. }) = outbound else { panic!("{outbound:?}") };
    endpoint.handle_reply_error(Direction::Outbound, to, reason);
    let Counters { encap, decap, .. } = endpoint.counters();
    assert!(encap.is_conserved() && decap.is_conserved());
    assert_eq!((encap.forwarded(), encap.answered(), encap.held()), (0, 0, 0));
    assert_eq!(encap.drops().collect::<Vec<_>>(), [(DropReason::NoRoute, 1), (DropReason::SendRefused, 1)]);
    assert_eq!(decap.drops().collect::<Vec<_>>(), [(DropReason::TunDown, 1)]);
    assert_eq!(endpoint.send_errors().collect::<Vec<_>>(), [(peer().ip(), 1)]);
}

/// A host without an IPv6 subnet drops an IPv6 GSO packet for being IPv6, and not for its offload.
#[test]
fn an_ipv6_gso_packet_is_not_carried() {
    let (mut endpoint, routes) = endpoint();
    let mut bytes = Vec::new();
    let builder = PacketBuilder::ipv6([0xfd; 16], [0xfc; 16], 64).tcp(4000, 53, 1, 1000);
    builder.write(&mut bytes, &[7; 100]).unwrap();
    let header = VnetHeader {
        flags: vnet_flag::NEEDS_CSUM,
        gso_type: vnet_gso::TCPV6,
        gso_size: 50,
        csum_start: 40,
        csum_offset: 16,
        ..VnetHeader::default()
    };
    assert!(matches!(header.inspect(&bytes), Ok(OffloadAction::Segment(gso)) if gso.segments() == 2));
    let outcome = endpoint.handle_outbound(&mut bytes, &header, &routes, NOW);
    assert!(matches!(outcome, Outbound::Drop(DropReason::Ipv6NotCarried)), "{outcome:?}");
}

#[test]
fn a_learned_path_mtu_applies_from_the_next_packet() {
    let (mut endpoint, routes) = endpoint();
    let way = Way { destination: peer(), ecn: crate::wire::Ecn::NotEct, flow: 0 };
    let system = SystemPath { configured: Some(628), ..SystemPath::default() };
    assert_eq!(send(&mut endpoint, &routes, 1000), 1);
    assert_eq!(endpoint.handle_emsgsize(&way, 1028, system, NOW), EmsgsizeOutcome::Limit(600));
    let mut waited = packet(OUT[0], OUT[1], 1000);
    let outcome = endpoint.handle_too_long(&mut waited, &way, 600, &routes, NOW);
    assert!(matches!(outcome, Outbound::Drop(DropReason::PathTooNarrow)), "{outcome:?}");
    assert_eq!((send(&mut endpoint, &routes, 1000), send(&mut endpoint, &routes, 500)), (2, 1));
    assert_eq!((endpoint.path_limit(peer().ip(), NOW), endpoint.counters().stats.fragments_made), (600, 2));
    // A lower limit of our own says nothing about the path, a higher one may.
    endpoint.set_mtu(Mtu::new(1400).unwrap());
    assert_eq!(send(&mut endpoint, &routes, 1000), 2);
    endpoint.set_mtu(Mtu::new(1472).unwrap());
    assert_eq!(send(&mut endpoint, &routes, 1000), 1);
    let Counters { encap, .. } = endpoint.counters();
    assert_eq!((encap.is_conserved(), encap.forwarded(), encap.received()), (true, 4, 5));
}

#[test]
fn a_datagram_is_not_written_to_a_buffer_of_another_length() {
    let (mut endpoint, routes) = endpoint();
    let mut packet = packet(OUT[0], OUT[1], 2000);
    let outbound = endpoint.handle_outbound(&mut packet, &VnetHeader::default(), &routes, NOW);
    let Outbound::SendAll(mut datagrams) = outbound else { panic!("{outbound:?}") };
    let len = datagrams.next_len().unwrap();
    let mut room = [0xee; 3000];
    datagrams.write_next(&mut room[..len - 1]);
    assert_eq!(room, [0xee; 3000]);
    assert_eq!(datagrams.next_into(&mut room[..10]), None);
    let last = datagrams.next_into(&mut room).map(|transmit| transmit.contents.len());
    assert_eq!((last, datagrams.next_len()), (Some(2028 - len + 20), None));
}

#[test]
fn errors_of_a_bounded_number_of_peers_are_counted() {
    let (mut endpoint, _) = endpoint();
    for round in 1..=2 {
        for peer in 0..2000u32 {
            endpoint.handle_send_error(core::net::Ipv4Addr::from_bits(peer).into(), DropReason::SendFailed, 1);
        }
        let counted: Vec<_> = endpoint.send_errors().collect();
        assert!(counted.len() == PEERS_COUNTED && counted.iter().all(|(_, count)| *count == round));
    }
}

/// V23 and V24: only segments have to fit. One within the minimum of IPv6 that does not fit is not answered, however long
/// the whole packet is.
#[test]
fn v23_v24_super_packets_are_judged_by_their_segments() {
    let net = |text: &str| text.parse::<ipnet::IpNet>().unwrap();
    let nets = [net("fd00:96::/32"), net("fd00:96:1::/64")];
    let host = Host::new(nets[0], nets[1], ([10, 168, 0, 2], 8285)).unwrap();
    let (routes, _) = RouteTable::try_from_routes([Route::new(net("fd00:96:2::/64"), peer())]);
    let mut endpoint = Endpoint::new(Forwarder::new(ForwarderConfig::new(&host)).unwrap());
    let address = |subnet: u16| core::net::Ipv6Addr::new(0xfd00, 0x96, subnet, 0, 0, 0, 0, 2).octets();
    let mut packet = Vec::new();
    let builder = PacketBuilder::ipv6(address(1), address(2), 64).tcp(4000, 80, 1, 1000);
    builder.write(&mut packet, &[7; 9000]).unwrap();
    let outcome = |endpoint: &mut Endpoint, gso_size: u16| {
        let header = VnetHeader {
            flags: vnet_flag::NEEDS_CSUM,
            gso_type: vnet_gso::TCPV6,
            gso_size,
            csum_start: 40,
            csum_offset: 16,
            ..VnetHeader::default()
        };
        let mut packet = packet.clone();
        match endpoint.handle_outbound(&mut packet, &header, &routes, NOW) {
            Outbound::SendAll(_) => Ok(None),
            Outbound::Reply(reply) => Ok(reply.message.get(44..48).map(<[u8]>::to_vec)),
            Outbound::Drop(reason) => Err(reason),
            other @ Outbound::Send(_) => panic!("{other:?}"),
        }
    };
    let mtu = |mtu: u32| Ok(Some(mtu.to_be_bytes().to_vec()));
    // Every segment has 60 bytes of headers.
    assert_eq!((outcome(&mut endpoint, 1412), outcome(&mut endpoint, 1413)), (Ok(None), mtu(1472)));
    let way = Way { destination: peer(), ecn: crate::wire::Ecn::NotEct, flow: 0 };
    let system = SystemPath { configured: Some(1028), ..SystemPath::default() };
    assert_eq!(endpoint.handle_emsgsize(&way, 1400, system, NOW), EmsgsizeOutcome::Limit(1000));
    assert_eq!((outcome(&mut endpoint, 940), outcome(&mut endpoint, 1221)), (Ok(None), mtu(1280)));
    for gso_size in [941, 1220] {
        assert_eq!(outcome(&mut endpoint, gso_size), Err(DropReason::BelowIpv6Minimum), "{gso_size}");
    }
}
