//! The values of leases: `{"PublicIP":"10.168.0.3","PublicIPv6":null}`.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use core::net::{Ipv4Addr, Ipv6Addr};

use super::json::{JsonError, Object};
use super::{BACKEND, is_our_backend, shown};

/// Who holds a lease of the udp mode.
///
/// ```
/// use loden::lease::flannel::LeaseValue;
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let value = LeaseValue::from_json(br#"{"publicip": "10.168.0.3", "BackendType": "UDP", "Later": [1]}"#)?;
/// assert_eq!(value.to_json(), r#"{"PublicIP":"10.168.0.3","PublicIPv6":null}"#);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LeaseValue {
    /// The underlay address of the owner, with the network's port the next hop.
    pub public_ip: Ipv4Addr,
    /// The same for IPv6, which the udp mode has no use for.
    pub public_ipv6: Option<Ipv6Addr>,
}

/// Why a value is no lease of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LeaseValueError {
    /// A lease of another kind of overlay.
    #[error("the lease is of backend type {kind:?}, not udp")]
    Backend {
        /// The kind, the beginning of it if it is long.
        kind: String,
        /// Who holds it, if that can be read: a host that changes over to udp keeps its subnet.
        public_ip: Option<Ipv4Addr>,
    },
    /// Not JSON, or not with these fields.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// Nobody to send packets to.
    #[error("there is no PublicIP")]
    NoPublicIp,
}

/// What a `PublicIP` should be.
const ADDRESS: &str = "an IPv4 address";

impl LeaseValue {
    /// A lease held by the host at this address.
    #[must_use]
    pub fn new(public_ip: Ipv4Addr) -> Self {
        Self { public_ip, public_ipv6: None }
    }

    /// Reads a value. Without `BackendType`, with an empty one or with `udp` in any case it is ours.
    ///
    /// # Errors
    /// What is wrong with it; [`LeaseValueError::Backend`] where nothing is, but it is not ours.
    pub fn from_json(text: &[u8]) -> Result<Self, LeaseValueError> {
        let object = Object::parse(text, "a lease")?;
        let kind = object.text("BackendType")?;
        if !is_our_backend(kind) {
            let public_ip = object.parsed("PublicIP", ADDRESS).unwrap_or_default();
            return Err(LeaseValueError::Backend { kind: shown(kind.unwrap_or(BACKEND)), public_ip });
        }
        let public_ip = object.parsed("PublicIP", ADDRESS)?.ok_or(LeaseValueError::NoPublicIp)?;
        Ok(Self { public_ip, public_ipv6: object.parsed("PublicIPv6", "an IPv6 address")? })
    }

    /// Whose a value is, of whatever backend: a host that changes over to udp keeps its subnet. `None` if it does not say so.
    #[must_use]
    pub fn holder(text: &[u8]) -> Option<Ipv4Addr> {
        match Self::from_json(text) {
            Ok(Self { public_ip, .. }) => Some(public_ip),
            Err(LeaseValueError::Backend { public_ip, .. }) => public_ip,
            Err(LeaseValueError::Json(_) | LeaseValueError::NoPublicIp) => None,
        }
    }

    /// Writes a value, byte for byte as flannel does in the udp mode.
    #[must_use]
    pub fn to_json(&self) -> String {
        let ipv6 = self.public_ipv6.map_or("null".to_owned(), |address| format!("\"{address}\""));
        format!(r#"{{"PublicIP":"{}","PublicIPv6":{ipv6}}}"#, self.public_ip)
    }
}
