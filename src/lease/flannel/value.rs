//! The values of leases: `{"PublicIP":"10.168.0.3","PublicIPv6":null}`.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use core::net::{Ipv4Addr, Ipv6Addr};

use super::json::{JsonError, Object};
use super::{BACKEND, is_our_backend, shown};

/// The value of a lease of the udp mode.
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
    /// The underlay address of the owner. With the network's port it is the next hop.
    pub public_ip: Ipv4Addr,
    /// The owner's IPv6 address. flannel's udp mode neither writes nor uses it. Here it is the next hop of the IPv6
    /// subnet, between hosts that both have one.
    pub public_ipv6: Option<Ipv6Addr>,
}

/// The reason why a value is not a lease of the udp mode.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LeaseValueError {
    /// A lease of another backend.
    #[error("the lease is of backend type {kind:?}, not udp")]
    Backend {
        /// The backend type, shortened if it is long.
        kind: String,
        /// The owner, if it can be read: a host that changes to udp keeps its subnet.
        public_ip: Option<Ipv4Addr>,
    },
    /// The text is not JSON, or a field has the wrong type.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// The value has no owner.
    #[error("there is no PublicIP")]
    NoPublicIp,
}

/// The expected type of `PublicIP`.
const ADDRESS: &str = "an IPv4 address";

impl LeaseValue {
    /// Creates the value of a lease of the host at this address.
    #[must_use]
    pub fn new(public_ip: Ipv4Addr) -> Self {
        Self { public_ip, public_ipv6: None }
    }

    /// Parses a value. Its `BackendType` must be absent, empty, or `udp` in any case.
    ///
    /// # Errors
    /// The first invalid field, or [`LeaseValueError::Backend`] for a valid lease of another backend.
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

    /// Returns the owner of a value of any backend, if it has one. A host that changes to udp keeps its subnet.
    #[must_use]
    pub fn holder(text: &[u8]) -> Option<Ipv4Addr> {
        match Self::from_json(text) {
            Ok(Self { public_ip, .. }) => Some(public_ip),
            Err(LeaseValueError::Backend { public_ip, .. }) => public_ip,
            Err(LeaseValueError::Json(_) | LeaseValueError::NoPublicIp) => None,
        }
    }

    /// Formats a value byte for byte as flannel does in the udp mode.
    #[must_use]
    pub fn to_json(&self) -> String {
        let ipv6 = self.public_ipv6.map_or("null".to_owned(), |address| format!("\"{address}\""));
        format!(r#"{{"PublicIP":"{}","PublicIPv6":{ipv6}}}"#, self.public_ip)
    }
}
