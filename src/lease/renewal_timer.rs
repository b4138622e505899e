//! How long a lease of our own is held, and when to renew it.

use core::ops::RangeInclusive;
use core::time::Duration;

/// The time of one lease: who holds it renews it when [`poll_timeout`](Self::poll_timeout) says so.
///
/// Time is the caller's, by a clock that does not jump: a wall clock that was set a day forward ends nothing. On a host that may
/// be suspended it is one that goes on meanwhile (Linux: `CLOCK_BOOTTIME`, not `Instant`), since the lease does too.
///
/// ```
/// use core::time::Duration;
/// use loden::lease::RenewalTimer;
/// let hours = |hours: u64| Duration::from_secs(hours * 3600);
/// let mut timer = RenewalTimer::granted(RenewalTimer::TTL, RenewalTimer::MARGIN, hours(1));
/// assert_eq!((timer.poll_timeout(), timer.ends()), (hours(24), hours(25)));
/// timer.failed(hours(24));
/// assert_eq!(timer.poll_timeout(), hours(24) + RenewalTimer::RETRY);
/// timer.renewed(RenewalTimer::TTL, hours(24) + RenewalTimer::RETRY);
/// assert_eq!(timer.poll_timeout(), hours(47) + RenewalTimer::RETRY);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RenewalTimer {
    margin: Duration,
    ends: Duration,
    renew_at: Duration,
}

impl RenewalTimer {
    /// For how long flannel leases a subnet.
    pub const TTL: Duration = Duration::from_secs(24 * 3600);
    /// How long before its end a lease is renewed, if nothing else is asked for.
    pub const MARGIN: Duration = Duration::from_secs(3600);
    /// The margins that flannel takes.
    pub const MARGINS: RangeInclusive<Duration> = Duration::from_secs(60)..=Duration::from_secs(1439 * 60);
    /// How long after a failed renewal the next one is tried.
    pub const RETRY: Duration = Duration::from_secs(60);

    /// A lease that was granted at `now` for `ttl`, and is to be renewed `margin` before its end: after half of it if it is
    /// no longer than the margin, since renewing at once and for ever is nobody's wish.
    #[must_use]
    pub fn granted(ttl: Duration, margin: Duration, now: Duration) -> Self {
        let wait = if margin < ttl { ttl - margin } else { ttl / 2 };
        Self { margin, ends: now.saturating_add(ttl), renew_at: now.saturating_add(wait) }
    }

    /// It was renewed at `now` for `ttl`.
    pub fn renewed(&mut self, ttl: Duration, now: Duration) {
        *self = Self::granted(ttl, self.margin, now);
    }

    /// A renewal failed at `now`, for a reason that may pass. It is tried again in a minute, also after the end: the subnet
    /// is still ours as long as nobody else took it.
    pub fn failed(&mut self, now: Duration) {
        self.renew_at = now.saturating_add(Self::RETRY);
    }

    /// Something touched the lease: it is to be renewed at `now`.
    pub fn doubted(&mut self, now: Duration) {
        self.renew_at = self.renew_at.min(now);
    }

    /// When to renew it next.
    #[must_use]
    pub fn poll_timeout(&self) -> Duration {
        self.renew_at
    }

    /// When it ends unless it is renewed. From then on the subnet may be leased to somebody else.
    #[must_use]
    pub fn ends(&self) -> Duration {
        self.ends
    }
}
