//! Classification of packets for the coalescer, and the rules for a single packet of a batch.

use core::marker::PhantomData;

use super::coalesce::Coalesce;
use super::family::{Family, Version};
use crate::wire::ipv4::Ipv4Header;
use crate::wire::ipv6::{Ipv6Header, Ipv6Packet};
use crate::wire::transport::{TCP_HEADER_LEN, TcpHeader, UDP_HEADER_LEN, UdpHeader, tcp_flag};
use crate::wire::{checksum, protocol};

/// Addresses, ports, family and protocol, from the highest bits down. Of IPv6 addresses it has a digest, so that flows may
/// share a key. Their packets are not joined, see [`Family::may_follow`].
pub(super) type FlowKey = u128;

/// The ports of a key.
const PORTS: FlowKey = 0xffff_ffff << 32;
/// The protocol of a key.
const PROTOCOL: FlowKey = 0xff;
/// The bit of IPv6 packets in a key.
const V6: FlowKey = 1 << 8;

/// The flows that a packet may belong to.
#[derive(Clone, Copy)]
pub(super) struct Hosts {
    key: FlowKey,
    /// The part of the key that is known.
    known: FlowKey,
}

impl Hosts {
    #[inline]
    pub(super) fn have(&self, flow: FlowKey) -> bool {
        flow & self.known == self.key
    }
}

/// A packet's class for the coalescer.
pub(super) enum Kind<'a, H> {
    /// The packet may be in a batch.
    Candidate(Candidate<'a, H>),
    /// The packet belongs to a flow, but is never joined.
    Alone(FlowKey),
    /// The packet may belong to any flow between these hosts, so its order is kept with each of them.
    BetweenHosts(Hosts),
    /// The packet belongs to no flow that can have a batch.
    Stranger,
}

/// A packet that may be in a batch if its transport checksum is valid. `H` is its family.
pub(super) struct Candidate<'a, H> {
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
    family: PhantomData<H>,
}

/// The fields that are equal in all packets of a batch, because every segment gets a copy of the first packet's
/// headers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Alike {
    /// Type of service, TTL and DF. The kernel does not join packets in which they differ either (`inet_gro_receive`).
    /// For IPv6 see [`Family::may_follow`].
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

/// The DF bit, at the same position in [`Alike::hop`] as in the header. Set for IPv6, which has no identification either.
pub(super) const DONT_FRAGMENT: u32 = 0x4000;

impl<'a> Kind<'a, Ipv4Header> {
    /// Returns the class of a packet. [`Kind::Stranger`] if it is not IPv4.
    #[inline]
    pub(super) fn of(bytes: &'a [u8], what: Coalesce) -> Self {
        let words = bytes.as_chunks().0;
        let Some(words) = words.first_chunk() else { return Self::Stranger };
        let words @ [lengths, fragment, hop, source, destination] = words.map(u32::from_be_bytes);
        let number = (hop >> 16) as u8;
        let wanted = match number {
            protocol::TCP => what.tcp4,
            protocol::UDP => what.udp4,
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
        if !plain {
            return Self::between(hosts);
        }
        // Type of service, TTL and DF.
        let hop = lengths << 8 & 0xff00_0000 | (hop >> 24) << 16 | fragment & DONT_FRAGMENT;
        Self::of_transport(bytes, hosts, hop, (fragment >> 16) as u16)
    }
}

impl<'a> Kind<'a, Ipv6Header> {
    /// Returns the class of a packet. [`Kind::Stranger`] if it is not IPv6.
    #[inline]
    pub(super) fn of(bytes: &'a [u8], what: Coalesce) -> Self {
        let words = bytes.as_chunks().0;
        let Some(words) = words.first_chunk() else { return Self::Stranger };
        let [fixed, addresses @ ..]: [u64; 5] = words.map(u64::from_be_bytes);
        let number = (fixed >> 8) as u8;
        let wanted = match number {
            protocol::TCP => what.tcp6,
            protocol::UDP => what.udp6,
            _ => return Self::behind_extensions(bytes, addresses),
        };
        if !wanted || fixed >> 60 != 6 {
            return Self::Stranger;
        }
        let hosts = FlowKey::from(digest(addresses)) << 64 | V6 | FlowKey::from(number);
        let payload = bytes.len() - Ipv6Header::HEADER_LEN;
        if usize::from((fixed >> 16) as u16) != payload {
            return Self::between(hosts);
        }
        Self::of_transport(bytes, hosts, DONT_FRAGMENT, 0)
    }

    /// Extension headers are not joined. Those of a fragment hide its protocol.
    #[cold]
    fn behind_extensions(bytes: &[u8], addresses: [u64; 4]) -> Self {
        let Ok(packet) = Ipv6Packet::parse(bytes) else { return Self::Stranger };
        match packet.header().upper_layer() {
            Some(upper) if usize::from(upper.offset) == Ipv6Header::HEADER_LEN => Self::Stranger,
            _ => Self::BetweenHosts(Hosts {
                key: FlowKey::from(digest(addresses)) << 64 | V6,
                known: !(PORTS | PROTOCOL),
            }),
        }
    }
}

impl<'a, H: Family> Kind<'a, H> {
    #[inline(always)]
    fn between(hosts: FlowKey) -> Self {
        Self::BetweenHosts(Hosts { key: hosts, known: !PORTS })
    }

    /// Returns the class of a TCP or UDP packet of its length and without options or extension headers.
    #[inline(always)]
    fn of_transport(bytes: &'a [u8], hosts: FlowKey, hop: u32, identification: u16) -> Self {
        let Some(payload) = bytes.get(H::HEADER_LEN..) else { return Self::between(hosts) };
        let candidate = if is_tcp(hosts) {
            let Ok(tcp) = TcpHeader::parse(payload) else { return Self::between(hosts) };
            let flow = hosts | FlowKey::from(tcp.ports()) << 32;
            let headers = H::HEADER_LEN + tcp.header_len();
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
            Candidate { flow, bytes, headers, alike, identification, sequence, ends, family: PhantomData }
        } else {
            let Ok(udp) = UdpHeader::parse(payload) else { return Self::between(hosts) };
            let flow = hosts | FlowKey::from(udp.ports()) << 32;
            let headers = H::HEADER_LEN + UDP_HEADER_LEN;
            // Without a checksum the payload cannot be verified, and segmentation would add one
            // (`udp_gro_receive_segment`). Segments without payload do not exist.
            if bytes.len() == headers || udp.checksum() == 0 {
                return Self::Alone(flow);
            }
            let alike = Alike { hop, ..Alike::default() };
            Candidate { flow, bytes, headers, alike, identification, sequence: 0, ends: 0, family: PhantomData }
        };
        Self::Candidate(candidate)
    }
}

impl<H: Family> Candidate<'_, H> {
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
        self.bytes.get(H::HEADER_LEN + TCP_HEADER_LEN..self.headers).unwrap_or_default()
    }

    #[inline]
    pub(super) fn is_tcp(&self) -> bool {
        is_tcp(self.flow)
    }

    /// Returns the sum of the pseudo header and of the header bytes that the transport checksum covers.
    #[inline]
    pub(super) fn header_sum(&self) -> u16 {
        H::header_sum(self.bytes, self.flow, self.headers)
    }
}

#[inline]
pub(super) fn is_tcp(flow: FlowKey) -> bool {
    flow as u8 == protocol::TCP
}

#[inline]
pub(super) fn version_of(flow: FlowKey) -> Version {
    if flow & V6 == 0 { Version::V4 } else { Version::V6 }
}

/// Returns a digest of the two addresses, in which the source and the destination do not cancel each other out.
#[inline(always)]
fn digest([s0, s1, d0, d1]: [u64; 4]) -> u64 {
    mix(mix(mix(s0, s1), d0), d1)
}

#[inline(always)]
fn mix(sum: u64, word: u64) -> u64 {
    /// 2^64 divided by the golden ratio.
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    (sum ^ word).wrapping_mul(ODD).rotate_left(32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::offload::{Coalesced, Coalescer};
    use alloc::vec::Vec;
    use etherparse::PacketBuilder;

    fn datagram([s0, s1, d0, d1]: [u64; 4]) -> Vec<u8> {
        let address = |high: u64, low: u64| (u128::from(high) << 64 | u128::from(low)).to_be_bytes();
        let mut packet = Vec::new();
        let builder = PacketBuilder::ipv6(address(s0, s1), address(d0, d1), 64).udp(4000, 53);
        builder.write(&mut packet, &[7; 100]).unwrap();
        packet
    }

    /// V27. The third word makes up for the second.
    #[test]
    fn v27_addresses_with_the_same_digest_are_not_joined() {
        let [s0, s1, d0, d1] = [0xfd00_0096_0001_0000, 2, 0xfd00_0096_0002_0000, 3];
        for other in [1, 0x8000_0000_0000_0002, 0x1234_5678_9abc_def0] {
            let difference = mix(s0, s1) ^ mix(s0, other);
            let flows = [[s0, s1, d0, d1], [s0, other, d0 ^ difference, d1]];
            assert_eq!(digest(flows[0]), digest(flows[1]));
            let packets = [0, 0, 1, 1, 0].map(|flow: usize| datagram(flows[flow]));
            let (mut coalescer, mut writes) = (Coalescer::new(Coalesce::ALL), Vec::new());
            let mut deliver =
                |coalesced: Coalesced<'_>| writes.push((coalesced.packet[8..40].to_vec(), coalesced.packets));
            for packet in &packets {
                coalescer.push(packet, &mut deliver);
            }
            coalescer.flush(&mut deliver);
            let expected =
                [(0, 2), (2, 2), (4, 1)].map(|(first, count): (usize, _)| (packets[first][8..40].to_vec(), count));
            assert_eq!(writes, expected);
        }
    }
}
