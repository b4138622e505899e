//! The simulation: a clock, what is going to happen, and the nodes it happens to.

use alloc::vec::Vec;
use core::net::SocketAddr;
use core::ops::Index;
use core::time::Duration;

use bytes::Bytes;
use ipnet::IpNet;

use super::events::Next;
use super::invariants::{self, InvariantViolation};
use super::leases::Leases;
use super::node::Output;
use super::queue::Queue;
use super::underlay::{Datagram, Underlay};
use super::{LinkProfile, Node, NodeId, Record, UnderlayCounters};
use crate::forward::{Counters, Forwarder, Outer, Overlay, OverlayError};
use crate::lease::{LeaseEvent, Reconciler, SourceId};
use crate::route::{Applied, RouteChange, RouteTable};

/// Hosts of one overlay network, the underlay between them, and a clock that jumps from one event to the next. See the
/// [module](super) for how it is used.
///
/// `K` is what the sources of leases call them; without leases the default does: `let mut sim: Sim = Sim::new(network, 1);`.
///
/// # Panics
/// Every method that takes a [`NodeId`] panics if that is of another simulation with more nodes.
#[derive(Debug)]
pub struct Sim<K = u64> {
    network: IpNet,
    pub(super) now: Duration,
    nodes: Vec<Node>,
    pub(super) leases: Leases<K>,
    pub(super) underlay: Underlay,
    pub(super) queue: Queue<Next>,
    pub(super) delivered: Vec<Delivered>,
    pub(super) trace: Option<Vec<Record>>,
    /// What the last packet brought about; kept for its memory.
    pub(super) outputs: Vec<Output>,
}

/// A packet that a node wrote to its TUN: from a peer, or an ICMP error of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivered {
    /// When.
    pub at: Duration,
    /// Where.
    pub node: NodeId,
    /// The packet.
    pub packet: Bytes,
}

/// A node that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    /// Two sockets cannot be bound to one address and port.
    #[error("{address} is the underlay address of {node} already; give every node one of its own")]
    AddressTaken {
        /// The address and port.
        address: SocketAddr,
        /// Whose it is.
        node: NodeId,
    },
    /// All nodes share one overlay network.
    #[error("the overlay network is {ours} for all nodes of this simulation, not {network}")]
    OtherNetwork {
        /// The network of the node.
        network: IpNet,
        /// The network of the simulation.
        ours: IpNet,
    },
    /// The settings are none that a forwarder can work with.
    #[error(transparent)]
    Overlay(#[from] OverlayError),
}

impl<K: Ord + Clone> Sim<K> {
    /// A simulation without nodes, at time zero. The same seed and the same calls give the same events, to the byte, on every
    /// platform.
    #[must_use]
    pub fn new(network: impl Into<IpNet>, seed: u64) -> Self {
        let network = network.into().trunc();
        Self {
            network,
            now: Duration::ZERO,
            nodes: Vec::new(),
            leases: Leases::new(network),
            underlay: Underlay::new(seed),
            queue: Queue::new(),
            delivered: Vec::new(),
            trace: None,
            outputs: Vec::new(),
        }
    }

    /// Adds a host, which runs and hears of leases from now on. Several may own one subnet, as when one takes another's place.
    ///
    /// # Errors
    /// If the settings make no sense, or not together with those of the other nodes.
    pub fn add_node(&mut self, overlay: Overlay) -> Result<NodeId, NodeError> {
        let forwarder = Forwarder::new(overlay)?;
        let (network, ours, id) = (overlay.network.trunc(), self.network, NodeId(self.nodes.len()));
        if network != ours {
            return Err(NodeError::OtherNetwork { network, ours });
        }
        let address = SocketAddr::new(overlay.underlay.ip().to_canonical(), overlay.underlay.port());
        self.underlay.connect(id, address).map_err(|node| NodeError::AddressTaken { address, node })?;
        self.nodes.push(Node::new(forwarder));
        Ok(id)
    }

    /// All nodes, in the order they were added.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> + use<K> {
        (0..self.nodes.len()).map(NodeId)
    }

    /// The time since the beginning.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.now
    }

    /// Lets a packet come out of a node's TUN now.
    pub fn send(&mut self, node: NodeId, packet: impl Into<Bytes>) {
        self.read_from_tun(node, packet.into());
    }

    /// Lets a packet come out of a node's TUN at a later time; if that has passed, at the next [`step`](Self::step).
    pub fn send_at(&mut self, at: Duration, node: NodeId, packet: impl Into<Bytes>) {
        self.queue.push(at.max(self.now), Next::FromTun { node, packet: packet.into() });
    }

    /// Lets a datagram arrive at a node now that no node has sent: a stranger's, or with a peer's address as its sender's.
    pub fn inject(&mut self, node: NodeId, outer: impl Into<Outer>, datagram: impl Into<Bytes>) {
        let Outer { from, ecn } = outer.into();
        let datagram = Datagram { from, to: self[node].overlay().underlay, ecn, payload: datagram.into() };
        self.underlay.counters.injected += 1;
        self.receive(node, datagram);
    }

    /// Goes on to the next event, and returns whether there was one.
    pub fn step(&mut self) -> bool {
        let Some((at, next)) = self.queue.pop() else { return false };
        self.go_to(at);
        self.handle(next);
        true
    }

    /// Goes on until this time, which is then the time of now. If it has passed already, nothing happens.
    pub fn run_until(&mut self, time: Duration) {
        while self.queue.next_at().is_some_and(|at| at <= time) {
            self.step();
        }
        self.go_to(time.max(self.now));
    }

    /// Goes on for this long.
    pub fn run_for(&mut self, duration: Duration) {
        self.run_until(self.now.saturating_add(duration));
    }

    /// Goes on until nothing is under way any more. Leases that would end later do not.
    pub fn run_until_idle(&mut self) {
        while self.step() {}
    }

    /// The packets that were written to TUNs since the last call, in the order they were.
    #[must_use = "packets are handed out once"]
    pub fn take_delivered(&mut self) -> Vec<Delivered> {
        core::mem::take(&mut self.delivered)
    }

    /// Lets all nodes that hear of leases know what a source says. Whatever is sent from now on goes by it; what is under way
    /// already goes where it went. Leases end by the simulation's clock.
    pub fn lease_event(&mut self, source: SourceId, event: LeaseEvent<K>) {
        self.leases.handle_event(source, event, self.now);
    }

    /// The leases that there are and the conflicts between them, as they are to a host that has none of them itself. Its
    /// changes are the simulator's to take.
    #[must_use]
    pub fn leases(&self) -> &Reconciler<K> {
        self.leases.reconciler()
    }

    /// Whether a node hears of leases. One that does not keeps the routes it has; one that hears again has missed nothing.
    pub fn set_hears_leases(&mut self, node: NodeId, hears_leases: bool) {
        self.refresh(node);
        self.node_mut(node).routes.hears_leases = hears_leases;
    }

    /// Changes the routes of one node, for good: what leases say of these subnets is nothing to it any more. For nodes whose
    /// routes come from somewhere else, a [`Reconciler`] of their own say.
    pub fn change_routes(&mut self, node: NodeId, changes: impl IntoIterator<Item = RouteChange>) -> Applied {
        self.refresh(node);
        self.node_mut(node).routes.change(changes.into_iter().collect())
    }

    /// The routes of a node now.
    #[must_use]
    pub fn routes(&mut self, node: NodeId) -> &RouteTable {
        self.refresh(node);
        self[node].routes.table()
    }

    /// The conditions on every way that has none of its own.
    pub fn set_link_profile(&mut self, profile: LinkProfile) {
        self.underlay.set_link_profile(profile);
    }

    /// The conditions between two nodes, both ways.
    pub fn set_link_profile_between(&mut self, one: NodeId, other: NodeId, profile: LinkProfile) {
        self.underlay.set_link_profile_from(one, other, profile);
        self.underlay.set_link_profile_from(other, one, profile);
    }

    /// The conditions from one node to another, this way alone.
    pub fn set_link_profile_from(&mut self, from: NodeId, to: NodeId, profile: LinkProfile) {
        self.underlay.set_link_profile_from(from, to, profile);
    }

    /// The MTU of a node's own link, in bytes of outer packet. Default 1500. What is longer is refused at once, as Linux does
    /// with EMSGSIZE, and not even sent.
    pub fn set_link_mtu(&mut self, node: NodeId, mtu: u16) {
        self.node_mut(node).set_link_mtu(mtu);
    }

    /// Parts the underlay: the nodes of each group hear one another and nobody else; those in no group are a group too. What
    /// is under way between groups is lost. Takes the place of an earlier partition.
    pub fn partition(&mut self, groups: impl IntoIterator<Item = impl IntoIterator<Item = NodeId>>) {
        self.underlay.partition(groups);
    }

    /// Ends the partition.
    pub fn heal(&mut self) {
        self.underlay.partition([[]; 0]);
    }

    /// Stops a node: nobody takes its packets any more, from either side. Nothing happens if it is stopped already.
    pub fn stop(&mut self, node: NodeId) {
        self.node_mut(node).is_up = false;
    }

    /// Starts a stopped node, as a process that is new: what it learned of paths and the ICMP errors it sent are forgotten.
    /// Its routes are those of now, and its counters go on. Nothing happens if it is running.
    pub fn start(&mut self, node: NodeId) {
        if !self.node_mut(node).is_up {
            self.node_mut(node).restart();
        }
    }

    /// The counters of all nodes, added up.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let mut total = Counters::default();
        self.nodes.iter().for_each(|node| total += node.counters());
        total
    }

    /// Where every datagram went.
    #[must_use]
    pub fn underlay(&self) -> &UnderlayCounters {
        &self.underlay.counters
    }

    /// Whether every packet and datagram is accounted for: at each node, at each border between a node and its surroundings,
    /// on the underlay, and between the underlay and all nodes. It is at every moment.
    ///
    /// # Errors
    /// The first thing that does not add up: a fault in this crate.
    pub fn check(&self) -> Result<(), InvariantViolation> {
        invariants::check(self.nodes().zip(&self.nodes), &self.underlay.counters)
    }

    /// Begins to keep a trace, which grows until it is taken.
    pub fn keep_trace(&mut self) {
        self.trace.get_or_insert_default();
    }

    /// What happened since the last call. Empty without [`keep_trace`](Self::keep_trace).
    #[must_use = "records are handed out once"]
    pub fn take_trace(&mut self) -> Vec<Record> {
        self.trace.as_mut().map(core::mem::take).unwrap_or_default()
    }

    /// Gives a node the table of now.
    pub(super) fn refresh(&mut self, NodeId(at): NodeId) {
        if let Some(node) = self.nodes.get_mut(at) {
            self.leases.refresh(&mut node.routes);
        }
    }

    #[expect(clippy::indexing_slicing, reason = "an id is a place in the list, and no node is ever taken away")]
    pub(super) fn node_mut(&mut self, NodeId(at): NodeId) -> &mut Node {
        &mut self.nodes[at]
    }
}

/// # Panics
/// If the id is of another simulation with more nodes.
impl<K> Index<NodeId> for Sim<K> {
    type Output = Node;

    #[expect(clippy::indexing_slicing, reason = "an id is a place in the list, and no node is ever taken away")]
    fn index(&self, NodeId(at): NodeId) -> &Node {
        &self.nodes[at]
    }
}
