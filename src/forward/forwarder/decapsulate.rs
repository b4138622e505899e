//! Datagrams from the underlay: the checks of their senders, and the way to the TUN.

use core::net::{IpAddr, SocketAddr};

use super::{DatagramMeta, Forwarder, refused};
use crate::forward::family::{AddressOf, Family, Own, Packet};
use crate::forward::{Decap, DropReason, EcnEgress, PeerCheck, RejectReason, ReplyTo, SourceCheck, Transit, TtlPolicy};
use crate::route::{NextHop, RouteTable, canonical};
use crate::wire::ipv4::{Ipv4Header, Ipv4PacketMut};
use crate::wire::ipv6::{Ipv6Header, Ipv6PacketMut};
use crate::wire::{Ecn, IpHeader, IpPacket};

impl Forwarder {
    /// A datagram that came from the underlay.
    ///
    /// `meta` may be its sender alone. The first failing check gives the reason: peer, header, addresses, inner source,
    /// inner destination, TTL, congestion.
    // As a call it costs a tenth more.
    #[inline(always)]
    pub fn decapsulate<'p>(
        &self,
        datagram: &'p mut [u8],
        meta: impl Into<DatagramMeta>,
        routes: &RouteTable,
    ) -> Decap<'p> {
        let meta = meta.into();
        let peer = meta.from.ip().to_canonical();
        // R64, and of R68 what is the same for all packets.
        if !routes.has_sender(meta.from) && self.config.peer_check != PeerCheck::Off {
            return Decap::Drop(DropReason::UnknownPeer);
        }
        if !self.has_usual_checks {
            return self.decapsulate_unusually(datagram, DatagramMeta { from: canonical(meta.from), ..meta }, routes);
        }
        if !self.is_ipv4(datagram) {
            return self.decapsulate_other(datagram, peer, meta.ecn, routes);
        }
        match Ipv4Header::parse_version_4(datagram) {
            Ok(header) => self.decapsulate_checked(Ipv4PacketMut::new(header, datagram), peer, meta.ecn, routes),
            Err(_) => Decap::Drop(refused(datagram)),
        }
    }

    /// IPv6, and what is not carried. It is cold so that the compiler gives all registers to IPv4.
    #[cold]
    fn decapsulate_other<'p>(
        &self,
        datagram: &'p mut [u8],
        peer: IpAddr,
        outer: Ecn,
        routes: &RouteTable,
    ) -> Decap<'p> {
        match self.parse_other(datagram) {
            Ok(header) => self.decapsulate_checked(Ipv6PacketMut::new(header, datagram), peer, outer, routes),
            Err(reason) => Decap::Drop(reason),
        }
    }

    #[inline(always)]
    fn decapsulate_checked<'p, P: Packet<'p>>(
        &self,
        packet: P,
        peer: IpAddr,
        outer: Ecn,
        routes: &RouteTable,
    ) -> Decap<'p> {
        if let Err(reason) = self.admit(packet.header()) {
            return Decap::Drop(reason);
        }
        let source = packet.header().source();
        // R65. Our own subnet is nobody's to send from, even if a wider route leads to the peer.
        let routed =
            source.lookup(routes).is_some_and(|hop| hop.address.ip() == peer) && !Family::own(self).is_first(source);
        if !routed && !source.is(peer) {
            return Decap::Drop(DropReason::SpoofedSource);
        }
        if let Err(reason) = self.check_destination(
            &packet,
            |own, address| own.is_first(address),
            |hop| hop.address.ip() == peer,
            routes,
        ) {
            return Decap::Drop(reason);
        }
        self.deliver(packet, outer, routes)
    }

    /// The rest of it with any checks of senders. The address of this one is a peer's, if that is asked for.
    #[cold]
    fn decapsulate_unusually<'p>(&self, datagram: &'p mut [u8], meta: DatagramMeta, routes: &RouteTable) -> Decap<'p> {
        // R68
        if self.config.peer_check == PeerCheck::AddressPort && !routes.has_next_hop(meta.from) {
            return Decap::Drop(DropReason::UnknownPeer);
        }
        if self.is_ipv4(datagram) {
            return match Ipv4Header::parse(datagram) {
                Ok(header) => self.decapsulate_from(Ipv4PacketMut::new(header, datagram), meta, routes),
                Err(error) => Decap::Drop(error.into()),
            };
        }
        match self.parse_other(datagram) {
            Ok(header) => self.decapsulate_from(Ipv6PacketMut::new(header, datagram), meta, routes),
            Err(reason) => Decap::Drop(reason),
        }
    }

    fn decapsulate_from<'p, P: Packet<'p>>(&self, packet: P, meta: DatagramMeta, routes: &RouteTable) -> Decap<'p> {
        let DatagramMeta { from: sender, ecn: outer } = meta;
        if let Err(reason) = self.admit(packet.header()) {
            return Decap::Drop(reason);
        }
        let source = packet.header().source();
        if !self.may_send_from(source, sender, routes) {
            return Decap::Drop(DropReason::SpoofedSource);
        }
        let is_back = |hop: &NextHop| self.leads_back(hop, source, sender, routes);
        if let Err(reason) = self.check_destination(&packet, Own::contains, is_back, routes) {
            return Decap::Drop(reason);
        }
        self.deliver(packet, outer, routes)
    }

    /// R30, and R57 with the ECN field of the outer packet.
    #[inline(always)]
    fn deliver<'p, P: Packet<'p>>(&self, mut packet: P, outer: Ecn, routes: &RouteTable) -> Decap<'p> {
        let (hop_limit, inner) = (packet.header().hop_limit(), packet.header().ecn());
        if hop_limit == 0 {
            return Decap::Drop(DropReason::TtlZero);
        }
        if hop_limit == 1 && self.config.ttl == TtlPolicy::BothEnds {
            return self.deliver_expired(packet.into_bytes(), routes);
        }
        if outer != Ecn::NotEct && self.config.ecn_egress == EcnEgress::Combined {
            match inner.after_tunnel(outer) {
                None => return Decap::Drop(DropReason::EcnNotCapable),
                Some(ecn) if ecn == inner => {}
                Some(ecn) => return self.deliver_marked(packet.into_bytes(), ecn),
            }
        }
        if self.config.ttl == TtlPolicy::BothEnds {
            packet.decrement_hop_limit();
        }
        Decap::Deliver(packet.into_bytes())
    }

    /// A reject whose answer goes back through the tunnel, to where the inner source is routed.
    #[cold]
    fn deliver_expired<'p>(&self, packet: &'p mut [u8], routes: &RouteTable) -> Decap<'p> {
        let packet = match IpPacket::parse(packet) {
            Ok(packet) => packet,
            Err(error) => return Decap::Drop(error.into()),
        };
        let reply_to = routes.lookup(packet.source()).map(|hop| ReplyTo::Peer(hop.address));
        Decap::Reject(self.reject(packet, RejectReason::TimeExceeded, reply_to, routes))
    }

    #[cold]
    fn deliver_marked<'p>(&self, packet: &'p mut [u8], ecn: Ecn) -> Decap<'p> {
        match Ipv4Header::parse(packet) {
            Ok(header) => self.deliver_with_ecn(Ipv4PacketMut::new(header, packet), ecn),
            Err(_) => match Ipv6Header::parse(packet) {
                Ok(header) => self.deliver_with_ecn(Ipv6PacketMut::new(header, packet), ecn),
                Err(error) => Decap::Drop(error.into()),
            },
        }
    }

    fn deliver_with_ecn<'p>(&self, mut packet: impl Packet<'p>, ecn: Ecn) -> Decap<'p> {
        packet.set_ecn(ecn);
        if self.config.ttl == TtlPolicy::BothEnds {
            packet.decrement_hop_limit();
        }
        Decap::Deliver(packet.into_bytes())
    }

    /// R65 with any of the checks there are; without a peer check the inner source has to do. A sender's own underlay
    /// address is legal if it is a peer's.
    fn may_send_from(&self, source: impl Family, sender: SocketAddr, routes: &RouteTable) -> bool {
        let hop = source.lookup(routes);
        match (self.config.source_check, self.config.peer_check) {
            (SourceCheck::Strict, _) => {
                let routed = hop.is_some_and(|hop| self.is_sender(hop, sender)) && !Family::own(self).contains(source);
                routed || source.is(sender.ip()) && routes.has_peer(sender.ip())
            }
            (SourceCheck::Off, PeerCheck::Off) => hop.is_some() || routes.has_peer(sender.ip()),
            (SourceCheck::Off, PeerCheck::Address | PeerCheck::AddressPort) => true,
        }
    }

    /// Returns `true` if a datagram came from the next hop, as far as the peer check distinguishes senders.
    fn is_sender(&self, hop: &NextHop, sender: SocketAddr) -> bool {
        let same_address = hop.address.ip() == sender.ip();
        match self.config.peer_check {
            PeerCheck::Address => same_address,
            PeerCheck::AddressPort => same_address && hop.address.port() == sender.port(),
            PeerCheck::Off => true,
        }
    }

    /// Fault 13. A sender that is not checked may be behind NAT: it is the peer that its inner source is routed to.
    fn leads_back(&self, hop: &NextHop, source: impl Family, sender: SocketAddr, routes: &RouteTable) -> bool {
        match (self.config.peer_check, source.lookup(routes)) {
            (PeerCheck::Off, Some(origin)) => origin.address == hop.address,
            (PeerCheck::Off, None) => hop.address.ip() == sender.ip(),
            (PeerCheck::Address | PeerCheck::AddressPort, _) => self.is_sender(hop, sender),
        }
    }

    /// R66 and the loops of fault 6. `is_back` tells whether a next hop is the peer that a packet came from (fault 13).
    #[inline(always)]
    fn check_destination<'p, P: Packet<'p>>(
        &self,
        packet: &P,
        owns: impl Fn(&Own<AddressOf<'p, P>>, AddressOf<'p, P>) -> bool,
        is_back: impl Fn(&NextHop) -> bool,
        routes: &RouteTable,
    ) -> Result<(), DropReason> {
        let destination = packet.header().destination();
        if self.is_tunnelled_already(packet, routes) {
            return Err(DropReason::Loop);
        }
        if owns(Family::own(self), destination) {
            return Ok(());
        }
        if self.config.transit == Transit::Refused {
            return Err(DropReason::ForeignDestination);
        }
        match destination.lookup(routes) {
            Some(hop) if is_back(hop) => Err(DropReason::ForeignDestination),
            Some(hop) if destination.is(hop.address.ip()) => Err(DropReason::Loop),
            _ => Ok(()),
        }
    }
}
