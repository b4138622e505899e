//! From the TUN to the peers: read, decide, put into trains, send.

use alloc::boxed::Box;
use alloc::vec;
use std::time::Instant;

use super::sender::{Held, Sender};
use super::state::{Ends, State};
use super::{Budget, Progress, WorkerError};
use crate::forward::{DropReason, Encap};
use crate::offload::{SuperPacket, Work};
use crate::route::RouteTable;
use crate::sys::{PACKET_MAX, TunError, TunMeta};
use crate::transmit::{Trains, Way};

/// Bytes that are collected before they are sent. Half of that costs system calls, and four times as much gains nothing.
const BYTES_COLLECTED: usize = 128 << 10;

/// What came out of the TUN and has not been sent yet.
#[derive(Debug)]
pub(super) struct Outbound {
    /// The packet that was read last.
    buffer: Box<[u8]>,
    /// That packet, unless all of it is in trains.
    unfinished: Option<Unfinished>,
    sender: Sender,
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
    /// When the packet was taken in, or tried last.
    since: Instant,
}

impl Outbound {
    pub(super) fn new() -> Self {
        Self {
            buffer: vec![0; PACKET_MAX + 1].into_boxed_slice(),
            unfinished: None,
            sender: Sender::new(),
            batched: true,
        }
    }

    pub(super) fn held(&self) -> Option<&Held> {
        self.sender.held()
    }

    /// Since when there is work that no file descriptor tells of.
    pub(super) fn due(&self) -> Option<Instant> {
        self.unfinished.as_ref().map(|unfinished| unfinished.since)
    }

    /// Moves packets until the TUN is empty, the budget is used or the socket takes no more. Nothing that could be sent is
    /// left behind, but for the rest of a super-packet of more segments than the budget.
    pub(super) fn run(
        &mut self,
        ends: &Ends,
        routes: &RouteTable,
        state: &mut State,
        budget: Budget,
        now: Instant,
    ) -> Result<Progress, WorkerError> {
        if self.sender.has_to_wait(now) {
            return Ok(Progress::Held);
        }
        let mut left = budget.count() as usize;
        self.flush(ends, state, now)?;
        self.place(&mut left, ends, state, now)?;
        let mut progress = Progress::More;
        while left > 0 && self.held().is_none() {
            match ends.tun.recv(&mut self.buffer) {
                Ok(meta) => {
                    left -= 1;
                    self.take_in(meta, ends, routes, state, now)?;
                    self.place(&mut left, ends, state, now)?;
                }
                Err(TunError::WouldBlock) => {
                    progress = Progress::Drained;
                    break;
                }
                Err(error) if error.is_fatal() => {
                    self.flush(ends, state, now)?;
                    return Err(ends.tun_gone(error));
                }
                Err(_) => {
                    left -= 1;
                    state.counters.anomalies.read_errors += 1;
                }
            }
            let full = !self.batched || self.sender.trains.bytes() >= BYTES_COLLECTED;
            if full && self.held().is_none() {
                self.flush(ends, state, now)?;
            }
        }
        if self.held().is_none() {
            self.flush(ends, state, now)?;
        }
        state.counters.anomalies.gso_fallbacks = ends.udp.gso_fallbacks();
        Ok(if self.held().is_some() { Progress::Held } else { progress })
    }

    /// Forgets what waits; the caller has counted it.
    pub(super) fn clear(&mut self) {
        self.sender.clear();
        self.unfinished = None;
    }

    /// Decides on the packet in the buffer. What is to be sent is unfinished then.
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
                self.unfinished = Some(Unfinished { way, len, super_packet, next: 0, since: now });
            }
            Encap::Reject(reject) => {
                state.count_trimmed(reject.offender().as_bytes(), meta.len);
                return state.answer_near(&reject, ends, now);
            }
            Encap::Drop(reason) => state.counters.encap.discard(reason),
        }
        Ok(())
    }

    /// Puts what is unfinished into trains, as far as there is room and budget.
    #[inline]
    fn place(&mut self, left: &mut usize, ends: &Ends, state: &mut State, now: Instant) -> Result<(), WorkerError> {
        while let Some(unfinished) = &mut self.unfinished {
            let placed = unfinished.place(&self.buffer, &mut self.sender.trains, left);
            state.counters.anomalies.segments_made += placed.segments;
            if placed.all {
                self.unfinished = None;
            } else if *left == 0 || self.held().is_some() {
                break;
            } else if self.sender.trains.is_empty() {
                // Longer than any datagram.
                self.unfinished = None;
                state.counters.encap.discard(DropReason::SendFailed);
            } else {
                self.flush(ends, state, now)?;
            }
        }
        Ok(())
    }

    #[inline]
    fn flush(&mut self, ends: &Ends, state: &mut State, now: Instant) -> Result<(), WorkerError> {
        let outcome = self.sender.flush(ends, state, now);
        if self.sender.take_lost_unfinished() {
            self.unfinished = None;
        }
        outcome
    }
}

/// What [`Unfinished::place`] did.
struct Placed {
    segments: u64,
    all: bool,
}

impl Unfinished {
    /// A datagram takes one off the budget, but for the first of a packet, which was paid for when it was read.
    #[inline]
    fn place(&mut self, buffer: &[u8], trains: &mut Trains, left: &mut usize) -> Placed {
        let packet = buffer.get(..self.len).unwrap_or_default();
        let Some(super_packet) = &self.super_packet else {
            let room = trains.push(&self.way, self.len, true);
            let all = room.map(|room| room.copy_from_slice(packet)).is_some();
            return Placed { segments: 0, all };
        };
        let first = self.next;
        let count = super_packet.segments();
        while self.next < count && (*left > 0 || self.next == 0) {
            let is_last = self.next + 1 == count;
            let Some(room) = trains.push(&self.way, super_packet.len_of(self.next), is_last) else { break };
            super_packet.write_segment(packet, self.next, room);
            if self.next > 0 {
                *left -= 1;
            }
            self.next += 1;
        }
        Placed { segments: (self.next - first) as u64, all: self.next == count }
    }
}
