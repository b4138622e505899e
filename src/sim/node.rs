//! One simulated host: an endpoint that handles one packet at a time.

use alloc::vec::Vec;
use core::fmt;
use core::net::{IpAddr, SocketAddr};
use core::time::Duration;

use bytes::{Bytes, BytesMut};

use super::leases::NodeRoutes;
use super::underlay::{Datagram, outer_len};
use crate::endpoint::{Direction, Endpoint, Inbound, Outbound, Reply};
use crate::forward::{
    Counters, DatagramMeta, DropReason, EmsgsizeOutcome, Forwarder, ForwarderConfig, IcmpOutcome, RejectReason,
    ReplyTo, SystemPath,
};
use crate::host::Overhead;
use crate::offload::VnetHeader;
use crate::transmit::Way;
use crate::wire::{DatagramTooBig, Ecn, QuotedHeader};

/// The default MTU of a node's link.
const LINK_MTU: u16 = 1500;

/// The number of a node in a [`Sim`](super::Sim), from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub(super) usize);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {}", self.0)
    }
}

/// A simulated host.
#[derive(Debug)]
pub struct Node {
    endpoint: Endpoint,
    pub(super) routes: NodeRoutes,
    /// In bytes of outer packet.
    link_mtu: u16,
    pub(super) is_up: bool,
    pub(super) seen: Seen,
}

/// The fate of a packet at a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fate {
    /// The packet was sent to a peer, or written to the TUN.
    Forwarded,
    /// The packet was dropped, and its sender got an ICMP error.
    Answered(RejectReason),
    /// The packet was dropped without an ICMP error.
    Dropped(DropReason),
}

/// A packet that leaves a node.
#[derive(Debug)]
pub(super) enum Output {
    Tun(Bytes),
    Underlay { to: SocketAddr, ecn: Ecn, payload: Bytes },
}

/// Packets in and out of a node, counted outside of its endpoint.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    /// Packets that its TUN accepted while the node was up.
    pub(super) from_tun: u64,
    /// Packets for the TUN while the node was down.
    pub(super) refused: u64,
    pub(super) to_tun: u64,
    pub(super) from_underlay: u64,
    pub(super) to_underlay: u64,
    /// Packets that went to the underlay as fragments.
    pub(super) fragmented: u64,
    /// Fragments that were made and that the own link refused.
    pub(super) refused_fragments: u64,
}

impl Node {
    pub(super) fn new(forwarder: Forwarder) -> Self {
        let routes = NodeRoutes::new(&forwarder.config().host);
        Self { endpoint: Endpoint::new(forwarder), routes, link_mtu: LINK_MTU, is_up: true, seen: Seen::default() }
    }

    /// Returns the settings of its forwarder.
    #[must_use]
    pub fn config(&self) -> &ForwarderConfig {
        self.endpoint.forwarder().config()
    }

    /// Returns the counters of all packets. A restart keeps them.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        self.endpoint.counters()
    }

    #[cfg(test)]
    pub(super) fn counters_mut(&mut self) -> &mut Counters {
        self.endpoint.counters_mut()
    }

    /// Returns whether the node runs.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.is_up
    }

    /// Returns the number of packets for its TUN while it did not run. Its own counters do not include them.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.seen.refused
    }

    /// Returns the learned path MTU to a peer, in bytes of inner packet. `now` is the simulation's time.
    #[must_use]
    pub fn path_mtu(&self, peer: IpAddr, now: Duration) -> Option<u16> {
        self.endpoint.paths().lookup(peer, now)
    }

    /// Restarts the node. It keeps only its counters.
    pub(super) fn restart(&mut self) {
        self.endpoint.forget();
        self.is_up = true;
    }

    pub(super) fn set_link_mtu(&mut self, mtu: u16) {
        self.link_mtu = mtu;
    }

    /// Handles a router's report that a datagram of this node was too long. `mtu` is in bytes of outer packet. The
    /// report quotes the whole datagram. Only IPv4 routers are simulated.
    pub(super) fn fragmentation_needed(&mut self, datagram: &Datagram, mtu: u16, now: Duration) -> bool {
        let source = SocketAddr::new(datagram.from.ip().to_canonical(), datagram.from.port());
        let destination = datagram.to;
        if source.is_ipv6() || destination.is_ipv6() {
            return false;
        }
        let len = u16::try_from(outer_len(datagram)).unwrap_or(u16::MAX);
        let inner = QuotedHeader::parse(&datagram.payload);
        let report = DatagramTooBig { mtu, source, destination, len, inner };
        let outcome = self.endpoint.handle_icmp(&report, self.routes.table(), now);
        matches!(outcome, IcmpOutcome::Lowered { .. })
    }

    /// Handles a packet from the TUN.
    pub(super) fn encapsulate(&mut self, mut packet: BytesMut, now: Duration, out: &mut Vec<Output>) -> Fate {
        let Self { endpoint, routes, link_mtu, seen, .. } = self;
        let mut fragments = 0;
        let (way, mut datagrams) = match endpoint.handle_outbound(&mut packet, &NOTHING_LEFT, routes.table(), now) {
            Outbound::Send(transmit) => (Way::from(&transmit), alloc::vec![BytesMut::from(transmit.contents)]),
            Outbound::SendAll(mut pieces) => {
                let (way, mut datagrams) = (*pieces.way(), Vec::new());
                while let Some(len) = pieces.next_len() {
                    let mut datagram = BytesMut::zeroed(len);
                    pieces.write_next(&mut datagram);
                    datagrams.push(datagram);
                    fragments += 1;
                }
                (way, datagrams)
            }
            Outbound::Reply(reply) => return Self::write(reply, out),
            Outbound::Drop(reason) => return Fate::Dropped(reason),
        };
        if endpoint.forwarder().config().host.underlay_to(way.destination.ip()).is_none() {
            endpoint.handle_send_error(way.destination.ip(), DropReason::SendUnreachable, 1);
            return Fate::Dropped(DropReason::SendUnreachable);
        }
        // The node's link refuses it at once, as EMSGSIZE does.
        let link = Overhead::of(way.destination.ip()).inner((*link_mtu).into());
        if let Some(longest) = datagrams.iter_mut().max_by_key(|datagram| datagram.len())
            && longest.len() > link.into()
        {
            seen.refused_fragments += fragments;
            let system = SystemPath { configured: Some((*link_mtu).into()), ..SystemPath::default() };
            let EmsgsizeOutcome::Limit(mtu) = endpoint.handle_emsgsize(&way, longest.len(), system, now) else {
                endpoint.handle_send_error(way.destination.ip(), DropReason::SendFailed, 1);
                return Fate::Dropped(DropReason::SendFailed);
            };
            return match endpoint.handle_too_long(longest, &way, mtu, routes.table(), now) {
                Outbound::Reply(reply) => Self::write(reply, out),
                Outbound::Drop(reason) => Fate::Dropped(reason),
                Outbound::Send(_) | Outbound::SendAll(_) => Fate::Forwarded,
            };
        }
        let Way { destination: to, ecn, .. } = way;
        out.extend(datagrams.into_iter().map(|payload| Output::Underlay { to, ecn, payload: payload.freeze() }));
        Fate::Forwarded
    }

    /// Handles a datagram from the underlay.
    pub(super) fn decapsulate(
        &mut self,
        mut datagram: BytesMut,
        outer: DatagramMeta,
        now: Duration,
        out: &mut Vec<Output>,
    ) -> Fate {
        let Self { endpoint, routes, link_mtu, .. } = self;
        let len = match endpoint.handle_inbound(&mut datagram, outer, routes.table(), now) {
            Inbound::Deliver(packet) => packet.len(),
            Inbound::Reply(Reply { message, to: to @ ReplyTo::Peer(peer), reason }) => {
                if message.len() > Overhead::of(peer.ip()).inner((*link_mtu).into()).into() {
                    endpoint.handle_reply_error(Direction::Inbound, to, reason);
                    return Fate::Dropped(reason.into());
                }
                let payload = Bytes::copy_from_slice(message);
                out.push(Output::Underlay { to: peer, ecn: Ecn::NotEct, payload });
                return Fate::Answered(reason);
            }
            Inbound::Reply(reply) => return Self::write(reply, out),
            Inbound::Drop(reason) => return Fate::Dropped(reason),
        };
        datagram.truncate(len);
        out.push(Output::Tun(datagram.freeze()));
        Fate::Forwarded
    }

    fn write(reply: Reply<'_>, out: &mut Vec<Output>) -> Fate {
        out.push(Output::Tun(Bytes::copy_from_slice(reply.message)));
        Fate::Answered(reply.reason)
    }
}

/// The header of a packet that needs no offload.
const NOTHING_LEFT: VnetHeader =
    VnetHeader { flags: 0, gso_type: 0, hdr_len: 0, gso_size: 0, csum_start: 0, csum_offset: 0 };
