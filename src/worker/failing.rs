//! System calls that fail every time: when to try them again, when to say so, and when to end.

use core::time::Duration;
use std::time::Instant;

use super::WorkerError;
use crate::sys::{RecvError, SendErrorKind, TunError};

/// Failures in a row after which a call is not tried again at once.
const AT_ONCE: u32 = 8;

/// How long such a call then waits for its next attempt: 40 attempts a second, each of which is two system calls at most.
pub(super) const PAUSE: Duration = Duration::from_millis(25);

/// How long a call may fail every time before the worker ends.
const LASTS: Duration = Duration::from_secs(10);

/// How long nothing more is said about a call after a notice.
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
    /// Sending to any peer. It ends the worker only if the system call is missing (ENOSYS): everything else may be due to the
    /// peers, to routes or to a firewall, and is counted for each peer.
    #[error("sending fails every time: {0}")]
    Send(SendErrorKind),
    /// Writing a packet to the TUN device, which is up.
    #[error("writing to the TUN device fails every time: {0}")]
    Write(TunError),
}

/// Each kind of call, and how it does.
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
    /// When the first of them was.
    since: Option<Instant>,
    /// The next attempt is not made before.
    retry_at: Option<Instant>,
    said_at: Option<Instant>,
    notice: Option<Failure>,
}

impl Failure {
    /// Whether it can end a worker.
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
    /// If it has lasted too long.
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

    /// Permits the attempts whose time has come.
    #[inline]
    pub(super) fn wake(&mut self, now: Instant) {
        for streak in [&mut self.read, &mut self.receive, &mut self.send, &mut self.write] {
            if streak.retry_at.is_some_and(|at| at <= now) {
                streak.retry_at = None;
            }
        }
    }

    /// When the TUN may be read again, if not now.
    pub(super) fn read_at(&self) -> Option<Instant> {
        self.read.retry_at
    }

    /// When the socket may be received from again, if not now. What is received goes to the TUN, so that a TUN that takes nothing
    /// is a reason to wait too.
    pub(super) fn receive_at(&self) -> Option<Instant> {
        self.receive.retry_at.max(self.write.retry_at)
    }

    /// When anything may be sent again, if not now.
    pub(super) fn send_at(&self) -> Option<Instant> {
        self.send.retry_at
    }

    /// Reading works, even if there is nothing to read.
    #[inline]
    pub(super) fn read_works(&mut self) {
        self.read.end();
    }

    /// Receiving works, even if there is nothing to receive.
    #[inline]
    pub(super) fn receive_works(&mut self) {
        self.receive.end();
    }

    /// Something was sent.
    #[inline]
    pub(super) fn send_works(&mut self) {
        self.send.end();
    }

    /// Something was written.
    #[inline]
    pub(super) fn write_works(&mut self) {
        self.write.end();
    }

    /// What was found since the last time.
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
