//! Time as the library takes it: since the start of this process, by the clock that nobody sets.

use std::time::Duration;

use tokio::time::Instant;

/// A clock that began at zero.
#[derive(Clone, Copy)]
pub(crate) struct Clock(Instant);

impl Clock {
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    pub(crate) fn now(self) -> Duration {
        self.0.elapsed()
    }

    /// When this clock shows `at`.
    pub(crate) fn instant(self, at: Duration) -> Instant {
        /// As good as never, and far from what an `Instant` cannot hold.
        const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
        self.0.checked_add(at).unwrap_or_else(|| Instant::now() + YEAR)
    }
}
