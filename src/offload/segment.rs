//! Segmentation of a GSO packet.

use super::family::{Family, Version};
use crate::wire::ipv4::Ipv4Header;
use crate::wire::ipv6::Ipv6Header;
use crate::wire::transport::{TCP_HEADER_LEN, TcpHeader, UDP_HEADER_LEN, UdpHeader, tcp_field, tcp_flag, udp_field};
use crate::wire::{UpperLayer, checksum};

/// A GSO packet without its bytes: the data needed to write its segments.
///
/// The segments equal those of the kernel's software segmentation byte for byte (net/ipv4/af_inet.c `inet_gso_segment`,
/// net/ipv6/ip6_offload.c `ipv6_gso_segment`, net/ipv4/tcp_offload.c `tcp_gso_segment`, net/ipv4/udp_offload.c
/// `__udp_gso_segment`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GsoPacket {
    version: Version,
    transport: Transport,
    /// Bytes of payload of the whole packet.
    payload: u16,
    /// Payload bytes of every segment but the last.
    size: u16,
    segments: u16,
    /// Bytes before the transport header: those of the IP header and of extension headers.
    transport_at: u16,
    /// Bytes of all headers of every segment.
    headers: u16,
    /// The part of the transport checksum that all segments share: addresses, protocol and the transport header without
    /// lengths, checksum and the fields in [`Transport`].
    shared_sum: u16,
}

/// The fields that differ between segments, other than lengths and checksums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Transport {
    Tcp { sequence: u32, flags: u8 },
    Udp,
}

/// Control bits that not every segment has: FIN and PSH belong to the last one, CWR to the first.
const AT_THE_ENDS: u8 = tcp_flag::FIN | tcp_flag::PSH | tcp_flag::CWR;

/// The parts of a GSO packet that its segments are made of.
pub(super) struct Whole<'p, H> {
    pub(super) header: &'p H,
    pub(super) upper: UpperLayer,
    /// The transport header and the payload.
    pub(super) transport: &'p [u8],
    /// Payload bytes of every segment but the last.
    pub(super) size: u16,
    pub(super) has_partial_checksum: bool,
}

impl GsoPacket {
    #[inline]
    pub(super) fn tcp<H: Family>(whole: &Whole<'_, H>, tcp: &TcpHeader) -> Self {
        let options = whole.transport.get(TCP_HEADER_LEN..tcp.header_len()).unwrap_or_default();
        let shared_sum = checksum::sum_of_words([
            tcp.ports(),
            tcp.acknowledgment(),
            tcp.control() & !(u32::from(AT_THE_ENDS) << 16),
            tcp.urgent_pointer().into(),
            checksum::sum(options).into(),
        ]);
        let transport = Transport::Tcp { sequence: tcp.sequence(), flags: tcp.flags() };
        Self::new(whole, tcp.header_len(), tcp.checksum(), shared_sum, transport)
    }

    #[inline]
    pub(super) fn udp<H: Family>(whole: &Whole<'_, H>, udp: &UdpHeader) -> Self {
        let shared_sum = checksum::sum_of_words([udp.ports()]);
        Self::new(whole, UDP_HEADER_LEN, udp.checksum(), shared_sum, Transport::Udp)
    }

    #[inline]
    fn new<H: Family>(
        whole: &Whole<'_, H>,
        transport_len: usize,
        checksum: u16,
        sum: u16,
        transport: Transport,
    ) -> Self {
        let Whole { header, upper, transport: bytes, size, has_partial_checksum } = *whole;
        let payload = bytes.len().saturating_sub(transport_len);
        let partial = has_partial_checksum.then_some(checksum);
        Self {
            version: H::VERSION,
            transport,
            payload: payload as u16,
            size,
            segments: payload.div_ceil(usize::from(size).max(1)) as u16,
            transport_at: upper.offset,
            headers: upper.offset + transport_len as u16,
            shared_sum: checksum::add(sum, header.segments_sum(upper, partial, bytes.len() as u16)),
        }
    }

    /// Returns the number of segments: at least 2, and up to 65,527 if the kernel asks for segments of one byte.
    #[must_use]
    #[inline]
    pub fn segments(&self) -> usize {
        self.segments.into()
    }

    /// Returns the bytes of the longest segment, IP header included. 65,535 stands for all lengths above, which only IPv6
    /// has and no path carries.
    #[must_use]
    #[inline]
    pub fn segment_len(&self) -> u16 {
        self.len_of(0).min(usize::from(u16::MAX)) as u16
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
        let (payload, size) = (usize::from(self.payload), usize::from(self.size));
        let start = index.saturating_mul(size).min(payload);
        (start, (start + size).min(payload))
    }

    /// Writes segment `index` to `out`, which must have [`len_of`](Self::len_of) bytes.
    ///
    /// `packet` must be the inspected packet. Only TTL or hop limit, type of service or traffic class, and the IP checksum
    /// may have changed since. If `packet` is too short, or `out` has another length, nothing is written.
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
        let (ip, transport) = header.split_at_mut(self.transport_at.into());
        let total = headers + payload.len();
        match self.version {
            Version::V4 => Ipv4Header::write_segment(ip, total, index),
            Version::V6 => Ipv6Header::write_segment(ip, total, index),
        }
        let len = (headers - usize::from(self.transport_at) + payload.len()) as u16;
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
