//! The immutable route table.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, SocketAddr};

use ipnet::{IpNet, Ipv4Net};

use super::fib::{Fib, Marked};
use super::next_hops::NextHops;
use super::rib::{Node, Prefix};
use super::{NextHop, Own, RefusedRoute, Route, RouteChange, check};

/// A set of routes that answers which one is the longest match of a destination, and never changes.
///
/// Any mix of prefixes from /0 to /32. A clone is cheap and shares everything; [`with_changes`](Self::with_changes) makes a
/// new table that shares all but the parts the changes touch, so that worker threads may keep the old one for as long as
/// they like. A lookup is two to five loads that depend on one another.
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

/// What a change copies: a few lists of shared parts, and of those only the ones it touches.
#[derive(Clone)]
struct Parts {
    fib: Fib,
    rib: Node,
    hops: NextHops,
    len: usize,
}

/// What became of a batch of changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use = "refused routes are reported here and nowhere else"]
pub struct Applied {
    /// How many changes changed something: a route set again as it was, or deleted where there was none, does not count.
    pub changed: usize,
    /// The routes that were not taken, in the order they were given.
    pub refused: Vec<RefusedRoute>,
}

impl Applied {
    /// How many changes changed something, for those to whom a refused route is an error.
    ///
    /// # Errors
    /// The first refused route. The others are in force nevertheless.
    pub fn into_result(self) -> Result<usize, RefusedRoute> {
        self.refused.first().map_or(Ok(self.changed), |refused| Err(*refused))
    }
}

impl RouteTable {
    /// A table without routes.
    #[must_use]
    pub fn new() -> Self {
        let parts = Parts { fib: Fib::new(), rib: Node::default(), hops: NextHops::new(), len: 0 };
        Self { parts: Arc::new(parts) }
    }

    /// A table of these routes, and those among them that cannot be in one. Of several routes for one subnet the last stands.
    pub fn try_from_routes(routes: impl IntoIterator<Item = Route>) -> (Self, Vec<RefusedRoute>) {
        let mut table = Self::new();
        let applied = table.apply(routes.into_iter().map(RouteChange::Set), &Own::default());
        (table, applied.refused)
    }

    /// The table after `changes`, in their order; this one stays as it is.
    pub fn with_changes(&self, changes: impl IntoIterator<Item = RouteChange>) -> (Self, Applied) {
        let mut next = self.clone();
        let applied = next.apply(changes, &Own::default());
        (next, applied)
    }

    /// The next hop of the longest prefix that holds `destination`.
    #[must_use]
    #[inline]
    pub fn lookup(&self, destination: IpAddr) -> Option<&NextHop> {
        match destination {
            IpAddr::V4(destination) => self.lookup_v4(destination),
            IpAddr::V6(_) => None,
        }
    }

    /// [`lookup`](Self::lookup) for those who know that it is an IPv4 address.
    #[must_use]
    #[inline]
    pub fn lookup_v4(&self, destination: Ipv4Addr) -> Option<&NextHop> {
        let Parts { fib, hops, .. } = &*self.parts;
        hops.resolve(fib.longest_match(destination.octets()))
    }

    /// The subnet of the route that [`lookup_v4`](Self::lookup_v4) finds. Slower than that, for the few packets that are
    /// rejected.
    pub(crate) fn routed_subnet(&self, destination: Ipv4Addr) -> Option<Ipv4Net> {
        let len = self.parts.rib.longest_match(destination.to_bits(), 0)?;
        Ipv4Net::new(destination, len).ok()
    }

    /// The next hop of exactly this subnet's route.
    #[must_use]
    pub fn exact(&self, subnet: IpNet) -> Option<&NextHop> {
        self.parts.exact(subnet)
    }

    /// Whether some route leads to this underlay address, whatever the port.
    #[must_use]
    #[inline]
    pub fn has_peer(&self, address: IpAddr) -> bool {
        self.parts.hops.has_peer(address)
    }

    /// Whether some route leads to this underlay address and port.
    #[must_use]
    #[inline]
    pub fn has_next_hop(&self, address: SocketAddr) -> bool {
        self.parts.hops.has_next_hop(address)
    }

    /// How many routes there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.parts.len
    }

    /// Whether there are no routes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All routes, in no particular order.
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

    /// Applies changes in place, copying only what another table shares.
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

    /// The prefix whose route changed, if one did. That is looked at first, because a change copies what it touches.
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

    /// The prefix whose route was deleted, if there was one.
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

    /// Whether anybody else holds this very table.
    #[cfg(feature = "std")]
    pub(super) fn is_shared(&self) -> bool {
        Arc::strong_count(&self.parts) > 1
    }
}

impl Parts {
    /// Whether it is mostly room for routes that are gone, so that a table made anew is worth what it costs.
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
