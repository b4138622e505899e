use super::*;
use alloc::vec::Vec;
use proptest::prelude::*;

use crate::offload::{OffloadAction, VnetHeader, vnet_flag, vnet_gso};
use crate::sys::PACKET_MAX;
use crate::wire::ipv4::Ipv4Packet;
use crate::wire::{Ecn, checksum};

fn way() -> Way {
    Way { destination: ([10, 168, 0, 3], 8285).into(), ecn: Ecn::NotEct, flow: 0 }
}

/// A UDP packet with so many bytes of content.
fn udp(content: usize) -> Vec<u8> {
    let (total, len) = ((28 + content) as u16, (8 + content) as u16);
    let mut packet = Vec::from([0x45, 0, 0, 0, 1, 2, 0, 0, 64, 17, 0, 0, 100, 96, 1, 2, 100, 96, 2, 3]);
    packet[2..4].copy_from_slice(&total.to_be_bytes());
    let sum = checksum::checksum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    for word in [4000, 53, len, 0] {
        packet.extend(word.to_be_bytes());
    }
    packet.extend((0..content).map(|at| at as u8));
    packet
}

fn gso_packet(packet: &[u8], size: u16) -> Option<GsoPacket> {
    let (flags, gso_type) = (vnet_flag::NEEDS_CSUM, vnet_gso::UDP_L4);
    let header = VnetHeader { flags, gso_type, hdr_len: 28, gso_size: size, csum_start: 20, csum_offset: 6 };
    match header.inspect(packet).unwrap() {
        OffloadAction::Segment(gso_packet) => Some(gso_packet),
        OffloadAction::Nothing | OffloadAction::Checksum(_) => None,
    }
}

/// What is to come out, packet by packet: the segments that are made of each, and of these the fragments.
fn expected(packet: &[u8], gso_packet: Option<GsoPacket>, mtu: Option<u16>) -> Vec<Vec<Vec<u8>>> {
    let segments = match gso_packet {
        None => Vec::from([packet.to_vec()]),
        Some(many) => (0..many.segments())
            .map(|index| {
                let mut segment = alloc::vec![0; many.len_of(index)];
                many.write_segment(packet, index, &mut segment);
                segment
            })
            .collect(),
    };
    let cut = |mut segment: Vec<u8>| {
        let Some(mtu) = mtu else { return Vec::from([segment]) };
        let mut fragmenter = Fragmenter::new(Ipv4Packet::parse(&segment).unwrap().header(), mtu).unwrap();
        let mut pieces = Vec::new();
        while fragmenter.advance(&mut segment) {
            pieces.push(fragmenter.fragment(&segment).to_vec());
        }
        pieces
    };
    segments.into_iter().map(cut).collect()
}

proptest! {
    /// However little room and budget there is at a time: all pieces come out, in order, and no more is placed at once than
    /// there is a budget for, but for the first datagram, which is paid for.
    #[test]
    fn every_piece_comes_out_in_order(
        content in 1usize..20_000,
        size in proptest::option::of(100u16..2000),
        mtu in proptest::option::of(68u16..1500),
        slots in 1usize..4,
        budgets in proptest::collection::vec(0usize..30, 1..8),
    ) {
        let packet = udp(content);
        let many = size.and_then(|size| gso_packet(&packet, size));
        let expected = expected(&packet, many, mtu);
        let now = Instant::now();
        let mut unfinished = match mtu {
            None => Unfinished::new(way(), packet.len(), many, now),
            Some(mtu) => {
                let fragmenter = Fragmenter::new(Ipv4Packet::parse(&packet).unwrap().header(), mtu).unwrap();
                Unfinished::fragmented(way(), fragmenter, many, now)
            }
        };
        let (mut buffer, mut scratch) = (packet.clone(), alloc::vec![0; PACKET_MAX]);
        let mut trains = Trains::with_slots(slots);
        let (mut came, mut packets) = (Vec::new(), 0);
        let (mut segments, mut fragments) = (0, 0);
        for turn in 0.. {
            let budget = budgets[turn % budgets.len()] + usize::from(turn % budgets.len() == 0);
            let mut left = budget;
            let before = came.len();
            let placed = unfinished.place(&mut buffer, &mut scratch, &mut trains, &mut left);
            segments += placed.segments;
            fragments += placed.fragments;
            while let Some(train) = trains.transmit(0) {
                came.extend(train.segments().map(<[u8]>::to_vec));
                packets += trains.advance(trains.left());
            }
            let placed_now = came.len() - before;
            prop_assert_eq!(placed_now - usize::from(before == 0 && placed_now > 0), budget - left);
            if placed.all {
                break;
            }
            prop_assert_eq!(packets, 0, "a packet has gone when its last datagram has");
        }
        prop_assert_eq!(packets, 1);
        prop_assert_eq!(segments, many.map_or(0, |many| many.segments() as u64));
        let pieces = |of: &Vec<Vec<u8>>| if of.len() > 1 { of.len() as u64 } else { 0 };
        prop_assert_eq!(fragments, expected.iter().map(pieces).sum::<u64>());
        prop_assert_eq!(came, expected.concat());
    }
}

/// R51 meets trains: equal fragments leave as one, the last of a packet ends it.
#[test]
fn fragments_of_a_packet_are_a_train() {
    let mut packet = udp(5000);
    let fragmenter = Fragmenter::new(Ipv4Packet::parse(&packet).unwrap().header(), 1000).unwrap();
    let mut unfinished = Unfinished::fragmented(way(), fragmenter, None, Instant::now());
    let mut trains = Trains::with_slots(2);
    assert!(unfinished.place(&mut packet, &mut [], &mut trains, &mut 100).all);
    let train = trains.transmit(0).unwrap();
    assert_eq!((trains.len(), train.segments().count(), train.segment_size.unwrap().get()), (1, 6, 996));
}
