//! The renewal timer of a lease of this host.

use core::ops::RangeInclusive;
use core::time::Duration;

/// The renewal timer of one lease. Its holder renews the lease at [`poll_timeout`](Self::poll_timeout).
///
/// The caller passes the time, by a clock that does not jump; a wall clock may be set forward. On a host that may be
/// suspended, use a clock that includes the suspension (Linux: `CLOCK_BOOTTIME`, not `Instant`), because the lease also
/// expires meanwhile.
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
    /// flannel's lease duration.
    pub const TTL: Duration = Duration::from_secs(24 * 3600);
    /// The default margin: the time before the end at which a lease is renewed.
    pub const MARGIN: Duration = Duration::from_secs(3600);
    /// The margins that flannel accepts.
    pub const MARGINS: RangeInclusive<Duration> = Duration::from_secs(60)..=Duration::from_secs(1439 * 60);
    /// The delay after a failed renewal.
    pub const RETRY: Duration = Duration::from_secs(60);

    /// Creates the timer of a lease that was granted at `now` for `ttl` and that is renewed `margin` before its end. A
    /// lease no longer than the margin is renewed after half of its duration, to avoid an endless loop of renewals.
    #[must_use]
    pub fn granted(ttl: Duration, margin: Duration, now: Duration) -> Self {
        let wait = if margin < ttl { ttl - margin } else { ttl / 2 };
        Self { margin, ends: now.saturating_add(ttl), renew_at: now.saturating_add(wait) }
    }

    /// Records a renewal at `now` for `ttl`.
    pub fn renewed(&mut self, ttl: Duration, now: Duration) {
        *self = Self::granted(ttl, self.margin, now);
    }

    /// Records a renewal at `now` that failed for a temporary reason. The next attempt is a minute later, even after
    /// the end: the subnet is still this host's as long as nobody else has leased it.
    pub fn failed(&mut self, now: Duration) {
        self.renew_at = now.saturating_add(Self::RETRY);
    }

    /// Schedules a renewal at `now`, because something changed the lease.
    pub fn doubted(&mut self, now: Duration) {
        self.renew_at = self.renew_at.min(now);
    }

    /// Returns the time of the next renewal.
    #[must_use]
    pub fn poll_timeout(&self) -> Duration {
        self.renew_at
    }

    /// Returns the time at which the lease ends unless it is renewed. From then on another host may lease the subnet.
    #[must_use]
    pub fn ends(&self) -> Duration {
        self.ends
    }
}
