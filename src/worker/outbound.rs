//! From the TUN to the peers: read, decide, put into trains, send.

use alloc::boxed::Box;
use alloc::vec;
use core::time::Duration;
use std::time::Instant;

use super::state::{Ends, State};
use super::{Budget, Progress, WorkerError};
use crate::forward::{DropReason, Encap};
use crate::offload::{SuperPacket, Work};
use crate::route::RouteTable;
use crate::sys::{BatchError, PACKET_MAX, SendErrorKind, TunError, TunMeta};
use crate::transmit::{GivenUp, Trains, Transmit, Way};

/// Trains that are collected at most: 1 MiB of them.
const SLOTS: usize = 16;

/// Bytes that are collected before they are sent: more would leave the cache before the kernel copies them.
const BYTES_COLLECTED: usize = 128 << 10;

/// Trains that one system call is given.
const TRAINS_AT_ONCE: usize = 8;

/// How long packets are held for a socket that takes nothing.
const HELD_FOR: Duration = Duration::from_secs(1);

/// The first wait after the kernel had no buffers; it doubles with each of [`NO_BUFFERS_RETRIES`].
const NO_BUFFERS_WAIT: Duration = Duration::from_millis(1);

/// How often a train is tried again for which the kernel had no buffers.
const NO_BUFFERS_RETRIES: u32 = 4;

/// What came out of the TUN and has not been sent yet.
#[derive(Debug)]
pub(super) struct Outbound {
    /// The packet that was read last.
    buffer: Box<[u8]>,
    /// That packet, unless all of it is in trains.
    unfinished: Option<Unfinished>,
    trains: Trains,
    held: Option<Held>,
    /// Whether packets wait for each other; without, each is sent at once.
    pub(super) batched: bool,
}

/// A packet on its way from the buffer into trains.
#[derive(Clone, Copy, Debug)]
struct Unfinished {
    way: Way,
    len: usize,
    /// How it is to be cut, if it is.
    super_packet: Option<SuperPacket>,
    /// The first segment that is in no train.
    next: usize,
}

/// What the trains wait for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    /// When they are given up.
    pub(super) until: Instant,
    /// How often the kernel had no buffers for the front one.
    refusals: u32,
    /// Tried again then. Without it, when the socket is writable; which one without buffers is all the time.
    pub(super) retry_at: Option<Instant>,
}

impl Outbound {
    pub(super) fn new() -> Self {
        Self {
            buffer: vec![0; PACKET_MAX + 1].into_boxed_slice(),
            unfinished: None,
            trains: Trains::with_slots(SLOTS),
            held: None,
            batched: true,
        }
    }

    pub(super) fn held(&self) -> Option<&Held> {
        self.held.as_ref()
    }

    /// Moves packets until the TUN is empty, the budget is used or the socket takes no more. Nothing that could be sent is
    /// left behind.
    pub(super) fn run(
        &mut self,
        ends: &Ends,
        routes: &RouteTable,
        state: &mut State,
        budget: Budget,
        now: Instant,
    ) -> Result<Progress, WorkerError> {
        if self.held.is_some_and(|held| held.retry_at.is_some_and(|at| now < at)) {
            return Ok(Progress::Held);
        }
        self.flush(ends, state, now)?;
        self.place(ends, state, now)?;
        let mut progress = Progress::More;
        for _ in 0..budget.count() {
            if self.held.is_some() {
                break;
            }
            match ends.tun.recv(&mut self.buffer) {
                Ok(meta) => self.take_in(meta, ends, routes, state, now)?,
                Err(TunError::WouldBlock) => {
                    progress = Progress::Drained;
                    break;
                }
                Err(error) if error.is_fatal() => {
                    self.flush(ends, state, now)?;
                    return Err(ends.tun_gone(error));
                }
                Err(_) => state.counters.anomalies.read_errors += 1,
            }
            if !self.batched || self.trains.bytes() >= BYTES_COLLECTED {
                self.flush(ends, state, now)?;
            }
        }
        if self.held.is_none() {
            self.flush(ends, state, now)?;
        }
        state.counters.anomalies.gso_fallbacks = ends.udp.gso_fallbacks();
        Ok(if self.held.is_some() { Progress::Held } else { progress })
    }

    /// Forgets what waits; the caller has counted it.
    pub(super) fn clear(&mut self) {
        self.trains.clear();
        (self.unfinished, self.held) = (None, None);
    }

    #[inline]
    fn take_in(
        &mut self,
        meta: TunMeta,
        ends: &Ends,
        routes: &RouteTable,
        state: &mut State,
        now: Instant,
    ) -> Result<(), WorkerError> {
        state.counters.encap.receive();
        let packet = self.buffer.get_mut(..meta.len).unwrap_or_default();
        let super_packet = match meta.header.inspect(packet) {
            Ok(Work::Nothing) => None,
            Ok(Work::Checksum(checksum)) => {
                checksum.complete(packet);
                None
            }
            Ok(Work::Segment(super_packet)) => Some(super_packet),
            Err(_) => {
                state.counters.encap.discard(DropReason::BadOffload);
                return Ok(());
            }
        };
        let verdict = match &super_packet {
            None => ends.forwarder.encapsulate(packet, routes),
            Some(cut) => ends.forwarder.encapsulate_super_packet(packet, cut.segment_len(), routes),
        };
        match verdict {
            Encap::Send(transmit) => {
                state.count_trimmed(transmit.contents, meta.len);
                let (way, len) = (Way::from(&transmit), transmit.contents.len());
                self.unfinished = Some(Unfinished { way, len, super_packet, next: 0 });
                self.place(ends, state, now)?;
            }
            Encap::Reject(reject) => {
                state.count_trimmed(reject.offender().as_bytes(), meta.len);
                state.answer_near(&reject, ends, now)?;
            }
            Encap::Drop(reason) => state.counters.encap.discard(reason),
        }
        Ok(())
    }

    /// Puts what is unfinished into trains, as far as there is room.
    #[inline]
    fn place(&mut self, ends: &Ends, state: &mut State, now: Instant) -> Result<(), WorkerError> {
        while let Some(unfinished) = &mut self.unfinished {
            let placed = unfinished.place(&self.buffer, &mut self.trains);
            state.counters.anomalies.segments_made += placed.segments;
            if placed.all {
                self.unfinished = None;
            } else if self.trains.is_empty() {
                // Longer than any datagram.
                self.unfinished = None;
                state.counters.encap.discard(DropReason::SendFailed);
            } else if self.held.is_some() {
                break;
            } else {
                self.flush(ends, state, now)?;
            }
        }
        Ok(())
    }

    /// Sends all trains, unless the socket takes no more.
    fn flush(&mut self, ends: &Ends, state: &mut State, now: Instant) -> Result<(), WorkerError> {
        while !self.trains.is_empty() {
            let sent = self.send(ends, state, now);
            let (trains, error) = match sent {
                Ok(trains) => (trains, None),
                Err(error) => (error.transmit, Some(error)),
            };
            for _ in 0..trains {
                self.advance(self.trains.left(), state);
            }
            let Some(BatchError { segment, kind, .. }) = error else { continue };
            self.advance(segment.saturating_sub(self.trains.done()), state);
            match kind {
                SendErrorKind::WouldBlock => {
                    let held = self.held.unwrap_or(Held { until: now + HELD_FOR, refusals: 0, retry_at: None });
                    if now < held.until {
                        self.held = Some(Held { retry_at: None, ..held });
                        return Ok(());
                    }
                    while !self.trains.is_empty() {
                        self.give_up(DropReason::SendBufferFull, state);
                    }
                }
                SendErrorKind::NoBuffers => {
                    let held = self.held.unwrap_or(Held { until: now + HELD_FOR, refusals: 0, retry_at: None });
                    if held.refusals < NO_BUFFERS_RETRIES {
                        let retry_at = Some(now + NO_BUFFERS_WAIT * (1 << held.refusals));
                        self.held = Some(Held { refusals: held.refusals + 1, retry_at, ..held });
                        return Ok(());
                    }
                    self.give_up(DropReason::SendNoBuffers, state);
                }
                SendErrorKind::TooLong => self.too_long(ends, state, now)?,
                SendErrorKind::Closed
                | SendErrorKind::Forbidden
                | SendErrorKind::Other(_)
                | SendErrorKind::Refused
                | SendErrorKind::Unreachable => {
                    self.give_up(send_failure(kind), state);
                    if kind.is_fatal() {
                        return Err(ends.socket_gone());
                    }
                }
            }
            self.held = None;
        }
        self.held = None;
        Ok(())
    }

    /// Gives the socket as many trains as it takes at once. A path that is known to be narrow is not asked again.
    fn send(&self, ends: &Ends, state: &mut State, now: Instant) -> Result<usize, BatchError> {
        let refused = BatchError { transmit: 0, segment: self.trains.done(), kind: SendErrorKind::TooLong };
        let first = self.trains.transmit(0).filter(|front| state.fits_path(front, now)).ok_or(refused)?;
        if self.trains.len() == 1 {
            return ends.udp.send_batch(&[first], self.trains.done()).map(|()| 1);
        }
        let mut trains = [first; TRAINS_AT_ONCE];
        let mut count = 1;
        for (index, slot) in trains.iter_mut().enumerate().skip(1) {
            let Some(train) = self.trains.transmit(index).filter(|train| state.fits_path(train, now)) else { break };
            *slot = train;
            count += 1;
        }
        let trains = trains.get(..count).unwrap_or_default();
        ends.udp.send_batch(trains, self.trains.done()).map(|()| count)
    }

    #[inline]
    fn advance(&mut self, datagrams: usize, state: &mut State) {
        if datagrams > 0 {
            self.held = None;
            state.counters.encap.forward_all(self.trains.advance(datagrams));
        }
    }

    /// The rest of the front train is lost.
    #[cold]
    fn give_up(&mut self, reason: DropReason, state: &mut State) {
        let peer = self.trains.transmit(0).map(|train| train.destination.ip());
        let GivenUp { packets, unfinished } = self.trains.give_up(self.trains.left());
        if unfinished {
            self.unfinished = None;
        }
        state.counters.encap.discard_all(reason, packets);
        if let Some(peer) = peer {
            state.count_send_errors(peer, packets);
        }
    }

    /// The path to the front train's peer carries less than was thought: remembers how much, and tells the packets' senders.
    #[cold]
    fn too_long(&mut self, ends: &Ends, state: &mut State, now: Instant) -> Result<(), WorkerError> {
        let Some(train) = self.trains.transmit(0) else { return Ok(()) };
        let way = Way::from(&train);
        let longest = train.segments().map(<[u8]>::len).max().unwrap_or(0);
        let Some(mtu) = state.path_mtu(way.destination, longest, ends, now) else {
            // There is nothing that could be told to the senders.
            self.give_up(DropReason::SendFailed, state);
            return Ok(());
        };
        let mut left = self.trains.left();
        while left > 0 {
            let datagrams = self.trains.next_packet().max(1);
            left = left.saturating_sub(datagrams);
            self.too_long_packet(way, datagrams, mtu, ends, state, now)?;
        }
        Ok(())
    }

    /// The next packet of a train whose longest datagram is too long: its sender is told if one of its own is.
    fn too_long_packet(
        &mut self,
        way: Way,
        datagrams: usize,
        mtu: u16,
        ends: &Ends,
        state: &mut State,
        now: Instant,
    ) -> Result<(), WorkerError> {
        let is_lost_already = self.trains.next_is_lost();
        let mut offender = None;
        for index in 0..datagrams {
            let Some(datagram) = self.trains.datagram_mut(index) else { break };
            if datagram.len() > usize::from(mtu) {
                offender = Some(index);
                break;
            }
        }
        let Some(offender) = offender else { return self.send_singly(way, datagrams, ends, state) };
        let mut outcome = Ok(());
        if let Some(datagram) = self.trains.datagram_mut(offender).filter(|_| !is_lost_already) {
            match ends.forwarder.refused_as_too_long(datagram, mtu) {
                Ok(reject) => outcome = state.answer_near(&reject, ends, now),
                Err(reason) => state.counters.encap.discard(reason),
            }
        }
        if self.trains.give_up(datagrams).unfinished {
            self.unfinished = None;
        }
        outcome
    }

    fn send_singly(&mut self, way: Way, datagrams: usize, ends: &Ends, state: &mut State) -> Result<(), WorkerError> {
        for _ in 0..datagrams {
            let Some(datagram) = self.trains.datagram_mut(0) else { break };
            let Way { destination, ecn, flow } = way;
            let transmit = Transmit { ecn, flow, ..Transmit::datagram(destination, datagram) };
            match ends.udp.send(&transmit) {
                Ok(()) => self.advance(1, state),
                Err(error) => {
                    let GivenUp { packets, unfinished } = self.trains.give_up(1);
                    if unfinished {
                        self.unfinished = None;
                    }
                    state.counters.encap.discard_all(send_failure(error.kind), packets);
                    state.count_send_errors(destination.ip(), packets);
                    if error.is_fatal() {
                        return Err(ends.socket_gone());
                    }
                }
            }
        }
        Ok(())
    }
}

/// What [`Unfinished::place`] did.
struct Placed {
    segments: u64,
    all: bool,
}

impl Unfinished {
    #[inline]
    fn place(&mut self, buffer: &[u8], trains: &mut Trains) -> Placed {
        let packet = buffer.get(..self.len).unwrap_or_default();
        let Some(super_packet) = &self.super_packet else {
            let room = trains.push(&self.way, self.len, true);
            let all = room.map(|room| room.copy_from_slice(packet)).is_some();
            return Placed { segments: 0, all };
        };
        let first = self.next;
        let count = super_packet.segments();
        while self.next < count {
            let is_last = self.next + 1 == count;
            let Some(room) = trains.push(&self.way, super_packet.len_of(self.next), is_last) else { break };
            super_packet.write_segment(packet, self.next, room);
            self.next += 1;
        }
        Placed { segments: (self.next - first) as u64, all: self.next == count }
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
