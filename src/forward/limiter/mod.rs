//! Rate limits of ICMP errors (RFC 1812 section 4.3.2.8, RFC 4443 section 2.4 f): token buckets, with the clock as an
//! argument.
//!
//! There are three independent budgets, so a flood of one kind does not suppress another: errors to the own TUN device,
//! errors to peers, and "fragmentation needed" or "packet too big". TCP hangs without the last, and Linux exempts it
//! from its limit (`icmp_global_allow`).

use alloc::boxed::Box;
use alloc::vec;
use core::fmt::Debug;
use core::net::{IpAddr, SocketAddr};
use core::time::Duration;

use super::{Reject, RejectReason, ReplyTo, Stats};
use crate::wire::{ICMP_ERROR_MAX, IpPacket};

/// The settings of a token bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Tokens added per second. With 0 the bucket is never refilled.
    pub per_second: u32,
    /// The capacity of the bucket.
    pub burst: u32,
}

/// Rate limits of ICMP errors, per source and in total.
///
/// | errors | limited per | in total |
/// | --- | --- | --- |
/// | to the own TUN device | source | yes |
/// | to peers | source, or its /64 for IPv6 | yes |
/// | "fragmentation needed", "packet too big" | source and destination | yes |
///
/// IPv4 and IPv6 share the totals.
///
/// Each row has its own buckets. Each source and each row gets at most `burst + rate × t` errors, for any pattern of
/// sources. A table of sources has a fixed size. When it is full, a new source takes over the bucket that is refilled
/// first, with its current tokens.
///
/// The last tokens of the total are reserved for sources that asked for few. A quarter of the burst is for sources that
/// got no error for a second. Half of it is for payers that keep to a sixteenth of the rate. The payer is the peer, or
/// the source in the own network. So an idle source or peer gets its first error during a flood by others.
///
/// A flood of the own pods from more than a thousand source addresses at once exceeds the tables. Then an idle source
/// waits for seconds, or as long as the flood lasts. Filter the source addresses of pods to prevent it.
///
/// ```
/// use core::time::Duration;
/// use loden::Host;
/// use loden::forward::{Encap, Forwarder, IcmpLimiter, ForwarderConfig};
/// use loden::route::RouteTable;
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (network, subnet) = ("100.96.0.0/16".parse::<ipnet::Ipv4Net>()?, "100.96.1.0/24".parse::<ipnet::Ipv4Net>()?);
/// let forwarder = Forwarder::new(ForwarderConfig::new(&Host::new(network, subnet, ([10, 168, 0, 2], 8285))?))?;
/// // From 100.96.1.2 to 100.96.9.9, which has no route.
/// let mut packet = *b"\x45\0\0\x14\0\0\0\0\x40\x11\xa8\x0e\x64\x60\x01\x02\x64\x60\x09\x09";
/// let Encap::Reject(reject) = forwarder.encapsulate(&mut packet, &RouteTable::new()) else { panic!("no route") };
/// let mut limiter = IcmpLimiter::default();
/// let allowed = (0..1000).filter(|_| limiter.allow(&reject, Duration::ZERO)).count();
/// assert_eq!(allowed, 20);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct IcmpLimiter {
    near: Budget,
    far: Budget,
    too_long: Budget,
    seed: u64,
    /// The latest time passed so far, in nanoseconds.
    now: u64,
}

#[derive(Clone, Copy, Debug)]
struct Rates {
    per_source: Rate,
    total: Rate,
    /// The part of `total` that is reserved for each payer.
    share: Rate,
}

/// The buckets of one kind of error.
#[derive(Clone, Debug)]
struct Budget {
    rates: Rates,
    total: Bucket,
    payers: Table,
    sources: Table,
}

/// Buckets by number, in sets. No bucket is ever reset to full.
#[derive(Clone, Debug)]
struct Table(Box<[Set]>);

const WAYS: usize = 16;

#[derive(Clone, Copy, Debug, Default)]
struct Set {
    tags: [u32; WAYS],
    buckets: [Bucket; WAYS],
}

/// The time at which the bucket will be full, in nanoseconds. A token bucket needs no other state ("virtual scheduling"
/// form of the leaky bucket, ITU-T I.371).
#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    full_at: u64,
}

/// A source is idle if its bucket has been full for this long.
const SILENCE: u64 = NANOS;
const NANOS: u64 = 1_000_000_000;

impl IcmpLimiter {
    /// The limit per source: 10 a second with a burst of 20.
    pub const PER_SOURCE: Rate = Rate { per_second: 10, burst: 20 };
    /// The limit over all sources: 1,000 a second with a burst of 100.
    pub const TOTAL: Rate = Rate { per_second: 1000, burst: 100 };

    /// Creates a limiter with full buckets.
    #[must_use]
    pub fn new(per_source: Rate, total: Rate) -> Self {
        let rates = Rates::new(per_source, total);
        // The tables take 30 KiB together. A thousand sources may be answered per second.
        let budget = |payers, sources| Budget {
            rates,
            total: Bucket::default(),
            payers: Table::with_sets(payers),
            sources: Table::with_sets(sources),
        };
        Self { near: budget(4, 64), far: budget(8, 64), too_long: budget(4, 16), seed: 0, now: SILENCE }
    }

    /// Returns the limiter with limits of their own for "fragmentation needed" and "packet too big". The first one is
    /// per source and destination. Without these errors a sender does not learn the size of its path, and its TCP
    /// connections stand still, so a host that sends no other errors sends these.
    #[must_use]
    pub fn with_too_long(mut self, per_source: Rate, total: Rate) -> Self {
        self.too_long.rates = Rates::new(per_source, total);
        self
    }

    /// Returns the limiter with another hash seed for its tables. With a secret seed, nobody can choose sources that
    /// share a place with another's. The limits hold for every seed.
    #[must_use]
    pub fn with_seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    /// Returns true if the error about this packet may be sent now. Returns false if an RFC forbids it or a limit is
    /// reached. `now` is the time since any fixed moment. A `now` before an earlier one counts as the earlier one.
    pub fn allow(&mut self, reject: &Reject<'_>, now: Duration) -> bool {
        let Some(reply_to) = reject.reply_to() else { return false };
        // All buckets have been full for a while at the beginning.
        let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX).saturating_add(SILENCE);
        self.now = self.now.max(now);
        let seed = self.seed;
        let Keys { source, source_and_destination, site } = Keys::of(reject.offender(), seed);
        let (budget, payer, source) = match (reply_to, reject.reason()) {
            (ReplyTo::Peer(peer), _) => (&mut self.far, id(words(peer), seed), site),
            (ReplyTo::Tun, RejectReason::FragmentationNeeded { .. }) => {
                (&mut self.too_long, source, source_and_destination)
            }
            (ReplyTo::Tun, _) => (&mut self.near, source, source),
        };
        budget.take(payer, source, self.now)
    }

    /// Writes the answer to a rejected packet into `out`, as a whole ICMP packet, and returns it with its receiver.
    /// Returns `None` if no answer is allowed or a limit is reached; the latter is counted.
    ///
    /// Pass the result of sending it to [`DirectionCounters::settle`](super::DirectionCounters::settle).
    pub fn answer<'o>(
        &mut self,
        reject: &Reject<'_>,
        now: Duration,
        stats: &mut Stats,
        out: &'o mut [u8; ICMP_ERROR_MAX],
    ) -> Option<(ReplyTo, &'o [u8])> {
        let reply_to = reject.reply_to()?;
        if !self.allow(reject, now) {
            stats.icmp_limited += 1;
            return None;
        }
        Some((reply_to, reject.icmp_error(out)?))
    }
}

/// Permission for ICMP errors, one by one. An [`IcmpLimiter`] gives it, or something that several hosts share.
pub trait AllowIcmp: Debug + Send {
    /// Returns true if the error about this packet may be sent: see [`IcmpLimiter::allow`].
    fn allow(&mut self, reject: &Reject<'_>, now: Duration) -> bool;
}

impl AllowIcmp for IcmpLimiter {
    fn allow(&mut self, reject: &Reject<'_>, now: Duration) -> bool {
        Self::allow(self, reject, now)
    }
}

impl Default for IcmpLimiter {
    fn default() -> Self {
        Self::new(Self::PER_SOURCE, Self::TOTAL)
    }
}

impl Rates {
    fn new(per_source: Rate, total: Rate) -> Self {
        const SHARES: u32 = 16;
        let share = Rate { per_second: total.per_second.div_ceil(SHARES), burst: total.burst.div_ceil(SHARES) };
        Self { per_source, total, share }
    }
}

impl Budget {
    fn take(&mut self, payer: u64, source: u64, now: u64) -> bool {
        let Self { rates, total, payers, sources } = self;
        let (Some(payer), Some(source)) = (payers.bucket(payer), sources.bucket(source)) else { return false };
        let Some(source_after) = source.with_one_less(rates.per_source, 0, now) else { return false };
        let payer_after = payer.with_one_less(rates.share, 0, now);
        let quarters = match (payer_after, source.full_at.saturating_add(SILENCE) <= now) {
            (Some(_), true) => 0,
            (Some(_), false) => 1,
            (None, true) => 2,
            (None, false) => 3,
        };
        let kept = u64::from(rates.total.burst) * quarters / 4;
        let Some(total_after) = total.with_one_less(rates.total, kept, now) else { return false };
        (*total, *source, *payer) = (total_after, source_after, payer_after.unwrap_or(*payer));
        true
    }
}

impl Table {
    fn with_sets(count: usize) -> Self {
        Self(vec![Set::default(); count].into_boxed_slice())
    }

    /// Returns the bucket of a number. It may have belonged to another number before.
    ///
    /// A number without a bucket takes over the bucket of its set that will be full first, with its current tokens. The
    /// number lost its own place by the same rule, and no bucket is refilled earlier by a change of its owner. So it
    /// finds no more tokens than it left, and eviction gains nothing.
    fn bucket(&mut self, id: u64) -> Option<&mut Bucket> {
        let (number, tag) = (id % self.0.len().max(1) as u64, (id >> 32) as u32);
        let Set { tags, buckets } = self.0.get_mut(number as usize)?;
        let at = match tags.iter().position(|known| *known == tag) {
            Some(at) => at,
            None => buckets.iter().enumerate().min_by_key(|(_, bucket)| bucket.full_at)?.0,
        };
        *tags.get_mut(at)? = tag;
        buckets.get_mut(at)
    }
}

impl Bucket {
    /// Returns `None` if fewer than `kept` tokens would remain.
    fn with_one_less(self, rate: Rate, kept: u64, now: u64) -> Option<Self> {
        let token = match rate.per_second {
            0 => u64::MAX / (u64::from(rate.burst) + 1),
            per_second => NANOS.div_ceil(per_second.into()),
        };
        let full_at = self.full_at.max(now).checked_add(token)?;
        let tokens = u64::from(rate.burst).saturating_sub(kept);
        (full_at <= now.saturating_add(token.saturating_mul(tokens))).then_some(Self { full_at })
    }
}

/// The numbers of the buckets that an offender counts for.
struct Keys {
    source: u64,
    source_and_destination: u64,
    /// The source for IPv4, its /64 for IPv6: a host that has a /64 can use any number of addresses.
    site: u64,
}

impl Keys {
    fn of(offender: &IpPacket<'_>, seed: u64) -> Self {
        match offender {
            IpPacket::V4(packet) => {
                let header = packet.header();
                let (source, destination) = (header.source().to_bits().into(), header.destination().to_bits().into());
                let of_source = id([source, 0, 0], seed);
                Self { source: of_source, source_and_destination: id([source, destination, 1], seed), site: of_source }
            }
            IpPacket::V6(packet) => {
                let header = packet.header();
                let halves = |address: u128| [(address >> 64) as u64, address as u64];
                let [site, source] = halves(header.source().to_bits());
                let [high, low] = halves(header.destination().to_bits());
                let of_source = id([site, source, 2], seed);
                Self {
                    source: of_source,
                    source_and_destination: id([high, low, 3], of_source),
                    site: id([site, 0, 4], seed),
                }
            }
        }
    }
}

/// Returns a hash of a key: multiplication, with the upper half of the product folded onto the lower (wyhash). Two keys
/// with the same hash share a bucket, which the limits permit.
fn id(key: [u64; 3], seed: u64) -> u64 {
    const ODD: [u64; 2] = [0x9e37_79b9_7f4a_7c15, 0xd6e8_feb8_6659_fd93];
    key.into_iter().fold(seed, |mixed, word| {
        let product = u128::from(mixed ^ ODD[0]) * u128::from(word ^ ODD[1]);
        (product >> 64) as u64 ^ product as u64
    })
}

fn words(peer: SocketAddr) -> [u64; 3] {
    let address = match peer.ip() {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits(),
    };
    [(address >> 64) as u64, address as u64, peer.port().into()]
}

#[cfg(test)]
mod tests;
