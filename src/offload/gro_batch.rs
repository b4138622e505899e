//! One batch: the packets of one flow that were joined so far, and the rules by which two packets go together.
//!
//! The rules are those of the kernel's receive offload (net/ipv4/af_inet.c `inet_gro_receive`, net/ipv4/tcp_offload.c
//! `tcp_gro_receive`, net/ipv4/udp_offload.c `udp_gro_receive_segment`), and stricter where cutting the GSO packet would
//! otherwise not give back the packets.

use alloc::boxed::Box;
use alloc::vec;

use super::candidate::{Alike, Candidate, DONT_FRAGMENT, FlowKey, is_tcp, pseudo_sum};
use super::vnet::{VnetHeader, vnet_flag, vnet_gso};
use crate::wire::checksum;
use crate::wire::ipv4::HEADER_LEN;
use crate::wire::transport::{TCP_HEADER_LEN, UDP_HEADER_LEN, tcp_field, tcp_flag, udp_field};

/// Packets in the longest batch: the kernel takes no more UDP segments at a time (`UDP_MAX_SEGMENTS` of linux/udp.h).
pub const PACKETS_MAX: usize = 64;

/// Bytes of payload in a TCP segment below which nothing is joined. Newer kernels (seen: 6.12.115) cut GSO packets of smaller
/// segments into segments of this size, and drop them if they are no longer (`TCP_MIN_GSO_SIZE` in include/net/tcp.h).
const TCP_SEGMENT_MIN: usize = 8;

/// Bytes of the longest packet, for total length is 16 bits wide.
const LEN_MAX: usize = u16::MAX as usize;

/// What goes into the device with one write.
#[derive(Clone, Copy, Debug)]
pub struct Coalesced<'a> {
    /// To be put in front: all zeros for one packet.
    pub header: VnetHeader,
    /// One packet as it was pushed, or a GSO packet whose transport checksum is partial.
    pub packet: &'a [u8],
    /// How many packets were pushed for it: at least 1, at most [`PACKETS_MAX`].
    pub packets: usize,
}

impl<'a> Coalesced<'a> {
    #[inline]
    pub(super) fn single(packet: &'a [u8]) -> Self {
        Self { header: VnetHeader::default(), packet, packets: 1 }
    }
}

/// What became of a packet that was to be appended.
pub(super) enum Appended {
    /// It is in, and more may follow.
    Open,
    /// It is in, and it is the last.
    Complete,
    /// It belongs into another batch than this one.
    Unfit,
    /// It belongs into no batch at all.
    BadChecksum,
}

pub(super) struct GroBatch {
    /// The first packet as it came, then the payloads of the others.
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
    /// What the next packet has to have; 2^32 if sequence numbers wrap there.
    next_sequence: u64,
    next_identification: u16,
    /// The control bits of first and last.
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

    /// The number it was begun with.
    #[inline]
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Begins anew with `packet`. `false`, and no batch, if its checksum is wrong.
    #[inline]
    pub(super) fn begin(&mut self, packet: &Candidate<'_>, number: u64) -> bool {
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

    /// Appends `packet`, of the same flow, if every rule lets it.
    #[inline]
    pub(super) fn append(&mut self, packet: &Candidate<'_>) -> Appended {
        if !self.takes(packet) {
            return Appended::Unfit;
        }
        let len = packet.payload_len();
        let Some(payload) = packet.bytes.get(packet.headers..) else { return Appended::Unfit };
        let Some(slot) = self.buffer.get_mut(self.len..self.len + len) else { return Appended::Unfit };
        let sum = checksum::copy_and_sum(payload, slot);
        // What was joined has its checksums computed anew: an error that the packet's own would have shown must not be lost.
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

    /// The rules, but for the checksum.
    #[inline]
    fn takes(&self, packet: &Candidate<'_>) -> bool {
        let len = packet.payload_len();
        let in_sequence = !packet.is_tcp() || {
            let begin = u64::from(packet.sequence);
            // A batch does not lead past the wrap of sequence numbers at 2^32.
            begin == self.next_sequence && begin + len as u64 <= 1 << 32
        };
        // Identifications count up in the segments. With DF set they mean nothing (RFC 6864 4.1), and many senders write 0.
        let dont_fragment = packet.alike.hop & DONT_FRAGMENT != 0;
        in_sequence
            && (self.size >= TCP_SEGMENT_MIN || !packet.is_tcp())
            && (dont_fragment || packet.identification == self.next_identification)
            && packet.alike == self.alike
            // Every segment has the length of the first but the last, which may be shorter.
            && len <= self.size
            && self.len + len <= LEN_MAX
            // CWR is the first segment's alone (`tcp_gso_segment` clears it in the others).
            && packet.ends & tcp_flag::CWR == 0
            // Options, most of all timestamps, are copied to every segment. That they are as long, the data offset says.
            && (!packet.is_tcp() || self.options() == packet.options())
    }

    #[inline]
    fn options(&self) -> &[u8] {
        self.buffer.get(HEADER_LEN + TCP_HEADER_LEN..self.headers).unwrap_or_default()
    }

    /// What has to come behind `packet`.
    #[inline]
    fn follow(&mut self, packet: &Candidate<'_>) {
        self.next_sequence = u64::from(packet.sequence) + packet.payload_len() as u64;
        self.next_identification = packet.identification.wrapping_add(1);
    }

    /// The batch as it goes into the device. There is none any more after that.
    #[inline]
    pub(super) fn finish(&mut self) -> Coalesced<'_> {
        let (packets, len) = (self.packets, self.len);
        self.packets = 0;
        let header = if packets > 1 { self.write_headers() } else { VnetHeader::default() };
        Coalesced { header, packet: self.buffer.get(..len).unwrap_or_default(), packets }
    }

    /// Makes the first packet's headers those of the whole: lengths, control bits, checksums.
    #[inline]
    fn write_headers(&mut self) -> VnetHeader {
        let (total, transport_len) = (self.len as u16, (self.len - HEADER_LEN) as u16);
        if let Some([_, _, len0, len1, _, _, _, _, _, _, sum0, sum1]) = self.buffer.first_chunk_mut() {
            let sum = checksum::update(u16::from_be_bytes([*sum0, *sum1]), u16::from_be_bytes([*len0, *len1]), total);
            [*len0, *len1] = total.to_be_bytes();
            [*sum0, *sum1] = sum.to_be_bytes();
        }
        // Partial: the device, or whoever cuts the packet, adds the rest (`skb_partial_csum_set`).
        let [sum0, sum1] = pseudo_sum(self.flow, self.len).to_be_bytes();
        let transport = self.buffer.get_mut(HEADER_LEN..).unwrap_or_default();
        let (gso_type, checksum_at) = if is_tcp(self.flow) {
            if let Some(tcp) = transport.first_chunk_mut::<TCP_HEADER_LEN>() {
                tcp[tcp_field::FLAGS] |= self.ends;
                [tcp[tcp_field::CHECKSUM], tcp[tcp_field::CHECKSUM + 1]] = [sum0, sum1];
            }
            // The bit tells the device to keep CWR to the first segment (`tcp_gro_complete` sets `SKB_GSO_TCP_ECN`).
            let ecn = if self.ends & tcp_flag::CWR == 0 { 0 } else { vnet_gso::ECN };
            (vnet_gso::TCPV4 | ecn, tcp_field::CHECKSUM)
        } else {
            if let Some(udp) = transport.first_chunk_mut::<UDP_HEADER_LEN>() {
                [udp[udp_field::LENGTH], udp[udp_field::LENGTH + 1]] = transport_len.to_be_bytes();
                [udp[udp_field::CHECKSUM], udp[udp_field::CHECKSUM + 1]] = [sum0, sum1];
            }
            (vnet_gso::UDP_L4, udp_field::CHECKSUM)
        };
        VnetHeader {
            flags: vnet_flag::NEEDS_CSUM,
            gso_type,
            hdr_len: self.headers as u16,
            gso_size: self.size as u16,
            csum_start: HEADER_LEN as u16,
            csum_offset: checksum_at as u16,
        }
    }
}

impl core::fmt::Debug for GroBatch {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("GroBatch").field("packets", &self.packets).field("len", &self.len).finish_non_exhaustive()
    }
}
