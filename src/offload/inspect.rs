//! Inspection of vnet headers: the work that the kernel left, and its validity for the packet.

use super::family::Family;
use super::segment::{GsoPacket, Whole};
use super::vnet::{VNET_HEADER_LEN, VnetHeader, vnet_flag, vnet_gso};
use crate::wire::ipv4::Ipv4Packet;
use crate::wire::ipv6::Ipv6Packet;
use crate::wire::transport::{TcpHeader, TransportError, UdpHeader, tcp_field, udp_field};
use crate::wire::{IpHeader, checksum, protocol};

/// The action that a packet from a TUN device needs before it is forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum OffloadAction {
    /// None: the packet is complete.
    Nothing,
    /// Complete the transport checksum, which covers only the pseudo header so far.
    Checksum(PartialChecksum),
    /// Segment the packet.
    Segment(GsoPacket),
}

/// The reason why a vnet header does not fit its packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OffloadError {
    /// Fewer bytes than a vnet header.
    #[error("{have} bytes are fewer than the {VNET_HEADER_LEN} of a vnet header")]
    TooShort {
        /// Bytes received.
        have: usize,
    },
    /// A flag with unknown meaning.
    #[error("the vnet flags {flags:#04x} have unknown bits")]
    UnknownFlags {
        /// The flags.
        flags: u8,
    },
    /// A type that does not exist, or a flag that does not go with it.
    #[error("the GSO type {gso_type:#04x} is unknown")]
    UnknownGso {
        /// The type with all flags.
        gso_type: u8,
    },
    /// A type that exists, but not for this packet.
    #[error("the GSO type {gso_type:#04x} does not fit an IPv{version} packet of protocol {protocol}")]
    UnfitGso {
        /// The type with all flags.
        gso_type: u8,
        /// The IP version of the packet.
        version: u8,
        /// The protocol of the packet.
        protocol: u8,
    },
    /// A GSO packet of IPv6 whose extension headers cannot be followed to the transport header.
    #[error("the extension headers of a GSO packet lead to no transport header")]
    NoTransport,
    /// Segments of 0 bytes.
    #[error("the GSO size is 0")]
    GsoSizeZero,
    /// A fragment, whose transport header and checksum are incomplete.
    #[error("a fragment at offset {offset} has no transport checksum and no segments")]
    Fragment {
        /// The fragment offset, in units of 8 bytes.
        offset: u16,
    },
    /// The checksum would cover or change the IP header.
    #[error("a checksum from byte {start} on overlaps the IP header of {header} bytes")]
    ChecksumInHeader {
        /// The offset of the covered bytes.
        start: u16,
        /// Bytes of the IP header, without extension headers.
        header: usize,
    },
    /// The checksum is beyond the packet's end.
    #[error("a checksum at byte {at} does not fit into {total} bytes")]
    ChecksumPastEnd {
        /// The offset of the checksum.
        at: usize,
        /// Bytes of the packet.
        total: usize,
    },
    /// The checksum of a GSO packet is not at the place that its protocol defines.
    #[error("a checksum {offset} bytes after byte {start} is not that of protocol {protocol} after {header} bytes")]
    ChecksumMisplaced {
        /// The offset of the covered bytes.
        start: u16,
        /// The offset of the checksum from `start`.
        offset: u16,
        /// The protocol of the packet.
        protocol: u8,
        /// Bytes of the IP header, extension headers included.
        header: usize,
    },
    /// The transport header of a GSO packet does not fit.
    #[error(transparent)]
    Transport(#[from] TransportError),
}

impl VnetHeader {
    /// Splits bytes from a TUN device with `IFF_VNET_HDR` into the vnet header and the packet.
    ///
    /// # Errors
    /// There are fewer bytes than [`VNET_HEADER_LEN`].
    #[inline]
    pub fn split(bytes: &[u8]) -> Result<(Self, &[u8]), OffloadError> {
        match bytes.split_first_chunk() {
            Some((header, packet)) => Ok((Self::from_bytes(*header), packet)),
            None => Err(OffloadError::TooShort { have: bytes.len() }),
        }
    }

    /// Returns the action that `packet`, the bytes after this header, needs.
    ///
    /// Lengths are taken from the packet. `hdr_len` is ignored: on a forwarding path it is the length of the first
    /// buffer (`virtio_net_hdr_from_skb`). The packet alone limits the number of segments, at most 65,527 of one byte.
    /// Each is written only on request, so they cost no memory.
    ///
    /// Bytes that are no valid packet need [`OffloadAction::Nothing`]. The forwarder reports their error.
    ///
    /// # Errors
    /// The first field that does not fit the packet, see [`OffloadError`].
    #[inline]
    pub fn inspect(&self, packet: &[u8]) -> Result<OffloadAction, OffloadError> {
        if self.flags & !vnet_flag::DATA_VALID == 0 && self.gso_type == vnet_gso::NONE {
            return Ok(OffloadAction::Nothing);
        }
        // The common path of IPv4 has no branch for IPv6.
        match Ipv4Packet::parse(packet) {
            Ok(packet) => self.inspect_packet(packet.header(), packet.as_bytes()),
            Err(_) => self.inspect_v6(packet),
        }
    }

    #[inline(never)]
    fn inspect_v6(&self, packet: &[u8]) -> Result<OffloadAction, OffloadError> {
        match Ipv6Packet::parse(packet) {
            Ok(packet) => self.inspect_packet(packet.header(), packet.as_bytes()),
            Err(_) => Ok(OffloadAction::Nothing),
        }
    }

    /// `bytes` is the whole packet.
    #[inline(always)]
    fn inspect_packet<H: Family>(&self, header: &H, bytes: &[u8]) -> Result<OffloadAction, OffloadError> {
        if self.flags & !(vnet_flag::NEEDS_CSUM | vnet_flag::DATA_VALID) != 0 {
            return Err(OffloadError::UnknownFlags { flags: self.flags });
        }
        let fragment = header.upper_layer().and_then(|upper| upper.fragment);
        if let Some(fragment) = fragment.filter(|fragment| fragment.more_fragments || fragment.offset != 0) {
            return Err(OffloadError::Fragment { offset: fragment.offset });
        }
        let partial = match self.flags & vnet_flag::NEEDS_CSUM {
            0 => None,
            _ => Some(self.partial_checksum(header)?),
        };
        match self.gso_packet(header, bytes)? {
            // Without a partial checksum the kernel computes a whole one per segment too (`tcp4_gso_segment`).
            Some(many) if many.segments() > 1 => Ok(OffloadAction::Segment(many)),
            _ => Ok(partial.map_or(OffloadAction::Nothing, OffloadAction::Checksum)),
        }
    }

    #[inline]
    fn partial_checksum(&self, header: &impl IpHeader) -> Result<PartialChecksum, OffloadError> {
        let total = header.packet_len();
        let (start, at) = (usize::from(self.csum_start), usize::from(self.csum_start) + usize::from(self.csum_offset));
        if start < header.header_len() {
            return Err(OffloadError::ChecksumInHeader { start: self.csum_start, header: header.header_len() });
        }
        if at + 2 > total {
            return Err(OffloadError::ChecksumPastEnd { at, total });
        }
        Ok(PartialChecksum { start: self.csum_start, offset: self.csum_offset, end: total as u32 })
    }

    /// Returns the GSO packet if the type announces one, whatever its number of segments.
    #[inline]
    fn gso_packet<H: Family>(&self, header: &H, bytes: &[u8]) -> Result<Option<GsoPacket>, OffloadError> {
        let gso_type = self.gso_type;
        if gso_type == vnet_gso::NONE {
            return Ok(None);
        }
        let Some(upper) = header.upper_layer() else { return Err(OffloadError::NoTransport) };
        let unfit = OffloadError::UnfitGso { gso_type, version: H::VERSION.number(), protocol: upper.protocol };
        let wanted = match gso_type {
            vnet_gso::UDP_L4 => protocol::UDP,
            _ => match gso_type & !vnet_gso::ECN {
                tcp if tcp == H::TCP_GSO => protocol::TCP,
                vnet_gso::TCPV4 | vnet_gso::TCPV6 => return Err(unfit),
                vnet_gso::UDP if gso_type == vnet_gso::UDP => return Err(unfit),
                _ => return Err(OffloadError::UnknownGso { gso_type }),
            },
        };
        if upper.protocol != wanted {
            return Err(unfit);
        }
        if self.gso_size == 0 {
            return Err(OffloadError::GsoSizeZero);
        }
        let whole = Whole {
            header,
            upper,
            transport: bytes.get(usize::from(upper.offset)..).unwrap_or_default(),
            size: self.gso_size,
            has_partial_checksum: self.flags & vnet_flag::NEEDS_CSUM != 0,
        };
        let (offset, many) = if wanted == protocol::TCP {
            let tcp = TcpHeader::parse(whole.transport)?;
            (tcp_field::CHECKSUM, GsoPacket::tcp(&whole, &tcp))
        } else {
            let udp = UdpHeader::parse(whole.transport)?;
            (udp_field::CHECKSUM, GsoPacket::udp(&whole, &udp))
        };
        let misplaced = (self.csum_start, usize::from(self.csum_offset)) != (upper.offset, offset);
        if whole.has_partial_checksum && misplaced {
            return Err(OffloadError::ChecksumMisplaced {
                start: self.csum_start,
                offset: self.csum_offset,
                protocol: wanted,
                header: upper.offset.into(),
            });
        }
        Ok(Some(many))
    }
}

/// A transport checksum whose field holds the sum of the pseudo header and that must still cover the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartialChecksum {
    /// The offset of the covered bytes in the packet.
    start: u16,
    /// The offset of the checksum in the covered bytes.
    offset: u16,
    /// Bytes of the packet: 65,575 of IPv6 at most.
    end: u32,
}

impl PartialChecksum {
    /// Completes the checksum in the inspected packet, whose TTL or hop limit and IP checksum may have changed since.
    ///
    /// A UDP checksum of 0 is written as `0xFFFF`, because 0 means that there is none (RFC 768, RFC 8200 section 8.1). UDP
    /// is recognised by the offset of the checksum in the covered bytes, so this also works for UDP inside another tunnel.
    /// A packet shorter than the inspected one stays unchanged.
    #[inline]
    pub fn complete(&self, packet: &mut [u8]) {
        let Some(covered) = packet.get_mut(usize::from(self.start)..self.end as usize) else { return };
        let offset = usize::from(self.offset);
        let checksum = match checksum::checksum(covered) {
            0 if offset == udp_field::CHECKSUM => 0xffff,
            checksum => checksum,
        };
        if let Some(field) = covered.get_mut(offset..).and_then(<[u8]>::first_chunk_mut) {
            *field = checksum.to_be_bytes();
        }
    }
}
