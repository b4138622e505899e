//! What the kernel left to be done to a packet, and whether it makes sense.

use super::segment::GsoPacket;
use super::vnet::{VNET_HEADER_LEN, VnetHeader, vnet_flag, vnet_gso};
use crate::wire::ipv4::{Ipv4Header, Ipv4Packet};
use crate::wire::transport::{TcpHeader, TransportError, UdpHeader, tcp_field, udp_field};
use crate::wire::{checksum, protocol};

/// What is to be done before a packet out of a TUN device may go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum OffloadAction {
    /// It is complete.
    Nothing,
    /// Its transport checksum covers only the pseudo header so far.
    Checksum(PartialChecksum),
    /// It stands for more than one packet.
    Segment(GsoPacket),
}

/// Why a vnet header does not fit the packet behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OffloadError {
    /// Fewer bytes than a vnet header.
    #[error("{have} bytes are fewer than the {VNET_HEADER_LEN} of a vnet header")]
    TooShort {
        /// Bytes received.
        have: usize,
    },
    /// A flag nobody asked for: what it leaves to be done is not known.
    #[error("the vnet flags {flags:#04x} have unknown bits")]
    UnknownFlags {
        /// The flags.
        flags: u8,
    },
    /// A type that does not exist, or a bit beside it that does not go with it.
    #[error("the GSO type {gso_type:#04x} is unknown")]
    UnknownGso {
        /// The type, all bits.
        gso_type: u8,
    },
    /// A type that exists, but not for this packet.
    #[error("the GSO type {gso_type:#04x} does not fit an IPv4 packet of protocol {protocol}")]
    UnfitGso {
        /// The type, all bits.
        gso_type: u8,
        /// The protocol of the packet.
        protocol: u8,
    },
    /// Segments of no bytes.
    #[error("the GSO size is 0")]
    GsoSizeZero,
    /// A fragment, whose transport header and checksum are not whole.
    #[error("a fragment at offset {offset} has no transport checksum and no segments")]
    Fragment {
        /// The fragment offset, in units of 8 bytes.
        offset: u16,
    },
    /// The checksum would cover or change the IP header.
    #[error("a checksum from byte {start} on reaches into the IP header of {header} bytes")]
    ChecksumInHeader {
        /// Where the covered bytes begin.
        start: u16,
        /// Bytes of the IP header.
        header: usize,
    },
    /// The checksum is past the packet's end.
    #[error("a checksum at byte {at} does not fit into {total} bytes")]
    ChecksumPastEnd {
        /// Where the checksum is.
        at: usize,
        /// The total length of the packet.
        total: usize,
    },
    /// The checksum of a GSO packet is not where its protocol has it.
    #[error("a checksum {offset} bytes behind byte {start} is not that of protocol {protocol} behind {header} bytes")]
    ChecksumMisplaced {
        /// Where the covered bytes begin.
        start: u16,
        /// Where the checksum is from there.
        offset: u16,
        /// The protocol of the packet.
        protocol: u8,
        /// Bytes of the IP header.
        header: usize,
    },
    /// The transport header of a GSO packet does not fit.
    #[error(transparent)]
    Transport(#[from] TransportError),
}

impl VnetHeader {
    /// The header in front of what a TUN device with `IFF_VNET_HDR` gave, and the packet behind it.
    ///
    /// # Errors
    /// If there are fewer bytes than [`VNET_HEADER_LEN`].
    #[inline]
    pub fn split(bytes: &[u8]) -> Result<(Self, &[u8]), OffloadError> {
        match bytes.split_first_chunk() {
            Some((header, packet)) => Ok((Self::from_bytes(*header), packet)),
            None => Err(OffloadError::TooShort { have: bytes.len() }),
        }
    }

    /// What the kernel left to be done to `packet`, the bytes behind this header.
    ///
    /// Lengths are taken from the packet. `hdr_len` is not looked at: on a path that forwards it is the length of the first
    /// buffer (`virtio_net_hdr_from_skb`). The number of segments is bounded by the packet alone: 65,495 of one byte, each
    /// written only when asked for, so that it costs no memory.
    ///
    /// Bytes that are no sound IPv4 packet need [`OffloadAction::Nothing`]: what is wrong with them is for the forwarder to say.
    ///
    /// # Errors
    /// The first thing that does not fit the packet, see [`OffloadError`].
    #[inline]
    pub fn inspect(&self, packet: &[u8]) -> Result<OffloadAction, OffloadError> {
        if self.flags & !vnet_flag::DATA_VALID == 0 && self.gso_type == vnet_gso::NONE {
            return Ok(OffloadAction::Nothing);
        }
        let Ok(packet) = Ipv4Packet::parse(packet) else { return Ok(OffloadAction::Nothing) };
        if self.flags & !(vnet_flag::NEEDS_CSUM | vnet_flag::DATA_VALID) != 0 {
            return Err(OffloadError::UnknownFlags { flags: self.flags });
        }
        let header = packet.header();
        if header.more_fragments() || header.fragment_offset() != 0 {
            return Err(OffloadError::Fragment { offset: header.fragment_offset() });
        }
        let partial = match self.flags & vnet_flag::NEEDS_CSUM {
            0 => None,
            _ => Some(self.partial_checksum(header)?),
        };
        match self.gso_packet(&packet)? {
            // Without a partial checksum the kernel computes a whole one per segment all the same (`tcp4_gso_segment`).
            Some(many) if many.segments() > 1 => Ok(OffloadAction::Segment(many)),
            _ => Ok(partial.map_or(OffloadAction::Nothing, OffloadAction::Checksum)),
        }
    }

    #[inline]
    fn partial_checksum(&self, header: &Ipv4Header) -> Result<PartialChecksum, OffloadError> {
        let total = usize::from(header.total_len());
        let (start, at) = (usize::from(self.csum_start), usize::from(self.csum_start) + usize::from(self.csum_offset));
        if start < header.header_len() {
            return Err(OffloadError::ChecksumInHeader { start: self.csum_start, header: header.header_len() });
        }
        if at + 2 > total {
            return Err(OffloadError::ChecksumPastEnd { at, total });
        }
        let is_udp = usize::from(self.csum_offset) == udp_field::CHECKSUM;
        Ok(PartialChecksum { start: self.csum_start, at: at as u16, end: header.total_len(), is_udp })
    }

    /// The GSO packet, if the type says it is one, of however few segments.
    #[inline]
    fn gso_packet(&self, packet: &Ipv4Packet<'_>) -> Result<Option<GsoPacket>, OffloadError> {
        let gso_type = self.gso_type;
        let header = packet.header();
        let wanted = match gso_type {
            vnet_gso::NONE => return Ok(None),
            vnet_gso::UDP_L4 => protocol::UDP,
            _ => match gso_type & !vnet_gso::ECN {
                vnet_gso::TCPV4 => protocol::TCP,
                vnet_gso::TCPV6 => return Err(OffloadError::UnfitGso { gso_type, protocol: header.protocol() }),
                vnet_gso::UDP if gso_type == vnet_gso::UDP => {
                    return Err(OffloadError::UnfitGso { gso_type, protocol: header.protocol() });
                }
                _ => return Err(OffloadError::UnknownGso { gso_type }),
            },
        };
        if header.protocol() != wanted {
            return Err(OffloadError::UnfitGso { gso_type, protocol: header.protocol() });
        }
        if self.gso_size == 0 {
            return Err(OffloadError::GsoSizeZero);
        }
        let (offset, many) = if wanted == protocol::TCP {
            let tcp = TcpHeader::parse(packet.payload())?;
            (tcp_field::CHECKSUM, GsoPacket::tcp(packet, &tcp, self.gso_size))
        } else {
            let udp = UdpHeader::parse(packet.payload())?;
            (udp_field::CHECKSUM, GsoPacket::udp(packet, &udp, self.gso_size))
        };
        let misplaced = (usize::from(self.csum_start), usize::from(self.csum_offset)) != (header.header_len(), offset);
        if self.flags & vnet_flag::NEEDS_CSUM != 0 && misplaced {
            return Err(OffloadError::ChecksumMisplaced {
                start: self.csum_start,
                offset: self.csum_offset,
                protocol: wanted,
                header: header.header_len(),
            });
        }
        Ok(Some(many))
    }
}

/// A checksum whose field holds the sum of the pseudo header and is still to take in the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartialChecksum {
    start: u16,
    at: u16,
    end: u16,
    is_udp: bool,
}

impl PartialChecksum {
    /// Completes it in the packet that was inspected; TTL and IP checksum may have changed since.
    ///
    /// A UDP checksum that comes out as 0 is written as `0xFFFF`, because 0 would say that there is none (RFC 768). A UDP
    /// checksum is known by its place behind the begin of what it covers, so that one inside another tunnel counts as well.
    /// A packet shorter than the one inspected stays as it is.
    #[inline]
    pub fn complete(&self, packet: &mut [u8]) {
        let Some(covered) = packet.get_mut(usize::from(self.start)..usize::from(self.end)) else { return };
        let checksum = match checksum::checksum(covered) {
            0 if self.is_udp => 0xffff,
            checksum => checksum,
        };
        let field = covered.get_mut(usize::from(self.at - self.start)..).and_then(<[u8]>::first_chunk_mut);
        if let Some(field) = field {
            *field = checksum.to_be_bytes();
        }
    }
}
