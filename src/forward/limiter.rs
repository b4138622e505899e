//! How many ICMP errors may be sent (RFC 1812 4.3.2.8): token buckets, with the clock as an argument.

use alloc::boxed::Box;
use alloc::vec;
use core::net::Ipv4Addr;
use core::time::Duration;

use super::{Anomalies, Reject, ReplyTo};
use crate::wire::icmpv4::ERROR_MAX;

/// A token bucket's settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Tokens that come back per second. 0: the burst is all there will ever be.
    pub per_second: u32,
    /// Tokens a full bucket holds.
    pub burst: u32,
}

/// Limits ICMP errors, per source they would go to and in all.
///
/// The table of sources has a fixed size. A source that finds no place takes that of the one silent for longest, so that
/// a newcomer always gets its first answer while the limit over all holds.
///
/// ```
/// use core::{net::Ipv4Addr, time::Duration};
/// use loden::forward::IcmpLimiter;
/// let mut limiter = IcmpLimiter::default();
/// let (noisy, other) = (Ipv4Addr::new(100, 96, 1, 2), Ipv4Addr::new(100, 96, 1, 3));
/// let allowed = (0..1000).filter(|_| limiter.allow(noisy, Duration::ZERO)).count();
/// assert_eq!(allowed, 20);
/// assert!(limiter.allow(other, Duration::ZERO));
/// ```
#[derive(Clone, Debug)]
pub struct IcmpLimiter {
    per_source: Rate,
    total: Rate,
    bucket: Bucket,
    sources: Box<[[Source; WAYS]]>,
    /// The latest time there was.
    now: Duration,
}

/// Sets in the table of sources. With [`WAYS`]: 1,024 sources, 24 KiB.
const SETS: usize = 256;
/// Sources in a set.
const WAYS: usize = 4;

#[derive(Clone, Copy, Debug, Default)]
struct Source {
    address: Option<Ipv4Addr>,
    bucket: Bucket,
}

/// When the bucket would be full again, as a time on the caller's clock: all the state a token bucket needs (the "virtual
/// scheduling" form of the leaky bucket, ITU-T I.371).
#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    full_at: Duration,
}

impl IcmpLimiter {
    /// Limits per source: 10 a second, 20 at once.
    pub const PER_SOURCE: Rate = Rate { per_second: 10, burst: 20 };
    /// Limits over all sources: 1,000 a second, 100 at once.
    pub const TOTAL: Rate = Rate { per_second: 1000, burst: 100 };

    /// A limiter with all buckets full.
    #[must_use]
    pub fn new(per_source: Rate, total: Rate) -> Self {
        let sources = vec![[Source::default(); WAYS]; SETS].into_boxed_slice();
        Self { per_source, total, bucket: Bucket::default(), sources, now: Duration::ZERO }
    }

    /// Whether one more error may go to `source`. `now` is the time since any fixed moment; going back is the same as
    /// standing still.
    pub fn allow(&mut self, source: Ipv4Addr, now: Duration) -> bool {
        self.now = self.now.max(now);
        let now = self.now;
        let Some(total) = self.bucket.with_one_less(self.total, now) else { return false };
        let Some(entry) = entry(&mut self.sources, source) else { return false };
        let Some(bucket) = entry.bucket.with_one_less(self.per_source, now) else { return false };
        entry.bucket = bucket;
        self.bucket = total;
        true
    }

    /// The answer to a packet that goes nowhere, and where it is to go: the whole ICMP packet, written into `out`. `None` if
    /// there may be none, or if the limits are reached, which is counted.
    ///
    /// Whether it could be sent is what [`Flow::settle`](super::Flow::settle) is to be told.
    pub fn answer<'o>(
        &mut self,
        reject: &Reject<'_>,
        now: Duration,
        anomalies: &mut Anomalies,
        out: &'o mut [u8; ERROR_MAX],
    ) -> Option<(ReplyTo, &'o [u8])> {
        let reply_to = reject.reply_to()?;
        if !self.allow(reject.offender().header().source(), now) {
            anomalies.icmp_limited += 1;
            return None;
        }
        Some((reply_to, reject.icmp_error(out)?))
    }
}

impl Default for IcmpLimiter {
    fn default() -> Self {
        Self::new(Self::PER_SOURCE, Self::TOTAL)
    }
}

/// The entry of a source, perhaps a fresh one.
fn entry(sources: &mut [[Source; WAYS]], source: Ipv4Addr) -> Option<&mut Source> {
    let number = (source.to_bits().wrapping_mul(0x9e37_79b1) >> 24) as usize;
    let set = sources.get_mut(number)?;
    let known = set.iter().position(|entry| entry.address == Some(source));
    let at = known.or_else(|| {
        let oldest = set.iter().enumerate().min_by_key(|(_, entry)| entry.bucket.full_at);
        oldest.map(|(at, _)| at)
    })?;
    let entry = set.get_mut(at)?;
    if known.is_none() {
        *entry = Source { address: Some(source), bucket: Bucket::default() };
    }
    Some(entry)
}

impl Bucket {
    fn with_one_less(self, rate: Rate, now: Duration) -> Option<Self> {
        let token = match rate.per_second {
            0 => Duration::MAX / rate.burst.saturating_add(1),
            per_second => (Duration::from_secs(1) / per_second).max(Duration::from_nanos(1)),
        };
        let full_at = self.full_at.max(now).saturating_add(token);
        let limit = now.saturating_add(token.saturating_mul(rate.burst));
        (full_at <= limit).then_some(Self { full_at })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const A: Ipv4Addr = Ipv4Addr::new(100, 96, 1, 2);

    #[test]
    fn r48_ten_thousand_offenders_in_a_second_get_burst_and_rate() {
        let mut limiter = IcmpLimiter::default();
        let sent = (0..10_000).filter(|i| limiter.allow(A, Duration::from_micros(100 * i))).count();
        assert!((29..=30).contains(&sent), "{sent} answers, burst 20 and 10 a second");
        assert!(limiter.allow(Ipv4Addr::new(100, 96, 1, 3), Duration::from_secs(1)), "another source's first");
    }

    #[test]
    fn r48_many_sources_share_the_limit_over_all() {
        let mut limiter = IcmpLimiter::default();
        let sources = (0..2000).map(|i| Ipv4Addr::from_bits(0x6460_0000 + i));
        let sent = sources.filter(|source| limiter.allow(*source, Duration::ZERO)).count();
        assert_eq!(sent, 100);
    }

    /// Several hundred sources share the sets of the table, and nothing else.
    #[test]
    fn every_source_has_tokens_of_its_own() {
        let one = Rate { per_second: 1, burst: 1 };
        let mut limiter = IcmpLimiter::new(one, Rate { per_second: 1000, burst: 1000 });
        let sources = (0..300).map(|i| Ipv4Addr::from_bits(0x6460_0000 + i));
        let first = sources.clone().filter(|source| limiter.allow(*source, Duration::ZERO)).count();
        let second = sources.filter(|source| limiter.allow(*source, Duration::ZERO)).count();
        assert_eq!((first, second), (300, 0));
    }

    #[test]
    fn a_source_refused_by_the_limit_over_all_keeps_its_own_tokens() {
        let total = Rate { per_second: 1, burst: 1 };
        let mut limiter = IcmpLimiter::new(Rate { per_second: 1, burst: 1 }, total);
        assert!(limiter.allow(Ipv4Addr::new(100, 96, 1, 9), Duration::ZERO));
        assert!(!limiter.allow(A, Duration::ZERO));
        assert!(limiter.allow(A, Duration::from_secs(1)));
    }

    #[test]
    fn a_clock_that_goes_back_stands_still() {
        let at = |second| Duration::from_secs(second);
        let mut limiter = IcmpLimiter::new(Rate { per_second: 1, burst: 2 }, IcmpLimiter::TOTAL);
        let allowed = [10, 5, 0, 10, 11, 4].map(|second| limiter.allow(A, at(second)));
        assert_eq!(allowed, [true, true, false, false, true, false]);
    }

    #[test]
    fn without_a_rate_the_burst_is_all() {
        let none = Rate { per_second: 0, burst: 3 };
        let mut limiter = IcmpLimiter::new(none, IcmpLimiter::TOTAL);
        let sent = (0..10).filter(|i| limiter.allow(A, Duration::from_secs(i * 3600))).count();
        assert_eq!(sent, 3);
        assert!(!IcmpLimiter::new(Rate { per_second: 0, burst: 0 }, IcmpLimiter::TOTAL).allow(A, Duration::ZERO));
    }

    proptest! {
        /// Over any window that begins with a full bucket: at most burst + rate × t.
        #[test]
        fn never_more_than_burst_and_rate(
            (per_second, burst) in (1u32..50, 0u32..50),
            steps in proptest::collection::vec(0u64..200, 1..300),
        ) {
            let mut limiter = IcmpLimiter::new(Rate { per_second, burst }, Rate { per_second: 100_000, burst: 100_000 });
            let (mut now, mut sent) = (0u64, 0u64);
            for step in steps {
                now += step;
                sent += u64::from(limiter.allow(A, Duration::from_millis(now)));
            }
            let bound = u64::from(burst) + u64::from(per_second) * now / 1000 + 1;
            prop_assert!(sent <= bound, "{sent} of at most {bound}");
            prop_assert!(burst > 0 || sent == 0);
        }
    }
}
