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
///
/// A dual-stack key is a lease of two subnets. The reader returns those of IPv4, and those of IPv6 on request.
///
/// ```
/// use loden::lease::flannel::LeaseReader;
/// use loden::lease::{Lease, LeaseEvent};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mut reader = LeaseReader::new("/coreos.com/network", 8285).with_ipv6_subnets();
/// let key = b"/coreos.com/network/subnets/10.5.34.0-24&fd97:0:0:59::-64";
/// let update = reader.put(key, br#"{"PublicIP":"10.168.0.3","PublicIPv6":null}"#);
/// let Some(LeaseEvent::Added { lease, .. }) = update.event_v6 else { panic!("a lease of an IPv6 subnet") };
/// assert_eq!(lease, Lease::new("fd97:0:0:59::/64".parse::<ipnet::Ipv6Net>()?, ([10, 168, 0, 3], 8285)));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct LeaseReader {
    /// The prefix of lease keys, with the slash at the end.
    subnets: String,
    port: u16,
    ipv6: Ipv6,
    skipped: SkippedKeyCounts,
}

/// The treatment of the IPv6 subnets in keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ipv6 {
    Ignored,
    /// Their next hops are the hosts' IPv4 addresses.
    OverIpv4,
    /// Their next hops are the hosts' IPv6 addresses, or the IPv4 addresses of hosts that have no other.
    Preferred,
}

/// The result of one update from etcd.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct ParsedUpdate {
    /// The event for the [`Reconciler`](crate::lease::Reconciler).
    pub event: Option<LeaseEvent<LeaseKey>>,
    /// The same for the IPv6 subnets of dual-stack keys, see [`LeaseReader::with_ipv6_subnets`]. It has the same key,
    /// so it is an event of another source: use a [`SourceId`](crate::lease::SourceId) of its own for it.
    pub event_v6: Option<LeaseEvent<LeaseKey>>,
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
        Self { subnets, port, ipv6: Ipv6::Ignored, skipped: SkippedKeyCounts::default() }
    }

    /// Reads the IPv6 subnets of dual-stack keys too: [`ParsedUpdate::event_v6`]. Their next hops are the hosts' IPv4
    /// addresses (`PublicIP`).
    #[must_use]
    pub fn with_ipv6_subnets(self) -> Self {
        Self { ipv6: Ipv6::OverIpv4, ..self }
    }

    /// Reads the IPv6 subnets of dual-stack keys too. Their next hops are the hosts' IPv6 addresses (`PublicIPv6`). A
    /// host without one is reached by its IPv4 address.
    ///
    /// It is for hosts that have written an IPv6 address into their own lease. Two hosts then choose the same family
    /// for both directions, so that each knows the other as the sender.
    #[must_use]
    pub fn with_ipv6_underlay(self) -> Self {
        Self { ipv6: Ipv6::Preferred, ..self }
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
        let (mut leases, mut leases_v6) = (Vec::new(), Vec::new());
        for (key, value) in entries {
            match self.lease(key, value) {
                Ok((key, lease, lease_v6)) => {
                    leases.push((key, lease));
                    leases_v6.extend(lease_v6.map(|lease| (key, lease)));
                }
                Err(key) => skipped.push(key),
            }
        }
        let event_v6 = (self.ipv6 != Ipv6::Ignored).then_some(LeaseEvent::Snapshot(leases_v6));
        ParsedUpdate { event: Some(LeaseEvent::Snapshot(leases)), event_v6, skipped }
    }

    /// Parses a written key. If its value is not a lease of the udp mode, the previous lease of the key is removed.
    pub fn put(&mut self, key: &[u8], value: &[u8]) -> ParsedUpdate {
        match self.lease(key, value) {
            Ok((key, lease, lease_v6)) => ParsedUpdate {
                event: Some(LeaseEvent::Added { key, lease }),
                event_v6: lease_v6.map(|lease| LeaseEvent::Added { key, lease }),
                skipped: Vec::new(),
            },
            Err(skipped_key) => {
                let removed = match &skipped_key {
                    SkippedKey::Value { key, .. } => self.removed(*key),
                    SkippedKey::Elsewhere { .. } | SkippedKey::Key { .. } => ParsedUpdate::default(),
                };
                ParsedUpdate { skipped: Vec::from([skipped_key]), ..removed }
            }
        }
    }

    /// Parses the deletion or expiry of a key.
    pub fn deleted(&mut self, key: &[u8]) -> ParsedUpdate {
        match self.key(key) {
            Ok(key) => self.removed(key),
            Err(skipped_key) => ParsedUpdate { skipped: Vec::from([skipped_key]), ..ParsedUpdate::default() },
        }
    }

    /// Returns the number of skipped keys so far.
    #[must_use]
    pub fn skipped(&self) -> SkippedKeyCounts {
        self.skipped
    }

    fn removed(&self, key: LeaseKey) -> ParsedUpdate {
        let has_ipv6 = self.ipv6 != Ipv6::Ignored && key.ipv6.is_some();
        ParsedUpdate {
            event: Some(LeaseEvent::Removed { key }),
            event_v6: has_ipv6.then_some(LeaseEvent::Removed { key }),
            skipped: Vec::new(),
        }
    }

    /// Returns a key with the leases of its subnets.
    fn lease(&mut self, key: &[u8], value: &[u8]) -> Result<(LeaseKey, Lease, Option<Lease>), SkippedKey> {
        let key = self.key(key)?;
        match LeaseValue::from_json(value) {
            Ok(value) => {
                let next_hop = SocketAddr::new(value.public_ip.into(), self.port);
                let public_ipv6 = value.public_ipv6.filter(|_| self.ipv6 == Ipv6::Preferred);
                let next_hop_v6 = public_ipv6.map_or(next_hop, |address| SocketAddr::new(address.into(), self.port));
                let subnet_v6 = key.ipv6.filter(|_| self.ipv6 != Ipv6::Ignored);
                Ok((key, Lease::new(key.ipv4, next_hop), subnet_v6.map(|subnet| Lease::new(subnet, next_hop_v6))))
            }
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
