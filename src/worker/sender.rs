//! Trains on their way into the socket: what is sent, what waits, what is given up, and what is told to whom.

use core::net::SocketAddr;
use core::time::Duration;
use std::time::Instant;

use super::WorkerError;
use super::failing::{Failure, PAUSE};
use super::state::State;
use crate::forward::{DropReason, EmsgsizeOutcome, PathMode, SystemPath};
use crate::route::RouteTable;
use crate::sys::{BatchError, SendErrorKind};
use crate::transmit::{Trains, Transmit, Way};
use crate::wire::fragment::Fragmenter;

/// Trains that are collected at most: 1 MiB of them.
const SLOTS: usize = 16;

/// Trains that one call is given.
const TRAINS_AT_ONCE: usize = 8;

/// How long trains are held for a socket that takes nothing.
const HELD_FOR: Duration = Duration::from_secs(1);

/// How long to wait at most for a full socket to be told writable: Linux says so only when half of its buffer is free
/// (`sock_writeable` in include/net/sock.h), which takes long behind a slow device, while one train would fit much earlier.
const TRY_AFTER: Duration = Duration::from_millis(10);

/// The first wait after the kernel had no buffers; it doubles with each of [`NO_BUFFERS_RETRIES`].
const NO_BUFFERS_WAIT: Duration = Duration::from_millis(1);

/// How often a train is tried again for which the kernel had no buffers.
const NO_BUFFERS_RETRIES: u32 = 4;

/// What trains go out by.
pub(super) trait Outlet {
    /// As [`UdpTransport::send_batch`](crate::sys::UdpTransport::send_batch), all in one mode.
    fn send(&self, trains: &[Transmit<'_>], first_datagram: usize, mode: PathMode) -> Result<(), BatchError>;

    /// Returns the kernel's knowledge of the path to a peer. Handles the ICMP errors that came in first.
    fn system_path(&self, destination: SocketAddr, flow: u16, state: &mut State, now: Instant) -> SystemPath;

    /// What becomes of a packet whose path carries only so much: it is to be fragmented, or its sender is told if it may be, and
    /// the packet is counted.
    fn refuse(
        &self,
        packet: &mut [u8],
        way: Way,
        mtu: u16,
        state: &mut State,
        now: Instant,
    ) -> Result<Option<Fragmenter>, WorkerError>;

    /// The end that a closed socket is.
    fn gone(&self) -> WorkerError;
}

/// The trains that have not been sent yet.
#[derive(Debug)]
pub(super) struct Sender {
    pub(super) trains: Trains,
    held: Option<Held>,
    /// Cuts the next datagram, of which some fragments have gone.
    fragmenter: Option<Fragmenter>,
    /// Whether a packet was lost of which a part has still to be put in.
    lost_unfinished: bool,
}

/// What the trains wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Held {
    /// When they are given up.
    pub(super) until: Instant,
    /// How often the kernel had no buffers for the front one.
    refusals: u32,
    /// Tried again then and not before. Without it, when the socket is writable; which one without buffers is all the time.
    pub(super) retry_at: Option<Instant>,
    /// Tried again then, even if the socket is not told writable.
    try_at: Instant,
}

impl Held {
    /// When to try again at the latest.
    pub(super) fn wake_at(&self) -> Instant {
        self.retry_at.unwrap_or(self.until.min(self.try_at))
    }
}

/// What keeps the front train from leaving.
#[derive(Clone, Copy, Debug)]
struct Obstacle {
    kind: SendErrorKind,
    /// How many datagrams it concerns.
    datagrams: usize,
}

impl Sender {
    pub(super) fn new() -> Self {
        Self { trains: Trains::with_slots(SLOTS), held: None, fragmenter: None, lost_unfinished: false }
    }

    /// What is waited for, if the socket took no more.
    pub(super) fn held(&self) -> Option<&Held> {
        self.held.as_ref()
    }

    /// Whether it is too early to try again.
    pub(super) fn has_to_wait(&self, now: Instant) -> bool {
        self.held.is_some_and(|held| held.retry_at.is_some_and(|at| now < at))
    }

    /// Whether the packet that is being put in was lost meanwhile, and counted: the rest of it is not to be put in.
    pub(super) fn take_lost_unfinished(&mut self) -> bool {
        core::mem::take(&mut self.lost_unfinished)
    }

    /// Gives up what waits for next hops that no route has any more.
    #[cold]
    pub(super) fn drop_stale(&mut self, routes: &RouteTable, state: &mut State) {
        let is_gone = |next_hop| !routes.has_next_hop(next_hop);
        if self.trains.transmit(0).is_some_and(|front| is_gone(front.destination)) {
            (self.held, self.fragmenter) = (None, None);
        }
        let given_up = self.trains.give_up_where(is_gone);
        self.lost_unfinished |= given_up.unfinished;
        state.counters.encap.discard_all(DropReason::StaleRoute, given_up.packets);
    }

    /// Forgets what waits; the caller has counted it.
    pub(super) fn clear(&mut self) {
        self.trains.clear();
        (self.held, self.fragmenter, self.lost_unfinished) = (None, None, false);
    }

    /// Sends all trains, unless the socket takes no more.
    #[inline]
    pub(super) fn flush(&mut self, outlet: &impl Outlet, state: &mut State, now: Instant) -> Result<(), WorkerError> {
        while !self.trains.is_empty() {
            let mut obstacle = self.send(outlet, state, now);
            if let Some(Obstacle { kind: SendErrorKind::TooLong, .. }) = obstacle {
                obstacle = self.too_long(outlet, state, now)?;
            }
            let Some(obstacle) = obstacle else { continue };
            if self.holds(obstacle.kind, now) {
                return Ok(());
            }
            self.overcome(obstacle, state);
            if obstacle.kind.is_fatal() {
                return Err(outlet.gone());
            }
            if self.fails(obstacle.kind, state, now)? {
                return Ok(());
            }
        }
        self.held = None;
        Ok(())
    }

    /// Sends as many trains as go at once. A path that is known to be too narrow is not asked again.
    #[inline]
    fn send(&mut self, outlet: &impl Outlet, state: &mut State, now: Instant) -> Option<Obstacle> {
        let done = self.trains.done();
        let first = self.trains.transmit(0)?;
        if self.fragmenter.is_some() || !state.fits_path(&first, now) {
            return Some(Obstacle { kind: SendErrorKind::TooLong, datagrams: 1 });
        }
        let mode = state.path_mode(first.destination, now);
        let mut count = 1;
        let sent = if self.trains.len() == 1 {
            outlet.send(&[first], done, mode)
        } else {
            let mut trains = [first; TRAINS_AT_ONCE];
            for (index, slot) in trains.iter_mut().enumerate().skip(1) {
                let goes_along = |train: &Transmit<'_>, state: &mut State| {
                    state.fits_path(train, now) && state.path_mode(train.destination, now) == mode
                };
                let Some(train) = self.trains.transmit(index).filter(|train| goes_along(train, state)) else { break };
                *slot = train;
                count += 1;
            }
            outlet.send(trains.get(..count).unwrap_or_default(), done, mode)
        };
        let (whole, error) = match sent {
            Ok(()) => (count, None),
            Err(error) => (error.transmit, Some(error)),
        };
        for _ in 0..whole {
            self.advance(self.trains.left(), state);
        }
        let BatchError { segment, kind, datagrams, .. } = error?;
        self.advance(segment.saturating_sub(self.trains.done()), state);
        Some(Obstacle { kind, datagrams })
    }

    #[inline]
    fn advance(&mut self, datagrams: usize, state: &mut State) {
        if datagrams > 0 {
            self.held = None;
            state.counters.encap.forward_all(self.trains.advance(datagrams));
        }
    }

    /// Whether the trains have to wait, and for what.
    #[cold]
    fn holds(&mut self, kind: SendErrorKind, now: Instant) -> bool {
        let try_at = now + TRY_AFTER;
        let first = Held { until: now + HELD_FOR, refusals: 0, retry_at: None, try_at };
        let held = self.held.unwrap_or(first);
        let next = match kind {
            SendErrorKind::WouldBlock if now < held.until => Held { retry_at: None, try_at, ..held },
            SendErrorKind::NoBuffers if held.refusals < NO_BUFFERS_RETRIES => Held {
                retry_at: Some(now + NO_BUFFERS_WAIT * (1 << held.refusals)),
                refusals: held.refusals + 1,
                ..held
            },
            SendErrorKind::Closed
            | SendErrorKind::Forbidden
            | SendErrorKind::NoBuffers
            | SendErrorKind::Other(_)
            | SendErrorKind::Refused
            | SendErrorKind::TooLong
            | SendErrorKind::Unreachable
            | SendErrorKind::WouldBlock => return false,
        };
        self.held = Some(next);
        true
    }

    /// Gives up what an obstacle concerns: a socket that took nothing for so long, all.
    #[cold]
    fn overcome(&mut self, obstacle: Obstacle, state: &mut State) {
        let reason = send_failure(obstacle.kind);
        self.held = None;
        if obstacle.kind == SendErrorKind::WouldBlock {
            while !self.trains.is_empty() {
                self.give_up(self.trains.left(), reason, state);
            }
        } else {
            self.give_up(obstacle.datagrams.clamp(1, self.trains.left().max(1)), reason, state);
        }
    }

    /// Notes a failure that may be that of every send. Returns whether the trains behind it have to wait.
    #[cold]
    fn fails(&mut self, kind: SendErrorKind, state: &mut State, now: Instant) -> Result<bool, WorkerError> {
        if !matches!(kind, SendErrorKind::Forbidden | SendErrorKind::Other(_))
            || !state.fails(Failure::Send(kind), now)?
        {
            return Ok(false);
        }
        let at = now + PAUSE;
        self.held = Some(Held { until: at, refusals: 0, retry_at: Some(at), try_at: at });
        Ok(true)
    }

    #[cold]
    fn give_up(&mut self, datagrams: usize, reason: DropReason, state: &mut State) {
        let peer = self.trains.transmit(0).map(|train| train.destination.ip());
        let packets = self.lose(datagrams);
        state.counters.encap.discard_all(reason, packets);
        if let Some(peer) = peer {
            state.count_send_errors(peer, packets);
        }
    }

    fn lose(&mut self, datagrams: usize) -> u64 {
        self.fragmenter = None;
        let given_up = self.trains.give_up(datagrams);
        self.lost_unfinished |= given_up.unfinished;
        given_up.packets
    }

    /// The path to the front train's peer carries less than its longest datagram: tells the senders of the packets that do not
    /// fit and must not be fragmented, and sends the others one by one, in fragments where they are too long.
    #[cold]
    fn too_long(
        &mut self,
        outlet: &impl Outlet,
        state: &mut State,
        now: Instant,
    ) -> Result<Option<Obstacle>, WorkerError> {
        let Some(train) = self.trains.transmit(0) else { return Ok(None) };
        let way = Way::from(&train);
        let longest = train.segments().map(<[u8]>::len).max().unwrap_or(0);
        let begun = self.fragmenter.map(|fragmenter| fragmenter.mtu());
        let as_long =
            train.segments().skip(self.trains.done()).take_while(|datagram| datagram.len() == longest).count();
        let outcome = begun.map(EmsgsizeOutcome::Limit);
        let mut mtu = match outcome.unwrap_or_else(|| state.handle_emsgsize(way, longest, outlet, now)) {
            EmsgsizeOutcome::Limit(mtu) => mtu,
            EmsgsizeOutcome::Retry => return Ok(None),
            // There is nothing that could be told to the senders. A last datagram that is shorter may fit.
            EmsgsizeOutcome::Unexplained => {
                return Ok(Some(Obstacle { kind: SendErrorKind::TooLong, datagrams: as_long.max(1) }));
            }
        };
        let mut left = self.trains.left();
        while left > 0 {
            let datagrams = self.trains.next_packet().max(1);
            // Within a train none is longer than those before it.
            if self.fragmenter.is_none() && self.next_piece().is_some_and(|datagram| datagram.len() > mtu.into()) {
                match self.refuse(way, mtu, outlet, state, now) {
                    Ok(Some(fragmenter)) if self.fragment(fragmenter) => {}
                    Ok(Some(_)) => return Ok(Some(Obstacle { kind: SendErrorKind::TooLong, datagrams: 1 })),
                    refused => {
                        self.lose(datagrams);
                        left = left.saturating_sub(datagrams);
                        refused?;
                        continue;
                    }
                }
            }
            let Some(datagram) = self.next_piece() else { break };
            let (len, Way { destination, ecn, flow }) = (datagram.len(), way);
            let transmit = Transmit { ecn, flow, ..Transmit::datagram(destination, datagram) };
            match outlet.send(&[transmit], 0, state.path_mode(destination, now)) {
                Ok(()) => left -= self.piece_has_gone(state),
                Err(BatchError { kind: SendErrorKind::TooLong, .. }) => {
                    match state.handle_emsgsize(way, len, outlet, now) {
                        EmsgsizeOutcome::Limit(narrower) if self.narrow(narrower) => mtu = narrower,
                        EmsgsizeOutcome::Retry => {}
                        EmsgsizeOutcome::Limit(_) | EmsgsizeOutcome::Unexplained => {
                            return Ok(Some(Obstacle { kind: SendErrorKind::TooLong, datagrams: 1 }));
                        }
                    }
                }
                Err(BatchError { kind, .. }) => return Ok(Some(Obstacle { kind, datagrams: 1 })),
            }
        }
        Ok(None)
    }

    /// Begins to cut the next datagram, if that is what the fragmenter was made for.
    fn fragment(&mut self, mut fragmenter: Fragmenter) -> bool {
        let begun = self.trains.datagram_mut(0).is_some_and(|datagram| fragmenter.advance(datagram));
        self.fragmenter = begun.then_some(fragmenter);
        begun
    }

    /// The next datagram, or what is next of it.
    fn next_piece(&mut self) -> Option<&[u8]> {
        let datagram = self.trains.datagram_mut(0)?;
        Some(self.fragmenter.map_or(&*datagram, |fragmenter| fragmenter.fragment(datagram)))
    }

    /// Goes on to the next piece, and returns how many datagrams are done with by that: one or none.
    fn piece_has_gone(&mut self, state: &mut State) -> usize {
        if let Some(fragmenter) = &mut self.fragmenter {
            self.held = None;
            state.counters.stats.fragments_made += 1;
            if self.trains.datagram_mut(0).is_some_and(|datagram| fragmenter.advance(datagram)) {
                return 0;
            }
            self.fragmenter = None;
        }
        self.advance(1, state);
        1
    }

    /// Makes the next fragment shorter, if it is one that is next. `false` if no fragment is as short as that.
    fn narrow(&mut self, mtu: u16) -> bool {
        let Some(fragmenter) = &mut self.fragmenter else { return true };
        self.trains.datagram_mut(0).is_some_and(|datagram| fragmenter.narrow(datagram, mtu))
    }

    /// What becomes of the next packet, whose datagram is too long: nothing more, if the packet was lost before.
    fn refuse(
        &mut self,
        way: Way,
        mtu: u16,
        outlet: &impl Outlet,
        state: &mut State,
        now: Instant,
    ) -> Result<Option<Fragmenter>, WorkerError> {
        let is_lost_already = self.trains.next_is_lost();
        match self.trains.datagram_mut(0) {
            Some(datagram) if !is_lost_already => outlet.refuse(datagram, way, mtu, state, now),
            _ => Ok(None),
        }
    }
}

fn send_failure(kind: SendErrorKind) -> DropReason {
    match kind {
        SendErrorKind::Forbidden => DropReason::SendForbidden,
        SendErrorKind::NoBuffers => DropReason::SendNoBuffers,
        SendErrorKind::Refused => DropReason::SendRefused,
        SendErrorKind::Unreachable => DropReason::SendUnreachable,
        SendErrorKind::WouldBlock => DropReason::SendBufferFull,
        SendErrorKind::Closed | SendErrorKind::Other(_) | SendErrorKind::TooLong => DropReason::SendFailed,
    }
}

#[cfg(test)]
mod tests;
