//! Packets of a few flows from any bytes, four bytes a packet. By default they follow one another and can be coalesced.
//! Each bit of the input makes one difference.
//!
//! Byte 0: flow (bits 0 and 1), TCP (bit 2), other hosts (bit 3), payload 0 to 15 words shorter than the flow's (bits 4
//! to 7). Byte 1: the difference, see [`odd`]. Byte 2: TCP's control bits; ACK is toggled. Byte 3: the flow's payload
//! length from here on, in words, unless 0, and the variant of the difference.

use std::collections::HashMap;

use super::model::{ACK, Tcp, complete, timestamp};
use support::packet::{DF, ICMP, Ipv4, MF, TCP, UDP, pattern, udp};

pub mod odd {
    pub const DONT_FRAGMENT: u8 = 1;
    pub const OPTIONS: u8 = 2;
    /// One flipped bit anywhere in the packet.
    pub const BROKEN: u8 = 4;
    /// A gap in sequence numbers and identifications, or near the wrap.
    pub const GAP: u8 = 8;
    pub const TTL_OR_TOS: u8 = 16;
    pub const FRAGMENT: u8 = 32;
    /// An ICMP message, IP options, or a UDP datagram without checksum.
    pub const OTHER: u8 = 64;
    pub const FLUSH: u8 = 128;
}

/// A packet, and whether the coalescer is flushed before it.
pub struct Step {
    pub packet: Vec<u8>,
    pub flush: bool,
}

#[derive(Clone, Copy, Default)]
struct Flow {
    sequence: u32,
    id: u16,
    words: u8,
}

pub fn steps(bytes: &[u8]) -> Vec<Step> {
    let mut flows: HashMap<u8, Flow> = HashMap::new();
    bytes.as_chunks().0.iter().map(|step| decode(*step, &mut flows)).collect()
}

fn decode([who, oddity, control, choice]: [u8; 4], flows: &mut HashMap<u8, Flow>) -> Step {
    let flow = flows.entry(who & 15).or_insert(Flow { sequence: 1000, id: 0xfff0, words: 25 });
    let is = |bit: u8| oddity & bit != 0;
    if choice != 0 && !is(odd::BROKEN | odd::GAP | odd::TTL_OR_TOS | odd::OTHER) {
        flow.words = choice;
    }
    if is(odd::GAP) {
        flow.sequence = if choice & 1 == 0 { u32::MAX - 300 } else { flow.sequence.wrapping_add(choice.into()) };
        flow.id = flow.id.wrapping_add(u16::from(choice & 2));
    }
    let len = (usize::from(flow.words) * 4).saturating_sub(usize::from(who >> 4) * 4);
    let is_tcp = who & 4 != 0;
    let source = 4000 + u16::from(who & 3);
    let mut packet = Ipv4 {
        id: flow.id,
        fragment: if is(odd::DONT_FRAGMENT) { DF } else { 0 },
        protocol: if is_tcp { TCP } else { UDP },
        payload: match is_tcp {
            true => {
                let options = if is(odd::OPTIONS) { timestamp(7, choice.into()) } else { Vec::new() };
                let payload = pattern(len);
                Tcp { source, flags: control ^ ACK, options, ..Tcp::new(flow.sequence, payload) }.bytes()
            }
            false => udp(source, 53, &pattern(len)),
        },
        ..Ipv4::new([100, 96, 1, 2], if who & 8 == 0 { [100, 96, 2, 3] } else { [100, 96, 2, 4] })
    };
    flow.sequence = flow.sequence.wrapping_add(len as u32);
    flow.id = flow.id.wrapping_add(1);
    if is(odd::TTL_OR_TOS) {
        (packet.ttl, packet.tos) = (64 + (choice & 3), choice >> 2 & 3);
    }
    let mut bytes = complete(packet.bytes());
    if is(odd::OTHER) {
        match choice & 3 {
            0 => (packet.protocol, packet.payload) = (ICMP, pattern(len.max(8))),
            1 => packet.options = vec![1; 4],
            2 => packet.payload.truncate(usize::from(choice >> 2)),
            _ => {}
        }
        // The transport checksum is unchanged except for ICMP: wrong with a cut payload, absent for UDP.
        bytes = packet.bytes();
    }
    if is(odd::FRAGMENT) {
        packet.fragment |= if choice & 1 == 0 { MF } else { 100 };
        bytes = packet.bytes();
    }
    if is(odd::BROKEN) {
        let bit = usize::from(control) * 7 % (bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
    Step { packet: bytes, flush: is(odd::FLUSH) }
}
