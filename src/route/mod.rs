//! Which host owns which subnet: routes in, longest prefix match out.
//!
//! A [`RouteTable`] is a value that never changes. [`RoutePublisher`] makes the next one from the last, sharing every part
//! that did not change, and hands it to workers that are running.

mod fib;
mod next_hops;
#[cfg(feature = "std")]
mod publish;
mod rib;
pub(crate) mod special;
mod table;

use core::net::{IpAddr, Ipv4Addr, SocketAddr};

use ipnet::IpNet;

use crate::wire::ipv4::MTU_MIN;

#[cfg(feature = "std")]
pub use publish::{RoutePublisher, RouteReader};
pub use table::{Applied, RouteTable};

/// A subnet and the host that owns it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Route {
    /// Destinations inside this go to the next hop. Host bits do not matter: a table holds the network they are in.
    pub subnet: IpNet,
    /// Underlay address and port of the owner.
    pub next_hop: SocketAddr,
    /// The longest inner packet in bytes that the path to the owner carries, where that is less than the overlay's.
    pub mtu: Option<u16>,
}

impl Route {
    /// A route whose path is as wide as the overlay's.
    #[must_use]
    pub fn new(subnet: impl Into<IpNet>, next_hop: impl Into<SocketAddr>) -> Self {
        Self { subnet: subnet.into(), next_hop: next_hop.into(), mtu: None }
    }

    /// The route as a table holds it: host bits cleared, an IPv4 address never dressed as an IPv6 one.
    fn normalised(self) -> Self {
        let next_hop = SocketAddr::new(self.next_hop.ip().to_canonical(), self.next_hop.port());
        Self { subnet: self.subnet.trunc(), next_hop, mtu: self.mtu }
    }
}

impl core::fmt::Display for Route {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{} via {}", self.subnet, self.next_hop)
    }
}

/// The part of a route that a lookup answers with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub struct NextHop {
    /// Underlay address and port of the host that owns the subnet.
    pub address: SocketAddr,
    /// The longest inner packet in bytes that the path carries, where that is less than the overlay's.
    pub mtu: Option<u16>,
}

/// One change to a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RouteChange {
    /// Removes the route of exactly this subnet; nothing happens if there is none.
    Delete(IpNet),
    /// Adds a route, or replaces the one of exactly the same subnet.
    Set(Route),
}

impl RouteChange {
    /// The subnet whose route it changes, host bits cleared.
    #[must_use]
    pub fn subnet(&self) -> IpNet {
        match self {
            Self::Delete(subnet) => subnet.trunc(),
            Self::Set(route) => route.subnet.trunc(),
        }
    }
}

/// A route that was not taken into the table, and why. The others of its batch were.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("route {route} is refused: {reason}")]
pub struct RefusedRoute {
    /// The route as it was given.
    pub route: Route,
    /// What is wrong with it.
    pub reason: RouteError,
}

/// What is wrong with a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RouteError {
    /// 255.255.255.255 is no single host.
    #[error("the next hop is the broadcast address; name the one host that owns the subnet")]
    BroadcastNextHop,
    /// The overlay carries IPv4 only so far.
    #[error("the subnet is IPv6, which the overlay does not carry yet")]
    Ipv6Subnet,
    /// Below 68 bytes, which every IPv4 path carries (RFC 791).
    #[error("a path MTU of {mtu} is below 68, the least that every IPv4 path carries")]
    MtuTooSmall {
        /// The MTU that was given.
        mtu: u16,
    },
    /// A group is no single host.
    #[error("the next hop is a multicast address; name the one host that owns the subnet")]
    MulticastNextHop,
    /// Packets would come straight back to us.
    #[error("the next hop is the very address and port this host is bound to")]
    OwnAddress,
    /// Packets for our own subnet never leave this host.
    #[error("the subnet is this host's own, whose packets stay here")]
    OwnSubnet,
    /// 0.0.0.0 or :: is no host.
    #[error("the next hop is the unspecified address; name the host that owns the subnet")]
    UnspecifiedNextHop,
    /// There is no UDP port 0.
    #[error("the next hop's port is 0; flannel's default is 8285")]
    ZeroPort,
}

/// What must not be in a table on this host, where that is known.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Own {
    /// The address and port it is bound to.
    address: Option<SocketAddr>,
    subnet: Option<IpNet>,
}

#[cfg(feature = "sim")]
impl Own {
    pub(crate) fn new(address: SocketAddr, subnet: IpNet) -> Self {
        let address = SocketAddr::new(address.ip().to_canonical(), address.port());
        Self { address: Some(address), subnet: Some(subnet.trunc()) }
    }
}

/// R20, R63, and our own subnet.
pub(crate) fn check(route: &Route, own: &Own) -> Result<(), RouteError> {
    let address = route.next_hop.ip();
    let broadcast = address == IpAddr::V4(Ipv4Addr::BROADCAST);
    match route.mtu {
        _ if route.subnet.addr().is_ipv6() => Err(RouteError::Ipv6Subnet),
        _ if address.is_unspecified() => Err(RouteError::UnspecifiedNextHop),
        _ if address.is_multicast() => Err(RouteError::MulticastNextHop),
        _ if broadcast => Err(RouteError::BroadcastNextHop),
        _ if route.next_hop.port() == 0 => Err(RouteError::ZeroPort),
        _ if Some(route.next_hop) == own.address => Err(RouteError::OwnAddress),
        _ if Some(route.subnet) == own.subnet => Err(RouteError::OwnSubnet),
        Some(mtu) if mtu < MTU_MIN => Err(RouteError::MtuTooSmall { mtu }),
        _ => Ok(()),
    }
}

/// Whether less than a quarter of what these blocks have room for is in use. The first few do not count, so that a small table
/// is never made anew for the sake of little; nor is a large one soon again, for as many routes have to come and go before.
fn is_sparse(blocks: usize, places_per_block: usize, in_use: usize) -> bool {
    const FEW: usize = 4;
    in_use < blocks.saturating_sub(FEW) * places_per_block / 4
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sparse_is_less_than_a_quarter_of_all_but_the_first_few_blocks() {
        for (blocks, least) in [(0, 0), (4, 0), (5, 16), (8, 64), (104, 1600)] {
            assert!(!is_sparse(blocks, 64, least), "{least} places in {blocks} blocks");
            assert!(least == 0 || is_sparse(blocks, 64, least - 1), "one less than {least} in {blocks} blocks");
        }
    }
}
