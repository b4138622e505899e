//! Delays between attempts to reach a source.

use core::time::Duration;

/// A delay timer for a source that fails. It also distinguishes the first failure from its repetitions.
///
/// A successful listing does not reset the delay. After a compaction of etcd, every list succeeds and every watch fails
/// at once; a reset would then poll as fast as the network allows. The delay is reset after the source has worked for
/// as long as the last delay.
/// last delay does.
///
/// ```
/// use core::time::Duration;
/// use loden::lease::Backoff;
/// let mut backoff = Backoff::default();
/// let first = backoff.failed(Duration::from_secs(100), u64::MAX);
/// assert_eq!((first.at, first.is_news), (Duration::from_secs(101), true));
/// backoff.succeeded(first.at);
/// let second = backoff.failed(first.at, u64::MAX);
/// assert_eq!((second.at, second.is_news), (Duration::from_secs(103), false));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    least: Duration,
    most: Duration,
    /// The last delay without the random reduction. It is zero if the source works.
    delay: Duration,
    well_since: Option<Duration>,
}

/// The reaction to a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Retry {
    /// The time of the next attempt, on the caller's clock.
    pub at: Duration,
    /// True for the first failure after the source worked. Log this one.
    pub is_news: bool,
}

impl Backoff {
    /// The first delay of [`Backoff::default`].
    pub const LEAST: Duration = Duration::from_secs(1);
    /// The longest delay of [`Backoff::default`]: flannel retries after a minute.
    pub const MOST: Duration = Duration::from_secs(60);

    /// Creates a timer whose delays double from `least` (at least a millisecond) to `most` (at least `least`).
    #[must_use]
    pub fn new(least: Duration, most: Duration) -> Self {
        let least = least.max(Duration::from_millis(1));
        Self { least, most: most.max(least), delay: Duration::ZERO, well_since: None }
    }

    /// Records a failed attempt at `now`. `random` is any number. It shortens the delay by up to half, so hosts that
    /// lost their source together do not retry together.
    pub fn failed(&mut self, now: Duration, random: u64) -> Retry {
        let went_well = self.well_since.take().is_some_and(|since| now.saturating_sub(since) >= self.delay);
        if went_well {
            self.delay = Duration::ZERO;
        }
        let is_news = self.delay.is_zero();
        self.delay = self.delay.saturating_mul(2).clamp(self.least, self.most);
        let least = self.delay / 2;
        let wait = least + scaled(self.delay - least, (random >> 32) + 1);
        Retry { at: now.saturating_add(wait), is_news }
    }

    /// Records a successful attempt at `now`.
    pub fn succeeded(&mut self, now: Duration) {
        self.well_since.get_or_insert(now);
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self::new(Self::LEAST, Self::MOST)
    }
}

/// Returns `parts` / 2³² of a duration.
fn scaled(duration: Duration, parts: u64) -> Duration {
    let nanos = (duration.as_nanos() * u128::from(parts)) >> 32;
    u64::try_from(nanos).map_or(duration, Duration::from_nanos)
}
