//! The leases of all nodes, stored once, and the differences of each node's route table.
//!
//! All hosts treat a lease equally, except their own leases. A host has no route to itself and none inside its own
//! subnet. Where it and another host claim a subnet, it has the other host's route. So there is one reconciler that
//! belongs to no host, and one table. A node's table shares all parts but those that contain its own routes.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::net::SocketAddr;
use core::time::Duration;

use ipnet::IpNet;

use crate::host::Host;
use crate::lease::{Counters, Identity, LeaseEvent, Reconciler, SourceId};
use crate::route::{Applied, Own, Route, RouteChange, RouteTable};

#[derive(Debug)]
pub(super) struct Leases<K> {
    reconciler: Reconciler<K>,
    table: RouteTable,
    /// The routed subnets of each host.
    routed: BTreeMap<SocketAddr, BTreeSet<IpNet>>,
}

/// One node's routes.
#[derive(Debug)]
pub(super) struct NodeRoutes {
    identity: Identity,
    own: Own,
    table: RouteTable,
    /// The revision of the leases that the table was built from.
    revision: u64,
    /// The routes that leases do not change.
    fixed: BTreeMap<IpNet, RouteChange>,
    pub(super) hears_leases: bool,
}

impl<K: Ord + Clone> Leases<K> {
    pub(super) fn new(networks: Vec<IpNet>) -> Self {
        let identity = Identity { networks, subnets: Vec::new(), underlays: Vec::new() };
        let reconciler = Reconciler::judging_by(identity);
        Self { reconciler, table: RouteTable::new(), routed: BTreeMap::new() }
    }

    pub(super) fn reconciler(&self) -> &Reconciler<K> {
        &self.reconciler
    }

    pub(super) fn handle_event(&mut self, source: SourceId, event: LeaseEvent<K>, now: Duration) {
        self.reconciler.handle_event(source, event, now);
    }

    pub(super) fn handle_timeout(&mut self, now: Duration) {
        if self.reconciler.poll_timeout().is_some_and(|at| at <= now) {
            self.reconciler.handle_timeout(now);
        }
    }

    /// Updates a node's table if the node receives leases.
    pub(super) fn refresh(&mut self, node: &mut NodeRoutes) {
        if self.reconciler.has_changes() {
            self.follow();
        }
        let revision = self.revision();
        if node.hears_leases && node.revision != revision {
            node.revision = revision;
            node.table = self.table_of(node);
        }
    }

    /// Returns the number of lease changes. Some do not change the shared table: a host's claim precedes another's on
    /// that host only.
    fn revision(&self) -> u64 {
        let Counters { added, changed, expired, removed, .. } = self.reconciler.counters();
        added + changed + expired + removed
    }

    fn follow(&mut self) {
        let changes = self.reconciler.take_changes();
        for change in &changes {
            let subnet = change.subnet();
            if let Some(hop) = self.table.exact(subnet)
                && let Some(subnets) = self.routed.get_mut(&hop.address)
            {
                subnets.remove(&subnet);
                if subnets.is_empty() {
                    let left = hop.address;
                    self.routed.remove(&left);
                }
            }
            if let RouteChange::Set(route) = change {
                self.routed.entry(route.next_hop).or_default().insert(subnet);
            }
        }
        // A reconciler returns no route that a table refuses.
        let _ = self.table.apply(changes, &Own::default());
    }

    fn table_of(&self, node: &NodeRoutes) -> RouteTable {
        let Identity { subnets, underlays, .. } = &node.identity;
        let inside = subnets.iter().flat_map(|own| self.reconciler.routed_inside(*own));
        let mut changes: Vec<_> = inside.map(RouteChange::Delete).collect();
        let is_own = |subnet: &IpNet| subnets.iter().any(|own| own.contains(subnet));
        for underlay in underlays {
            let to_itself = self.routed.get(underlay).into_iter().flatten().filter(|subnet| !is_own(subnet));
            changes.extend(to_itself.map(|subnet| {
                let other = self.reconciler.route_without(*subnet, *underlay);
                other.map_or(RouteChange::Delete(*subnet), RouteChange::Set)
            }));
        }
        changes.extend(node.fixed.values());
        let mut table = self.table.clone();
        // Refused fixed routes were reported when they were set.
        let _ = table.apply(changes, &node.own);
        table
    }
}

impl NodeRoutes {
    pub(super) fn new(host: &Host) -> Self {
        Self {
            identity: Identity::new(host),
            own: Own::new(host),
            table: RouteTable::new(),
            revision: 0,
            fixed: BTreeMap::new(),
            hears_leases: true,
        }
    }

    pub(super) fn table(&self) -> &RouteTable {
        &self.table
    }

    /// Sets routes that leases do not change.
    pub(super) fn change(&mut self, changes: Vec<RouteChange>) -> Applied {
        let applied = self.table.apply(changes.iter().copied(), &self.own);
        let is_refused = |route: &Route| applied.refused.iter().any(|refused| refused.route == *route);
        for change in changes {
            match change {
                RouteChange::Set(route) if is_refused(&route) => {}
                RouteChange::Set(_) | RouteChange::Delete(_) => {
                    self.fixed.insert(change.subnet(), change);
                }
            }
        }
        applied
    }
}

#[cfg(test)]
mod tests;
