//! The immutable route table.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::fib::{v4, v6};
use super::next_hops::{HopId, NextHops};
use super::rib::{Node, Prefix};
use super::{NextHop, Own, RefusedRoute, Route, RouteChange, check};

/// An immutable set of IPv4 and IPv6 routes with longest prefix match.
///
/// Prefixes may have any length from /0 to /32, or /128 for IPv6. Routes of one family never match addresses of the
/// other. A clone is cheap and shares everything. [`with_changes`](Self::with_changes) returns a new table that shares
/// all unchanged parts, so worker threads may keep an old table as long as they like.
///
/// ```
/// use loden::route::{Route, RouteTable};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let a = Route::new("172.20.10.0/24".parse::<ipnet::Ipv4Net>()?, ([10, 168, 0, 3], 8285));
/// let b = Route::new("172.20.0.0/16".parse::<ipnet::Ipv4Net>()?, ([10, 168, 0, 4], 8285));
/// let (table, refused) = RouteTable::try_from_routes([b, a]);
/// assert!(refused.is_empty());
/// let hop = table.lookup("172.20.10.5".parse()?).ok_or("no route")?;
/// assert_eq!(hop.address, a.next_hop);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct RouteTable {
    parts: Arc<Parts>,
}

/// The parts of a table. A change copies a few lists of shared parts, and only the parts it modifies.
#[derive(Clone)]
struct Parts {
    fib: v4::Fib,
    rib: Node<u32>,
    hops: NextHops,
    /// The number of routes of both families.
    len: usize,
    /// Shared as a whole by tables that differ in IPv4 routes only.
    v6: Arc<V6>,
}

/// The IPv6 routes.
#[derive(Clone)]
struct V6 {
    fib: v6::Fib,
    rib: Node<u128>,
}

/// The result of a batch of changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use = "refused routes are reported here and nowhere else"]
pub struct Applied {
    /// The number of effective changes. A route set again unchanged, or deleted where there was none, does not count.
    pub changed: usize,
    /// The refused routes, in the order in which they were passed.
    pub refused: Vec<RefusedRoute>,
}

impl Applied {
    /// Returns the number of effective changes, for callers that treat a refused route as an error.
    ///
    /// # Errors
    /// The first refused route. The other changes are applied nevertheless.
    pub fn into_result(self) -> Result<usize, RefusedRoute> {
        self.refused.first().map_or(Ok(self.changed), |refused| Err(*refused))
    }
}

impl RouteTable {
    /// Creates a table without routes.
    #[must_use]
    pub fn new() -> Self {
        let v6 = Arc::new(V6 { fib: v6::Fib::new(), rib: Node::new() });
        let parts = Parts { fib: v4::Fib::new(), rib: Node::new(), hops: NextHops::new(), len: 0, v6 };
        Self { parts: Arc::new(parts) }
    }

    /// Creates a table of these routes, and returns the refused ones. Of several routes for one subnet the last one
    /// wins.
    pub fn try_from_routes(routes: impl IntoIterator<Item = Route>) -> (Self, Vec<RefusedRoute>) {
        let mut table = Self::new();
        let applied = table.apply(routes.into_iter().map(RouteChange::Set), &Own::default());
        (table, applied.refused)
    }

    /// Returns the table after `changes`, in their order. This table stays unchanged.
    pub fn with_changes(&self, changes: impl IntoIterator<Item = RouteChange>) -> (Self, Applied) {
        let mut next = self.clone();
        let applied = next.apply(changes, &Own::default());
        (next, applied)
    }

    /// Returns the next hop of the longest prefix that contains `destination`.
    #[must_use]
    #[inline]
    pub fn lookup(&self, destination: IpAddr) -> Option<&NextHop> {
        match destination {
            IpAddr::V4(destination) => self.lookup_v4(destination),
            IpAddr::V6(destination) => self.lookup_v6(destination),
        }
    }

    /// Returns the same as [`lookup`](Self::lookup) for an IPv4 address.
    #[must_use]
    #[inline(always)]
    pub fn lookup_v4(&self, destination: Ipv4Addr) -> Option<&NextHop> {
        let Parts { fib, hops, .. } = &*self.parts;
        hops.resolve(fib.longest_match(destination.octets()))
    }

    /// Returns the same as [`lookup`](Self::lookup) for an IPv6 address.
    #[must_use]
    #[inline]
    pub fn lookup_v6(&self, destination: Ipv6Addr) -> Option<&NextHop> {
        let Parts { v6, hops, .. } = &*self.parts;
        hops.resolve(v6.fib.longest_match(destination.to_bits()))
    }

    /// Returns the subnet of the route that [`lookup_v4`](Self::lookup_v4) finds. It is slower and used for rejected
    /// packets only.
    pub(crate) fn routed_subnet(&self, destination: Ipv4Addr) -> Option<Ipv4Net> {
        let len = self.parts.rib.view().longest_match(destination.to_bits(), 0)?;
        Ipv4Net::new(destination, len).ok()
    }

    /// Returns the next hop of exactly this subnet's route.
    #[must_use]
    pub fn exact(&self, subnet: IpNet) -> Option<&NextHop> {
        self.parts.exact(subnet)
    }

    /// Returns true if a route leads to this underlay address, on any port.
    #[must_use]
    #[inline]
    pub fn has_peer(&self, address: IpAddr) -> bool {
        self.parts.hops.has_peer(address)
    }

    /// Returns true if a route leads to the host that sends from this address, on any port. A link-local address is a
    /// host on the link of its scope (RFC 4007).
    #[inline(always)]
    pub(crate) fn has_sender(&self, from: SocketAddr) -> bool {
        self.has_peer(from.ip().to_canonical())
            && match from {
                SocketAddr::V6(from) if from.ip().is_unicast_link_local() => self.parts.hops.has_link_local(from),
                SocketAddr::V4(_) | SocketAddr::V6(_) => true,
            }
    }

    /// Returns true if a route leads to this underlay address and port.
    #[must_use]
    #[inline]
    pub fn has_next_hop(&self, address: SocketAddr) -> bool {
        self.parts.hops.has_next_hop(address)
    }

    /// Returns false if no next hop has this port. It may return true by mistake.
    #[inline(always)]
    pub(crate) fn may_have_port(&self, port: u16) -> bool {
        self.parts.hops.may_have_port(port)
    }

    /// Returns the number of routes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.parts.len
    }

    /// Returns true if there are no routes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns all routes in unspecified order.
    #[must_use]
    pub fn routes(&self) -> Vec<Route> {
        let mut routes = Vec::with_capacity(self.len());
        let Parts { rib, hops, v6, .. } = &*self.parts;
        let mut push = |subnet: Option<IpNet>, id| {
            if let (Some(subnet), Some(hop)) = (subnet, hops.resolve(id)) {
                routes.push(Route { subnet, next_hop: hop.address, mtu: hop.mtu });
            }
        };
        rib.view().for_each(0, 0, &mut |Prefix { bits, len }, id| {
            push(Ipv4Net::new(Ipv4Addr::from_bits(bits), len).ok().map(IpNet::V4), id);
        });
        v6.rib.view().for_each(0, 0, &mut |Prefix { bits, len }, id| {
            push(Ipv6Net::new(Ipv6Addr::from_bits(bits), len).ok().map(IpNet::V6), id);
        });
        routes
    }

    /// Applies changes in place and copies only the parts that another table shares.
    pub(crate) fn apply(&mut self, changes: impl IntoIterator<Item = RouteChange>, own: &Own) -> Applied {
        let mut applied = Applied::default();
        let (mut marked, mut changed_v6) = (v4::Marked::none(), Vec::new());
        for change in changes {
            let changed = match change {
                RouteChange::Delete(subnet) => self.delete(subnet),
                RouteChange::Set(route) => match check(&route.normalised(), own) {
                    Ok(()) => self.set(route.normalised()),
                    Err(reason) => {
                        applied.refused.push(RefusedRoute { route, reason });
                        None
                    }
                },
            };
            applied.changed += usize::from(changed.is_some());
            match changed {
                Some(IpNet::V4(subnet)) => {
                    let Prefix { bits, len } = prefix_v4(subnet);
                    marked.mark(bits, len);
                }
                Some(IpNet::V6(subnet)) => changed_v6.push(prefix_v6(subnet)),
                None => {}
            }
        }
        if applied.changed > 0 {
            let Parts { fib, rib, v6, .. } = Arc::make_mut(&mut self.parts);
            if applied.changed > changed_v6.len() {
                fib.update(rib, &marked);
            }
            if !changed_v6.is_empty() {
                let V6 { fib, rib } = Arc::make_mut(v6);
                fib.update(rib, &mut changed_v6);
            }
            if self.parts.is_sparse() {
                *self = Self::try_from_routes(self.routes()).0;
            }
        }
        applied
    }

    /// Sets a route and returns its subnet if the route of that changed. An unchanged route is detected first, because a
    /// change copies nodes.
    fn set(&mut self, route: Route) -> Option<IpNet> {
        let hop = NextHop { address: route.next_hop, mtu: route.mtu };
        if self.exact(route.subnet) == Some(&hop) {
            return None;
        }
        let parts = Arc::make_mut(&mut self.parts);
        let id = parts.hops.acquire(&hop);
        match parts.replace(route.subnet, Some(id)) {
            Some(before) => parts.hops.release(before),
            None => parts.len += 1,
        }
        Some(route.subnet)
    }

    /// Deletes a route and returns its subnet if there was one.
    fn delete(&mut self, subnet: IpNet) -> Option<IpNet> {
        let subnet = subnet.trunc();
        self.exact(subnet)?;
        let parts = Arc::make_mut(&mut self.parts);
        let before = parts.replace(subnet, None)?;
        parts.hops.release(before);
        parts.len -= 1;
        Some(subnet)
    }

    /// Returns true if another clone of this table exists.
    #[cfg(feature = "std")]
    pub(super) fn is_shared(&self) -> bool {
        Arc::strong_count(&self.parts) > 1
    }
}

impl Parts {
    /// Returns true if most places belong to deleted routes, so that a rebuild pays off.
    fn is_sparse(&self) -> bool {
        self.fib.is_sparse() || self.v6.fib.is_sparse() || self.hops.is_sparse()
    }

    fn exact(&self, subnet: IpNet) -> Option<&NextHop> {
        let id = match subnet {
            IpNet::V4(subnet) => self.rib.view().exact(prefix_v4(subnet)),
            IpNet::V6(subnet) => self.v6.rib.view().exact(prefix_v6(subnet)),
        };
        self.hops.resolve(id?)
    }

    fn replace(&mut self, subnet: IpNet, hop: Option<HopId>) -> Option<HopId> {
        match subnet {
            IpNet::V4(subnet) => self.rib.replace(prefix_v4(subnet), hop),
            IpNet::V6(subnet) => Arc::make_mut(&mut self.v6).rib.replace(prefix_v6(subnet), hop),
        }
    }
}

impl Default for RouteTable {
    fn default() -> Self {
        Self::new()
    }
}

impl core::fmt::Debug for RouteTable {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("RouteTable").field("len", &self.len()).finish_non_exhaustive()
    }
}

fn prefix_v4(subnet: Ipv4Net) -> Prefix<u32> {
    Prefix { bits: subnet.network().to_bits(), len: subnet.prefix_len() }
}

fn prefix_v6(subnet: Ipv6Net) -> Prefix<u128> {
    Prefix { bits: subnet.network().to_bits(), len: subnet.prefix_len() }
}
