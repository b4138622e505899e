//! The leases of one source, and their expiry.

use alloc::collections::{BTreeMap, BTreeSet};
use core::time::Duration;

use super::event::Lease;

/// The leases of one source.
///
/// The clock of the source stops while it is unreachable. Nobody knows whether a lease was renewed in that time, and an
/// old table is better than none. The leases' times are on that clock.
/// a table that is old is better than none. The leases' times are on that clock.
#[derive(Clone, Debug)]
pub(super) struct Source<K> {
    leases: BTreeMap<K, Lease>,
    deadlines: BTreeSet<(Duration, K)>,
    stale_since: Option<Duration>,
    /// The total time of unreachability, until the source was last reachable.
    paused: Duration,
}

impl<K: Ord + Clone> Source<K> {
    pub(super) fn new() -> Self {
        let (leases, deadlines) = (BTreeMap::new(), BTreeSet::new());
        Self { leases, deadlines, stale_since: None, paused: Duration::ZERO }
    }

    pub(super) fn lost(&mut self, now: Duration) {
        self.stale_since.get_or_insert(now);
    }

    pub(super) fn heard(&mut self, now: Duration) {
        if let Some(since) = self.stale_since.take() {
            self.paused = self.paused.saturating_add(now.saturating_sub(since));
        }
    }

    pub(super) fn stale_since(&self) -> Option<Duration> {
        self.stale_since
    }

    /// Returns the leases, with times on this source's clock.
    pub(super) fn leases(&self) -> &BTreeMap<K, Lease> {
        &self.leases
    }

    /// Converts a lease to this source's clock.
    pub(super) fn on_own_clock(&self, lease: Lease) -> Lease {
        Lease { expires: lease.expires.map(|at| at.saturating_sub(self.paused)), ..lease.normalised() }
    }

    /// Stores a lease on this source's clock and returns the previous one of its key.
    pub(super) fn insert(&mut self, key: K, lease: Lease) -> Option<Lease> {
        let old = self.leases.insert(key.clone(), lease);
        let before = old.and_then(|old| old.expires);
        if before != lease.expires {
            before.map(|at| self.deadlines.remove(&(at, key.clone())));
            lease.expires.map(|at| self.deadlines.insert((at, key)));
        }
        old
    }

    pub(super) fn remove(&mut self, key: &K) -> Option<Lease> {
        let old = self.leases.remove(key)?;
        old.expires.map(|at| self.deadlines.remove(&(at, key.clone())));
        Some(old)
    }

    /// Returns the key of an expired lease.
    pub(super) fn overdue(&self, now: Duration) -> Option<&K> {
        let (at, key) = self.deadlines.first()?;
        let own = self.stale_since.unwrap_or(now).min(now).saturating_sub(self.paused);
        (*at <= own).then_some(key)
    }

    /// Returns the time at which the next lease expires, on the caller's clock.
    pub(super) fn next_deadline(&self) -> Option<Duration> {
        let (at, _) = self.deadlines.first()?;
        self.stale_since.is_none().then(|| at.saturating_add(self.paused))
    }
}
