//! Keys and values of etcd in, events out; what cannot be read is set aside alone.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::net::{Ipv4Addr, SocketAddr};

use super::key::{LeaseKey, LeaseKeyError};
use super::shown;
use super::value::{LeaseValue, LeaseValueError};
use crate::lease::{Held, Lease, LeaseEvent};

/// Reads the leases of one network. Next hops have the network's port.
#[derive(Clone, Debug)]
pub struct LeaseReader {
    /// What keys of leases begin with, with the slash at the end.
    subnets: String,
    port: u16,
    skipped: SkippedKeyCounts,
}

/// What a message of etcd's says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct ParsedUpdate {
    /// For the [`Reconciler`](crate::lease::Reconciler).
    pub event: Option<LeaseEvent<LeaseKey>>,
    /// What is no lease of ours.
    pub skipped: Vec<SkippedKey>,
}

/// A key that is not taken, and why. The others are.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SkippedKey {
    /// A lease of another kind of overlay, or a value that cannot be read.
    #[error("lease {key} is skipped: {reason}")]
    Value {
        /// The key.
        key: LeaseKey,
        /// What is wrong with its value.
        reason: LeaseValueError,
    },
    /// A key that cannot be read.
    #[error("key {key:?} is skipped: {reason}")]
    Key {
        /// The key as it is in etcd, the beginning of it if it is long.
        key: String,
        /// What is wrong with it.
        reason: LeaseKeyError,
    },
    /// A key of something else.
    #[error("key {key:?} is skipped: it is not below {subnets}")]
    Elsewhere {
        /// The key as it is in etcd, the beginning of it if it is long.
        key: String,
        /// What keys of leases begin with.
        subnets: String,
    },
}

/// How many keys were set aside, each time they were read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SkippedKeyCounts {
    /// Keys of something else.
    pub elsewhere: u64,
    /// Leases of other kinds of overlay.
    pub other_backends: u64,
    /// Keys that cannot be read.
    pub unreadable_keys: u64,
    /// Values that cannot be read.
    pub unreadable_values: u64,
}

impl LeaseReader {
    /// A reader of the leases below `<prefix>/subnets/` whose hosts all have this port.
    #[must_use]
    pub fn new(prefix: &str, port: u16) -> Self {
        let subnets = format!("{}/subnets/", prefix.trim_end_matches('/'));
        Self { subnets, port, skipped: SkippedKeyCounts::default() }
    }

    /// What keys of leases begin with: the prefix to list and to watch.
    #[must_use]
    pub fn subnets(&self) -> &str {
        &self.subnets
    }

    /// The full key of a lease.
    #[must_use]
    pub fn full_key(&self, key: &LeaseKey) -> String {
        format!("{}{key}", self.subnets)
    }

    /// Which subnet a key holds and for which host, whatever it is worth as a lease: for [`allocation_order`](crate::lease::allocation_order),
    /// which must know of all that is taken.
    ///
    /// A lease of another backend holds its subnet too, and so does a value that cannot be read; its host is 0.0.0.0, which is
    /// nobody's. A key in another spelling than flannel's holds its subnet for nobody too, since flannel reads some of them; the key
    /// returned has flannel's spelling. `None` if the key is no lease's. `created` is the key's create revision.
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

    /// All that a listing returned, which is a snapshot of it.
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

    /// A key that was put. If its value is no lease of ours, then there is none by this key: what it said before is no more.
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

    /// A key that was deleted, or whose time was over.
    pub fn deleted(&mut self, key: &[u8]) -> ParsedUpdate {
        match self.key(key) {
            Ok(key) => ParsedUpdate { event: Some(LeaseEvent::Removed { key }), skipped: Vec::new() },
            Err(skipped_key) => ParsedUpdate { event: None, skipped: Vec::from([skipped_key]) },
        }
    }

    /// How many keys were set aside so far.
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
