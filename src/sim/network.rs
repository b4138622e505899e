//! The simulation: a clock, scheduled events, and the nodes.

use alloc::vec::Vec;
use core::net::SocketAddr;
use core::ops::Index;
use core::time::Duration;

use bytes::Bytes;
use ipnet::IpNet;

use super::events::Next;
use super::invariants::{self, InvariantViolation};
use super::leases::Leases;
use super::node::Shared;
use super::queue::Queue;
use super::underlay::{Datagram, Underlay};
use super::{LinkProfile, Node, NodeId, Record, UnderlayCounters};
use crate::forward::{ConfigError, Counters, DatagramMeta, Forwarder, ForwarderConfig};
use crate::framing::{Bare, Framing};
use crate::lease::{LeaseEvent, Reconciler, SourceId};
use crate::route::{Applied, RouteChange, RouteTable};

/// A simulation of the hosts of one overlay network, the underlay between them, and a clock that advances from event to
/// event. See the [module](super) for its usage.
///
/// `K` is the type of the lease sources' keys. Without leases the default is sufficient: `let mut sim: Sim =
/// Sim::new(network, 1);`.
///
/// `F` is the framing of the nodes: see [`with_framing`](Self::with_framing).
///
/// # Panics
/// Every method that takes a [`NodeId`] panics if the id is from a simulation with more nodes.
#[derive(Debug)]
pub struct Sim<K = u64, F = Bare> {
    networks: Vec<IpNet>,
    pub(super) now: Duration,
    nodes: Vec<Node<F>>,
    pub(super) leases: Leases<K>,
    pub(super) underlay: Underlay,
    pub(super) queue: Queue<Next>,
    pub(super) delivered: Vec<Delivered>,
    pub(super) trace: Option<Vec<Record>>,
    pub(super) shared: Shared,
}

/// A packet that a node wrote to its TUN device: from a peer, or an ICMP error of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivered {
    /// The time.
    pub at: Duration,
    /// The node.
    pub node: NodeId,
    /// The packet.
    pub packet: Bytes,
}

/// The reason why a node cannot be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    /// Two sockets cannot be bound to one address and port.
    #[error("{address} is already the underlay address of {node}; use another address or port")]
    AddressTaken {
        /// The address and port.
        address: SocketAddr,
        /// The node that has it.
        node: NodeId,
    },
    /// All nodes share the overlay networks.
    #[error("{network} is not an overlay network of this simulation; use the same networks for all nodes")]
    OtherNetwork {
        /// The network of the node.
        network: IpNet,
    },
    /// The forwarder refuses the settings.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

impl<K: Ord + Clone> Sim<K> {
    /// Creates a simulation without nodes, at time zero. The same seed and the same calls produce the same events on
    /// every platform.
    #[must_use]
    pub fn new(network: impl Into<IpNet>, seed: u64) -> Self {
        let networks = alloc::vec![network.into().trunc()];
        Self {
            networks: networks.clone(),
            now: Duration::ZERO,
            nodes: Vec::new(),
            leases: Leases::new(networks),
            underlay: Underlay::new(seed),
            queue: Queue::new(),
            delivered: Vec::new(),
            trace: None,
            shared: Shared::new(),
        }
    }

    /// Adds a second network, of the other IP family. Call it before nodes and leases are added.
    #[must_use]
    pub fn with_network(self, network: impl Into<IpNet>) -> Self {
        let mut networks = self.networks;
        networks.push(network.into().trunc());
        Self { networks: networks.clone(), leases: Leases::new(networks), ..self }
    }

    /// Returns the simulation with nodes that have a framing. Call it before nodes are added.
    #[must_use]
    pub fn with_framing<F: Framing>(self) -> Sim<K, F> {
        let Self { networks, now, leases, underlay, queue, delivered, trace, shared, nodes: _ } = self;
        Sim { networks, now, nodes: Vec::new(), leases, underlay, queue, delivered, trace, shared }
    }
}

impl<K: Ord + Clone, F: Framing> Sim<K, F> {
    /// Adds a host, which runs and receives leases from now on. Several hosts may own one subnet, for example one that
    /// replaces another.
    ///
    /// # Errors
    /// The settings are invalid, or conflict with those of another node.
    pub fn add_node(&mut self, config: ForwarderConfig) -> Result<NodeId, NodeError>
    where
        F: Default,
    {
        self.add_node_with(config, F::default())
    }

    /// Adds a host with this framing: see [`add_node`](Self::add_node).
    ///
    /// # Errors
    /// The settings are invalid, or conflict with those of another node.
    pub fn add_node_with(&mut self, config: ForwarderConfig, framing: F) -> Result<NodeId, NodeError> {
        let (forwarder, id) = (Forwarder::new(config)?, NodeId(self.nodes.len()));
        let host = &forwarder.config().host;
        if let Some(network) = host.networks().iter().find(|network| !self.networks.contains(network)) {
            return Err(NodeError::OtherNetwork { network: *network });
        }
        // Without an IPv6 scope.
        let addresses = host.underlays().iter().map(|underlay| SocketAddr::new(underlay.ip(), underlay.port()));
        self.underlay.connect(id, addresses).map_err(|(address, node)| NodeError::AddressTaken { address, node })?;
        self.nodes.push(Node::new(forwarder, framing));
        Ok(id)
    }

    /// Returns all nodes, in the order in which they were added.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> + use<K, F> {
        (0..self.nodes.len()).map(NodeId)
    }

    /// Returns the time since the start.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.now
    }

    /// Sends a packet from a node's TUN device now.
    pub fn send(&mut self, node: NodeId, packet: impl Into<Bytes>) {
        self.read_from_tun(node, packet.into());
    }

    /// Sends a packet from a node's TUN device at a later time; if it has passed, at the next [`step`](Self::step).
    pub fn send_at(&mut self, at: Duration, node: NodeId, packet: impl Into<Bytes>) {
        self.queue.push(at.max(self.now), Next::FromTun { node, packet: packet.into() });
    }

    /// Delivers a datagram to a node that no node has sent, from a stranger or with a forged sender.
    pub fn inject(&mut self, node: NodeId, outer: impl Into<DatagramMeta>, datagram: impl Into<Bytes>) {
        let DatagramMeta { from, ecn } = outer.into();
        let host = &self[node].config().host;
        let to = host.underlay_to(from.ip()).unwrap_or(host.underlay());
        let datagram = Datagram { from, to, ecn, payload: datagram.into() };
        self.underlay.counters.injected += 1;
        self.receive(node, datagram);
    }

    /// Handles the next event and returns true, or returns false if there is none.
    pub fn step(&mut self) -> bool {
        let Some((at, next)) = self.queue.pop() else { return false };
        self.go_to(at);
        self.handle(next);
        true
    }

    /// Handles all events until this time and advances the clock to it. A past time has no effect.
    pub fn run_until(&mut self, time: Duration) {
        while self.queue.next_at().is_some_and(|at| at <= time) {
            self.step();
        }
        self.go_to(time.max(self.now));
    }

    /// Handles all events of this duration and advances the clock.
    pub fn run_for(&mut self, duration: Duration) {
        self.run_until(self.now.saturating_add(duration));
    }

    /// Handles events until nothing is in flight. Leases that expire later stay. With a framing that has a timeout at
    /// all times it does not return.
    pub fn run_until_idle(&mut self) {
        while self.step() {}
    }

    /// Returns the packets that were written to TUN devices since the last call, in their order.
    #[must_use = "packets are handed out once"]
    pub fn take_delivered(&mut self) -> Vec<Delivered> {
        core::mem::take(&mut self.delivered)
    }

    /// Passes an event of a lease source to all nodes that receive leases. It affects packets sent from now on, not
    /// packets in flight. Leases expire by the simulation's clock.
    pub fn lease_event(&mut self, source: SourceId, event: LeaseEvent<K>) {
        self.leases.handle_event(source, event, self.now);
    }

    /// Returns the leases and conflicts from the view of a host without leases. The simulator itself takes its changes.
    #[must_use]
    pub fn leases(&self) -> &Reconciler<K> {
        self.leases.reconciler()
    }

    /// Sets whether a node receives leases. A node without leases keeps its routes. It catches up when it receives
    /// leases again.
    pub fn set_hears_leases(&mut self, node: NodeId, hears_leases: bool) {
        self.refresh(node);
        self.node_mut(node).routes.hears_leases = hears_leases;
    }

    /// Sets routes of one node that leases do not change. Use it for nodes whose routes have another source, for
    /// example their own [`Reconciler`].
    pub fn change_routes(&mut self, node: NodeId, changes: impl IntoIterator<Item = RouteChange>) -> Applied {
        self.refresh(node);
        self.node_mut(node).routes.change(changes.into_iter().collect())
    }

    /// Returns the current routes of a node.
    #[must_use]
    pub fn routes(&mut self, node: NodeId) -> &RouteTable {
        self.refresh(node);
        self[node].routes.table()
    }

    /// Sets the profile of all paths that have none of their own.
    pub fn set_link_profile(&mut self, profile: LinkProfile) {
        self.underlay.set_link_profile(profile);
    }

    /// Sets the profile between two nodes, for both directions.
    pub fn set_link_profile_between(&mut self, one: NodeId, other: NodeId, profile: LinkProfile) {
        self.underlay.set_link_profile_from(one, other, profile);
        self.underlay.set_link_profile_from(other, one, profile);
    }

    /// Sets the profile from one node to another, for this direction only.
    pub fn set_link_profile_from(&mut self, from: NodeId, to: NodeId, profile: LinkProfile) {
        self.underlay.set_link_profile_from(from, to, profile);
    }

    /// Sets the MTU of a node's link, in bytes of outer packet. Default 1500. Longer packets are refused at once, as
    /// Linux does with EMSGSIZE.
    pub fn set_link_mtu(&mut self, node: NodeId, mtu: u16) {
        self.node_mut(node).set_link_mtu(mtu);
    }

    /// Partitions the underlay: the nodes of each group reach only each other. The nodes in no group are one more
    /// group. Datagrams in flight between groups are lost. It replaces an earlier partition.
    pub fn partition(&mut self, groups: impl IntoIterator<Item = impl IntoIterator<Item = NodeId>>) {
        self.underlay.partition(groups);
    }

    /// Ends the partition.
    pub fn heal(&mut self) {
        self.underlay.partition([[]; 0]);
    }

    /// Stops a node: its packets from both sides are dropped, as are those that wait for a session. It has no effect on
    /// a stopped node.
    pub fn stop(&mut self, node: NodeId) {
        self.settle(node, Node::stop);
    }

    /// Returns the framing of a node, for example to replace it by that of a new process before [`start`](Self::start).
    pub fn framing_mut(&mut self, node: NodeId) -> &mut F {
        self.node_mut(node).framing_mut()
    }

    /// Starts a stopped node as a new process, without its learned path MTUs and its ICMP limits. Its routes are
    /// current, and its counters continue. It has no effect on a running node.
    pub fn start(&mut self, node: NodeId) {
        if !self.node_mut(node).is_up {
            self.node_mut(node).restart();
            self.schedule(node);
        }
    }

    /// Returns the sum of all nodes' counters.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let mut total = Counters::default();
        self.nodes.iter().for_each(|node| total += &node.counters());
        total
    }

    /// Returns the counters of the underlay.
    #[must_use]
    pub fn underlay(&self) -> &UnderlayCounters {
        &self.underlay.counters
    }

    /// Checks that every packet and datagram is accounted for. It compares each node with its counters, each border of
    /// a node, the underlay, and the underlay with all nodes. This holds at every moment.
    ///
    /// # Errors
    /// The first violation, which is a bug in this crate.
    pub fn check(&self) -> Result<(), InvariantViolation> {
        invariants::check(self.nodes().zip(&self.nodes), &self.underlay.counters)
    }

    /// Starts a trace, which grows until it is taken.
    pub fn keep_trace(&mut self) {
        self.trace.get_or_insert_default();
    }

    /// Returns the events since the last call. It is empty without [`keep_trace`](Self::keep_trace).
    #[must_use = "records are handed out once"]
    pub fn take_trace(&mut self) -> Vec<Record> {
        self.trace.as_mut().map(core::mem::take).unwrap_or_default()
    }

    /// Updates the table of a node.
    pub(super) fn refresh(&mut self, NodeId(at): NodeId) {
        if let Some(node) = self.nodes.get_mut(at) {
            self.leases.refresh(&mut node.routes);
        }
    }

    #[expect(clippy::indexing_slicing, reason = "an id is a place in the list, and no node is ever taken away")]
    pub(super) fn node_mut(&mut self, NodeId(at): NodeId) -> &mut Node<F> {
        &mut self.nodes[at]
    }
}

/// # Panics
/// If the id is from a simulation with more nodes.
impl<K, F> Index<NodeId> for Sim<K, F> {
    type Output = Node<F>;

    #[expect(clippy::indexing_slicing, reason = "an id is a place in the list, and no node is ever taken away")]
    fn index(&self, NodeId(at): NodeId) -> &Node<F> {
        &self.nodes[at]
    }
}
