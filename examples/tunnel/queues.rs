//! Workers beside the first one, each on a thread of its own with a queue of the TUN and a socket.

use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use loden::forward::Counters;
use loden::worker::{Budget, Progress, Worker};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::report::say_strangers;
use crate::{Error, milliseconds_until};

/// Where the packets of one worker, or of several, went.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) counters: Counters,
    pub(crate) send_errors: Vec<(IpAddr, u64)>,
}

impl Tally {
    pub(crate) fn of(worker: &Worker) -> Self {
        Self { counters: worker.counters().clone(), send_errors: worker.send_errors().collect() }
    }

    fn add(&mut self, other: &Self) {
        self.counters += &other.counters;
        for (peer, count) in &other.send_errors {
            match self.send_errors.iter_mut().find(|(known, _)| known == peer) {
                Some((_, sum)) => *sum += count,
                None => self.send_errors.push((*peer, *count)),
            }
        }
    }
}

/// The threads. They end when this is dropped.
pub(crate) struct Queues {
    queues: Vec<Queue>,
    /// Readable when one of them has ended.
    ended: Arc<EventFd>,
}

struct Queue {
    asks: Sender<Ask>,
    wake: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
    /// What it says at its end.
    last_words: Receiver<(Tally, Result<(), Error>)>,
    last: Option<Tally>,
    /// Why it ended, if it was not asked to.
    failure: Option<Error>,
}

/// Also when the thread panics.
struct TellsOfItsEnd(Arc<EventFd>);

impl Drop for TellsOfItsEnd {
    fn drop(&mut self) {
        let _ = self.0.write(1);
    }
}

enum Ask {
    Mtu(u16),
    Report(Sender<Tally>),
    Stop,
}

impl Queues {
    pub(crate) fn start(workers: Vec<Worker>) -> Result<Self, Error> {
        let event = || EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC);
        let mut queues = Self { queues: Vec::new(), ended: Arc::new(event()?) };
        for (number, worker) in workers.into_iter().enumerate() {
            let (asks, asked) = channel();
            let (says, last_words) = channel();
            let wake = Arc::new(event()?);
            let (woken, ended) = (Arc::clone(&wake), Arc::clone(&queues.ended));
            let thread = thread::Builder::new().name(format!("queue {}", number + 1)).spawn(move || {
                let _ended = TellsOfItsEnd(ended);
                let mut worker = worker;
                let outcome = run(&mut worker, &asked, &woken);
                worker.stop();
                let _ = says.send((Tally::of(&worker), outcome));
            })?;
            queues.queues.push(Queue { asks, wake, thread: Some(thread), last_words, last: None, failure: None });
        }
        Ok(queues)
    }

    /// To wait for: readable when a worker has ended.
    pub(crate) fn ended(&self) -> BorrowedFd<'_> {
        self.ended.as_fd()
    }

    /// Adds all that they did to a tally.
    pub(crate) fn add_to(&mut self, tally: &mut Tally) {
        for queue in &mut self.queues {
            match queue.report() {
                Some(reported) => tally.add(&reported),
                None => {
                    queue.join();
                    tally.add(queue.last.as_ref().unwrap_or(&Tally::default()));
                }
            }
        }
    }

    /// Tells them all how long a packet may be.
    pub(crate) fn set_mtu(&self, mtu: u16) {
        for queue in &self.queues {
            let _ = queue.asks.send(Ask::Mtu(mtu));
            let _ = queue.wake.write(1);
        }
    }

    /// Ends them all. An error is the first that one of them ended with.
    pub(crate) fn stop(&mut self) -> Result<(), Error> {
        for queue in &self.queues {
            let _ = queue.asks.send(Ask::Stop);
            let _ = queue.wake.write(1);
        }
        self.queues.iter_mut().for_each(Queue::join);
        self.queues.iter_mut().find_map(|queue| queue.failure.take()).map_or(Ok(()), Err)
    }
}

impl Drop for Queues {
    fn drop(&mut self) {
        let _ = self.stop();
    }
}

impl Queue {
    /// `None` once it has ended. It answers within one budget of packets.
    fn report(&self) -> Option<Tally> {
        let (reply, replied) = channel();
        self.asks.send(Ask::Report(reply)).ok()?;
        let _ = self.wake.write(1);
        replied.recv().ok()
    }

    fn join(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        let _ = thread.join();
        let panicked = || (Tally::default(), Err("a queue's thread panicked: a bug in the tunnel".into()));
        let (tally, outcome) = self.last_words.recv().unwrap_or_else(|_| panicked());
        (self.last, self.failure) = (Some(tally), outcome.err());
    }
}

fn run(worker: &mut Worker, asked: &Receiver<Ask>, woken: &EventFd) -> Result<(), Error> {
    let budget = Budget::default();
    let mut more = false;
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
                    Ask::Report(reply) => drop(reply.send(Tally::of(worker))),
                    Ask::Stop => return Ok(()),
                }
            }
        }
        let due = interest.wake_at.is_some_and(|at| at <= now);
        let mut progress = [Progress::Drained; 2];
        if more || due || !tun.is_empty() || udp.contains(PollFlags::POLLOUT) {
            progress[0] = worker.tun_ready(budget, now)?;
        }
        if more || udp.intersects(!PollFlags::POLLOUT) {
            progress[1] = worker.udp_ready(budget, now)?;
            say_strangers(worker);
        }
        more = progress.contains(&Progress::More);
    }
}
