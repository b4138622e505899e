//! The data plane: one in-place call, one verdict.

mod answer;
mod decapsulate;
mod encapsulate;

use core::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::{IpNet, Ipv4Net};

use super::family::{Family, Own, Packet};
use super::{ConfigError, DropReason, EcnIngress, ForwarderConfig, PeerCheck, SourceCheck, SourcePort, SourceRoutes};
use crate::host::{Host, HostError, Mtu};
use crate::route::RouteTable;
use crate::wire::ipv4::{self, Ipv4Header};
use crate::wire::ipv6::Ipv6Header;
use crate::wire::{Ecn, IpHeader, protocol};

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
/// The bytes change only when the verdict is [`Encap::Send`](super::Encap::Send),
/// [`Encap::Fragment`](super::Encap::Fragment) or [`Decap::Deliver`](super::Decap::Deliver), and then only TTL or hop
/// limit, ECN field and the header checksum of IPv4. [`Fragments`](super::Fragments) get headers of their own while
/// they are cut. No call allocates, and a forwarder may be shared by any number of threads.
///
/// The rules are the same for IPv4 and IPv6, with these exceptions: IPv6 packets are never fragmented, multicast comes
/// first among the checks of IPv6 addresses, and ICMPv6 errors come from the address of the own TUN.
#[derive(Clone, Debug)]
pub struct Forwarder {
    config: ForwarderConfig,
    pub(super) network_v4: Ipv4Net,
    pub(super) ipv4: Own<Ipv4Addr>,
    pub(super) ipv6: Own<Ipv6Addr>,
    /// Set if the checks of senders are the default ones, and there is at most one own subnet of each family. The
    /// others are separate, so that these stay fast.
    has_usual_checks: bool,
    /// Set if ECN field and flow number of a datagram do not depend on the packet. Otherwise they are read from its
    /// bytes: a header that is needed so late takes registers from every packet.
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
        let has_usual_checks = has_usual_checks(&config, &ipv4, &ipv6);
        let shortest_mtu = config.mtu.min(config.mtu_over_ipv6).get();
        Ok(Self { config, network_v4, ipv4, ipv6, has_usual_checks, has_plain_outer, shortest_mtu })
    }

    /// Returns the settings, with the MTUs that were set last.
    #[must_use]
    pub fn config(&self) -> &ForwarderConfig {
        &self.config
    }

    /// Replaces the subnets that the host owns, for example when an operator reserves a further one for it. They apply
    /// to the next packet.
    ///
    /// # Errors
    /// The errors of [`Host::from_sets`](crate::Host::from_sets). Then nothing changes.
    pub fn set_subnets(&mut self, subnets: &[IpNet]) -> Result<(), HostError> {
        let host = Host::from_sets(self.config.host.networks(), subnets, self.config.host.underlays())?;
        (self.ipv4, self.ipv6) = (Own::v4(&host), Own::v6(&host));
        self.config.host = host;
        self.has_usual_checks = has_usual_checks(&self.config, &self.ipv4, &self.ipv6);
        Ok(())
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
}

fn has_usual_checks(config: &ForwarderConfig, ipv4: &Own<Ipv4Addr>, ipv6: &Own<Ipv6Addr>) -> bool {
    let are_default = config.peer_check == PeerCheck::Address && config.source_check == SourceCheck::Strict;
    are_default && !ipv4.has_several() && !ipv6.has_several()
}

/// Returns true if a route leads to this address and port. Few inner packets have the port of a next hop.
#[cold]
fn is_next_hop(address: impl Family, port: u16, routes: &RouteTable) -> bool {
    routes.has_next_hop(SocketAddr::new(address.into(), port))
}

/// Returns the reason why a packet is no valid one of IPv4. It is found a second time, so that nothing prepares it for
/// every packet.
#[cold]
fn refused(packet: &[u8]) -> DropReason {
    Ipv4Header::parse(packet).err().map_or(DropReason::BadVersion, DropReason::from)
}
