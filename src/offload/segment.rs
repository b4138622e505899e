//! Segmentation of a GSO packet.

use crate::wire::checksum;
use crate::wire::ipv4::{HEADER_LEN, Ipv4Packet};
use crate::wire::transport::{
    TCP_HEADER_LEN, TcpHeader, UDP_HEADER_LEN, UdpHeader, pseudo_header_sum, tcp_field, tcp_flag, udp_field,
};

mod ip_field {
    pub(super) const TOTAL_LEN: usize = 2;
    pub(super) const IDENTIFICATION: usize = 4;
    pub(super) const CHECKSUM: usize = 10;
}

/// A GSO packet without its bytes: the data needed to write its segments.
///
/// The segments equal those of the kernel's software segmentation byte for byte (net/ipv4/af_inet.c `inet_gso_segment`,
/// net/ipv4/tcp_offload.c `tcp_gso_segment`, net/ipv4/udp_offload.c `__udp_gso_segment`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GsoPacket {
    /// Bytes of the whole packet.
    total: u16,
    /// Payload bytes of every segment but the last.
    size: u16,
    segments: u16,
    /// Bytes of the IP header.
    ip_len: u8,
    /// Bytes of IP and transport header of every segment: at most 120.
    headers: u8,
    /// The part of the transport checksum that all segments share: addresses, protocol and the transport header without
    /// lengths, checksum and the fields in [`Transport`].
    shared_sum: u16,
    transport: Transport,
}

/// The fields that differ between segments, other than lengths and checksums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Transport {
    Tcp { sequence: u32, flags: u8 },
    Udp,
}

/// Control bits that not every segment has: FIN and PSH belong to the last one, CWR to the first.
const AT_THE_ENDS: u8 = tcp_flag::FIN | tcp_flag::PSH | tcp_flag::CWR;

impl GsoPacket {
    #[inline]
    pub(super) fn tcp(packet: &Ipv4Packet<'_>, tcp: &TcpHeader, size: u16) -> Self {
        let options = packet.payload().get(TCP_HEADER_LEN..tcp.header_len()).unwrap_or_default();
        let shared_sum = checksum::sum_of_words([
            tcp.ports(),
            tcp.acknowledgment(),
            tcp.control() & !(u32::from(AT_THE_ENDS) << 16),
            tcp.urgent_pointer().into(),
            checksum::sum(options).into(),
        ]);
        let transport = Transport::Tcp { sequence: tcp.sequence(), flags: tcp.flags() };
        Self::new(packet, tcp.header_len(), size, shared_sum, transport)
    }

    #[inline]
    pub(super) fn udp(packet: &Ipv4Packet<'_>, udp: &UdpHeader, size: u16) -> Self {
        let shared_sum = checksum::sum_of_words([udp.ports()]);
        Self::new(packet, UDP_HEADER_LEN, size, shared_sum, Transport::Udp)
    }

    #[inline]
    fn new(packet: &Ipv4Packet<'_>, transport_len: usize, size: u16, sum: u16, transport: Transport) -> Self {
        let header = packet.header();
        let (source, destination) = (header.source().to_bits(), header.destination().to_bits());
        let payload = packet.payload().len().saturating_sub(transport_len);
        Self {
            total: header.total_len(),
            size,
            segments: payload.div_ceil(usize::from(size).max(1)) as u16,
            ip_len: header.header_len() as u8,
            headers: (header.header_len() + transport_len) as u8,
            shared_sum: checksum::add(sum, pseudo_header_sum(source, destination, header.protocol(), 0)),
            transport,
        }
    }

    /// Returns the number of segments: at least 2, and up to 65,495 if the kernel asks for segments of one byte.
    #[must_use]
    #[inline]
    pub fn segments(&self) -> usize {
        self.segments.into()
    }

    /// Returns the bytes of the longest segment, IP header included.
    #[must_use]
    #[inline]
    pub fn segment_len(&self) -> u16 {
        self.len_of(0) as u16
    }

    /// Returns the bytes of segment `index`, IP header included; 0 past the last.
    #[must_use]
    #[inline]
    pub fn len_of(&self, index: usize) -> usize {
        let (start, end) = self.payload_of(index);
        if start < end { usize::from(self.headers) + end - start } else { 0 }
    }

    /// Returns the position of segment `index` in the payload.
    #[inline]
    fn payload_of(&self, index: usize) -> (usize, usize) {
        let (payload, size) = (usize::from(self.total - u16::from(self.headers)), usize::from(self.size));
        let start = index.saturating_mul(size).min(payload);
        (start, (start + size).min(payload))
    }

    /// Writes segment `index` to `out`, which must have [`len_of`](Self::len_of) bytes.
    ///
    /// `packet` must be the inspected packet. Only TTL, type of service and the IP checksum may have changed since. If
    /// `packet` is too short, or `out` has another length, nothing is written.
    #[inline]
    pub fn write_segment(&self, packet: &[u8], index: usize, out: &mut [u8]) {
        let (start, end) = self.payload_of(index);
        let headers = usize::from(self.headers);
        let Some((template, payload)) = packet.split_at_checked(headers) else { return };
        let Some(payload) = payload.get(start..end) else { return };
        if start >= end || out.len() != headers + payload.len() {
            return;
        }
        let Some((header, body)) = out.split_at_mut_checked(headers) else { return };
        let payload_sum = checksum::copy_and_sum(payload, body);
        header.copy_from_slice(template);
        let (ip, transport) = header.split_at_mut(self.ip_len.into());
        if let (Some(old), Some(new)) = (template.first_chunk(), ip.first_chunk_mut()) {
            write_ip(old, new, headers + payload.len(), index);
        }
        let len = (headers - usize::from(self.ip_len) + payload.len()) as u16;
        match self.transport {
            Transport::Tcp { sequence, flags } => {
                let Some(tcp) = transport.first_chunk_mut() else { return };
                let sequence = sequence.wrapping_add(start as u32);
                let last = index + 1 == self.segments();
                let cleared = if last { 0 } else { tcp_flag::FIN | tcp_flag::PSH };
                let cleared = cleared | if index == 0 { 0 } else { tcp_flag::CWR };
                self.write_tcp(tcp, sequence, flags & !cleared, len, payload_sum);
            }
            Transport::Udp => {
                let Some(udp) = transport.first_chunk_mut() else { return };
                self.write_udp(udp, len, payload_sum);
            }
        }
    }

    #[inline(always)]
    fn write_tcp(&self, tcp: &mut [u8; TCP_HEADER_LEN], sequence: u32, flags: u8, len: u16, payload_sum: u16) {
        let ends = u32::from(flags & AT_THE_ENDS);
        let sum = checksum::sum_of_words([sequence, ends, len.into(), self.shared_sum.into(), payload_sum.into()]);
        if let Some(field) = tcp.get_mut(tcp_field::SEQUENCE..).and_then(<[u8]>::first_chunk_mut) {
            *field = sequence.to_be_bytes();
        }
        tcp[tcp_field::FLAGS] = flags;
        [tcp[tcp_field::CHECKSUM], tcp[tcp_field::CHECKSUM + 1]] = (!sum).to_be_bytes();
    }

    #[inline(always)]
    fn write_udp(&self, udp: &mut [u8; UDP_HEADER_LEN], len: u16, payload_sum: u16) {
        // The length is in the pseudo header and in the header.
        let sum = checksum::sum_of_words([len.into(), len.into(), self.shared_sum.into(), payload_sum.into()]);
        // A checksum of 0 means that there is none (RFC 768).
        let checksum = if sum == 0xffff { 0xffff } else { !sum };
        [udp[udp_field::LENGTH], udp[udp_field::LENGTH + 1]] = len.to_be_bytes();
        [udp[udp_field::CHECKSUM], udp[udp_field::CHECKSUM + 1]] = checksum.to_be_bytes();
    }
}

/// Writes total length and identification of segment `index` and updates the checksum (RFC 1624).
///
/// The identification counts up whether or not DF is set. The kernel does the same unless a driver requests a fixed
/// one.
#[inline(always)]
fn write_ip(old: &[u8; HEADER_LEN], new: &mut [u8; HEADER_LEN], len: usize, index: usize) {
    let [_, _, len0, len1, id0, id1, _, _, _, _, sum0, sum1, ..] = *old;
    let (old_len, old_id) = (u16::from_be_bytes([len0, len1]), u16::from_be_bytes([id0, id1]));
    let (len, id) = (len as u16, old_id.wrapping_add(index as u16));
    let checksum = checksum::update(u16::from_be_bytes([sum0, sum1]), old_len, len);
    let checksum = checksum::update(checksum, old_id, id);
    [new[ip_field::TOTAL_LEN], new[ip_field::TOTAL_LEN + 1]] = len.to_be_bytes();
    [new[ip_field::IDENTIFICATION], new[ip_field::IDENTIFICATION + 1]] = id.to_be_bytes();
    [new[ip_field::CHECKSUM], new[ip_field::CHECKSUM + 1]] = checksum.to_be_bytes();
}
