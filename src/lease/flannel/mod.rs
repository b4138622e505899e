//! flannel's formats, parsed and written as flannel does.
//!
//! ```text
//!  <prefix>/config                                     NetworkConfig
//!  <prefix>/subnets/100.96.1.0-24                      LeaseKey
//!  <prefix>/subnets/100.96.1.0-24&fd00:1::-64          LeaseKey, dual stack
//!      {"PublicIP":"10.168.0.3","PublicIPv6":null}     LeaseValue
//!  /run/flannel/subnet.env                             SubnetEnv
//! ```
//!
//! JSON is parsed as Go's `encoding/json` does: names are case-insensitive, unknown fields are ignored, and of repeated
//! fields the last one counts. [`LeaseReader`] turns keys and values into events for a
//! [`Reconciler`](super::Reconciler). It skips unreadable entries and reports each of them.

mod config;
#[cfg(feature = "std")]
mod file;
mod json;
mod key;
mod reader;
mod subnet_env;
mod value;

use alloc::string::String;

pub use config::{ConfigError, NetworkConfig};
#[cfg(feature = "std")]
pub use file::{FileError, FileStep, write_subnet_env};
pub use json::JsonError;
pub use key::{LeaseKey, LeaseKeyError};
pub use reader::{LeaseReader, ParsedUpdate, SkippedKey, SkippedKeyCounts};
pub use subnet_env::{Field, SubnetEnv, SubnetEnvError};
pub use value::{LeaseValue, LeaseValueError};

/// The default prefix of flannel's keys in etcd.
pub const DEFAULT_PREFIX: &str = "/coreos.com/network";

/// The default port of every host, if the network's `Backend` has none.
pub const DEFAULT_PORT: u16 = 8285;

/// flannel's name of this backend: `Backend.Type`, and a lease's `BackendType`.
pub const BACKEND: &str = "udp";

/// Returns true for an absent or empty backend type and for `udp` in any case.
fn is_our_backend(kind: Option<&str>) -> bool {
    kind.is_none_or(|kind| kind.is_empty() || kind.eq_ignore_ascii_case(BACKEND))
}

/// Shortens a foreign text for an error. Whoever writes keys could fill logs otherwise.
fn shown(text: &str) -> String {
    text.chars().take(64).collect()
}
