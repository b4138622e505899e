//! Packets of a few flows from any bytes, four bytes a packet. By default they follow one another and can be coalesced.
//! Each bit of the input makes one difference.
//!
//! Byte 0: flow (bits 0 and 1), TCP (bit 2), other hosts (bit 3), payload 0 to 15 words shorter than the flow's (bits 4
//! to 7). Byte 1: the difference, see [`odd`]. Byte 2: TCP's control bits; ACK is toggled. Byte 3: the flow's payload
//! length from here on, in words, unless 0, and the variant of the difference.
//!
//! The flows of a mask are IPv6.

use std::collections::HashMap;

use super::model::{ACK, Tcp, complete, timestamp};
use support::packet::{DF, ICMP, Ipv4, MF, TCP, UDP, pattern, udp};
use support::packet_v6::{ICMPV6, Ipv6, destination_options, fragment};

pub mod odd {
    pub const DONT_FRAGMENT: u8 = 1;
    pub const OPTIONS: u8 = 2;
    /// One flipped bit anywhere in the packet.
    pub const BROKEN: u8 = 4;
    /// A gap in sequence numbers and identifications, or near the wrap.
    pub const GAP: u8 = 8;
    /// Another TTL, hop limit, type of service, traffic class or flow label.
    pub const TTL_OR_TOS: u8 = 16;
    pub const FRAGMENT: u8 = 32;
    /// An ICMP message, IP options, an extension header, or a UDP datagram without checksum.
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

/// Returns the packets of a script. `v6` has a bit for each flow number, which is set for IPv6.
pub fn steps(bytes: &[u8], v6: u8) -> Vec<Step> {
    let mut flows: HashMap<u8, Flow> = HashMap::new();
    bytes.as_chunks().0.iter().map(|step| decode(*step, v6, &mut flows)).collect()
}

fn decode([who, oddity, control, choice]: [u8; 4], v6: u8, flows: &mut HashMap<u8, Flow>) -> Step {
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
    let source = 4000 + u16::from(who & 3);
    let payload = match who & 4 != 0 {
        true => {
            let options = if is(odd::OPTIONS) { timestamp(7, choice.into()) } else { Vec::new() };
            Tcp { source, flags: control ^ ACK, options, ..Tcp::new(flow.sequence, pattern(len)) }.bytes()
        }
        false => udp(source, 53, &pattern(len)),
    };
    let packet = Contents { payload, len, id: flow.id, who, oddity, choice };
    flow.sequence = flow.sequence.wrapping_add(len as u32);
    flow.id = flow.id.wrapping_add(1);
    let mut bytes = if v6 >> (who & 3) & 1 == 1 { packet.v6() } else { packet.v4() };
    if is(odd::BROKEN) {
        let bit = usize::from(control) * 7 % (bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
    Step { packet: bytes, flush: is(odd::FLUSH) }
}

/// A packet that is not of a family yet.
struct Contents {
    payload: Vec<u8>,
    /// Bytes of its data.
    len: usize,
    id: u16,
    who: u8,
    oddity: u8,
    choice: u8,
}

impl Contents {
    fn is(&self, bit: u8) -> bool {
        self.oddity & bit != 0
    }

    fn protocol(&self) -> u8 {
        if self.who & 4 != 0 { TCP } else { UDP }
    }

    /// The last number of the destination.
    fn host(&self) -> u8 {
        3 + (self.who >> 3 & 1)
    }

    fn v4(self) -> Vec<u8> {
        let choice = self.choice;
        let mut packet = Ipv4 {
            id: self.id,
            fragment: if self.is(odd::DONT_FRAGMENT) { DF } else { 0 },
            protocol: self.protocol(),
            payload: self.payload.clone(),
            ..Ipv4::new([100, 96, 1, 2], [100, 96, 2, self.host()])
        };
        if self.is(odd::TTL_OR_TOS) {
            (packet.ttl, packet.tos) = (64 + (choice & 3), choice >> 2 & 3);
        }
        let mut bytes = complete(packet.bytes());
        if self.is(odd::OTHER) {
            match choice & 3 {
                0 => (packet.protocol, packet.payload) = (ICMP, pattern(self.len.max(8))),
                1 => packet.options = vec![1; 4],
                2 => packet.payload.truncate(usize::from(choice >> 2)),
                _ => {}
            }
            // The transport checksum is unchanged except for ICMP: wrong with a cut payload, absent for UDP.
            bytes = packet.bytes();
        }
        if self.is(odd::FRAGMENT) {
            packet.fragment |= if choice & 1 == 0 { MF } else { 100 };
            bytes = packet.bytes();
        }
        bytes
    }

    fn v6(self) -> Vec<u8> {
        let choice = self.choice;
        let mut packet = Ipv6 {
            protocol: self.protocol(),
            payload: self.payload.clone(),
            ..Ipv6::new([0xfd00, 0x96, 1, 0, 0, 0, 0, 2], [0xfd00, 0x96, 2, 0, 0, 0, 0, self.host().into()])
        };
        if self.is(odd::TTL_OR_TOS) {
            (packet.hop_limit, packet.traffic_class) = (64 + (choice & 3), choice >> 2 & 3);
            packet.flow_label += u32::from(choice >> 4);
        }
        let mut bytes = complete(packet.bytes());
        if self.is(odd::OTHER) {
            match choice & 3 {
                0 => (packet.protocol, packet.payload) = (ICMPV6, pattern(self.len.max(8))),
                1 => packet.extensions.push(destination_options(1)),
                2 => packet.payload.truncate(usize::from(choice >> 2)),
                _ => {}
            }
            bytes = packet.bytes();
        }
        if self.is(odd::FRAGMENT) {
            packet.extensions.push(if choice & 1 == 0 { fragment(0, true) } else { fragment(100, false) });
            bytes = packet.bytes();
        }
        bytes
    }
}
