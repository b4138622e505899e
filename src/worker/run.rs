//! The loop over `ppoll`, for programs that have none of their own.

use alloc::format;
use alloc::vec::Vec;
use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

use super::error::system;
use super::{Budget, Ready, Worker, WorkerError};
use crate::forward::Counters;
use crate::framing::Framing;

/// Runs workers until `stop` is readable or closed, and returns the sum of their counters. The first worker runs on
/// this thread, each other one on a thread of its own.
///
/// `stop` may be a `signalfd`, an `eventfd` or the reading end of a pipe. Nothing is read from it. To reach the workers
/// from other threads, take a [`Handle`](super::Handle) with [`Worker::remote`] before the call.
///
/// # Errors
/// The error of the first worker that ended by itself. It ends the others too.
pub fn run<F: Framing + Send>(
    workers: impl IntoIterator<Item = Worker<F>>,
    stop: impl AsFd,
) -> Result<Counters, WorkerError> {
    let mut workers = workers.into_iter();
    let Some(first) = workers.next() else { return Ok(Counters::default()) };
    let (stop, others) = (stop.as_fd(), workers.collect::<Vec<_>>());
    if others.is_empty() {
        return run_one(first, [stop, stop]);
    }
    // Its reading end is readable once the writing end is closed.
    let (ended, end) = io::pipe().map_err(|error| system("pipe", &error))?;
    let end = Mutex::new(Some(end));
    let run_until_any_ends = |worker| {
        let _end = EndsAll(&end);
        run_one(worker, [stop, ended.as_fd()])
    };
    thread::scope(|scope| {
        let mut outcomes = Vec::new();
        let mut threads = Vec::new();
        for (number, worker) in (1..).zip(others) {
            let builder = thread::Builder::new().name(format!("loden {number}"));
            match builder.spawn_scoped(scope, || run_until_any_ends(worker)) {
                Ok(thread) => threads.push(thread),
                Err(error) => {
                    outcomes.push(Err(system("clone", &error)));
                    drop(EndsAll(&end));
                }
            }
        }
        outcomes.push(run_until_any_ends(first));
        let joined =
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        outcomes.extend(joined);
        let mut sum = Counters::default();
        for counters in outcomes {
            sum += &counters?;
        }
        Ok(sum)
    })
}

/// Ends all workers of a [`run`] when it is dropped, also by a panic.
struct EndsAll<'a>(&'a Mutex<Option<PipeWriter>>);

impl Drop for EndsAll<'_> {
    fn drop(&mut self) {
        drop(self.0.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

/// Workers that [`run`] on threads of their own.
///
/// Its file descriptor is readable once they have ended. A loop that waits for other events can wait for it too.
/// Dropping a `Running` stops its workers.
#[derive(Debug)]
pub struct Running {
    /// The workers stop when this end is closed.
    stop: Option<PipeWriter>,
    ended: PipeReader,
    thread: Option<JoinHandle<Result<Counters, WorkerError>>>,
}

impl Running {
    /// Starts the workers. Take a [`Handle`](super::Handle) of them before the call.
    ///
    /// # Errors
    /// [`WorkerError::System`] if no thread or file descriptor can be created.
    pub fn start<F: Framing + Send + 'static>(
        workers: impl IntoIterator<Item = Worker<F>>,
    ) -> Result<Self, WorkerError> {
        let pipe = || io::pipe().map_err(|error| system("pipe", &error));
        let ((stopped, stop), (ended, end)) = (pipe()?, pipe()?);
        let workers: Vec<_> = workers.into_iter().collect();
        let forward = move || {
            let _end = end;
            run(workers, stopped)
        };
        let thread =
            thread::Builder::new().name("loden".into()).spawn(forward).map_err(|error| system("clone", &error))?;
        Ok(Self { stop: Some(stop), ended, thread: Some(thread) })
    }

    /// Stops the workers, within one budget of packets, and returns their counters.
    ///
    /// # Errors
    /// The error of a worker that ended by itself.
    pub fn stop(mut self) -> Result<Counters, WorkerError> {
        self.join()
    }

    fn join(&mut self) -> Result<Counters, WorkerError> {
        drop(self.stop.take());
        let Some(thread) = self.thread.take() else { return Ok(Counters::default()) };
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl AsFd for Running {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ended.as_fd()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !thread::panicking() {
            let _ = self.join();
        }
    }
}

fn run_one<F: Framing>(mut worker: Worker<F>, stops: [BorrowedFd<'_>; 2]) -> Result<Counters, WorkerError> {
    let mut ready = Ready::default();
    loop {
        let next = worker.handle(ready, Budget::default(), Instant::now())?;
        // A file descriptor that `next` does not name is left out, because `poll` reports a deleted device in any case.
        let [stop, ended] = stops;
        let tun = if next.tun { worker.tun() } else { stop };
        let udp = if next.udp { worker.udp() } else { stop };
        let mut fds = [stop, ended, tun, udp].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        let timeout = next.timeout(Instant::now()).map(TimeSpec::from);
        match ppoll(&mut fds, timeout, None) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => {
                worker.stop();
                return Err(system("ppoll", &errno.into()));
            }
        }
        let [stop, ended, tun, udp] = fds.map(|fd| fd.any().unwrap_or(true));
        if stop || ended {
            return Ok(worker.stop());
        }
        ready = Ready { tun, udp };
    }
}
