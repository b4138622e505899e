//! From the TUN to the peers: read, decide, put into trains, send.

use alloc::boxed::Box;
use alloc::vec;
use std::time::Instant;

use super::failing::Failure;
use super::sender::{Held, Sender};
use super::state::{Ends, Routed, State};
use super::unfinished::Unfinished;
use super::{Budget, Progress, WorkerError};
use crate::forward::{DropReason, Encap};
use crate::offload::{GsoPacket, OffloadAction};
use crate::route::RouteTable;
use crate::sys::{PACKET_MAX, TunError, TunMeta};
use crate::transmit::Way;

/// Bytes that are collected before they are sent. Half of that costs system calls, and four times as much gains nothing.
const BYTES_COLLECTED: usize = 128 << 10;

/// What came out of the TUN and has not been sent yet.
#[derive(Debug)]
pub(super) struct Outbound {
    /// The packet that was read last.
    buffer: Box<[u8]>,
    /// That packet, unless all of it is in trains.
    unfinished: Option<Unfinished>,
    /// For a segment of it that is too long for its path.
    scratch: Box<[u8]>,
    sender: Sender,
    /// Whether packets wait for each other; without, each is sent at once.
    pub(super) batched: bool,
}

impl Outbound {
    pub(super) fn new() -> Self {
        Self {
            buffer: vec![0; PACKET_MAX + 1].into_boxed_slice(),
            unfinished: None,
            scratch: vec![0; PACKET_MAX].into_boxed_slice(),
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
    /// left behind, but for the rest of a packet of more segments or fragments than the budget.
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
        let io = Routed { ends, routes };
        state.poll_reports(&io, now);
        let mut left = budget.count() as usize;
        self.flush(io, state, now)?;
        self.place(&mut left, io, state, now)?;
        let mut progress = Progress::More;
        if state.failing.read_at().is_some() {
            (left, progress) = (0, Progress::Held);
        }
        while left > 0 && self.held().is_none() {
            match ends.tun.recv(&mut self.buffer) {
                Ok(meta) => {
                    left -= 1;
                    self.take_in(meta, ends, routes, state, now)?;
                    self.place(&mut left, io, state, now)?;
                }
                Err(TunError::WouldBlock) => {
                    state.failing.read_works();
                    progress = Progress::Drained;
                    break;
                }
                Err(error) if error.is_fatal() => {
                    self.flush(io, state, now)?;
                    return Err(ends.tun_gone(error));
                }
                Err(error) => {
                    left -= 1;
                    state.counters.stats.read_errors += 1;
                    if state.fails(Failure::Read(error), now)? {
                        progress = Progress::Held;
                        break;
                    }
                }
            }
            let full = !self.batched || self.sender.trains.bytes() >= BYTES_COLLECTED;
            if full && self.held().is_none() {
                self.flush(io, state, now)?;
            }
        }
        if self.held().is_none() {
            self.flush(io, state, now)?;
        }
        Ok(if self.held().is_some() { Progress::Held } else { progress })
    }

    /// Drops what waits for next hops that no route has any more (R70).
    #[cold]
    pub(super) fn drop_stale(&mut self, routes: &RouteTable, state: &mut State) {
        self.sender.drop_stale(routes, state);
        if self.sender.take_lost_unfinished() {
            self.unfinished = None;
        } else if self.unfinished.take_if(|packet| !routes.has_next_hop(packet.destination())).is_some() {
            state.counters.encap.discard(DropReason::StaleRoute);
        }
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
        let gso_packet = match meta.header.inspect(packet) {
            Ok(OffloadAction::Nothing) => None,
            Ok(OffloadAction::Checksum(checksum)) => {
                checksum.complete(packet);
                None
            }
            Ok(OffloadAction::Segment(gso_packet)) => Some(gso_packet),
            Err(_) => {
                state.counters.encap.discard(DropReason::BadOffload);
                return Ok(());
            }
        };
        let mut verdict = match &gso_packet {
            None => ends.forwarder.encapsulate(packet, routes),
            Some(cut) => ends.forwarder.encapsulate_gso_packet(packet, cut.segment_len(), routes),
        };
        if let Some((way, longest)) = datagrams_of(&verdict, gso_packet.as_ref()) {
            let limit = state.path_limit(way.destination, now);
            if longest > limit.into() {
                verdict = ends.forwarder.refused_as_too_long(packet, way, limit, routes).into();
            }
        }
        match verdict {
            Encap::Send(transmit) => {
                state.count_trimmed(transmit.contents, meta.len);
                let (way, len) = (Way::from(&transmit), transmit.contents.len());
                self.unfinished = Some(Unfinished::new(way, len, gso_packet, now));
            }
            Encap::Fragment(fragments) => {
                state.count_trimmed(fragments.packet(), meta.len);
                let (way, fragmenter) = (fragments.way(), fragments.fragmenter());
                self.unfinished = Some(Unfinished::fragmented(way, fragmenter, gso_packet, now));
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
    fn place(&mut self, left: &mut usize, io: Routed<'_>, state: &mut State, now: Instant) -> Result<(), WorkerError> {
        while let Some(unfinished) = &mut self.unfinished {
            let placed = unfinished.place(&mut self.buffer, &mut self.scratch, &mut self.sender.trains, left);
            state.counters.stats.segments_made += placed.segments;
            state.counters.stats.fragments_made += placed.fragments;
            if placed.all {
                self.unfinished = None;
            } else if *left == 0 || self.held().is_some() {
                break;
            } else if self.sender.trains.is_empty() {
                // Nothing takes so much room that there is none in empty trains; a loop without end would be worse than a loss.
                self.unfinished = None;
                state.counters.encap.discard(DropReason::SendFailed);
            } else {
                self.flush(io, state, now)?;
            }
        }
        Ok(())
    }

    #[inline]
    fn flush(&mut self, io: Routed<'_>, state: &mut State, now: Instant) -> Result<(), WorkerError> {
        let outcome = self.sender.flush(&io, state, now);
        if self.sender.take_lost_unfinished() {
            self.unfinished = None;
        }
        outcome
    }
}

/// Where the datagrams of a packet go that is sent, and the longest of them in bytes.
#[inline]
fn datagrams_of(verdict: &Encap<'_>, gso_packet: Option<&GsoPacket>) -> Option<(Way, usize)> {
    match verdict {
        Encap::Send(transmit) => {
            let longest = gso_packet.map_or(transmit.contents.len(), |cut| cut.segment_len().into());
            Some((Way::from(transmit), longest))
        }
        Encap::Fragment(fragments) => Some((fragments.way(), fragments.fragmenter().mtu().into())),
        Encap::Reject(_) | Encap::Drop(_) => None,
    }
}
