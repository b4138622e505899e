//! One host: the forwarder, and around it what a worker does, one packet at a time.

use alloc::vec::Vec;
use core::fmt;
use core::net::{IpAddr, SocketAddr};
use core::time::Duration;

use bytes::{Bytes, BytesMut};

use super::leases::NodeRoutes;
use super::trace::Direction;
use super::underlay::{Datagram, outer_len};
use crate::forward::{
    Counters, Decap, DirectionCounters, DropReason, EmsgsizeOutcome, Encap, Forwarder, IcmpLimiter, IcmpOutcome, Outer,
    Overlay, PathMtus, Reject, RejectReason, ReplyTo, SystemPath,
};
use crate::lease::Host;
use crate::transmit::{Transmit, Way};
use crate::wire::{DatagramTooBig, Ecn, icmpv4};

/// A node's own link, unless it is set.
const LINK_MTU: u16 = 1500;

/// A node of a [`Sim`](super::Sim): its place among them, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub(super) usize);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {}", self.0)
    }
}

/// A simulated host, to be looked at.
#[derive(Debug)]
pub struct Node {
    forwarder: Forwarder,
    pub(super) routes: NodeRoutes,
    memory: Memory,
    pub(super) is_up: bool,
    pub(super) seen: Seen,
}

/// What became of a packet at a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fate {
    /// It went on: to a peer, or to the TUN.
    Forwarded,
    /// It went nowhere, and its sender was told.
    Answered(RejectReason),
    /// It went nowhere, in silence.
    Dropped(DropReason),
}

/// What leaves a node.
#[derive(Debug)]
pub(super) enum Output {
    Tun(Bytes),
    Underlay { to: SocketAddr, ecn: Ecn, payload: Bytes },
}

/// What crossed a node's borders, counted outside of it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    /// Packets its TUN took while it was up.
    pub(super) from_tun: u64,
    /// Packets that nobody took.
    pub(super) refused: u64,
    pub(super) to_tun: u64,
    pub(super) from_underlay: u64,
    pub(super) to_underlay: u64,
    /// Packets that went to the underlay in pieces.
    pub(super) fragmented: u64,
}

/// What a node remembers from packet to packet.
#[derive(Debug)]
struct Memory {
    counters: Counters,
    limiter: IcmpLimiter,
    paths: PathMtus,
    /// In bytes of outer packet.
    link_mtu: u16,
}

impl Node {
    pub(super) fn new(forwarder: Forwarder) -> Self {
        let Overlay { network, subnet, underlay, .. } = *forwarder.overlay();
        Self {
            forwarder,
            routes: NodeRoutes::new(Host::new(network, subnet, underlay)),
            memory: Memory {
                counters: Counters::default(),
                limiter: IcmpLimiter::default(),
                paths: PathMtus::default(),
                link_mtu: LINK_MTU,
            },
            is_up: true,
            seen: Seen::default(),
        }
    }

    /// The settings of its forwarder.
    #[must_use]
    pub fn overlay(&self) -> &Overlay {
        self.forwarder.overlay()
    }

    /// Where every packet went, over all its lives.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.memory.counters
    }

    #[cfg(test)]
    pub(super) fn counters_mut(&mut self) -> &mut Counters {
        &mut self.memory.counters
    }

    /// Whether it runs.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.is_up
    }

    /// Packets for its TUN that nobody took, because it did not run. They are in no counter of its own.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.seen.refused
    }

    /// What it has learned of the path to a peer, in bytes of inner packet. `now` is the simulation's.
    #[must_use]
    pub fn path_mtu(&self, peer: IpAddr, now: Duration) -> Option<u16> {
        self.memory.paths.lookup(peer, now)
    }

    /// Starts it anew: all is forgotten but what is counted.
    pub(super) fn restart(&mut self) {
        (self.memory.limiter, self.memory.paths) = (IcmpLimiter::default(), PathMtus::default());
        self.is_up = true;
    }

    pub(super) fn set_link_mtu(&mut self, mtu: u16) {
        self.memory.link_mtu = mtu;
    }

    /// A router on the way reports that a datagram of this node was too long, in bytes of outer packet, and quotes all of it.
    /// Only reports of IPv4 routers are played.
    pub(super) fn fragmentation_needed(&mut self, datagram: &Datagram, mtu: u16, now: Duration) -> bool {
        let Self { forwarder, routes, memory, .. } = self;
        let SocketAddr::V4(destination) = datagram.to else { return false };
        let SocketAddr::V4(source) = SocketAddr::new(datagram.from.ip().to_canonical(), datagram.from.port()) else {
            return false;
        };
        let len = u16::try_from(outer_len(datagram)).unwrap_or(u16::MAX);
        let inner = datagram.payload.first_chunk().copied();
        let report = DatagramTooBig { mtu, source, destination, len, inner };
        let outcome = memory.paths.handle_icmp(&report, forwarder, routes.table(), now);
        let is_news = matches!(outcome, IcmpOutcome::Lowered { .. });
        memory.counters.stats.path_mtu_lowered += u64::from(is_news);
        is_news
    }

    /// A packet out of the TUN.
    pub(super) fn encapsulate(&mut self, mut packet: BytesMut, now: Duration, out: &mut Vec<Output>) -> Fate {
        let Self { forwarder, routes, memory, .. } = self;
        let received = packet.len();
        memory.counters.encap.receive();
        let bytes: &mut [u8] = &mut packet;
        let mut verdict = forwarder.encapsulate(bytes, routes.table());
        if let Some((way, longest)) = datagrams_of(&verdict)
            && let Some(mtu) = memory.refusing_mtu(way.destination, longest, now)
        {
            verdict = forwarder.refused_as_too_long(bytes, way, mtu, routes.table()).into();
        }
        match verdict {
            Encap::Send(transmit) => {
                let Transmit { destination: to, ecn, contents, .. } = transmit;
                let len = contents.len();
                packet.truncate(len);
                memory.count_trimmed(len, received);
                out.push(Output::Underlay { to, ecn, payload: packet.freeze() });
            }
            Encap::Fragment(mut fragments) => {
                memory.count_trimmed(fragments.packet().len(), received);
                while let Some(Transmit { destination: to, ecn, contents, .. }) = fragments.cut_next() {
                    memory.counters.stats.fragments_made += 1;
                    out.push(Output::Underlay { to, ecn, payload: Bytes::copy_from_slice(contents) });
                }
            }
            Encap::Reject(reject) => {
                memory.count_trimmed(reject.offender().as_bytes().len(), received);
                return memory.answer(Direction::Encap, &reject, now, out);
            }
            Encap::Drop(reason) => return memory.discard(Direction::Encap, reason),
        }
        memory.counters.encap.forward();
        Fate::Forwarded
    }

    /// A datagram from the underlay.
    pub(super) fn decapsulate(
        &mut self,
        mut datagram: BytesMut,
        outer: Outer,
        now: Duration,
        out: &mut Vec<Output>,
    ) -> Fate {
        let Self { forwarder, routes, memory, .. } = self;
        let received = datagram.len();
        memory.counters.decap.receive();
        let len = match forwarder.decapsulate(&mut datagram, outer, routes.table()) {
            Decap::Deliver(packet) => packet.len(),
            Decap::Reject(reject) => {
                memory.count_trimmed(reject.offender().as_bytes().len(), received);
                return memory.answer(Direction::Decap, &reject, now, out);
            }
            Decap::Drop(reason) => return memory.discard(Direction::Decap, reason),
        };
        datagram.truncate(len);
        memory.count_trimmed(len, received);
        memory.counters.decap.forward();
        out.push(Output::Tun(datagram.freeze()));
        Fate::Forwarded
    }
}

/// Where the datagrams of a packet go that is sent, and the longest of them in bytes.
fn datagrams_of(verdict: &Encap<'_>) -> Option<(Way, usize)> {
    match verdict {
        Encap::Send(transmit) => Some((Way::from(transmit), transmit.contents.len())),
        Encap::Fragment(fragments) => Some((fragments.way(), fragments.fragmenter().mtu().into())),
        Encap::Reject(_) | Encap::Drop(_) => None,
    }
}

impl Memory {
    fn flow(&mut self, direction: Direction) -> &mut DirectionCounters {
        match direction {
            Direction::Encap => &mut self.counters.encap,
            Direction::Decap => &mut self.counters.decap,
        }
    }

    /// Whether as much is sent to a peer. A node knows what paths have refused, and its own link refuses at once (EMSGSIZE).
    fn fits(&self, to: SocketAddr, len: usize, now: Duration) -> bool {
        let link = PathMtus::inner(self.link_mtu.into(), to.ip());
        let narrowest = self.paths.lookup(to.ip(), now).map_or(link, |known| known.min(link));
        len <= usize::from(narrowest)
    }

    /// What the path carries, if that is less.
    fn refusing_mtu(&mut self, to: SocketAddr, len: usize, now: Duration) -> Option<u16> {
        if self.fits(to, len, now) {
            return None;
        }
        let link = SystemPath { configured: Some(self.link_mtu.into()), ..SystemPath::default() };
        match self.paths.handle_emsgsize(to, len, link, now, &mut self.counters.stats) {
            EmsgsizeOutcome::Limit(mtu) => Some(mtu),
            EmsgsizeOutcome::Retry | EmsgsizeOutcome::Unexplained => None,
        }
    }

    fn discard(&mut self, direction: Direction, reason: DropReason) -> Fate {
        self.flow(direction).discard(reason);
        Fate::Dropped(reason)
    }

    fn answer(&mut self, direction: Direction, reject: &Reject<'_>, now: Duration, out: &mut Vec<Output>) -> Fate {
        let mut message = [0; icmpv4::ERROR_MAX];
        let answer = self.limiter.answer(reject, now, &mut self.counters.stats, &mut message);
        let answer = answer.filter(|(reply_to, message)| match reply_to {
            ReplyTo::Peer(to) => self.fits(*to, message.len(), now),
            ReplyTo::Tun => true,
        });
        self.flow(direction).settle(reject, answer.is_some());
        let Some((reply_to, message)) = answer else { return Fate::Dropped(reject.reason().into()) };
        let payload = Bytes::copy_from_slice(message);
        out.push(match reply_to {
            ReplyTo::Peer(to) => Output::Underlay { to, ecn: Ecn::NotEct, payload },
            ReplyTo::Tun => Output::Tun(payload),
        });
        Fate::Answered(reject.reason())
    }

    /// R8: the bytes behind a packet's total length go nowhere.
    fn count_trimmed(&mut self, len: usize, received: usize) {
        self.counters.stats.trimmed += u64::from(len < received);
    }
}
