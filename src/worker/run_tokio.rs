//! The loop as a future on tokio.

use core::future::{Future, poll_fn};
use core::pin::pin;
use core::task::Poll;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Instant;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::sleep_until;

use super::error::system;
use super::{Budget, Ready, Worker, WorkerError};
use crate::framing::Framing;

/// Runs a worker until `stop` is ready.
///
/// It is cancel-safe: a future that is dropped loses no packet, and the worker may run again. [`Worker::stop`] returns the final
/// counters. While it runs, other tasks use a [`Handle`](super::Handle).
///
/// # Errors
/// The error that ended the worker.
///
/// # Panics
/// Outside a tokio runtime with I/O and time enabled, as tokio's own types do.
pub async fn run_tokio<F: Framing>(worker: &mut Worker<F>, stop: impl Future<Output = ()>) -> Result<(), WorkerError> {
    let (tun, udp) = (watch(worker.tun())?, watch(worker.udp())?);
    let mut stop = pin!(stop);
    let mut ready = Ready::default();
    loop {
        let now = Instant::now();
        let next = worker.handle(ready, Budget::default(), now)?;
        ready = Ready::default();
        if next.wake_at.is_some_and(|at| at <= now) {
            // Other tasks, and `stop`, run in between.
            let is_stopped = poll_fn(|context| Poll::Ready(stop.as_mut().poll(context).is_ready())).await;
            if is_stopped {
                return Ok(());
            }
            tokio::task::yield_now().await;
            // The other file descriptor is not starved meanwhile.
            ready = Ready::ALL;
            continue;
        }
        let wake_at = next.wake_at.unwrap_or(now);
        tokio::select! {
            () = &mut stop => return Ok(()),
            guard = tun.ready(READABLE), if next.tun => {
                // The file descriptor was drained when this readiness was consumed. Packets that arrived since then are
                // a new event.
                guard.map_err(|error| system("epoll_wait", &error))?.clear_ready();
                ready.tun = true;
            }
            guard = udp.ready(READABLE), if next.udp => {
                guard.map_err(|error| system("epoll_wait", &error))?.clear_ready();
                ready.udp = true;
            }
            () = sleep_until(wake_at.into()), if next.wake_at.is_some() => {}
        }
    }
}

/// A deleted device is in an error state, but not readable.
const READABLE: Interest = Interest::READABLE.add(Interest::ERROR);

/// Registers a duplicate, because the worker needs the original itself.
#[expect(deprecated, reason = "the successor is unsafe, because not every `AsRawFd` keeps its word as `OwnedFd` does")]
fn watch(fd: BorrowedFd<'_>) -> Result<AsyncFd<OwnedFd>, WorkerError> {
    let watch = |fd: BorrowedFd<'_>| -> io::Result<_> { AsyncFd::with_interest(fd.try_clone_to_owned()?, READABLE) };
    watch(fd).map_err(|error| system("epoll_ctl", &error))
}
