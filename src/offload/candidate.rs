//! Classification of packets for the coalescer, and the rules for a single packet of a batch.

use super::coalesce::Coalesce;
use crate::wire::ipv4::HEADER_LEN;
use crate::wire::transport::{TCP_HEADER_LEN, TcpHeader, UDP_HEADER_LEN, UdpHeader, pseudo_header_sum, tcp_flag};
use crate::wire::{checksum, protocol};

/// Addresses (source first), ports and protocol, from the highest bits down.
pub(super) type FlowKey = u128;

/// Returns the part of a flow key that is known without ports.
#[inline]
pub(super) fn hosts_of(flow: FlowKey) -> FlowKey {
    flow & !(0xffff_ffff << 32)
}

/// A packet's class for the coalescer.
pub(super) enum Kind<'a> {
    /// The packet may be in a batch.
    Candidate(Candidate<'a>),
    /// The packet belongs to a flow, but is never joined.
    Alone(FlowKey),
    /// The packet may belong to any flow between these hosts, so its order is kept with each of them.
    BetweenHosts(FlowKey),
    /// The packet belongs to no flow that can have a batch.
    Stranger,
}

/// A packet that may be in a batch if its transport checksum is valid.
pub(super) struct Candidate<'a> {
    pub(super) flow: FlowKey,
    pub(super) bytes: &'a [u8],
    /// Bytes of IP and transport header.
    pub(super) headers: usize,
    pub(super) alike: Alike,
    pub(super) identification: u16,
    /// The sequence number of the first payload byte, for TCP.
    pub(super) sequence: u32,
    /// The control bits that may differ between packets, for TCP.
    pub(super) ends: u8,
}

/// The fields that are equal in all packets of a batch, because every segment gets a copy of the first packet's
/// headers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Alike {
    /// Type of service, TTL and DF. The kernel does not join packets in which they differ either (`inet_gro_receive`).
    pub(super) hop: u32,
    acknowledgment: u32,
    /// Data offset, control bits other than [`ENDS`], and window.
    control: u32,
    urgent_pointer: u16,
}

/// Control bits that only the first or the last packet of a batch may have. PSH and FIN end a batch. CWR begins one,
/// because a sender sets it once (RFC 3168 section 6.1.2).
const ENDS: u8 = tcp_flag::FIN | tcp_flag::PSH | tcp_flag::CWR;

/// Version 4 and a header of five words.
const PLAIN: u32 = 0x45;

/// The DF bit, at the same position in [`Alike::hop`] as in the header.
pub(super) const DONT_FRAGMENT: u32 = 0x4000;

impl<'a> Kind<'a> {
    #[inline]
    pub(super) fn of(bytes: &'a [u8], what: Coalesce) -> Self {
        let words = bytes.as_chunks().0;
        let Some(words) = words.first_chunk() else { return Self::Stranger };
        let words @ [lengths, fragment, hop, source, destination] = words.map(u32::from_be_bytes);
        let number = (hop >> 16) as u8;
        let wanted = match number {
            protocol::TCP => what.tcp,
            protocol::UDP => what.udp,
            _ => false,
        };
        if !wanted || lengths >> 28 != 4 {
            return Self::Stranger;
        }
        let hosts = FlowKey::from(source) << 96 | FlowKey::from(destination) << 64 | FlowKey::from(number);
        // A GSO packet gets a new header checksum, so a broken packet must not be joined: it would become valid.
        // `inet_gro_receive` requires an IHL of 5 too. A fragment has no ports or no checksum of its own. Segmentation
        // would turn an unusual checksum of 0xFFFF into 0.
        let plain = lengths >> 24 == PLAIN
            && (lengths & 0xffff) as usize == bytes.len()
            && fragment & 0xffff & !DONT_FRAGMENT == 0
            && hop & 0xffff != 0xffff
            && checksum::sum_of_words(words) == 0xffff;
        let Some(payload) = bytes.get(HEADER_LEN..).filter(|_| plain) else { return Self::BetweenHosts(hosts) };
        // Type of service, TTL and DF.
        let hop = lengths << 8 & 0xff00_0000 | (hop >> 24) << 16 | fragment & DONT_FRAGMENT;
        let identification = (fragment >> 16) as u16;
        let candidate = if number == protocol::TCP {
            let Ok(tcp) = TcpHeader::parse(payload) else { return Self::BetweenHosts(hosts) };
            let flow = hosts | FlowKey::from(tcp.ports()) << 32;
            let headers = HEADER_LEN + tcp.header_len();
            // An acknowledgment without data cannot be joined. SYN, RST and URG apply to this packet only
            // (`tcp_gro_receive`). Segmentation would turn a checksum of 0xFFFF into 0.
            let alone = bytes.len() == headers
                || tcp.flags() & (tcp_flag::SYN | tcp_flag::RST | tcp_flag::URG) != 0
                || tcp.checksum() == 0xffff;
            if alone {
                return Self::Alone(flow);
            }
            let alike = Alike {
                hop,
                acknowledgment: tcp.acknowledgment(),
                control: tcp.control() & !(u32::from(ENDS) << 16),
                urgent_pointer: tcp.urgent_pointer(),
            };
            let (sequence, ends) = (tcp.sequence(), tcp.flags() & ENDS);
            Candidate { flow, bytes, headers, alike, identification, sequence, ends }
        } else {
            let Ok(udp) = UdpHeader::parse(payload) else { return Self::BetweenHosts(hosts) };
            let flow = hosts | FlowKey::from(udp.ports()) << 32;
            let headers = HEADER_LEN + UDP_HEADER_LEN;
            // Without a checksum the payload cannot be verified, and segmentation would add one
            // (`udp_gro_receive_segment`). Segments without payload do not exist.
            if bytes.len() == headers || udp.checksum() == 0 {
                return Self::Alone(flow);
            }
            let alike = Alike { hop, ..Alike::default() };
            Candidate { flow, bytes, headers, alike, identification, sequence: 0, ends: 0 }
        };
        Self::Candidate(candidate)
    }
}

impl Candidate<'_> {
    /// Returns true if no packet may follow it in a batch.
    #[inline]
    pub(super) fn ends_batch(&self) -> bool {
        self.ends & (tcp_flag::FIN | tcp_flag::PSH) != 0
    }

    #[inline]
    pub(super) fn payload_len(&self) -> usize {
        self.bytes.len() - self.headers
    }

    #[inline]
    pub(super) fn options(&self) -> &[u8] {
        self.bytes.get(HEADER_LEN + TCP_HEADER_LEN..self.headers).unwrap_or_default()
    }

    #[inline]
    pub(super) fn is_tcp(&self) -> bool {
        is_tcp(self.flow)
    }

    /// Returns the sum of the pseudo header and of the header bytes that the transport checksum covers.
    #[inline]
    pub(super) fn header_sum(&self) -> u16 {
        let header = self.bytes.get(HEADER_LEN..self.headers).unwrap_or_default();
        checksum::add(pseudo_sum(self.flow, self.bytes.len()), checksum::sum(header))
    }
}

#[inline]
pub(super) fn is_tcp(flow: FlowKey) -> bool {
    flow as u8 == protocol::TCP
}

/// Returns the sum of the pseudo header for a packet of `len` bytes.
#[inline]
pub(super) fn pseudo_sum(flow: FlowKey, len: usize) -> u16 {
    pseudo_header_sum((flow >> 96) as u32, (flow >> 64) as u32, flow as u8, (len - HEADER_LEN) as u16)
}
