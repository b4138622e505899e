//! What both directions share: the two ends, and what is remembered from packet to packet.

use alloc::collections::BTreeMap;
use alloc::string::String;
use core::hash::BuildHasher;
use core::net::{IpAddr, SocketAddr};
use core::num::NonZeroUsize;
use core::slice;
use core::time::Duration;
use std::hash::RandomState;
use std::time::Instant;

use super::WorkerError;
use super::failing::Failing;
use super::sender::Outlet;
use super::strangers::Strangers;
use crate::forward::{
    Counters, DirectionCounters, EmsgsizeOutcome, Forwarder, IcmpLimiter, IcmpOutcome, PathMode, PathMtus, Reject,
    ReplyTo, SystemPath, TooLong,
};
use crate::route::RouteTable;
use crate::sys::{BatchError, SendErrorKind, Tun, TunError, UdpTransport};
use crate::transmit::{Trains, Transmit, Way};
use crate::wire::fragment::Fragmenter;
use crate::wire::icmpv4;

/// Peers whose send errors are counted one by one; those of later ones are not.
const PEERS_COUNTED: usize = 1024;

/// The least time between two readings of routers' reports, while no path is known to be narrow. The kernel received them too,
/// and refuses the next packet that is too long; then they are read at once.
const REPORTS_EVERY: Duration = Duration::from_secs(1);

/// The least time while some path is narrow: the kernel's refusals may have been overruled for it.
const REPORTS_EVERY_NARROW: Duration = Duration::from_millis(10);

/// Where packets come from and go to, and who decides.
#[derive(Debug)]
pub(super) struct Ends {
    pub(super) tun: Tun,
    pub(super) udp: UdpTransport,
    pub(super) forwarder: Forwarder,
}

/// What the worker remembers from packet to packet.
#[derive(Debug)]
pub(super) struct State {
    pub(super) counters: Counters,
    pub(super) limiter: IcmpLimiter,
    pub(super) paths: PathMtus,
    pub(super) send_errors: BTreeMap<IpAddr, u64>,
    pub(super) strangers: Strangers,
    pub(super) failing: Failing,
    /// Where the clock of the limiter and the path MTUs begins: at the first packet that asks for it.
    pub(super) started: Option<Instant>,
    /// When reports of routers are to be read.
    reports_due: Option<Instant>,
}

impl Ends {
    pub(super) fn tun_gone(&self, error: TunError) -> WorkerError {
        let name = String::from(self.tun.name());
        match error {
            TunError::Closed => WorkerError::TunClosed { name },
            TunError::Deleted
            | TunError::Down
            | TunError::Full
            | TunError::Headless { .. }
            | TunError::Rejected(_)
            | TunError::WouldBlock => WorkerError::LinkDeleted { name },
        }
    }

    pub(super) fn socket_gone(&self) -> WorkerError {
        WorkerError::SocketClosed { local: self.udp.local_addr() }
    }
}

/// The two ends, with the routes that reports of routers are checked against, and packets that their path refuses.
#[derive(Clone, Copy, Debug)]
pub(super) struct Routed<'a> {
    pub(super) ends: &'a Ends,
    pub(super) routes: &'a RouteTable,
}

impl Outlet for Routed<'_> {
    #[inline]
    fn send(&self, trains: &[Transmit<'_>], first_datagram: usize, mode: PathMode) -> Result<(), BatchError> {
        self.ends.udp.send_batch_in(mode, trains, first_datagram)
    }

    fn system_path(&self, destination: SocketAddr, flow: u16, state: &mut State, now: Instant) -> SystemPath {
        state.handle_reports(self, now);
        self.ends.udp.system_path(destination, flow)
    }

    fn refuse(
        &self,
        packet: &mut [u8],
        way: Way,
        mtu: u16,
        state: &mut State,
        now: Instant,
    ) -> Result<Option<Fragmenter>, WorkerError> {
        match self.ends.forwarder.refused_as_too_long(packet, way, mtu, self.routes) {
            TooLong::Fragment(fragments) => return Ok(Some(fragments.fragmenter())),
            TooLong::Reject(reject) => state.answer_near(&reject, self.ends, now)?,
            TooLong::Drop(reason) => state.counters.encap.discard(reason),
        }
        Ok(None)
    }

    fn gone(&self) -> WorkerError {
        self.ends.socket_gone()
    }
}

impl State {
    pub(super) fn new() -> Self {
        Self {
            counters: Counters::default(),
            limiter: IcmpLimiter::default().with_seed(RandomState::new().hash_one(())),
            paths: PathMtus::default(),
            send_errors: BTreeMap::new(),
            strangers: Strangers::default(),
            failing: Failing::default(),
            started: None,
            reports_due: None,
        }
    }

    fn clock(&mut self, now: Instant) -> Duration {
        now.saturating_duration_since(*self.started.get_or_insert(now))
    }

    /// The longest packet in bytes that gets to a peer, as far as is known: no longer than any datagram.
    #[inline]
    pub(super) fn path_limit(&mut self, peer: SocketAddr, now: Instant) -> u16 {
        const LONGEST: u16 = Trains::BYTES_MAX as u16;
        if self.paths.is_empty() {
            return LONGEST;
        }
        let clock = self.clock(now);
        self.paths.lookup(peer.ip(), clock).map_or(LONGEST, |mtu| mtu.min(LONGEST))
    }

    /// Whether no datagram of a train is longer than what is known of its path.
    #[inline]
    pub(super) fn fits_path(&mut self, train: &Transmit<'_>, now: Instant) -> bool {
        let longest = train.segment_size.map_or(train.contents.len(), NonZeroUsize::get);
        longest <= self.path_limit(train.destination, now).into()
    }

    /// Returns the way to send to a peer.
    #[inline]
    pub(super) fn path_mode(&mut self, peer: SocketAddr, now: Instant) -> PathMode {
        if self.paths.is_empty() {
            return PathMode::System;
        }
        let clock = self.clock(now);
        self.paths.mode(peer.ip(), clock)
    }

    /// The kernel refused `len` bytes to a peer as too long.
    #[cold]
    pub(super) fn handle_emsgsize(
        &mut self,
        way: Way,
        len: usize,
        outlet: &impl Outlet,
        now: Instant,
    ) -> EmsgsizeOutcome {
        if let Some(known) = Some(self.path_limit(way.destination, now)).filter(|known| usize::from(*known) < len) {
            return EmsgsizeOutcome::Limit(known);
        }
        let system = outlet.system_path(way.destination, way.flow, self, now);
        let clock = self.clock(now);
        self.paths.handle_emsgsize(way.destination, len, system, clock, &mut self.counters.stats)
    }

    /// Handles the reports of routers that came in, unless it did so a moment ago.
    #[inline]
    pub(super) fn poll_reports(&mut self, io: &Routed<'_>, now: Instant) {
        if self.reports_due.is_none_or(|due| due <= now) {
            self.handle_reports(io, now);
        }
    }

    #[cold]
    fn handle_reports(&mut self, io: &Routed<'_>, now: Instant) {
        self.reports_due = Some(now + if self.paths.is_empty() { REPORTS_EVERY } else { REPORTS_EVERY_NARROW });
        let (clock, forwarder) = (self.clock(now), &io.ends.forwarder);
        io.ends.udp.receive_reports(|report| {
            let outcome = self.paths.handle_icmp(report, forwarder, io.routes, clock);
            self.counters.stats.path_mtu_lowered += u64::from(matches!(outcome, IcmpOutcome::Lowered { .. }));
        });
    }

    /// Answers the sender of a packet from the TUN, if that is permitted; otherwise the packet is dropped.
    #[cold]
    pub(super) fn answer_near(&mut self, reject: &Reject<'_>, ends: &Ends, now: Instant) -> Result<(), WorkerError> {
        let answered = self.answer(reject, ends, now);
        settle(&mut self.counters.encap, reject, answered)
    }

    /// The same for a packet from a peer.
    #[cold]
    pub(super) fn answer_far(&mut self, reject: &Reject<'_>, ends: &Ends, now: Instant) -> Result<(), WorkerError> {
        let answered = self.answer(reject, ends, now);
        settle(&mut self.counters.decap, reject, answered)
    }

    /// Whether an ICMP error is on its way to the packet's sender.
    fn answer(&mut self, reject: &Reject<'_>, ends: &Ends, now: Instant) -> Result<bool, WorkerError> {
        let (clock, mut message) = (self.clock(now), [0; icmpv4::ERROR_MAX]);
        let answer = self.limiter.answer(reject, clock, &mut self.counters.stats, &mut message);
        let Some((reply_to, message)) = answer else { return Ok(false) };
        match reply_to {
            ReplyTo::Tun => match ends.tun.send(message) {
                Ok(()) => Ok(true),
                Err(error) if error.is_fatal() => Err(ends.tun_gone(error)),
                Err(_) => Ok(false),
            },
            ReplyTo::Peer(peer) => match self.send_to_peer(&Transmit::datagram(peer, message), ends, now) {
                Ok(()) => Ok(true),
                Err(error) if error.is_fatal() => Err(ends.socket_gone()),
                Err(_) => {
                    self.count_send_errors(peer.ip(), 1);
                    Ok(false)
                }
            },
        }
    }

    /// Sends an ICMP error through the tunnel. On a path that refuses it, it may be fragmented: it is short, and too rare to ask
    /// what the path carries.
    fn send_to_peer(&mut self, message: &Transmit<'_>, ends: &Ends, now: Instant) -> Result<(), BatchError> {
        let mode = self.path_mode(message.destination, now);
        match ends.udp.send_batch_in(mode, slice::from_ref(message), 0) {
            Err(BatchError { kind: SendErrorKind::TooLong, .. }) => {
                ends.udp.send_batch_in(PathMode::Fragment, slice::from_ref(message), 0)
            }
            sent => sent,
        }
    }

    /// R8: the bytes behind a packet's total length go nowhere.
    pub(super) fn count_trimmed(&mut self, packet: &[u8], received: usize) {
        self.counters.stats.trimmed += u64::from(packet.len() < received);
    }

    pub(super) fn count_send_errors(&mut self, peer: IpAddr, packets: u64) {
        if self.send_errors.len() < PEERS_COUNTED || self.send_errors.contains_key(&peer) {
            *self.send_errors.entry(peer).or_default() += packets;
        }
    }
}

/// Counts a rejected packet, also when answering it showed that the worker is at its end.
fn settle(
    flow: &mut DirectionCounters,
    reject: &Reject<'_>,
    answered: Result<bool, WorkerError>,
) -> Result<(), WorkerError> {
    flow.settle(reject, matches!(answered, Ok(true)));
    answered.map(|_| ())
}
