//! The arguments of a worker's calls, and their result.

use core::num::NonZeroU32;
use core::time::Duration;
use std::time::Instant;

/// File descriptors that are ready: readable, or in an error state. Both are `false` if only the timeout has passed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ready {
    /// The TUN device is ready.
    pub tun: bool,
    /// The UDP socket is ready.
    pub udp: bool,
}

impl Ready {
    /// Both may be ready. A worker tries each with one system call, which costs less than a microsecond.
    pub const ALL: Self = Self { tun: true, udp: true };
}

/// The events to wait for before the next call of [`Worker::handle`](super::Worker::handle). The first of them ends the
/// wait.
///
/// It is valid until that call. After an error there is nothing to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the next call is due at its events"]
#[non_exhaustive]
pub struct Next {
    /// Wait until the TUN device is readable. It was drained, so that an edge-triggered caller may consume its
    /// readiness.
    pub tun: bool,
    /// Wait until the UDP socket is readable. It was drained, too.
    pub udp: bool,
    /// Wait until this time at most. A time that has passed means: call again at once, after other work.
    pub wake_at: Option<Instant>,
}

impl Next {
    /// Returns the longest time to wait: zero if the next call is due, `None` for no limit.
    #[must_use]
    pub fn timeout(&self, now: Instant) -> Option<Duration> {
        self.wake_at.map(|at| at.saturating_duration_since(now))
    }
}

/// A limit on the work of one call: packets in each direction.
///
/// It keeps one direction from starving the other, and both from starving the caller's own work. Messages from peers
/// are received up to 16 at a time, and a call processes all messages that it has received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget(NonZeroU32);

impl Budget {
    /// Returns a budget of this many packets; 0 counts as 1.
    #[must_use]
    pub const fn packets(count: u32) -> Self {
        match NonZeroU32::new(count) {
            Some(count) => Self(count),
            None => Self(NonZeroU32::MIN),
        }
    }

    /// Returns the number of packets.
    #[must_use]
    pub const fn count(self) -> u32 {
        self.0.get()
    }
}

impl Default for Budget {
    /// Returns 256 packets: 0.1 to 0.3 ms of work. Each datagram of a GSO packet or GRO batch counts.
    fn default() -> Self {
        Self::packets(256)
    }
}
