//! The data plane: a worker on a thread of its own, so that no packet waits for etcd and no lease for packets.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use loden::forward::Counters;
use loden::worker::{Handle, Running, Worker, WorkerError};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

use crate::Error;

/// The running worker. It ends when this is dropped.
pub(crate) struct Dataplane {
    pub(crate) worker: Handle,
    running: Option<Running>,
    ended: AsyncFd<OwnedFd>,
    /// Wakes the node when the worker has something for the operator.
    pub(crate) news: Arc<Notify>,
    progress: Progress,
}

/// The means to notice a worker that does not read the packets that wait for it.
struct Progress {
    /// Duplicates of the TUN device and the socket.
    queues: Vec<OwnedFd>,
    /// The number of packets that were read, if some were waiting at the last check.
    waited: Option<u64>,
}

impl Dataplane {
    pub(crate) fn start(worker: Worker) -> Result<Self, Error> {
        let handle = worker.remote();
        let news = Arc::new(Notify::new());
        let notify = Arc::clone(&news);
        handle.set_listener(move || notify.notify_one());
        // Features that the kernel lacks are known already.
        news.notify_one();
        let queues = vec![worker.tun().try_clone_to_owned()?, worker.udp().try_clone_to_owned()?];
        let running = Running::start([worker])?;
        let ended = watch(&running)?;
        Ok(Self { worker: handle, running: Some(running), ended, news, progress: Progress { queues, waited: None } })
    }

    /// The shortest time between two checks by [`Self::is_stuck`]. A busy worker publishes its counters ten times a second.
    pub(crate) const CHECK_INTERVAL: Duration = Duration::from_millis(200);

    /// Returns true if packets waited at the last check and still wait, and the worker has read none since.
    ///
    /// An idle worker is not stuck. Nor is one that is slower than the packets arrive.
    pub(crate) fn is_stuck(&mut self) -> bool {
        let counters = self.worker.counters();
        let read = counters.encap.received() + counters.decap.received();
        let waits = |queue: &OwnedFd| {
            let mut queue = [PollFd::new(queue.as_fd(), PollFlags::POLLIN)];
            poll(&mut queue, PollTimeout::ZERO).is_ok() && queue[0].revents() == Some(PollFlags::POLLIN)
        };
        let waiting = self.progress.queues.iter().any(waits).then_some(read);
        let before = std::mem::replace(&mut self.progress.waited, waiting);
        before.is_some() && before == waiting
    }

    /// Waits until the worker has ended by itself.
    pub(crate) async fn ended(&self) -> io::Result<()> {
        self.ended.ready(Interest::READABLE).await.map(drop)
    }

    /// Stops the worker, and returns the reason if it had ended by itself.
    pub(crate) fn reason(&mut self) -> Option<Error> {
        self.progress.queues.clear();
        self.running.take().and_then(|running| running.stop().err()).map(explained)
    }

    /// Stops the worker, within one budget of packets, and returns its counters.
    pub(crate) fn stop(&mut self) -> Counters {
        let _ = self.running.take().map(Running::stop);
        self.progress.queues.clear();
        self.worker.counters()
    }
}

#[expect(deprecated, reason = "the successor is unsafe, because not every `AsRawFd` keeps its word as `OwnedFd` does")]
fn watch(running: &Running) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(running.as_fd().try_clone_to_owned()?, Interest::READABLE)
}

/// In the words of who runs a node: the worker's own are for who wrote one.
fn explained(error: WorkerError) -> Error {
    if let WorkerError::LinkDeleted { name } = &error { deleted(name) } else { error.into() }
}

pub(crate) fn deleted(name: &str) -> Error {
    format!("the TUN device {name} was deleted; start the node again, the lease stays for a day").into()
}
