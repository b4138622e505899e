//! The network config: the JSON at `<prefix>/config`.

use alloc::format;
use alloc::string::String;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

use super::json::{JsonError, Object};
use super::{BACKEND, DEFAULT_PORT, is_our_backend, shown};
use crate::lease::range::{RangeError, SubnetRange};

/// The config that all hosts of a network share. It is checked, and its defaults are filled in.
///
/// ```
/// use loden::lease::flannel::NetworkConfig;
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let config = NetworkConfig::from_json(br#"{"Network": "100.96.0.0/16"}"#)?;
/// assert_eq!((config.range().subnet_len(), config.port()), (24, 8285));
/// assert_eq!(config.range().first(), std::net::IpAddr::from([100, 96, 1, 0]));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NetworkConfig {
    range: SubnetRange,
    ipv6: Option<SubnetRange>,
    port: u16,
}

/// The reason why a network config is invalid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The backend is not udp.
    #[error("the network's Backend.Type is {kind:?}; only udp is supported")]
    Backend {
        /// The backend type, shortened if it is long.
        kind: String,
    },
    /// A lease of the udp mode is found by its owner's IPv4 address, as flannel's udp mode does it.
    #[error("EnableIPv4 is false; the udp mode needs IPv4, enable it and IPv6 beside it")]
    Ipv4Disabled,
    /// The IPv6 network, its subnet length, or an end of its range.
    #[error("IPv6 fields: {0}")]
    Ipv6Range(RangeError),
    /// The text is not JSON, or a field has the wrong type.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// There is no network.
    #[error("there is no {field}; set it to the overlay's network, for example {}", example(field))]
    NoNetwork {
        /// `Network` or `IPv6Network`.
        field: &'static str,
    },
    /// UDP has no port 0.
    #[error("Backend.Port is 0; the default is {DEFAULT_PORT}")]
    Port,
    /// The network, its subnet length, or an end of its range.
    #[error(transparent)]
    Range(#[from] RangeError),
}

/// The field names of one address family.
struct Names {
    network: &'static str,
    subnet_len: &'static str,
    min: &'static str,
    max: &'static str,
}

const IPV4: Names = Names { network: "Network", subnet_len: "SubnetLen", min: "SubnetMin", max: "SubnetMax" };
const IPV6: Names =
    Names { network: "IPv6Network", subnet_len: "IPv6SubnetLen", min: "IPv6SubnetMin", max: "IPv6SubnetMax" };

impl NetworkConfig {
    /// Creates a config of the udp mode without IPv6, see [`with_ipv6`](Self::with_ipv6). `port` is the port of every host, 1..=65535.
    ///
    /// # Errors
    /// [`ConfigError::Port`] if it is 0, [`ConfigError::Ipv4Disabled`] if the range is an IPv6 range.
    pub fn new(range: SubnetRange, port: u16) -> Result<Self, ConfigError> {
        match port {
            0 => Err(ConfigError::Port),
            _ if range.first().is_ipv6() => Err(ConfigError::Ipv4Disabled),
            _ => Ok(Self { range, ipv6: None, port }),
        }
    }

    /// Adds the range of IPv6 subnets, so that the network is dual-stack.
    ///
    /// # Errors
    /// [`ConfigError::NoNetwork`] if the range is an IPv4 range.
    pub fn with_ipv6(self, range: SubnetRange) -> Result<Self, ConfigError> {
        if range.first().is_ipv4() {
            return Err(ConfigError::NoNetwork { field: IPV6.network });
        }
        Ok(Self { ipv6: Some(range), ..self })
    }

    /// Parses a config. Null, 0 and 0.0.0.0 select the default of a field, as in flannel.
    ///
    /// # Errors
    /// The first invalid field.
    pub fn from_json(text: &[u8]) -> Result<Self, ConfigError> {
        let object = Object::parse(text, "the network config")?;
        let port = backend_port(&object)?;
        if !object.bool("EnableIPv4")?.unwrap_or(true) {
            return Err(ConfigError::Ipv4Disabled);
        }
        let network = object.parsed::<Ipv4Net>(IPV4.network, "an IPv4 network")?;
        let network = network.ok_or(ConfigError::NoNetwork { field: IPV4.network })?;
        let (subnet_len, min, max) = fields::<Ipv4Addr>(&object, &IPV4, "an IPv4 address")?;
        let config = Self::new(SubnetRange::new(network, subnet_len, min, max)?, port)?;
        if !object.bool("EnableIPv6")?.unwrap_or(false) {
            return Ok(config);
        }
        let network = object.parsed::<Ipv6Net>(IPV6.network, "an IPv6 network")?;
        let network = network.ok_or(ConfigError::NoNetwork { field: IPV6.network })?;
        let (subnet_len, min, max) = fields::<Ipv6Addr>(&object, &IPV6, "an IPv6 address")?;
        let ipv6 = SubnetRange::new(network, subnet_len, min, max).map_err(ConfigError::Ipv6Range)?;
        Ok(Self { ipv6: Some(ipv6), ..config })
    }

    /// Formats a config with explicit values for all fields.
    #[must_use]
    pub fn to_json(&self) -> String {
        let ipv4 = range_json(&self.range, &IPV4);
        let ipv6 = self.ipv6.map(|range| format!(r#""EnableIPv6":true,{},"#, range_json(&range, &IPV6)));
        let port = self.port;
        format!(r#"{{{ipv4},{}"Backend":{{"Type":"{BACKEND}","Port":{port}}}}}"#, ipv6.unwrap_or_default())
    }

    /// Returns the overlay network with the range of subnets that may be leased.
    #[must_use]
    pub fn range(&self) -> &SubnetRange {
        &self.range
    }

    /// Returns the IPv6 range if IPv6 is enabled. The hosts' keys contain such a subnet then.
    #[must_use]
    pub fn ipv6(&self) -> Option<&SubnetRange> {
        self.ipv6.as_ref()
    }

    /// Returns the UDP port of every host, never 0.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }
}

/// Returns a network for an error.
fn example(field: &str) -> &'static str {
    if field == IPV6.network { "fd00:96::/48" } else { "100.96.0.0/16" }
}

fn backend_port(object: &Object) -> Result<u16, ConfigError> {
    let Some(backend) = object.object("Backend")? else { return Ok(DEFAULT_PORT) };
    let kind = backend.text("Type")?;
    if !is_our_backend(kind) {
        return Err(ConfigError::Backend { kind: shown(kind.unwrap_or(BACKEND)) });
    }
    Ok(backend.number("Port", "a UDP port within 1 to 65535")?.unwrap_or(DEFAULT_PORT))
}

type Fields = (Option<u8>, Option<IpAddr>, Option<IpAddr>);

fn fields<A>(object: &Object, names: &Names, wanted: &'static str) -> Result<Fields, JsonError>
where
    A: core::str::FromStr + Into<IpAddr>,
{
    let end = |field| {
        let address = object.parsed::<A>(field, wanted)?.map(Into::into);
        Ok(address.filter(|address: &IpAddr| !address.is_unspecified()))
    };
    let subnet_len = object.number(names.subnet_len, "a prefix length in bits")?.filter(|len| *len != 0);
    Ok((subnet_len, end(names.min)?, end(names.max)?))
}

fn range_json(range: &SubnetRange, names: &Names) -> String {
    let Names { network, subnet_len, min, max } = names;
    format!(
        r#""{network}":"{}","{subnet_len}":{},"{min}":"{}","{max}":"{}""#,
        range.network(),
        range.subnet_len(),
        range.first(),
        range.last()
    )
}
