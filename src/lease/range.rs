//! The subnets of a network that hosts may lease.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::host::special;

/// An overlay network divided into subnets of one length, and the range of subnets that may be leased.
///
/// A value is always valid: there are at least four subnets of at least four addresses each. The first and the last one
/// are aligned and inside the network.
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

/// The reason why a network cannot be divided like this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RangeError {
    /// A subnet begins at a multiple of its size.
    #[error("{end} {address} is inside of the /{subnet_len} that begins at {begin}; name where it begins")]
    Misaligned {
        /// The end of the range.
        end: RangeEnd,
        /// The address.
        address: IpAddr,
        /// The prefix length of the subnets in bits.
        subnet_len: u8,
        /// The first address of the subnet that contains it.
        begin: IpAddr,
    },
    /// The network does not hold four subnets of four addresses.
    #[error("network {network} is too small for four subnets; a prefix of at most /{most} is needed")]
    NetworkTooSmall {
        /// The network.
        network: IpNet,
        /// The longest prefix of a network that is large enough.
        most: u8,
    },
    /// An end of the range is outside the network.
    #[error("{end} {address} is outside of the network {network}")]
    Outside {
        /// The end of the range.
        end: RangeEnd,
        /// The address.
        address: IpAddr,
        /// The network.
        network: IpNet,
    },
    /// The range is empty.
    #[error("SubnetMin {first} comes after SubnetMax {last}")]
    Reversed {
        /// The first subnet's address.
        first: IpAddr,
        /// The last subnet's address.
        last: IpAddr,
    },
    /// Routers do not forward packets of these addresses, unless the whole network is inside 240/4 or 169.254/16.
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
    /// The subnets have less than four addresses. A bridge and a TUN device need addresses too.
    #[error("a SubnetLen of {subnet_len} leaves less than four addresses; it can be at most {most}")]
    SubnetTooLong {
        /// The length in bits.
        subnet_len: u8,
        /// The maximum.
        most: u8,
    },
    /// The network has less than four subnets. The first subnet is not leased, so two would leave one.
    #[error("a SubnetLen of {subnet_len} leaves less than four subnets in {network}; it must be at least {least}")]
    SubnetTooShort {
        /// The length in bits.
        subnet_len: u8,
        /// The network.
        network: IpNet,
        /// The minimum.
        least: u8,
    },
}

impl SubnetRange {
    /// Divides a network into subnets with prefixes of `subnet_len` bits. The subnets that begin from `first` to `last`
    /// may be leased.
    ///
    /// The default of `subnet_len` is 24 (IPv6: 64), or a quarter of the network if it does not hold four such subnets.
    /// The default of `first` is the second subnet, since the first one contains the network's own address. The default
    /// of `last` is the last subnet.
    ///
    /// # Errors
    /// The first [`RangeError`], by the rules of flannel's `CheckNetworkConfig`, and [`RangeError::Special`].
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

    /// Returns the whole network.
    #[must_use]
    pub fn network(&self) -> IpNet {
        self.network
    }

    /// Returns the prefix length of every subnet, in bits.
    #[must_use]
    pub fn subnet_len(&self) -> u8 {
        self.subnet_len
    }

    /// Returns the first address of the first subnet that may be leased.
    #[must_use]
    pub fn first(&self) -> IpAddr {
        self.first
    }

    /// Returns the first address of the last subnet that may be leased.
    #[must_use]
    pub fn last(&self) -> IpAddr {
        self.last
    }

    /// Returns true if a host may lease this subnet. Host bits are ignored.
    #[must_use]
    pub fn contains(&self, subnet: IpNet) -> bool {
        let begin = subnet.network();
        let same_family = begin.is_ipv4() == self.first.is_ipv4();
        same_family && subnet.prefix_len() == self.subnet_len && (self.first..=self.last).contains(&begin)
    }

    /// Returns the first addresses of the first and the last subnet, and the number of addresses per subnet.
    pub(super) fn bounds(&self) -> (u128, u128, u128) {
        let size = 1u128 << (self.network.max_prefix_len() - self.subnet_len);
        (bits(self.first), bits(self.last), size)
    }

    /// Returns the subnet that begins at this address.
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

/// Returns an address of the network's family. An IPv4 address has no more than 32 bits.
fn from_bits(bits: u128, network: IpNet) -> IpAddr {
    match network {
        IpNet::V4(_) => Ipv4Addr::from_bits(bits as u32).into(),
        IpNet::V6(_) => Ipv6Addr::from_bits(bits).into(),
    }
}
