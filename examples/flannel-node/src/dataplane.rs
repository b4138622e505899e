//! The data plane: one worker in its own thread, so packets do not wait for etcd, nor leases for packets.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use loden::forward::Counters;
use loden::worker::{Budget, Notice, Progress, Stranger, Worker, WorkerError};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::sync::{mpsc, oneshot};

use crate::Error;

/// The thread. It ends when this is dropped.
pub(crate) struct Dataplane {
    asks: Sender<Ask>,
    wake: Arc<EventFd>,
    thread: Option<JoinHandle<Counters>>,
    /// The reason why it ended by itself.
    pub(crate) ended: oneshot::Receiver<Error>,
    /// Reports for the operator.
    pub(crate) reports: mpsc::Receiver<Report>,
}

/// A report of the worker for the operator.
pub(crate) enum Report {
    Notice(Notice),
    Stranger(Stranger),
}

/// The number of waiting reports. Further ones are dropped.
const REPORTS: usize = 16;

enum Ask {
    Mtu(u16),
    Stop,
}

impl Dataplane {
    pub(crate) fn start(mut worker: Worker) -> Result<Self, Error> {
        let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?);
        let (asks, asked) = channel();
        let (ends, ended) = oneshot::channel();
        let (tells, reports) = mpsc::channel(REPORTS);
        let woken = Arc::clone(&wake);
        let thread = thread::Builder::new().name("forwarding".into()).spawn(move || {
            if let Err(error) = run(&mut worker, &asked, &woken, &tells) {
                let _ = ends.send(error);
            }
            worker.stop();
            worker.counters().clone()
        })?;
        Ok(Self { asks, wake, thread: Some(thread), ended, reports })
    }

    /// Sets the MTU of inner packets in bytes.
    pub(crate) fn set_mtu(&self, mtu: u16) {
        let _ = self.asks.send(Ask::Mtu(mtu));
        let _ = self.wake.write(1);
    }

    /// Stops the thread within one budget of packets and returns the counters.
    pub(crate) fn stop(&mut self) -> Counters {
        let _ = self.asks.send(Ask::Stop);
        let _ = self.wake.write(1);
        self.thread.take().and_then(|thread| thread.join().ok()).unwrap_or_default()
    }
}

impl Drop for Dataplane {
    fn drop(&mut self) {
        self.stop();
    }
}

fn run(
    worker: &mut Worker,
    asked: &Receiver<Ask>,
    woken: &EventFd,
    reports: &mpsc::Sender<Report>,
) -> Result<(), Error> {
    let budget = Budget::default();
    // The first iteration does not wait, so missing kernel features are reported at once.
    let mut more = true;
    loop {
        let interest = worker.interest();
        let timeout = match interest.wake_at {
            _ if more => PollTimeout::ZERO,
            None => PollTimeout::NONE,
            Some(at) => milliseconds_until(at),
        };
        let readable = if interest.udp_readable { PollFlags::POLLIN } else { PollFlags::empty() };
        let writable = if interest.udp_writable { PollFlags::POLLOUT } else { PollFlags::empty() };
        let mut fds = [
            PollFd::new(woken.as_fd(), PollFlags::POLLIN),
            PollFd::new(worker.udp().as_fd(), readable | writable),
            PollFd::new(worker.tun().as_fd(), PollFlags::POLLIN),
        ];
        let waited_for = if interest.tun_readable { &mut fds[..] } else { &mut fds[..2] };
        match poll(waited_for, timeout) {
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(format!("waiting for packets failed: {errno}").into()),
        }
        let [wake, udp, tun] = fds.map(|fd| fd.revents().unwrap_or(PollFlags::all()));
        let now = Instant::now();
        if !wake.is_empty() {
            let _ = woken.read();
            for ask in asked.try_iter() {
                match ask {
                    Ask::Mtu(mtu) => worker.set_mtu(mtu)?,
                    Ask::Stop => return Ok(()),
                }
            }
        }
        let due = interest.wake_at.is_some_and(|at| at <= now);
        let mut progress = [Progress::Drained; 2];
        if more || due || !tun.is_empty() || udp.contains(PollFlags::POLLOUT) {
            progress[0] = worker.tun_ready(budget, now).map_err(explained)?;
        }
        if more || udp.intersects(!PollFlags::POLLOUT) {
            progress[1] = worker.udp_ready(budget, now).map_err(explained)?;
        }
        more = progress.contains(&Progress::More);
        let notices = worker.take_notices().into_iter().map(Report::Notice);
        for report in notices.chain(worker.take_strangers().into_iter().map(Report::Stranger)) {
            let _ = reports.try_send(report);
        }
    }
}

/// Rewords a worker's error for the operator of a node.
fn explained(error: WorkerError) -> Error {
    if let WorkerError::LinkDeleted { name } = &error { deleted(name) } else { error.into() }
}

pub(crate) fn deleted(name: &str) -> Error {
    format!("the TUN device {name} was deleted; start the node again, the lease stays for a day").into()
}

/// Returns the time until `at`, rounded up so that the loop does not wake too early.
fn milliseconds_until(at: Instant) -> PollTimeout {
    let left = at.saturating_duration_since(Instant::now()) + Duration::from_micros(999);
    PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
}
