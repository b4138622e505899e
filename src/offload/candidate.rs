//! What a packet is to a coalescer, and the rules by which one alone may be in a batch.

use super::coalesce::Coalesce;
use crate::wire::ipv4::HEADER_LEN;
use crate::wire::transport::{TCP_HEADER_LEN, TcpHeader, UDP_HEADER_LEN, UdpHeader, pseudo_header_sum, tcp_flag};
use crate::wire::{checksum, protocol};

/// Addresses (source first), ports and protocol, from the highest bits down.
pub(super) type FlowKey = u128;

/// What is left of a flow if the ports are not known.
#[inline]
pub(super) fn hosts_of(flow: FlowKey) -> FlowKey {
    flow & !(0xffff_ffff << 32)
}

/// What a packet is to a coalescer.
pub(super) enum Kind<'a> {
    /// May be in a batch.
    Candidate(Candidate<'a>),
    /// Of a flow, but always alone.
    Alone(FlowKey),
    /// Of any flow between these hosts, for all that can be seen: order has to be kept with each of them.
    BetweenHosts(FlowKey),
    /// Of no flow there is a batch of.
    Stranger,
}

/// A packet that may be in a batch, its transport checksum aside.
pub(super) struct Candidate<'a> {
    pub(super) flow: FlowKey,
    pub(super) bytes: &'a [u8],
    /// Bytes of IP and transport header.
    pub(super) headers: usize,
    pub(super) alike: Alike,
    pub(super) identification: u16,
    /// TCP: the number of the first byte of payload.
    pub(super) sequence: u32,
    /// TCP: those of the control bits that may differ.
    pub(super) ends: u8,
}

/// What has to be the same in all packets of a batch, because every segment is given a copy of the first one's headers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Alike {
    /// Type of service, TTL, DF. With them differing, the kernel does not join either (`inet_gro_receive`).
    pub(super) hop: u32,
    acknowledgment: u32,
    /// Data offset, control bits but for [`ENDS`], and window.
    control: u32,
    urgent_pointer: u16,
}

/// Control bits that may be set at one end of a batch: PSH and FIN at the back, because they say that something ends with
/// this packet, CWR at the front, because it is meant for once (RFC 3168 6.1.2).
const ENDS: u8 = tcp_flag::FIN | tcp_flag::PSH | tcp_flag::CWR;

/// Version 4 and a header of five words.
const PLAIN: u32 = 0x45;

/// In [`Alike::hop`] as in the header.
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
        // Options are not worth the trouble (`inet_gro_receive` has IHL 5 only), a fragment has no ports or no checksum of its
        // own, and what is broken must not be mended: a GSO packet gets a fresh header checksum. A checksum of 0xFFFF,
        // which only a sloppy sender writes, would come back as 0.
        let plain = lengths >> 24 == PLAIN
            && (lengths & 0xffff) as usize == bytes.len()
            && fragment & 0xffff & !DONT_FRAGMENT == 0
            && hop & 0xffff != 0xffff
            && checksum::sum_of_words(words) == 0xffff;
        let Some(payload) = bytes.get(HEADER_LEN..).filter(|_| plain) else { return Self::BetweenHosts(hosts) };
        // Type of service, TTL and the DF bit.
        let hop = lengths << 8 & 0xff00_0000 | (hop >> 24) << 16 | fragment & DONT_FRAGMENT;
        let identification = (fragment >> 16) as u16;
        let candidate = if number == protocol::TCP {
            let Ok(tcp) = TcpHeader::parse(payload) else { return Self::BetweenHosts(hosts) };
            let flow = hosts | FlowKey::from(tcp.ports()) << 32;
            let headers = HEADER_LEN + tcp.header_len();
            // An acknowledgment without data has nothing to be joined. SYN, RST and URG speak of this one packet
            // (`tcp_gro_receive`). A checksum of 0xFFFF would come back as 0.
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
            // Without a checksum nothing says that the payload is sound (`udp_gro_receive_segment`), and a segment would be
            // given one. A segment without payload does not exist.
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
    /// Whether nothing may follow it in a batch.
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

    /// The sum of the pseudo header and of the headers' bytes that the transport checksum covers.
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

/// The pseudo header's sum for a packet of `len` bytes.
#[inline]
pub(super) fn pseudo_sum(flow: FlowKey, len: usize) -> u16 {
    pseudo_header_sum((flow >> 96) as u32, (flow >> 64) as u32, flow as u8, (len - HEADER_LEN) as u16)
}
