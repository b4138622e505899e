//! The identity of a host, and MTUs.

mod mtu;
pub(crate) mod special;

use core::net::{IpAddr, Ipv4Addr, SocketAddr};

use ipnet::{IpNet, Ipv4Net};

pub use self::mtu::{Mtu, MtuError, Overhead};

/// The identity of one host: the network that all hosts share, the subnet that this host owns, and its underlay address.
///
/// The constructor is the only check. Everything that must know the host takes a reference to it: [`ForwarderConfig`],
/// `RoutePublisher`, [`Reconciler`], `Link` and `PreflightConfig`.
///
/// All three are sets, because IPv6 and second leases will add members. For now each has exactly one member, and networks
/// and subnets are IPv4.
///
/// [`ForwarderConfig`]: crate::forward::ForwarderConfig
/// [`Reconciler`]: crate::lease::Reconciler
///
/// ```
/// use loden::{Host, ipnet::Ipv4Net};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (network, subnet) = ("100.96.0.0/16".parse::<Ipv4Net>()?, "100.96.1.0/24".parse::<Ipv4Net>()?);
/// let host = Host::new(network, subnet, ([10, 168, 0, 2], 8285))?;
/// assert_eq!(host.tun_address().octets(), [100, 96, 1, 0]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// The members of the sets, and their IPv4 forms.
    networks: [IpNet; 1],
    subnets: [IpNet; 1],
    underlays: [SocketAddr; 1],
    network: Ipv4Net,
    subnet: Ipv4Net,
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
        let (given_network, given_subnet, given_underlay) = (network.into(), subnet.into(), underlay.into());
        let underlay = match given_underlay.ip().to_canonical() {
            canonical @ IpAddr::V4(_) => SocketAddr::new(canonical, given_underlay.port()),
            IpAddr::V6(_) => given_underlay,
        };
        if underlay.ip().is_unspecified() || underlay.ip().is_multicast() || underlay.port() == 0 {
            return Err(HostError::Underlay { address: given_underlay });
        }
        let (network, subnet) = match (given_network.trunc(), given_subnet.trunc()) {
            (IpNet::V4(_), IpNet::V4(subnet)) if subnet.network().is_unspecified() => {
                return Err(HostError::SubnetUnspecified { subnet: given_subnet });
            }
            (IpNet::V4(network), IpNet::V4(subnet)) if network.contains(&subnet) => (network, subnet),
            (IpNet::V4(_), IpNet::V4(_)) => {
                return Err(HostError::SubnetOutside { subnet: given_subnet, network: given_network });
            }
            (net @ IpNet::V6(_), _) | (_, net @ IpNet::V6(_)) => return Err(HostError::Ipv6 { net }),
        };
        if let Some(range) = special::range_of(subnet.network().into(), subnet.broadcast().into(), network.into()) {
            return Err(HostError::Special { subnet: given_subnet, range });
        }
        let (networks, subnets) = ([network.into()], [subnet.into()]);
        Ok(Self { networks, subnets, underlays: [underlay], network, subnet })
    }

    /// Creates the identity of a host from its sets.
    ///
    /// # Errors
    /// [`HostError::Count`] if a set does not have exactly one member, and the errors of [`Host::new`].
    pub fn from_sets(networks: &[IpNet], subnets: &[IpNet], underlays: &[SocketAddr]) -> Result<Self, HostError> {
        fn only<T: Copy>(what: &'static str, set: &[T]) -> Result<T, HostError> {
            match set {
                [only] => Ok(*only),
                _ => Err(HostError::Count { what, count: set.len() }),
            }
        }
        Self::new(only("networks", networks)?, only("subnets", subnets)?, only("underlay addresses", underlays)?)
    }

    /// Returns the network that all hosts share.
    #[must_use]
    pub fn network(&self) -> Ipv4Net {
        self.network
    }

    /// Returns the networks that all hosts share.
    #[must_use]
    pub fn networks(&self) -> &[IpNet] {
        &self.networks
    }

    /// Returns the subnet that this host owns.
    #[must_use]
    pub fn subnet(&self) -> Ipv4Net {
        self.subnet
    }

    /// Returns the subnets that this host owns.
    #[must_use]
    pub fn subnets(&self) -> &[IpNet] {
        &self.subnets
    }

    /// Returns the address of this host's TUN device. As in flannel it is the network address of the subnet.
    #[must_use]
    pub fn tun_address(&self) -> Ipv4Addr {
        self.subnet.network()
    }

    /// Returns the address and port that this host's socket is bound to.
    #[must_use]
    pub fn underlay(&self) -> SocketAddr {
        let [underlay] = self.underlays;
        underlay
    }

    /// Returns the addresses and ports that this host's sockets are bound to.
    #[must_use]
    pub fn underlays(&self) -> &[SocketAddr] {
        &self.underlays
    }
}

/// The reason why an identity is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HostError {
    /// The overlay carries exactly one member of each set for now.
    #[error("the host has {count} {what}, but the overlay carries exactly one for now; name one")]
    Count {
        /// The members of the set, in the plural.
        what: &'static str,
        /// The number of members.
        count: usize,
    },
    /// The overlay does not carry IPv6 yet.
    #[error("{net} is IPv6, which the overlay does not carry yet; choose an IPv4 network such as 100.96.0.0/16")]
    Ipv6 {
        /// The network or subnet.
        net: IpNet,
    },
    /// Routers do not forward packets of these addresses (R71), unless the whole network is inside 240/4 or 169.254/16.
    #[error(
        "subnet {subnet} is in {range}, whose addresses are not carried; choose another network such as 100.96.0.0/16"
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
    /// The forwarder recognises its own packets inside the tunnel by the address and port that peers send to.
    #[error("{address} is not the address and port of one host; use those that the socket is bound to")]
    Underlay {
        /// The address and port.
        address: SocketAddr,
    },
}
