//! IPv6 packets built field by field, valid or not.

use core::net::Ipv6Addr;

use super::packet::{UDP, ones_sum, repair_checksum, udp};

pub const HOP_BY_HOP: u8 = 0;
pub const ROUTING: u8 = 43;
pub const FRAGMENT: u8 = 44;
pub const ICMPV6: u8 = 58;
pub const DESTINATION_OPTIONS: u8 = 60;

/// Types and contents of extension headers.
pub type Extensions = Vec<(u8, Vec<u8>)>;

/// The fields of a packet. Its length is right unless it is set.
#[derive(Clone, Debug)]
pub struct Ipv6 {
    pub traffic_class: u8,
    pub flow_label: u32,
    pub payload_len: Option<u16>,
    pub hop_limit: u8,
    pub source: Ipv6Addr,
    pub destination: Ipv6Addr,
    /// The next header field of each is its first byte, and is set.
    pub extensions: Extensions,
    pub protocol: u8,
    pub payload: Vec<u8>,
    /// Bytes behind the packet's length.
    pub trailer: Vec<u8>,
}

impl Ipv6 {
    /// Returns a UDP packet between two pods.
    pub fn new(source: impl Into<Ipv6Addr>, destination: impl Into<Ipv6Addr>) -> Self {
        Self {
            traffic_class: 0,
            flow_label: 0x1_2345,
            payload_len: None,
            hop_limit: 64,
            source: source.into(),
            destination: destination.into(),
            extensions: Vec::new(),
            protocol: UDP,
            payload: udp(4000, 53, b"question"),
            trailer: Vec::new(),
        }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let types = self.extensions.iter().map(|(kind, _)| *kind).chain([self.protocol]);
        let mut next = types.clone().skip(1);
        let extensions =
            self.extensions.iter().flat_map(|(_, header)| [&[next.next().unwrap()], &header[1..]].concat());
        let contents: Vec<u8> = extensions.chain(self.payload.iter().copied()).collect();
        let first = 6 << 28 | u32::from(self.traffic_class) << 20 | self.flow_label;
        let mut bytes = first.to_be_bytes().to_vec();
        bytes.extend(self.payload_len.unwrap_or(contents.len() as u16).to_be_bytes());
        bytes.extend([types.clone().next().unwrap(), self.hop_limit]);
        bytes.extend(self.source.octets());
        bytes.extend(self.destination.octets());
        bytes.extend(&contents);
        bytes.extend(&self.trailer);
        bytes
    }
}

/// Returns a destination options header of `words` times eight bytes, filled with padding.
pub fn destination_options(words: usize) -> (u8, Vec<u8>) {
    let mut header = vec![0; words * 8];
    (header[1], header[2]) = (words as u8 - 1, 1);
    header[3] = words as u8 * 8 - 4;
    (DESTINATION_OPTIONS, header)
}

/// Returns a routing header for segment routing (RFC 8754) with the one segment `destination` left to visit.
pub fn segment_routing(destination: Ipv6Addr) -> (u8, Vec<u8>) {
    (ROUTING, [&[0, 2, 4, 1, 0, 0, 0, 0], &destination.octets()[..]].concat())
}

/// Returns a fragment header. The offset is in units of eight bytes.
pub fn fragment(offset: u16, more_fragments: bool) -> (u8, Vec<u8>) {
    let word = (offset << 3 | u16::from(more_fragments)).to_be_bytes();
    (FRAGMENT, [&[0, 0], &word[..], &[0xde, 0xad, 0xbe, 0xef]].concat())
}

/// Returns an ICMPv6 message with a right checksum.
pub fn icmpv6(source: Ipv6Addr, destination: Ipv6Addr, kind: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = [&[kind, 0, 0, 0, 0, 1, 0, 1], body].concat();
    let pseudo = [&source.octets()[..], &destination.octets(), &(bytes.len() as u32).to_be_bytes(), &[0, 0, 0, ICMPV6]];
    let checksum = !ones_sum(&[&pseudo.concat(), &bytes[..]].concat());
    bytes[2..4].copy_from_slice(&checksum.to_be_bytes());
    bytes
}

pub fn is_v6(packet: &[u8]) -> bool {
    packet.first().is_some_and(|first| first >> 4 == 6)
}

/// Returns a packet of either family after a router: another hop limit, and in IPv4 a fully recomputed checksum.
pub fn with_hop_limit(packet: &[u8], hop_limit: u8) -> Vec<u8> {
    let mut packet = packet.to_vec();
    let v6 = is_v6(&packet);
    packet[if v6 { 7 } else { 8 }] = hop_limit;
    if !v6 {
        repair_checksum(&mut packet);
    }
    packet
}

pub fn hop_limit(packet: &[u8]) -> u8 {
    packet[if is_v6(packet) { 7 } else { 8 }]
}

/// The upper layer of a packet of either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Upper {
    pub protocol: u8,
    /// The offset of its header.
    pub at: usize,
    /// The offset in units of eight bytes and the flag of a fragment.
    pub fragment: Option<(u16, bool)>,
}

/// Returns the upper layer of a valid packet without trailer. `None` if the extension headers do not fit, or if there
/// are more than eight.
pub fn upper(packet: &[u8]) -> Option<Upper> {
    let word = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
    if !is_v6(packet) {
        let fragment = word(6) & 0x3fff;
        let fragment = (fragment != 0).then_some((fragment & 0x1fff, fragment & 0x2000 != 0));
        return Some(Upper { protocol: packet[9], at: usize::from(packet[0] & 15) * 4, fragment });
    }
    let mut upper = Upper { protocol: packet[6], at: 40, fragment: None };
    let mut skipped = 0;
    while matches!(upper.protocol, 0 | 43 | 44 | 51 | 60 | 135 | 139 | 140) {
        let header = &packet[upper.at..];
        if skipped == 8 || header.len() < 4 {
            return None;
        }
        let len = match upper.protocol {
            FRAGMENT => 8,
            51 => (usize::from(header[1]) + 2) * 4,
            _ => (usize::from(header[1]) + 1) * 8,
        };
        if len > header.len() {
            return None;
        }
        let kind = upper.protocol;
        (upper.protocol, upper.at) = (header[0], upper.at + len);
        if kind == FRAGMENT {
            let fragment = u16::from_be_bytes([header[2], header[3]]);
            upper.fragment = Some((fragment >> 3, fragment & 1 == 1));
            if fragment >> 3 != 0 {
                break;
            }
        }
        skipped += 1;
    }
    Some(upper)
}
