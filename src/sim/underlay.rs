//! The underlay: delivery, latency and loss of datagrams.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::fmt;
use core::net::SocketAddr;
use core::time::Duration;

use bytes::Bytes;

use super::random::Random;
use super::{LinkProfile, NodeId};
use crate::wire::Ecn;

/// A datagram in flight.
#[derive(Clone, Debug)]
pub(super) struct Datagram {
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    pub(super) ecn: Ecn,
    pub(super) payload: Bytes,
}

/// The reason why a datagram did not arrive. Every lost datagram has exactly one reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Loss {
    /// No node has the destination address and port.
    NoHost,
    /// The node was stopped at the time of arrival.
    NodeStopped,
    /// The two nodes were in different partitions when it was sent or when it would have arrived.
    Partition,
    /// The datagram was lost by [`LinkProfile::loss`].
    Random,
    /// The datagram was longer than [`LinkProfile::mtu`].
    TooLong,
}

/// The datagrams of the underlay by their outcome. At every moment each datagram is counted in exactly one of the
/// others: `sent + injected + duplicated = arrived + in flight + Σ lost`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnderlayCounters {
    pub(super) sent: u64,
    pub(super) injected: u64,
    pub(super) duplicated: u64,
    pub(super) arrived: u64,
    pub(super) in_flight: u64,
    lost: [u64; Loss::ALL.len()],
}

/// The outcome of a datagram.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It arrives, perhaps with a congestion mark, and perhaps with a copy.
    Arrives {
        node: NodeId,
        at: Duration,
        ecn: Ecn,
        copy_at: Option<Duration>,
    },
    Lost(Loss),
    /// It is lost as too long, and its sender gets an ICMP error.
    TooLong {
        reported_at: Duration,
        mtu: u16,
    },
}

#[derive(Debug)]
pub(super) struct Underlay {
    random: Random,
    profile: LinkProfile,
    /// The profiles of paths that differ from the default, by sender and receiver.
    special: BTreeMap<(NodeId, NodeId), LinkProfile>,
    hosts: BTreeMap<SocketAddr, NodeId>,
    /// The group of each node in the partition.
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
    /// The node that already has the address and port.
    pub(super) fn connect(
        &mut self,
        node: NodeId,
        addresses: impl Iterator<Item = SocketAddr> + Clone,
    ) -> Result<(), (SocketAddr, NodeId)> {
        let taken = |address| self.hosts.get(&address).map(|node| (address, *node));
        if let Some(taken) = addresses.clone().find_map(taken) {
            return Err(taken);
        }
        self.hosts.extend(addresses.map(|address| (address, node)));
        self.sides.push(0);
        Ok(())
    }

    pub(super) fn set_link_profile(&mut self, profile: LinkProfile) {
        self.profile = profile;
    }

    pub(super) fn set_link_profile_from(&mut self, from: NodeId, to: NodeId, profile: LinkProfile) {
        self.special.insert((from, to), profile);
    }

    /// Partitions the nodes into these groups. The nodes in none are one more group.
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

    /// Decides on a datagram. Each decision draws the same number of random numbers, so a changed profile does not
    /// affect other random events.
    pub(super) fn carry(&mut self, from: NodeId, datagram: &Datagram, now: Duration) -> Outcome {
        let Some(node) = self.hosts.get(&datagram.to).copied() else { return Outcome::Lost(Loss::NoHost) };
        let profile = self.special.get(&(from, node)).copied().unwrap_or(self.profile);
        let LinkProfile { latency, jitter, loss, duplication, congestion, mtu } = profile;
        let random = &mut self.random;
        let [is_lost, is_copied, is_marked] =
            [loss, duplication, congestion].map(|probability| random.happens(probability));
        let [at, copy_at] = [(); 2].map(|()| now.saturating_add(latency).saturating_add(random.up_to(jitter)));
        if self.is_parted(from, node) {
            return Outcome::Lost(Loss::Partition);
        }
        if outer_len(datagram) > usize::from(mtu) {
            return Outcome::TooLong { reported_at: now.saturating_add(latency), mtu };
        }
        if is_lost {
            return Outcome::Lost(Loss::Random);
        }
        let ecn = if is_marked && datagram.ecn != Ecn::NotEct { Ecn::Ce } else { datagram.ecn };
        Outcome::Arrives { node, at, ecn, copy_at: is_copied.then_some(copy_at) }
    }
}

pub(super) fn outer_len(datagram: &Datagram) -> usize {
    const UDP: usize = 8;
    let ip = if datagram.to.is_ipv4() { 20 } else { 40 };
    ip + UDP + datagram.payload.len()
}

impl Loss {
    /// All reasons, in alphabetical order.
    pub const ALL: &'static [Self] = &[Self::NoHost, Self::NodeStopped, Self::Partition, Self::Random, Self::TooLong];

    /// Returns the name in traces: lower case with underscores.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoHost => "no_host",
            Self::NodeStopped => "node_stopped",
            Self::Partition => "partition",
            Self::Random => "random",
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
    /// Returns the number of datagrams that nodes sent.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Returns the number of datagrams from [`Sim::inject`](super::Sim::inject).
    #[must_use]
    pub fn injected(&self) -> u64 {
        self.injected
    }

    /// Returns the number of copies by [`LinkProfile::duplication`].
    #[must_use]
    pub fn duplicated(&self) -> u64 {
        self.duplicated
    }

    /// Returns the number of datagrams that arrived at a node.
    #[must_use]
    pub fn arrived(&self) -> u64 {
        self.arrived
    }

    /// Returns the number of datagrams in flight.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        self.in_flight
    }

    /// Returns the number of datagrams lost for this reason.
    #[must_use]
    pub fn lost(&self, loss: Loss) -> u64 {
        self.lost.get(loss as usize).copied().unwrap_or_default()
    }

    /// Returns the number of lost datagrams by reason, without the reasons that never occurred.
    pub fn losses(&self) -> impl Iterator<Item = (Loss, u64)> {
        Loss::ALL.iter().map(|loss| (*loss, self.lost(*loss))).filter(|(_, count)| *count > 0)
    }

    /// Returns true if every datagram is accounted for.
    #[must_use]
    pub fn is_conserved(&self) -> bool {
        let lost: u64 = self.lost.iter().sum();
        self.sent + self.injected + self.duplicated == self.arrived + self.in_flight + lost
    }

    pub(super) fn lose(&mut self, loss: Loss) {
        self.lost.get_mut(loss as usize).into_iter().for_each(|count| *count += 1);
    }
}
