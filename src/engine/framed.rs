//! Sessions, control messages and timeouts of an engine's framing.

use core::net::SocketAddr;
use core::time::Duration;

use super::inbound::send_reply;
use super::{Engine, Sink, hold};
use crate::endpoint::Endpoint;
use crate::forward::{DatagramMeta, DropReason, PeerCheck};
use crate::framing::{Framing, Ready, Reply, sealed_len};
use crate::offload::VnetHeader;
use crate::route::RouteTable;
use crate::transmit::Transmit;
use crate::wire::IpPacket;

/// The socket as the output of control messages.
struct Replies<'a, S> {
    endpoint: &'a mut Endpoint,
    sink: &'a mut S,
}

impl<S: Sink> Reply for Replies<'_, S> {
    fn send(&mut self, to: SocketAddr, message: &[u8]) {
        let is_sent = send_reply(&Transmit::datagram(to, message), self.sink).is_ok();
        let stats = &mut self.endpoint.counters_mut().stats;
        stats.control_sent += u64::from(is_sent);
        stats.control_unsent += u64::from(!is_sent);
    }
}

impl<F: Framing> Engine<F> {
    /// Returns true if a packet from the TUN can be sealed now, or if the endpoint has to decide first. Otherwise it waits
    /// or is dropped, and counted.
    pub(super) fn is_ready(
        &mut self,
        header: &VnetHeader,
        packet: &[u8],
        routes: &RouteTable,
        now: Duration,
        sink: &mut impl Sink,
    ) -> bool {
        let Some(peer) = next_hop(packet, routes) else { return true };
        let Self { endpoint, framing, hold, .. } = self;
        match framing.ready(peer, packet, now, &mut Replies { endpoint, sink }) {
            Ready::Go => {
                // They came before this packet.
                if hold.has(peer) {
                    self.release_peer(peer, routes, now, sink);
                }
                return true;
            }
            Ready::Hold => {
                let lost = |peer| drop_unsealed(endpoint, peer, DropReason::NoSession);
                hold.push(peer, *header, packet, now, lost);
            }
            Ready::Drop(reason) => drop_unsealed(endpoint, peer, reason),
        }
        false
    }

    /// Opens a datagram. `None` if it was a control message. Its sender may become another one.
    ///
    /// # Errors
    /// The reason for which the datagram was dropped, which is counted.
    #[inline]
    pub(super) fn open<'d>(
        endpoint: &mut Endpoint,
        framing: &mut F,
        meta: &mut DatagramMeta,
        datagram: &'d mut [u8],
        (routes, now): (&RouteTable, Duration),
        sink: &mut impl Sink,
    ) -> Result<Option<&'d mut [u8]>, DropReason> {
        let is_checked = F::CHECKS_SENDER_FIRST && endpoint.forwarder().config().peer_check != PeerCheck::Off;
        let opened = if is_checked && !routes.has_peer(meta.from.ip().to_canonical()) {
            Err(DropReason::UnknownPeer)
        } else {
            framing.open(meta, datagram, now, &mut Replies { endpoint, sink })
        };
        match opened {
            Ok(Some(_)) => {}
            Ok(None) => endpoint.counters_mut().stats.control_received += 1,
            Err(reason) => endpoint.drop_sealed(reason),
        }
        opened
    }

    /// Seals an ICMP error for a peer, which is `len` bytes at the packet's place in `scratch`, and sends it. Returns
    /// false if it is not sent.
    #[cold]
    pub(super) fn send_sealed(
        endpoint: &mut Endpoint,
        framing: &mut F,
        (peer, len): (SocketAddr, usize),
        scratch: &mut [u8],
        now: Duration,
        sink: &mut impl Sink,
    ) -> bool {
        let sealed = sealed_len(framing, len, len);
        let Some(datagram) = scratch.get_mut(..sealed) else { return false };
        let packet = datagram.get(F::HEAD..F::HEAD + len).unwrap_or_default();
        if F::HAS_SESSIONS && framing.ready(peer, packet, now, &mut Replies { endpoint, sink }) != Ready::Go {
            return false;
        }
        framing.seal(peer, datagram, len);
        send_reply(&Transmit::datagram(peer, datagram), sink).is_ok()
    }

    /// Calls the framing if it is due, and ends the wait of packets that have waited for too long.
    #[inline]
    pub(super) fn handle_timeouts(&mut self, routes: &RouteTable, now: Duration, sink: &mut impl Sink) {
        let is_due = |at: Option<Duration>| at.is_some_and(|at| at <= now);
        let is_called = is_due(self.framing.poll_timeout());
        if is_called {
            let Self { endpoint, framing, .. } = self;
            framing.handle_timeout(now, &mut Replies { endpoint, sink });
        }
        let is_over = is_due(self.hold.ends_at());
        if is_over || is_called && !self.hold.is_empty() {
            self.release(hold::ALL, routes, now, sink);
            self.hold.update_end();
        }
    }

    /// Queues the waiting packets of those of these peers that have a session now, and drops packets that waited for too
    /// long.
    #[cold]
    pub(super) fn release(&mut self, mut peers: hold::Peers, routes: &RouteTable, now: Duration, sink: &mut impl Sink) {
        while let Some(peer) = self.hold.next(&mut peers) {
            self.release_peer(peer, routes, now, sink);
        }
    }

    /// Does the same for one peer. Its packets keep their order, so the first one without a session ends it.
    #[cold]
    fn release_peer(&mut self, peer: SocketAddr, routes: &RouteTable, now: Duration, sink: &mut impl Sink) {
        let Some(mut waiting) = self.hold.take(peer) else { return };
        while let Some((header, packet, is_too_old)) = waiting.first(now) {
            let Self { endpoint, framing, .. } = self;
            // The route may be another one by now. Without a route, the endpoint answers.
            let ready = next_hop(packet, routes)
                .map_or(Ready::Go, |peer| framing.ready(peer, packet, now, &mut Replies { endpoint, sink }));
            match ready {
                Ready::Go => {
                    self.queue_packet(&header, packet, routes, now, sink);
                }
                Ready::Hold if !is_too_old => break,
                Ready::Hold => drop_unsealed(&mut self.endpoint, peer, DropReason::NoSession),
                Ready::Drop(reason) => drop_unsealed(&mut self.endpoint, peer, reason),
            }
            waiting.pop();
        }
        self.hold.put_back(peer, waiting);
    }

    /// Queues and sends the waiting packets of those of these peers that have a session now.
    #[cold]
    pub(super) fn release_and_send(
        &mut self,
        peers: hold::Peers,
        routes: &RouteTable,
        now: Duration,
        sink: &mut impl Sink,
    ) {
        self.release(peers, routes, now, sink);
        self.flush_queue(routes, now, sink);
    }
}

/// Returns the next hop of a valid packet.
fn next_hop(packet: &[u8], routes: &RouteTable) -> Option<SocketAddr> {
    let packet = IpPacket::parse(packet).ok()?;
    routes.lookup(packet.destination()).map(|hop| hop.address)
}

/// Drops a packet from the TUN that was not sealed.
#[cold]
fn drop_unsealed(endpoint: &mut Endpoint, peer: SocketAddr, reason: DropReason) {
    let counters = endpoint.counters_mut();
    counters.encap.receive();
    counters.encap.forward();
    endpoint.handle_send_error(peer.ip(), reason, 1);
}
