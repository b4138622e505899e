//! Packets of either family.
//!
//! [`IpPacket`] is for the code that meets both families at run time. The traits are for the code that is compiled once
//! for each family.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::ipv4::{Ipv4Header, Ipv4Packet, Ipv4PacketMut};
use super::ipv6::{Ipv6Header, Ipv6Packet, Ipv6PacketMut};
use super::{Ecn, HeaderError, UpperLayer};

/// A checked packet of IPv4 or IPv6.
#[derive(Clone, Copy, Debug)]
pub enum IpPacket<'a> {
    /// An IPv4 packet.
    V4(Ipv4Packet<'a>),
    /// An IPv6 packet.
    V6(Ipv6Packet<'a>),
}

impl<'a> IpPacket<'a> {
    /// Parses the packet at the front of `bytes` and ignores the bytes after its length.
    ///
    /// # Errors
    /// The first failed check, see [`HeaderError`].
    #[inline]
    pub fn parse(bytes: &'a [u8]) -> Result<Self, HeaderError> {
        match bytes.first().map(|first| first >> 4) {
            Some(6) => Ipv6Packet::parse(bytes).map(Self::V6),
            Some(4) | None => Ipv4Packet::parse(bytes).map(Self::V4),
            Some(version) => match Ipv4Packet::parse(bytes).map(Self::V4) {
                Err(HeaderError::BadVersion { .. }) => Err(HeaderError::BadVersion { version, expected: "4 or 6" }),
                other => other,
            },
        }
    }

    /// Returns the whole packet.
    #[must_use]
    #[inline]
    pub fn as_bytes(&self) -> &'a [u8] {
        match self {
            Self::V4(packet) => packet.as_bytes(),
            Self::V6(packet) => packet.as_bytes(),
        }
    }

    /// Returns the source address.
    #[must_use]
    #[inline]
    pub fn source(&self) -> IpAddr {
        match self {
            Self::V4(packet) => packet.header().source().into(),
            Self::V6(packet) => packet.header().source().into(),
        }
    }

    /// Returns the destination address.
    #[must_use]
    #[inline]
    pub fn destination(&self) -> IpAddr {
        match self {
            Self::V4(packet) => packet.header().destination().into(),
            Self::V6(packet) => packet.header().destination().into(),
        }
    }

    /// Returns the hop limit, which IPv4 calls time to live.
    #[must_use]
    #[inline]
    pub fn hop_limit(&self) -> u8 {
        match self {
            Self::V4(packet) => packet.header().ttl(),
            Self::V6(packet) => packet.header().hop_limit(),
        }
    }

    /// Returns the ECN field (RFC 3168).
    #[must_use]
    #[inline]
    pub fn ecn(&self) -> Ecn {
        match self {
            Self::V4(packet) => packet.header().ecn(),
            Self::V6(packet) => packet.header().ecn(),
        }
    }

    /// Returns the upper layer. `None` if the extension headers of an IPv6 packet cannot be followed to it. IPv4 always
    /// has one.
    #[must_use]
    #[inline]
    pub fn upper_layer(&self) -> Option<UpperLayer> {
        match self {
            Self::V4(packet) => Some(packet.header().upper_layer()),
            Self::V6(packet) => packet.header().upper_layer(),
        }
    }
}

impl<'a> From<Ipv4Packet<'a>> for IpPacket<'a> {
    fn from(packet: Ipv4Packet<'a>) -> Self {
        Self::V4(packet)
    }
}

impl<'a> From<Ipv6Packet<'a>> for IpPacket<'a> {
    fn from(packet: Ipv6Packet<'a>) -> Self {
        Self::V6(packet)
    }
}

/// A checked header of one family.
pub(crate) trait IpHeader: Copy {
    /// The family's addresses.
    type Address: Copy + Eq + Into<IpAddr>;

    /// Reads the header of a packet that was checked before.
    fn read(packet: &[u8]) -> Option<Self>;
    fn source(&self) -> Self::Address;
    fn destination(&self) -> Self::Address;
    /// Hop limit of IPv6, time to live of IPv4.
    fn hop_limit(&self) -> u8;
    fn ecn(&self) -> Ecn;
    /// Bytes of the whole packet.
    fn packet_len(&self) -> usize;
    /// Bytes of the header, with IPv4 options and without extension headers.
    fn header_len(&self) -> usize;
    /// Source route of IPv4, routing header of type 0.
    fn has_source_route(&self) -> bool;
    fn upper_layer(&self) -> Option<UpperLayer>;
    /// The offset of the upper layer's header, if it is of this protocol and in this packet.
    fn offset_of(&self, protocol: u8) -> Option<usize>;
}

/// A checked packet of one family with a mutable hop limit and ECN field.
pub(crate) trait IpPacketMut<'a>: Sized {
    type Header: IpHeader;

    fn header(&self) -> &Self::Header;
    fn as_bytes(&self) -> &[u8];
    /// Not below 0.
    fn decrement_hop_limit(&mut self);
    fn set_ecn(&mut self, ecn: Ecn);
    fn into_bytes(self) -> &'a mut [u8];
}

impl IpHeader for Ipv4Header {
    type Address = Ipv4Addr;

    #[inline(always)]
    fn read(packet: &[u8]) -> Option<Self> {
        Self::read(packet)
    }

    #[inline(always)]
    fn source(&self) -> Ipv4Addr {
        self.source()
    }

    #[inline(always)]
    fn destination(&self) -> Ipv4Addr {
        self.destination()
    }

    #[inline(always)]
    fn hop_limit(&self) -> u8 {
        self.ttl()
    }

    #[inline(always)]
    fn ecn(&self) -> Ecn {
        self.ecn()
    }

    #[inline(always)]
    fn packet_len(&self) -> usize {
        self.total_len().into()
    }

    #[inline(always)]
    fn header_len(&self) -> usize {
        self.header_len()
    }

    #[inline(always)]
    fn has_source_route(&self) -> bool {
        self.has_source_route()
    }

    #[inline(always)]
    fn upper_layer(&self) -> Option<UpperLayer> {
        Some(self.upper_layer())
    }

    #[inline(always)]
    fn offset_of(&self, protocol: u8) -> Option<usize> {
        (self.protocol() == protocol && self.fragment_offset() == 0).then(|| self.header_len())
    }
}

impl IpHeader for Ipv6Header {
    type Address = Ipv6Addr;

    #[inline(always)]
    fn read(packet: &[u8]) -> Option<Self> {
        Self::parse(packet).ok()
    }

    #[inline(always)]
    fn source(&self) -> Ipv6Addr {
        self.source()
    }

    #[inline(always)]
    fn destination(&self) -> Ipv6Addr {
        self.destination()
    }

    #[inline(always)]
    fn hop_limit(&self) -> u8 {
        self.hop_limit()
    }

    #[inline(always)]
    fn ecn(&self) -> Ecn {
        self.ecn()
    }

    #[inline(always)]
    fn packet_len(&self) -> usize {
        self.total_len()
    }

    #[inline(always)]
    fn header_len(&self) -> usize {
        super::ipv6::HEADER_LEN
    }

    #[inline(always)]
    fn has_source_route(&self) -> bool {
        self.has_source_route()
    }

    #[inline(always)]
    fn upper_layer(&self) -> Option<UpperLayer> {
        self.upper_layer()
    }

    #[inline(always)]
    fn offset_of(&self, protocol: u8) -> Option<usize> {
        let upper = self.upper_layer()?;
        (upper.protocol == protocol && !upper.is_later_fragment()).then(|| upper.offset.into())
    }
}

impl<'a> IpPacketMut<'a> for Ipv4PacketMut<'a> {
    type Header = Ipv4Header;

    #[inline(always)]
    fn header(&self) -> &Ipv4Header {
        self.header()
    }

    #[inline(always)]
    fn as_bytes(&self) -> &[u8] {
        self.as_bytes()
    }

    #[inline(always)]
    fn decrement_hop_limit(&mut self) {
        self.decrement_ttl();
    }

    #[inline(always)]
    fn set_ecn(&mut self, ecn: Ecn) {
        self.set_ecn(ecn);
    }

    #[inline(always)]
    fn into_bytes(self) -> &'a mut [u8] {
        self.into_bytes()
    }
}

impl<'a> IpPacketMut<'a> for Ipv6PacketMut<'a> {
    type Header = Ipv6Header;

    #[inline(always)]
    fn header(&self) -> &Ipv6Header {
        self.header()
    }

    #[inline(always)]
    fn as_bytes(&self) -> &[u8] {
        self.as_bytes()
    }

    #[inline(always)]
    fn decrement_hop_limit(&mut self) {
        self.decrement_hop_limit();
    }

    #[inline(always)]
    fn set_ecn(&mut self, ecn: Ecn) {
        self.set_ecn(ecn);
    }

    #[inline(always)]
    fn into_bytes(self) -> &'a mut [u8] {
        self.into_bytes()
    }
}
