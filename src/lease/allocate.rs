//! Which subnet a host should lease.

use alloc::vec::Vec;
use core::net::IpAddr;

use ipnet::IpNet;

use super::range::{SubnetRange, bits};

/// How many free subnets one is drawn from; flannel's number. More make a lost race rarer.
const DRAWN_FROM: usize = 100;

/// A lease there is, as far as it matters to who looks for one. Those of other kinds of overlay hold their subnets too, and so
/// do those that cannot be read, whose hosts are nobody: 0.0.0.0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Its subnet.
    pub subnet: IpNet,
    /// The underlay address of its owner.
    pub host: IpAddr,
    /// Position in the order of creation: an etcd key's create revision. 0 if that is not known.
    pub created: u64,
}

impl Held {
    /// Returns true if this lease has to give way to `other`, an older lease of another host that overlaps it.
    ///
    /// Two hosts can create overlapping leases where keys have several spellings or subnets several lengths. The younger lease
    /// gives way, and every host that sees both decides the same. No lease gives way to one of unknown age.
    #[must_use]
    pub fn gives_way_to(&self, other: &Self) -> bool {
        let overlaps = self.subnet.contains(&other.subnet) || other.subnet.contains(&self.subnet);
        let is_older = other.created != 0 && other.created < self.created;
        overlaps && is_older && other.host.to_canonical() != self.host.to_canonical()
    }
}

/// What to try on the way to a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Step {
    /// Delete this lease of ours: the network no longer has such subnets, or it has to give way to another host's lease.
    Delete(IpNet),
    /// Renew this lease with our attributes: it is ours from an earlier run.
    TakeOver(IpNet),
    /// Create a lease of this subnet unless there is one by now.
    Create(IpNet),
}

/// There is nothing to lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AllocateError {
    /// Every subnet is held by somebody.
    #[error(
        "no /{subnet_len} is free from {first} to {last}, with {held} leases held; delete leases of hosts that are gone, or \
         choose a larger network"
    )]
    NoneFree {
        /// Where the first subnet that may be leased begins.
        first: IpAddr,
        /// Where the last one begins.
        last: IpAddr,
        /// Length of the subnets' prefixes in bits.
        subnet_len: u8,
        /// How many leases there are.
        held: usize,
    },
}

/// What the host at `host` should do for a lease, in order: go on to the next step when one is lost to somebody else, stop at
/// the first [`Step::TakeOver`] or [`Step::Create`] that succeeds.
///
/// 1. Leases of ours that do not fit the network, or that [give way](Held::gives_way_to) to another host's, are deleted.
/// 2. One that fits is taken over: that of `previous` (the subnet of an earlier run, from its `subnet.env`) before others,
///    and the lowest of those.
/// 3. `previous` is created, if it fits and nobody holds any of it.
/// 4. The first hundred free subnets are created, in random order: hosts that start together seldom want the same.
///
/// `random` returns any number, different each time.
///
/// # Errors
/// [`AllocateError::NoneFree`] if there is nothing to take over and nothing to create.
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

/// The subnets that nobody holds any part of, in order.
fn free(range: &SubnetRange, taken: &Taken) -> impl Iterator<Item = IpNet> {
    let (first, last, size) = range.bounds();
    let mut next = Some(first);
    core::iter::from_fn(move || {
        loop {
            let begin = next.filter(|begin| *begin <= last)?;
            match taken.end_of_overlap(begin, size) {
                // The next one that begins behind it.
                Some(end) => next = (end | (size - 1)).checked_add(1),
                None => {
                    next = begin.checked_add(size);
                    return range.subnet(begin);
                }
            }
        }
    })
}

/// The addresses that are held, as first and last of each stretch: sorted, and none touching another.
struct Taken(Vec<(u128, u128)>);

impl Taken {
    /// The subnets are of one family.
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

    /// The last address held of the first stretch that begins or goes on in these `size` addresses.
    fn end_of_overlap(&self, begin: u128, size: u128) -> Option<u128> {
        let at = self.0.partition_point(|(_, last)| *last < begin);
        let (first, last) = self.0.get(at)?;
        (*first <= begin + (size - 1)).then_some(*last)
    }
}

/// Fisher and Yates.
fn shuffle<T>(items: &mut [T], random: &mut impl FnMut() -> u64) {
    for at in (1..items.len()).rev() {
        let other = (u128::from(random()) * (at as u128 + 1)) >> 64;
        items.swap(at, other as usize);
    }
}
