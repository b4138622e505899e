//! Packets from the TUN: the way to a peer.

use core::net::IpAddr;

use super::{Forwarder, refused};
use crate::forward::family::{Family, Packet};
use crate::forward::{DropReason, EcnIngress, Encap, Fragments, Reject, RejectReason, ReplyTo, SourcePort, TtlPolicy};
use crate::host::IPV6_MTU_MIN;
use crate::route::{NextHop, RouteTable};
use crate::transmit::{Transmit, Way};
use crate::wire::fragment::Fragmenter;
use crate::wire::ipv4::{Ipv4Header, Ipv4PacketMut};
use crate::wire::ipv6::{Ipv6Header, Ipv6PacketMut};
use crate::wire::{Ecn, HeaderError, IpHeader, IpPacket};

impl Forwarder {
    /// A packet that came out of the TUN.
    ///
    /// The first failing check gives the reason: header, addresses, route, loops, TTL, size.
    #[inline]
    pub fn encapsulate<'p>(&self, packet: &'p mut [u8], routes: &RouteTable) -> Encap<'p> {
        self.encapsulate_within(packet, |_| u16::MAX, routes)
    }

    /// Decides as [`encapsulate`](Self::encapsulate) over paths that carry less than the overlay. `path` returns the
    /// bytes of inner packet that reach a next hop.
    #[inline(always)]
    pub fn encapsulate_within<'p>(
        &self,
        packet: &'p mut [u8],
        path: impl FnOnce(IpAddr) -> u16,
        routes: &RouteTable,
    ) -> Encap<'p> {
        self.encapsulate_segments(packet, None, path, routes)
    }

    /// Decides on a GSO packet whose longest segment has `segment_len` bytes. The segments have to fit the path, and
    /// not the whole. The caller cuts the packet that [`Encap::Send`] or [`Encap::Fragment`] returns.
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

    /// Takes bytes and parses them once more, because a header that is handed on in memory costs every packet a little.
    /// The same goes for the others that packets come to by way of exception.
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

    /// A datagram that [`encapsulate`](Self::encapsulate) let pass, that waited, and whose path turned out to carry
    /// only `mtu` bytes, which it exceeds. It is too late to fragment it.
    ///
    /// If DF is set or the packet is IPv6, the datagram becomes again what came out of the TUN, so that an ICMP error
    /// quotes the packet its sender knows. Otherwise the reason to drop it is returned. The routes tell which addresses
    /// are broadcasts.
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
}

/// Returns the reason to reject a packet of which `len` bytes do not fit into an MTU; `None` if it may be fragmented.
///
/// IPv6 has no MTU below 1280 bytes (RFC 8200 section 5). So packets within that minimum are dropped: no error would
/// make their sender send shorter ones.
fn too_big(packet: &[u8], len: usize, mtu: u16) -> Result<Option<RejectReason>, DropReason> {
    match IpPacket::parse(packet)? {
        IpPacket::V4(packet) if packet.header().dont_fragment() => Ok(Some(RejectReason::FragmentationNeeded { mtu })),
        IpPacket::V4(_) => Ok(None),
        IpPacket::V6(_) if len <= IPV6_MTU_MIN.into() => Err(DropReason::BelowIpv6Minimum),
        IpPacket::V6(_) => Ok(Some(RejectReason::FragmentationNeeded { mtu: mtu.max(IPV6_MTU_MIN) })),
    }
}
