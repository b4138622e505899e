//! A GRO batch: the packets of one flow joined so far, and the rules by which two packets are joined.
//!
//! The rules are those of the kernel's receive offload (net/ipv4/af_inet.c `inet_gro_receive`, net/ipv6/ip6_offload.c
//! `ipv6_gro_receive`, net/ipv4/tcp_offload.c `tcp_gro_receive`, net/ipv4/udp_offload.c `udp_gro_receive_segment`). They
//! are stricter where segmentation would not restore the packets.

use alloc::boxed::Box;
use alloc::vec;

use super::candidate::{Alike, Candidate, DONT_FRAGMENT, FlowKey, is_tcp, version_of};
use super::family::{Family, Version};
use super::vnet::{VnetHeader, vnet_flag, vnet_gso};
use crate::wire::checksum;
use crate::wire::ipv4::Ipv4Header;
use crate::wire::ipv6::Ipv6Header;
use crate::wire::transport::{TCP_HEADER_LEN, UDP_HEADER_LEN, tcp_field, tcp_flag, udp_field};

/// The largest number of packets in a batch. The kernel accepts no more UDP segments (`UDP_MAX_SEGMENTS` in
/// linux/udp.h).
pub const PACKETS_MAX: usize = 64;

/// The smallest TCP payload that is joined, in bytes. Newer kernels (seen: 6.12.115) segment GSO packets with smaller
/// segments into segments of this size, or drop them if they are too short (`TCP_MIN_GSO_SIZE` in include/net/tcp.h).
const TCP_SEGMENT_MIN: usize = 8;

/// Bytes of the longest packet. The total length field of IPv4 has 16 bits. The kernel joins no longer IPv6 packets
/// either (`GRO_LEGACY_MAX_SIZE` in linux/netdevice.h).
const LEN_MAX: usize = u16::MAX as usize;

/// The data of one write to the device.
#[derive(Clone, Copy, Debug)]
pub struct Coalesced<'a> {
    /// The vnet header to write before the packet: all zeros for one packet.
    pub header: VnetHeader,
    /// One packet as it was pushed, or a GSO packet whose transport checksum is partial.
    pub packet: &'a [u8],
    /// The number of pushed packets that it contains: 1 to [`PACKETS_MAX`].
    pub packets: usize,
}

impl<'a> Coalesced<'a> {
    #[inline]
    pub(super) fn single(packet: &'a [u8]) -> Self {
        Self { header: VnetHeader::default(), packet, packets: 1 }
    }
}

/// The result of appending a packet.
pub(super) enum Appended {
    /// The packet was appended, and more may follow.
    Open,
    /// The packet was appended and is the last one.
    Complete,
    /// The packet belongs into another batch.
    Unfit,
    /// The packet has a wrong checksum and belongs into no batch.
    BadChecksum,
}

pub(super) struct GroBatch {
    /// The first packet, followed by the payloads of the others.
    buffer: Box<[u8]>,
    /// Bytes of `buffer` in use.
    len: usize,
    packets: usize,
    number: u64,
    flow: FlowKey,
    /// Bytes of the first packet's headers.
    headers: usize,
    /// Bytes of the first packet's payload.
    size: usize,
    alike: Alike,
    /// The sequence number that the next packet must have; 2^32 if the numbers wrap there.
    next_sequence: u64,
    next_identification: u16,
    /// The control bits of the first and the last packet.
    ends: u8,
}

impl GroBatch {
    pub(super) fn new() -> Self {
        Self {
            buffer: vec![0; LEN_MAX].into_boxed_slice(),
            len: 0,
            packets: 0,
            number: 0,
            flow: 0,
            headers: 0,
            size: 0,
            alike: Alike::default(),
            next_sequence: 0,
            next_identification: 0,
            ends: 0,
        }
    }

    /// Returns the number that the batch was begun with.
    #[inline]
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Starts a new batch with `packet`. Returns false and leaves no batch if its checksum is wrong.
    #[inline]
    pub(super) fn begin<H: Family>(&mut self, packet: &Candidate<'_, H>, number: u64) -> bool {
        let len = packet.bytes.len();
        let Some((headers, payload)) = packet.bytes.split_at_checked(packet.headers) else { return false };
        let Some((header_slot, slot)) =
            self.buffer.get_mut(..len).and_then(|slot| slot.split_at_mut_checked(packet.headers))
        else {
            return false;
        };
        let sum = checksum::copy_and_sum(payload, slot);
        header_slot.copy_from_slice(headers);
        if checksum::add(packet.header_sum(), sum) != 0xffff {
            return false;
        }
        self.len = len;
        self.packets = 1;
        self.number = number;
        self.flow = packet.flow;
        self.headers = packet.headers;
        self.size = packet.payload_len();
        self.alike = packet.alike;
        self.ends = packet.ends;
        self.follow(packet);
        true
    }

    /// Appends `packet`, of the same flow, if every rule permits it.
    #[inline]
    pub(super) fn append<H: Family>(&mut self, packet: &Candidate<'_, H>) -> Appended {
        if !self.takes(packet) {
            return Appended::Unfit;
        }
        let len = packet.payload_len();
        let Some(payload) = packet.bytes.get(packet.headers..) else { return Appended::Unfit };
        let Some(slot) = self.buffer.get_mut(self.len..self.len + len) else { return Appended::Unfit };
        let sum = checksum::copy_and_sum(payload, slot);
        // The batch gets a new checksum, so the packet's own one must be verified first.
        if checksum::add(packet.header_sum(), sum) != 0xffff {
            return Appended::BadChecksum;
        }
        self.len += len;
        self.packets += 1;
        self.ends |= packet.ends;
        self.follow(packet);
        // Only the last segment of a GSO packet may be shorter.
        if packet.ends_batch() || len < self.size || self.packets == PACKETS_MAX {
            Appended::Complete
        } else {
            Appended::Open
        }
    }

    /// Returns true if all rules but that of the checksum permit the packet.
    #[inline]
    fn takes<H: Family>(&self, packet: &Candidate<'_, H>) -> bool {
        let len = packet.payload_len();
        let in_sequence = !packet.is_tcp() || {
            let begin = u64::from(packet.sequence);
            // A batch does not extend past the wrap of sequence numbers at 2^32.
            begin == self.next_sequence && begin + len as u64 <= 1 << 32
        };
        // Segmentation increments the identification. With DF set it has no meaning (RFC 6864 section 4.1), and many
        // senders write 0.
        let dont_fragment = packet.alike.hop & DONT_FRAGMENT != 0;
        in_sequence
            && (self.size >= TCP_SEGMENT_MIN || !packet.is_tcp())
            && (dont_fragment || packet.identification == self.next_identification)
            && packet.alike == self.alike
            && H::may_follow(&self.buffer, packet.bytes)
            // Only the last segment may be shorter than the first.
            && len <= self.size
            && self.len + len <= LEN_MAX
            // CWR belongs to the first segment only (`tcp_gso_segment` clears it in the others).
            && packet.ends & tcp_flag::CWR == 0
            // Options, such as timestamps, are copied to every segment. The data offset has shown that both are equally
            // long.
            && (!packet.is_tcp() || self.options::<H>() == packet.options())
    }

    #[inline]
    fn options<H: Family>(&self) -> &[u8] {
        self.buffer.get(H::HEADER_LEN + TCP_HEADER_LEN..self.headers).unwrap_or_default()
    }

    /// Records what the packet after `packet` must have.
    #[inline]
    fn follow<H: Family>(&mut self, packet: &Candidate<'_, H>) {
        self.next_sequence = u64::from(packet.sequence) + packet.payload_len() as u64;
        self.next_identification = packet.identification.wrapping_add(1);
    }

    /// Ends the batch and returns it as it goes into the device.
    #[inline]
    pub(super) fn finish(&mut self) -> Coalesced<'_> {
        let (packets, len) = (self.packets, self.len);
        self.packets = 0;
        let header = match version_of(self.flow) {
            _ if packets <= 1 => VnetHeader::default(),
            Version::V4 => self.write_headers::<Ipv4Header>(),
            Version::V6 => self.write_headers::<Ipv6Header>(),
        };
        Coalesced { header, packet: self.buffer.get(..len).unwrap_or_default(), packets }
    }

    /// Changes the first packet's headers to those of the whole batch: lengths, control bits, checksums.
    #[inline]
    fn write_headers<H: Family>(&mut self) -> VnetHeader {
        let total = self.len;
        // The checksum is partial: the device, or the code that segments the packet, completes it
        // (`skb_partial_csum_set`).
        let [sum0, sum1] = H::pseudo_sum(&self.buffer, self.flow, total).to_be_bytes();
        let Some((header, transport)) = self.buffer.split_at_mut_checked(H::HEADER_LEN) else {
            return VnetHeader::default();
        };
        H::write_total(header, total);
        let (gso_type, checksum_at) = if is_tcp(self.flow) {
            if let Some(tcp) = transport.first_chunk_mut::<TCP_HEADER_LEN>() {
                tcp[tcp_field::FLAGS] |= self.ends;
                [tcp[tcp_field::CHECKSUM], tcp[tcp_field::CHECKSUM + 1]] = [sum0, sum1];
            }
            // The bit tells the device to set CWR in the first segment only (`tcp_gro_complete` sets
            // `SKB_GSO_TCP_ECN`).
            let ecn = if self.ends & tcp_flag::CWR == 0 { 0 } else { vnet_gso::ECN };
            (H::TCP_GSO | ecn, tcp_field::CHECKSUM)
        } else {
            if let Some(udp) = transport.first_chunk_mut::<UDP_HEADER_LEN>() {
                [udp[udp_field::LENGTH], udp[udp_field::LENGTH + 1]] = ((total - H::HEADER_LEN) as u16).to_be_bytes();
                [udp[udp_field::CHECKSUM], udp[udp_field::CHECKSUM + 1]] = [sum0, sum1];
            }
            (vnet_gso::UDP_L4, udp_field::CHECKSUM)
        };
        VnetHeader {
            flags: vnet_flag::NEEDS_CSUM,
            gso_type,
            hdr_len: self.headers as u16,
            gso_size: self.size as u16,
            csum_start: H::HEADER_LEN as u16,
            csum_offset: checksum_at as u16,
        }
    }
}

impl core::fmt::Debug for GroBatch {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("GroBatch").field("packets", &self.packets).field("len", &self.len).finish_non_exhaustive()
    }
}
