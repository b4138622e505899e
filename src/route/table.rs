//! The immutable route table.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, SocketAddr};

use ipnet::{IpNet, Ipv4Net};

use super::fib::{Fib, Marked};
use super::next_hops::NextHops;
use super::rib::{Node, Prefix};
use super::{NextHop, Own, RefusedRoute, Route, RouteChange, check};

/// An immutable set of routes with longest prefix match.
///
/// Prefixes may have any length from /0 to /32. A clone is cheap and shares everything.
/// [`with_changes`](Self::with_changes) returns a new table that shares all unchanged parts, so worker threads may keep
/// an old table as long as they like. A lookup makes two to five dependent loads.
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
    fib: Fib,
    rib: Node,
    hops: NextHops,
    len: usize,
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
        let parts = Parts { fib: Fib::new(), rib: Node::default(), hops: NextHops::new(), len: 0 };
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
            IpAddr::V6(_) => None,
        }
    }

    /// Returns the same as [`lookup`](Self::lookup) for an IPv4 address.
    #[must_use]
    #[inline(always)]
    pub fn lookup_v4(&self, destination: Ipv4Addr) -> Option<&NextHop> {
        let Parts { fib, hops, .. } = &*self.parts;
        hops.resolve(fib.longest_match(destination.octets()))
    }

    /// Returns the subnet of the route that [`lookup_v4`](Self::lookup_v4) finds. It is slower and used for rejected
    /// packets only.
    pub(crate) fn routed_subnet(&self, destination: Ipv4Addr) -> Option<Ipv4Net> {
        let len = self.parts.rib.longest_match(destination.to_bits(), 0)?;
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

    /// Returns true if a route leads to this underlay address and port.
    #[must_use]
    #[inline]
    pub fn has_next_hop(&self, address: SocketAddr) -> bool {
        self.parts.hops.has_next_hop(address)
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
        self.parts.rib.for_each(0, 0, &mut |prefix, id| {
            let subnet = Ipv4Net::new(Ipv4Addr::from_bits(prefix.bits), prefix.len);
            if let (Ok(subnet), Some(hop)) = (subnet, self.parts.hops.resolve(id)) {
                routes.push(Route { subnet: subnet.into(), next_hop: hop.address, mtu: hop.mtu });
            }
        });
        routes
    }

    /// Applies changes in place and copies only the parts that another table shares.
    pub(crate) fn apply(&mut self, changes: impl IntoIterator<Item = RouteChange>, own: &Own) -> Applied {
        let mut applied = Applied::default();
        let mut marked = Marked::none();
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
            if let Some(Prefix { bits, len }) = changed {
                applied.changed += 1;
                marked.mark(bits, len);
            }
        }
        if applied.changed > 0 {
            let Parts { fib, rib, .. } = Arc::make_mut(&mut self.parts);
            fib.update(rib, &marked);
            if self.parts.is_sparse() {
                *self = Self::try_from_routes(self.routes()).0;
            }
        }
        applied
    }

    /// Sets a route and returns the prefix if its route changed. An unchanged route is detected first, because a change
    /// copies nodes.
    fn set(&mut self, route: Route) -> Option<Prefix> {
        let hop = NextHop { address: route.next_hop, mtu: route.mtu };
        let IpNet::V4(subnet) = route.subnet else { return None };
        if self.exact(route.subnet) == Some(&hop) {
            return None;
        }
        let Parts { rib, hops, len, .. } = Arc::make_mut(&mut self.parts);
        let (prefix, id) = (prefix(subnet), hops.acquire(&hop));
        match rib.replace(prefix, Some(id)) {
            Some(before) => hops.release(before),
            None => *len += 1,
        }
        Some(prefix)
    }

    /// Deletes a route and returns the prefix if there was one.
    fn delete(&mut self, subnet: IpNet) -> Option<Prefix> {
        let subnet = subnet.trunc();
        self.exact(subnet)?;
        let IpNet::V4(subnet) = subnet else { return None };
        let Parts { rib, hops, len, .. } = Arc::make_mut(&mut self.parts);
        let prefix = prefix(subnet);
        hops.release(rib.replace(prefix, None)?);
        *len -= 1;
        Some(prefix)
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
        self.fib.is_sparse() || self.hops.is_sparse()
    }

    fn exact(&self, subnet: IpNet) -> Option<&NextHop> {
        let IpNet::V4(subnet) = subnet else { return None };
        self.hops.resolve(self.rib.exact(prefix(subnet))?)
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

fn prefix(subnet: Ipv4Net) -> Prefix {
    Prefix { bits: subnet.network().to_bits(), len: subnet.prefix_len() }
}
