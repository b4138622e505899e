//! A slow model of GSO packets of both families: their contents, their segments, and the errors of their vnet header.
//! Nothing here uses loden's own parsing or arithmetic.

use core::net::Ipv6Addr;

use loden::offload::{OffloadError, VnetHeader};
use loden::wire::transport::TransportError;

use support::packet::{TCP, UDP, ones_sum, repair_checksum};
use support::packet_v6::{Upper, is_v6, upper};

pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const PSH: u8 = 8;
pub const ACK: u8 = 16;
pub const URG: u8 = 32;
pub const CWR: u8 = 128;

/// The fields of a TCP segment. The checksum is 0: see [`complete`] and [`partial`].
#[derive(Clone, Debug)]
pub struct Tcp {
    pub source: u16,
    pub destination: u16,
    pub sequence: u32,
    pub acknowledgment: u32,
    pub flags: u8,
    pub window: u16,
    pub urgent: u16,
    /// TCP options, a multiple of four bytes.
    pub options: Vec<u8>,
    pub payload: Vec<u8>,
}

impl Tcp {
    pub fn new(sequence: u32, payload: Vec<u8>) -> Self {
        Self {
            source: 40_000,
            destination: 443,
            sequence,
            acknowledgment: 0x0bad_cafe,
            flags: ACK,
            window: 501,
            urgent: 0,
            options: Vec::new(),
            payload,
        }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.source.to_be_bytes());
        bytes.extend(self.destination.to_be_bytes());
        bytes.extend(self.sequence.to_be_bytes());
        bytes.extend(self.acknowledgment.to_be_bytes());
        bytes.extend([((5 + self.options.len() / 4) << 4) as u8, self.flags]);
        bytes.extend(self.window.to_be_bytes());
        bytes.extend([0, 0]);
        bytes.extend(self.urgent.to_be_bytes());
        bytes.extend(&self.options);
        bytes.extend(&self.payload);
        bytes
    }
}

/// Returns two no-operations and a timestamp, in Linux's layout.
pub fn timestamp(value: u32, echo: u32) -> Vec<u8> {
    [[1, 1, 8, 10].as_slice(), &value.to_be_bytes(), &echo.to_be_bytes()].concat()
}

/// Returns the upper layer of a packet that has one.
fn found(packet: &[u8]) -> Upper {
    upper(packet).unwrap()
}

pub fn protocol(packet: &[u8]) -> u8 {
    found(packet).protocol
}

/// Returns the length of the IP header and of extension headers.
pub fn ip_len(packet: &[u8]) -> usize {
    found(packet).at
}

/// Returns whether a packet has extension headers.
pub fn has_extensions(packet: &[u8]) -> bool {
    is_v6(packet) && ip_len(packet) > 40
}

/// Returns the length of IP and transport header.
pub fn headers_len(packet: &[u8]) -> usize {
    let ip = ip_len(packet);
    ip + if protocol(packet) == TCP { usize::from(packet[ip + 12] >> 4) * 4 } else { 8 }
}

pub fn checksum_at(packet: &[u8]) -> usize {
    ip_len(packet) + if protocol(packet) == TCP { 16 } else { 6 }
}

fn pseudo_header(packet: &[u8]) -> Vec<u8> {
    let len = (packet.len() - ip_len(packet)) as u16;
    if is_v6(packet) {
        return pseudo_header_to(packet, packet[24..40].first_chunk().copied().unwrap().into());
    }
    [&packet[12..20], &[0, packet[9]], &len.to_be_bytes()].concat()
}

/// Returns the pseudo header of an IPv6 packet with this final destination.
fn pseudo_header_to(packet: &[u8], destination: Ipv6Addr) -> Vec<u8> {
    let len = (packet.len() - ip_len(packet)) as u32;
    [&packet[8..24], &destination.octets(), &len.to_be_bytes(), &[0, 0, 0, protocol(packet)]].concat()
}

/// Returns the sum over pseudo header and transport: `0xFFFF` if the checksum is right.
pub fn transport_sum(packet: &[u8]) -> u16 {
    ones_sum(&[&pseudo_header(packet), &packet[ip_len(packet)..]].concat())
}

/// Returns the same of an IPv6 packet with this final destination.
pub fn transport_sum_to(packet: &[u8], destination: Ipv6Addr) -> u16 {
    ones_sum(&[&pseudo_header_to(packet, destination), &packet[ip_len(packet)..]].concat())
}

/// Writes the whole transport checksum.
pub fn complete(packet: Vec<u8>) -> Vec<u8> {
    let pseudo = pseudo_header(&packet);
    complete_with(packet, &pseudo)
}

/// Writes the same over another pseudo header.
fn complete_with(mut packet: Vec<u8>, pseudo: &[u8]) -> Vec<u8> {
    let at = checksum_at(&packet);
    packet[at..at + 2].fill(0);
    let sum = match !ones_sum(&[pseudo, &packet[ip_len(&packet)..]].concat()) {
        0 if protocol(&packet) == UDP => 0xffff,
        sum => sum,
    };
    packet[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// Writes the pseudo header's sum, as the kernel leaves it.
pub fn partial(packet: Vec<u8>) -> Vec<u8> {
    let pseudo = pseudo_header(&packet);
    partial_with(packet, &pseudo)
}

/// Writes the same for an IPv6 packet with this final destination.
pub fn partial_to(packet: Vec<u8>, destination: Ipv6Addr) -> Vec<u8> {
    let pseudo = pseudo_header_to(&packet, destination);
    partial_with(packet, &pseudo)
}

fn partial_with(mut packet: Vec<u8>, pseudo: &[u8]) -> Vec<u8> {
    let at = checksum_at(&packet);
    packet[at..at + 2].copy_from_slice(&ones_sum(pseudo).to_be_bytes());
    packet
}

/// Returns the vnet header for a partial checksum and, unless 0, segments of this size.
pub fn vnet(packet: &[u8], gso_size: u16) -> VnetHeader {
    let (ip, at) = (ip_len(packet), checksum_at(packet));
    VnetHeader {
        flags: 1,
        gso_type: match protocol(packet) {
            _ if gso_size == 0 => 0,
            TCP if is_v6(packet) => 4,
            TCP => 1,
            _ => 5,
        },
        hdr_len: headers_len(packet) as u16,
        gso_size,
        csum_start: ip as u16,
        csum_offset: (at - ip) as u16,
    }
}

/// Returns segment `index` as `inet_gso_segment` or `ipv6_gso_segment`, and `tcp_gso_segment` or `__udp_gso_segment` make
/// it, with every checksum recomputed. The checksum of the whole is partial or not.
pub fn segment(packet: &[u8], size: usize, index: usize, is_partial: bool) -> Vec<u8> {
    let (ip, headers) = (ip_len(packet), headers_len(packet));
    let payload = &packet[headers..];
    let (start, end) = (index * size, payload.len().min((index + 1) * size));
    let mut one = [&packet[..headers], &payload[start..end]].concat();
    let total = one.len();
    if is_v6(packet) {
        one[4..6].copy_from_slice(&((total - 40) as u16).to_be_bytes());
    } else {
        one[2..4].copy_from_slice(&(total as u16).to_be_bytes());
        let id = u16::from_be_bytes([packet[4], packet[5]]).wrapping_add(index as u16);
        one[4..6].copy_from_slice(&id.to_be_bytes());
        repair_checksum(&mut one);
    }
    if protocol(packet) == TCP {
        let sequence = u32::from_be_bytes(packet[ip + 4..ip + 8].try_into().unwrap()).wrapping_add(start as u32);
        one[ip + 4..ip + 8].copy_from_slice(&sequence.to_be_bytes());
        if end < payload.len() {
            one[ip + 13] &= !(FIN | PSH);
        }
        if index > 0 {
            one[ip + 13] &= !CWR;
        }
    } else {
        one[ip + 4..ip + 6].copy_from_slice(&((total - ip) as u16).to_be_bytes());
    }
    if !(is_partial && has_extensions(packet)) {
        return complete(one);
    }
    // The whole's partial checksum without the whole's length, and with that of the segment.
    let at = checksum_at(packet);
    let lengths = [!((packet.len() - ip) as u16), (total - ip) as u16];
    let pseudo = [&packet[at..at + 2], &lengths[0].to_be_bytes(), &lengths[1].to_be_bytes()].concat();
    complete_with(one, &pseudo)
}

/// The offload action of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Nothing,
    Checksum,
    Segments(usize),
    Error(OffloadError),
}

/// Returns the verdict on a valid packet without trailer: the first condition in the list that holds.
pub fn inspect(vnet: &VnetHeader, packet: &[u8]) -> Verdict {
    let (flags, gso_type) = (vnet.flags, vnet.gso_type);
    let (total, v6, upper) = (packet.len(), is_v6(packet), upper(packet));
    let is_hidden = upper.is_none();
    let Upper { protocol, at: header, fragment } =
        upper.unwrap_or(Upper { protocol: 0, at: packet.len(), fragment: None });
    let fixed = if v6 { 40 } else { header };
    let transport = &packet[header..];
    let have = transport.len();
    let fragment = fragment.filter(|(offset, more)| *offset != 0 || *more);
    let offset_of_fragment = fragment.map_or(0, |(offset, _)| offset);
    let (needs_checksum, is_gso) = (flags & 1 == 1, gso_type != 0);
    if flags & !2 == 0 && !is_gso {
        return Verdict::Nothing;
    }
    let start = vnet.csum_start;
    let at = usize::from(start) + usize::from(vnet.csum_offset);
    let known = matches!(gso_type, 0 | 1 | 3 | 4 | 5 | 0x81 | 0x84);
    let fits = matches!((gso_type, protocol, v6), (1 | 0x81, TCP, false) | (4 | 0x84, TCP, true) | (5, UDP, _));
    let words = transport.get(12).map_or(0, |byte| byte >> 4);
    let need = if protocol == TCP { 20 } else { 8 };
    let udp_length = transport.get(4..6).map_or(0, |bytes| u16::from_be_bytes([bytes[0], bytes[1]]));
    let bad_offset = protocol == TCP && (words < 5 || usize::from(words) * 4 > have);
    let bad_length = protocol == UDP && usize::from(udp_length) != have;
    let offset = if protocol == TCP { 16 } else { 6 };
    let misplaced = (usize::from(start), vnet.csum_offset) != (header, offset);
    let unfit = OffloadError::UnfitGso { gso_type, version: if v6 { 6 } else { 4 }, protocol };
    let errors = [
        (flags > 3, OffloadError::UnknownFlags { flags }),
        (fragment.is_some(), OffloadError::Fragment { offset: offset_of_fragment }),
        (needs_checksum && usize::from(start) < fixed, OffloadError::ChecksumInHeader { start, header: fixed }),
        (needs_checksum && at + 2 > total, OffloadError::ChecksumPastEnd { at, total }),
        (is_gso && is_hidden, OffloadError::NoTransport),
        (is_gso && !known, OffloadError::UnknownGso { gso_type }),
        (is_gso && !fits, unfit),
        (is_gso && vnet.gso_size == 0, OffloadError::GsoSizeZero),
        (is_gso && have < need, OffloadError::Transport(TransportError::TooShort { have, need })),
        (is_gso && bad_offset, OffloadError::Transport(TransportError::BadDataOffset { words, have })),
        (is_gso && bad_length, OffloadError::Transport(TransportError::BadUdpLength { length: udp_length, have })),
        (
            is_gso && needs_checksum && misplaced,
            OffloadError::ChecksumMisplaced { start, offset: vnet.csum_offset, protocol, header },
        ),
    ];
    if let Some((_, error)) = errors.iter().find(|(holds, _)| *holds) {
        return Verdict::Error(*error);
    }
    if is_gso {
        let payload = total - headers_len(packet);
        let segments = payload.div_ceil(vnet.gso_size.into());
        if segments > 1 {
            return Verdict::Segments(segments);
        }
    }
    if needs_checksum { Verdict::Checksum } else { Verdict::Nothing }
}
