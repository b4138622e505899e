//! A subnet of our own: acquired in flannel's order, each step by a transaction, and renewed.

use std::hash::{BuildHasher, RandomState};
use std::net::Ipv4Addr;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use loden::lease::flannel::{LeaseKey, LeaseReader, LeaseValue};
use loden::lease::{AllocateError, Held, Step, SubnetRange, allocation_order};

use crate::etcd::EtcdError;
use crate::registry::{Entry, Grant, Registry, Remaining};

/// How often all leases are read anew because others were faster each time. A listing has up to a hundred candidates.
const ROUNDS: u32 = 10;

/// A lease of ours.
#[derive(Clone, Copy)]
pub(crate) struct Holding {
    pub(crate) key: LeaseKey,
    pub(crate) host: Ipv4Addr,
    /// Revision of the last write to the key that we know.
    pub(crate) revision: i64,
    /// `None`: it has no end. flannel calls that a reservation: an operator wrote the key so, and it stays so.
    pub(crate) grant: Option<Grant>,
}

impl Holding {
    pub(crate) fn lasts(&self) -> Duration {
        self.grant.map_or(Duration::MAX, |grant| grant.ttl)
    }
}

/// How a lease was come by.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum How {
    /// There was one for our address.
    TakenOver,
    /// It was free, and ours in an earlier run.
    AsBefore,
    /// It was free.
    New,
}

/// Why there is no lease.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AcquireError {
    #[error(transparent)]
    Allocate(#[from] AllocateError),
    #[error(transparent)]
    Etcd(#[from] EtcdError),
    #[error("other hosts were faster {ROUNDS} times; something acquires leases all the time")]
    Contended,
}

/// Mode of a renewal.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Renew {
    /// Extends the etcd lease in place, without a write to the key, unless key or etcd lease are not as they should be.
    Keep,
    /// Writes the same value again with a new etcd lease, as flannel does. Hosts that missed the key, or have our address, see it.
    Write,
}

/// What became of a lease that was to be renewed.
pub(crate) enum Renewal {
    /// It lasts its whole time again, or has no end.
    Renewed,
    /// It is not ours any more, for this reason.
    Lost(String),
}

/// Acquires a subnet for the host at `host`, `previous` before others.
pub(crate) async fn acquire(
    registry: &mut Registry,
    reader: &LeaseReader,
    range: &SubnetRange,
    host: Ipv4Addr,
    previous: Option<Ipv4Net>,
    ttl: Duration,
) -> Result<(Holding, How), AcquireError> {
    let grant = registry.grant(ttl).await?;
    let outcome = acquire_with(registry, reader, range, host, previous, grant).await;
    if !matches!(outcome, Ok((Holding { grant: Some(_), .. }, _))) {
        registry.revoke(grant).await;
    }
    outcome
}

async fn acquire_with(
    registry: &mut Registry,
    reader: &LeaseReader,
    range: &SubnetRange,
    host: Ipv4Addr,
    previous: Option<Ipv4Net>,
    grant: Grant,
) -> Result<(Holding, How), AcquireError> {
    let value = LeaseValue::new(host);
    for _ in 0..ROUNDS {
        let known = known(registry, reader).await?;
        let held: Vec<Held> = known.iter().map(|(_, held, _)| *held).collect();
        for step in allocation_order(range, &held, host.into(), previous.map(Into::into), random())? {
            let held = match step {
                Step::Create(IpNet::V4(subnet)) => {
                    let key = LeaseKey::from(subnet);
                    let Some(revision) = registry.create(&key, &value, grant).await? else { continue };
                    let own =
                        Held { subnet: subnet.into(), host: host.into(), created: revision.try_into().unwrap_or(0) };
                    // The transaction does not see subnets of other lengths, or with host bits, that were written after the listing.
                    if must_give_way(&own, &self::known(registry, reader).await?) {
                        registry.delete(&key, revision).await?;
                        break;
                    }
                    let how = if Some(subnet) == previous { How::AsBefore } else { How::New };
                    return Ok((Holding { key, host, revision, grant: Some(grant) }, how));
                }
                Step::Delete(subnet) | Step::TakeOver(subnet) => {
                    known.iter().find(|(_, held, _)| (held.subnet, held.host) == (subnet, host.into()))
                }
                // There are no IPv6 subnets in an IPv4 network.
                Step::Create(IpNet::V6(_)) | _ => continue,
            };
            let Some((key, _, entry)) = held else { continue };
            let grant = (entry.grant != 0).then_some(grant);
            if matches!(step, Step::Delete(_)) {
                registry.delete(key, entry.revision).await?;
            } else if let Some(revision) = registry.replace(key, &value, grant, entry.revision).await? {
                return Ok((Holding { key: *key, host, revision, grant }, How::TakenOver));
            } else {
                // It changed since: its owner may be another one by now.
                break;
            }
        }
    }
    Err(AcquireError::Contended)
}

/// Returns all keys that hold a subnet.
async fn known(registry: &mut Registry, reader: &LeaseReader) -> Result<Vec<(LeaseKey, Held, Entry)>, EtcdError> {
    let entries = registry.list().await?.entries.into_iter();
    Ok(entries.filter_map(|entry| entry.held(reader).map(|(key, held)| (key, held, entry))).collect())
}

/// Returns true if a lease of ours has to give way to an older one.
fn must_give_way(own: &Held, known: &[(LeaseKey, Held, Entry)]) -> bool {
    known.iter().any(|(_, held, _)| own.gives_way_to(held))
}

/// Makes a lease last its whole time again, from now on.
pub(crate) async fn renew(
    registry: &mut Registry,
    holding: &mut Holding,
    how: Renew,
    ttl: Duration,
) -> Result<Renewal, EtcdError> {
    loop {
        let Some(entry) = registry.entry(&holding.key).await? else {
            return Ok(Renewal::Lost("it was deleted from etcd, or ended".into()));
        };
        if let Some(host) = LeaseValue::holder(&entry.value).filter(|host| *host != holding.host) {
            return Ok(Renewal::Lost(format!("{host} holds it now")));
        }
        let value = LeaseValue::new(holding.host);
        let is_ours = LeaseValue::from_json(&entry.value) == Ok(value);
        let is_reserved = is_ours && entry.grant == 0;
        if is_ours && how == Renew::Keep {
            let kept = if is_reserved { None } else { registry.keep_alive(entry.grant).await? };
            let kept = kept.filter(|kept| kept.whole >= ttl);
            if is_reserved || kept.is_some() {
                holding.revision = entry.revision;
                holding.grant = kept.map(|Remaining { left, .. }| Grant { id: entry.grant, ttl: left });
                return Ok(Renewal::Renewed);
            }
        }
        let grant = if is_reserved { None } else { Some(registry.grant(ttl).await?) };
        if let Some(revision) = registry.replace(&holding.key, &value, grant, entry.revision).await? {
            (holding.revision, holding.grant) = (revision, grant);
            return Ok(Renewal::Renewed);
        }
        if let Some(grant) = grant {
            registry.revoke(grant).await;
        }
    }
}

/// Numbers nobody can foresee well enough to matter: the keys of a hash map are the system's own randomness.
pub(crate) fn random() -> impl FnMut() -> u64 {
    let keys = RandomState::new();
    let mut drawn = 0_u64;
    move || {
        drawn += 1;
        keys.hash_one(drawn)
    }
}
