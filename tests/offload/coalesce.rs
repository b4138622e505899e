//! Coalescing: the round trip of both families, and every rule of fault 23 by itself.

use loden::offload::{Coalesce, Coalesced, Coalescer, PACKETS_MAX};
use proptest::prelude::*;

use bodies::offload;
use bodies::offload::coalesce::round_trip;
use bodies::offload::model::{ACK, CWR, FIN, PSH, RST, SYN, Tcp, URG, complete, timestamp};
use bodies::offload::script::{Step, odd, steps};
use support::host::outbound;
use support::packet::{DF, Ipv4, MF, TCP, pattern, udp};

pub(crate) const ALL: Coalesce = Coalesce::ALL;

/// Returns the number of packets of each write, and checks the round trip.
pub(crate) fn writes_of(what: Coalesce, packets: &[Vec<u8>]) -> Vec<usize> {
    let steps: Vec<_> = packets.iter().map(|packet| Step { packet: packet.clone(), flush: false }).collect();
    round_trip(what, &steps);
    let mut writes = Vec::new();
    let mut coalescer = Coalescer::new(what);
    let mut deliver = |coalesced: Coalesced<'_>| writes.push(coalesced.packets);
    for packet in packets {
        coalescer.push(packet, &mut deliver);
    }
    coalescer.flush(&mut deliver);
    writes
}

fn writes(packets: &[Vec<u8>]) -> Vec<usize> {
    writes_of(ALL, packets)
}

/// The IP packet and its TCP segment, each of which can be edited.
pub(crate) type Parts = (Ipv4, Tcp);

/// Returns a stream of `count` packets of `len` bytes, with the one at `at` edited.
pub(crate) fn tcp_packets(count: usize, len: usize, at: usize, edit: impl Fn(&mut Parts)) -> Vec<Vec<u8>> {
    let mut sequence = 5000;
    let packet = |index: usize| {
        let ip = Ipv4 { protocol: TCP, id: 0xffff_u16.wrapping_add(index as u16), ..outbound() };
        let mut parts = (ip, Tcp { options: timestamp(1, 2), ..Tcp::new(sequence, pattern(len)) });
        if index == at {
            edit(&mut parts);
        }
        let (mut ip, tcp) = parts;
        sequence = tcp.sequence.wrapping_add(tcp.payload.len() as u32);
        ip.payload = tcp.bytes();
        complete(ip.bytes())
    };
    (0..count).map(packet).collect()
}

/// Returns the same of datagrams.
pub(crate) fn udp_packets(count: usize, len: usize, at: usize, edit: impl Fn(&mut Ipv4)) -> Vec<Vec<u8>> {
    let packet = |index: usize| {
        let id = 0xffff_u16.wrapping_add(index as u16);
        let mut packet = Ipv4 { id, payload: udp(4000, 53, &pattern(len)), ..outbound() };
        if index == at {
            edit(&mut packet);
        }
        complete(packet.bytes())
    };
    (0..count).map(packet).collect()
}

/// Returns the writes of three packets of which the second is edited.
fn second_tcp(edit: impl Fn(&mut Parts)) -> Vec<usize> {
    writes(&tcp_packets(3, 100, 1, edit))
}

fn second_udp(edit: impl Fn(&mut Ipv4)) -> Vec<usize> {
    writes(&udp_packets(3, 100, 1, edit))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn gso_packets_are_cut_into_the_original_packets(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        offload::coalesce::run(&bytes);
    }

    /// V27 and fault 23. Most packets are ordinary, so that GSO packets grow long.
    #[test]
    fn long_gso_packets_are_cut_into_the_original_packets(
        script in proptest::collection::vec(
            (
                prop_oneof![6 => Just(4u8), 3 => 0u8..8, 1 => any::<u8>()],
                prop_oneof![20 => Just(0), 4 => Just(odd::DONT_FRAGMENT), 1 => any::<u8>()],
                prop_oneof![20 => Just(0), 1 => any::<u8>()],
                prop_oneof![20 => Just(0), 1 => any::<u8>()],
            ),
            0..200,
        ),
        v6 in any::<u8>(),
    ) {
        let bytes: Vec<u8> = script.iter().flat_map(|(a, b, c, d)| [*a, *b, *c, *d]).collect();
        round_trip(ALL, &steps(&bytes, v6));
    }
}

#[test]
fn a_stream_is_one_write() {
    assert_eq!(writes(&tcp_packets(45, 1400, 99, |_| ())), [45]);
    assert_eq!(writes(&udp_packets(64, 64, 99, |_| ())), [64]);
    assert_eq!(second_tcp(|_| ()), [3]);
    assert_eq!(second_udp(|_| ()), [3]);
}

#[test]
fn only_packets_that_may_be_joined_are_joined() {
    let (tcp, udp) = (tcp_packets(3, 100, 9, |_| ()), udp_packets(3, 100, 9, |_| ()));
    assert_eq!(writes_of(Coalesce { tcp4: false, ..ALL }, &[tcp.clone(), udp.clone()].concat()), [1, 1, 1, 3]);
    assert_eq!(writes_of(Coalesce { udp4: false, ..ALL }, &[tcp.clone(), udp.clone()].concat()), [1, 1, 1, 3]);
    assert_eq!(writes_of(Coalesce { tcp4: true, ..Coalesce::NONE }, &udp), [1; 3]);
    assert_eq!(writes_of(Coalesce { udp4: true, ..Coalesce::NONE }, &tcp), [1; 3]);
    assert_eq!(writes_of(Coalesce::NONE, &[tcp, udp].concat()), [1; 6]);
}

/// A checksum covers every byte of a packet, so that a packet with any wrong bit is not joined.
#[test]
fn fault_23_a_bad_checksum_is_not_joined() {
    for packets in [tcp_packets(3, 100, 9, |_| ()), udp_packets(3, 100, 9, |_| ())] {
        for (broken, expected) in [(0, [1, 2].as_slice()), (1, &[1, 1, 1]), (2, &[1, 2])] {
            for at in 0..packets[0].len() {
                let mut packets = packets.clone();
                packets[broken][at] ^= 0x10;
                let mut writes = writes(&packets);
                writes.sort_unstable();
                assert_eq!(writes, expected, "byte {at} of packet {broken}");
            }
        }
    }
}

#[test]
fn fault_23_headers_that_differ_are_not_joined() {
    type Edit<P> = (&'static str, fn(&mut P));
    let edits: [Edit<Ipv4>; 7] = [
        ("TTL", |ip| ip.ttl = 63),
        ("type of service", |ip| ip.tos = 0x10),
        ("congestion experienced", |ip| ip.tos = 3),
        ("DF", |ip| ip.fragment = DF),
        ("reserved flag", |ip| ip.fragment = 0x8000),
        ("options", |ip| ip.options = vec![1; 4]),
        ("identification", |ip| ip.id = 77),
    ];
    for (name, edit) in edits {
        assert_eq!(second_tcp(|(ip, _)| edit(ip)), [1; 3], "{name}");
        assert_eq!(second_udp(edit), [1; 3], "{name}");
    }
    let edits: [Edit<Tcp>; 7] = [
        ("options", |tcp| tcp.options = timestamp(2, 2)),
        ("no options", |tcp| tcp.options.clear()),
        ("acknowledgment", |tcp| tcp.acknowledgment += 1),
        ("window", |tcp| tcp.window += 1),
        ("urgent pointer", |tcp| tcp.urgent = 1),
        ("ACK", |tcp| tcp.flags = 0),
        ("ECE", |tcp| tcp.flags |= 0x40),
    ];
    for (name, edit) in edits {
        assert_eq!(second_tcp(|(_, tcp)| edit(tcp)), [1; 3], "{name}");
    }
}

#[test]
fn fault_23_a_gap_in_sequence_numbers_begins_anew() {
    for sequence in [5099, 5101, 5000, 9000, 1] {
        assert_eq!(second_tcp(|(_, tcp)| tcp.sequence = sequence), [1, 2]);
    }
}

#[test]
fn fault_23_syn_rst_and_urg_go_alone() {
    for flag in [SYN, RST, URG] {
        assert_eq!(second_tcp(|(_, tcp)| tcp.flags |= flag), [1; 3]);
    }
    // The same if all packets have them.
    let all = |edit: fn(&mut Tcp)| {
        let packets = (0..3).map(|i| {
            let mut tcp = Tcp::new(5000 + i * 100, pattern(100));
            edit(&mut tcp);
            complete(Ipv4 { protocol: TCP, fragment: DF, payload: tcp.bytes(), ..outbound() }.bytes())
        });
        writes(&packets.collect::<Vec<_>>())
    };
    assert_eq!(all(|tcp| tcp.flags |= SYN), [1; 3]);
    assert_eq!(all(|tcp| tcp.flags |= RST), [1; 3]);
    assert_eq!(all(|tcp| tcp.flags |= URG), [1; 3]);
    assert_eq!(all(|tcp| tcp.flags |= CWR), [1; 3], "CWR would be lost but on the first");
    assert_eq!(all(|tcp| tcp.flags |= 0x40), [3], "ECE is every segment's");
    assert_eq!(all(|_| ()), [3]);
}

#[test]
fn fault_23_psh_and_fin_end_a_gso_packet_and_cwr_begins_one() {
    for flag in [PSH, FIN, PSH | FIN] {
        assert_eq!(second_tcp(|(_, tcp)| tcp.flags |= flag), [2, 1]);
        assert_eq!(writes(&tcp_packets(3, 100, 0, |(_, tcp)| tcp.flags |= flag)), [1, 2]);
        assert_eq!(writes(&tcp_packets(3, 100, 2, |(_, tcp)| tcp.flags |= flag)), [3]);
    }
    assert_eq!(second_tcp(|(_, tcp)| tcp.flags = ACK | CWR), [1, 2]);
    assert_eq!(writes(&tcp_packets(3, 100, 0, |(_, tcp)| tcp.flags |= CWR)), [3]);
}

#[test]
fn fault_23_lengths() {
    assert_eq!(second_tcp(|(_, tcp)| tcp.payload = pattern(99)), [2, 1], "only the last may be shorter");
    assert_eq!(second_tcp(|(_, tcp)| tcp.payload = pattern(101)), [1, 2], "none may be longer");
    assert_eq!(second_tcp(|(_, tcp)| tcp.payload.clear()), [1; 3], "an acknowledgment goes alone, and in its place");
    assert_eq!(second_udp(|ip| ip.payload = udp(4000, 53, &pattern(99))), [2, 1]);
    assert_eq!(second_udp(|ip| ip.payload = udp(4000, 53, &pattern(101))), [1, 2]);
    assert_eq!(second_udp(|ip| ip.payload = udp(4000, 53, &[])), [1; 3]);
}

#[test]
fn fault_23_a_sequence_wrap_is_not_joined() {
    let from = |sequence| writes(&tcp_packets(4, 100, 0, |(_, tcp)| tcp.sequence = sequence));
    assert_eq!(from(u32::MAX - 399), [4], "all end at 2^32 or before");
    assert_eq!(from(u32::MAX - 299), [3, 1], "the last begins at 0");
    assert_eq!(from(u32::MAX - 249), [2, 1, 1], "one leads across");
    assert_eq!(from(u32::MAX - 49), [1, 3]);
}

#[test]
fn fault_23_no_more_than_64_packets() {
    assert_eq!(PACKETS_MAX, 64);
    assert_eq!(writes(&udp_packets(150, 20, 999, |_| ())), [64, 64, 22]);
    assert_eq!(writes(&tcp_packets(150, 20, 999, |_| ())), [64, 64, 22]);
}

#[test]
fn fault_23_no_more_than_65_535_bytes() {
    // 20 + 32 + 45 × 1,455 = 65,527.
    assert_eq!(writes(&tcp_packets(47, 1455, 999, |_| ())), [45, 2]);
    // 20 + 8 + 65,507 to the byte, and one more.
    assert_eq!(writes(&udp_packets(3, 32_700, 1, |ip| ip.payload = udp(4000, 53, &pattern(32_700)))), [2, 1]);
    let halves = |second: usize| udp_packets(2, 40_000, 1, |ip| ip.payload = udp(4000, 53, &pattern(second)));
    assert_eq!(writes(&halves(25_507)), [2]);
    assert_eq!(writes(&halves(25_508)), [1, 1]);
    assert_eq!(writes(&udp_packets(2, 65_507, 9, |_| ())), [1, 1]);
}

/// Newer kernels cut TCP into segments of at least 8 bytes, and lose shorter ones.
#[test]
fn tcp_segments_below_eight_bytes_are_not_joined() {
    assert_eq!(writes(&tcp_packets(3, 7, 999, |_| ())), [1, 1, 1]);
    assert_eq!(writes(&tcp_packets(3, 8, 999, |_| ())), [3]);
    assert_eq!(writes(&udp_packets(3, 1, 999, |_| ())), [3]);
}

/// Bytes behind the total length, or too few, are an error of the caller, and must not get into a GSO packet.
#[test]
fn packets_of_another_length_than_their_headers_say_are_not_joined() {
    assert_eq!(second_udp(|ip| ip.trailer = vec![0; 4]), [1; 3]);
    assert_eq!(second_udp(|ip| ip.total = Some(1000)), [1; 3]);
    assert_eq!(second_tcp(|(ip, _)| ip.trailer = vec![0; 4]), [1; 3]);
}

#[test]
fn a_datagram_without_checksum_goes_alone() {
    let mut packets = udp_packets(3, 100, 9, |_| ());
    packets[1][26..28].fill(0);
    assert_eq!(writes(&packets), [1; 3]);
}

/// With DF set the identification has no meaning (RFC 6864). Many senders write 0 in all packets.
#[test]
fn with_df_identifications_may_be_anything() {
    let packets = |id: fn(u16) -> u16| {
        let packet = |i| Ipv4 { fragment: DF, id: id(i), payload: udp(4000, 53, &pattern(100)), ..outbound() };
        writes(&(0..4).map(|i| complete(packet(i).bytes())).collect::<Vec<_>>())
    };
    assert_eq!(packets(|_| 0), [4]);
    assert_eq!(packets(|i| 100 - i), [4]);
    assert_eq!(packets(|i| i), [4]);
}

/// A checksum of the other zero would not be restored in a segment.
#[test]
fn a_checksum_that_would_come_back_otherwise_is_not_joined() {
    let data = |rest: &[u8]| [rest, &pattern(98)].concat();
    let make = |sequence, data: Vec<u8>| {
        let payload = Tcp::new(sequence, data).bytes();
        complete(Ipv4 { protocol: TCP, fragment: DF, payload, ..outbound() }.bytes())
    };
    let rest = make(5100, data(&[0, 0]))[36..38].to_vec();
    let mut second = make(5100, data(&rest));
    assert_eq!(second[36..38], [0, 0]);
    let packets = |second| [make(5000, pattern(100)), second, make(5200, pattern(100))];
    assert_eq!(writes(&packets(second.clone())), [3]);
    second[36..38].fill(0xff);
    assert_eq!(writes(&packets(second)), [1; 3]);
}

/// As above, in the IP header. A packet whose sum is all ones may have either zero.
#[test]
fn an_ip_checksum_that_would_come_back_otherwise_is_not_joined() {
    let packets = |low: [u8; 2]| udp_packets_to([100, 96, low[0], low[1]]);
    let [_, second, _] = packets([0, 0]);
    let [first, mut second, third] = packets([second[10], second[11]]);
    assert_eq!(second[10..12], [0, 0]);
    assert_eq!(writes(&[first.clone(), second.clone(), third.clone()]), [3]);
    second[10..12].fill(0xff);
    assert_eq!(writes(&[first, second, third]), [1; 3]);
}

fn udp_packets_to(destination: [u8; 4]) -> [Vec<u8>; 3] {
    [1, 2, 3].map(|id| complete(Ipv4 { id, destination: destination.into(), ..outbound() }.bytes()))
}

/// A datagram without checksum whose sum is all ones looks as if it had a right checksum of 0.
#[test]
fn a_datagram_without_checksum_goes_alone_even_if_it_adds_up() {
    let data = |rest: &[u8]| [rest, &pattern(98)].concat();
    let make = |id, rest: &[u8]| complete(Ipv4 { id, payload: udp(4000, 53, &data(rest)), ..outbound() }.bytes());
    let rest = make(2, &[0, 0])[26..28].to_vec();
    let [first, mut second, third] = [1, 2, 3].map(|id| make(id, &rest));
    assert_eq!(second[26..28], [0xff; 2]);
    assert_eq!(writes(&[first.clone(), second.clone(), third.clone()]), [3]);
    second[26..28].fill(0);
    assert_eq!(writes(&[first, second, third]), [1; 3]);
}

#[test]
fn a_fragment_is_not_joined_and_keeps_its_place() {
    for fragment in [MF, 100] {
        assert_eq!(second_udp(|ip| ip.fragment = fragment), [1; 3]);
        assert_eq!(second_tcp(|(ip, _)| ip.fragment = fragment), [1; 3]);
    }
}
