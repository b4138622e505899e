//! The data plane: one in-place call, one verdict.

use core::net::{IpAddr, Ipv4Addr, SocketAddr};

use ipnet::Ipv4Net;

use super::policy::check_addresses;
use super::verdict::Answer;
use super::{
    ConfigError, Decap, DropReason, EcnEgress, EcnIngress, Encap, ForwarderConfig, Fragments, IcmpSource, PeerCheck,
    Reject, RejectReason, ReplyTo, SourceCheck, SourcePort, SourceRoutes, Transit, TtlPolicy,
};
use crate::host::Mtu;
use crate::route::{NextHop, RouteTable};
use crate::transmit::{Transmit, Way};
use crate::wire::fragment::Fragmenter;
use crate::wire::ipv4::{Ipv4Header, Ipv4PacketMut};
use crate::wire::{Ecn, icmpv4, protocol};

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
/// The bytes change only when the verdict is [`Encap::Send`], [`Encap::Fragment`] or [`Decap::Deliver`], and then only TTL, ECN
/// field and header checksum; while [`Fragments`] are cut, they get headers of their own.
/// No call allocates, and a forwarder may be shared by any number of threads.
#[derive(Clone, Debug)]
pub struct Forwarder {
    config: ForwarderConfig,
    network: Ipv4Net,
    subnet: Ipv4Net,
    /// Address and netmask of `subnet`, which are asked for with every packet.
    prefix: u32,
    mask: u32,
    /// Our own underlay address and port, as an inner packet would carry them.
    own: SocketAddr,
    /// Set if the checks of senders are the default ones. The others are separate, so that these stay fast.
    has_usual_checks: bool,
}

impl Forwarder {
    /// Creates a forwarder for one host.
    ///
    /// # Errors
    /// A setting cannot work.
    pub fn new(config: ForwarderConfig) -> Result<Self, ConfigError> {
        config.check()?;
        let net = |net: Option<Ipv4Net>| net.unwrap_or(Ipv4Net::from(Ipv4Addr::UNSPECIFIED));
        let (network, subnet) = (net(config.host.network_v4()), net(config.host.subnet_v4()));
        let own = config.host.underlay();
        let has_usual_checks = config.peer_check == PeerCheck::Address && config.source_check == SourceCheck::Strict;
        let (prefix, mask) = (subnet.addr().to_bits(), subnet.netmask().to_bits());
        Ok(Self { config, network, subnet, prefix, mask, own, has_usual_checks })
    }

    /// Returns the settings, with the MTU that was set last.
    #[must_use]
    pub fn config(&self) -> &ForwarderConfig {
        &self.config
    }

    /// Sets the longest inner packet that the underlay carries ([`ForwarderConfig::mtu`]). Call it when the MTU of the underlay's
    /// interface or of the TUN device changes. It does not affect earlier verdicts.
    pub fn set_mtu(&mut self, mtu: Mtu) {
        self.config.mtu = mtu;
    }

    /// Returns the address of this host's TUN device: [`Host::tun_address_v4`](crate::Host::tun_address_v4).
    #[must_use]
    pub fn tun_address(&self) -> Ipv4Addr {
        self.subnet.network()
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
        let mut packet = match self.admit(packet) {
            Ok(packet) => packet,
            Err(reason) => return Encap::Drop(reason),
        };
        let header = packet.header();
        let (destination, ttl, len) = (header.destination(), header.ttl(), header.total_len());
        let Some(hop) = routes.lookup_v4(destination) else {
            return self.encapsulate_rejected(packet.into_bytes(), RejectReason::NetUnreachable, routes);
        };
        if hop.address.ip() == IpAddr::V4(destination) || self.is_tunnelled_already(&packet, routes) {
            return Encap::Drop(DropReason::Loop);
        }
        match (ttl, self.config.ttl) {
            (0, _) => return Encap::Drop(DropReason::TtlZero),
            (1, TtlPolicy::BothEnds | TtlPolicy::Ingress) => {
                return self.encapsulate_rejected(packet.into_bytes(), RejectReason::TimeExceeded, routes);
            }
            _ => {}
        }
        let mtu =
            hop.mtu.map_or(self.config.mtu.get(), |mtu| mtu.min(self.config.mtu.get())).min(path(hop.address.ip()));
        if segment_len.unwrap_or(len) > mtu {
            return self.encapsulate_too_long(packet.into_bytes(), hop, mtu, routes);
        }
        if self.config.ttl != TtlPolicy::Preserve {
            packet.decrement_ttl();
        }
        let (ecn, flow) = (self.outer_ecn(&packet), self.flow(&packet));
        Encap::Send(Transmit { ecn, flow, ..Transmit::datagram(hop.address, packet.into_bytes()) })
    }

    /// Takes bytes and parses them once more, because a header that is handed on in memory costs every packet a little. The same
    /// goes for the others that packets come to by way of exception.
    #[cold]
    fn encapsulate_rejected<'p>(&self, packet: &'p mut [u8], reason: RejectReason, routes: &RouteTable) -> Encap<'p> {
        match Ipv4PacketMut::parse(packet) {
            Ok(packet) => Encap::Reject(self.reject_near(packet, reason, routes)),
            Err(error) => Encap::Drop(error.into()),
        }
    }

    #[cold]
    fn encapsulate_too_long<'p>(
        &self,
        packet: &'p mut [u8],
        hop: &NextHop,
        mtu: u16,
        routes: &RouteTable,
    ) -> Encap<'p> {
        let mut packet = match Ipv4PacketMut::parse(packet) {
            Ok(packet) => packet,
            Err(error) => return Encap::Drop(error.into()),
        };
        if packet.header().dont_fragment() {
            return Encap::Reject(self.reject_near(packet, RejectReason::FragmentationNeeded { mtu }, routes));
        }
        let way = Way { destination: hop.address, ecn: self.outer_ecn(&packet), flow: self.flow(&packet) };
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
    /// If DF is set the datagram becomes again what came out of the TUN, so that an ICMP error quotes the packet its sender
    /// knows. Otherwise the reason to drop it is returned. The routes tell which addresses are broadcasts.
    #[cold]
    pub fn refused_as_too_long<'p>(
        &self,
        datagram: &'p mut [u8],
        mtu: u16,
        routes: &RouteTable,
    ) -> Result<Reject<'p>, DropReason> {
        let mut packet = Ipv4PacketMut::parse(datagram)?;
        if !packet.header().dont_fragment() {
            return Err(DropReason::PathTooNarrow);
        }
        if self.config.ttl != TtlPolicy::Preserve {
            packet.set_ttl(packet.header().ttl().saturating_add(1));
        }
        Ok(self.reject_near(packet, RejectReason::FragmentationNeeded { mtu }, routes))
    }

    /// A datagram that came from the underlay.
    ///
    /// `meta` may be its sender alone. The first failing check gives the reason: peer, header, addresses, inner source, inner
    /// destination, TTL, congestion.
    #[inline]
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
            let sender = SocketAddr::new(peer, meta.from.port());
            return self.decapsulate_unusually(datagram, sender, meta.ecn, routes);
        }
        let packet = match self.admit(datagram) {
            Ok(packet) => packet,
            Err(reason) => return Decap::Drop(reason),
        };
        let source = packet.header().source();
        // R65. Our own subnet is nobody's to send from, even if a wider route leads to the peer.
        let routed = routes.lookup_v4(source).is_some_and(|hop| hop.address.ip() == peer) && !self.owns(source);
        if !routed && peer != IpAddr::V4(source) {
            return Decap::Drop(DropReason::SpoofedSource);
        }
        if let Err(reason) = self.check_destination(&packet, |hop| hop.address.ip() == peer, routes) {
            return Decap::Drop(reason);
        }
        self.deliver(packet, meta.ecn, routes)
    }

    /// The rest of it with any checks of senders. The address of this one is a peer's, if that is asked for.
    #[cold]
    fn decapsulate_unusually<'p>(
        &self,
        datagram: &'p mut [u8],
        sender: SocketAddr,
        outer: Ecn,
        routes: &RouteTable,
    ) -> Decap<'p> {
        // R68
        if self.config.peer_check == PeerCheck::AddressPort && !routes.has_next_hop(sender) {
            return Decap::Drop(DropReason::UnknownPeer);
        }
        let packet = match self.admit(datagram) {
            Ok(packet) => packet,
            Err(reason) => return Decap::Drop(reason),
        };
        let source = packet.header().source();
        if !self.may_send_from(source, sender, routes) {
            return Decap::Drop(DropReason::SpoofedSource);
        }
        let is_back = |hop: &NextHop| self.leads_back(hop, source, sender, routes);
        if let Err(reason) = self.check_destination(&packet, is_back, routes) {
            return Decap::Drop(reason);
        }
        self.deliver(packet, outer, routes)
    }

    /// R30, and R57 with the ECN field of the outer packet.
    #[inline(always)]
    fn deliver<'p>(&self, mut packet: Ipv4PacketMut<'p>, outer: Ecn, routes: &RouteTable) -> Decap<'p> {
        let ttl = packet.header().ttl();
        if ttl == 0 {
            return Decap::Drop(DropReason::TtlZero);
        }
        if ttl == 1 && self.config.ttl == TtlPolicy::BothEnds {
            return self.deliver_expired(packet.into_bytes(), routes);
        }
        if outer != Ecn::NotEct && self.config.ecn_egress == EcnEgress::Combined {
            match packet.header().ecn().after_tunnel(outer) {
                None => return Decap::Drop(DropReason::EcnNotCapable),
                Some(ecn) if ecn == packet.header().ecn() => {}
                Some(ecn) => return self.deliver_marked(packet.into_bytes(), ecn),
            }
        }
        if self.config.ttl == TtlPolicy::BothEnds {
            packet.decrement_ttl();
        }
        Decap::Deliver(packet.into_bytes())
    }

    /// A reject whose answer goes back through the tunnel, to where the inner source is routed.
    #[cold]
    fn deliver_expired<'p>(&self, packet: &'p mut [u8], routes: &RouteTable) -> Decap<'p> {
        let packet = match Ipv4PacketMut::parse(packet) {
            Ok(packet) => packet,
            Err(error) => return Decap::Drop(error.into()),
        };
        let hop = routes.lookup_v4(packet.header().source());
        let reply = hop.map(|hop| (self.tun_address(), ReplyTo::Peer(hop.address)));
        Decap::Reject(self.reject(packet, RejectReason::TimeExceeded, reply, routes))
    }

    #[cold]
    fn deliver_marked<'p>(&self, packet: &'p mut [u8], ecn: Ecn) -> Decap<'p> {
        let mut packet = match Ipv4PacketMut::parse(packet) {
            Ok(packet) => packet,
            Err(error) => return Decap::Drop(error.into()),
        };
        packet.set_ecn(ecn);
        if self.config.ttl == TtlPolicy::BothEnds {
            packet.decrement_ttl();
        }
        Decap::Deliver(packet.into_bytes())
    }

    /// Header and addresses, the checks both directions share.
    #[inline(always)]
    fn admit<'p>(&self, bytes: &'p mut [u8]) -> Result<Ipv4PacketMut<'p>, DropReason> {
        let packet = Ipv4PacketMut::parse(bytes)?;
        let header = packet.header();
        if header.has_source_route() && self.config.source_routes == SourceRoutes::Dropped {
            return Err(DropReason::SourceRoute);
        }
        check_addresses(header, &self.network)?;
        Ok(packet)
    }

    /// R65 with any of the checks there are; without a peer check the inner source has to do. A sender's own underlay address is
    /// legal if it is a peer's.
    fn may_send_from(&self, source: Ipv4Addr, sender: SocketAddr, routes: &RouteTable) -> bool {
        let hop = routes.lookup_v4(source);
        match (self.config.source_check, self.config.peer_check) {
            (SourceCheck::Strict, _) => {
                let routed = hop.is_some_and(|hop| self.is_sender(hop, sender)) && !self.owns(source);
                routed || sender.ip() == IpAddr::V4(source) && routes.has_peer(sender.ip())
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
    fn leads_back(&self, hop: &NextHop, source: Ipv4Addr, sender: SocketAddr, routes: &RouteTable) -> bool {
        match (self.config.peer_check, routes.lookup_v4(source)) {
            (PeerCheck::Off, Some(origin)) => origin.address == hop.address,
            (PeerCheck::Off, None) => hop.address.ip() == sender.ip(),
            (PeerCheck::Address | PeerCheck::AddressPort, _) => self.is_sender(hop, sender),
        }
    }

    /// R66 and the loops of fault 6. `is_back` tells whether a next hop is the peer that a packet came from (fault 13).
    #[inline]
    fn check_destination(
        &self,
        packet: &Ipv4PacketMut<'_>,
        is_back: impl Fn(&NextHop) -> bool,
        routes: &RouteTable,
    ) -> Result<(), DropReason> {
        let destination = packet.header().destination();
        if self.is_tunnelled_already(packet, routes) {
            return Err(DropReason::Loop);
        }
        if self.owns(destination) {
            return Ok(());
        }
        if self.config.transit == Transit::Refused {
            return Err(DropReason::ForeignDestination);
        }
        match routes.lookup_v4(destination) {
            Some(hop) if is_back(hop) => Err(DropReason::ForeignDestination),
            Some(hop) if hop.address.ip() == IpAddr::V4(destination) => Err(DropReason::Loop),
            _ => Ok(()),
        }
    }

    /// Returns `true` if an address is in the host's own subnet.
    #[inline]
    pub(super) fn owns(&self, address: Ipv4Addr) -> bool {
        address.to_bits() & self.mask == self.prefix
    }

    /// Fault 6: a datagram of the tunnel's own inside the tunnel, for the socket it came from or for another host's.
    #[inline]
    fn is_tunnelled_already(&self, packet: &Ipv4PacketMut<'_>, routes: &RouteTable) -> bool {
        const DESTINATION_PORT: core::ops::Range<usize> = 2..4;
        let header = packet.header();
        if header.protocol() != protocol::UDP || header.fragment_offset() != 0 {
            return false;
        }
        let Some(&[high, low]) = packet.payload().get(DESTINATION_PORT) else { return false };
        let (address, port) = (header.destination().into(), u16::from_be_bytes([high, low]));
        (port == self.own.port() && address == self.own.ip()) || routes.has_next_hop(SocketAddr::new(address, port))
    }

    /// An address beyond 255.255.255.255 that is more than one host (R40). Networks of one or two addresses have none.
    fn is_broadcast(&self, address: Ipv4Addr, routes: &RouteTable) -> bool {
        let routed = routes.routed_subnet(address);
        let mut nets = [self.network, self.subnet].into_iter().chain(routed);
        nets.any(|net| net.prefix_len() < 31 && net.broadcast() == address)
    }

    #[inline(always)]
    fn outer_ecn(&self, packet: &Ipv4PacketMut<'_>) -> Ecn {
        match self.config.ecn_ingress {
            EcnIngress::Compatibility => Ecn::NotEct,
            EcnIngress::Normal => packet.header().ecn(),
        }
    }

    #[inline(always)]
    fn flow(&self, packet: &Ipv4PacketMut<'_>) -> u16 {
        match self.config.source_port {
            SourcePort::Fixed => 0,
            SourcePort::ByFlow => flow_number(*packet.header(), packet.payload()),
        }
    }

    /// A reject whose answer goes to our own TUN.
    fn reject_near<'p>(&self, packet: Ipv4PacketMut<'p>, reason: RejectReason, routes: &RouteTable) -> Reject<'p> {
        let source = match self.config.icmp_source {
            IcmpSource::OffenderDestination => packet.header().destination(),
            IcmpSource::Fixed(source) => source,
        };
        self.reject(packet, reason, Some((source, ReplyTo::Tun)), routes)
    }

    fn reject<'p>(
        &self,
        packet: Ipv4PacketMut<'p>,
        reason: RejectReason,
        reply: Option<(Ipv4Addr, ReplyTo)>,
        routes: &RouteTable,
    ) -> Reject<'p> {
        let offender = packet.freeze();
        let answer = reply
            .filter(|_| icmpv4::may_answer_host(&offender, |address| self.is_broadcast(address, routes)))
            .map(|(source, reply_to)| Answer { source, ttl: self.config.icmp_ttl, reply_to });
        Reject { offender, reason, answer }
    }
}

/// The same number for all packets of a flow, and for most flows another one.
///
/// Fragments carry no ports but the first, so addresses and protocol have to do for all of a fragmented packet. Multiplying
/// by a large odd number carries every bit up, and the upper bits are the well mixed ones (Knuth, TAOCP 6.4).
fn flow_number(header: Ipv4Header, payload: &[u8]) -> u16 {
    const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;
    let is_fragment = header.more_fragments() || header.fragment_offset() != 0;
    let ports = match header.protocol() {
        protocol::TCP | protocol::UDP if !is_fragment => payload.first_chunk().copied().unwrap_or_default(),
        _ => [0; 4],
    };
    let addresses = u64::from(header.source().to_bits()) << 32 | u64::from(header.destination().to_bits());
    let rest = u64::from(u32::from_be_bytes(ports)) << 8 | u64::from(header.protocol());
    let mixed = (addresses.wrapping_mul(MULTIPLIER) ^ rest).wrapping_mul(MULTIPLIER);
    (mixed >> 48) as u16
}
