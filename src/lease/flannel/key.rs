//! The keys of leases: `100.96.1.0-24`, or `100.96.1.0-24&fd00:1::-64`.

use alloc::string::{String, ToString};
use core::fmt;
use core::str::FromStr;

use ipnet::{Ipv4Net, Ipv6Net};

use super::shown;

/// The name of a lease in etcd, without `<prefix>/subnets/`.
///
/// Each key has exactly one spelling, the one that flannel writes. So two different keys are never parsed as the same
/// lease, and deleting one does not affect the other. Host bits are kept for the same reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseKey {
    /// The subnet.
    pub ipv4: Ipv4Net,
    /// The IPv6 subnet of a dual-stack network.
    pub ipv6: Option<Ipv6Net>,
}

/// The reason why a key is not a lease's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LeaseKeyError {
    /// Not an IPv4 subnet.
    #[error("{part:?} is not an IPv4 subnet in the form 100.96.1.0-24")]
    Ipv4 {
        /// The part of the key, shortened if it is long.
        part: String,
    },
    /// Not an IPv6 subnet.
    #[error("{part:?} is not an IPv6 subnet in the form fd00:1::-64")]
    Ipv6 {
        /// The part of the key, shortened if it is long.
        part: String,
    },
    /// The key is readable, but has another spelling than flannel's.
    #[error("the key is spelled differently from flannel's {spelling:?}; write it like that")]
    Spelling {
        /// flannel's spelling.
        spelling: String,
    },
}

impl FromStr for LeaseKey {
    type Err = LeaseKeyError;

    fn from_str(key: &str) -> Result<Self, LeaseKeyError> {
        let (ipv4, ipv6) = key.split_once('&').map_or((key, None), |(ipv4, ipv6)| (ipv4, Some(ipv6)));
        let ipv4 = subnet(ipv4, Ipv4Net::new).ok_or_else(|| LeaseKeyError::Ipv4 { part: shown(ipv4) })?;
        let ipv6 = match ipv6 {
            Some(part) => Some(subnet(part, Ipv6Net::new).ok_or_else(|| LeaseKeyError::Ipv6 { part: shown(part) })?),
            None => None,
        };
        let read = Self { ipv4, ipv6 };
        let spelling = read.to_string();
        if spelling == key { Ok(read) } else { Err(LeaseKeyError::Spelling { spelling }) }
    }
}

impl fmt::Display for LeaseKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.ipv4.addr(), self.ipv4.prefix_len())?;
        match self.ipv6 {
            Some(ipv6) => write!(f, "&{}-{}", ipv6.addr(), ipv6.prefix_len()),
            None => Ok(()),
        }
    }
}

impl From<Ipv4Net> for LeaseKey {
    fn from(subnet: Ipv4Net) -> Self {
        Self { ipv4: subnet.trunc(), ipv6: None }
    }
}

fn subnet<A: FromStr, N, E>(part: &str, new: impl Fn(A, u8) -> Result<N, E>) -> Option<N> {
    let (address, len) = part.split_once('-')?;
    new(address.parse().ok()?, len.parse().ok()?).ok()
}
