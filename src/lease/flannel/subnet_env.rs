//! `subnet.env`: the settings for the container runtime and for a later run.

use alloc::format;
use alloc::string::String;
use core::net::{Ipv4Addr, Ipv6Addr};
use core::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::shown;

/// The contents of `subnet.env`.
///
/// ```
/// use loden::lease::flannel::SubnetEnv;
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let text = "FLANNEL_NETWORK=100.96.0.0/16\nFLANNEL_SUBNET=100.96.1.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n";
/// let env: SubnetEnv = text.parse()?;
/// assert_eq!(env.subnet(), "100.96.1.0/24".parse()?);
/// assert_eq!(env.to_string(), text);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SubnetEnv {
    network: Ipv4Net,
    subnet: Ipv4Net,
    ipv6: Option<(Ipv6Net, Ipv6Net)>,
    mtu: u16,
    ip_masq: bool,
}

/// A line of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Field {
    /// `FLANNEL_IPMASQ`.
    IpMasq,
    /// `FLANNEL_IPV6_NETWORK`.
    Ipv6Network,
    /// `FLANNEL_IPV6_SUBNET`.
    Ipv6Subnet,
    /// `FLANNEL_MTU`.
    Mtu,
    /// `FLANNEL_NETWORK`.
    Network,
    /// `FLANNEL_SUBNET`.
    Subnet,
}

/// The reason why a text is not a `subnet.env`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubnetEnvError {
    /// A line is missing.
    #[error("there is no {}", .field.name())]
    Missing {
        /// The line.
        field: Field,
    },
    /// The subnet is outside the network.
    #[error("subnet {subnet} is not inside the network {network}")]
    Outside {
        /// The subnet.
        subnet: IpNet,
        /// The network.
        network: IpNet,
    },
    /// The subnet has no second usable address.
    #[error("subnet {subnet} has no address for the bridge; a prefix of at most /{} is needed", subnet.max_prefix_len() - 2)]
    TooSmall {
        /// The subnet.
        subnet: IpNet,
    },
    /// A line has an invalid value.
    #[error("{} is {value:?}, not {}", .field.name(), .field.wanted())]
    Unreadable {
        /// The line.
        field: Field,
        /// The value, shortened if it is long.
        value: String,
    },
}

impl SubnetEnv {
    /// Creates the contents for a subnet of an overlay network. Host bits are ignored.
    ///
    /// `mtu` is the TUN device's, in bytes. `ip_masq` is true if the host masquerades packets that leave the overlay.
    ///
    /// # Errors
    /// [`SubnetEnvError::Outside`] and [`SubnetEnvError::TooSmall`].
    pub fn new(network: Ipv4Net, subnet: Ipv4Net, mtu: u16, ip_masq: bool) -> Result<Self, SubnetEnvError> {
        let (network, subnet) = (network.trunc(), subnet.trunc());
        if subnet.prefix_len() > 30 {
            return Err(SubnetEnvError::TooSmall { subnet: subnet.into() });
        }
        if !network.contains(&subnet) {
            return Err(SubnetEnvError::Outside { subnet: subnet.into(), network: network.into() });
        }
        Ok(Self { network, subnet, ipv6: None, mtu, ip_masq })
    }

    /// Adds the overlay network and subnet of IPv6. Host bits are ignored. The file has the subnet's first usable
    /// address.
    ///
    /// # Errors
    /// [`SubnetEnvError::Outside`] and [`SubnetEnvError::TooSmall`].
    pub fn with_ipv6(self, network: Ipv6Net, subnet: Ipv6Net) -> Result<Self, SubnetEnvError> {
        let (network, subnet) = (network.trunc(), subnet.trunc());
        if subnet.prefix_len() > 126 {
            return Err(SubnetEnvError::TooSmall { subnet: subnet.into() });
        }
        if !network.contains(&subnet) {
            return Err(SubnetEnvError::Outside { subnet: subnet.into(), network: network.into() });
        }
        let bridge = Ipv6Addr::from_bits(subnet.network().to_bits() | 1);
        let shown = Ipv6Net::new(bridge, subnet.prefix_len()).unwrap_or(subnet);
        Ok(Self { ipv6: Some((network, shown)), ..self })
    }

    /// Returns the subnet in the text of a file, host bits cleared, for the next allocation. Like flannel, it needs only
    /// `FLANNEL_SUBNET` and ignores the other lines. `None` if the text has no such line.
    ///
    /// ```
    /// use loden::lease::flannel::SubnetEnv;
    /// let text = "# of this host\nFLANNEL_SUBNET=100.96.1.1/24 # kept\n";
    /// assert_eq!(SubnetEnv::subnet_in(text), Ok("100.96.1.0/24".parse().ok()));
    /// assert_eq!(SubnetEnv::subnet_in(""), Ok(None));
    /// ```
    ///
    /// # Errors
    /// [`SubnetEnvError::Unreadable`].
    pub fn subnet_in(text: &str) -> Result<Option<Ipv4Net>, SubnetEnvError> {
        Ok(optional::<Ipv4Net>(text, Field::Subnet)?.map(|subnet| subnet.trunc()))
    }

    /// Returns the IPv6 subnet in the text of a file, host bits cleared, for the next allocation: see
    /// [`subnet_in`](Self::subnet_in). `None` if the text has no `FLANNEL_IPV6_SUBNET`.
    ///
    /// # Errors
    /// [`SubnetEnvError::Unreadable`].
    pub fn ipv6_subnet_in(text: &str) -> Result<Option<Ipv6Net>, SubnetEnvError> {
        Ok(optional::<Ipv6Net>(text, Field::Ipv6Subnet)?.map(|subnet| subnet.trunc()))
    }

    /// Returns the overlay network.
    #[must_use]
    pub fn network(&self) -> Ipv4Net {
        self.network
    }

    /// Returns the host's subnet, host bits cleared, for the next allocation.
    #[must_use]
    pub fn subnet(&self) -> Ipv4Net {
        self.subnet
    }

    /// Returns the bridge's address: the first usable address of the subnet, which the file contains.
    #[must_use]
    pub fn bridge(&self) -> Ipv4Addr {
        // A prefix of at most /30 cannot begin at the highest address.
        Ipv4Addr::from_bits(self.subnet.network().to_bits() | 1)
    }

    /// Returns the overlay network and subnet of a dual-stack network, if the file has them. The subnet has the host
    /// bits that the file has: the bridge's address.
    #[must_use]
    pub fn ipv6(&self) -> Option<(Ipv6Net, Ipv6Net)> {
        self.ipv6
    }

    /// Returns the TUN device's MTU in bytes.
    #[must_use]
    pub fn mtu(&self) -> u16 {
        self.mtu
    }

    /// Returns true if the host masquerades packets that leave the overlay.
    #[must_use]
    pub fn ip_masq(&self) -> bool {
        self.ip_masq
    }
}

/// Parses lines as a shell would source them. Comments, quotes and unknown names are allowed, and of repeated names the
/// last one counts.
impl FromStr for SubnetEnv {
    type Err = SubnetEnvError;

    fn from_str(text: &str) -> Result<Self, SubnetEnvError> {
        let network = required(text, Field::Network)?;
        let subnet = required(text, Field::Subnet)?;
        let env = Self::new(network, subnet, required(text, Field::Mtu)?, required(text, Field::IpMasq)?)?;
        let ipv6_network = optional::<Ipv6Net>(text, Field::Ipv6Network)?;
        let ipv6_subnet = optional::<Ipv6Net>(text, Field::Ipv6Subnet)?;
        let ipv6 = match (ipv6_network, ipv6_subnet) {
            (Some(network), Some(subnet)) => Some((network, subnet)),
            (None, None) => None,
            (None, Some(_)) => return Err(SubnetEnvError::Missing { field: Field::Ipv6Network }),
            (Some(_), None) => return Err(SubnetEnvError::Missing { field: Field::Ipv6Subnet }),
        };
        Ok(Self { ipv6, ..env })
    }
}

/// Formats the file as flannel writes it.
impl core::fmt::Display for SubnetEnv {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let mut line = |field: Field, value: &dyn core::fmt::Display| writeln!(f, "{}={value}", field.name());
        line(Field::Network, &self.network)?;
        line(Field::Subnet, &format!("{}/{}", self.bridge(), self.subnet.prefix_len()))?;
        if let Some((network, subnet)) = self.ipv6 {
            line(Field::Ipv6Network, &network)?;
            line(Field::Ipv6Subnet, &subnet)?;
        }
        line(Field::Mtu, &self.mtu)?;
        line(Field::IpMasq, &self.ip_masq)
    }
}

impl Field {
    /// Returns the name of the field in the file.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::IpMasq => "FLANNEL_IPMASQ",
            Self::Ipv6Network => "FLANNEL_IPV6_NETWORK",
            Self::Ipv6Subnet => "FLANNEL_IPV6_SUBNET",
            Self::Mtu => "FLANNEL_MTU",
            Self::Network => "FLANNEL_NETWORK",
            Self::Subnet => "FLANNEL_SUBNET",
        }
    }

    fn wanted(self) -> &'static str {
        match self {
            Self::IpMasq => "true or false",
            Self::Ipv6Network | Self::Ipv6Subnet => "an address and prefix length like fd00:1::1/64",
            Self::Mtu => "a number of bytes within 0 to 65535",
            Self::Network | Self::Subnet => "an address and prefix length like 100.96.1.1/24",
        }
    }
}

fn required<T: FromStr>(text: &str, field: Field) -> Result<T, SubnetEnvError> {
    optional(text, field)?.ok_or(SubnetEnvError::Missing { field })
}

fn optional<T: FromStr>(text: &str, field: Field) -> Result<Option<T>, SubnetEnvError> {
    let mut values = text.lines().filter_map(|line| {
        let (name, value) = line.split_once('=')?;
        let name = name.trim();
        (name.strip_prefix("export ").unwrap_or(name).trim_start() == field.name()).then(|| unquoted(value.trim()))
    });
    let Some(value) = values.next_back() else { return Ok(None) };
    match value.parse() {
        Ok(parsed) => Ok(Some(parsed)),
        Err(_) => Err(SubnetEnvError::Unreadable { field, value: shown(value) }),
    }
}

/// Removes the quotes around a value, and a comment after it. A comment follows white space.
fn unquoted(value: &str) -> &str {
    for quote in ['"', '\''] {
        if let Some((within, after)) = value.strip_prefix(quote).and_then(|value| value.split_once(quote))
            && without_comment(after).is_empty()
        {
            return within;
        }
    }
    without_comment(value)
}

fn without_comment(text: &str) -> &str {
    let is_start = |&(at, _): &(usize, &str)| {
        text.get(..at).is_none_or(|before| before.is_empty() || before.ends_with(char::is_whitespace))
    };
    let end = text.match_indices('#').find(is_start).map_or(text.len(), |(at, _)| at);
    text.get(..end).unwrap_or(text).trim_end()
}
