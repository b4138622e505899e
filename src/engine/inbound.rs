//! The direction from the peers to the TUN.

use alloc::boxed::Box;
use alloc::vec;
use core::slice;
use core::time::Duration;

use super::{Engine, SendFailure, Sink, Unsent, WriteFailure, hold};
use crate::endpoint::{Direction, Endpoint, Inbound};
use crate::forward::{DatagramMeta, DropReason, PathMode, ReplyTo};
use crate::framing::Framing;
use crate::offload::{Coalesce, Coalesced, Coalescer, OffloadAction, VnetHeader, vnet_gso};
use crate::route::RouteTable;
use crate::transmit::Transmit;
use crate::wire::ICMP_ERROR_MAX;

/// Bytes of the longest packet.
const PACKET_MAX: usize = 65_535;

/// Refusals of GSO packets in a row, with their segments accepted, after which GSO packets of this protocol and family
/// are disabled for a while. Some kernels never accept them.
const REFUSALS: u32 = 8;

/// The first time for which they are disabled. It doubles each time, up to an hour.
const FIRST_WAIT: Duration = Duration::from_secs(60);
/// The longest time. After as long without refusals, the next time is [`FIRST_WAIT`] again.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// A writer to the TUN, which coalesces packets where possible.
#[derive(Debug)]
pub(super) struct Writer {
    /// `None` if every packet is written by itself.
    pub(super) coalescer: Option<Coalescer>,
    granted: Coalesce,
    /// A buffer for a segment of a refused GSO packet, or for an ICMP error that is sealed.
    scratch: Box<[u8]>,
    refusals: Refusals,
}

/// GSO packets that were refused in a row.
#[derive(Clone, Copy, Debug)]
struct Refusals {
    tcp4: u32,
    tcp6: u32,
    udp4: u32,
    udp6: u32,
    /// The time for which they are disabled after the next refusals.
    wait: Duration,
    retry_at: Option<Duration>,
    /// The time since which they are enabled again.
    again_since: Option<Duration>,
}

impl<F: Framing> Engine<F> {
    /// Takes a datagram from the underlay. Its packet is written with [`flush_inbound`](Self::flush_inbound), or
    /// before.
    ///
    /// Returns the reason if it was dropped without an ICMP error.
    #[inline]
    pub fn from_udp(
        &mut self,
        meta: impl Into<DatagramMeta>,
        datagram: &mut [u8],
        routes: &RouteTable,
        now: Duration,
        sink: &mut impl Sink,
    ) -> Option<DropReason> {
        let Self { endpoint, writer, framing, .. } = self;
        let mut meta = meta.into();
        let packet = if F::IS_BARE {
            datagram
        } else {
            match Self::open(endpoint, framing, &mut meta, datagram, (routes, now), sink) {
                Ok(Some(packet)) => packet,
                Ok(None) => {
                    if !self.hold.is_empty() {
                        self.release_and_send(hold::ALL, routes, now, sink);
                    }
                    return None;
                }
                Err(reason) => return Some(reason),
            }
        };
        let dropped = match endpoint.handle_inbound(packet, meta, routes, now) {
            Inbound::Deliver(packet) => {
                let Writer { coalescer, granted, scratch, refusals } = writer;
                if let (Some(coalescer), Some(_)) = (&mut *coalescer, refusals.retry_at.filter(|at| *at <= now)) {
                    refusals.try_again(now);
                    coalescer.set(*granted);
                }
                let mut out = Out { endpoint, sink, scratch, refusals };
                match coalescer {
                    Some(coalescer) => coalescer.push(packet, &mut |packets| out.write(&packets)),
                    None => out.write_single(packet),
                }
                None
            }
            Inbound::Reply(reply) => {
                let (to, reason) = (reply.to, reply.reason);
                let sent = match to {
                    ReplyTo::Peer(peer) if F::IS_BARE => {
                        send_reply(&Transmit::datagram(peer, reply.message), sink).is_ok()
                    }
                    ReplyTo::Peer(peer) => {
                        let len = reply.message.len();
                        if let Some(room) = writer.scratch.get_mut(F::HEAD..F::HEAD + len) {
                            room.copy_from_slice(reply.message);
                        }
                        Self::send_sealed(endpoint, framing, (peer, len), &mut writer.scratch, now, sink)
                    }
                    ReplyTo::Tun => false,
                };
                if !sent {
                    endpoint.handle_reply_error(Direction::Inbound, to, reason);
                }
                None
            }
            Inbound::Drop(reason) => Some(reason),
        };
        if F::HAS_SESSIONS && !self.hold.is_empty() {
            let peers = hold::with_address(meta.from.ip().to_canonical());
            if self.hold.first(peers).is_some() {
                self.release_and_send(peers, routes, now, sink);
            }
        }
        dropped
    }

    /// Writes the packets that are collected for coalescing.
    #[inline]
    pub fn flush_inbound(&mut self, now: Duration, sink: &mut impl Sink) {
        let Self { endpoint, writer, .. } = self;
        let Writer { coalescer: Some(coalescer), scratch, refusals, .. } = writer else { return };
        let mut out = Out { endpoint, sink, scratch, refusals };
        coalescer.flush(&mut |packets| out.write(&packets));
        let (what, accepted) = (coalescer.what(), refusals.accepted(coalescer.what()));
        if what != accepted {
            coalescer.set(accepted);
            if refusals.again_since.is_some_and(|since| now.saturating_sub(since) >= LONGEST_WAIT) {
                refusals.wait = FIRST_WAIT;
            }
            refusals.retry_at = Some(now + refusals.wait);
            refusals.wait = (2 * refusals.wait).min(LONGEST_WAIT);
        }
    }
}

impl Writer {
    pub(super) fn new(coalescer: Option<Coalescer>, granted: Coalesce) -> Self {
        let refusals =
            Refusals { tcp4: 0, tcp6: 0, udp4: 0, udp6: 0, wait: FIRST_WAIT, retry_at: None, again_since: None };
        // Only GSO packets are cut into segments.
        let scratch = if coalescer.is_some() { PACKET_MAX } else { 0 };
        Self { coalescer, granted, scratch: vec![0; scratch].into_boxed_slice(), refusals }
    }

    /// Makes room for an ICMP error of this framing.
    pub(super) fn make_room<F: Framing>(&mut self) {
        let least = ICMP_ERROR_MAX + F::OVERHEAD_MAX;
        if !F::IS_BARE && self.scratch.len() < least {
            self.scratch = vec![0; least].into_boxed_slice();
        }
    }
}

impl Refusals {
    fn of(&mut self, packets: &Coalesced<'_>) -> &mut u32 {
        let is_udp = packets.header.gso_type == vnet_gso::UDP_L4;
        let is_v6 = packets.packet.first().is_some_and(|first| first >> 4 == 6);
        match (is_udp, is_v6) {
            (false, false) => &mut self.tcp4,
            (false, true) => &mut self.tcp6,
            (true, false) => &mut self.udp4,
            (true, true) => &mut self.udp6,
        }
    }

    /// Returns `what` without the packets that were refused too often.
    fn accepted(&self, what: Coalesce) -> Coalesce {
        Coalesce {
            tcp4: what.tcp4 && self.tcp4 < REFUSALS,
            tcp6: what.tcp6 && self.tcp6 < REFUSALS,
            udp4: what.udp4 && self.udp4 < REFUSALS,
            udp6: what.udp6 && self.udp6 < REFUSALS,
        }
    }

    /// Enables GSO packets again. One further refusal disables them.
    #[cold]
    fn try_again(&mut self, now: Duration) {
        for refused in [&mut self.tcp4, &mut self.tcp6, &mut self.udp4, &mut self.udp6] {
            *refused = (*refused).min(REFUSALS - 1);
        }
        (self.retry_at, self.again_since) = (None, Some(now));
    }
}

/// Sends an ICMP error. On a path that refuses it, the kernel may fragment it. It is too short and too rare for
/// path-MTU discovery.
#[cold]
pub(super) fn send_reply(message: &Transmit<'_>, sink: &mut impl Sink) -> Result<(), Unsent> {
    match sink.send(slice::from_ref(message), PathMode::System) {
        Err(Unsent { reason: SendFailure::TooLong, .. }) => sink.send(slice::from_ref(message), PathMode::Fragment),
        sent => sent,
    }
}

/// A writer of packets that reports failures to the endpoint.
struct Out<'a, S> {
    endpoint: &'a mut Endpoint,
    sink: &'a mut S,
    scratch: &'a mut [u8],
    refusals: &'a mut Refusals,
}

impl<S: Sink> Out<'_, S> {
    #[inline]
    fn write(&mut self, packets: &Coalesced<'_>) {
        let Coalesced { header, packet, packets: count } = *packets;
        if count == 1 {
            return self.write_single(packet);
        }
        match self.sink.write(&header, packet) {
            Ok(()) => {
                *self.refusals.of(packets) = 0;
                self.endpoint.counters_mut().stats.coalesced += count as u64;
            }
            Err(WriteFailure::Rejected) => self.write_segments(packets),
            Err(failure) => self.endpoint.handle_write_error(failure.drop_reason(), count as u64),
        }
    }

    /// Writes the segments of a GSO packet that the kernel refused. Some kernels refuse valid ones.
    #[cold]
    fn write_segments(&mut self, packets: &Coalesced<'_>) {
        self.endpoint.counters_mut().stats.tun_fallbacks += 1;
        let Ok(OffloadAction::Segment(gso)) = packets.header.inspect(packets.packet) else {
            self.endpoint.handle_write_error(DropReason::TunFailed, packets.packets as u64);
            return;
        };
        let mut accepted = false;
        for index in 0..gso.segments() {
            let Some(segment) = self.scratch.get_mut(..gso.len_of(index)) else { continue };
            gso.write_segment(packets.packet, index, segment);
            match self.sink.write(&VnetHeader::default(), segment) {
                Ok(()) => accepted = true,
                Err(failure) => self.endpoint.handle_write_error(failure.drop_reason(), 1),
            }
        }
        *self.refusals.of(packets) += u32::from(accepted);
    }

    #[inline]
    fn write_single(&mut self, packet: &[u8]) {
        if let Err(failure) = self.sink.write(&VnetHeader::default(), packet) {
            self.endpoint.handle_write_error(failure.drop_reason(), 1);
        }
    }
}
