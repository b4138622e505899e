//! flannel's formats, read as flannel reads them and written as it writes them.
//!
//! ```text
//!  <prefix>/config                                     NetworkConfig
//!  <prefix>/subnets/100.96.1.0-24                      LeaseKey
//!  <prefix>/subnets/100.96.1.0-24&fd00:1::-64          LeaseKey, dual stack
//!      {"PublicIP":"10.168.0.3","PublicIPv6":null}     LeaseValue
//!  /run/flannel/subnet.env                             SubnetEnv
//! ```
//!
//! JSON is read as Go's `encoding/json` does: names without regard to case, unknown ones ignored, of repeated ones the last.
//! [`LeaseReader`] makes events for a [`Reconciler`](super::Reconciler) of keys and values: what cannot be read is set aside
//! alone.

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

/// The prefix of flannel's keys in etcd, unless it is set otherwise.
pub const DEFAULT_PREFIX: &str = "/coreos.com/network";

/// The port of every host's socket, unless the network's `Backend` names another.
pub const DEFAULT_PORT: u16 = 8285;

/// What flannel calls this kind of overlay: `Backend.Type`, and a lease's `BackendType`.
pub const BACKEND: &str = "udp";

/// Absent, empty or `udp` in any case.
fn is_our_backend(kind: Option<&str>) -> bool {
    kind.is_none_or(|kind| kind.is_empty() || kind.eq_ignore_ascii_case(BACKEND))
}

/// As much of a text of others as errors repeat: who may write keys could else fill logs.
fn shown(text: &str) -> String {
    text.chars().take(64).collect()
}
