//! Acquisition and renewal of the own subnet lease. It follows flannel's order and uses a transaction for each step.

use std::hash::{BuildHasher, RandomState};
use std::net::Ipv4Addr;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use loden::lease::flannel::{LeaseKey, LeaseReader, LeaseValue};
use loden::lease::{AllocateError, Held, Step, SubnetRange, allocation_order};

use crate::etcd::EtcdError;
use crate::registry::{Entry, Grant, Registry, Remaining};

/// The number of attempts, each with a new listing, after lost races. Each listing yields up to a hundred subnets to
/// try.
const ROUNDS: u32 = 10;

/// The own lease.
#[derive(Clone, Copy)]
pub(crate) struct Holding {
    pub(crate) key: LeaseKey,
    pub(crate) host: Ipv4Addr,
    /// The revision of the last known write to the key.
    pub(crate) revision: i64,
    /// The etcd lease. `None` if the key has no end: an operator wrote it so (flannel's "reservation"), and the node
    /// keeps it so.
    pub(crate) grant: Option<Grant>,
}

impl Holding {
    pub(crate) fn lasts(&self) -> Duration {
        self.grant.map_or(Duration::MAX, |grant| grant.ttl)
    }
}

/// The origin of a lease.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum How {
    /// It existed for the own address.
    TakenOver,
    /// It was free, and the own lease in an earlier run.
    Previous,
    /// It was free.
    New,
}

/// The reason why no lease was acquired.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AcquireError {
    #[error(transparent)]
    Allocate(#[from] AllocateError),
    #[error(transparent)]
    Etcd(#[from] EtcdError),
    #[error("other hosts were faster {ROUNDS} times; check for a host that acquires leases in a loop")]
    Contended,
}

/// Mode of a renewal.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Renew {
    /// Extends the etcd lease without a write to the key, unless the key or the etcd lease has changed.
    Keep,
    /// Writes the same value with a new etcd lease, as flannel does. Hosts that missed the key or that have the same
    /// address notice it.
    Write,
}

/// The result of a renewal.
pub(crate) enum Renewal {
    /// The lease has its full duration again, or has no end.
    Renewed,
    /// The lease belongs to another host, for this reason.
    Lost(String),
}

/// Acquires a subnet for the host at `host`, preferably `previous`.
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
                    // The transaction does not detect subnets of other lengths or with host bits that were written
                    // after the listing.
                    if must_give_way(&own, &self::known(registry, reader).await?) {
                        registry.delete(&key, revision).await?;
                        break;
                    }
                    let how = if Some(subnet) == previous { How::Previous } else { How::New };
                    return Ok((Holding { key, host, revision, grant: Some(grant) }, how));
                }
                Step::Delete(subnet) | Step::TakeOver(subnet) => {
                    known.iter().find(|(_, held, _)| (held.subnet, held.host) == (subnet, host.into()))
                }
                // An IPv4 network has no IPv6 subnets.
                Step::Create(IpNet::V6(_)) | _ => continue,
            };
            let Some((key, _, entry)) = held else { continue };
            let grant = (entry.grant != 0).then_some(grant);
            if matches!(step, Step::Delete(_)) {
                registry.delete(key, entry.revision).await?;
            } else if let Some(revision) = registry.replace(key, &value, grant, entry.revision).await? {
                return Ok((Holding { key: *key, host, revision, grant }, How::TakenOver));
            } else {
                // It has changed since, so it may have another owner.
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

/// Returns true if the own lease has to give way to an older one.
fn must_give_way(own: &Held, known: &[(LeaseKey, Held, Entry)]) -> bool {
    known.iter().any(|(_, held, _)| own.gives_way_to(held))
}

/// Renews a lease for its full duration from now on.
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

/// Returns random numbers from the random keys of a hash map. They need not be unpredictable.
pub(crate) fn random() -> impl FnMut() -> u64 {
    let keys = RandomState::new();
    let mut drawn = 0_u64;
    move || {
        drawn += 1;
        keys.hash_one(drawn)
    }
}
