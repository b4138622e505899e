//! The arguments of a worker's calls, and their result.

use core::num::NonZeroU32;
use core::time::Duration;
use std::time::Instant;

/// File descriptors that are ready: readable, or in an error state. Both are `false` if only a moment has come.
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

/// The events to wait for before the next call of [`Worker::handle`](super::Worker::handle): whichever comes first.
///
/// It holds until that call. A worker that has ended waits for nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the next call is due at its events"]
#[non_exhaustive]
pub struct Next {
    /// Wait until the TUN device is readable. It was drained: an edge-triggered caller may take its readiness as consumed.
    pub tun: bool,
    /// Wait until the UDP socket is readable. It was drained, too.
    pub udp: bool,
    /// Wait until this moment at most. A moment that has passed means: call again at once, after other work.
    pub wake_at: Option<Instant>,
}

impl Next {
    /// Time to wait at most: zero if the next call is due, `None` for no limit.
    #[must_use]
    pub fn timeout(&self, now: Instant) -> Option<Duration> {
        self.wake_at.map(|at| at.saturating_duration_since(now))
    }
}

/// A limit on the work of one call: packets in each direction.
///
/// It keeps one direction from starving the other, and both from starving your own work. Messages from peers are
/// received up to 16 at a time, and a call sees to all that it has received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget(NonZeroU32);

impl Budget {
    /// This many; 0 is taken for 1.
    #[must_use]
    pub const fn packets(count: u32) -> Self {
        match NonZeroU32::new(count) {
            Some(count) => Self(count),
            None => Self(NonZeroU32::MIN),
        }
    }

    /// How many.
    #[must_use]
    pub const fn count(self) -> u32 {
        self.0.get()
    }
}

impl Default for Budget {
    /// 256 packets: 0.1 to 0.3 ms of work. Every datagram is one, also of a super-packet or a train.
    fn default() -> Self {
        Self::packets(256)
    }
}
