//! One host of the overlay without system calls: its decisions, and the state and counters around them.

mod datagrams;
#[cfg(test)]
mod tests;

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use core::net::IpAddr;
use core::time::Duration;

use ipnet::IpNet;

pub use self::datagrams::Datagrams;
use crate::forward::{
    AllowIcmp, Counters, Decap, DropReason, EmsgsizeOutcome, Encap, Forwarder, IcmpLimiter, IcmpOutcome, PathMode,
    PathMtus, Reject, RejectReason, ReplyTo, SystemPath,
};
use crate::forward::{DatagramMeta, DirectionCounters};
use crate::framing::{Bare, Framing};
use crate::host::{HostError, Mtu};
use crate::offload::{OffloadAction, VnetHeader};
use crate::route::RouteTable;
use crate::transmit::{BATCH_BYTES_MAX, Transmit, Way};
use crate::wire::{DatagramTooBig, ICMP_ERROR_MAX};

/// Peers for which send errors are counted separately. Later peers have only the sum.
const PEERS_COUNTED: usize = 1024;

/// A host of the overlay: a [`Forwarder`], and the state that it keeps between packets.
///
/// It has no I/O. Pass it each packet and each datagram, with the route table and the time, and carry out the action
/// that it returns. It counts every packet when it decides on it. If an action fails, report that:
/// [`handle_send_error`](Self::handle_send_error), [`handle_write_error`](Self::handle_write_error) and
/// [`handle_reply_error`](Self::handle_reply_error) move the packet from its first counter to that of its drop reason.
///
/// `now` is the time since any fixed moment, the same for all calls.
///
/// Memory: 1,024 learned path MTUs, 1,024 counters of send errors and the tables of the limiter. No call allocates for
/// a packet that is forwarded.
#[derive(Debug)]
pub struct Endpoint {
    forwarder: Forwarder,
    limiter: Box<dyn AllowIcmp>,
    paths: PathMtus,
    counters: Counters,
    send_errors: SendErrors,
    message: [u8; ICMP_ERROR_MAX],
    scratch: datagrams::Scratch,
    /// The most bytes that a framing adds to each packet, if there is one.
    framing: Option<u16>,
}

/// Packets that could not be sent: the sum, and the count of each peer.
#[derive(Debug, Default)]
struct SendErrors {
    count: u64,
    peers: BTreeMap<IpAddr, u64>,
}

/// The action for a packet from the TUN. Exhaustive on purpose: a caller that misses an action loses packets.
#[derive(Debug)]
#[must_use = "a packet whose action is not carried out is lost"]
pub enum Outbound<'p, 'e> {
    /// Send this datagram.
    Send(Transmit<'p>),
    /// Send these datagrams: the segments of a GSO packet, or fragments.
    SendAll(Datagrams<'p, 'e>),
    /// Write this ICMP error to the TUN.
    Reply(Reply<'e>),
    /// Nothing: the packet was dropped, for this reason.
    Drop(DropReason),
}

/// The action for a datagram from the underlay. Exhaustive, as [`Outbound`] is.
#[derive(Debug)]
#[must_use = "a packet whose action is not carried out is lost"]
pub enum Inbound<'p, 'e> {
    /// Write this packet to the TUN.
    Deliver(&'p mut [u8]),
    /// Send this ICMP error through the tunnel, to the host of the packet's sender.
    Reply(Reply<'e>),
    /// Nothing: the packet was dropped, for this reason.
    Drop(DropReason),
}

/// An ICMP error about a packet that was not forwarded.
#[derive(Clone, Copy, Debug)]
pub struct Reply<'e> {
    /// The whole IP packet.
    pub message: &'e [u8],
    /// Destination of the message.
    pub to: ReplyTo,
    /// Reason why the packet was not forwarded.
    pub reason: RejectReason,
}

/// A direction of packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the TUN to the peers.
    Outbound,
    /// From the peers to the TUN.
    Inbound,
}

impl Endpoint {
    /// Returns an endpoint with empty counters.
    #[must_use]
    pub fn new(forwarder: Forwarder) -> Self {
        Self {
            forwarder,
            limiter: Box::new(IcmpLimiter::default()),
            paths: PathMtus::default(),
            counters: Counters::default(),
            send_errors: SendErrors::default(),
            message: [0; ICMP_ERROR_MAX],
            scratch: datagrams::Scratch::default(),
            framing: None,
        }
    }

    /// Makes room for a framing in each datagram.
    pub(crate) fn set_framing<F: Framing>(&mut self) {
        self.framing = (!F::IS_BARE).then_some(F::OVERHEAD_MAX as u16);
    }

    /// Sets the limits on ICMP errors. The initial ones are those of [`IcmpLimiter::default`].
    pub fn set_icmp_limiter(&mut self, limiter: impl AllowIcmp + 'static) {
        self.limiter = Box::new(limiter);
    }

    /// Returns the forwarder.
    #[must_use]
    pub fn forwarder(&self) -> &Forwarder {
        &self.forwarder
    }

    /// Returns the counters of all packets.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Returns the counters, to count events outside the endpoint such as failed reads.
    pub fn counters_mut(&mut self) -> &mut Counters {
        &mut self.counters
    }

    /// Returns the number of packets that could not be sent to each peer, for the first 1,024 peers that had any.
    pub fn send_errors(&self) -> impl ExactSizeIterator<Item = (IpAddr, u64)> {
        self.send_errors.peers.iter().map(|(peer, count)| (*peer, *count))
    }

    /// Returns the number of packets that could not be sent to any peer.
    #[must_use]
    pub fn send_error_count(&self) -> u64 {
        self.send_errors.count
    }

    /// Returns the learned path MTUs.
    #[must_use]
    pub fn paths(&self) -> &PathMtus {
        &self.paths
    }

    /// Takes over path MTUs that others learned: see [`PathMtus::merge`].
    pub fn merge_paths(&mut self, paths: &PathMtus, now: Duration) {
        self.paths.merge(paths, now);
    }

    /// Forgets the learned path MTUs: see [`PathMtus::forget`].
    pub fn forget_paths(&mut self) {
        self.paths.forget();
    }

    /// Resets all state but the counters, as a restart does.
    pub fn forget(&mut self) {
        (self.limiter, self.paths) = (Box::new(IcmpLimiter::default()), PathMtus::default());
    }

    /// Replaces the subnets that the host owns. See [`Forwarder::set_subnets`].
    ///
    /// # Errors
    /// Those of [`Forwarder::set_subnets`]. Then nothing changes.
    pub fn set_subnets(&mut self, subnets: &[IpNet]) -> Result<(), HostError> {
        self.forwarder.set_subnets(subnets)
    }

    /// Sets the length in bytes of the longest inner packet that the underlay carries to any peer. Unless the limit becomes
    /// lower, learned path MTUs are forgotten, because the narrow link may have been this host's interface.
    pub fn set_mtu(&mut self, mtu: Mtu) {
        let before = self.forwarder.config().mtu.min(self.forwarder.config().mtu_over_ipv6);
        self.forwarder.set_mtu(mtu);
        if mtu >= before {
            self.paths.forget();
        }
    }

    /// Sets the length in bytes of the longest inner packet that the underlay carries to IPv6 peers. Call it after
    /// [`set_mtu`](Self::set_mtu), which sets the limit for all.
    pub fn set_mtu_over_ipv6(&mut self, mtu: Mtu) {
        self.forwarder.set_mtu_over_ipv6(mtu);
    }

    /// Decides on a packet from the TUN. `header` describes the offloads that the kernel requests
    /// ([`VnetHeader::default`]: none).
    #[inline]
    pub fn handle_outbound<'p, 'e>(
        &'e mut self,
        packet: &'p mut [u8],
        header: &VnetHeader,
        routes: &RouteTable,
        now: Duration,
    ) -> Outbound<'p, 'e> {
        self.decide_outbound::<Bare>(packet, header, routes, now, &mut 0)
    }

    /// Decides on a packet that a framing will seal. If it is sent, `longest` becomes the length in bytes of the longest
    /// packet that its path carries.
    #[inline(always)]
    pub(crate) fn decide_outbound<'p, 'e, F: Framing>(
        &'e mut self,
        packet: &'p mut [u8],
        header: &VnetHeader,
        routes: &RouteTable,
        now: Duration,
        longest: &mut usize,
    ) -> Outbound<'p, 'e> {
        let received = packet.len();
        let Self { forwarder, paths, counters, limiter, message, scratch, .. } = self;
        counters.encap.receive();
        let gso = match header.inspect(packet) {
            Ok(OffloadAction::Nothing) => None,
            Ok(OffloadAction::Checksum(checksum)) => {
                checksum.complete(packet);
                None
            }
            Ok(OffloadAction::Segment(gso)) => Some(gso),
            Err(_) => {
                counters.encap.discard(DropReason::BadOffload);
                return Outbound::Drop(DropReason::BadOffload);
            }
        };
        let path =
            |peer| paths.lookup(peer, now).unwrap_or(u16::MAX).min(LONGEST).saturating_sub(F::OVERHEAD_MAX as u16);
        match forwarder.encapsulate_segments(packet, gso.map(|gso| gso.segment_len()), path, routes) {
            Encap::Send(transmit) => {
                if !F::IS_BARE {
                    *longest = longest_to(transmit.destination.ip(), path, forwarder);
                }
                counters.trim(transmit.contents, received);
                counters.encap.forward();
                match gso {
                    None => Outbound::Send(transmit),
                    Some(gso) => {
                        let way = Way::from(&transmit);
                        Outbound::SendAll(Datagrams::segments(way, transmit.contents, gso, &mut counters.stats))
                    }
                }
            }
            Encap::Fragment(fragments) => {
                counters.trim(fragments.packet(), received);
                counters.encap.forward();
                let datagrams = Datagrams::fragments(fragments, gso, scratch, &mut counters.stats);
                if !F::IS_BARE {
                    *longest = longest_to(datagrams.way().destination.ip(), path, forwarder);
                }
                Outbound::SendAll(datagrams)
            }
            Encap::Reject(reject) => {
                counters.trim(reject.offender().as_bytes(), received);
                match answer(limiter, counters, message, &reject, Direction::Outbound, now) {
                    Some(reply) => Outbound::Reply(reply),
                    None => Outbound::Drop(reject.reason().into()),
                }
            }
            Encap::Drop(reason) => {
                counters.encap.discard(reason);
                Outbound::Drop(reason)
            }
        }
    }

    /// Decides on a datagram from the underlay. `meta` may be its sender's address alone.
    #[inline]
    pub fn handle_inbound<'p, 'e>(
        &'e mut self,
        datagram: &'p mut [u8],
        meta: impl Into<DatagramMeta>,
        routes: &RouteTable,
        now: Duration,
    ) -> Inbound<'p, 'e> {
        let received = datagram.len();
        let Self { forwarder, counters, limiter, message, .. } = self;
        counters.decap.receive();
        match forwarder.decapsulate(datagram, meta, routes) {
            Decap::Deliver(packet) => {
                counters.trim(packet, received);
                counters.decap.forward();
                Inbound::Deliver(packet)
            }
            Decap::Reject(reject) => {
                counters.trim(reject.offender().as_bytes(), received);
                match answer(limiter, counters, message, &reject, Direction::Inbound, now) {
                    Some(reply) => Inbound::Reply(reply),
                    None => Inbound::Drop(reject.reason().into()),
                }
            }
            Decap::Drop(reason) => {
                counters.decap.discard(reason);
                Inbound::Drop(reason)
            }
        }
    }

    /// Drops a datagram that a framing did not open, for this reason.
    #[cold]
    pub(crate) fn drop_sealed(&mut self, reason: DropReason) {
        self.counters.decap.receive();
        self.counters.decap.discard(reason);
    }

    /// Records that packets could not be sent to `peer`, for this reason.
    #[cold]
    pub fn handle_send_error(&mut self, peer: IpAddr, reason: DropReason, packets: u64) {
        self.counters.encap.lose_forwarded(reason, packets);
        self.send_errors.add(peer, packets);
    }

    /// Records that packets could not be written to the TUN, for this reason.
    #[cold]
    pub fn handle_write_error(&mut self, reason: DropReason, packets: u64) {
        self.counters.decap.lose_forwarded(reason, packets);
    }

    /// Records that an ICMP error could not be written or sent.
    #[cold]
    pub fn handle_reply_error(&mut self, direction: Direction, to: ReplyTo, reason: RejectReason) {
        flow(&mut self.counters, direction).lose_answer(reason.into());
        if let ReplyTo::Peer(peer) = to {
            self.send_errors.add(peer.ip(), 1);
        }
    }

    /// Learns from a refusal of `len` bytes of inner packet as too long for the path (EMSGSIZE). `system` has the MTUs
    /// that the system knows for the path: see [`PathMtus::handle_emsgsize`].
    #[cold]
    pub fn handle_emsgsize(&mut self, way: &Way, len: usize, system: SystemPath, now: Duration) -> EmsgsizeOutcome {
        self.paths.handle_emsgsize(way.destination, len, system, now, &mut self.counters.stats)
    }

    /// Ends the packet of a queued datagram that is longer than the `mtu` bytes of its path. If DF is set, its sender
    /// gets an ICMP error. Otherwise the packet is dropped, because queued packets are no longer fragmented.
    #[cold]
    pub fn handle_too_long(
        &mut self,
        datagram: &mut [u8],
        way: &Way,
        mtu: u16,
        routes: &RouteTable,
        now: Duration,
    ) -> Outbound<'static, '_> {
        let Self { forwarder, counters, limiter, message, send_errors, .. } = self;
        counters.encap.hold_all(1);
        match forwarder.refused_as_too_long(datagram, mtu, routes) {
            Ok(reject) => match answer(limiter, counters, message, &reject, Direction::Outbound, now) {
                Some(reply) => Outbound::Reply(reply),
                None => Outbound::Drop(reject.reason().into()),
            },
            Err(reason) => {
                counters.encap.discard(reason);
                send_errors.add(way.destination.ip(), 1);
                Outbound::Drop(reason)
            }
        }
    }

    /// Learns from a router's report that a datagram was too big: see [`PathMtus::handle_icmp`].
    #[cold]
    pub fn handle_icmp(&mut self, report: &DatagramTooBig, routes: &RouteTable, now: Duration) -> IcmpOutcome {
        let outcome = self.paths.handle_icmp_framed(report, &self.forwarder, routes, self.framing, now);
        let is_news = matches!(outcome, IcmpOutcome::Lowered { .. });
        self.counters.stats.path_mtu_lowered += u64::from(is_news);
        outcome
    }

    /// Returns the path mode for datagrams to a peer.
    #[must_use]
    #[inline]
    pub fn path_mode(&self, peer: IpAddr, now: Duration) -> PathMode {
        if self.paths.is_empty() { PathMode::System } else { self.paths.mode(peer, now) }
    }

    /// Returns the length in bytes of the longest datagram that is known to reach a peer.
    #[must_use]
    #[inline]
    pub fn path_limit(&self, peer: IpAddr, now: Duration) -> u16 {
        self.paths.lookup(peer, now).unwrap_or(LONGEST).min(LONGEST)
    }
}

/// Returns the length in bytes of the longest packet to a peer.
fn longest_to(peer: IpAddr, path: impl FnOnce(IpAddr) -> u16, forwarder: &Forwarder) -> usize {
    path(peer).min(forwarder.config().mtu_to(peer).get()).into()
}

/// The length of the longest datagram in bytes.
const LONGEST: u16 = BATCH_BYTES_MAX as u16;

#[cold]
fn answer<'e>(
    limiter: &mut Box<dyn AllowIcmp>,
    counters: &mut Counters,
    message: &'e mut [u8; ICMP_ERROR_MAX],
    reject: &Reject<'_>,
    direction: Direction,
    now: Duration,
) -> Option<Reply<'e>> {
    let is_allowed = reject.reply_to().is_some() && limiter.allow(reject, now);
    counters.stats.icmp_limited += u64::from(!is_allowed && reject.reply_to().is_some());
    let message = Some(message).filter(|_| is_allowed).and_then(|message| reject.icmp_error(message));
    flow(counters, direction).settle(reject, message.is_some());
    Some(Reply { message: message?, to: reject.reply_to()?, reason: reject.reason() })
}

fn flow(counters: &mut Counters, direction: Direction) -> &mut DirectionCounters {
    match direction {
        Direction::Outbound => &mut counters.encap,
        Direction::Inbound => &mut counters.decap,
    }
}

impl SendErrors {
    fn add(&mut self, peer: IpAddr, packets: u64) {
        self.count += packets;
        if self.peers.len() < PEERS_COUNTED || self.peers.contains_key(&peer) {
            *self.peers.entry(peer).or_default() += packets;
        }
    }
}
