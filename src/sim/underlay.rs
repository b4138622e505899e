//! The underlay: which datagrams arrive, when, and what became of those that do not.

use alloc::collections::BTreeMap;
use alloc::collections::btree_map::Entry;
use alloc::vec::Vec;
use core::fmt;
use core::net::SocketAddr;
use core::time::Duration;

use bytes::Bytes;

use super::random::Random;
use super::{LinkProfile, NodeId};
use crate::wire::Ecn;

/// One datagram on its way.
#[derive(Clone, Debug)]
pub(super) struct Datagram {
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    pub(super) ecn: Ecn,
    pub(super) payload: Bytes,
}

/// Why a datagram did not arrive. Every lost datagram has exactly one reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Loss {
    /// By [`LinkProfile::loss`].
    Random,
    /// No node has the address and port.
    NoHost,
    /// The node was stopped when it would have arrived.
    NodeStopped,
    /// A partition was between the two nodes when it was sent, or when it would have arrived.
    Partition,
    /// Longer than [`LinkProfile::mtu`].
    TooLong,
}

/// Where every datagram went: each that there was is in exactly one of the others, at every moment:
/// `sent + injected + duplicated = arrived + in flight + Σ lost`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnderlayCounters {
    pub(super) sent: u64,
    pub(super) injected: u64,
    pub(super) duplicated: u64,
    pub(super) arrived: u64,
    pub(super) in_flight: u64,
    lost: [u64; Loss::ALL.len()],
}

/// What becomes of a datagram.
#[derive(Debug)]
pub(super) enum Journey {
    /// It arrives, perhaps marked, and perhaps with a copy.
    Arrives {
        node: NodeId,
        at: Duration,
        ecn: Ecn,
        copy_at: Option<Duration>,
    },
    Lost(Loss),
    /// It is lost as too long, and its sender hears of that.
    TooLong {
        told_at: Duration,
        mtu: u16,
    },
}

#[derive(Debug)]
pub(super) struct Underlay {
    random: Random,
    profile: LinkProfile,
    /// By sender and receiver, where they are not the default.
    special: BTreeMap<(NodeId, NodeId), LinkProfile>,
    hosts: BTreeMap<SocketAddr, NodeId>,
    /// Which side of the partition each node is on.
    sides: Vec<usize>,
    pub(super) counters: UnderlayCounters,
}

impl Underlay {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            random: Random::new(seed),
            profile: LinkProfile::default(),
            special: BTreeMap::new(),
            hosts: BTreeMap::new(),
            sides: Vec::new(),
            counters: UnderlayCounters::default(),
        }
    }

    /// Connects the next node.
    ///
    /// # Errors
    /// The node that has the address and port already.
    pub(super) fn connect(&mut self, node: NodeId, address: SocketAddr) -> Result<(), NodeId> {
        match self.hosts.entry(address) {
            Entry::Occupied(entry) => Err(*entry.get()),
            Entry::Vacant(entry) => {
                entry.insert(node);
                self.sides.push(0);
                Ok(())
            }
        }
    }

    pub(super) fn set_link_profile(&mut self, profile: LinkProfile) {
        self.profile = profile;
    }

    pub(super) fn set_link_profile_from(&mut self, from: NodeId, to: NodeId, profile: LinkProfile) {
        self.special.insert((from, to), profile);
    }

    /// The nodes of a group hear each other alone; those in none are one more group.
    pub(super) fn partition(&mut self, groups: impl IntoIterator<Item = impl IntoIterator<Item = NodeId>>) {
        self.sides.fill(0);
        for (side, group) in (1..).zip(groups) {
            for node in group {
                self.sides.get_mut(node.0).into_iter().for_each(|place| *place = side);
            }
        }
    }

    pub(super) fn is_parted(&self, one: NodeId, other: NodeId) -> bool {
        self.sides.get(one.0) != self.sides.get(other.0)
    }

    /// Decides on a datagram. Every one draws equally often, so that a condition that is changed leaves what the others bring
    /// about as it was.
    pub(super) fn carry(&mut self, from: NodeId, datagram: &Datagram, now: Duration) -> Journey {
        let Some(node) = self.hosts.get(&datagram.to).copied() else { return Journey::Lost(Loss::NoHost) };
        let profile = self.special.get(&(from, node)).copied().unwrap_or(self.profile);
        let LinkProfile { latency, jitter, loss, duplication, congestion, mtu } = profile;
        let random = &mut self.random;
        let [is_lost, is_copied, is_marked] =
            [loss, duplication, congestion].map(|probability| random.happens(probability));
        let [at, copy_at] = [(); 2].map(|()| now.saturating_add(latency).saturating_add(random.up_to(jitter)));
        if self.is_parted(from, node) {
            return Journey::Lost(Loss::Partition);
        }
        if outer_len(datagram) > usize::from(mtu) {
            return Journey::TooLong { told_at: now.saturating_add(latency), mtu };
        }
        if is_lost {
            return Journey::Lost(Loss::Random);
        }
        let ecn = if is_marked && datagram.ecn != Ecn::NotEct { Ecn::Ce } else { datagram.ecn };
        Journey::Arrives { node, at, ecn, copy_at: is_copied.then_some(copy_at) }
    }
}

pub(super) fn outer_len(datagram: &Datagram) -> usize {
    const UDP: usize = 8;
    let ip = if datagram.to.is_ipv4() { 20 } else { 40 };
    ip + UDP + datagram.payload.len()
}

impl Loss {
    /// All reasons, in alphabetical order.
    pub const ALL: &'static [Self] = &[Self::Random, Self::NoHost, Self::NodeStopped, Self::Partition, Self::TooLong];

    /// The name in traces: lower case with underscores.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::NoHost => "no_host",
            Self::NodeStopped => "node_stopped",
            Self::Partition => "partition",
            Self::TooLong => "too_long",
        }
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl UnderlayCounters {
    /// Datagrams that nodes sent.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Datagrams that came from no node, but from [`Sim::inject`](super::Sim::inject).
    #[must_use]
    pub fn injected(&self) -> u64 {
        self.injected
    }

    /// Copies that [`LinkProfile::duplication`] made.
    #[must_use]
    pub fn duplicated(&self) -> u64 {
        self.duplicated
    }

    /// Datagrams that arrived at a node.
    #[must_use]
    pub fn arrived(&self) -> u64 {
        self.arrived
    }

    /// Datagrams on their way.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        self.in_flight
    }

    /// Datagrams lost for this reason.
    #[must_use]
    pub fn lost(&self, loss: Loss) -> u64 {
        self.lost.get(loss as usize).copied().unwrap_or_default()
    }

    /// Datagrams lost, by reason, without the reasons that never occurred.
    pub fn losses(&self) -> impl Iterator<Item = (Loss, u64)> {
        Loss::ALL.iter().map(|loss| (*loss, self.lost(*loss))).filter(|(_, count)| *count > 0)
    }

    /// Whether every datagram is accounted for.
    #[must_use]
    pub fn is_conserved(&self) -> bool {
        let lost: u64 = self.lost.iter().sum();
        self.sent + self.injected + self.duplicated == self.arrived + self.in_flight + lost
    }

    pub(super) fn lose(&mut self, loss: Loss) {
        self.lost.get_mut(loss as usize).into_iter().for_each(|count| *count += 1);
    }
}
