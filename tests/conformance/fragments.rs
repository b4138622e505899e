//! R51: fragments can be reassembled, by a list of holes and by etherparse.

use etherparse::SlicedPacket;
use etherparse::defrag::IpDefragPool;
use loden::forward::{DropReason, Encap};
use loden::wire::fragment::Fragmenter;
use loden::wire::ipv4::Ipv4Packet;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use support::fragments::{assert_sound, reassembled};
use support::host::{Host, Outcome, config, host_a, mtu_of, outbound, routes};
use support::packet::{DF, ICMP, Ipv4, MF, RECORD_ROUTE, ROUTER_ALERT, TCP, UDP, pattern, with_ttl};

fn options() -> impl Strategy<Value = Vec<u8>> {
    let security = [130, 11, 1, 2, 3, 4, 5, 6, 7, 8, 9];
    let kinds =
        select(vec![RECORD_ROUTE.to_vec(), ROUTER_ALERT.to_vec(), vec![1], security.to_vec(), vec![68, 5, 5, 0, 9]]);
    let list = vec(kinds, 0..6).prop_map(|list| list.concat());
    prop_oneof![1 => Just(vec![]), 1 => list.prop_filter("at most 40 bytes", |list| list.len() <= 40)]
}

/// Returns a packet without DF, which may itself be a fragment.
fn packet() -> impl Strategy<Value = Ipv4> {
    let fragment = prop_oneof![2 => Just(0u16), 1 => Just(MF), 1 => Just(0x8000), 2 => (0u16..5000, any::<bool>())
        .prop_map(|(offset, more)| offset | if more { MF } else { 0 })];
    let len = prop_oneof![2 => 0usize..200, 2 => 0usize..3000, 1 => 0usize..20_000];
    let header = (any::<u8>(), any::<u16>(), fragment, 2u8..=255, select(vec![UDP, TCP, ICMP, 47]));
    (header, options(), len).prop_map(|((tos, id, fragment, ttl, protocol), options, len)| Ipv4 {
        tos,
        id,
        fragment,
        ttl,
        protocol,
        options,
        payload: pattern(len),
        ..outbound()
    })
}

/// Returns all fragments, made one after the other in a copy of the packet.
fn cut(packet: &[u8], mtu: u16) -> Vec<Vec<u8>> {
    let mut buffer = packet.to_vec();
    let mut fragmenter = Fragmenter::new(Ipv4Packet::parse(packet).unwrap().header(), mtu).unwrap();
    let mut pieces = Vec::new();
    while fragmenter.advance(&mut buffer) {
        assert_eq!(fragmenter.is_first(), pieces.is_empty());
        assert_eq!(fragmenter.len(), fragmenter.fragment(&buffer).len());
        pieces.push(fragmenter.fragment(&buffer).to_vec());
        assert_eq!(fragmenter.is_last(), fragmenter.fragment(&buffer).as_ptr_range().end == buffer.as_ptr_range().end);
    }
    pieces
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    /// R51: the reassembled packet is the original with one hop less, for any order of arrival.
    #[test]
    fn r51_reassembles_to_the_original(packet in packet(), mtu in 68u16..=1500, order: usize) {
        let host = Host::new(config().with_mtu(mtu_of(mtu)), routes());
        let bytes = packet.bytes();
        let hop = with_ttl(&bytes, packet.ttl - 1);
        match host.encapsulate(&bytes) {
            Outcome::Forward { bytes, .. } => prop_assert!(bytes == hop && hop.len() <= usize::from(mtu)),
            Outcome::Fragments { to, pieces } => {
                prop_assert_eq!(to, host_a());
                prop_assert!(hop.len() > usize::from(mtu) && pieces.len() > 1);
                assert_sound(&hop, &pieces, mtu.into());
                prop_assert_eq!(reassembled(packet.fragment & 0x1fff, &pieces, order), hop);
            }
            outcome @ (Outcome::Reject { .. } | Outcome::Drop(_)) => panic!("{outcome:?}"),
        }
    }

    /// The same with etherparse's reassembly, for packets that are not fragments.
    #[test]
    fn r51_etherparse_puts_it_together(packet in packet(), mtu in 68u16..=1500) {
        let bytes = Ipv4 { fragment: 0, ..packet }.bytes();
        let pieces = cut(&bytes, mtu);
        if pieces.len() == 1 {
            return Ok(());
        }
        let mut pool = IpDefragPool::<(), ()>::new();
        let mut whole = None;
        for piece in &pieces {
            prop_assert!(whole.is_none(), "before the last piece");
            whole = pool.process_sliced_packet(&SlicedPacket::from_ip(piece).unwrap(), (), ()).unwrap();
        }
        let payload = &bytes[usize::from(bytes[0] & 15) * 4..];
        prop_assert_eq!(whole.unwrap().payload, payload);
    }

    /// The path becomes narrower between two fragments. The sent ones stay, and the rest is cut to fit.
    #[test]
    fn a_path_that_narrows_in_the_middle(packet in packet(), mtus in vec(68u16..=1500, 1..5), steps in vec(0usize..4, 0..40)) {
        let bytes = packet.bytes();
        let mut buffer = bytes.clone();
        let mut mtu = mtus[0];
        let mut fragmenter = Fragmenter::new(Ipv4Packet::parse(&bytes).unwrap().header(), mtu).unwrap();
        let (mut pieces, mut steps) = (Vec::new(), steps.into_iter());
        while fragmenter.advance(&mut buffer) {
            if let Some(narrower) = steps.next().and_then(|step| mtus.get(step)) {
                prop_assert!(fragmenter.narrow(&mut buffer, *narrower));
                mtu = mtu.min(*narrower);
            }
            prop_assert!(fragmenter.len() <= usize::from(mtu) && fragmenter.mtu() == mtu);
            pieces.push(fragmenter.fragment(&buffer).to_vec());
        }
        prop_assert_eq!(reassembled(packet.fragment & 0x1fff, &pieces, 0), bytes);
    }

    /// Fragments of fragments are fragments of the packet: the offsets add up, and only the very last has no more
    /// fragments behind it.
    #[test]
    fn fragments_of_fragments_add_up(packet in packet(), wide in 200u16..=1500, narrow in 68u16..200) {
        let bytes = packet.bytes();
        let pieces: Vec<_> = cut(&bytes, wide).iter().flat_map(|piece| cut(piece, narrow)).collect();
        prop_assert!(pieces.iter().all(|piece| piece.len() <= usize::from(narrow)));
        prop_assert_eq!(reassembled(packet.fragment & 0x1fff, &pieces, 0), bytes);
    }
}

/// RFC 791 appendix A, example 2.
#[test]
fn r51_the_example_of_rfc_791() {
    let packet = Ipv4 { id: 111, ttl: 123, protocol: TCP, payload: pattern(452), ..outbound() }.bytes();
    let pieces = cut(&packet, 280);
    let fields: Vec<_> = pieces.iter().map(|piece| (piece.len(), u16::from_be_bytes([piece[6], piece[7]]))).collect();
    assert_eq!(fields, [(276, MF), (216, 32)]);
    assert!(pieces.iter().all(|piece| piece[4..6] == [0, 111] && piece[8..10] == [123, TCP]));
}

/// RFC 791 3.1: options with the copy bit are in all fragments, others in the first, padded with the end of options.
#[test]
fn r51_options_with_the_copy_bit_alone_are_copied() {
    let options = [&[1], RECORD_ROUTE.as_slice(), &ROUTER_ALERT, &[0x9e, 3, 7], &[1, 68, 4, 5, 0]].concat();
    let packet = Ipv4 { options: options.clone(), payload: pattern(300), ..outbound() }.bytes();
    let pieces = cut(&packet, 100);
    assert_eq!(pieces[0][20..40], options);
    for piece in &pieces[1..] {
        assert_eq!((piece[0], &piece[20..28]), (0x47, [ROUTER_ALERT.as_slice(), &[0x9e, 3, 7, 0]].concat().as_slice()));
    }
    assert_eq!(reassembled(0, &pieces, 0), packet);
}

/// R52: with DF there are no fragments, at any point where the path turns out too narrow.
#[test]
fn r52_a_packet_with_df_is_never_fragmented() {
    for fragment in [DF, DF | MF, DF | 100] {
        let packet = Ipv4 { fragment, payload: pattern(1400), ..outbound() }.bytes();
        for mtu in [68, 576, 1300] {
            assert_eq!(Fragmenter::new(Ipv4Packet::parse(&packet).unwrap().header(), mtu), None);
            let host = Host::ordinary();
            for outcome in [host.encapsulate_over(&packet, mtu), host.refused_as_too_long(&mut packet.clone(), mtu)] {
                assert_eq!(outcome.reason(), Some(DropReason::FragmentationNeeded));
            }
        }
    }
}

/// A segment of a GSO packet is fragmented like a packet.
#[test]
fn segments_are_cut_like_packets() {
    let host = Host::ordinary();
    let mut many = Ipv4 { payload: pattern(4000), ..outbound() }.bytes();
    let one = Ipv4 { payload: pattern(1400), ..outbound() }.bytes();
    let (before, one) = (with_ttl(&many, 63), with_ttl(&one, 63));
    let expected = cut(&one, 600);
    let verdict = host.forwarder.encapsulate_within(&mut many, |_| 600, &host.table);
    let Encap::Fragment(mut fragments) = verdict else { panic!("{verdict:?}") };
    assert_eq!(fragments.packet(), before, "nothing is cut before it is asked for");
    let fresh = fragments.fragmenter();
    assert!(fragments.cut_next().is_some() && fragments.cut_next().is_some());
    for begun in [fresh, fragments.fragmenter()] {
        let (mut fragmenter, mut one) = (begun.for_segment(1420), one.clone());
        let mut pieces = Vec::new();
        while fragmenter.advance(&mut one) {
            pieces.push(fragmenter.fragment(&one).to_vec());
        }
        assert_eq!(pieces, expected, "whether it was begun or not");
    }
}

/// Bytes of another packet than the fragmenter's are not cut. Nothing panics, and the walk ends.
#[test]
fn other_bytes_than_its_packet_end_the_walk() {
    let packet = Ipv4 { payload: pattern(1400), ..outbound() }.bytes();
    let fragmenter = Fragmenter::new(Ipv4Packet::parse(&packet).unwrap().header(), 100).unwrap();
    for mut other in [vec![], vec![0x45], packet[..700].to_vec(), vec![0; 1420], vec![0xff; 1420], vec![0x4f; 30]] {
        let mut walk = fragmenter;
        let mut steps = 0;
        while walk.advance(&mut other) {
            assert!(walk.fragment(&other).len() <= 100);
            let _ = walk.narrow(&mut other, 90);
            other.iter_mut().for_each(|byte| *byte ^= 0x0a);
            steps += 1;
        }
        assert!(steps < 1420);
    }
}
