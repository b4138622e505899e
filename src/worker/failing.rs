//! System calls that fail every time: retries, notices and the end of the worker.

use core::time::Duration;
use std::time::Instant;

use super::WorkerError;
use super::sockets::SOCKETS_MAX;
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
    /// One for each UDP socket.
    receive: [Streak; SOCKETS_MAX],
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
        self.fails_on(0, failure, now)
    }

    /// Notes a failure of the UDP socket of this number, likewise.
    #[cold]
    pub(super) fn fails_on(&mut self, socket: usize, failure: Failure, now: Instant) -> Result<bool, WorkerError> {
        let [first, second] = &mut self.receive;
        let streak = match failure {
            Failure::Read(_) => &mut self.read,
            Failure::Receive(_) if socket == 0 => first,
            Failure::Receive(_) => second,
            Failure::Send(_) => &mut self.send,
            Failure::Write(_) => &mut self.write,
        };
        streak.add(failure, now)
    }

    /// Permits the attempts that are due.
    #[inline]
    pub(super) fn wake(&mut self, now: Instant) {
        for streak in self.streaks() {
            if streak.retry_at.is_some_and(|at| at <= now) {
                streak.retry_at = None;
            }
        }
    }

    fn streaks(&mut self) -> impl Iterator<Item = &mut Streak> {
        let Self { read, receive, send, write } = self;
        [read, send, write].into_iter().chain(receive)
    }

    /// Returns the time of the next read of the TUN, if a retry waits.
    pub(super) fn read_at(&self) -> Option<Instant> {
        self.read.retry_at
    }

    /// Returns the time of the next receive from the socket of this number, if a retry waits. Received packets go to the
    /// TUN, so that a failing write delays it too.
    pub(super) fn receive_at(&self, socket: usize) -> Option<Instant> {
        self.receive.get(socket).and_then(|streak| streak.retry_at).max(self.write.retry_at)
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

    /// Notes that receiving from the socket of this number works, even if there is nothing to receive.
    #[inline]
    pub(super) fn receive_works(&mut self, socket: usize) {
        if let Some(streak) = self.receive.get_mut(socket) {
            streak.end();
        }
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
        self.streaks().filter_map(|streak| streak.notice.take())
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
