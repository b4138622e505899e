//! Claims of leases on subnets: the claimants of each subnet, their routes, and the conflicts between them.
//!
//! A change costs in proportion to what it affects: the claims of one subnet, and for overlaps the subnets inside it.
//! The route changes are the difference to the last call, regardless of the number of changes in between.

use alloc::collections::BTreeMap;
use alloc::collections::btree_map::Entry;
use alloc::vec;
use alloc::vec::Vec;
use core::net::SocketAddr;
use core::ops::Bound;

use ipnet::IpNet;

use super::conflict::{Conflict, ConflictLog, Subject};
use super::event::{Lease, LeaseId};
use crate::route::{NextHop, Route, RouteChange};

#[derive(Clone, Debug)]
pub(super) struct Claims<K> {
    own: Vec<IpNet>,
    /// The claimants of each subnet, in the order of their ids. Subnets without claimants are not stored.
    subnets: BTreeMap<IpNet, Claimants<K>>,
    /// The number of subnets of each length, for IPv4 and IPv6. With flannel's leases there is one length.
    lengths: [BTreeMap<u8, usize>; 2],
    /// The number of IPv4 and of IPv6 routes to each host.
    hosts: BTreeMap<SocketAddr, [usize; 2]>,
    /// The previous routes of all subnets whose route changed since the last call.
    before: BTreeMap<IpNet, Option<NextHop>>,
    pub(super) conflicts: ConflictLog<K>,
}

/// The claimants of one subnet. Most subnets have one, which needs no list.
#[derive(Clone, Debug)]
struct Claimants<K> {
    first: Claim<K>,
    others: Vec<Claim<K>>,
}

#[derive(Clone, Debug)]
struct Claim<K> {
    id: LeaseId<K>,
    hop: NextHop,
}

impl<K: Ord + Clone> Claims<K> {
    pub(super) fn new(own: Vec<IpNet>) -> Self {
        Self {
            own,
            subnets: BTreeMap::new(),
            lengths: [BTreeMap::new(), BTreeMap::new()],
            hosts: BTreeMap::new(),
            before: BTreeMap::new(),
            conflicts: ConflictLog::new(),
        }
    }

    /// Adds or replaces the claim of a lease on its subnet.
    pub(super) fn set(&mut self, id: LeaseId<K>, lease: &Lease) {
        let claim = Claim { id, hop: NextHop { address: lease.next_hop, mtu: lease.mtu } };
        let (before, contested) = match self.subnets.entry(lease.subnet) {
            Entry::Vacant(entry) => {
                entry.insert(Claimants { first: claim, others: Vec::new() });
                (None, false)
            }
            Entry::Occupied(mut entry) => {
                let claimants = entry.get_mut();
                let before = claimants.first.hop;
                let contested = !claimants.others.is_empty();
                claimants.set(claim);
                (Some(before), contested)
            }
        };
        self.follow(lease.subnet, before, contested);
    }

    /// Removes the claim of a lease on its subnet.
    pub(super) fn remove(&mut self, id: &LeaseId<K>, subnet: IpNet) {
        let Entry::Occupied(mut entry) = self.subnets.entry(subnet) else { return };
        let before = entry.get().first.hop;
        let contested = !entry.get().others.is_empty();
        if contested {
            entry.get_mut().remove(id);
        } else if entry.get().first.id == *id {
            entry.remove();
        }
        self.follow(subnet, Some(before), contested);
    }

    /// Returns the routes, in the order of their subnets.
    pub(super) fn routes(&self) -> impl Iterator<Item = Route> {
        self.subnets.iter().map(|(subnet, claimants)| route(*subnet, claimants.first.hop))
    }

    pub(super) fn len(&self) -> usize {
        self.subnets.len()
    }

    /// Returns true if this subnet or a part of it has a route.
    pub(super) fn overlaps(&self, subnet: IpNet) -> bool {
        self.subnets.range(subnet..).next().is_some_and(|(routed, _)| subnet.contains(routed))
    }

    #[cfg(feature = "sim")]
    pub(super) fn routed_inside(&self, outer: IpNet) -> impl Iterator<Item = IpNet> {
        let from = self.subnets.range(outer..).map(|(subnet, _)| *subnet);
        from.take_while(move |subnet| outer.contains(subnet))
    }

    #[cfg(feature = "sim")]
    pub(super) fn route_without(&self, subnet: IpNet, host: SocketAddr) -> Option<Route> {
        let claimants = self.subnets.get(&subnet)?;
        let mut claims = core::iter::once(&claimants.first).chain(&claimants.others);
        claims.find(|claim| claim.hop.address != host).map(|claim| route(subnet, claim.hop))
    }

    pub(super) fn has_changes(&self) -> bool {
        !self.before.is_empty()
    }

    pub(super) fn take_changes(&mut self) -> Vec<RouteChange> {
        let before = core::mem::take(&mut self.before);
        let change = |subnet| match self.subnets.get(&subnet) {
            Some(claimants) => RouteChange::Set(route(subnet, claimants.first.hop)),
            None => RouteChange::Delete(subnet),
        };
        before.into_keys().map(change).collect()
    }

    /// Updates everything that depends on the claims of one subnet.
    fn follow(&mut self, subnet: IpNet, before: Option<NextHop>, was_contested: bool) {
        let claimants = self.subnets.get(&subnet);
        let after = claimants.map(|claimants| claimants.first.hop);
        if was_contested || claimants.is_some_and(|claimants| !claimants.others.is_empty()) {
            let duplicate = claimants.and_then(|claimants| claimants.conflict(subnet));
            self.conflicts.set(Subject::Claims(subnet), duplicate);
        }
        if before == after {
            return;
        }
        match self.before.entry(subnet) {
            Entry::Vacant(entry) => {
                entry.insert(before);
            }
            Entry::Occupied(entry) if *entry.get() == after => {
                entry.remove();
            }
            Entry::Occupied(_) => {}
        }
        let (left, joined) = (before.map(|hop| hop.address), after.map(|hop| hop.address));
        if left != joined {
            joined.inspect(|host| self.join(*host, subnet));
            left.inspect(|host| self.leave(*host, subnet));
        }
        match (before, after) {
            (None, Some(_)) => self.appeared(subnet),
            (Some(_), None) => self.vanished(subnet),
            (None, None) | (Some(_), Some(_)) => {}
        }
    }

    fn join(&mut self, host: SocketAddr, subnet: IpNet) {
        let routes = family_of(self.hosts.entry(host).or_default(), subnet);
        *routes += 1;
        if *routes == 2 {
            self.conflicts.set(Subject::Host(host), Some(Conflict::SharedNextHop { next_hop: host }));
        }
    }

    fn leave(&mut self, host: SocketAddr, subnet: IpNet) {
        let Entry::Occupied(mut entry) = self.hosts.entry(host) else { return };
        *family_of(entry.get_mut(), subnet) -= 1;
        match *entry.get() {
            [0, 0] => {
                entry.remove();
            }
            // A dual-stack host has a subnet of each family.
            [0 | 1, 0 | 1] => self.conflicts.set(Subject::Host(host), None),
            _ => {}
        }
    }

    fn appeared(&mut self, subnet: IpNet) {
        *self.lengths_mut(subnet).entry(subnet.prefix_len()).or_insert(0) += 1;
        self.set_outer(subnet, self.around(subnet));
        for inner in self.inside(subnet) {
            let outer = self.outer_of(inner);
            if outer.is_none_or(|outer| outer.prefix_len() < subnet.prefix_len()) {
                self.set_outer(inner, Some(subnet));
            }
        }
    }

    fn vanished(&mut self, subnet: IpNet) {
        if let Entry::Occupied(mut count) = self.lengths_mut(subnet).entry(subnet.prefix_len()) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
        self.set_outer(subnet, None);
        let around = self.around(subnet);
        for inner in self.inside(subnet) {
            if self.outer_of(inner) == Some(subnet) {
                self.set_outer(inner, around);
            }
        }
    }

    /// Returns the longest prefix that contains a subnet.
    fn around(&self, subnet: IpNet) -> Option<IpNet> {
        let lengths = match subnet {
            IpNet::V4(_) => &self.lengths[0],
            IpNet::V6(_) => &self.lengths[1],
        };
        let shorter = lengths.range(..subnet.prefix_len()).rev();
        let mut networks = shorter.filter_map(|(len, _)| Some(IpNet::new(subnet.addr(), *len).ok()?.trunc()));
        networks.find(|network| self.subnets.contains_key(network))
    }

    /// Returns the subnets inside another one, including this host's own.
    fn inside(&self, outer: IpNet) -> Vec<IpNet> {
        let own = self.own.iter().copied().filter(|own| outer.contains(own) && outer != *own);
        // A network's first address is the lowest inside it, and shorter prefixes sort before longer ones.
        let after = (Bound::Excluded(outer), Bound::Unbounded);
        let following = self.subnets.range(after).map(|(subnet, _)| *subnet);
        let mut inside = vec![];
        inside.extend(own);
        inside.extend(following.take_while(|subnet| outer.contains(subnet)));
        inside
    }

    fn outer_of(&self, inner: IpNet) -> Option<IpNet> {
        match self.conflicts.get(&Subject::Inner(inner)) {
            Some(Conflict::Overlap { outer, .. }) => Some(*outer),
            Some(Conflict::Duplicate { .. } | Conflict::Refused { .. } | Conflict::SharedNextHop { .. }) | None => None,
        }
    }

    fn set_outer(&mut self, inner: IpNet, outer: Option<IpNet>) {
        self.conflicts.set(Subject::Inner(inner), outer.map(|outer| Conflict::Overlap { inner, outer }));
    }

    fn lengths_mut(&mut self, subnet: IpNet) -> &mut BTreeMap<u8, usize> {
        family_of(&mut self.lengths, subnet)
    }
}

impl<K: Ord + Clone> Claimants<K> {
    fn set(&mut self, claim: Claim<K>) {
        if claim.id == self.first.id {
            self.first = claim;
            return;
        }
        let (claim, at) = if claim.id < self.first.id {
            (core::mem::replace(&mut self.first, claim), Err(0))
        } else {
            let at = self.others.binary_search_by(|other| other.id.cmp(&claim.id));
            (claim, at)
        };
        match at {
            Ok(at) => self.others.get_mut(at).into_iter().for_each(|other| *other = claim.clone()),
            Err(at) => self.others.insert(at, claim),
        }
    }

    /// Removes a claim. There must be other claims.
    fn remove(&mut self, id: &LeaseId<K>) {
        if *id == self.first.id {
            self.first = self.others.remove(0);
        } else if let Ok(at) = self.others.binary_search_by(|other| other.id.cmp(id)) {
            self.others.remove(at);
        }
    }

    /// Returns the conflict, if any. Sources that claim the same do not contradict each other.
    fn conflict(&self, subnet: IpNet) -> Option<Conflict<K>> {
        let rival = self.others.iter().find(|other| other.hop != self.first.hop)?;
        Some(Conflict::Duplicate { subnet, in_force: self.first.hop.address, rival: rival.hop.address })
    }
}

/// Returns the value of the subnet's family.
fn family_of<T>([ipv4, ipv6]: &mut [T; 2], subnet: IpNet) -> &mut T {
    if subnet.addr().is_ipv4() { ipv4 } else { ipv6 }
}

fn route(subnet: IpNet, hop: NextHop) -> Route {
    Route { subnet, next_hop: hop.address, mtu: hop.mtu }
}
