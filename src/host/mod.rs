//! The identity of a host, and MTUs.

mod mtu;
pub(crate) mod special;

use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

pub(crate) use self::mtu::IPV6_MTU_MIN;
pub use self::mtu::{Mtu, MtuError, Overhead};

/// The identity of one host: the networks that all hosts share, the subnets that this host owns, and its underlay
/// addresses.
///
/// The constructor is the only check. Everything that must know the host takes a reference to it: [`ForwarderConfig`],
/// `RoutePublisher`, [`Reconciler`], `Link` and `PreflightConfig`.
///
/// A host carries IPv4, IPv6 or both: there is one network for each family that it carries, and at least one subnet in
/// it. A host has one underlay address for each family by which it reaches peers. The families inside and outside are
/// independent of each other.
///
/// [`ForwarderConfig`]: crate::forward::ForwarderConfig
/// [`Reconciler`]: crate::lease::Reconciler
///
/// ```
/// use loden::{Host, ipnet::{IpNet, Ipv4Net}};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (network, subnet) = ("100.96.0.0/16".parse::<Ipv4Net>()?, "100.96.1.0/24".parse::<Ipv4Net>()?);
/// let host = Host::new(network, subnet, ([10, 168, 0, 2], 8285))?;
/// assert_eq!(host.tun_address_v4(), Some([100, 96, 1, 0].into()));
///
/// let networks: [IpNet; 2] = [network.into(), "fd00:96::/32".parse()?];
/// let subnets: [IpNet; 2] = [subnet.into(), "fd00:96:1::/64".parse()?];
/// let dual_stack = Host::from_sets(&networks, &subnets, &["10.168.0.2:8285".parse()?])?;
/// assert_eq!(dual_stack.tun_address_v6(), Some("fd00:96:1:0:ffff:ffff:ffff:ff7f".parse()?));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    // IPv4 comes first in each.
    networks: Vec<IpNet>,
    subnets: Vec<IpNet>,
    underlays: Vec<SocketAddr>,
}

impl Host {
    /// Creates the identity of a host with one subnet and one underlay address.
    ///
    /// `network` is the network of all hosts, for example 100.96.0.0/16. `subnet` is the part of it that this host owns,
    /// for example 100.96.1.0/24. `underlay` is the address and port that this host's socket is bound to. Host bits are
    /// ignored, and an IPv4-mapped underlay address becomes an IPv4 address.
    ///
    /// # Errors
    /// The overlay cannot carry this network or subnet, or the underlay address is not that of one host.
    pub fn new(
        network: impl Into<IpNet>,
        subnet: impl Into<IpNet>,
        underlay: impl Into<SocketAddr>,
    ) -> Result<Self, HostError> {
        Self::from_sets(&[network.into()], &[subnet.into()], &[underlay.into()])
    }

    /// Creates the identity of a host from its sets: one network for each family that is carried, at least one subnet
    /// in each network, and one underlay address for each family of the underlay.
    ///
    /// The first subnet of a family gives the address of the TUN device.
    ///
    /// # Errors
    /// A set is empty or has more members of one family than it may, a network has no subnet, or an error of
    /// [`Host::new`] applies to a member.
    pub fn from_sets(networks: &[IpNet], subnets: &[IpNet], underlays: &[SocketAddr]) -> Result<Self, HostError> {
        let mut host = Self { networks: Vec::new(), subnets: Vec::new(), underlays: Vec::new() };
        for network in networks {
            host.networks.push(network.trunc());
        }
        host.networks.sort_by_key(|network| network.addr().is_ipv6());
        one_per_family("networks", host.networks.iter().map(IpNet::addr))?;
        for subnet in subnets {
            host.add_subnet(*subnet)?;
        }
        for network in &host.networks {
            if !host.subnets.iter().any(|subnet| is_same_family(network.addr(), subnet.addr())) {
                return Err(HostError::NoSubnet { network: *network });
            }
        }
        for underlay in underlays {
            host.underlays.push(checked_underlay(*underlay)?);
        }
        host.underlays.sort_by_key(SocketAddr::is_ipv6);
        one_per_family("underlay addresses", host.underlays.iter().map(SocketAddr::ip))?;
        Ok(host)
    }

    /// Adds a subnet. Nothing changes if the host owns it already.
    ///
    /// # Errors
    /// The subnet is not inside the network of its family, or its addresses are not carried.
    pub fn add_subnet(&mut self, subnet: impl Into<IpNet>) -> Result<(), HostError> {
        let given = subnet.into();
        let subnet = given.trunc();
        let Some(network) = self.networks.iter().find(|network| is_same_family(network.addr(), subnet.addr())) else {
            return Err(HostError::NoNetwork { subnet: given });
        };
        if subnet.addr() == IpAddr::V4(Ipv4Addr::UNSPECIFIED) {
            return Err(HostError::SubnetUnspecified { subnet: given });
        }
        if !network.contains(&subnet) {
            return Err(HostError::SubnetOutside { subnet: given, network: *network });
        }
        if let Some(range) = special::range_of(subnet.network(), subnet.broadcast(), *network) {
            return Err(HostError::Special { subnet: given, range });
        }
        if let IpNet::V6(subnet) = subnet
            && let address = tun_address_in(subnet)
            && let Some(range) = special::range_of(address.into(), address.into(), *network)
        {
            return Err(HostError::Special { subnet: given, range });
        }
        if !self.subnets.contains(&subnet) {
            let at = self.subnets.partition_point(|other| subnet.addr().is_ipv6() || other.addr().is_ipv4());
            self.subnets.insert(at, subnet);
        }
        Ok(())
    }

    /// Returns the networks that all hosts share, IPv4 first.
    #[must_use]
    pub fn networks(&self) -> &[IpNet] {
        &self.networks
    }

    /// Returns the subnets that this host owns, IPv4 first.
    #[must_use]
    pub fn subnets(&self) -> &[IpNet] {
        &self.subnets
    }

    /// Returns the addresses and ports that this host's sockets are bound to, IPv4 first.
    #[must_use]
    pub fn underlays(&self) -> &[SocketAddr] {
        &self.underlays
    }

    /// Returns the IPv4 network, if IPv4 is carried.
    #[must_use]
    pub fn network_v4(&self) -> Option<Ipv4Net> {
        self.networks.iter().find_map(|network| v4(*network))
    }

    /// Returns the IPv6 network, if IPv6 is carried.
    #[must_use]
    pub fn network_v6(&self) -> Option<Ipv6Net> {
        self.networks.iter().find_map(|network| v6(*network))
    }

    /// Returns the first IPv4 subnet, if IPv4 is carried.
    #[must_use]
    pub fn subnet_v4(&self) -> Option<Ipv4Net> {
        self.subnets.iter().find_map(|subnet| v4(*subnet))
    }

    /// Returns the first IPv6 subnet, if IPv6 is carried.
    #[must_use]
    pub fn subnet_v6(&self) -> Option<Ipv6Net> {
        self.subnets.iter().find_map(|subnet| v6(*subnet))
    }

    /// Returns the IPv4 subnets that this host owns.
    pub(crate) fn subnets_v4(&self) -> impl Iterator<Item = Ipv4Net> {
        self.subnets.iter().filter_map(|subnet| v4(*subnet))
    }

    /// Returns the IPv6 subnets that this host owns.
    pub(crate) fn subnets_v6(&self) -> impl Iterator<Item = Ipv6Net> {
        self.subnets.iter().filter_map(|subnet| v6(*subnet))
    }

    /// Returns the IPv4 address of this host's TUN device, if IPv4 is carried. As in flannel it is the network address
    /// of the first subnet.
    #[must_use]
    pub fn tun_address_v4(&self) -> Option<Ipv4Addr> {
        Some(self.subnet_v4()?.network())
    }

    /// Returns the IPv6 address of this host's TUN device, if IPv6 is carried. It is the highest address of the first
    /// subnet that is not a reserved anycast address (RFC 2526). In a subnet longer than /120 it is the first address.
    ///
    /// The first address is not used in general, because a forwarding bridge of the subnet makes it an anycast address
    /// (RFC 4291 section 2.6.1).
    #[must_use]
    pub fn tun_address_v6(&self) -> Option<Ipv6Addr> {
        self.subnet_v6().map(tun_address_in)
    }

    /// Returns the addresses of this host's TUN device, at most one for each family.
    pub fn tun_addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.tun_address_v4().map(IpAddr::V4).into_iter().chain(self.tun_address_v6().map(IpAddr::V6))
    }

    /// Returns the first underlay address and port: the IPv4 one, if there is one.
    #[must_use]
    pub fn underlay(&self) -> SocketAddr {
        // The constructor accepts no empty set.
        self.underlays.first().copied().unwrap_or(SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0)))
    }

    /// Returns the underlay address and port that datagrams to a next hop come from, if this host has one of that
    /// family.
    #[must_use]
    pub fn underlay_to(&self, next_hop: IpAddr) -> Option<SocketAddr> {
        self.underlays.iter().copied().find(|underlay| is_same_family(underlay.ip(), next_hop))
    }
}

fn v4(net: IpNet) -> Option<Ipv4Net> {
    match net {
        IpNet::V4(net) => Some(net),
        IpNet::V6(_) => None,
    }
}

fn v6(net: IpNet) -> Option<Ipv6Net> {
    match net {
        IpNet::V4(_) => None,
        IpNet::V6(net) => Some(net),
    }
}

/// Returns the address of the TUN device in a subnet.
fn tun_address_in(subnet: Ipv6Net) -> Ipv6Addr {
    /// The highest 128 addresses of a subnet are reserved.
    const RESERVED: u128 = 128;
    match subnet.prefix_len() {
        ..=120 => Ipv6Addr::from_bits(subnet.broadcast().to_bits() - RESERVED),
        _ => subnet.network(),
    }
}

fn is_same_family(one: IpAddr, other: IpAddr) -> bool {
    one.is_ipv4() == other.is_ipv4()
}

/// Checks that a set has one member for each family, and at least one in all.
fn one_per_family(what: &'static str, members: impl Iterator<Item = IpAddr>) -> Result<(), HostError> {
    let mut counts = [0_usize; 2];
    for member in members {
        let [ipv4, ipv6] = &mut counts;
        *if member.is_ipv4() { ipv4 } else { ipv6 } += 1;
    }
    match counts {
        [0, 0] => Err(HostError::Missing { what }),
        [0 | 1, 0 | 1] => Ok(()),
        [ipv4, ipv6] => Err(HostError::TooMany { what, ipv4, ipv6 }),
    }
}

/// Returns an underlay address as it is stored: an IPv4-mapped IPv6 address as IPv4.
fn checked_underlay(address: SocketAddr) -> Result<SocketAddr, HostError> {
    let underlay = match address.ip().to_canonical() {
        canonical @ IpAddr::V4(_) => SocketAddr::new(canonical, address.port()),
        IpAddr::V6(_) => address,
    };
    let ip = underlay.ip();
    if ip.is_unspecified() || ip.is_multicast() || underlay.port() == 0 {
        return Err(HostError::Underlay { address });
    }
    if matches!(underlay, SocketAddr::V6(v6) if v6.ip().is_unicast_link_local() && v6.scope_id() == 0) {
        return Err(HostError::UnderlayScope { address });
    }
    Ok(underlay)
}

/// The reason why an identity is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HostError {
    /// A set has no member.
    #[error("the host has no {what}; name one for each IP family")]
    Missing {
        /// The members of the set, in the plural.
        what: &'static str,
    },
    /// A subnet belongs to a family without a network.
    #[error("subnet {subnet} has no network of its IP family; name the network that all hosts share")]
    NoNetwork {
        /// The subnet.
        subnet: IpNet,
    },
    /// The host owns no part of a network.
    #[error("the host has no subnet in the overlay network {network}; name the part that it owns")]
    NoSubnet {
        /// The network.
        network: IpNet,
    },
    /// Routers do not forward packets of these addresses (R71), unless the whole network is inside 240/4 or 169.254/16.
    #[error(
        "subnet {subnet} is in {range}, whose addresses are not carried; choose another network such as 100.96.0.0/16 or fd00:96::/32"
    )]
    Special {
        /// The subnet.
        subnet: IpNet,
        /// The range.
        range: IpNet,
    },
    /// The subnet must be part of the network.
    #[error("subnet {subnet} is not inside the overlay network {network}; choose a part of it")]
    SubnetOutside {
        /// The subnet.
        subnet: IpNet,
        /// The network.
        network: IpNet,
    },
    /// The address of the TUN device would be 0.0.0.0.
    #[error("subnet {subnet} begins at 0.0.0.0, which cannot be the TUN device's address; choose another")]
    SubnetUnspecified {
        /// The subnet.
        subnet: IpNet,
    },
    /// A set has several members of one family.
    #[error("the host has {ipv4} IPv4 and {ipv6} IPv6 {what}; name at most one for each IP family")]
    TooMany {
        /// The members of the set, in the plural.
        what: &'static str,
        /// The number of IPv4 members.
        ipv4: usize,
        /// The number of IPv6 members.
        ipv6: usize,
    },
    /// A link-local address is a host on one link only, which the scope id names (RFC 4007).
    #[error("{address} is link-local without a scope id; name the index of the interface, as in [fe80::1%2]:8285")]
    UnderlayScope {
        /// The address and port.
        address: SocketAddr,
    },
    /// The forwarder recognises its own packets inside the tunnel by the address and port that peers send to.
    #[error("{address} is not the address and port of one host; use those that the socket is bound to")]
    Underlay {
        /// The address and port.
        address: SocketAddr,
    },
}
