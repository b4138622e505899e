//! One simulated host: an engine that handles one packet at a time.

use alloc::vec::Vec;
use core::fmt;
use core::net::{IpAddr, SocketAddr};
use core::time::Duration;

use bytes::{Bytes, BytesMut};

use super::leases::NodeRoutes;
use super::underlay::{Datagram, outer_len};
use crate::endpoint::{Direction, Endpoint};
use crate::engine::{Engine, SendFailure, Sink, Unsent, WriteFailure};
use crate::forward::{
    Counters, DatagramMeta, DirectionCounters, DropReason, Forwarder, ForwarderConfig, IcmpOutcome, PathMode,
    SystemPath,
};
use crate::framing::{Bare, Framing};
use crate::host::{Host, Overhead};
use crate::offload::{Coalesce, VnetHeader};
use crate::route::RouteTable;
use crate::transmit::{QueueLimits, SendQueue, Transmit, Way};
use crate::wire::{DatagramTooBig, Ecn, QuotedHeader};

/// The default MTU of a node's link.
const LINK_MTU: u16 = 1500;

/// The number of a node in a [`Sim`](super::Sim), from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub(super) usize);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {}", self.0)
    }
}

/// A simulated host.
#[derive(Debug)]
pub struct Node<F = Bare> {
    engine: Engine<F>,
    pub(super) routes: NodeRoutes,
    link: Link,
    pub(super) is_up: bool,
    pub(super) seen: Seen,
    /// The time of the scheduled call of [`Node::flush`].
    pub(super) wakes_at: Option<Duration>,
}

/// The fate of a packet at a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fate {
    /// The packet was sent to a peer, or written to the TUN.
    Forwarded,
    /// The packet was dropped, and its sender got an ICMP error.
    Answered,
    /// The packet was dropped without an ICMP error.
    Dropped(DropReason),
}

/// A packet that leaves a node.
#[derive(Debug)]
pub(super) enum Output {
    Tun(Bytes),
    Underlay { to: SocketAddr, ecn: Ecn, payload: Bytes },
}

/// Memory that the nodes use in turn.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) outputs: Vec<Output>,
    /// The send queue, which is empty between calls.
    queue: SendQueue,
}

impl Shared {
    pub(super) fn new() -> Self {
        // One packet is in it, or its fragments.
        Self { queue: SendQueue::new(QueueLimits::new(128 << 10, 128 << 10)), ..Self::default() }
    }
}

/// No memory.
impl Default for Shared {
    fn default() -> Self {
        Self { outputs: Vec::new(), queue: SendQueue::without_room() }
    }
}

/// Packets in and out of a node, counted outside of its engine.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    /// Packets that its TUN accepted while the node was up.
    pub(super) from_tun: u64,
    /// Packets for the TUN while the node was down.
    pub(super) refused: u64,
    pub(super) to_tun: u64,
    pub(super) from_underlay: u64,
    pub(super) to_underlay: u64,
    /// Packets that went to the underlay as fragments.
    pub(super) fragmented: u64,
    /// Fragments that were made and did not go to the underlay, because the own link refused one.
    pub(super) refused_fragments: u64,
}

/// The socket and the TUN of a node.
#[derive(Debug)]
struct Link {
    host: Host,
    /// In bytes of outer packet.
    mtu: u16,
    out: Vec<Output>,
    /// Datagrams that were refused.
    refused: u64,
}

impl Sink for Link {
    fn send(&mut self, batches: &[Transmit<'_>], _: PathMode) -> Result<(), Unsent> {
        for (number, batch) in batches.iter().enumerate() {
            let (to, ecn) = (batch.destination, batch.ecn);
            let longest = usize::from(Overhead::of(to.ip()).inner(self.mtu.into()));
            for (datagram, contents) in batch.segments().enumerate() {
                let reason = match self.host.underlay_to(to.ip()) {
                    None => SendFailure::Unreachable,
                    // The node's link refuses it at once, as EMSGSIZE does.
                    Some(_) if contents.len() > longest => SendFailure::TooLong,
                    Some(_) => {
                        self.out.push(Output::Underlay { to, ecn, payload: Bytes::copy_from_slice(contents) });
                        continue;
                    }
                };
                self.refused += 1;
                return Err(Unsent { batch: number, datagram, datagrams: 1, reason });
            }
        }
        Ok(())
    }

    fn write(&mut self, _: &VnetHeader, packet: &[u8]) -> Result<(), WriteFailure> {
        self.out.push(Output::Tun(Bytes::copy_from_slice(packet)));
        Ok(())
    }

    fn system_path(&mut self, _: &Way, _: &mut dyn FnMut(&DatagramTooBig)) -> SystemPath {
        SystemPath { configured: Some(self.mtu.into()), ..SystemPath::default() }
    }
}

impl<F: Framing> Node<F> {
    pub(super) fn new(forwarder: Forwarder, framing: F) -> Self {
        let host = forwarder.config().host.clone();
        let (endpoint, queue) = (Endpoint::new(forwarder), SendQueue::without_room());
        let engine = Engine::with_queue(endpoint, queue, Coalesce::NONE).unbatched().with_framing(framing);
        Self {
            engine,
            routes: NodeRoutes::new(&host),
            link: Link { host, mtu: LINK_MTU, out: Vec::new(), refused: 0 },
            is_up: true,
            seen: Seen::default(),
            wakes_at: None,
        }
    }

    /// Returns the settings of its forwarder.
    #[must_use]
    pub fn config(&self) -> &ForwarderConfig {
        self.engine.endpoint().forwarder().config()
    }

    /// Returns the counters of all packets. A restart keeps them.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.engine.counters()
    }

    #[cfg(test)]
    pub(super) fn counters_mut(&mut self) -> &mut Counters {
        self.engine.endpoint_mut().counters_mut()
    }

    /// Returns its framing.
    #[must_use]
    pub fn framing(&self) -> &F {
        self.engine.framing()
    }

    pub(super) fn framing_mut(&mut self) -> &mut F {
        self.engine.framing_mut()
    }

    /// Returns whether the node runs.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.is_up
    }

    /// Returns the number of packets for its TUN while it did not run. Its own counters do not include them.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.seen.refused
    }

    /// Returns the learned path MTU to a peer, in bytes of inner packet. `now` is the simulation's time.
    #[must_use]
    pub fn path_mtu(&self, peer: IpAddr, now: Duration) -> Option<u16> {
        self.engine.endpoint().paths().lookup(peer, now)
    }

    /// Stops the node. Packets that wait for a session are dropped.
    pub(super) fn stop(&mut self) {
        self.is_up = false;
        self.engine.drop_peers(|_| true, DropReason::Stopped);
    }

    /// Restarts the node. It keeps only its counters and its framing.
    pub(super) fn restart(&mut self) {
        self.engine.endpoint_mut().forget();
        self.is_up = true;
    }

    pub(super) fn set_link_mtu(&mut self, mtu: u16) {
        self.link.mtu = mtu;
    }

    /// Returns the time of the next call of [`flush`](Self::flush), if one is necessary.
    pub(super) fn wake_at(&self) -> Option<Duration> {
        self.engine.wake_at().filter(|_| self.is_up)
    }

    /// Handles a router's report that a datagram of this node was too long. `mtu` is in bytes of outer packet. The
    /// report quotes the whole datagram. Only IPv4 routers are simulated.
    pub(super) fn fragmentation_needed(&mut self, datagram: &Datagram, mtu: u16, now: Duration) -> bool {
        let source = SocketAddr::new(datagram.from.ip().to_canonical(), datagram.from.port());
        let destination = datagram.to;
        if source.is_ipv6() || destination.is_ipv6() {
            return false;
        }
        let len = u16::try_from(outer_len(datagram)).unwrap_or(u16::MAX);
        let inner = QuotedHeader::parse(&datagram.payload);
        let report = DatagramTooBig { mtu, source, destination, len, inner };
        let outcome = self.engine.endpoint_mut().handle_icmp(&report, self.routes.table(), now);
        matches!(outcome, IcmpOutcome::Lowered { .. })
    }

    /// Handles a packet from the TUN.
    pub(super) fn encapsulate(&mut self, mut packet: BytesMut, now: Duration, shared: &mut Shared) {
        self.handle(shared, |engine, routes, link| {
            engine.from_tun(&NOTHING_LEFT, &mut packet, routes, now, link);
        });
    }

    /// Handles a datagram from the underlay.
    pub(super) fn decapsulate(
        &mut self,
        mut datagram: BytesMut,
        outer: DatagramMeta,
        now: Duration,
        shared: &mut Shared,
    ) {
        self.handle(shared, |engine, routes, link| {
            engine.from_udp(outer, &mut datagram, routes, now, link);
        });
    }

    /// Does what is due: the timeouts of the framing, and the end of packets that waited for a session.
    pub(super) fn flush(&mut self, now: Duration, shared: &mut Shared) {
        self.handle(shared, |engine, routes, link| engine.flush(routes, now, link));
    }

    fn handle(&mut self, shared: &mut Shared, work: impl FnOnce(&mut Engine<F>, &RouteTable, &mut Link)) {
        let Self { engine, routes, link, seen, .. } = self;
        let count = |engine: &Engine<F>| {
            let Counters { encap, stats, .. } = engine.endpoint().counters();
            [encap.forwarded(), stats.fragments_made, stats.control_sent]
        };
        let [forwarded_before, made_before, control_before] = count(engine);
        (link.out, link.refused) = (core::mem::take(&mut shared.outputs), 0);
        engine.swap_queue(&mut shared.queue);
        work(engine, routes.table(), link);
        engine.swap_queue(&mut shared.queue);
        let out = &mut shared.outputs;
        *out = core::mem::take(&mut link.out);
        let [forwarded, made, control] = count(engine);
        let (forwarded, made) = (forwarded - forwarded_before, made - made_before);
        if made == 0 {
            return;
        }
        let to_underlay = out.iter().filter(|output| matches!(output, Output::Underlay { .. })).count() as u64;
        let sent = to_underlay - (control - control_before);
        if link.refused > 0 {
            seen.refused_fragments += made.saturating_sub(sent);
            seen.fragmented += forwarded;
        } else {
            // Without sessions there is one packet. With them, packets that waited may have gone whole.
            let whole = (forwarded + made).saturating_sub(sent);
            seen.fragmented += if F::HAS_SESSIONS { whole.min(made / 2) } else { 1 };
        }
    }
}

/// Returns the fates that were counted between two moments.
pub(super) fn fates(before: &Counters, after: &Counters) -> Vec<(Direction, Fate)> {
    let mut fates = Vec::new();
    let flows = [(Direction::Outbound, &before.encap, &after.encap), (Direction::Inbound, &before.decap, &after.decap)];
    for (direction, before, after) in flows {
        let mut add = |fate, count: fn(&DirectionCounters, Fate) -> u64| {
            let count = count(after, fate).saturating_sub(count(before, fate));
            fates.extend((0..count).map(|_| (direction, fate)));
        };
        add(Fate::Forwarded, |flow, _| flow.forwarded());
        add(Fate::Answered, |flow, _| flow.answered());
        for (reason, _) in after.drops() {
            add(Fate::Dropped(reason), |flow, fate| match fate {
                Fate::Dropped(reason) => flow.dropped(reason),
                Fate::Forwarded | Fate::Answered => 0,
            });
        }
    }
    fates
}

/// The header of a packet that needs no offload.
const NOTHING_LEFT: VnetHeader =
    VnetHeader { flags: 0, gso_type: 0, hdr_len: 0, gso_size: 0, csum_start: 0, csum_offset: 0 };
