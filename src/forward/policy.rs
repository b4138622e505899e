//! The settings of a forwarder.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::addresses::is_no_host_v6;
use crate::host::{Host, IPV6_MTU_MIN, Mtu, special};
use crate::wire::icmpv4::is_single_host;

/// The settings of a forwarder: the identity of its host, and its rules.
///
/// [`ForwarderConfig::new`] has flannel's settings with every check enabled.
///
/// ```
/// use loden::Host;
/// use loden::forward::{ForwarderConfig, Transit, TtlPolicy};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let network = "100.96.0.0/16".parse::<ipnet::Ipv4Net>()?;
/// let subnet = "100.96.1.0/24".parse::<ipnet::Ipv4Net>()?;
/// let host = Host::new(network, subnet, ([10, 168, 0, 2], 8285))?;
/// let config = ForwarderConfig::new(&host).with_ttl(TtlPolicy::Ingress).with_transit(Transit::Allowed);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ForwarderConfig {
    /// The identity of the host.
    pub host: Host,
    /// The longest inner packet that the underlay carries to IPv4 peers: the interface's MTU less 28 bytes. Default
    /// 1472 bytes.
    pub mtu: Mtu,
    /// The longest inner packet that the underlay carries to IPv6 peers: the interface's MTU less 48 bytes. Default
    /// 1452 bytes.
    pub mtu_over_ipv6: Mtu,
    /// The ends of the tunnel that decrement the TTL.
    pub ttl: TtlPolicy,
    /// Check of a datagram's sender.
    pub peer_check: PeerCheck,
    /// Check of the inner source against the peer's routes.
    pub source_check: SourceCheck,
    /// Permission of packets from peers to other subnets than the own one.
    pub transit: Transit,
    /// Treatment of packets with a source route option or a routing header of type 0.
    pub source_routes: SourceRoutes,
    /// The source address of the ICMPv4 errors to the own TUN device.
    pub icmp_source: IcmpSource,
    /// The source address of the ICMPv6 errors to the own TUN device.
    pub icmpv6_source: Icmpv6Source,
    /// The TTL or hop limit of ICMP errors, in hops. Default 64.
    pub icmp_ttl: u8,
    /// The ECN field of outer packets.
    pub ecn_ingress: EcnIngress,
    /// Treatment of a congestion mark on an outer packet.
    pub ecn_egress: EcnEgress,
    /// The UDP source ports of outer packets.
    pub source_port: SourcePort,
}

impl ForwarderConfig {
    /// Returns flannel's settings with all checks enabled.
    #[must_use]
    pub fn new(host: &Host) -> Self {
        Self {
            host: host.clone(),
            mtu: Mtu::DEFAULT,
            mtu_over_ipv6: Mtu::DEFAULT_OVER_IPV6,
            ttl: TtlPolicy::BothEnds,
            peer_check: PeerCheck::Address,
            source_check: SourceCheck::Strict,
            transit: Transit::Refused,
            source_routes: SourceRoutes::Dropped,
            icmp_source: IcmpSource::OffenderDestination,
            icmpv6_source: Icmpv6Source::TunAddress,
            icmp_ttl: 64,
            ecn_ingress: EcnIngress::Compatibility,
            ecn_egress: EcnEgress::Combined,
            source_port: SourcePort::Fixed,
        }
    }

    /// Sets the longest inner packet that the underlay carries to any peer.
    #[must_use]
    pub fn with_mtu(self, mtu: Mtu) -> Self {
        Self { mtu, mtu_over_ipv6: mtu, ..self }
    }

    /// Sets the longest inner packet that the underlay carries to IPv6 peers.
    #[must_use]
    pub fn with_mtu_over_ipv6(self, mtu_over_ipv6: Mtu) -> Self {
        Self { mtu_over_ipv6, ..self }
    }

    /// Sets the ends of the tunnel that decrement the TTL.
    #[must_use]
    pub fn with_ttl(self, ttl: TtlPolicy) -> Self {
        Self { ttl, ..self }
    }

    /// Sets the check of a datagram's sender.
    #[must_use]
    pub fn with_peer_check(self, peer_check: PeerCheck) -> Self {
        Self { peer_check, ..self }
    }

    /// Sets the check of the inner source.
    #[must_use]
    pub fn with_source_check(self, source_check: SourceCheck) -> Self {
        Self { source_check, ..self }
    }

    /// Sets the permission of packets from peers to other subnets.
    #[must_use]
    pub fn with_transit(self, transit: Transit) -> Self {
        Self { transit, ..self }
    }

    /// Sets the treatment of packets with a source route option.
    #[must_use]
    pub fn with_source_routes(self, source_routes: SourceRoutes) -> Self {
        Self { source_routes, ..self }
    }

    /// Sets the source address of the ICMPv4 errors to the own TUN device.
    #[must_use]
    pub fn with_icmp_source(self, icmp_source: IcmpSource) -> Self {
        Self { icmp_source, ..self }
    }

    /// Sets the source address of the ICMPv6 errors to the own TUN device.
    #[must_use]
    pub fn with_icmpv6_source(self, icmpv6_source: Icmpv6Source) -> Self {
        Self { icmpv6_source, ..self }
    }

    /// Sets the TTL or hop limit of ICMP errors, in hops.
    #[must_use]
    pub fn with_icmp_ttl(self, icmp_ttl: u8) -> Self {
        Self { icmp_ttl, ..self }
    }

    /// Sets the ECN field of outer packets.
    #[must_use]
    pub fn with_ecn_ingress(self, ecn_ingress: EcnIngress) -> Self {
        Self { ecn_ingress, ..self }
    }

    /// Sets the treatment of a congestion mark on an outer packet.
    #[must_use]
    pub fn with_ecn_egress(self, ecn_egress: EcnEgress) -> Self {
        Self { ecn_egress, ..self }
    }

    /// Sets the UDP source ports of outer packets.
    #[must_use]
    pub fn with_source_port(self, source_port: SourcePort) -> Self {
        Self { source_port, ..self }
    }

    /// Checks the settings that the types do not.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if self.icmp_ttl == 0 {
            return Err(ConfigError::IcmpTtl);
        }
        if let IcmpSource::Fixed(address) = self.icmp_source
            && (!is_single_host(address) || address.is_link_local())
            && !self.host.network_v4().is_some_and(|network| special::is_made_ordinary(address, network))
        {
            return Err(ConfigError::IcmpSource { address: address.into() });
        }
        if let Icmpv6Source::Fixed(address) = self.icmpv6_source
            && (is_no_host_v6(address) || address.is_multicast() || address.is_unicast_link_local())
        {
            return Err(ConfigError::IcmpSource { address: address.into() });
        }
        // The MTU to peers of a family without an own underlay address is of no use.
        let mut mtus = self.host.underlays().iter().map(|underlay| self.mtu_to(underlay.ip()));
        match mtus.find(|mtu| mtu.get() < IPV6_MTU_MIN) {
            Some(mtu) if self.host.network_v6().is_some() => Err(ConfigError::Ipv6Mtu { mtu }),
            Some(_) | None => Ok(()),
        }
    }

    /// Returns the longest inner packet that the underlay carries to peers of this one's family.
    pub(crate) fn mtu_to(&self, peer: IpAddr) -> Mtu {
        if peer.is_ipv6() { self.mtu_over_ipv6 } else { self.mtu }
    }
}

/// The reason why a forwarder refuses settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The address cannot be the source of a packet.
    #[error("{address} cannot be the source of ICMP errors; name an address of one host that the pods have a route to")]
    IcmpSource {
        /// The address.
        address: IpAddr,
    },
    /// The ICMP errors would never arrive.
    #[error("the TTL of ICMP errors is 0; choose 1 or more, 64 is common")]
    IcmpTtl,
    /// IPv6 needs paths of at least 1280 bytes (RFC 8200 section 5).
    #[error("MTU {mtu} is below the IPv6 minimum of {IPV6_MTU_MIN}; choose {IPV6_MTU_MIN} or more, or carry IPv4 only")]
    Ipv6Mtu {
        /// The MTU.
        mtu: Mtu,
    },
}

/// The ends of the tunnel that decrement a packet's TTL.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum TtlPolicy {
    /// Both ends, as flannel does: each end is a router hop.
    #[default]
    BothEnds,
    /// The encapsulating end only: the tunnel is one hop (RFC 2003 section 3.1).
    Ingress,
    /// Neither end: the tunnel is invisible, and only the kernel's hops end a routing loop.
    Preserve,
}

/// Check of a datagram's sender, which precedes all checks of its payload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum PeerCheck {
    /// The sender's address must be the address of a next hop. Its port is not checked.
    #[default]
    Address,
    /// The sender's address and port must be those of a next hop, and [`SourceCheck::Strict`] compares both. This
    /// refuses other processes on a peer's host. It also refuses peers whose source port depends on the flow
    /// ([`SourcePort::ByFlow`]) or is changed by NAT.
    ///
    /// It does not refuse a pod that its host masquerades: Linux keeps the pod's source port where it can, and the pod
    /// may use the tunnel's port.
    AddressPort,
    /// Any sender is accepted if the inner source has a route. This is flannel's behaviour and supports peers behind
    /// NAT.
    ///
    /// Anybody who can reach the socket may then send packets with the source addresses of any peer's pods.
    /// [`SourceCheck::Strict`] still refuses the own subnet as inner source. A packet counts as coming from the peer
    /// that its inner source is routed to. ICMP errors go to that peer, and [`Transit::Allowed`] does not send the
    /// packet back to it.
    Off,
}

/// Check that the inner source is routed to the peer that sent the packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum SourceCheck {
    /// The inner source must be routed to the peer, or be the peer's own underlay address.
    #[default]
    Strict,
    /// Any known peer may use any inner source. With [`PeerCheck::Off`], other senders need an inner source with a
    /// route.
    Off,
}

/// Permission of packets from peers to other subnets than the own one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Transit {
    /// They are written to the TUN device and the kernel's routes decide. A packet is never sent back to its peer.
    Allowed,
    /// They are dropped.
    #[default]
    Refused,
}

/// Treatment of packets with a loose or strict source route, or an IPv6 routing header of type 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum SourceRoutes {
    /// They are dropped (RFC 7126 sections 4.3 and 4.4, RFC 5095).
    #[default]
    Dropped,
    /// They are forwarded like packets with any other option: the option is neither followed nor changed.
    Forwarded,
}

/// The source address of the ICMPv4 errors that are written to the own TUN device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum IcmpSource {
    /// The destination of the offending packet. Linux always accepts it. Linux drops packets from a TUN device whose
    /// source is that device's own address, as martians, unless `accept_local` is set.
    #[default]
    OffenderDestination,
    /// This address. It must be routable from the pods. It must not be an address of this host unless the TUN device's
    /// `accept_local` is 1.
    Fixed(Ipv4Addr),
}

/// The source address of the ICMPv6 errors that are written to the own TUN device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Icmpv6Source {
    /// This address, which the pods must be able to route to.
    Fixed(Ipv6Addr),
    /// The address of the own TUN device, [`Host::tun_address_v6`]. Linux accepts it for IPv6.
    #[default]
    TunAddress,
}

/// The ECN field of outer packets (RFC 6040 section 4.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum EcnIngress {
    /// Always Not-ECT: the other end may ignore the outer field, as flannel does, and a congestion mark would be lost.
    #[default]
    Compatibility,
    /// The inner packet's field, for tunnels whose other ends all support [`EcnEgress::Combined`].
    Normal,
}

/// Treatment of a congestion mark on an outer packet (RFC 6040 section 4.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum EcnEgress {
    /// It is copied to the inner packet. A packet whose sender does not support ECN is dropped instead.
    #[default]
    Combined,
    /// It is ignored, and the inner packet keeps its field.
    Ignored,
}

/// The UDP source ports of the packets to one peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum SourcePort {
    /// A hash of the inner addresses and ports selects one of all ports of the transport. Routers and the other end's
    /// queues can then distribute the flows. One flow keeps its port, and thus its order.
    ByFlow,
    /// The port that the socket is bound to.
    #[default]
    Fixed,
}
