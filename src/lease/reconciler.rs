//! The reconciler, which turns lease events into the minimal route changes.

use alloc::collections::BTreeMap;
use alloc::collections::btree_map::Entry;
use alloc::vec::Vec;
use core::net::SocketAddr;
use core::time::Duration;

use ipnet::IpNet;

use super::claims::Claims;
use super::conflict::{Conflict, ConflictChange, ConflictCounts, Subject};
use super::event::{Lease, LeaseEvent, LeaseId, SourceId};
use super::identity::{Identity, Relation};
use super::source::Source;
use crate::host::Host;
use crate::route::{Route, RouteChange};

/// The state that turns leases into routes. See the [module](super) for the loop and for the rules.
///
/// `K` is the type of the sources' names for leases. The leases of one source have different names.
#[derive(Clone, Debug)]
pub struct Reconciler<K> {
    identity: Identity,
    /// The latest time passed so far.
    now: Duration,
    sources: BTreeMap<SourceId, Source<K>>,
    claims: Claims<K>,
    /// The number of own leases of each subnet.
    own: BTreeMap<IpNet, usize>,
    counters: Counters,
}

/// Counters of the events of all sources.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Leases that were not known before.
    pub added: u64,
    /// Leases whose next hop or path MTU changed.
    pub changed: u64,
    /// Leases that expired.
    pub expired: u64,
    /// Losses of a source, counted once until it is reachable again.
    pub lost: u64,
    /// Leases that their source removed or no longer listed.
    pub removed: u64,
    /// Leases of a snapshot with the key of another lease in it.
    pub repeated: u64,
    /// Snapshots.
    pub snapshots: u64,
}

impl<K: Ord + Clone> Reconciler<K> {
    /// Creates a reconciler without leases, which judges leases by the identity of `host`.
    #[must_use]
    pub fn new(host: &Host) -> Self {
        Self::judging_by(Identity::new(host))
    }

    /// Sets the address and port of one IP family by which others reach this host, as in its own lease. The default is
    /// the bound address and port ([`Host::underlays`]). NAT may translate these.
    #[must_use]
    pub fn with_public_address(self, address: SocketAddr) -> Self {
        Self { identity: self.identity.with_underlay(address), ..self }
    }

    pub(crate) fn judging_by(identity: Identity) -> Self {
        let claims = Claims::new(identity.subnets.clone());
        Self {
            identity,
            now: Duration::ZERO,
            sources: BTreeMap::new(),
            claims,
            own: BTreeMap::new(),
            counters: Counters::default(),
        }
    }

    /// Handles an event of a source at `now`. Leases that expire until then are removed too.
    ///
    /// `now` is the time since any fixed moment, by a clock that does not jump. An earlier `now` counts as the latest
    /// one.
    pub fn handle_event(&mut self, source: SourceId, event: LeaseEvent<K>, now: Duration) {
        self.now = self.now.max(now);
        let said = self.sources.entry(source).or_insert_with(Source::new);
        match event {
            LeaseEvent::Added { key, lease } => {
                said.heard(self.now);
                let lease = said.on_own_clock(lease);
                self.put(source, key, lease);
            }
            LeaseEvent::Removed { key } => {
                said.heard(self.now);
                self.counters.removed += u64::from(self.remove(source, key));
            }
            LeaseEvent::Snapshot(leases) => {
                said.heard(self.now);
                self.replace_all(source, leases);
            }
            LeaseEvent::SourceHeard => said.heard(self.now),
            LeaseEvent::SourceLost => {
                self.counters.lost += u64::from(said.stale_since().is_none());
                said.lost(self.now);
            }
        }
        self.expire();
    }

    /// Removes the leases that have expired by `now`.
    pub fn handle_timeout(&mut self, now: Duration) {
        self.now = self.now.max(now);
        self.expire();
    }

    /// Returns the time at which [`handle_timeout`](Self::handle_timeout) has work to do; `None` if only an event
    /// brings some.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Duration> {
        self.sources.values().filter_map(Source::next_deadline).min()
    }

    /// Returns the route changes since the last call, in the order of their subnets. The list contains only effective
    /// changes, and none for routes that came and went in between.
    #[must_use = "changes are handed out once"]
    pub fn take_changes(&mut self) -> Vec<RouteChange> {
        self.claims.take_changes()
    }

    /// Returns true if [`take_changes`](Self::take_changes) would return any.
    #[must_use]
    pub fn has_changes(&self) -> bool {
        self.claims.has_changes()
    }

    /// Returns the current routes, in the order of their subnets, for a table built from scratch.
    pub fn routes(&self) -> impl Iterator<Item = Route> {
        self.claims.routes()
    }

    /// Returns the routed subnets inside another one, itself included.
    #[cfg(feature = "sim")]
    pub(crate) fn routed_inside(&self, outer: IpNet) -> impl Iterator<Item = IpNet> {
        self.claims.routed_inside(outer)
    }

    /// Returns the route that a subnet would have without the leases of `host`.
    #[cfg(feature = "sim")]
    pub(crate) fn route_without(&self, subnet: IpNet, host: SocketAddr) -> Option<Route> {
        self.claims.route_without(subnet, host)
    }

    /// Returns the number of routes.
    #[must_use]
    pub fn route_count(&self) -> usize {
        self.claims.len()
    }

    /// Returns the conflicts that began or ended since the last call, but not those that did both.
    #[must_use = "changes are handed out once"]
    pub fn take_conflict_changes(&mut self) -> Vec<ConflictChange<K>> {
        self.claims.conflicts.take_changes()
    }

    /// Returns the current conflicts.
    pub fn conflicts(&self) -> impl Iterator<Item = &Conflict<K>> {
        self.claims.conflicts.iter()
    }

    /// Returns the number of current conflicts of each kind.
    #[must_use]
    pub fn conflict_counts(&self) -> ConflictCounts {
        self.claims.conflicts.now()
    }

    /// Returns the number of conflicts of each kind that ever began. A changed conflict counts again.
    #[must_use]
    pub fn conflict_totals(&self) -> ConflictCounts {
        self.claims.conflicts.ever()
    }

    /// Returns the time since which a source is unreachable; `None` if it is reachable. Its leases stay in force and do
    /// not expire meanwhile.
    #[must_use]
    pub fn stale_since(&self, source: SourceId) -> Option<Duration> {
        self.sources.get(&source)?.stale_since()
    }

    /// Returns the leases of a source, by key. Times are on the source's clock, which stops while the source is
    /// unreachable.
    pub fn leases(&self, source: SourceId) -> impl Iterator<Item = (&K, &Lease)> {
        self.sources.get(&source).into_iter().flat_map(|source| source.leases())
    }

    /// Returns true if a source has an own lease of this host: one of its subnets with its address.
    #[must_use]
    pub fn holds_own_lease(&self) -> bool {
        self.identity.subnets.iter().any(|own| self.own.contains_key(own))
    }

    /// Returns the further subnets of this host, in their order: those of leases with this host's address that are not
    /// inside the subnets of its [`Host`], for example reservations. Packets for them are to be delivered:
    /// `worker::Handle::set_subnets`.
    ///
    /// A subnet is left out while another host leases it or a part of it.
    pub fn further_subnets(&self) -> impl Iterator<Item = IpNet> {
        let is_known = |subnet: &IpNet| self.identity.subnets.iter().any(|own| own.contains(subnet));
        self.own.keys().copied().filter(move |subnet| !is_known(subnet) && !self.claims.overlaps(*subnet))
    }

    /// Returns the counters of the events so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Replaces all leases of a source. Both lists are traversed in key order, so an unchanged lease costs one
    /// comparison.
    fn replace_all(&mut self, source: SourceId, mut leases: Vec<(K, Lease)>) {
        self.counters.snapshots += 1;
        let Some(said) = self.sources.get(&source) else { return };
        leases.sort_by(|(a, _), (b, _)| a.cmp(b));
        let with_repeated = leases.len();
        leases.dedup_by(|later, kept| {
            let is_repeated = later.0 == kept.0;
            if is_repeated {
                core::mem::swap(later, kept);
            }
            is_repeated
        });
        self.counters.repeated += (with_repeated - leases.len()) as u64;
        let mut gone = Vec::new();
        let mut known = said.leases().iter().peekable();
        leases.retain_mut(|(key, lease)| {
            *lease = said.on_own_clock(*lease);
            while let Some((before, _)) = known.next_if(|(before, _)| *before < key) {
                gone.push(before.clone());
            }
            known.next_if(|(before, _)| *before == key).is_none_or(|(_, old)| old != lease)
        });
        gone.extend(known.map(|(key, _)| key.clone()));
        for key in gone {
            self.counters.removed += u64::from(self.remove(source, key));
        }
        for (key, lease) in leases {
            self.put(source, key, lease);
        }
    }

    fn expire(&mut self) {
        let overdue = |(source, said): (&SourceId, &Source<K>), now| Some((*source, said.overdue(now)?.clone()));
        while let Some((source, key)) = self.sources.iter().find_map(|said| overdue(said, self.now)) {
            self.counters.expired += u64::from(self.remove(source, key));
        }
    }

    /// Stores a lease whose times are on its source's clock.
    fn put(&mut self, source: SourceId, key: K, lease: Lease) {
        let Some(said) = self.sources.get_mut(&source) else { return };
        let old = said.insert(key.clone(), lease);
        match old {
            None => self.counters.added += 1,
            Some(old) if old.route() == lease.route() => return,
            Some(_) => self.counters.changed += 1,
        }
        let id = LeaseId { source, key };
        let relation = self.identity.judge(&lease);
        if let Some(old) = old {
            self.withdraw(&id, &old, relation == Relation::Contender && old.subnet == lease.subnet);
        }
        match relation {
            Relation::Contender => self.claims.set(id, &lease),
            Relation::Own => *self.own.entry(lease.subnet).or_insert(0) += 1,
            Relation::Refused(reason) => {
                let Lease { subnet, next_hop, .. } = lease;
                let conflict = Conflict::Refused { id: id.clone(), subnet, next_hop, reason };
                self.claims.conflicts.set(Subject::Lease(id), Some(conflict));
            }
        }
    }

    /// Removes a lease and returns true if it existed.
    fn remove(&mut self, source: SourceId, key: K) -> bool {
        let Some(old) = self.sources.get_mut(&source).and_then(|said| said.remove(&key)) else { return false };
        self.withdraw(&LeaseId { source, key }, &old, false);
        true
    }

    /// Reverts all effects of a lease, except a claim that is about to be replaced.
    fn withdraw(&mut self, id: &LeaseId<K>, old: &Lease, claim_stays: bool) {
        match self.identity.judge(old) {
            Relation::Contender if claim_stays => {}
            Relation::Contender => self.claims.remove(id, old.subnet),
            Relation::Own => {
                if let Entry::Occupied(mut count) = self.own.entry(old.subnet) {
                    *count.get_mut() -= 1;
                    if *count.get() == 0 {
                        count.remove();
                    }
                }
            }
            Relation::Refused(_) => self.claims.conflicts.set(Subject::Lease(id.clone()), None),
        }
    }
}
