//! MTUs of inner packets, and the overhead between an inner and an outer packet.

use core::fmt;
use core::net::IpAddr;

/// An MTU of IPv4 packets in bytes: 68 to 65,535.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mtu(u16);

impl Mtu {
    /// The smallest MTU of an IPv4 path, 68 bytes (RFC 791 section 3.2).
    pub const MIN: Self = Self(68);
    /// The length of the longest IPv4 packet, 65,535 bytes.
    pub const MAX: Self = Self(u16::MAX);
    /// The inner MTU over an Ethernet (RFC 894) with an IPv4 underlay, as in flannel: 1472 bytes.
    pub(crate) const DEFAULT: Self = Self(Overhead::IPV4.inner(1500));
    /// The inner MTU over an Ethernet with an IPv6 underlay: 1452 bytes.
    pub(crate) const DEFAULT_OVER_IPV6: Self = Self(Overhead::IPV6.inner(1500));

    /// Creates an MTU.
    ///
    /// # Errors
    /// [`MtuError::TooSmall`] below [`Mtu::MIN`], [`MtuError::TooLarge`] above [`Mtu::MAX`].
    pub const fn new(mtu: u32) -> Result<Self, MtuError> {
        match mtu {
            ..68 => Err(MtuError::TooSmall { mtu }),
            68..=65_535 => Ok(Self(mtu as u16)),
            65_536.. => Err(MtuError::TooLarge { mtu }),
        }
    }

    /// Returns the MTU of the inner packets on an underlay with the MTU `outer`: [`Overhead::inner`], if it is an MTU.
    ///
    /// # Errors
    /// [`MtuError::UnderlayTooSmall`].
    pub const fn of_inner(outer: u32, overhead: Overhead) -> Result<Self, MtuError> {
        match overhead.inner(outer) {
            inner @ 68.. => Ok(Self(inner)),
            _ => Err(MtuError::UnderlayTooSmall { outer, overhead }),
        }
    }

    /// Returns the MTU in bytes.
    #[must_use]
    #[inline]
    pub const fn get(self) -> u16 {
        self.0
    }
}

impl fmt::Display for Mtu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl From<Mtu> for u16 {
    fn from(mtu: Mtu) -> Self {
        mtu.0
    }
}

impl From<Mtu> for u32 {
    fn from(mtu: Mtu) -> Self {
        mtu.0.into()
    }
}

/// The smallest MTU of an IPv6 path, in bytes (RFC 8200 section 5).
pub(crate) const IPV6_MTU_MIN: u16 = 1280;

/// The bytes that the tunnel adds to each inner packet: outer headers, and those of a
/// [`Framing`](crate::framing::Framing).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Overhead(u16);

impl Overhead {
    /// An IPv4 header without options (RFC 791) and a UDP header (RFC 768): 28 bytes.
    pub const IPV4: Self = Self(20 + 8);
    /// An IPv6 header without extensions (RFC 8200) and a UDP header (RFC 768): 48 bytes.
    pub const IPV6: Self = Self(40 + 8);

    /// Returns the overhead of datagrams to or from an underlay address.
    #[must_use]
    pub const fn of(underlay: IpAddr) -> Self {
        match underlay {
            IpAddr::V4(_) => Self::IPV4,
            IpAddr::V6(_) => Self::IPV6,
        }
    }

    /// Returns the overhead with `bytes` more, which a [`Framing`](crate::framing::Framing) adds to each packet.
    #[must_use]
    pub const fn and(self, bytes: u16) -> Self {
        Self(self.0.saturating_add(bytes))
    }

    /// Returns the overhead in bytes.
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0
    }

    /// Returns the length of the longest inner packet in an outer packet of `outer` bytes, or 0 if none fits.
    ///
    /// The length fields of IPv4 and UDP have 16 bits. So an MTU above 65,535, as that of a loopback interface, counts as
    /// 65,535.
    #[must_use]
    pub const fn inner(self, outer: u32) -> u16 {
        let outer = if outer > u16::MAX as u32 { u16::MAX } else { outer as u16 };
        outer.saturating_sub(self.0)
    }

    /// Returns the length of the outer packet with an inner packet of `inner` bytes.
    #[must_use]
    pub const fn outer(self, inner: usize) -> usize {
        inner.saturating_add(self.0 as usize)
    }
}

/// The reason why a number is not an MTU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MtuError {
    /// It exceeds the longest IPv4 packet.
    #[error("MTU {mtu} exceeds the IPv4 maximum of 65535; choose 65535 or less")]
    TooLarge {
        /// The number.
        mtu: u32,
    },
    /// It is below 68 bytes, which every IPv4 path carries (RFC 791).
    #[error("MTU {mtu} is below the IPv4 minimum of 68; choose 68 or more")]
    TooSmall {
        /// The number.
        mtu: u32,
    },
    /// The underlay leaves less than 68 bytes for an inner packet.
    #[error(
        "the underlay's MTU {outer} leaves {} bytes for an inner packet, below the IPv4 minimum of 68; choose {} or more",
        .overhead.inner(*.outer), .overhead.outer(68)
    )]
    UnderlayTooSmall {
        /// The MTU of the underlay.
        outer: u32,
        /// The bytes that the tunnel adds.
        overhead: Overhead,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_mtu_is_between_68_and_65535() {
        for (mtu, expected) in [
            (0, Err(MtuError::TooSmall { mtu: 0 })),
            (67, Err(MtuError::TooSmall { mtu: 67 })),
            (68, Ok(Mtu::MIN)),
            (1472, Ok(Mtu::DEFAULT)),
            (65_535, Ok(Mtu::MAX)),
            (65_536, Err(MtuError::TooLarge { mtu: 65_536 })),
            (u32::MAX, Err(MtuError::TooLarge { mtu: u32::MAX })),
        ] {
            assert_eq!(Mtu::new(mtu), expected);
        }
        assert_eq!((Mtu::MIN.get(), Mtu::MAX.get()), (68, 65_535));
    }

    #[test]
    fn an_outer_packet_leaves_room_for_an_inner_one() {
        for (outer, ipv4, ipv6) in [(1500, 1472, 1452), (68, 40, 20), (30, 2, 0), (0, 0, 0), (65_536, 65_507, 65_487)] {
            assert_eq!((Overhead::IPV4.inner(outer), Overhead::IPV6.inner(outer)), (ipv4, ipv6));
        }
        assert_eq!(Overhead::IPV4.inner(u32::MAX), 65_507);
        assert_eq!((Overhead::IPV4.and(16).get(), Overhead::IPV6.and(u16::MAX).get()), (44, u16::MAX));
        for overhead in [Overhead::IPV4, Overhead::IPV6] {
            assert_eq!(overhead.inner(u32::try_from(overhead.outer(1400)).unwrap()), 1400);
        }
    }

    #[test]
    fn a_narrow_underlay_has_no_inner_mtu() {
        assert_eq!(Mtu::of_inner(96, Overhead::IPV4), Ok(Mtu::MIN));
        assert_eq!(Mtu::of_inner(1500, Overhead::IPV6), Mtu::new(1452));
        let error = Mtu::of_inner(90, Overhead::IPV4).unwrap_err();
        assert_eq!(error, MtuError::UnderlayTooSmall { outer: 90, overhead: Overhead::IPV4 });
        let text = "the underlay's MTU 90 leaves 62 bytes for an inner packet, below the IPv4 minimum of 68; choose 96 or more";
        assert_eq!(error.to_string(), text);
    }
}
