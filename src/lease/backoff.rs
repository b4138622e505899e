//! When to ask a source again.

use core::time::Duration;

/// Spaces out the attempts to list or watch a source that fails, and tells the first failure from its repetitions.
///
/// A listing that succeeds does not end the spacing: after a compaction of etcd every list succeeds and every watch fails at
/// once, and who starts afresh each time asks as fast as the network allows. Only a source that went well for as long as the
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
    /// The last delay, before anything random was taken off; zero if all is well.
    delay: Duration,
    well_since: Option<Duration>,
}

/// What to do about a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Retry {
    /// When to try again, on the caller's clock.
    pub at: Duration,
    /// Whether it is the first failure after all went well: the one to log.
    pub is_news: bool,
}

impl Backoff {
    /// The first delay of [`Backoff::default`].
    pub const LEAST: Duration = Duration::from_secs(1);
    /// The longest delay of [`Backoff::default`]: flannel retries in a minute.
    pub const MOST: Duration = Duration::from_secs(60);

    /// Delays that double from `least` (at least a millisecond) to `most` (at least `least`).
    #[must_use]
    pub fn new(least: Duration, most: Duration) -> Self {
        let least = least.max(Duration::from_millis(1));
        Self { least, most: most.max(least), delay: Duration::ZERO, well_since: None }
    }

    /// An attempt failed at `now`. `random` is any number; it takes up to half of the delay off, so that hosts which lost
    /// their source together do not come back together.
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

    /// An attempt succeeded at `now`.
    pub fn succeeded(&mut self, now: Duration) {
        self.well_since.get_or_insert(now);
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self::new(Self::LEAST, Self::MOST)
    }
}

/// `parts` of 2³² parts.
fn scaled(duration: Duration, parts: u64) -> Duration {
    let nanos = (duration.as_nanos() * u128::from(parts)) >> 32;
    u64::try_from(nanos).map_or(duration, Duration::from_nanos)
}
