//! IPv6 packets that are checked when they are parsed (RFC 8200).
//!
//! Every [`Ipv6Packet`] comes from [`Ipv6Packet::parse`], so its version and length are valid, and its extension
//! headers are walked. The fixed header is stored by value, so no accessor can fail. IPv6 has no header checksum.

use core::net::Ipv6Addr;

use super::upper_layer::{Chain, UpperLayer, is_extension};
use super::{Ecn, HeaderError};

/// Bytes of a header without extension headers.
pub const HEADER_LEN: usize = 40;

pub(super) mod field {
    /// The low half of the traffic class, and the high part of the flow label.
    pub(crate) const CLASS_LOW: usize = 1;
    pub(crate) const HOP_LIMIT: usize = 7;
}

/// The next header field of a packet with hop-by-hop options.
const HOP_BY_HOP: u8 = 0;

/// The checked header of an IPv6 packet, as numbers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Ipv6Header {
    /// Version, traffic class, flow label, payload length, next header and hop limit.
    fixed: u64,
    source: Ipv6Addr,
    destination: Ipv6Addr,
    chain: Chain,
}

impl Ipv6Header {
    /// Checks a header at the front of `bytes`, in the order of [`HeaderError`], and walks the extension headers.
    #[inline(always)]
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, HeaderError> {
        let have = bytes.len();
        let Some((fixed, addresses)) = bytes.split_first_chunk() else {
            return Err(HeaderError::TooShort { have, need: HEADER_LEN });
        };
        let Some(&[source, destination]) = addresses.as_chunks::<16>().0.first_chunk() else {
            return Err(HeaderError::TooShort { have, need: HEADER_LEN });
        };
        let (fixed, source, destination) =
            (u64::from_be_bytes(*fixed), Ipv6Addr::from(source), Ipv6Addr::from(destination));
        let next = (fixed >> 8) as u8;
        let header = Self { fixed, source, destination, chain: Chain::plain(next) };
        let version = (fixed >> 60) as u8;
        if version != 6 {
            return Err(HeaderError::BadVersion { version, expected: "6" });
        }
        let total = header.total_len();
        let Some(packet) = bytes.get(..total) else { return Err(HeaderError::Truncated { total, have }) };
        if !is_extension(next) {
            return Ok(header);
        }
        if next == HOP_BY_HOP && header.payload_len() == 0 {
            return Err(HeaderError::Jumbogram { have });
        }
        Ok(Self { chain: Chain::walk(packet, next), ..header })
    }

    /// Returns the traffic class, which holds DSCP and ECN (RFC 2474, RFC 3168).
    #[must_use]
    #[inline]
    pub fn traffic_class(&self) -> u8 {
        (self.fixed >> 52) as u8
    }

    /// Returns the ECN field (RFC 3168).
    #[must_use]
    #[inline]
    pub fn ecn(&self) -> Ecn {
        Ecn::of(self.traffic_class())
    }

    /// Returns the flow label, 20 bits (RFC 6437). 0 means that the sender set none.
    #[must_use]
    #[inline]
    pub fn flow_label(&self) -> u32 {
        (self.fixed >> 32) as u32 & 0x000f_ffff
    }

    /// Returns the bytes after the fixed header, extension headers included.
    #[must_use]
    #[inline]
    pub fn payload_len(&self) -> u16 {
        (self.fixed >> 16) as u16
    }

    /// Returns the length of the packet in bytes, header included: 40 to 65,575.
    #[must_use]
    #[inline]
    pub fn total_len(&self) -> usize {
        HEADER_LEN + usize::from(self.payload_len())
    }

    /// Returns the protocol of the first extension header, or of the payload if there is none.
    #[must_use]
    #[inline]
    pub fn next_header(&self) -> u8 {
        (self.fixed >> 8) as u8
    }

    /// Returns the hop limit.
    #[must_use]
    #[inline]
    pub fn hop_limit(&self) -> u8 {
        self.fixed as u8
    }

    /// Returns the source address.
    #[must_use]
    #[inline]
    pub fn source(&self) -> Ipv6Addr {
        self.source
    }

    /// Returns the destination address.
    #[must_use]
    #[inline]
    pub fn destination(&self) -> Ipv6Addr {
        self.destination
    }

    /// Returns the upper layer after the extension headers. `None` if one of them does not fit into the packet, or if
    /// there are more than [`EXTENSIONS_MAX`](super::EXTENSIONS_MAX).
    #[must_use]
    #[inline]
    pub fn upper_layer(&self) -> Option<UpperLayer> {
        self.chain.upper_layer()
    }

    /// Returns true if a routing header of type 0 is among the extension headers (RFC 5095).
    #[must_use]
    #[inline]
    pub fn has_source_route(&self) -> bool {
        self.chain.has_source_route()
    }
}

impl core::fmt::Debug for Ipv6Header {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Ipv6Header")
            .field("source", &self.source())
            .field("destination", &self.destination())
            .field("next_header", &self.next_header())
            .field("hop_limit", &self.hop_limit())
            .field("total_len", &self.total_len())
            .finish_non_exhaustive()
    }
}

/// A checked IPv6 packet of exactly its length, without trailing bytes.
#[derive(Clone, Copy, Debug)]
pub struct Ipv6Packet<'a> {
    header: Ipv6Header,
    bytes: &'a [u8],
}

impl<'a> Ipv6Packet<'a> {
    /// Parses the packet at the front of `bytes` and ignores the bytes after its length.
    ///
    /// # Errors
    /// The first failed check, see [`HeaderError`].
    #[inline]
    pub fn parse(bytes: &'a [u8]) -> Result<Self, HeaderError> {
        let header = Ipv6Header::parse(bytes)?;
        let total = header.total_len();
        match bytes.get(..total) {
            Some(bytes) => Ok(Self { header, bytes }),
            None => Err(HeaderError::Truncated { total, have: bytes.len() }),
        }
    }

    /// Returns the checked header.
    #[must_use]
    #[inline]
    pub fn header(&self) -> &Ipv6Header {
        &self.header
    }

    /// Returns the whole packet.
    #[must_use]
    #[inline]
    pub fn as_bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Returns the bytes after the fixed header, extension headers included.
    #[must_use]
    #[inline]
    pub fn payload(&self) -> &'a [u8] {
        self.bytes.get(HEADER_LEN..).unwrap_or_default()
    }
}

/// A checked IPv6 packet with a mutable hop limit and ECN field.
#[derive(Debug)]
pub struct Ipv6PacketMut<'a> {
    header: Ipv6Header,
    bytes: &'a mut [u8],
}

impl<'a> Ipv6PacketMut<'a> {
    /// Parses the packet at the front of `bytes` and ignores the bytes after its length.
    ///
    /// # Errors
    /// The first failed check, see [`HeaderError`].
    #[inline(always)]
    pub fn parse(bytes: &'a mut [u8]) -> Result<Self, HeaderError> {
        let header = Ipv6Header::parse(bytes)?;
        let (total, have) = (header.total_len(), bytes.len());
        match bytes.get_mut(..total) {
            Some(bytes) => Ok(Self { header, bytes }),
            None => Err(HeaderError::Truncated { total, have }),
        }
    }

    /// Combines bytes with their checked header.
    #[inline(always)]
    pub(crate) fn new(header: Ipv6Header, bytes: &'a mut [u8]) -> Self {
        Self { header, bytes: bytes.get_mut(..header.total_len()).unwrap_or_default() }
    }

    /// Returns the checked header in its current state.
    #[must_use]
    #[inline]
    pub fn header(&self) -> &Ipv6Header {
        &self.header
    }

    /// Returns the whole packet.
    #[must_use]
    #[inline]
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes
    }

    /// Returns the bytes after the fixed header, extension headers included.
    #[must_use]
    #[inline]
    pub fn payload(&self) -> &[u8] {
        self.bytes.get(HEADER_LEN..).unwrap_or_default()
    }

    /// Writes the hop limit. Every other byte stays.
    #[inline(always)]
    pub fn set_hop_limit(&mut self, hop_limit: u8) {
        self.header.fixed = self.header.fixed & !0xff | u64::from(hop_limit);
        if let Some(fixed) = self.bytes.first_chunk_mut::<HEADER_LEN>() {
            fixed[field::HOP_LIMIT] = hop_limit;
        }
    }

    /// Decrements the hop limit, but not below 0.
    #[inline(always)]
    pub fn decrement_hop_limit(&mut self) {
        self.set_hop_limit(self.header.hop_limit().saturating_sub(1));
    }

    /// Writes the ECN field. Every other bit stays.
    #[cold]
    pub fn set_ecn(&mut self, ecn: Ecn) {
        const SHIFT: u32 = 52;
        let fixed = self.header.fixed & !(u64::from(Ecn::MASK) << SHIFT) | u64::from(ecn.bits()) << SHIFT;
        self.header.fixed = fixed;
        if let Some(byte) = self.bytes.get_mut(field::CLASS_LOW) {
            *byte = (fixed >> 48) as u8;
        }
    }

    /// Returns the packet as an immutable one.
    #[must_use]
    #[inline]
    pub fn freeze(self) -> Ipv6Packet<'a> {
        Ipv6Packet { header: self.header, bytes: self.bytes }
    }

    /// Returns the bytes of the whole packet.
    #[must_use]
    #[inline]
    pub fn into_bytes(self) -> &'a mut [u8] {
        self.bytes
    }
}
