//! V26 to V28: the properties of IPv6 alone. Those of both families are tested with IPv4.

use core::net::Ipv6Addr;

use loden::offload::{Coalesce, OffloadAction, OffloadError, PACKETS_MAX, VnetHeader};

use super::coalesce::{tcp_packets, writes_of};
use super::segment::segments;
use bodies::offload;
use bodies::offload::model::{self, ACK, CWR, FIN, PSH, RST, SYN, Tcp, URG, complete, partial, timestamp, vnet};
use support::packet::{TCP, UDP, pattern, udp};
use support::packet_v6::{
    HOP_BY_HOP, ICMPV6, Ipv6, destination_options, fragment, icmpv6, segment_routing, with_hop_limit,
};

const POD: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x96, 1, 0, 0, 0, 0, 2);
const POD_A: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x96, 2, 0, 0, 0, 0, 3);

pub(crate) fn outbound() -> Ipv6 {
    Ipv6::new(POD, POD_A)
}

/// Returns a GSO packet with 3,000 bytes of TCP.
pub(crate) fn tcp_super() -> Vec<u8> {
    partial(Ipv6 { protocol: TCP, payload: Tcp::new(7000, pattern(3000)).bytes(), ..outbound() }.bytes())
}

pub(crate) fn udp_super() -> Vec<u8> {
    partial(Ipv6 { payload: udp(4000, 53, &pattern(3000)), ..outbound() }.bytes())
}

/// Returns a GSO packet of datagrams behind destination options and a routing header.
pub(crate) fn behind_extension_headers() -> Vec<u8> {
    let extensions = vec![destination_options(1), segment_routing(POD)];
    partial(Ipv6 { extensions, payload: udp(4000, 53, &pattern(3000)), ..outbound() }.bytes())
}

/// The IP packet and its TCP segment, each of which can be edited.
pub(crate) type Parts = (Ipv6, Tcp);

/// Returns a stream of `count` packets of `len` bytes, with the one at `at` edited.
pub(crate) fn tcp_stream(count: usize, len: usize, at: usize, edit: impl Fn(&mut Parts)) -> Vec<Vec<u8>> {
    let mut sequence = 5000;
    let packet = |index: usize| {
        let mut parts = (outbound(), Tcp { options: timestamp(1, 2), ..Tcp::new(sequence, pattern(len)) });
        if index == at {
            edit(&mut parts);
        }
        let (ip, tcp) = parts;
        sequence = tcp.sequence.wrapping_add(tcp.payload.len() as u32);
        complete(Ipv6 { protocol: TCP, payload: tcp.bytes(), ..ip }.bytes())
    };
    (0..count).map(packet).collect()
}

/// Returns the same of datagrams.
pub(crate) fn udp_stream(count: usize, len: usize, at: usize, edit: impl Fn(&mut Ipv6)) -> Vec<Vec<u8>> {
    let packet = |index: usize| {
        let mut packet = Ipv6 { payload: udp(4000, 53, &pattern(len)), ..outbound() };
        if index == at {
            edit(&mut packet);
        }
        complete(packet.bytes())
    };
    (0..count).map(packet).collect()
}

fn writes(packets: &[Vec<u8>]) -> Vec<usize> {
    writes_of(Coalesce::ALL, packets)
}

/// Returns the writes of three packets of which the second is edited.
fn second_tcp(edit: impl Fn(&mut Parts)) -> Vec<usize> {
    writes(&tcp_stream(3, 100, 1, edit))
}

fn second_udp(edit: impl Fn(&mut Ipv6)) -> Vec<usize> {
    writes(&udp_stream(3, 100, 1, edit))
}

fn error(vnet: &VnetHeader, packet: &[u8]) -> OffloadError {
    offload::vnet::check(vnet, packet);
    vnet.inspect(packet).unwrap_err()
}

/// [`segments`] compares every segment with etherparse's reading of the whole.
#[test]
fn v26_every_segment_has_its_payload_length_and_its_checksum() {
    let tcp = Tcp { flags: 0xff, options: timestamp(1, 2), ..Tcp::new(0xffff_f000, pattern(10_001)) };
    let tcp = Ipv6 { protocol: TCP, payload: tcp.bytes(), traffic_class: 0xb9, ..outbound() };
    let udp = Ipv6 { payload: udp(4000, 53, &pattern(10_001)), flow_label: 0xf_ffff, ..outbound() };
    for packet in [tcp, udp] {
        let packet = partial(packet.bytes());
        let all = segments(&packet, 1420);
        assert_eq!(all.len(), 8);
        for (index, segment) in all.iter().enumerate() {
            let payload_len = usize::from(u16::from_be_bytes([segment[4], segment[5]]));
            assert_eq!(payload_len + 40, segment.len());
            assert_eq!((&segment[..4], &segment[6..40]), (&packet[..4], &packet[6..40]));
            assert_eq!(model::transport_sum(segment), 0xffff, "segment {index}");
            assert_eq!(*segment, model::segment(&packet, 1420, index, true));
        }
    }
}

/// V26. Among the extension headers is a routing header, whose final destination is part of the pseudo header.
#[test]
fn v26_extension_headers_are_in_every_segment() {
    let end = Ipv6Addr::new(0xfd00, 0x96, 9, 0, 0, 0, 0, 9);
    let hop_by_hop = (HOP_BY_HOP, destination_options(2).1);
    let plain = vec![hop_by_hop, destination_options(1)];
    for (extensions, destination) in
        [(vec![], POD_A), (plain.clone(), POD_A), ([plain, vec![segment_routing(end)]].concat(), end)]
    {
        let tcp = Ipv6 { protocol: TCP, payload: Tcp::new(1, pattern(4000)).bytes(), ..outbound() };
        let udp = Ipv6 { payload: udp(4000, 53, &pattern(4000)), ..outbound() };
        for packet in [tcp, udp] {
            let packet = Ipv6 { extensions: extensions.clone(), ..packet }.bytes();
            let whole = model::partial_to(packet, destination);
            let ip = model::ip_len(&whole);
            let all = segments(&whole, 1000);
            assert_eq!(all.len(), 4);
            for segment in &all {
                assert_eq!(segment[6..ip], whole[6..ip]);
                assert_eq!(model::ip_len(segment), ip);
                assert_eq!(model::transport_sum_to(segment, destination), 0xffff);
            }
        }
    }
}

/// Without a partial checksum there is nothing to derive a final destination from, for the kernel neither.
#[test]
fn v26_segments_of_a_packet_without_partial_checksum() {
    for packet in [tcp_super(), udp_super()] {
        let header = VnetHeader { flags: 0, csum_start: 1, csum_offset: 2, ..vnet(&packet, 1000) };
        offload::vnet::check(&header, &packet);
        assert!(matches!(header.inspect(&packet), Ok(OffloadAction::Segment(many)) if many.segments() == 3));
    }
}

#[test]
fn v26_the_longest_packet_in_the_smallest_segments() {
    for payload in [Tcp::new(7000, pattern(65_515)).bytes(), udp(4000, 53, &pattern(65_527))] {
        let protocol = if payload[4..6] == [0xff, 0xff] { UDP } else { TCP };
        let packet = partial(Ipv6 { protocol, payload, ..outbound() }.bytes());
        assert_eq!(packet.len(), 65_575);
        let payload = packet.len() - model::headers_len(&packet);
        for size in [1, 1000, 65_514] {
            let header = vnet(&packet, size);
            let Ok(OffloadAction::Segment(many)) = header.inspect(&packet) else { panic!("not many") };
            assert_eq!(many.segments(), payload.div_ceil(size.into()));
            offload::segment::check_segments(&many, &packet, packet.len(), &header);
        }
        let header = vnet(&packet, 0);
        let Ok(OffloadAction::Checksum(work)) = header.inspect(&packet) else { panic!("no checksum") };
        let mut completed = packet.clone();
        work.complete(&mut completed);
        assert_eq!(completed, complete(packet));
    }
}

#[test]
fn v26_a_gso_type_of_the_other_family_or_protocol_is_refused() {
    let (tcp, udp) = (tcp_super(), udp_super());
    let other = Ipv6 { protocol: 47, payload: pattern(3000), ..outbound() }.bytes();
    for gso_type in 1..=255 {
        for (packet, protocol) in [(&tcp, TCP), (&udp, UDP), (&other, 47)] {
            let header = VnetHeader { gso_type, gso_size: 1000, ..VnetHeader::default() };
            match (gso_type, protocol) {
                (4 | 0x84, TCP) | (5, UDP) => assert!(matches!(header.inspect(packet), Ok(OffloadAction::Segment(_)))),
                (1 | 3 | 4 | 5 | 0x81 | 0x84, _) => {
                    assert_eq!(error(&header, packet), OffloadError::UnfitGso { gso_type, version: 6, protocol });
                }
                _ => assert_eq!(error(&header, packet), OffloadError::UnknownGso { gso_type }),
            }
        }
    }
}

/// A fragment has no whole transport header. Extension headers that lead nowhere have none either, but their checksum is
/// where the kernel says.
#[test]
fn v26_a_gso_packet_needs_a_transport_header() {
    for (offset, more) in [(0, true), (185, true), (185, false)] {
        let packet = Ipv6 { extensions: vec![fragment(offset, more)], payload: pattern(3000), ..outbound() }.bytes();
        for gso_type in [0, 5] {
            let header = VnetHeader { flags: 1, gso_type, gso_size: 1000, csum_start: 48, csum_offset: 6, hdr_len: 0 };
            assert_eq!(error(&header, &packet), OffloadError::Fragment { offset });
        }
    }
    let extensions = vec![destination_options(1); 9];
    let packet = Ipv6 { extensions, payload: udp(4000, 53, &pattern(3000)), ..outbound() }.bytes();
    let gso = VnetHeader { flags: 1, gso_type: 5, gso_size: 1000, csum_start: 112, csum_offset: 6, hdr_len: 0 };
    assert_eq!(error(&gso, &packet), OffloadError::NoTransport);
    let single = VnetHeader { gso_type: 0, ..gso };
    offload::vnet::check(&single, &packet);
    assert!(matches!(single.inspect(&packet), Ok(OffloadAction::Checksum(_))));
}

#[test]
fn v26_fault_18_a_checksum_outside_the_payload_is_refused() {
    let packet = udp_super();
    let total = packet.len();
    for size in [0, 1000] {
        let at =
            |csum_start, csum_offset| error(&VnetHeader { csum_start, csum_offset, ..vnet(&packet, size) }, &packet);
        for start in [0, 20, 39] {
            assert_eq!(at(start, 6), OffloadError::ChecksumInHeader { start, header: 40 });
        }
        assert_eq!(at(40, total as u16 - 41), OffloadError::ChecksumPastEnd { at: total - 1, total });
        assert_eq!(at(65_535, 65_535), OffloadError::ChecksumPastEnd { at: 131_070, total });
    }
    let header = VnetHeader { csum_start: 44, ..vnet(&packet, 1000) };
    let misplaced = OffloadError::ChecksumMisplaced { start: 44, offset: 6, protocol: UDP, header: 40 };
    assert_eq!(error(&header, &packet), misplaced);
}

#[test]
fn v28_r35_a_partial_checksum_is_completed_also_after_a_hop() {
    for len in [0, 1, 2, 33, 1452] {
        for extensions in [vec![], vec![destination_options(3)]] {
            let tcp = Ipv6 { protocol: TCP, payload: Tcp::new(1, pattern(len)).bytes(), ..outbound() };
            let udp = Ipv6 { payload: udp(4000, 53, &pattern(len)), ..outbound() };
            for packet in [tcp, udp] {
                let packet = partial(Ipv6 { extensions: extensions.clone(), ..packet }.bytes());
                let header = vnet(&packet, 0);
                offload::vnet::check(&header, &packet);
                let Ok(OffloadAction::Checksum(work)) = header.inspect(&packet) else { panic!("{len} bytes") };
                let mut forwarded = with_hop_limit(&packet, 63);
                work.complete(&mut forwarded);
                assert_eq!(forwarded, complete(with_hop_limit(&packet, 63)), "{len} bytes");
                assert_eq!(model::transport_sum(&forwarded), 0xffff);
            }
        }
    }
}

/// The same for a protocol that is not ours to know.
#[test]
fn v28_the_checksum_of_any_protocol_is_completed() {
    let right = Ipv6 { protocol: ICMPV6, payload: icmpv6(POD, POD_A, 128, b"ping"), ..outbound() }.bytes();
    let mut packet = right.clone();
    let pseudo = [&packet[8..40], &[0, 0, 0, 12, 0, 0, 0, ICMPV6]].concat();
    packet[42..44].copy_from_slice(&support::packet::ones_sum(&pseudo).to_be_bytes());
    let header = VnetHeader { flags: 1, csum_start: 40, csum_offset: 2, ..VnetHeader::default() };
    let Ok(OffloadAction::Checksum(work)) = header.inspect(&packet) else { panic!("no checksum") };
    work.complete(&mut packet);
    assert_eq!(packet, right);
}

/// V26, V28. Two bytes of payload that make the checksum 0: UDP writes the other zero, TCP does not have to.
#[test]
fn v26_v28_a_udp_checksum_of_0_is_written_as_ffff() {
    for (protocol, at, expected) in [(UDP, 46, [0xff; 2]), (TCP, 56, [0; 2])] {
        let make = |data: &[u8]| {
            let payload = if protocol == UDP { udp(4000, 53, data) } else { Tcp::new(1, data.to_vec()).bytes() };
            Ipv6 { protocol, payload, ..outbound() }.bytes()
        };
        let rest = complete(make(&[0, 0]));
        let packet = partial(make(&rest[at..at + 2]));
        let Ok(OffloadAction::Checksum(work)) = vnet(&packet, 0).inspect(&packet) else { panic!("{packet:02x?}") };
        let mut completed = packet.clone();
        work.complete(&mut completed);
        assert_eq!(completed[at..at + 2], expected);
        let whole = partial(make(&[&rest[at..at + 2], &[0; 2]].concat()));
        let Ok(OffloadAction::Segment(many)) = vnet(&whole, 2).inspect(&whole) else { panic!("not many") };
        let mut segment = vec![0; many.len_of(0)];
        many.write_segment(&whole, 0, &mut segment);
        assert_eq!(segment[at..at + 2], expected);
    }
}

#[test]
fn v27_a_stream_is_one_write() {
    assert_eq!(writes(&tcp_stream(45, 1400, 99, |_| ())), [45]);
    assert_eq!(writes(&udp_stream(64, 64, 99, |_| ())), [64]);
    for what in [Coalesce { tcp6: false, ..Coalesce::ALL }, Coalesce { udp6: true, ..Coalesce::NONE }] {
        assert_eq!(writes_of(what, &tcp_stream(3, 100, 9, |_| ())), [1; 3]);
        assert_eq!(writes_of(what, &udp_stream(3, 100, 9, |_| ())), [3]);
    }
    let only_tcp = Coalesce { tcp6: true, ..Coalesce::NONE };
    assert_eq!(writes_of(only_tcp, &tcp_stream(3, 100, 9, |_| ())), [3]);
    assert_eq!(writes_of(only_tcp, &udp_stream(3, 100, 9, |_| ())), [1; 3]);
}

#[test]
fn v27_headers_that_differ_are_not_joined() {
    type Edit<P> = (&'static str, fn(&mut P));
    let edits: [Edit<Ipv6>; 9] = [
        ("hop limit", |ip| ip.hop_limit = 63),
        ("traffic class", |ip| ip.traffic_class = 0x10),
        ("the low half of the traffic class", |ip| ip.traffic_class = 0x04),
        ("congestion experienced", |ip| ip.traffic_class = 3),
        ("the highest bit of the flow label", |ip| ip.flow_label ^= 0x8_0000),
        ("the lowest bit of the flow label", |ip| ip.flow_label ^= 1),
        ("destination options", |ip| ip.extensions = vec![destination_options(1)]),
        ("a fragment header", |ip| ip.extensions = vec![fragment(0, false)]),
        ("hop-by-hop options", |ip| ip.extensions = vec![(HOP_BY_HOP, destination_options(1).1)]),
    ];
    for (name, edit) in edits {
        assert_eq!(second_tcp(|(ip, _)| edit(ip)), [1; 3], "{name}");
        assert_eq!(second_udp(edit), [1; 3], "{name}");
        // Packets that all have it are joined, but not behind extension headers.
        let all: Vec<_> = (0..3).flat_map(|_| udp_stream(1, 100, 0, edit)).collect();
        let joined = !name.contains("header") && !name.contains("options");
        assert_eq!(writes(&all), if joined { vec![3] } else { vec![1; 3] }, "{name}");
    }
    let edits: [Edit<Tcp>; 8] = [
        ("options", |tcp| tcp.options = timestamp(2, 2)),
        ("no options", |tcp| tcp.options.clear()),
        ("acknowledgment", |tcp| tcp.acknowledgment += 1),
        ("window", |tcp| tcp.window += 1),
        ("urgent pointer", |tcp| tcp.urgent = 1),
        ("SYN", |tcp| tcp.flags |= SYN),
        ("RST", |tcp| tcp.flags |= RST),
        ("URG", |tcp| tcp.flags |= URG),
    ];
    for (name, edit) in edits {
        assert_eq!(second_tcp(|(_, tcp)| edit(tcp)), [1; 3], "{name}");
    }
}

/// V27. Every bit of both addresses, and pairs of changes in both, which a digest of the addresses might not tell apart.
#[test]
fn v27_other_addresses_are_another_flow() {
    let bit = |at: u32| 1_u128 << at;
    let edit = |(source, destination): (u128, u128)| {
        writes(&udp_stream(3, 100, 1, |ip| {
            ip.source = (ip.source.to_bits() ^ source).into();
            ip.destination = (ip.destination.to_bits() ^ destination).into();
        }))
    };
    for at in 0..128 {
        for change in [(bit(at), 0), (0, bit(at)), (bit(at), bit(at)), (bit(at), bit(at ^ 64))] {
            assert_eq!(edit(change), [2, 1], "{change:x?}");
        }
    }
    let swapped = udp_stream(3, 100, 1, |ip| (ip.source, ip.destination) = (ip.destination, ip.source));
    assert_eq!(writes(&swapped), [2, 1]);
}

#[test]
fn v27_a_bad_checksum_is_not_joined() {
    for (packets, is_tcp) in [(tcp_stream(3, 100, 9, |_| ()), true), (udp_stream(3, 100, 9, |_| ()), false)] {
        for (broken, expected) in [(0, [1, 2].as_slice()), (1, &[1, 1, 1]), (2, &[1, 2])] {
            // No checksum covers the traffic class, the flow label and the hop limit. Another protocol is another flow.
            for at in (4..6).chain(8..packets[0].len()) {
                // Another address or port is another flow, which leaves no gap in datagrams.
                let expected = if !is_tcp && (8..44).contains(&at) { &[1, 2] } else { expected };
                let mut packets = packets.clone();
                packets[broken][at] ^= 0x10;
                let mut writes = writes(&packets);
                writes.sort_unstable();
                assert_eq!(writes, expected, "byte {at} of packet {broken}");
            }
        }
    }
    let mut packets = udp_stream(3, 100, 9, |_| ());
    packets[1][46..48].fill(0);
    assert_eq!(writes(&packets), [1; 3], "a datagram without checksum");
}

#[test]
fn v27_lengths_sequence_and_flags_as_for_ipv4() {
    assert_eq!(second_tcp(|(_, tcp)| tcp.payload = pattern(99)), [2, 1], "only the last may be shorter");
    assert_eq!(second_tcp(|(_, tcp)| tcp.payload = pattern(101)), [1, 2], "none may be longer");
    assert_eq!(second_tcp(|(_, tcp)| tcp.payload.clear()), [1; 3], "an acknowledgment goes alone");
    assert_eq!(second_udp(|ip| ip.payload = udp(4000, 53, &pattern(99))), [2, 1]);
    assert_eq!(second_udp(|ip| ip.payload = udp(4000, 53, &pattern(101))), [1, 2]);
    assert_eq!(second_udp(|ip| ip.payload = udp(4000, 53, &[])), [1; 3]);
    assert_eq!(second_udp(|ip| ip.trailer = vec![0; 4]), [1; 3]);
    assert_eq!(second_udp(|ip| ip.payload_len = Some(1000)), [1; 3]);
    assert_eq!(second_tcp(|(_, tcp)| tcp.sequence += 1), [1, 2]);
    assert_eq!(second_tcp(|(_, tcp)| tcp.flags |= PSH), [2, 1]);
    assert_eq!(second_tcp(|(_, tcp)| tcp.flags |= FIN), [2, 1]);
    assert_eq!(second_tcp(|(_, tcp)| tcp.flags = ACK | CWR), [1, 2]);
    assert_eq!(writes(&tcp_stream(3, 100, 0, |(_, tcp)| tcp.flags |= CWR)), [3]);
    assert_eq!(writes(&tcp_stream(4, 100, 0, |(_, tcp)| tcp.sequence = u32::MAX - 299)), [3, 1], "the wrap");
    assert_eq!(PACKETS_MAX, 64);
    assert_eq!(writes(&udp_stream(150, 20, 999, |_| ())), [64, 64, 22]);
    // 65,535 bytes are the most, with the header: 40 + 32 + 45 × 1,454 = 65,502.
    assert_eq!(writes(&tcp_stream(47, 1454, 999, |_| ())), [45, 2]);
    let halves = |second: usize| udp_stream(2, 40_000, 1, |ip| ip.payload = udp(4000, 53, &pattern(second)));
    assert_eq!(writes(&halves(25_487)), [2]);
    assert_eq!(writes(&halves(25_488)), [1, 1]);
}

/// V27. A packet whose protocol is hidden may be of any flow between its hosts, and overtakes none of them.
#[test]
fn v27_extension_headers_keep_their_place() {
    let (tcp, udp) = (tcp_stream(2, 100, 9, |_| ()), udp_stream(2, 100, 9, |_| ()));
    let hidden = Ipv6 { extensions: vec![fragment(100, false)], payload: pattern(50), ..outbound() }.bytes();
    let elsewhere = Ipv6 { source: POD_A, extensions: vec![fragment(1, false)], ..outbound() }.bytes();
    let ping = Ipv6 { protocol: ICMPV6, payload: icmpv6(POD, POD_A, 128, b"ping"), ..outbound() }.bytes();
    let around = |packet: &Vec<u8>| {
        let packets = [&tcp[0], &udp[0], packet, &tcp[1], &udp[1]].map(Clone::clone);
        writes(&packets)
    };
    assert_eq!(around(&hidden), [1; 5]);
    assert_eq!(around(&elsewhere), [1, 2, 2]);
    assert_eq!(around(&ping), [1, 2, 2]);
}

/// Flows of both families do not meet, even with the same ports.
#[test]
fn v27_both_families_are_coalesced_at_the_same_time() {
    let (four, six) = (tcp_packets(3, 100, 9, |_| ()), tcp_stream(3, 100, 9, |_| ()));
    let mixed: Vec<_> = four.into_iter().zip(six).flat_map(|(four, six)| [four, six]).collect();
    assert_eq!(writes(&mixed), [3, 3]);
}
