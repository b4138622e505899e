//! What is permitted: the settings of an overlay, and the addresses no packet may carry.

use core::net::{Ipv4Addr, SocketAddr};

use ipnet::{IpNet, Ipv4Net};

use super::DropReason;
use crate::route::special;
use crate::wire::icmpv4::is_single_host;
use crate::wire::ipv4::{Ipv4Header, MTU_MIN};

/// The overlay as one host sees it, and how that host forwards.
///
/// [`Overlay::new`] has flannel's settings with every check on; others are a struct update away:
///
/// ```
/// use loden::forward::{Overlay, Transit, TtlPolicy};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let network = "100.96.0.0/16".parse::<ipnet::Ipv4Net>()?;
/// let subnet = "100.96.1.0/24".parse::<ipnet::Ipv4Net>()?;
/// let overlay = Overlay::new(network, subnet, ([10, 168, 0, 2], 8285));
/// let overlay = Overlay { ttl: TtlPolicy::Ingress, transit: Transit::Allowed, ..overlay };
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overlay {
    /// The network all hosts share, 100.96.0.0/16 say.
    pub network: IpNet,
    /// The subnet of it that this host owns, 100.96.1.0/24 say.
    pub subnet: IpNet,
    /// Underlay address and port this host is bound to.
    pub underlay: SocketAddr,
    /// The longest inner packet in bytes that the underlay carries: its interface's MTU less 28. Default 1472.
    pub mtu: u16,
    /// Which ends of the tunnel take one off the TTL.
    pub ttl: TtlPolicy,
    /// Check of a datagram's sender.
    pub peer_check: PeerCheck,
    /// Whether a peer may only send from addresses that are routed to it.
    pub source_check: SourceCheck,
    /// Whether packets from peers may go on to other subnets than our own.
    pub transit: Transit,
    /// What becomes of packets with a source route option.
    pub source_routes: SourceRoutes,
    /// Whose address the ICMP errors carry that go out of our own TUN.
    pub icmp_source: IcmpSource,
    /// TTL of our ICMP errors, in hops. Default 64.
    pub icmp_ttl: u8,
    /// Which ECN field the outer packets get.
    pub ecn_ingress: EcnIngress,
    /// What becomes of a congestion mark on an outer packet.
    pub ecn_egress: EcnEgress,
    /// Whether the flows to one peer may leave from different source ports.
    pub source_port: SourcePort,
}

impl Overlay {
    /// flannel's settings, with all checks on.
    #[must_use]
    pub fn new(network: impl Into<IpNet>, subnet: impl Into<IpNet>, underlay: impl Into<SocketAddr>) -> Self {
        Self {
            network: network.into(),
            subnet: subnet.into(),
            underlay: underlay.into(),
            mtu: 1472,
            ttl: TtlPolicy::BothEnds,
            peer_check: PeerCheck::Address,
            source_check: SourceCheck::Strict,
            transit: Transit::Refused,
            source_routes: SourceRoutes::Dropped,
            icmp_source: IcmpSource::OffenderDestination,
            icmp_ttl: 64,
            ecn_ingress: EcnIngress::Compatibility,
            ecn_egress: EcnEgress::Combined,
            source_port: SourcePort::Fixed,
        }
    }

    /// Network and subnet, if the settings can be worked with.
    pub(super) fn check(&self) -> Result<(Ipv4Net, Ipv4Net), OverlayError> {
        let own = self.underlay;
        if own.ip().is_unspecified() || own.ip().is_multicast() || own.port() == 0 {
            return Err(OverlayError::Underlay { address: own });
        }
        if self.icmp_ttl == 0 {
            return Err(OverlayError::IcmpTtl);
        }
        if self.mtu < MTU_MIN {
            return Err(OverlayError::Mtu { mtu: self.mtu });
        }
        let (network, subnet) = match (self.network.trunc(), self.subnet.trunc()) {
            (IpNet::V4(_), IpNet::V4(subnet)) if subnet.network().is_unspecified() => {
                return Err(OverlayError::SubnetUnspecified { subnet: self.subnet });
            }
            (IpNet::V4(network), IpNet::V4(subnet)) if network.contains(&subnet) => (network, subnet),
            (IpNet::V4(_), IpNet::V4(_)) => {
                return Err(OverlayError::SubnetOutside { subnet: self.subnet, network: self.network });
            }
            (net @ IpNet::V6(_), _) | (_, net @ IpNet::V6(_)) => return Err(OverlayError::Ipv6 { net }),
        };
        if let Some(range) = special::range_of(subnet.network().into(), subnet.broadcast().into(), network.into()) {
            return Err(OverlayError::Special { subnet: self.subnet, range });
        }
        if let IcmpSource::Fixed(address) = self.icmp_source
            && (!is_single_host(address) || address.is_link_local())
            && !special::is_made_ordinary(address, network)
        {
            return Err(OverlayError::IcmpSource { address });
        }
        Ok((network, subnet))
    }
}

/// Settings that no forwarder can work with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OverlayError {
    /// No host could have sent such a packet.
    #[error("{address} cannot be the source of ICMP errors; name an address of one host that the pods have a route to")]
    IcmpSource {
        /// The address.
        address: Ipv4Addr,
    },
    /// Our ICMP errors would never get anywhere.
    #[error("the TTL of ICMP errors is 0; 64 is the usual one")]
    IcmpTtl,
    /// The overlay carries IPv4 only so far.
    #[error("{net} is IPv6, which the overlay does not carry yet")]
    Ipv6 {
        /// The network or subnet.
        net: IpNet,
    },
    /// Below 68 bytes, which every IPv4 path carries (RFC 791).
    #[error("an MTU of {mtu} is below 68, the least that every IPv4 path carries")]
    Mtu {
        /// The MTU.
        mtu: u16,
    },
    /// Routers carry no packets of these addresses (R71). A network that is inside 240/4 or 169.254/16 as a whole is carried.
    #[error(
        "subnet {subnet} is in {range}, whose addresses are not carried; choose another network, 100.96.0.0/16 say"
    )]
    Special {
        /// The subnet.
        subnet: IpNet,
        /// The range.
        range: IpNet,
    },
    /// A host's subnet has to be part of the network.
    #[error("subnet {subnet} is not inside the overlay network {network}; choose a part of it")]
    SubnetOutside {
        /// The subnet.
        subnet: IpNet,
        /// The network.
        network: IpNet,
    },
    /// Without the very address and port that peers send to, our own packets could not be told inside the tunnel.
    #[error("{address} is no address and port of one host; name those that the socket is bound to")]
    Underlay {
        /// The address and port.
        address: SocketAddr,
    },
    /// The TUN device's address would be 0.0.0.0.
    #[error("subnet {subnet} begins at 0.0.0.0, which cannot be the TUN device's address; choose another")]
    SubnetUnspecified {
        /// The subnet.
        subnet: IpNet,
    },
}

/// Which ends of the tunnel take one off a packet's TTL.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum TtlPolicy {
    /// Both, as flannel does: each end is a router hop.
    #[default]
    BothEnds,
    /// The encapsulating end alone: the tunnel is one hop (RFC 2003 3.1).
    Ingress,
    /// Neither: the tunnel cannot be seen, and nothing but the kernel's own hops ends a routing loop.
    Preserve,
}

/// Check of a datagram's sender, before its payload is looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum PeerCheck {
    /// The sender's address must be the address of a next hop. Its port may be any.
    #[default]
    Address,
    /// The sender's address and port must be those of a next hop, and [`SourceCheck::Strict`] compares both. Other processes
    /// on a peer's host are then refused. So are peers whose source port depends on the flow ([`SourcePort::ByFlow`]) or is
    /// changed by NAT.
    ///
    /// This does not stop a pod that its host masquerades: Linux keeps the pod's source port where it can, and the pod may
    /// choose the tunnel's.
    AddressPort,
    /// Any sender is accepted if the inner source has a route: flannel's own trust, for peers behind NAT.
    ///
    /// Anyone who can reach the socket may then send packets in the name of any peer's pods. Our own subnet stays refused as
    /// inner source by [`SourceCheck::Strict`]. A packet comes from the peer that its inner source is routed to: ICMP errors
    /// go there, and [`Transit::Allowed`] does not send it back there.
    Off,
}

/// Whether the inner source must be routed to the peer that sent the packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum SourceCheck {
    /// It must, or be the peer's own underlay address.
    #[default]
    Strict,
    /// Any known peer may send from any address. With [`PeerCheck::Off`], other senders need an inner source with a route.
    Off,
}

/// Whether packets from peers may be for others than our own subnet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Transit {
    /// They go to the TUN, and the kernel's routes decide; but never for the peer they came from.
    Allowed,
    /// They are dropped.
    #[default]
    Refused,
}

/// What becomes of packets with a loose or strict source route.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum SourceRoutes {
    /// They are dropped (RFC 7126 4.3 and 4.4).
    #[default]
    Dropped,
    /// They are forwarded as if the option were any other: we neither follow nor change it.
    Forwarded,
}

/// Whose address the ICMP errors carry that we write to our own TUN.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum IcmpSource {
    /// The address the offender was for. Linux takes it everywhere, while it drops packets that come out of a TUN with that
    /// TUN's own address as source (a martian, unless `accept_local` is set).
    #[default]
    OffenderDestination,
    /// This one: routable from the pods, and not an address of this host unless the TUN's `accept_local` is 1.
    Fixed(Ipv4Addr),
}

/// Which ECN field the outer packets get (RFC 6040 4.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum EcnIngress {
    /// Not-ECT on every one: the other end may ignore the outer field, as flannel does, and a mark would be lost.
    #[default]
    Compatibility,
    /// The inner packet's: for tunnels whose other ends all combine.
    Normal,
}

/// What becomes of a congestion mark on an outer packet (RFC 6040 4.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum EcnEgress {
    /// It goes on to the inner packet; one whose sender does not take part in ECN is dropped instead.
    #[default]
    Combined,
    /// It is lost, and the inner packet keeps its field.
    Ignored,
}

/// Which UDP source ports the packets to one peer have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum SourcePort {
    /// By a hash of the inner addresses and ports, as many as the transport has: routers and the other end's queues can then
    /// spread the flows. One flow keeps its port, and so its order.
    ByFlow,
    /// The one port that we are bound to.
    #[default]
    Fixed,
}

/// The section on addresses of `docs/conformance.md`: sources and destinations that are dropped in silence, the source looked at first.
#[inline]
pub(super) fn check_addresses(header: &Ipv4Header, network: &Ipv4Net) -> Result<(), DropReason> {
    let (source, destination) = (header.source(), header.destination());
    if is_ordinary(source) && is_ordinary(destination) { Ok(()) } else { check_special(source, destination, network) }
}

/// With a network inside of a special range, all packets come here (R71).
#[cold]
fn check_special(source: Ipv4Addr, destination: Ipv4Addr, network: &Ipv4Net) -> Result<(), DropReason> {
    match source.octets() {
        _ if special::is_made_ordinary(source, *network) => {}
        [0 | 127 | 224..=255, ..] => return Err(DropReason::MartianSource),
        [169, 254, ..] => return Err(DropReason::LinkLocal),
        _ => {}
    }
    match destination.octets() {
        _ if special::is_made_ordinary(destination, *network) => Ok(()),
        [255, 255, 255, 255] => Err(DropReason::BroadcastDestination),
        [0 | 127 | 240..=255, ..] => Err(DropReason::MartianDestination),
        [224..=239, ..] => Err(DropReason::MulticastDestination),
        [169, 254, ..] => Err(DropReason::LinkLocal),
        _ => Ok(()),
    }
}

/// Surely none of the special addresses; 169/8 as a whole is looked at twice.
#[inline]
fn is_ordinary(address: Ipv4Addr) -> bool {
    /// A bit for each first byte.
    #[expect(clippy::indexing_slicing, reason = "worked out by the compiler")]
    const SPECIAL: [u64; 4] = {
        let mut special = [0; 4];
        let mut first = 0;
        while first < 256 {
            if matches!(first, 0 | 127 | 169 | 224..) {
                special[first / 64] |= 1 << (first % 64);
            }
            first += 1;
        }
        special
    };
    let first = address.octets()[0];
    SPECIAL.get(usize::from(first >> 6)).is_some_and(|word| word >> (first & 63) & 1 == 0)
}
