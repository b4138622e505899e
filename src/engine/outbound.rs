//! The direction from the TUN to the peers.

use core::time::Duration;

use super::{Engine, SendFailure, Sink, Unsent, peer_of};
use crate::endpoint::{Direction, Outbound};
use crate::forward::{DropReason, EmsgsizeOutcome, ReplyTo};
use crate::framing::{Framing, seal_with, sealed_len};
use crate::offload::VnetHeader;
use crate::route::RouteTable;
use crate::transmit::{Lost, SELECTED_MAX, Transmit, Way};

/// Bytes that are collected before they are sent. They fit in a part of the second-level cache.
const BYTES_COLLECTED: usize = 128 << 10;

/// The first pause after a peer's datagrams are refused with EAGAIN. It doubles up to the longest one while nothing is
/// sent.
const PAUSE: Duration = Duration::from_micros(500);
const LONGEST_PAUSE: Duration = Duration::from_millis(4);

/// The time after which the packets of a blocked peer are dropped.
const TAKES_NOTHING: Duration = Duration::from_secs(1);

/// The same for a kernel without memory (ENOBUFS, ENOMEM).
const NO_BUFFERS: Duration = Duration::from_millis(15);

impl<F: Framing> Engine<F> {
    /// Takes a packet from the TUN, and returns the number of datagrams that it became, at least 1. They are sent with
    /// [`flush`](Self::flush), or before if much has been collected.
    #[inline]
    pub fn from_tun(
        &mut self,
        header: &VnetHeader,
        packet: &mut [u8],
        routes: &RouteTable,
        now: Duration,
        sink: &mut impl Sink,
    ) -> usize {
        if F::HAS_SESSIONS && !self.is_ready(header, packet, routes, now, sink) {
            return 1;
        }
        self.queue_packet(header, packet, routes, now, sink)
    }

    /// Decides on a packet, and queues its datagrams.
    #[inline]
    pub(super) fn queue_packet(
        &mut self,
        header: &VnetHeader,
        packet: &mut [u8],
        routes: &RouteTable,
        now: Duration,
        sink: &mut impl Sink,
    ) -> usize {
        if self.queue.is_short() {
            self.flush_queue(routes, now, sink);
        }
        let Self { endpoint, queue, framing, .. } = self;
        let mut count = 1;
        let mut mtu = 0;
        let (way, bytes) = match endpoint.decide_outbound::<F>(packet, header, routes, now, &mut mtu) {
            Outbound::Send(transmit) => {
                let (way, contents) = (Way::from(&transmit), transmit.contents);
                let mut pending = queue.begin(&way);
                let (len, peer) = (contents.len(), way.destination);
                let sealed = sealed_len(framing, len, mtu);
                match pending.datagram(sealed) {
                    Some(room) => {
                        seal_with(framing, peer, room, len, |packet| packet.copy_from_slice(contents));
                        pending.commit();
                        (way, Some(sealed))
                    }
                    None => (way, None),
                }
            }
            Outbound::SendAll(mut datagrams) => {
                let way = *datagrams.way();
                let mut pending = queue.begin(&way);
                let mut bytes = 0;
                count = 0;
                loop {
                    let Some(len) = datagrams.next_len() else {
                        pending.commit();
                        break (way, Some(bytes));
                    };
                    let sealed = sealed_len(framing, len, mtu);
                    let Some(room) = pending.datagram(sealed) else { break (way, None) };
                    seal_with(framing, way.destination, room, len, |packet| datagrams.write_next(packet));
                    bytes += sealed;
                    count += 1;
                }
            }
            Outbound::Reply(reply) => {
                let (to, reason) = (reply.to, reply.reason);
                if sink.write(&VnetHeader::default(), reply.message).is_err() {
                    endpoint.handle_reply_error(Direction::Outbound, to, reason);
                }
                return 1;
            }
            Outbound::Drop(_) => return 1,
        };
        match bytes {
            Some(bytes) => self.collected += bytes,
            None => endpoint.handle_send_error(way.destination.ip(), DropReason::SendBufferFull, 1),
        }
        if self.collected >= BYTES_COLLECTED || !self.batched {
            self.flush_queue(routes, now, sink);
        }
        count.max(1)
    }

    /// Sends all datagrams that the socket accepts, after the framing's work that is due.
    #[inline]
    pub fn flush(&mut self, routes: &RouteTable, now: Duration, sink: &mut impl Sink) {
        if !F::IS_BARE {
            self.handle_timeouts(routes, now, sink);
        }
        self.flush_queue(routes, now, sink);
    }

    #[inline]
    pub(super) fn flush_queue(&mut self, routes: &RouteTable, now: Duration, sink: &mut impl Sink) {
        self.collected = 0;
        self.queue.unblock(now);
        while self.queue.select() > 0 {
            let Err(unsent) = self.send_selected(now, sink) else { continue };
            self.mark_sent(&unsent);
            if unsent.reason == SendFailure::Closed {
                return;
            }
            self.handle_unsent(&unsent, routes, now, sink);
        }
    }

    /// Sends as many of the selected batches as one call can. A batch that is longer than its known path MTU is not
    /// tried.
    #[inline]
    fn send_selected(&mut self, now: Duration, sink: &mut impl Sink) -> Result<(), Unsent> {
        let Self { endpoint, queue, .. } = self;
        let fits = |batch: &Transmit<'_>| {
            endpoint.paths().is_empty() || batch.longest() <= endpoint.path_limit(peer_of(batch), now).into()
        };
        let Some(first) = queue.batch(0) else { return Ok(()) };
        if !fits(&first) {
            return Err(Unsent { batch: 0, datagram: 0, datagrams: 1, reason: SendFailure::TooLong });
        }
        let mode = endpoint.path_mode(peer_of(&first), now);
        let mut batches = [first; SELECTED_MAX];
        let mut count = 1;
        for (index, slot) in batches.iter_mut().enumerate().skip(1) {
            let goes_along = |batch: &Transmit<'_>| fits(batch) && endpoint.path_mode(peer_of(batch), now) == mode;
            let Some(batch) = queue.batch(index).filter(goes_along) else { break };
            *slot = batch;
            count += 1;
        }
        sink.send(batches.get(..count).unwrap_or_default(), mode)?;
        queue.sent(count);
        Ok(())
    }

    /// Marks the datagrams before a failure as sent.
    fn mark_sent(&mut self, unsent: &Unsent) {
        self.queue.sent(unsent.batch);
        self.queue.advance(unsent.datagram);
        if unsent.datagram > 0 {
            self.queue.select_first_again();
        }
    }

    #[cold]
    fn handle_unsent(&mut self, unsent: &Unsent, routes: &RouteTable, now: Duration, sink: &mut impl Sink) {
        let since = self.queue.blocked_since();
        let waits = |limit: Duration| since.is_none_or(|since| now.saturating_sub(since) < limit);
        match unsent.reason {
            SendFailure::Full if waits(TAKES_NOTHING) => self.block(now, since),
            SendFailure::NoBuffers if waits(NO_BUFFERS) => self.block(now, since),
            SendFailure::Full => {
                let peer = self.queue.batch(0).map(|batch| batch.destination);
                self.drop_blocked(peer);
            }
            SendFailure::TooLong => self.handle_too_long(routes, now, sink),
            reason @ (SendFailure::Closed
            | SendFailure::Failed
            | SendFailure::Forbidden
            | SendFailure::NoBuffers
            | SendFailure::Refused
            | SendFailure::Unreachable) => {
                let lost = self.queue.lose(unsent.datagrams.max(1));
                self.lose(lost, reason.drop_reason());
            }
        }
    }

    fn block(&mut self, now: Duration, since: Option<Duration>) {
        // The pause is as long as the peer has been blocked already, so that the total doubles.
        let pause = since.map_or(PAUSE, |since| now.saturating_sub(since)).clamp(PAUSE, LONGEST_PAUSE);
        let Self { endpoint, queue, .. } = self;
        queue.block(now, now + pause, |Lost { destination, packets }| {
            if packets > 0 {
                endpoint.handle_send_error(destination.ip(), DropReason::SendBufferFull, packets);
            }
        });
    }

    /// Drops all packets of a peer that has been blocked for too long.
    fn drop_blocked(&mut self, peer: Option<core::net::SocketAddr>) {
        let Self { endpoint, queue, .. } = self;
        queue.drop_peers(
            |destination| Some(destination) == peer,
            |lost| endpoint.handle_send_error(lost.destination.ip(), DropReason::SendBufferFull, lost.packets),
        );
    }

    /// Handles a first batch with datagrams that are longer than the path MTU.
    #[cold]
    fn handle_too_long(&mut self, routes: &RouteTable, now: Duration, sink: &mut impl Sink) {
        let Self { endpoint, queue, .. } = self;
        let Some(batch) = queue.batch(0) else { return };
        let (way, longest, count) = (Way::from(&batch), batch.longest(), batch.segments().count());
        let as_long = batch.segments().take_while(|datagram| datagram.len() == longest).count();
        let known = endpoint.path_limit(peer_of(&batch), now);
        let mtu = if usize::from(known) < longest {
            known
        } else {
            let system = sink.system_path(&way, &mut |report| {
                endpoint.handle_icmp(report, routes, now);
            });
            match endpoint.handle_emsgsize(&way, longest, system, now) {
                EmsgsizeOutcome::Limit(mtu) => mtu,
                EmsgsizeOutcome::Retry => return,
                // No path MTU is known that an ICMP error could name. A shorter last datagram may fit.
                EmsgsizeOutcome::Unexplained => {
                    let lost = queue.lose(as_long.max(1));
                    return self.lose(lost, DropReason::SendFailed);
                }
            }
        };
        if !F::IS_BARE {
            // An ICMP error could not quote a sealed packet.
            let lost = queue.lose(as_long.max(1));
            return self.lose(lost, DropReason::PathTooNarrow);
        }
        for _ in 0..count {
            // The rest of a packet whose sender got an ICMP error is of no use to the receiver.
            let is_lost = queue.next_is_lost();
            let Some(datagram) = queue.datagram_mut().filter(|datagram| is_lost || datagram.len() > mtu.into()) else {
                return;
            };
            if !is_lost && let Outbound::Reply(reply) = endpoint.handle_too_long(datagram, &way, mtu, routes, now) {
                let (to, reason) = (reply.to, reply.reason);
                if to != ReplyTo::Tun || sink.write(&VnetHeader::default(), reply.message).is_err() {
                    endpoint.handle_reply_error(Direction::Outbound, to, reason);
                }
            }
            // Counted by `handle_too_long`.
            queue.lose(1);
        }
    }
}
