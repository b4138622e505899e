//! Allocation of a subnet lease for a host.

use alloc::vec::Vec;
use core::net::IpAddr;

use ipnet::IpNet;

use super::range::{SubnetRange, bits};

/// The number of free subnets from which one is drawn. It is flannel's number; more would make lost races rarer.
const DRAWN_FROM: usize = 100;

/// An existing lease, as far as an allocation needs it. Leases of other backends hold their subnets too. So do
/// unreadable leases, whose host is 0.0.0.0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// The subnet.
    pub subnet: IpNet,
    /// The underlay address of its owner.
    pub host: IpAddr,
    /// The position in the order of creation: an etcd key's create revision, or 0 if it is unknown.
    pub created: u64,
}

impl Held {
    /// Returns true if this lease has to give way to `other`, an older lease of another host that overlaps it.
    ///
    /// Two hosts can create overlapping leases where keys have several spellings or subnets several lengths. The
    /// younger lease gives way, and every host that sees both decides the same. No lease gives way to one of unknown
    /// age.
    #[must_use]
    pub fn gives_way_to(&self, other: &Self) -> bool {
        let overlaps = self.subnet.contains(&other.subnet) || other.subnet.contains(&self.subnet);
        let is_older = other.created != 0 && other.created < self.created;
        overlaps && is_older && other.host.to_canonical() != self.host.to_canonical()
    }
}

/// One step of an allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Step {
    /// Delete this lease of the own host: it does not fit the network, or it gives way to another host's lease.
    Delete(IpNet),
    /// Renew this lease of the own host from an earlier run, with the current attributes.
    TakeOver(IpNet),
    /// Create a lease of this subnet unless one exists.
    Create(IpNet),
}

/// The reason why no subnet can be leased.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AllocateError {
    /// Every subnet is leased.
    #[error(
        "no /{subnet_len} is free from {first} to {last}, with {held} leases held; delete leases of hosts that are gone, or \
         choose a larger network"
    )]
    NoneFree {
        /// The first address of the first subnet that may be leased.
        first: IpAddr,
        /// The first address of the last subnet that may be leased.
        last: IpAddr,
        /// The prefix length of the subnets in bits.
        subnet_len: u8,
        /// The number of leases.
        held: usize,
    },
}

/// Returns the steps by which the host at `host` gets a lease, in their order.
///
/// If another host wins a step, go on to the next. Stop at the first [`Step::TakeOver`] or [`Step::Create`] that
/// succeeds.
///
/// 1. Leases of this host that do not fit the network, or that [give way](Held::gives_way_to) to another host's, are
///    deleted.
/// 2. A lease of this host that fits is taken over. The lease of `previous` (the subnet of an earlier run, from its
///    `subnet.env`) comes first, then the lowest one.
/// 3. A lease of `previous` is created if it fits and overlaps no other lease.
/// 4. A lease of one of the first hundred free subnets is created, in random order, so hosts that start together seldom
///    choose the same.
///
/// `random` returns a different number each time.
///
/// # Errors
/// [`AllocateError::NoneFree`] if there is no lease to take over and no free subnet.
pub fn allocation_order(
    range: &SubnetRange,
    held: &[Held],
    host: IpAddr,
    previous: Option<IpNet>,
    mut random: impl FnMut() -> u64,
) -> Result<Vec<Step>, AllocateError> {
    let host = host.to_canonical();
    let previous = previous.map(|subnet| subnet.trunc()).filter(|subnet| range.contains(*subnet));
    let (ours, others): (Vec<Held>, Vec<Held>) = held.iter().partition(|lease| lease.host.to_canonical() == host);
    let keeps = |lease: &Held| !others.iter().any(|other| lease.gives_way_to(other));
    let fits = |lease: &Held| range.contains(lease.subnet) && keeps(lease);
    let (mut fitting, unfit): (Vec<Held>, Vec<Held>) = ours.into_iter().partition(fits);
    fitting.sort_by_key(|lease| (Some(lease.subnet.trunc()) != previous, lease.subnet));
    let held_by_any = others.iter().chain(&fitting).map(|lease| lease.subnet);
    let taken = Taken::new(held_by_any.filter(|subnet| subnet.addr().is_ipv4() == range.first().is_ipv4()));

    let mut steps: Vec<Step> = unfit.iter().map(|lease| Step::Delete(lease.subnet)).collect();
    let deletes = steps.len();
    steps.extend(fitting.first().map(|lease| Step::TakeOver(lease.subnet)));
    let previous = previous.filter(|subnet| taken.end_of_overlap(bits(subnet.network()), range.bounds().2).is_none());
    steps.extend(previous.map(Step::Create));
    let mut free: Vec<IpNet> =
        free(range, &taken).filter(|subnet| Some(*subnet) != previous).take(DRAWN_FROM).collect();
    shuffle(&mut free, &mut random);
    steps.extend(free.into_iter().map(Step::Create));
    if steps.len() == deletes {
        let (first, last, subnet_len) = (range.first(), range.last(), range.subnet_len());
        return Err(AllocateError::NoneFree { first, last, subnet_len, held: held.len() });
    }
    Ok(steps)
}

/// Returns the subnets that overlap no lease, in their order.
fn free(range: &SubnetRange, taken: &Taken) -> impl Iterator<Item = IpNet> {
    let (first, last, size) = range.bounds();
    let mut next = Some(first);
    core::iter::from_fn(move || {
        loop {
            let begin = next.filter(|begin| *begin <= last)?;
            match taken.end_of_overlap(begin, size) {
                // The next subnet that begins after it.
                Some(end) => next = (end | (size - 1)).checked_add(1),
                None => {
                    next = begin.checked_add(size);
                    return range.subnet(begin);
                }
            }
        }
    })
}

/// The leased addresses as first and last of each range. The ranges are sorted and do not touch.
struct Taken(Vec<(u128, u128)>);

impl Taken {
    /// Merges subnets of one address family.
    fn new(subnets: impl Iterator<Item = IpNet>) -> Self {
        let mut stretches: Vec<_> = subnets.map(|subnet| (bits(subnet.network()), bits(subnet.broadcast()))).collect();
        stretches.sort_unstable();
        stretches.dedup_by(|next, kept| {
            let joins = next.0 <= kept.1;
            kept.1 = if joins { kept.1.max(next.1) } else { kept.1 };
            joins
        });
        Self(stretches)
    }

    /// Returns the last leased address of the first range that overlaps these `size` addresses.
    fn end_of_overlap(&self, begin: u128, size: u128) -> Option<u128> {
        let at = self.0.partition_point(|(_, last)| *last < begin);
        let (first, last) = self.0.get(at)?;
        (*first <= begin + (size - 1)).then_some(*last)
    }
}

/// Shuffles the items (Fisher and Yates).
fn shuffle<T>(items: &mut [T], random: &mut impl FnMut() -> u64) {
    for at in (1..items.len()).rev() {
        let other = (u128::from(random()) * (at as u128 + 1)) >> 64;
        items.swap(at, other as usize);
    }
}
