//! The subnets of a network that hosts may lease.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::route::special;

/// An overlay network cut into subnets of one length, and which of them may be leased.
///
/// A value of this type is checked: at least four subnets, of at least four addresses each, the first and the last one
/// aligned and inside the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SubnetRange {
    network: IpNet,
    subnet_len: u8,
    first: IpAddr,
    last: IpAddr,
}

/// One end of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RangeEnd {
    /// `SubnetMin`.
    First,
    /// `SubnetMax`.
    Last,
}

/// Why a network cannot be cut like this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RangeError {
    /// A subnet begins at a multiple of its size.
    #[error("{end} {address} is inside of the /{subnet_len} that begins at {begin}; name where it begins")]
    Misaligned {
        /// Which end.
        end: RangeEnd,
        /// The address given.
        address: IpAddr,
        /// Length of the subnets' prefixes in bits.
        subnet_len: u8,
        /// First address of the subnet that it is in.
        begin: IpAddr,
    },
    /// Not even four subnets of four addresses.
    #[error("network {network} is too small for four subnets; a prefix of at most /{most} is needed")]
    NetworkTooSmall {
        /// The network.
        network: IpNet,
        /// The longest prefix of a network that is large enough.
        most: u8,
    },
    /// Hosts can lease parts of the network only.
    #[error("{end} {address} is outside of the network {network}")]
    Outside {
        /// Which end.
        end: RangeEnd,
        /// The address given.
        address: IpAddr,
        /// The network.
        network: IpNet,
    },
    /// There is nothing in between.
    #[error("SubnetMin {first} comes after SubnetMax {last}")]
    Reversed {
        /// The first subnet's address.
        first: IpAddr,
        /// The last subnet's address.
        last: IpAddr,
    },
    /// Routers carry no packets of these addresses. A network that is inside 240/4 or 169.254/16 as a whole is carried.
    #[error(
        "the subnets from {first} to {last} are in {range}, whose addresses are not carried; choose another network"
    )]
    Special {
        /// The first subnet's address.
        first: IpAddr,
        /// The last subnet's address.
        last: IpAddr,
        /// The range.
        range: IpNet,
    },
    /// A bridge and a TUN device need addresses too.
    #[error("a SubnetLen of {subnet_len} leaves less than four addresses; it can be at most {most}")]
    SubnetTooLong {
        /// The length given, in bits.
        subnet_len: u8,
        /// The longest there can be.
        most: u8,
    },
    /// The first subnet is not used, so that of two there would be one.
    #[error("a SubnetLen of {subnet_len} leaves less than four subnets in {network}; it must be at least {least}")]
    SubnetTooShort {
        /// The length given, in bits.
        subnet_len: u8,
        /// The network.
        network: IpNet,
        /// The shortest there can be.
        least: u8,
    },
}

impl SubnetRange {
    /// A network cut into subnets with prefixes of `subnet_len` bits, to be leased from the one that begins at `first` to
    /// the one that begins at `last`.
    ///
    /// Without `subnet_len` it is 24 (IPv6: 64) if there are four such subnets, else the network is cut into four. Without
    /// `first` it is the second subnet, since the first begins with the network's own address; without `last` the last.
    ///
    /// # Errors
    /// The first [`RangeError`], by the rules of flannel's `CheckNetworkConfig`; beyond them, [`RangeError::Special`].
    pub fn new(
        network: impl Into<IpNet>,
        subnet_len: Option<u8>,
        first: Option<IpAddr>,
        last: Option<IpAddr>,
    ) -> Result<Self, RangeError> {
        let network = network.into().trunc();
        let (usual, most) = match network {
            IpNet::V4(_) => (24, 30),
            IpNet::V6(_) => (64, 126),
        };
        let least = network.prefix_len() + 2;
        let subnet_len = match subnet_len {
            Some(subnet_len) if subnet_len > most => return Err(RangeError::SubnetTooLong { subnet_len, most }),
            Some(subnet_len) if subnet_len < least => {
                return Err(RangeError::SubnetTooShort { subnet_len, network, least });
            }
            Some(subnet_len) => subnet_len,
            None if least > most => return Err(RangeError::NetworkTooSmall { network, most: most - 2 }),
            None => usual.max(least),
        };
        let size = 1u128 << (network.max_prefix_len() - subnet_len);
        let default = |bits| from_bits(bits, network);
        let first = first.unwrap_or_else(|| default(bits(network.network()) + size));
        let last = last.unwrap_or_else(|| default(bits(network.broadcast()) - (size - 1)));
        let range = Self { network, subnet_len, first, last };
        range.check(RangeEnd::First, first)?;
        range.check(RangeEnd::Last, last)?;
        if first > last {
            return Err(RangeError::Reversed { first, last });
        }
        match special::range_of(first, from_bits(bits(last) + (size - 1), network), network) {
            Some(range) => Err(RangeError::Special { first, last, range }),
            None => Ok(range),
        }
    }

    /// The whole network.
    #[must_use]
    pub fn network(&self) -> IpNet {
        self.network
    }

    /// Length of every subnet's prefix, in bits.
    #[must_use]
    pub fn subnet_len(&self) -> u8 {
        self.subnet_len
    }

    /// Where the first subnet that may be leased begins.
    #[must_use]
    pub fn first(&self) -> IpAddr {
        self.first
    }

    /// Where the last subnet that may be leased begins.
    #[must_use]
    pub fn last(&self) -> IpAddr {
        self.last
    }

    /// Whether a host may lease this subnet. Host bits do not matter.
    #[must_use]
    pub fn contains(&self, subnet: IpNet) -> bool {
        let begin = subnet.network();
        let same_family = begin.is_ipv4() == self.first.is_ipv4();
        same_family && subnet.prefix_len() == self.subnet_len && (self.first..=self.last).contains(&begin)
    }

    /// First addresses of the first and the last subnet, and addresses in one.
    pub(super) fn bounds(&self) -> (u128, u128, u128) {
        let size = 1u128 << (self.network.max_prefix_len() - self.subnet_len);
        (bits(self.first), bits(self.last), size)
    }

    /// The subnet that begins at this address.
    pub(super) fn subnet(&self, begin: u128) -> Option<IpNet> {
        IpNet::new(from_bits(begin, self.network), self.subnet_len).ok()
    }

    fn check(&self, end: RangeEnd, address: IpAddr) -> Result<(), RangeError> {
        let Self { network, subnet_len, .. } = *self;
        if !network.contains(&address) {
            return Err(RangeError::Outside { end, address, network });
        }
        match IpNet::new(address, subnet_len) {
            Ok(subnet) if subnet.network() != address => {
                Err(RangeError::Misaligned { end, address, subnet_len, begin: subnet.network() })
            }
            Ok(_) | Err(_) => Ok(()),
        }
    }
}

impl core::fmt::Display for RangeEnd {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::First => "SubnetMin",
            Self::Last => "SubnetMax",
        })
    }
}

pub(super) fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_bits().into(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// An address of the network's family. Those of IPv4 have no more than 32 bits.
fn from_bits(bits: u128, network: IpNet) -> IpAddr {
    match network {
        IpNet::V4(_) => Ipv4Addr::from_bits(bits as u32).into(),
        IpNet::V6(_) => Ipv6Addr::from_bits(bits).into(),
    }
}
