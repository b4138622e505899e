//! The reader of etcd keys and values, which turns them into lease events and skips unreadable entries.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::net::{Ipv4Addr, SocketAddr};

use super::key::{LeaseKey, LeaseKeyError};
use super::shown;
use super::value::{LeaseValue, LeaseValueError};
use crate::lease::{Held, Lease, LeaseEvent};

/// The reader of one network's leases. Next hops have the network's port.
#[derive(Clone, Debug)]
pub struct LeaseReader {
    /// The prefix of lease keys, with the slash at the end.
    subnets: String,
    port: u16,
    skipped: SkippedKeyCounts,
}

/// The result of one update from etcd.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct ParsedUpdate {
    /// The event for the [`Reconciler`](crate::lease::Reconciler).
    pub event: Option<LeaseEvent<LeaseKey>>,
    /// The keys without a lease of the udp mode.
    pub skipped: Vec<SkippedKey>,
}

/// A skipped key, and the reason. Other keys of the update are read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SkippedKey {
    /// A lease of another backend, or an unreadable value.
    #[error("lease {key} is skipped: {reason}")]
    Value {
        /// The key.
        key: LeaseKey,
        /// The reason.
        reason: LeaseValueError,
    },
    /// An unreadable key.
    #[error("key {key:?} is skipped: {reason}")]
    Key {
        /// The key in etcd, shortened if it is long.
        key: String,
        /// The reason.
        reason: LeaseKeyError,
    },
    /// A key outside the leases' prefix.
    #[error("key {key:?} is skipped: it does not begin with {subnets}")]
    Elsewhere {
        /// The key in etcd, shortened if it is long.
        key: String,
        /// The prefix of lease keys.
        subnets: String,
    },
}

/// The number of skipped keys, counted each time they are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SkippedKeyCounts {
    /// Keys outside the leases' prefix.
    pub elsewhere: u64,
    /// Leases of other backends.
    pub other_backends: u64,
    /// Unreadable keys.
    pub unreadable_keys: u64,
    /// Unreadable values.
    pub unreadable_values: u64,
}

impl LeaseReader {
    /// Creates a reader of the leases below `<prefix>/subnets/`, whose hosts all have this port.
    #[must_use]
    pub fn new(prefix: &str, port: u16) -> Self {
        let subnets = format!("{}/subnets/", prefix.trim_end_matches('/'));
        Self { subnets, port, skipped: SkippedKeyCounts::default() }
    }

    /// Returns the prefix of lease keys, to list and to watch.
    #[must_use]
    pub fn subnets(&self) -> &str {
        &self.subnets
    }

    /// Returns the full key of a lease.
    #[must_use]
    pub fn full_key(&self, key: &LeaseKey) -> String {
        format!("{}{key}", self.subnets)
    }

    /// Returns the subnet that a key holds and its host, for [`allocation_order`](crate::lease::allocation_order),
    /// which must know all leased subnets.
    ///
    /// A lease of another backend holds its subnet too. So does an unreadable value; its host is 0.0.0.0. A key with
    /// another spelling than flannel's also holds its subnet for 0.0.0.0, since flannel reads some of them; the
    /// returned key has flannel's spelling. Returns `None` if the key is not a lease's. `created` is the key's create
    /// revision.
    #[must_use]
    pub fn held(&self, key: &[u8], value: &[u8], created: u64) -> Option<(LeaseKey, Held)> {
        let key = core::str::from_utf8(key).ok()?.strip_prefix(&self.subnets)?;
        let (key, holder): (LeaseKey, _) = match key.parse() {
            Ok(key) => (key, LeaseValue::holder(value)),
            Err(LeaseKeyError::Spelling { spelling }) => (spelling.parse().ok()?, None),
            Err(LeaseKeyError::Ipv4 { .. } | LeaseKeyError::Ipv6 { .. }) => return None,
        };
        let host = holder.unwrap_or(Ipv4Addr::UNSPECIFIED);
        Some((key, Held { subnet: key.ipv4.into(), host: host.into(), created }))
    }

    /// Parses a complete listing, which becomes a snapshot.
    pub fn snapshot<'a>(&mut self, entries: impl IntoIterator<Item = (&'a [u8], &'a [u8])>) -> ParsedUpdate {
        let mut skipped = Vec::new();
        let mut leases = Vec::new();
        for (key, value) in entries {
            match self.lease(key, value) {
                Ok(lease) => leases.push(lease),
                Err(key) => skipped.push(key),
            }
        }
        ParsedUpdate { event: Some(LeaseEvent::Snapshot(leases)), skipped }
    }

    /// Parses a written key. If its value is not a lease of the udp mode, the previous lease of the key is removed.
    pub fn put(&mut self, key: &[u8], value: &[u8]) -> ParsedUpdate {
        match self.lease(key, value) {
            Ok((key, lease)) => ParsedUpdate { event: Some(LeaseEvent::Added { key, lease }), skipped: Vec::new() },
            Err(skipped_key) => {
                let event = match &skipped_key {
                    SkippedKey::Value { key, .. } => Some(LeaseEvent::Removed { key: *key }),
                    SkippedKey::Elsewhere { .. } | SkippedKey::Key { .. } => None,
                };
                ParsedUpdate { event, skipped: Vec::from([skipped_key]) }
            }
        }
    }

    /// Parses the deletion or expiry of a key.
    pub fn deleted(&mut self, key: &[u8]) -> ParsedUpdate {
        match self.key(key) {
            Ok(key) => ParsedUpdate { event: Some(LeaseEvent::Removed { key }), skipped: Vec::new() },
            Err(skipped_key) => ParsedUpdate { event: None, skipped: Vec::from([skipped_key]) },
        }
    }

    /// Returns the number of skipped keys so far.
    #[must_use]
    pub fn skipped(&self) -> SkippedKeyCounts {
        self.skipped
    }

    fn lease(&mut self, key: &[u8], value: &[u8]) -> Result<(LeaseKey, Lease), SkippedKey> {
        let key = self.key(key)?;
        match LeaseValue::from_json(value) {
            Ok(value) => Ok((key, Lease::new(key.ipv4, SocketAddr::new(value.public_ip.into(), self.port)))),
            Err(reason) => {
                match reason {
                    LeaseValueError::Backend { .. } => self.skipped.other_backends += 1,
                    LeaseValueError::Json(_) | LeaseValueError::NoPublicIp => self.skipped.unreadable_values += 1,
                }
                Err(SkippedKey::Value { key, reason })
            }
        }
    }

    fn key(&mut self, full: &[u8]) -> Result<LeaseKey, SkippedKey> {
        let text = String::from_utf8_lossy(full);
        let Some(key) = text.strip_prefix(&self.subnets) else {
            self.skipped.elsewhere += 1;
            return Err(SkippedKey::Elsewhere { key: shown(&text), subnets: self.subnets.clone() });
        };
        key.parse().map_err(|reason| {
            self.skipped.unreadable_keys += 1;
            SkippedKey::Key { key: shown(&text), reason }
        })
    }
}
