//! GSO packets of IPv6 in both directions.

use core::net::Ipv6Addr;

use super::*;
use etherparse::PacketBuilder;

const POD_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x96, 1, 0, 0, 0, 0, 2);

/// Returns a pod of host `number`, which owns fd00:96:`number`::/64.
fn pod_v6_of(host: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x96, host.into(), 0, 0, 0, 0, 2)
}

/// Returns a UDP packet with `data` bytes of payload.
fn datagram(from: Ipv6Addr, to: Ipv6Addr, hop_limit: u8, data: usize) -> Vec<u8> {
    let mut packet = Vec::new();
    let builder = PacketBuilder::ipv6(from.octets(), to.octets(), hop_limit).udp(4000, 53);
    builder.write(&mut packet, &vec![7; data]).unwrap();
    packet
}

fn gso_v6(size: u16) -> VnetHeader {
    VnetHeader { csum_start: 40, hdr_len: 48, ..gso(size) }
}

/// Hosts with subnets of both families, over an IPv4 underlay.
fn dual_stack() -> Stage {
    let net = |text: &str| text.parse::<ipnet::IpNet>().unwrap();
    let networks = [net("100.96.0.0/16"), net("fd00:96::/32")];
    let identity = Host::from_sets(&networks, &[net("100.96.1.0/24"), net("fd00:96:1::/64")], &[host(1)]).unwrap();
    let subnets = [net("100.96.2.0/24"), net("fd00:96:2::/64")];
    let (routes, refused) = RouteTable::try_from_routes(subnets.map(|subnet| Route::new(subnet, host(2))));
    assert_eq!(refused, []);
    let endpoint = Endpoint::new(Forwarder::new(ForwarderConfig::new(&identity)).unwrap());
    let engine = Engine::new(endpoint, QueueLimits::default(), Coalesce::ALL);
    Stage { engine, routes, sink: Lists::default(), now: Duration::from_secs(1) }
}

/// V26: every segment is the datagram that a sender without offloads makes, after a hop.
#[test]
fn v26_a_gso_packet_is_sent_in_segments() {
    let mut stage = dual_stack();
    stage.give_with(&gso_v6(1000), &datagram(POD_V6, pod_v6_of(2), 64, 2500));
    stage.flush();
    let expected = [1000, 1000, 500].map(|len| datagram(POD_V6, pod_v6_of(2), 63, len));
    assert_eq!(stage.sink.to(host(2)), expected);
    assert_eq!((stage.engine.counters().stats.segments_made, stage.encap().forwarded()), (3, 1));
}

/// V26: segments that are longer than their path are never fragmented.
#[test]
fn v26_a_gso_packet_with_long_segments_is_answered() {
    let mut stage = dual_stack();
    stage.give_with(&gso_v6(1430), &datagram(POD_V6, pod_v6_of(2), 64, 4000));
    stage.flush();
    assert_eq!(stage.sink.to(host(2)), Vec::<Vec<u8>>::new());
    let [(_, message)] = &stage.sink.written[..] else { panic!("{:?}", stage.sink.written) };
    assert_eq!((message[40..42].to_vec(), message[44..48].to_vec()), (vec![2, 0], 1472u32.to_be_bytes().to_vec()));
    assert_eq!((stage.encap().answered(), stage.encap().forwarded()), (1, 0));
}

/// V28: the datagram leaves with the checksum of a sender without offloads.
#[test]
fn v28_a_partial_checksum_is_completed() {
    let mut stage = dual_stack();
    let whole = datagram(POD_V6, pod_v6_of(2), 64, 101);
    let mut partial = whole.clone();
    let (source, destination) = (POD_V6.to_bits(), pod_v6_of(2).to_bits());
    let sum = crate::wire::transport::pseudo_header_sum_v6(source, destination, 17, 109);
    partial[46..48].copy_from_slice(&sum.to_be_bytes());
    stage.give_with(&VnetHeader { gso_type: vnet_gso::NONE, gso_size: 0, ..gso_v6(0) }, &partial);
    stage.flush();
    assert_eq!(stage.sink.to(host(2)), [datagram(POD_V6, pod_v6_of(2), 63, 101)]);
}

/// V27: one write, which is cut into the datagrams that came.
#[test]
fn v27_datagrams_are_written_as_one_gso_packet() {
    let mut stage = dual_stack();
    (0..5).for_each(|_| stage.arrive(2, &datagram(pod_v6_of(2), POD_V6, 64, 100)));
    stage.flush();
    let [(header, packet)] = &stage.sink.written[..] else { panic!("{:?}", stage.sink.written) };
    let Ok(OffloadAction::Segment(gso)) = header.inspect(packet) else { panic!("{header:?}") };
    assert_eq!(gso.segments(), 5);
    for index in 0..5 {
        let mut segment = vec![0; gso.len_of(index)];
        gso.write_segment(packet, index, &mut segment);
        assert_eq!(segment, datagram(pod_v6_of(2), POD_V6, 63, 100));
    }
    assert_eq!((stage.engine.counters().stats.coalesced, stage.decap().forwarded()), (5, 5));
}

/// V27: a TUN that refuses GSO packets of IPv6 gets their segments, and after several refusals none for a minute. Those of
/// IPv4 are not affected, although they are accepted in between.
#[test]
fn v27_refusals_disable_one_family() {
    let mut stage = dual_stack();
    stage.sink.refuses_gso_of = vec![6];
    let arrive = |stage: &mut Stage| {
        for number in (0..6).step_by(2) {
            stage.arrive(2, &packet(pod_of(2), POD, number, true, 100));
            stage.arrive(2, &datagram(pod_v6_of(2), POD_V6, 64, 100));
        }
        stage.flush();
    };
    (0..20).for_each(|_| arrive(&mut stage));
    let stats = stage.engine.counters().stats;
    assert_eq!((stats.tun_fallbacks, stats.coalesced), (8, 60));
    assert_eq!((stage.sink.written.len(), stage.decap().forwarded()), (20 + 60, 120));
    stage.sink.refuses_gso_of.clear();
    stage.now += Duration::from_secs(60);
    arrive(&mut stage);
    assert_eq!(stage.engine.counters().stats.coalesced, 66);
}

/// V27: a corrupt packet joins no batch, sealed or not, and keeps its checksum.
#[test]
fn v27_a_corrupt_packet_is_written_alone_and_as_it_is() {
    fn check<F: Framing>(mut stage: Stage<F>, head: &[u8]) {
        let segment = |number: u32| {
            let builder = PacketBuilder::ipv6(pod_v6_of(2).octets(), POD_V6.octets(), 64);
            let mut packet = Vec::new();
            builder.tcp(4000, 80, 100 * number, 500).ack(7).write(&mut packet, &[number as u8; 100]).unwrap();
            packet
        };
        let of_udp: Vec<_> = (0..9).map(|_| datagram(pod_v6_of(2), POD_V6, 64, 100)).collect();
        for mut packets in [of_udp, (0..9).map(segment).collect()] {
            *packets[4].last_mut().unwrap() ^= 1;
            packets.iter().for_each(|packet| stage.arrive(2, &[head, packet].concat()));
            stage.flush();
            let mut corrupt = packets[4].clone();
            corrupt[7] = 63;
            let written = core::mem::take(&mut stage.sink.written);
            let alone = written.iter().filter(|write| **write == (VnetHeader::default(), corrupt.clone())).count();
            assert_eq!((alone, written.len()), (1, 3), "and a batch before and after it");
        }
        assert_eq!((stage.engine.counters().stats.coalesced, stage.decap().forwarded()), (16, 18));
    }
    check(dual_stack(), b"");
    check(dual_stack().with_framing(super::framed::Keyed(*b"a secret")), b"a secret");
}
