//! The data plane: one in-place call, one verdict.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::Ipv4Net;

use super::family::{AddressOf, Family, Own, Packet};
use super::verdict::Answer;
use super::{
    ConfigError, Decap, DropReason, EcnEgress, EcnIngress, Encap, ForwarderConfig, Fragments, IcmpSource, Icmpv6Source,
    PeerCheck, Reject, RejectReason, ReplyTo, SourceCheck, SourcePort, SourceRoutes, Transit, TtlPolicy,
};
use crate::host::{IPV6_MTU_MIN, Mtu};
use crate::route::{NextHop, RouteTable, canonical};
use crate::transmit::{Transmit, Way};
use crate::wire::fragment::Fragmenter;
use crate::wire::ipv4::{self, Ipv4Header, Ipv4PacketMut};
use crate::wire::ipv6::{Ipv6Header, Ipv6PacketMut};
use crate::wire::{Ecn, HeaderError, IpHeader, IpPacket, icmpv4, icmpv6, protocol};

/// The metadata of a datagram from the underlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DatagramMeta {
    /// The sender's address and port.
    pub from: SocketAddr,
    /// The ECN field of the outer packet.
    pub ecn: Ecn,
}

/// Without a congestion mark.
impl From<SocketAddr> for DatagramMeta {
    fn from(from: SocketAddr) -> Self {
        Self { from, ecn: Ecn::NotEct }
    }
}

/// Decides what becomes of a packet, in place and without remembering anything.
///
/// The bytes change only when the verdict is [`Encap::Send`], [`Encap::Fragment`] or [`Decap::Deliver`], and then only TTL
/// or hop limit, ECN field and the header checksum of IPv4. [`Fragments`] get headers of their own while they are cut.
/// No call allocates, and a forwarder may be shared by any number of threads.
///
/// The rules are the same for IPv4 and IPv6, with these exceptions: IPv6 packets are never fragmented, multicast comes
/// first among the checks of IPv6 addresses, and ICMPv6 errors come from the address of the own TUN.
#[derive(Clone, Debug)]
pub struct Forwarder {
    config: ForwarderConfig,
    pub(super) network_v4: Ipv4Net,
    pub(super) ipv4: Own<Ipv4Addr>,
    pub(super) ipv6: Own<Ipv6Addr>,
    /// Set if the checks of senders are the default ones, and there is at most one own subnet of each family. The others are
    /// separate, so that these stay fast.
    has_usual_checks: bool,
    /// Set if ECN field and flow number of a datagram do not depend on the packet. Otherwise they are read from its bytes:
    /// a header that is needed so late takes registers from every packet.
    has_plain_outer: bool,
    /// The lesser one of the MTUs of both families, in bytes.
    shortest_mtu: u16,
}

impl Forwarder {
    /// Creates a forwarder for one host.
    ///
    /// # Errors
    /// A setting cannot work.
    pub fn new(config: ForwarderConfig) -> Result<Self, ConfigError> {
        config.check()?;

        let has_plain_outer =
            config.ecn_ingress == EcnIngress::Compatibility && config.source_port == SourcePort::Fixed;
        let network_v4 = config.host.network_v4().unwrap_or_default();
        let (ipv4, ipv6) = (Own::v4(&config.host), Own::v6(&config.host));
        let has_usual_checks = config.peer_check == PeerCheck::Address
            && config.source_check == SourceCheck::Strict
            && !ipv4.has_several()
            && !ipv6.has_several();
        let shortest_mtu = config.mtu.min(config.mtu_over_ipv6).get();
        Ok(Self { config, network_v4, ipv4, ipv6, has_usual_checks, has_plain_outer, shortest_mtu })
    }

    /// Returns the settings, with the MTUs that were set last.
    #[must_use]
    pub fn config(&self) -> &ForwarderConfig {
        &self.config
    }

    /// Sets the longest inner packet that the underlay carries to any peer. Call it when the MTU of the underlay's
    /// interface or of the TUN device changes. It does not affect earlier verdicts.
    pub fn set_mtu(&mut self, mtu: Mtu) {
        (self.config.mtu, self.config.mtu_over_ipv6) = (mtu, mtu);
        self.shortest_mtu = mtu.get();
    }

    /// Sets the longest inner packet that the underlay carries to IPv6 peers. Their outer header is longer.
    pub fn set_mtu_over_ipv6(&mut self, mtu: Mtu) {
        self.config.mtu_over_ipv6 = mtu;
        self.shortest_mtu = self.config.mtu.min(mtu).get();
    }

    /// A packet that came out of the TUN.
    ///
    /// The first failing check gives the reason: header, addresses, route, loops, TTL, size.
    #[inline]
    pub fn encapsulate<'p>(&self, packet: &'p mut [u8], routes: &RouteTable) -> Encap<'p> {
        self.encapsulate_within(packet, |_| u16::MAX, routes)
    }

    /// Decides as [`encapsulate`](Self::encapsulate) over paths that carry less than the overlay. `path` returns the bytes of
    /// inner packet that reach a next hop.
    #[inline(always)]
    pub fn encapsulate_within<'p>(
        &self,
        packet: &'p mut [u8],
        path: impl FnOnce(IpAddr) -> u16,
        routes: &RouteTable,
    ) -> Encap<'p> {
        self.encapsulate_segments(packet, None, path, routes)
    }

    /// Decides on a GSO packet whose longest segment has `segment_len` bytes. The segments have to fit the path, and not the
    /// whole. The caller cuts the packet that [`Encap::Send`] or [`Encap::Fragment`] returns.
    #[inline(always)]
    pub(crate) fn encapsulate_segments<'p>(
        &self,
        packet: &'p mut [u8],
        segment_len: Option<u16>,
        path: impl FnOnce(IpAddr) -> u16,
        routes: &RouteTable,
    ) -> Encap<'p> {
        if !self.is_ipv4(packet) {
            return self.encapsulate_other(packet, segment_len, path, routes);
        }
        match Ipv4Header::parse_version_4(packet) {
            Ok(header) => self.encapsulate_checked(Ipv4PacketMut::new(header, packet), segment_len, path, routes),
            Err(_) => Encap::Drop(refused(packet)),
        }
    }

    /// IPv6, and what is not carried. It is cold so that the compiler gives all registers to IPv4.
    #[cold]
    fn encapsulate_other<'p>(
        &self,
        packet: &'p mut [u8],
        segment_len: Option<u16>,
        path: impl FnOnce(IpAddr) -> u16,
        routes: &RouteTable,
    ) -> Encap<'p> {
        match self.parse_other(packet) {
            Ok(header) => self.encapsulate_checked(Ipv6PacketMut::new(header, packet), segment_len, path, routes),
            Err(reason) => Encap::Drop(reason),
        }
    }

    #[inline(always)]
    fn encapsulate_checked<'p, P: Packet<'p>>(
        &self,
        mut packet: P,
        segment_len: Option<u16>,
        path: impl FnOnce(IpAddr) -> u16,
        routes: &RouteTable,
    ) -> Encap<'p> {
        if let Err(reason) = self.admit(packet.header()) {
            return Encap::Drop(reason);
        }
        let header = packet.header();
        let (destination, hop_limit, len) = (header.destination(), header.hop_limit(), header.packet_len());
        let Some(hop) = destination.lookup(routes) else {
            return self.encapsulate_rejected(packet.into_bytes(), RejectReason::NetUnreachable, routes);
        };
        if destination.is(hop.address.ip()) || self.is_tunnelled_already(&packet, routes) {
            return Encap::Drop(DropReason::Loop);
        }
        match (hop_limit, self.config.ttl) {
            (0, _) => return Encap::Drop(DropReason::TtlZero),
            (1, TtlPolicy::BothEnds | TtlPolicy::Ingress) => {
                return self.encapsulate_rejected(packet.into_bytes(), RejectReason::TimeExceeded, routes);
            }
            _ => {}
        }
        let (len, path) = (segment_len.map_or(len, usize::from), path(hop.address.ip()));
        // Most packets fit every path.
        if len > self.shortest_mtu.min(path).into() || hop.mtu.is_some() {
            let mtu = self.mtu_of(hop).min(path);
            if len > mtu.into() {
                return self.encapsulate_too_long(packet.into_bytes(), len, hop, mtu, routes);
            }
        }
        if self.config.ttl != TtlPolicy::Preserve {
            packet.decrement_hop_limit();
        }
        let packet = packet.into_bytes();
        let (ecn, flow) = if self.has_plain_outer { (Ecn::NotEct, 0) } else { self.outer::<P>(packet) };
        Encap::Send(Transmit { ecn, flow, ..Transmit::datagram(hop.address, packet) })
    }

    /// Returns the longest inner packet that the overlay carries to a next hop.
    #[inline(always)]
    fn mtu_of(&self, hop: &NextHop) -> u16 {
        let overlay = self.config.mtu_to(hop.address.ip());
        hop.mtu.map_or(overlay, |mtu| mtu.min(overlay)).get()
    }

    /// Takes bytes and parses them once more, because a header that is handed on in memory costs every packet a little. The same
    /// goes for the others that packets come to by way of exception.
    #[cold]
    fn encapsulate_rejected<'p>(&self, packet: &'p mut [u8], reason: RejectReason, routes: &RouteTable) -> Encap<'p> {
        match IpPacket::parse(packet) {
            Ok(packet) => Encap::Reject(self.reject(packet, reason, Some(ReplyTo::Tun), routes)),
            Err(error) => Encap::Drop(error.into()),
        }
    }

    /// A packet of which `len` bytes, the whole or its longest segment, do not fit into the `mtu` bytes of its path.
    #[cold]
    fn encapsulate_too_long<'p>(
        &self,
        packet: &'p mut [u8],
        len: usize,
        hop: &NextHop,
        mtu: u16,
        routes: &RouteTable,
    ) -> Encap<'p> {
        match too_big(packet, len, mtu) {
            Ok(Some(reason)) => return self.encapsulate_rejected(packet, reason, routes),
            Ok(None) => {}
            Err(reason) => return Encap::Drop(reason),
        }
        let mut packet = match Ipv4PacketMut::parse(packet) {
            Ok(packet) => packet,
            Err(error) => return Encap::Drop(error.into()),
        };
        let (ecn, flow) = self.outer::<Ipv4PacketMut<'p>>(packet.as_bytes());
        let way = Way { destination: hop.address, ecn, flow };
        let Some(fragmenter) = Fragmenter::new(packet.header(), mtu) else {
            return Encap::Drop(DropReason::NotFragmented);
        };
        if self.config.ttl != TtlPolicy::Preserve {
            packet.decrement_ttl();
        }
        Encap::Fragment(Fragments::new(way, packet.into_bytes(), fragmenter))
    }

    /// A datagram that [`encapsulate`](Self::encapsulate) let pass, that waited, and whose path turned out to carry only `mtu`
    /// bytes, which it exceeds. It is too late to fragment it.
    ///
    /// If DF is set or the packet is IPv6, the datagram becomes again what came out of the TUN, so that an ICMP error quotes
    /// the packet its sender knows. Otherwise the reason to drop it is returned. The routes tell which addresses are
    /// broadcasts.
    #[cold]
    pub fn refused_as_too_long<'p>(
        &self,
        datagram: &'p mut [u8],
        mtu: u16,
        routes: &RouteTable,
    ) -> Result<Reject<'p>, DropReason> {
        let Some(reason) = too_big(datagram, datagram.len(), mtu)? else { return Err(DropReason::PathTooNarrow) };
        self.restore_hop_limit(datagram)?;
        Ok(self.reject(IpPacket::parse(datagram)?, reason, Some(ReplyTo::Tun), routes))
    }

    /// Undoes the change of a packet that was let pass.
    fn restore_hop_limit(&self, datagram: &mut [u8]) -> Result<(), HeaderError> {
        if self.config.ttl == TtlPolicy::Preserve {
            return Ok(());
        }
        match Ipv4Header::parse(datagram) {
            Ok(header) => Ipv4PacketMut::new(header, datagram).set_ttl(header.ttl().saturating_add(1)),
            Err(_) => {
                let header = Ipv6Header::parse(datagram)?;
                Ipv6PacketMut::new(header, datagram).set_hop_limit(header.hop_limit().saturating_add(1));
            }
        }
        Ok(())
    }

    /// A datagram that came from the underlay.
    ///
    /// `meta` may be its sender alone. The first failing check gives the reason: peer, header, addresses, inner source, inner
    /// destination, TTL, congestion.
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
        if !routes.has_peer(peer) && self.config.peer_check != PeerCheck::Off {
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

    /// Source routes and addresses, the checks both directions share.
    #[inline(always)]
    fn admit<H: IpHeader<Address: Family>>(&self, header: &H) -> Result<(), DropReason> {
        if header.has_source_route() && self.config.source_routes == SourceRoutes::Dropped {
            return Err(DropReason::SourceRoute);
        }
        Family::check(header.source(), header.destination(), self)
    }

    /// Returns true if bytes begin with a header of IPv4, and IPv4 is carried.
    #[inline(always)]
    fn is_ipv4(&self, bytes: &[u8]) -> bool {
        bytes.first_chunk::<{ ipv4::HEADER_LEN }>().is_some_and(|fixed| fixed[0] >> 4 == self.ipv4.version)
    }

    /// Parses what [`is_ipv4`](Self::is_ipv4) is false for.
    #[inline(always)]
    fn parse_other(&self, bytes: &[u8]) -> Result<Ipv6Header, DropReason> {
        match bytes.first_chunk::<{ ipv4::HEADER_LEN }>().map(|fixed| fixed[0] >> 4) {
            Some(6) if self.ipv6.is_carried() => Ok(Ipv6Header::parse(bytes)?),
            Some(6) => Err(DropReason::Ipv6NotCarried),
            Some(4) => Err(DropReason::Ipv4NotCarried),
            Some(_) => Err(DropReason::BadVersion),
            None => Err(DropReason::TooShort),
        }
    }

    /// R65 with any of the checks there are; without a peer check the inner source has to do. A sender's own underlay address is
    /// legal if it is a peer's.
    fn may_send_from(&self, source: impl Family, sender: SocketAddr, routes: &RouteTable) -> bool {
        let hop = source.lookup(routes);
        match (self.config.source_check, self.config.peer_check) {
            (SourceCheck::Strict, _) => {
                let routed = hop.is_some_and(|hop| self.is_sender(hop, sender)) && !self.owns(source);
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

    /// Returns `true` if an address is in one of the host's own subnets.
    #[inline(always)]
    pub(super) fn owns<A: Family>(&self, address: A) -> bool {
        A::own(self).contains(address)
    }

    /// Fault 6: a datagram of the tunnel's own inside the tunnel, for the socket it came from or for another host's.
    #[inline(always)]
    fn is_tunnelled_already<'p, P: Packet<'p>>(&self, packet: &P, routes: &RouteTable) -> bool {
        const DESTINATION_PORT: core::ops::Range<usize> = 2..4;
        let header = packet.header();
        let Some(at) = header.offset_of(protocol::UDP) else { return false };
        let udp = packet.as_bytes().get(at..).unwrap_or_default();
        let Some(&[high, low]) = udp.get(DESTINATION_PORT) else { return false };
        let (address, port) = (header.destination(), u16::from_be_bytes([high, low]));
        Family::own(self).is_socket(address, port) || routes.may_have_port(port) && is_next_hop(address, port, routes)
    }

    /// An IPv4 address beyond 255.255.255.255 that is more than one host (R40). Networks of one or two addresses have none.
    fn is_broadcast(&self, address: Ipv4Addr, routes: &RouteTable) -> bool {
        let nets = self.config.host.subnets_v4().chain(self.config.host.network_v4());
        nets.chain(routes.routed_subnet(address)).any(|net| net.prefix_len() < 31 && net.broadcast() == address)
    }

    /// Returns ECN field and flow number of the datagram of a checked packet.
    #[inline(never)]
    fn outer<'p, P: Packet<'p>>(&self, packet: &[u8]) -> (Ecn, u16) {
        let Some(header) = P::Header::read(packet) else { return (Ecn::NotEct, 0) };
        let ecn = match self.config.ecn_ingress {
            EcnIngress::Compatibility => Ecn::NotEct,
            EcnIngress::Normal => header.ecn(),
        };
        let flow = match self.config.source_port {
            SourcePort::Fixed => 0,
            SourcePort::ByFlow => P::flow_number(&header, packet),
        };
        (ecn, flow)
    }

    fn reject<'p>(
        &self,
        offender: IpPacket<'p>,
        reason: RejectReason,
        reply_to: Option<ReplyTo>,
        routes: &RouteTable,
    ) -> Reject<'p> {
        let source = reply_to.and_then(|reply_to| self.icmp_source(&offender, reply_to, routes));
        let answer =
            source.zip(reply_to).map(|(source, reply_to)| Answer { source, ttl: self.config.icmp_ttl, reply_to });
        Reject { offender, reason, answer }
    }

    /// Returns the source of an ICMP error about a packet; `None` if the RFCs bar one.
    fn icmp_source(&self, offender: &IpPacket<'_>, reply_to: ReplyTo, routes: &RouteTable) -> Option<IpAddr> {
        let host = &self.config.host;
        match offender {
            IpPacket::V4(packet) => {
                let source = match (reply_to, self.config.icmp_source) {
                    (ReplyTo::Peer(_), _) => host.tun_address_v4()?,
                    (ReplyTo::Tun, IcmpSource::OffenderDestination) => packet.header().destination(),
                    (ReplyTo::Tun, IcmpSource::Fixed(source)) => source,
                };
                let is_broadcast = |address| self.is_broadcast(address, routes);
                icmpv4::may_answer_host(packet, is_broadcast).then_some(source.into())
            }
            IpPacket::V6(packet) => {
                let source = match (reply_to, self.config.icmpv6_source) {
                    (ReplyTo::Tun, Icmpv6Source::Fixed(source)) => source,
                    (ReplyTo::Peer(_), _) | (ReplyTo::Tun, Icmpv6Source::TunAddress) => host.tun_address_v6()?,
                };
                icmpv6::may_answer(packet).then_some(source.into())
            }
        }
    }
}

/// Returns true if a route leads to this address and port. Few inner packets have the port of a next hop.
#[cold]
fn is_next_hop(address: impl Family, port: u16, routes: &RouteTable) -> bool {
    routes.has_next_hop(SocketAddr::new(address.into(), port))
}

/// Returns the reason to reject a packet of which `len` bytes do not fit into an MTU; `None` if it may be fragmented.
///
/// IPv6 has no MTU below 1280 bytes (RFC 8200 section 5). So packets within that minimum are dropped: no error would make
/// their sender send shorter ones.
fn too_big(packet: &[u8], len: usize, mtu: u16) -> Result<Option<RejectReason>, DropReason> {
    match IpPacket::parse(packet)? {
        IpPacket::V4(packet) if packet.header().dont_fragment() => Ok(Some(RejectReason::FragmentationNeeded { mtu })),
        IpPacket::V4(_) => Ok(None),
        IpPacket::V6(_) if len <= IPV6_MTU_MIN.into() => Err(DropReason::BelowIpv6Minimum),
        IpPacket::V6(_) => Ok(Some(RejectReason::FragmentationNeeded { mtu: mtu.max(IPV6_MTU_MIN) })),
    }
}

/// Returns the reason why a packet is no valid one of IPv4. It is found a second time, so that nothing prepares it for
/// every packet.
#[cold]
fn refused(packet: &[u8]) -> DropReason {
    Ipv4Header::parse(packet).err().map_or(DropReason::BadVersion, DropReason::from)
}
