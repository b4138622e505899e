//! One pair of hands: binds a TUN device, a UDP socket, a forwarder and a route reader.
//!
//! The worker has no loop of its own. Yours waits until a file descriptor is ready and calls the method of that name, which
//! does at most a budget of work and never blocks:
//!
//! 1. Ask [`Worker::interest`] what to wait for: TUN readable, UDP readable, at times UDP writable, at times a moment. Wait for
//!    nothing else: what is not asked for may be ready all the time.
//! 2. Wait, with `poll`, `epoll`, tokio or whatever you have.
//! 3. Call [`Worker::tun_ready`] when the TUN is readable, the socket writable or the moment has come; call
//!    [`Worker::udp_ready`] when the socket is readable.
//! 4. On [`Progress::More`] do not wait: see to your other work, then call again. (With level-triggered `poll` that comes of
//!    itself, since what is left is reported at once.)
//! 5. An error is final: the device or the socket is gone. Wait for neither any more, and drop the worker.
//!
//! A deleted TUN device is reported as an error condition, not as readable: with tokio wait for both. `poll` reports it whether
//! asked or not: leave the TUN out of the set while [`Interest::tun_readable`] is false.
//!
//! # Errors that last
//! A call that fails is tried again at once a few times, and then 40 times a second: [`Interest::tun_readable`] or
//! [`Interest::udp_readable`] is false meanwhile, and [`Interest::wake_at`] has the moment of the next attempt. After 10 s
//! without a success the worker ends with [`WorkerError::CallFails`]. Features that the kernel lacks are disabled.
//! [`Worker::take_notices`] returns both, once each, in sentences for a log.

mod failing;
mod inbound;
mod outbound;
mod sender;
mod state;
mod strangers;
#[cfg(test)]
mod tests;
mod unfinished;

use alloc::string::String;
use alloc::vec::Vec;
use core::net::{IpAddr, SocketAddr};
use core::num::NonZeroU32;
use std::time::Instant;

pub use self::failing::Failure;
use self::inbound::Inbound;
use self::outbound::Outbound;
use self::sender::Held;
use self::state::{Ends, State};
pub use self::strangers::Stranger;
use crate::forward::{Counters, DropReason, Forwarder, IcmpLimiter, OverlayError};
use crate::route::RouteReader;
use crate::sys::{Feature, Tun, UdpTransport};

/// Moves packets between one TUN device and one UDP socket.
///
/// Memory: 1 MiB for datagrams to send, 1 MiB for received ones, 1 MiB for GSO packets to the TUN and three packets, of which
/// only what was used is resident; the ICMP limiter's 30 KiB, up to 1,024 learned path MTUs and as many counters of send errors,
/// and a share in the route table. No call allocates for a packet that is forwarded.
#[derive(Debug)]
pub struct Worker {
    ends: Ends,
    routes: RouteReader,
    state: State,
    outbound: Outbound,
    inbound: Inbound,
    /// Why it ended, once it has: a file descriptor that was closed may be somebody else's by now.
    ended: Option<WorkerError>,
    /// Disabled features that a notice has named.
    noticed: Vec<Feature>,
}

/// How many packets, or other units of work, one call may do.
///
/// It is what keeps one direction from starving the other, and both from starving your own work. Messages from peers are
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
    /// 256 packets: 0.1 to 0.3 ms of work. Every datagram is one, also of a GSO packet or a train.
    fn default() -> Self {
        Self::packets(256)
    }
}

/// Whether there is more to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "after `More` the next call must not wait for readiness"]
#[non_exhaustive]
pub enum Progress {
    /// Nothing is left: wait until the file descriptor is ready again.
    Drained,
    /// There may be more to read, but not now: packets wait for the UDP socket, or a call that fails waits for its next attempt;
    /// see [`Worker::interest`]. Whoever is told of readiness only once, as with tokio, must not take the file descriptor for
    /// drained, and must take the socket for not writable.
    Held,
    /// The budget is used up. Call again without waiting, after seeing to other work.
    More,
}

/// What to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Interest {
    /// Whether to wait for the TUN: not while packets from it wait for the socket, or reading from it fails.
    pub tun_readable: bool,
    /// Whether to wait until the UDP socket is readable: not while receiving from it fails, or writing to the TUN.
    pub udp_readable: bool,
    /// Whether to wait until the UDP socket is writable.
    pub udp_writable: bool,
    /// When to call [`Worker::tun_ready`] at the latest.
    pub wake_at: Option<Instant>,
}

/// Something that an operator should know of, in a sentence for a log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Notice {
    /// The kernel or a sandbox lacks features, and the worker goes on without them.
    #[error("this kernel, or the sandbox around this process, lacks {}; it goes on without", listed(.0))]
    Disabled(
        /// Those that no notice named before.
        Vec<Feature>,
    ),
    /// A system call fails every time. At most once a minute for each kind of call.
    #[error("{0}")]
    Failing(Failure),
}

fn listed(features: &[Feature]) -> String {
    let names: Vec<_> = features.iter().map(ToString::to_string).collect();
    names.join(", ")
}

/// The end of a worker. No call works afterwards; every one says so again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WorkerError {
    /// A system call failed every time for so long that it is not going to work: a sandbox forbids it, for example.
    #[error("{failure}, for {seconds} s; see whether a sandbox such as seccomp forbids the system call")]
    CallFails {
        /// Which call, and its last error.
        failure: Failure,
        /// For how many seconds.
        seconds: u64,
    },
    /// Somebody deleted the TUN device.
    #[error("the TUN device {name} was deleted; open a new one and a new worker")]
    LinkDeleted {
        /// Its name.
        name: String,
    },
    /// The UDP socket's file descriptor is closed: a mistake in this process.
    #[error("the UDP socket {local} is closed: something in this process closed a file descriptor that is not its own")]
    SocketClosed {
        /// The address it was bound to.
        local: SocketAddr,
    },
    /// The TUN's file descriptor is closed: a mistake in this process.
    #[error("the TUN device {name} is closed: something in this process closed a file descriptor that is not its own")]
    TunClosed {
        /// Its name.
        name: String,
    },
}

impl Worker {
    /// A worker with empty counters.
    #[must_use]
    pub fn new(tun: Tun, udp: UdpTransport, forwarder: Forwarder, routes: RouteReader) -> Self {
        let ends = Ends { tun, udp, forwarder };
        let inbound = Inbound::new(&ends);
        let (state, outbound) = (State::new(), Outbound::new());
        Self { ends, routes, state, outbound, inbound, ended: None, noticed: Vec::new() }
    }

    /// The same worker with other limits on the ICMP errors it sends.
    #[must_use]
    pub fn with_icmp_limiter(mut self, limiter: IcmpLimiter) -> Self {
        self.state.limiter = limiter;
        self
    }

    /// The same worker, but packets do not wait for each other: one at a time is read, decided on and written. To compare, and
    /// to find faults.
    #[must_use]
    pub fn one_by_one(mut self) -> Self {
        self.outbound.batched = false;
        self.inbound.one_by_one();
        self
    }

    /// From now on the underlay carries inner packets of at most `mtu` bytes: the smaller of what its interface carries
    /// (`link::Underlay::tun_mtu`) and of the TUN device's MTU. `link::LinkMonitor` tells when either changes; call it then.
    ///
    /// - The next packet that is read is decided on by it. The senders of longer ones are told the new number.
    /// - Packets that wait for the socket were decided on already: they leave as they are, unless the interface refuses them,
    ///   and then their senders are told.
    /// - Unless the limit becomes lower, the paths' MTUs that were learned are forgotten: it may have been our own interface
    ///   that was narrow. Those of paths that are narrow further on are learned again with one packet each.
    /// - Packets from peers have no limit: what the underlay carried goes to the TUN.
    ///
    /// # Errors
    /// [`OverlayError::Mtu`] below 68 bytes; nothing changes then.
    pub fn set_mtu(&mut self, mtu: u16) -> Result<(), OverlayError> {
        let before = self.ends.forwarder.overlay().mtu;
        self.ends.forwarder.set_mtu(mtu)?;
        if mtu >= before {
            self.state.paths.forget();
        }
        Ok(())
    }

    /// Moves packets from the TUN to their peers.
    ///
    /// # Errors
    /// If the device or the socket is gone, or a call has failed for 10 s.
    pub fn tun_ready(&mut self, budget: Budget, now: Instant) -> Result<Progress, WorkerError> {
        self.unless_ended(now, |worker| {
            let outcome = worker.outbound.run(&worker.ends, worker.routes.table(), &mut worker.state, budget, now);
            worker.ends.udp.retry_trains(now);
            worker.state.counters.stats.gso_fallbacks = worker.ends.udp.gso_fallbacks();
            outcome
        })
    }

    /// Moves datagrams from peers to the TUN.
    ///
    /// # Errors
    /// If the device or the socket is gone, or a call has failed for 10 s.
    pub fn udp_ready(&mut self, budget: Budget, now: Instant) -> Result<Progress, WorkerError> {
        self.unless_ended(now, |worker| {
            worker.inbound.run(&worker.ends, worker.routes.table(), &mut worker.state, budget, now)
        })
    }

    fn unless_ended(
        &mut self,
        now: Instant,
        act: impl FnOnce(&mut Self) -> Result<Progress, WorkerError>,
    ) -> Result<Progress, WorkerError> {
        if let Some(error) = &self.ended {
            return Err(error.clone());
        }
        if self.routes.update() {
            self.outbound.drop_stale(self.routes.table(), &mut self.state);
        }
        self.state.failing.wake(now);
        let outcome = act(self);
        if let Err(error) = &outcome {
            self.ended = Some(error.clone());
            self.stop();
        }
        outcome
    }

    /// What to wait for now; after an error nothing: both file descriptors may be ready for ever.
    #[must_use]
    pub fn interest(&self) -> Interest {
        if self.ended.is_some() {
            return Interest { tun_readable: false, udp_readable: false, udp_writable: false, wake_at: None };
        }
        let (read_at, receive_at) = (self.state.failing.read_at(), self.state.failing.receive_at());
        let (held, due) = (self.outbound.held(), self.outbound.due());
        let wake_at = [held.map(Held::wake_at).or(due), read_at, receive_at].into_iter().flatten().min();
        Interest {
            tun_readable: held.is_none() && read_at.is_none(),
            udp_readable: receive_at.is_none(),
            udp_writable: held.is_some_and(|held| held.retry_at.is_none()),
            wake_at,
        }
    }

    /// Returns what an operator should know of since the last call: features that the kernel lacks, and calls that fail every
    /// time. Call it after [`Worker::new`] and from time to time. Each is returned once; there is no flood of them.
    #[must_use]
    pub fn take_notices(&mut self) -> Vec<Notice> {
        let disabled: Vec<_> = self.disabled().filter(|feature| !self.noticed.contains(feature)).collect();
        self.noticed.extend_from_slice(&disabled);
        let disabled = (!disabled.is_empty()).then_some(Notice::Disabled(disabled));
        disabled.into_iter().chain(self.state.failing.take().map(Notice::Failing)).collect()
    }

    /// The features of device and socket that the kernel lacks or refused, and that are not used therefore.
    pub fn disabled(&self) -> impl Iterator<Item = Feature> {
        self.ends.tun.disabled().chain(self.ends.udp.disabled())
    }

    /// Gives up what is held, so that the counters are final.
    pub fn stop(&mut self) {
        self.outbound.clear();
        for flow in [&mut self.state.counters.encap, &mut self.state.counters.decap] {
            flow.discard_all(DropReason::Stopped, flow.held());
        }
    }

    /// Where every packet went.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.state.counters
    }

    /// How many packets could not be sent to each peer, for the first 1,024 peers that had any.
    pub fn send_errors(&self) -> impl Iterator<Item = (IpAddr, u64)> {
        self.state.send_errors.iter().map(|(peer, count)| (*peer, *count))
    }

    /// Returns the strangers that were met since the last call: senders of datagrams that were dropped as
    /// [`DropReason::UnknownPeer`] and whose inner source belongs to a peer's subnet. Call it after [`Worker::udp_ready`] to
    /// tell an operator of peers behind NAT.
    ///
    /// Each pair of sender and peer is returned once. Memory is bounded: the last 64 pairs are remembered. At most 100 such
    /// datagrams a second are looked at, so that a flood of them costs next to nothing.
    #[must_use]
    pub fn take_strangers(&mut self) -> Vec<Stranger> {
        self.state.strangers.take()
    }

    /// The TUN device, to wait for.
    #[must_use]
    pub fn tun(&self) -> &Tun {
        &self.ends.tun
    }

    /// The UDP socket, to wait for.
    #[must_use]
    pub fn udp(&self) -> &UdpTransport {
        &self.ends.udp
    }

    /// The forwarder.
    #[must_use]
    pub fn forwarder(&self) -> &Forwarder {
        &self.ends.forwarder
    }
}
