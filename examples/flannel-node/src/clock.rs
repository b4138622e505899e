//! The library's time: the time since the start of this process. The clock cannot be set, and it includes the time that
//! the host is suspended, because etcd's leases expire meanwhile.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use tokio::time::sleep;

/// The interval at which a wait checks the clock: timers stop while the host is suspended.
const CHECK_INTERVAL: Duration = Duration::from_secs(60);

/// A clock that started at zero.
#[derive(Clone, Copy)]
pub(crate) struct Clock {
    start: Duration,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self { start: since_boot() }
    }

    pub(crate) fn now(self) -> Duration {
        since_boot().saturating_sub(self.start)
    }

    /// Waits until this clock reaches `at`, or up to a minute longer if the host was suspended.
    pub(crate) async fn sleep_until(self, at: Duration) {
        sleep_until(at, || self.now()).await;
    }
}

fn since_boot() -> Duration {
    // Linux has this clock since 2.6.39.
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from)
}

async fn sleep_until(at: Duration, mut now: impl FnMut() -> Duration) {
    loop {
        let left = at.saturating_sub(now());
        if left.is_zero() {
            return;
        }
        sleep(left.min(CHECK_INTERVAL)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::Instant;

    const HOUR: Duration = Duration::from_secs(3600);

    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_on_time() {
        let start = Instant::now();
        sleep_until(23 * HOUR, || start.elapsed()).await;
        assert_eq!(start.elapsed(), 23 * HOUR);
        sleep_until(HOUR, || start.elapsed()).await;
        assert_eq!(start.elapsed(), 23 * HOUR, "what is over is not waited for");
    }

    #[tokio::test(start_paused = true)]
    async fn a_suspended_host_wakes_at_most_a_minute_late() {
        let start = Instant::now();
        let slept = 20 * HOUR;
        // The host is suspended for most of a day, four hours after the start.
        let now = || start.elapsed() + if start.elapsed() < 4 * HOUR { Duration::ZERO } else { slept };
        sleep_until(23 * HOUR, now).await;
        assert!(start.elapsed() <= 4 * HOUR + CHECK_INTERVAL, "{:?}", start.elapsed());
    }
}
