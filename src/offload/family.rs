//! The differences between IPv4 and IPv6 in GSO packets.

use super::candidate::FlowKey;
use super::vnet::vnet_gso;
use crate::wire::ipv4::{self, Ipv4Header};
use crate::wire::ipv6::{self, Ipv6Header};
use crate::wire::transport::{pseudo_header_sum, pseudo_header_sum_v6};
use crate::wire::{IpHeader, UpperLayer, checksum};

/// A family of packets, named by its header. The code of this module that is the same for both is generic over it.
pub(super) trait Family: IpHeader {
    const VERSION: Version;
    /// Bytes of a header without options and extension headers, as in all packets of a batch.
    const HEADER_LEN: usize;
    /// The GSO type of TCP.
    const TCP_GSO: u8;

    /// Returns the sum of the pseudo header of all segments of a GSO packet, without a length. `partial` is the partial
    /// checksum of the whole, if it has one, which covers `len` bytes.
    fn segments_sum(&self, upper: UpperLayer, partial: Option<u16>, len: u16) -> u16;

    /// Returns the sum of the pseudo header of a packet of `total` bytes, of which `header` is the front.
    fn pseudo_sum(header: &[u8], flow: FlowKey, total: usize) -> u16;

    /// Returns the sum of the pseudo header and of the transport header of a packet, which has `headers` bytes of headers.
    fn header_sum(packet: &[u8], flow: FlowKey, headers: usize) -> u16;

    /// Returns true if `next` may follow `first` in a batch, as far as their flow and their
    /// [`Alike`](super::candidate::Alike) do not show it. Both are of this family and of one flow.
    fn may_follow(first: &[u8], next: &[u8]) -> bool;

    /// Changes the header of the first packet of a batch to that of the whole batch, which has `total` bytes.
    fn write_total(header: &mut [u8], total: usize);

    /// Writes the fields in which the header `new` of segment `index`, which has `total` bytes, differs from that of the GSO
    /// packet.
    fn write_segment(new: &mut [u8], total: usize, index: usize);
}

/// The family of a packet, where it is known at run time only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    V4,
    V6,
}

impl Version {
    pub(super) fn number(self) -> u8 {
        match self {
            Self::V4 => 4,
            Self::V6 => 6,
        }
    }
}

mod field_v4 {
    pub(super) const TOTAL_LEN: usize = 2;
    pub(super) const IDENTIFICATION: usize = 4;
    pub(super) const CHECKSUM: usize = 10;
}

mod field_v6 {
    pub(super) const PAYLOAD_LEN: usize = 4;
    /// The payload length in the first eight bytes as a number.
    pub(super) const PAYLOAD_LEN_OF_WORD: u64 = 0xffff << 16;
    pub(super) const SOURCE: usize = 8;
}

impl Family for Ipv4Header {
    const VERSION: Version = Version::V4;
    const HEADER_LEN: usize = ipv4::HEADER_LEN;
    const TCP_GSO: u8 = vnet_gso::TCPV4;

    #[inline(always)]
    fn segments_sum(&self, upper: UpperLayer, _partial: Option<u16>, _len: u16) -> u16 {
        pseudo_header_sum(self.source().to_bits(), self.destination().to_bits(), upper.protocol, 0)
    }

    #[inline(always)]
    fn pseudo_sum(_header: &[u8], flow: FlowKey, total: usize) -> u16 {
        pseudo_header_sum((flow >> 96) as u32, (flow >> 64) as u32, flow as u8, (total - Self::HEADER_LEN) as u16)
    }

    #[inline(always)]
    fn header_sum(packet: &[u8], flow: FlowKey, headers: usize) -> u16 {
        let header = packet.get(Self::HEADER_LEN..headers).unwrap_or_default();
        checksum::add(Self::pseudo_sum(packet, flow, packet.len()), checksum::sum(header))
    }

    #[inline(always)]
    fn may_follow(_first: &[u8], _next: &[u8]) -> bool {
        true
    }

    #[inline(always)]
    fn write_total(header: &mut [u8], total: usize) {
        let total = total as u16;
        if let Some([_, _, len0, len1, _, _, _, _, _, _, sum0, sum1]) = header.first_chunk_mut() {
            let sum = checksum::update(u16::from_be_bytes([*sum0, *sum1]), u16::from_be_bytes([*len0, *len1]), total);
            [*len0, *len1] = total.to_be_bytes();
            [*sum0, *sum1] = sum.to_be_bytes();
        }
    }

    /// The identification counts up whether or not DF is set. The kernel does the same unless a driver requests a fixed
    /// one. The checksum is updated (RFC 1624).
    #[inline(always)]
    fn write_segment(new: &mut [u8], total: usize, index: usize) {
        let Some(new) = new.first_chunk_mut::<{ ipv4::HEADER_LEN }>() else { return };
        let [_, _, len0, len1, id0, id1, _, _, _, _, sum0, sum1, ..] = *new;
        let (old_len, old_id) = (u16::from_be_bytes([len0, len1]), u16::from_be_bytes([id0, id1]));
        let (len, id) = (total as u16, old_id.wrapping_add(index as u16));
        let checksum = checksum::update(u16::from_be_bytes([sum0, sum1]), old_len, len);
        let checksum = checksum::update(checksum, old_id, id);
        [new[field_v4::TOTAL_LEN], new[field_v4::TOTAL_LEN + 1]] = len.to_be_bytes();
        [new[field_v4::IDENTIFICATION], new[field_v4::IDENTIFICATION + 1]] = id.to_be_bytes();
        [new[field_v4::CHECKSUM], new[field_v4::CHECKSUM + 1]] = checksum.to_be_bytes();
    }
}

impl Family for Ipv6Header {
    const VERSION: Version = Version::V6;
    const HEADER_LEN: usize = ipv6::HEADER_LEN;
    const TCP_GSO: u8 = vnet_gso::TCPV6;

    /// With a routing header, the pseudo header has the final destination and not that of the header (RFC 8200 section
    /// 8.1). Only the partial checksum tells it. The kernel derives the checksums of segments from that field too.
    #[inline(always)]
    fn segments_sum(&self, upper: UpperLayer, partial: Option<u16>, len: u16) -> u16 {
        match partial {
            Some(sum) if usize::from(upper.offset) != Self::HEADER_LEN => checksum::add(sum, !len),
            _ => pseudo_header_sum_v6(self.source().to_bits(), self.destination().to_bits(), upper.protocol, 0),
        }
    }

    #[inline(always)]
    fn pseudo_sum(header: &[u8], flow: FlowKey, total: usize) -> u16 {
        let addresses = header.get(field_v6::SOURCE..Self::HEADER_LEN).unwrap_or_default();
        with_length(checksum::sum(addresses), flow, total)
    }

    /// The addresses end where the transport header begins.
    #[inline(always)]
    fn header_sum(packet: &[u8], flow: FlowKey, headers: usize) -> u16 {
        let header = packet.get(field_v6::SOURCE..headers).unwrap_or_default();
        with_length(checksum::sum(header), flow, packet.len())
    }

    /// All but the payload length: the flow of a batch does not determine the addresses, and a segment has the traffic class,
    /// the flow label and the hop limit of the first packet (`ipv6_gro_receive` in net/ipv6/ip6_offload.c).
    #[inline(always)]
    fn may_follow(first: &[u8], next: &[u8]) -> bool {
        let (Some((first, addresses)), Some((next, next_addresses))) = (parts(first), parts(next)) else {
            return false;
        };
        (first ^ next) & !field_v6::PAYLOAD_LEN_OF_WORD == 0 && addresses == next_addresses
    }

    #[inline(always)]
    fn write_total(header: &mut [u8], total: usize) {
        let len = (total - Self::HEADER_LEN) as u16;
        if let Some(header) = header.first_chunk_mut::<{ ipv6::HEADER_LEN }>() {
            [header[field_v6::PAYLOAD_LEN], header[field_v6::PAYLOAD_LEN + 1]] = len.to_be_bytes();
        }
    }

    #[inline(always)]
    fn write_segment(new: &mut [u8], total: usize, _index: usize) {
        Self::write_total(new, total);
    }
}

/// Returns a sum with that of the pseudo header's length and protocol, for an IPv6 packet of `total` bytes.
#[inline(always)]
fn with_length(sum: u16, flow: FlowKey, total: usize) -> u16 {
    checksum::sum_of_words([sum.into(), (total - ipv6::HEADER_LEN) as u32, u32::from(flow as u8)])
}

/// Returns the first eight bytes of an IPv6 header as a number, and both addresses.
#[inline(always)]
fn parts(header: &[u8]) -> Option<(u64, &[u8; 32])> {
    let (word, rest) = header.split_first_chunk()?;
    Some((u64::from_be_bytes(*word), rest.first_chunk()?))
}
