//! From the peers to the TUN: receive, decide, coalesce, write.

use alloc::boxed::Box;
use alloc::vec;
use core::time::Duration;
use std::time::Instant;

use super::failing::Failure;
use super::state::{Ends, State};
use super::{Budget, Progress, WorkerError};
use crate::forward::{Decap, DropReason, Outer};
use crate::offload::{Coalesce, Coalesced, Coalescer, OffloadAction, vnet_gso};
use crate::route::RouteTable;
use crate::sys::{PACKET_MAX, RecvBatch, RecvError, TunError};

/// Messages that one system call receives, each a datagram or a train: 1 MiB of buffers.
const MESSAGES: usize = 16;

/// So many GSO packets of a protocol refused in a row, with their parts accepted, and no more are tried for a while: some
/// kernels never take them.
const REFUSALS: u32 = 8;

/// How long no more are tried at first. It doubles each time, up to an hour.
const FIRST_WAIT: Duration = Duration::from_secs(60);
/// How long at most, and how long they have to be taken until the wait is the first one again.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// How many were refused in a row.
#[derive(Clone, Copy, Debug)]
struct Refusals {
    tcp: u32,
    udp: u32,
    /// How long GSO packets are not tried the next time.
    wait: Duration,
    retry_at: Option<Instant>,
    /// Since when they are tried again.
    again_since: Option<Instant>,
}

impl Refusals {
    const NONE: Self = Self { tcp: 0, udp: 0, wait: FIRST_WAIT, retry_at: None, again_since: None };

    fn of(&mut self, packets: &Coalesced<'_>) -> &mut u32 {
        if packets.header.gso_type == vnet_gso::UDP_L4 { &mut self.udp } else { &mut self.tcp }
    }
}

/// What was received and is not in the TUN yet.
#[derive(Debug)]
pub(super) struct Inbound {
    messages: RecvBatch,
    /// `None`: every packet is written by itself.
    coalescer: Option<Coalescer>,
    /// For a GSO packet that has to be taken apart again.
    scratch: Box<[u8]>,
    refusals: Refusals,
}

impl Inbound {
    pub(super) fn new(ends: &Ends) -> Self {
        let offload = ends.tun.offload();
        let coalesce = Coalesce { tcp: offload.tso, udp: offload.uso };
        let coalescer = (coalesce.tcp || coalesce.udp).then(|| Coalescer::new(coalesce));
        let scratch = vec![0; PACKET_MAX].into_boxed_slice();
        Self { messages: RecvBatch::new(MESSAGES), coalescer, scratch, refusals: Refusals::NONE }
    }

    /// Receives and writes one packet at a time.
    pub(super) fn one_by_one(&mut self) {
        self.messages = RecvBatch::new(1);
        self.coalescer = None;
    }

    /// Moves datagrams until the socket is empty or the budget is used. Nothing is left behind.
    pub(super) fn run(
        &mut self,
        ends: &Ends,
        routes: &RouteTable,
        state: &mut State,
        budget: Budget,
        now: Instant,
    ) -> Result<Progress, WorkerError> {
        if state.failing.receive_at().is_some() {
            return Ok(Progress::Held);
        }
        if self.refusals.retry_at.is_some_and(|at| at <= now) {
            self.coalesce_again(ends, now);
        }
        let mut left = budget.count() as usize;
        while left > 0 {
            match ends.udp.recv_batch(&mut self.messages) {
                Ok(_count) => left = left.saturating_sub(self.take_in(ends, routes, state, now)?),
                Err(RecvError::WouldBlock) => {
                    state.failing.receive_works();
                    return Ok(Progress::Drained);
                }
                Err(error) if error.is_fatal() => return Err(ends.socket_gone()),
                Err(error) => {
                    left -= 1;
                    state.counters.stats.read_errors += 1;
                    state.fails(Failure::Receive(error), now)?;
                }
            }
            if state.failing.receive_at().is_some() {
                return Ok(Progress::Held);
            }
        }
        Ok(Progress::More)
    }

    /// Tries GSO packets again. One more that is refused is enough to stop that.
    #[cold]
    fn coalesce_again(&mut self, ends: &Ends, now: Instant) {
        if let Some(coalescer) = &mut self.coalescer {
            let Refusals { tcp, udp, .. } = self.refusals;
            let offload = ends.tun.offload();
            coalescer.set(Coalesce { tcp: offload.tso, udp: offload.uso });
            let left = |refused: u32| refused.min(REFUSALS - 1);
            let again_since = Some(now);
            self.refusals = Refusals { tcp: left(tcp), udp: left(udp), retry_at: None, again_since, ..self.refusals };
        }
    }

    /// Sees to all messages of the batch, and returns how many datagrams they were.
    fn take_in(
        &mut self,
        ends: &Ends,
        routes: &RouteTable,
        state: &mut State,
        now: Instant,
    ) -> Result<usize, WorkerError> {
        let Self { messages, coalescer, scratch, refusals } = self;
        let mut writer = Writer { ends, scratch, refusals, now, end: Ok(()) };
        let mut count = 0;
        for message in messages.iter_mut() {
            let (meta, bytes) = match message {
                Ok(message) => message,
                Err(_) => {
                    count += 1;
                    state.counters.stats.read_errors += 1;
                    continue;
                }
            };
            let outer = Outer { from: meta.from, ecn: meta.ecn };
            let empty = bytes.is_empty();
            let (datagrams, nothing) = (bytes.chunks_mut(meta.stride.max(1)), empty.then(<&mut [u8]>::default));
            for datagram in datagrams.chain(nothing) {
                count += 1;
                state.counters.decap.receive();
                let len = datagram.len();
                match ends.forwarder.decapsulate(datagram, outer, routes) {
                    Decap::Deliver(packet) => {
                        state.count_trimmed(packet, len);
                        match coalescer {
                            Some(coalescer) => coalescer.push(packet, &mut |packets| writer.write(&packets, state)),
                            None => writer.write_single(packet, state),
                        }
                    }
                    Decap::Reject(reject) => {
                        state.count_trimmed(reject.offender().as_bytes(), len);
                        let answered = state.answer_far(&reject, ends, now);
                        if answered.is_err() {
                            writer.end = answered;
                        }
                    }
                    Decap::Drop(reason) => {
                        state.counters.decap.discard(reason);
                        if reason == DropReason::UnknownPeer {
                            state.strangers.look(datagram, outer.from, routes, now);
                        }
                    }
                }
            }
        }
        if let Some(coalescer) = coalescer {
            coalescer.flush(&mut |packets| writer.write(&packets, state));
            let Refusals { tcp, udp, .. } = *writer.refusals;
            let Coalesce { tcp: with_tcp, udp: with_udp } = coalescer.what();
            if (with_tcp && tcp >= REFUSALS) || (with_udp && udp >= REFUSALS) {
                coalescer.set(Coalesce { tcp: with_tcp && tcp < REFUSALS, udp: with_udp && udp < REFUSALS });
                let refusals = &mut *writer.refusals;
                if refusals.again_since.is_some_and(|since| now.saturating_duration_since(since) >= LONGEST_WAIT) {
                    refusals.wait = FIRST_WAIT;
                }
                refusals.retry_at = Some(now + refusals.wait);
                refusals.wait = (2 * refusals.wait).min(LONGEST_WAIT);
            }
        }
        writer.end?;
        Ok(count)
    }
}

/// Writes to the TUN, until that is gone.
struct Writer<'a> {
    ends: &'a Ends,
    scratch: &'a mut [u8],
    refusals: &'a mut Refusals,
    now: Instant,
    end: Result<(), WorkerError>,
}

impl Writer<'_> {
    fn write(&mut self, packets: &Coalesced<'_>, state: &mut State) {
        let Coalesced { header, packet, packets: count } = *packets;
        if count == 1 {
            return self.write_single(packet, state);
        }
        let count = count as u64;
        match self.ends.tun.send_with(&header, packet) {
            Ok(()) => {
                *self.refusals.of(packets) = 0;
                state.counters.decap.forward_all(count);
                state.counters.stats.coalesced += count;
            }
            Err(TunError::Rejected(_)) => self.write_apart(packets, state),
            Err(error) => {
                state.counters.decap.discard_all(tun_failure(error), count);
                self.note(error);
            }
        }
    }

    /// Some kernels refuse GSO packets that they should take.
    #[cold]
    fn write_apart(&mut self, packets: &Coalesced<'_>, state: &mut State) {
        state.counters.stats.tun_fallbacks += 1;
        let Ok(OffloadAction::Segment(gso_packet)) = packets.header.inspect(packets.packet) else {
            state.counters.decap.discard_all(DropReason::TunFailed, packets.packets as u64);
            return;
        };
        let forwarded = state.counters.decap.forwarded();
        for index in 0..gso_packet.segments() {
            let len = gso_packet.len_of(index);
            let scratch = core::mem::take(&mut self.scratch);
            let packet = scratch.get_mut(..len).unwrap_or_default();
            gso_packet.write_segment(packets.packet, index, packet);
            self.write_single(packet, state);
            self.scratch = scratch;
        }
        if state.counters.decap.forwarded() > forwarded {
            *self.refusals.of(packets) += 1;
        }
    }

    fn write_single(&mut self, packet: &[u8], state: &mut State) {
        match self.ends.tun.send(packet) {
            Ok(()) => state.counters.decap.forward(),
            Err(error) => {
                state.counters.decap.discard(tun_failure(error));
                self.note(error);
                if let TunError::Rejected(_) = error
                    && let Err(end) = state.fails(Failure::Write(error), self.now)
                {
                    self.end = Err(end);
                }
            }
        }
    }

    fn note(&mut self, error: TunError) {
        if error.is_fatal() {
            self.end = Err(self.ends.tun_gone(error));
        }
    }
}

fn tun_failure(error: TunError) -> DropReason {
    match error {
        TunError::Down => DropReason::TunDown,
        TunError::Full | TunError::WouldBlock => DropReason::TunFull,
        TunError::Closed | TunError::Deleted | TunError::Headless { .. } | TunError::Rejected(_) => {
            DropReason::TunFailed
        }
    }
}
