//! Route tables: the host that owns each subnet, by longest prefix match.
//!
//! A [`RouteTable`] is immutable. [`RoutePublisher`] builds the next table from the current one, shares every unchanged
//! part, and publishes it to running workers.

mod fib;
mod next_hops;
#[cfg(feature = "std")]
mod publish;
mod rib;
mod table;

use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};

use ipnet::IpNet;

use crate::host::{IPV6_MTU_MIN, Mtu};

#[cfg(feature = "std")]
pub use publish::{RoutePublisher, RouteReader};
pub use table::{Applied, RouteTable};

/// A subnet and the host that owns it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Route {
    /// Packets to addresses in this subnet go to the next hop. Host bits are cleared.
    pub subnet: IpNet,
    /// The underlay address and port of the owner.
    pub next_hop: SocketAddr,
    /// The MTU of the path to the owner, in bytes of inner packet, if it is less than the overlay's.
    pub mtu: Option<Mtu>,
}

impl Route {
    /// Creates a route whose path MTU is the overlay's.
    #[must_use]
    pub fn new(subnet: impl Into<IpNet>, next_hop: impl Into<SocketAddr>) -> Self {
        Self { subnet: subnet.into(), next_hop: next_hop.into(), mtu: None }
    }

    /// Sets the subnet.
    #[must_use]
    pub fn with_subnet(self, subnet: impl Into<IpNet>) -> Self {
        Self { subnet: subnet.into(), ..self }
    }

    /// Sets the underlay address and port of the owner.
    #[must_use]
    pub fn with_next_hop(self, next_hop: impl Into<SocketAddr>) -> Self {
        Self { next_hop: next_hop.into(), ..self }
    }

    /// Sets the MTU of the path to the owner; `None` for that of the overlay.
    #[must_use]
    pub fn with_mtu(self, mtu: impl Into<Option<Mtu>>) -> Self {
        Self { mtu: mtu.into(), ..self }
    }

    /// Returns the route as a table stores it: host bits cleared, and the next hop in its canonical form.
    fn normalised(self) -> Self {
        Self { subnet: self.subnet.trunc(), next_hop: canonical(self.next_hop), mtu: self.mtu }
    }
}

impl core::fmt::Display for Route {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{} via {}", self.subnet, self.next_hop)
    }
}

/// The result of a lookup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub struct NextHop {
    /// The underlay address and port of the host that owns the subnet.
    pub address: SocketAddr,
    /// The MTU of the path, in bytes of inner packet, if it is less than the overlay's.
    pub mtu: Option<Mtu>,
}

/// Returns the form of an underlay address in which tables compare it: an IPv4-mapped IPv6 address as IPv4, without a
/// flow label, and with a scope if it is link-local only. Linux sets no scope for others (RFC 4007 section 6).
#[inline]
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    let SocketAddr::V6(v6) = address else { return address };
    match v6.ip().to_canonical() {
        IpAddr::V6(ip) if ip.is_unicast_link_local() => SocketAddrV6::new(ip, v6.port(), 0, v6.scope_id()).into(),
        ip @ (IpAddr::V4(_) | IpAddr::V6(_)) => SocketAddr::new(ip, v6.port()),
    }
}

/// One change to a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RouteChange {
    /// Removes the route of exactly this subnet. It is no error if there is none.
    Delete(IpNet),
    /// Adds a route, or replaces the route of exactly the same subnet.
    Set(Route),
}

impl RouteChange {
    /// Returns the subnet whose route changes, host bits cleared.
    #[must_use]
    pub fn subnet(&self) -> IpNet {
        match self {
            Self::Delete(subnet) => subnet.trunc(),
            Self::Set(route) => route.subnet.trunc(),
        }
    }
}

/// A route that the table refused, and the reason. Other changes of the batch are applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("route {route} is refused: {reason}")]
pub struct RefusedRoute {
    /// The route as the caller passed it.
    pub route: Route,
    /// The reason.
    pub reason: RouteError,
}

/// The reason why a table refuses a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RouteError {
    /// 255.255.255.255 is not a single host.
    #[error("the next hop is the broadcast address; name the one host that owns the subnet")]
    BroadcastNextHop,
    /// This host has no subnet of that IP family, so that no packet would take the route.
    #[error("the subnet is of an IP family that this host does not carry; name a network and a subnet of it first")]
    FamilyNotCarried,
    /// A link-local address is a host on one link only, which the scope id names (RFC 4007).
    #[error("the next hop is link-local without a scope id; name the interface, as in [fe80::1%2]:8285")]
    LinkLocalNextHop,
    /// An IPv6 path of less than 1280 bytes carries no IPv6 (RFC 8200 section 5).
    #[error("a path MTU of {mtu} is below 1280, the minimum of IPv6; choose 1280 or more, or route IPv4 only")]
    MtuBelowIpv6 {
        /// The MTU of the route.
        mtu: Mtu,
    },
    /// A multicast address is not a single host.
    #[error("the next hop is a multicast address; name the one host that owns the subnet")]
    MulticastNextHop,
    /// Packets would return to this host.
    #[error("the next hop is the address and port that this host is bound to; name another host")]
    OwnAddress,
    /// Packets to this host's own subnet never leave the host.
    #[error("the subnet is this host's own; it needs no route")]
    OwnSubnet,
    /// 0.0.0.0 and :: are not hosts.
    #[error("the next hop is the unspecified address; name the host that owns the subnet")]
    UnspecifiedNextHop,
    /// UDP has no port 0.
    #[error("the next hop's port is 0; flannel's default is 8285")]
    ZeroPort,
}

/// The routes that no table on this host may have, as far as they are known.
#[derive(Clone, Debug, Default)]
pub(crate) struct Own {
    /// The addresses and ports that this host is bound to.
    addresses: Vec<SocketAddr>,
    subnets: Vec<IpNet>,
}

#[cfg(any(feature = "sim", feature = "std"))]
impl Own {
    pub(crate) fn new(host: &crate::Host) -> Self {
        let addresses = host.underlays().iter().map(|underlay| canonical(*underlay)).collect();
        Self { addresses, subnets: host.subnets().to_vec() }
    }
}

/// Checks R20, V12, R63 and this host's own subnet.
pub(crate) fn check(route: &Route, own: &Own) -> Result<(), RouteError> {
    let address = route.next_hop.ip();
    let broadcast = address == IpAddr::V4(Ipv4Addr::BROADCAST);
    let needs_scope =
        matches!(route.next_hop, SocketAddr::V6(v6) if v6.ip().is_unicast_link_local() && v6.scope_id() == 0);
    let is_of_family = |own: &IpNet| own.addr().is_ipv4() == route.subnet.addr().is_ipv4();
    let is_carried = own.subnets.is_empty() || own.subnets.iter().any(is_of_family);
    let narrow = route.mtu.filter(|mtu| mtu.get() < IPV6_MTU_MIN && route.subnet.addr().is_ipv6());
    match route.next_hop.port() {
        _ if address.is_unspecified() => Err(RouteError::UnspecifiedNextHop),
        _ if address.is_multicast() => Err(RouteError::MulticastNextHop),
        _ if broadcast => Err(RouteError::BroadcastNextHop),
        _ if needs_scope => Err(RouteError::LinkLocalNextHop),
        0 => Err(RouteError::ZeroPort),
        _ if own.addresses.contains(&route.next_hop) => Err(RouteError::OwnAddress),
        _ if own.subnets.contains(&route.subnet) => Err(RouteError::OwnSubnet),
        _ if !is_carried => Err(RouteError::FamilyNotCarried),
        _ => narrow.map_or(Ok(()), |mtu| Err(RouteError::MtuBelowIpv6 { mtu })),
    }
}

/// Returns true if less than a quarter of the places in these blocks is in use. The first few blocks do not count, so
/// small tables are never rebuilt. A large one is rebuilt only after a proportional number of changes.
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
