//! Acquisition and renewal of the own subnet lease. It follows flannel's order and uses a transaction for each step.

use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use loden::lease::flannel::{LeaseKey, LeaseReader, LeaseValue, NetworkConfig};
use loden::lease::{AllocateError, Held, Step, allocation_order};

use crate::etcd::EtcdError;
use crate::registry::{Entry, Grant, Registry, Remaining};

/// The number of attempts, each with a new listing, after lost races. Each listing yields up to a hundred subnets to
/// try.
const ROUNDS: u32 = 10;

/// The own lease.
#[derive(Clone, Copy)]
pub(crate) struct Holding {
    pub(crate) key: LeaseKey,
    /// The addresses of this host.
    pub(crate) value: LeaseValue,
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

/// A request for a lease.
#[derive(Clone, Copy)]
pub(crate) struct Wanted<'a> {
    pub(crate) config: &'a NetworkConfig,
    /// The addresses of this host.
    pub(crate) value: LeaseValue,
    /// The subnets of an earlier run.
    pub(crate) previous: Previous,
    pub(crate) ttl: Duration,
}

/// The subnets of an earlier run, as far as they are known.
#[derive(Clone, Copy, Default)]
pub(crate) struct Previous {
    pub(crate) ipv4: Option<Ipv4Net>,
    pub(crate) ipv6: Option<Ipv6Net>,
}

/// An acquired lease.
pub(crate) struct Acquired {
    pub(crate) holding: Holding,
    pub(crate) how: How,
    /// The deleted leases of this host, which did not fit the network.
    pub(crate) deleted: Vec<LeaseKey>,
    /// The lease of the subnet of an earlier run, if another host has it.
    pub(crate) taken: Option<(LeaseKey, IpAddr)>,
}

/// A key that holds a subnet.
struct Known {
    key: LeaseKey,
    held: Held,
    entry: Entry,
}

impl Known {
    /// Returns the claim on the IPv6 subnet of a dual-stack key.
    fn held_v6(&self) -> Option<Held> {
        Some(Held { subnet: self.key.ipv6?.into(), ..self.held })
    }

    /// Returns true if the IPv6 part of a lease of this host fits the network and the leases of other hosts.
    fn fits_ipv6(&self, config: &NetworkConfig, all: &[Known]) -> bool {
        match (config.ipv6(), self.held_v6()) {
            (None, None) => true,
            (Some(range), Some(own)) => {
                range.contains(own.subnet)
                    && !all.iter().filter_map(Self::held_v6).any(|other| own.gives_way_to(&other))
            }
            (Some(_), None) | (None, Some(_)) => false,
        }
    }
}

/// Acquires a subnet of each family that the network has.
pub(crate) async fn acquire(
    registry: &mut Registry,
    reader: &LeaseReader,
    wanted: Wanted<'_>,
) -> Result<Acquired, AcquireError> {
    let grant = registry.grant(wanted.ttl).await?;
    let outcome = acquire_with(registry, reader, wanted, grant).await;
    if !matches!(outcome, Ok(Acquired { holding: Holding { grant: Some(_), .. }, .. })) {
        registry.revoke(grant).await;
    }
    outcome
}

async fn acquire_with(
    registry: &mut Registry,
    reader: &LeaseReader,
    Wanted { config, value, previous, .. }: Wanted<'_>,
    grant: Grant,
) -> Result<Acquired, AcquireError> {
    let (host, mut deleted) = (IpAddr::from(value.public_ip), Vec::new());
    for _ in 0..ROUNDS {
        let known = known(registry, reader).await?;
        let is_unfit = |lease: &Known| lease.held.host == host && !lease.fits_ipv6(config, &known);
        let (unfit, _): (Vec<_>, Vec<_>) = (0..known.len()).partition(|at| known.get(*at).is_some_and(is_unfit));
        for lease in unfit.iter().filter_map(|at| known.get(*at)) {
            registry.delete(&lease.key, lease.entry.revision).await?;
            deleted.push(lease.key);
        }
        let fitting = || known.iter().filter(|lease| !is_unfit(lease));
        let taken = fitting().find(|lease| Some(lease.key.ipv4.trunc()) == previous.ipv4 && lease.held.host != host);
        let taken = taken.map(|lease| (lease.key, lease.held.host));
        let held: Vec<Held> = fitting().map(|lease| lease.held).collect();
        let mut ipv6 = config.ipv6().map(|range| {
            let held: Vec<Held> = fitting().filter_map(Known::held_v6).collect();
            // No lease has this host, so the order contains free subnets only.
            let nobody = IpAddr::from(Ipv6Addr::UNSPECIFIED);
            let steps = allocation_order(range, &held, nobody, previous.ipv6.map(Into::into), random())?;
            Ok::<_, AllocateError>(steps.into_iter().filter_map(|step| match step {
                Step::Create(IpNet::V6(subnet)) => Some(subnet),
                Step::Create(IpNet::V4(_)) | Step::Delete(_) | Step::TakeOver(_) | _ => None,
            }))
        });
        for step in allocation_order(config.range(), &held, host, previous.ipv4.map(Into::into), random())? {
            let lease = match step {
                Step::Create(IpNet::V4(subnet)) => {
                    let ipv6 = match &mut ipv6 {
                        None => None,
                        Some(Err(error)) => return Err((*error).into()),
                        Some(Ok(free)) => match free.next() {
                            None => break,
                            subnet => subnet,
                        },
                    };
                    let key = LeaseKey { ipv4: subnet.trunc(), ipv6 };
                    let Some(revision) = registry.create(&key, &value, grant).await? else { continue };
                    let own = Held { subnet: subnet.into(), host, created: revision.try_into().unwrap_or(0) };
                    // The transaction does not detect subnets of other lengths or with host bits, or IPv6 subnets
                    // beside other IPv4 subnets, that were written after the listing.
                    if must_give_way(&own, key.ipv6, &self::known(registry, reader).await?) {
                        registry.delete(&key, revision).await?;
                        break;
                    }
                    let is_previous = Some(subnet) == previous.ipv4 && (ipv6.is_none() || ipv6 == previous.ipv6);
                    let how = if is_previous { How::Previous } else { How::New };
                    let holding = Holding { key, value, revision, grant: Some(grant) };
                    return Ok(Acquired { holding, how, deleted, taken });
                }
                Step::Delete(subnet) | Step::TakeOver(subnet) => {
                    fitting().find(|lease| (lease.held.subnet, lease.held.host) == (subnet, host))
                }
                // The network's own range is IPv4.
                Step::Create(IpNet::V6(_)) | _ => continue,
            };
            let Some(Known { key, entry, .. }) = lease else { continue };
            let grant = (entry.grant != 0).then_some(grant);
            if matches!(step, Step::Delete(_)) {
                registry.delete(key, entry.revision).await?;
                deleted.push(*key);
            } else if let Some(revision) = registry.replace(key, &value, grant, entry.revision).await? {
                let holding = Holding { key: *key, value, revision, grant };
                return Ok(Acquired { holding, how: How::TakenOver, deleted, taken });
            } else {
                // It has changed since, so it may have another owner.
                break;
            }
        }
    }
    Err(AcquireError::Contended)
}

/// Returns all keys that hold a subnet.
async fn known(registry: &mut Registry, reader: &LeaseReader) -> Result<Vec<Known>, EtcdError> {
    let entries = registry.list().await?.entries.into_iter();
    Ok(entries.filter_map(|entry| entry.held(reader).map(|(key, held)| Known { key, held, entry })).collect())
}

/// Returns true if a subnet of the own lease has to give way to an older one.
fn must_give_way(own: &Held, ipv6: Option<Ipv6Net>, known: &[Known]) -> bool {
    let own_v6 = ipv6.map(|subnet| Held { subnet: subnet.into(), ..*own });
    known.iter().any(|lease| {
        let gives_way_v6 = own_v6.zip(lease.held_v6()).is_some_and(|(own, other)| own.gives_way_to(&other));
        own.gives_way_to(&lease.held) || gives_way_v6
    })
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
        let value = holding.value;
        if let Some(host) = LeaseValue::holder(&entry.value).filter(|host| *host != value.public_ip) {
            return Ok(Renewal::Lost(format!("{host} holds it now")));
        }
        // Two hosts with one address may differ in IPv6. They would write in turn without end if that counted.
        let is_ours = LeaseValue::from_json(&entry.value).is_ok_and(|found| found.public_ip == value.public_ip);
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
