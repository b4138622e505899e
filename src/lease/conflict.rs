//! Conflicts between leases, or between a lease and this host's identity.

use alloc::collections::BTreeMap;
use alloc::collections::btree_map::Entry;
use alloc::vec::Vec;
use core::fmt;
use core::net::SocketAddr;

use ipnet::IpNet;

use super::event::LeaseId;
use crate::route::RouteError;

/// A mistake in the leases. All other leases stay in force.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Conflict<K> {
    /// Leases assign one subnet to several hosts, or to one host with different path MTUs. The lease with the lowest
    /// [`LeaseId`] has the route.
    Duplicate {
        /// The subnet.
        subnet: IpNet,
        /// The host that has the route.
        in_force: SocketAddr,
        /// The first other host, by [`LeaseId`].
        rival: SocketAddr,
    },
    /// A subnet lies inside another one. Both have their routes, and the longest match decides. Hosts that use the
    /// first match, as flannel's do, may decide differently.
    Overlap {
        /// The longer prefix: a lease's, or this host's own subnet.
        inner: IpNet,
        /// The longest prefix that contains it.
        outer: IpNet,
    },
    /// A lease that gets no route, regardless of the other leases.
    Refused {
        /// The lease.
        id: LeaseId<K>,
        /// Its subnet.
        subnet: IpNet,
        /// The owner according to the lease.
        next_hop: SocketAddr,
        /// The reason.
        reason: Refusal,
    },
    /// One host has several subnets, and all are routed. Usually all but one are old leases that nobody deleted.
    SharedNextHop {
        /// The host.
        next_hop: SocketAddr,
    },
}

/// The reason why a lease is refused, regardless of other leases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The tunnel would carry its own packets.
    #[error("the next hop is inside the overlay network {network}; name the owner's underlay address")]
    NextHopInOverlay {
        /// The overlay network.
        network: IpNet,
    },
    /// The overlay route covers the overlay network only, and packets with other sources are dropped.
    #[error(
        "the subnet is no part of the overlay network {network}; delete the lease if it is left of an older network"
    )]
    OutsideOverlay {
        /// The overlay network.
        network: IpNet,
    },
    /// A subnet around this host's own subnet has this host's underlay address and port as next hop.
    #[error("the next hop is this host, which owns a part of it; delete the lease if it is left of an earlier config")]
    OwnAddress,
    /// Another host claims this host's subnet or a part of it.
    #[error("the subnet belongs to this host's own, {own}; only one of the two can keep it")]
    OwnSubnet {
        /// This host's subnet.
        own: IpNet,
    },
    /// The route table refuses the route.
    #[error("{0}")]
    Unroutable(RouteError),
}

impl<K> fmt::Display for Conflict<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Duplicate { subnet, in_force, rival } if in_force == rival => {
                write!(f, "{subnet} is leased to {in_force} twice, with different path MTUs; the first is in force")
            }
            Self::Duplicate { subnet, in_force, rival } => {
                write!(
                    f,
                    "{subnet} is leased to {in_force}, which is in force, and to {rival}; delete one of the leases"
                )
            }
            Self::Overlap { inner, outer } => {
                write!(f, "{inner} lies inside {outer}; the longer prefix is in force there")
            }
            Self::Refused { subnet, next_hop, reason, .. } => {
                write!(f, "the lease of {subnet} to {next_hop} is refused: {reason}")
            }
            Self::SharedNextHop { next_hop } => {
                write!(f, "several subnets are leased to {next_hop}; all are in force, delete those it has given up")
            }
        }
    }
}

/// A change of a conflict.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConflictChange<K> {
    /// The conflict began.
    Began(Conflict<K>),
    /// The conflict ended or changed.
    Ended(Conflict<K>),
}

/// The number of conflicts of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConflictCounts {
    /// Subnets in [`Conflict::Duplicate`].
    pub duplicate: u64,
    /// Leases with [`Refusal::NextHopInOverlay`].
    pub next_hop_in_overlay: u64,
    /// Leases with [`Refusal::OutsideOverlay`].
    pub outside_overlay: u64,
    /// Inner subnets in [`Conflict::Overlap`].
    pub overlap: u64,
    /// Leases with [`Refusal::OwnAddress`].
    pub own_address: u64,
    /// Leases with [`Refusal::OwnSubnet`].
    pub own_subnet: u64,
    /// Hosts in [`Conflict::SharedNextHop`].
    pub shared_next_hop: u64,
    /// Leases with [`Refusal::Unroutable`].
    pub unroutable: u64,
}

impl ConflictCounts {
    /// Returns the number of all conflicts.
    #[must_use]
    pub fn total(&self) -> u64 {
        let refused =
            self.next_hop_in_overlay + self.outside_overlay + self.own_address + self.own_subnet + self.unroutable;
        refused + self.duplicate + self.overlap + self.shared_next_hop
    }

    fn of<K>(&mut self, conflict: &Conflict<K>) -> &mut u64 {
        match conflict {
            Conflict::Duplicate { .. } => &mut self.duplicate,
            Conflict::Overlap { .. } => &mut self.overlap,
            Conflict::Refused { reason, .. } => match reason {
                Refusal::NextHopInOverlay { .. } => &mut self.next_hop_in_overlay,
                Refusal::OutsideOverlay { .. } => &mut self.outside_overlay,
                Refusal::OwnAddress => &mut self.own_address,
                Refusal::OwnSubnet { .. } => &mut self.own_subnet,
                Refusal::Unroutable(_) => &mut self.unroutable,
            },
            Conflict::SharedNextHop { .. } => &mut self.shared_next_hop,
        }
    }
}

/// The subject of a conflict. There is at most one conflict for each, so one change of a lease causes a bounded number
/// of reports.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Subject<K> {
    Lease(LeaseId<K>),
    Claims(IpNet),
    Inner(IpNet),
    Host(SocketAddr),
}

/// The current conflicts, and the changes since the last call.
#[derive(Clone, Debug)]
pub(super) struct ConflictLog<K> {
    conflicts: BTreeMap<Subject<K>, Conflict<K>>,
    /// The previous conflicts of all subjects whose conflict changed since the last call.
    before: BTreeMap<Subject<K>, Option<Conflict<K>>>,
    now: ConflictCounts,
    ever: ConflictCounts,
}

impl<K: Ord + Clone> ConflictLog<K> {
    pub(super) fn new() -> Self {
        let counts = ConflictCounts::default();
        Self { conflicts: BTreeMap::new(), before: BTreeMap::new(), now: counts, ever: counts }
    }

    pub(super) fn get(&self, subject: &Subject<K>) -> Option<&Conflict<K>> {
        self.conflicts.get(subject)
    }

    pub(super) fn set(&mut self, subject: Subject<K>, conflict: Option<Conflict<K>>) {
        if self.conflicts.get(&subject) == conflict.as_ref() {
            return;
        }
        if let Some(conflict) = &conflict {
            *self.now.of(conflict) += 1;
            *self.ever.of(conflict) += 1;
        }
        let old = match conflict.clone() {
            Some(conflict) => self.conflicts.insert(subject.clone(), conflict),
            None => self.conflicts.remove(&subject),
        };
        if let Some(old) = &old {
            *self.now.of(old) -= 1;
        }
        match self.before.entry(subject) {
            Entry::Vacant(entry) => {
                entry.insert(old);
            }
            Entry::Occupied(entry) if *entry.get() == conflict => {
                entry.remove();
            }
            Entry::Occupied(_) => {}
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Conflict<K>> {
        self.conflicts.values()
    }

    pub(super) fn take_changes(&mut self) -> Vec<ConflictChange<K>> {
        let mut changes = Vec::new();
        for (subject, before) in core::mem::take(&mut self.before) {
            changes.extend(before.map(ConflictChange::Ended));
            changes.extend(self.conflicts.get(&subject).cloned().map(ConflictChange::Began));
        }
        changes
    }

    pub(super) fn now(&self) -> ConflictCounts {
        self.now
    }

    pub(super) fn ever(&self) -> ConflictCounts {
        self.ever
    }
}
