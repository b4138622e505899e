//! System calls that fail every time: retries, notices and the end of the worker.

use core::time::Duration;
use std::time::Instant;

use super::WorkerError;
use crate::sys::{RecvError, SendErrorKind, TunError};

/// Failures in a row after which a call is not retried at once.
const AT_ONCE: u32 = 8;

/// The pause before the next attempt of such a call. It gives 40 attempts a second, each of which is at most two system
/// calls.
pub(super) const PAUSE: Duration = Duration::from_millis(25);

/// The time for which a call may fail every time before the worker ends.
const LASTS: Duration = Duration::from_secs(10);

/// The shortest time between two notices about a call.
const QUIET: Duration = Duration::from_secs(60);

/// A system call that failed several times in a row, and the error of the last time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// Reading from the TUN device.
    #[error("reading from the TUN device fails every time: {0}")]
    Read(TunError),
    /// Receiving from the UDP socket.
    #[error("receiving from the UDP socket fails every time: {0}")]
    Receive(RecvError),
    /// Sending to any peer. It ends the worker only if the system call is missing (ENOSYS). Other errors may be due to
    /// peers, routes or a firewall, and are counted for each peer.
    #[error("sending fails every time: {0}")]
    Send(SendErrorKind),
    /// Writing a packet to the TUN device, which is up.
    #[error("writing to the TUN device fails every time: {0}")]
    Write(TunError),
}

/// The failures of each kind of call.
#[derive(Debug, Default)]
pub(super) struct Failing {
    read: Streak,
    receive: Streak,
    send: Streak,
    write: Streak,
}

/// Failures of one kind of call without a success in between.
#[derive(Debug, Default)]
struct Streak {
    failures: u32,
    /// The time of the first of them.
    since: Option<Instant>,
    /// The earliest time of the next attempt.
    retry_at: Option<Instant>,
    said_at: Option<Instant>,
    notice: Option<Failure>,
}

impl Failure {
    /// Returns whether this failure can end a worker.
    fn is_final(self) -> bool {
        match self {
            Self::Read(_) | Self::Receive(_) | Self::Write(_) => true,
            Self::Send(kind) => kind == SendErrorKind::Other(libc::ENOSYS),
        }
    }
}

impl Failing {
    /// Notes a failure. Returns whether the call has to wait for its next attempt.
    ///
    /// # Errors
    /// If the call has failed for too long.
    #[cold]
    pub(super) fn fails(&mut self, failure: Failure, now: Instant) -> Result<bool, WorkerError> {
        let streak = match failure {
            Failure::Read(_) => &mut self.read,
            Failure::Receive(_) => &mut self.receive,
            Failure::Send(_) => &mut self.send,
            Failure::Write(_) => &mut self.write,
        };
        streak.add(failure, now)
    }

    /// Permits the attempts that are due.
    #[inline]
    pub(super) fn wake(&mut self, now: Instant) {
        for streak in [&mut self.read, &mut self.receive, &mut self.send, &mut self.write] {
            if streak.retry_at.is_some_and(|at| at <= now) {
                streak.retry_at = None;
            }
        }
    }

    /// Returns the time of the next read of the TUN, if a retry waits.
    pub(super) fn read_at(&self) -> Option<Instant> {
        self.read.retry_at
    }

    /// Returns the time of the next receive from the socket, if a retry waits. Received packets go to the TUN, so that
    /// a failing write delays it too.
    pub(super) fn receive_at(&self) -> Option<Instant> {
        self.receive.retry_at.max(self.write.retry_at)
    }

    /// Returns the time of the next send, if a retry waits.
    pub(super) fn send_at(&self) -> Option<Instant> {
        self.send.retry_at
    }

    /// Notes that reading works, even if there is nothing to read.
    #[inline]
    pub(super) fn read_works(&mut self) {
        self.read.end();
    }

    /// Notes that receiving works, even if there is nothing to receive.
    #[inline]
    pub(super) fn receive_works(&mut self) {
        self.receive.end();
    }

    /// Notes that a send succeeded.
    #[inline]
    pub(super) fn send_works(&mut self) {
        self.send.end();
    }

    /// Notes that a write succeeded.
    #[inline]
    pub(super) fn write_works(&mut self) {
        self.write.end();
    }

    /// Returns the failures to report since the last call.
    pub(super) fn take(&mut self) -> impl Iterator<Item = Failure> {
        [&mut self.read, &mut self.receive, &mut self.send, &mut self.write]
            .into_iter()
            .filter_map(|streak| streak.notice.take())
    }
}

impl Streak {
    fn add(&mut self, failure: Failure, now: Instant) -> Result<bool, WorkerError> {
        self.failures = self.failures.saturating_add(1);
        let since = *self.since.get_or_insert(now);
        if self.failures < AT_ONCE {
            return Ok(false);
        }
        if self.said_at.is_none_or(|at| now.saturating_duration_since(at) >= QUIET) {
            (self.said_at, self.notice) = (Some(now), Some(failure));
        }
        if !failure.is_final() {
            return Ok(false);
        }
        if now.saturating_duration_since(since) >= LASTS {
            return Err(WorkerError::CallFails { failure, seconds: LASTS.as_secs() });
        }
        self.retry_at = Some(now + PAUSE);
        Ok(true)
    }

    #[inline]
    fn end(&mut self) {
        (self.failures, self.since, self.retry_at) = (0, None, None);
    }
}
