//! A worker drives one TUN device and one UDP socket, or one for each IP family of the underlay.
//!
//! It has no loop of its own: call [`run()`], or wait for its file descriptors in a loop of yours.
//!
//! 1. Call [`Worker::handle`] with the file descriptors that are ready. It does a limited amount of work and never
//!    blocks.
//! 2. Wait for the events that [`Next`] names: the TUN device, the UDP socket, or a time. Do not wait for others, because
//!    they may be ready all the time.
//! 3. Go to 1. After an error drop the worker: the device or the socket is gone.
//!
//! With `poll`, leave out a file descriptor that [`Next`] does not name, because `poll` reports errors in any case. With an
//! edge-triggered interface such as tokio's, wait for errors as well as for readability: a deleted TUN device is not
//! readable. Consume the readiness of a file descriptor only if [`Next`] names it.
//!
//! Other threads use a [`Handle`].
//!
//! # Lasting errors
//! A system call that fails is retried at once a few times, and then 40 times a second. [`Next`] names the time of the
//! next attempt. After 10 s without a success the worker ends with [`WorkerError::CallFails`]. Features that the kernel
//! lacks are disabled. [`Handle::take_notices`] reports failing calls and missing features in sentences for a log.

mod error;
mod failing;
mod group;
mod io;
mod next;
mod run;
#[cfg(feature = "tokio")]
mod run_tokio;
mod sockets;
mod strangers;
#[cfg(test)]
mod tests;

use alloc::boxed::Box;

use alloc::vec;
use alloc::vec::Vec;
use core::net::SocketAddr;
use core::time::Duration;
use std::os::fd::{AsFd, BorrowedFd};

use std::time::Instant;

pub use self::error::{Notice, WorkerError};
use self::failing::Failing;
pub use self::failing::Failure;
pub use self::group::Handle;
use self::group::Membership;
use self::io::Io;
pub use self::next::{Budget, Next, Ready};
pub use self::run::{Running, run};
#[cfg(feature = "tokio")]
pub use self::run_tokio::run_tokio;
use self::sockets::{SOCKETS_MAX, Sockets};
pub use self::strangers::Stranger;
use self::strangers::Strangers;
use crate::endpoint::Endpoint;
use crate::engine::Engine;
use crate::forward::{Counters, DatagramMeta, DropReason, Forwarder};
use crate::framing::{Bare, Framing};
use crate::offload::Coalesce;
use crate::route::RouteReader;
use crate::sys::{PACKET_MAX, RecvBatch, RecvError, Tun, TunError, TunOffload, UdpTransport};
use crate::transmit::QueueLimits;

/// Messages that one system call receives, each a datagram or a GRO batch: 1 MiB of buffers.
const MESSAGES: usize = 16;

/// The interval in which reports of routers are read while no path is known to be narrow. The kernel receives them too,
/// and refuses the next packet that is too long. The worker then reads them at once.
const REPORTS_EVERY: Duration = Duration::from_secs(1);

/// The interval while some path is narrow: the kernel's refusals may have been overruled for it.
const REPORTS_EVERY_NARROW: Duration = Duration::from_millis(10);

/// A host of the overlay with one TUN device, and one UDP socket for each IP family of the underlay.
///
/// Memory: up to 8 MiB for datagrams to send, 1 MiB for received ones, 1 MiB for GSO packets to the TUN, and three
/// packets. Only memory that was used is resident. Its [`Endpoint`]'s tables and a share in the route table are extra.
/// No call allocates for a packet that is forwarded.
///
/// With a [`Framing`] its packets are sealed: see [`with_framing`](Self::with_framing).
#[derive(Debug)]
pub struct Worker<F = Bare> {
    tun: Tun,
    sockets: Sockets,
    engine: Engine<F>,
    routes: RouteReader,
    messages: RecvBatch,
    buffer: Box<[u8]>,
    failing: Failing,
    strangers: Strangers,
    membership: Membership,
    /// File descriptors that had more than the last budget allowed, or whose call fails.
    left: Ready,
    /// The same for each UDP socket.
    left_of_sockets: [bool; SOCKETS_MAX],
    /// The moment at which reports of routers are to be read.
    reports_due: Option<Instant>,
    /// The error that ended the worker. The number of a closed file descriptor may belong to another file by now.
    ended: Option<WorkerError>,
}

impl Worker {
    /// Returns a worker with empty counters, in a group of its own.
    #[must_use]
    pub fn new(tun: Tun, udp: UdpTransport, forwarder: Forwarder, routes: RouteReader) -> Self {
        Self::with_group(tun, udp, forwarder.clone(), routes, Handle::new(forwarder))
    }

    /// Returns a worker for each queue of a TUN device and its socket. They share the limits on ICMP errors, the path MTUs they
    /// learn, and a [`Handle`].
    #[must_use]
    pub fn group(
        queues: impl IntoIterator<Item = (Tun, UdpTransport)>,
        forwarder: &Forwarder,
        routes: &RouteReader,
    ) -> Vec<Self> {
        let handle = Handle::new(forwarder.clone());
        let worker = |(tun, udp)| Self::with_group(tun, udp, forwarder.clone(), routes.clone(), handle.clone());
        queues.into_iter().map(worker).collect()
    }

    fn with_group(tun: Tun, udp: UdpTransport, forwarder: Forwarder, routes: RouteReader, group: Handle) -> Self {
        let TunOffload { tso, uso } = tun.offload();
        let coalesce = Coalesce { tcp4: tso, tcp6: tso, udp4: uso, udp6: uso };
        let mut endpoint = Endpoint::new(forwarder);
        endpoint.set_icmp_limiter(group.limiter());
        let mut worker = Self {
            tun,
            sockets: Sockets::new(udp),
            engine: Engine::new(endpoint, QueueLimits::default(), coalesce),
            routes,
            messages: RecvBatch::new(MESSAGES),
            buffer: vec![0; PACKET_MAX + 1].into_boxed_slice(),
            failing: Failing::default(),
            strangers: Strangers::default(),
            membership: group.join(),
            left: Ready::default(),
            left_of_sockets: [false; SOCKETS_MAX],
            reports_due: None,
            ended: None,
        };
        worker.publish(Instant::now());
        worker
    }

    /// Returns the same worker with a framing, for example each one of a [`group`](Self::group) with a framing of its
    /// own. See [`Engine::with_framing`]. Strangers are not reported, because their packets are sealed.
    #[must_use]
    pub fn with_framing<F: Framing>(self, framing: F) -> Worker<F> {
        let Self { tun, sockets, engine, routes, messages, buffer, failing, strangers, membership, .. } = self;
        let Self { left, left_of_sockets, reports_due, ended, .. } = self;
        let engine = engine.with_framing(framing);
        Worker {
            tun,
            sockets,
            engine,
            routes,
            messages,
            buffer,
            failing,
            strangers,
            membership,
            left,
            left_of_sockets,
            reports_due,
            ended,
        }
    }
}

impl<F: Framing> Worker<F> {
    /// Returns the framing.
    #[must_use]
    pub fn framing(&self) -> &F {
        self.engine.framing()
    }

    /// Returns the framing, to change keys or peers.
    pub fn framing_mut(&mut self) -> &mut F {
        self.engine.framing_mut()
    }

    /// Adds the UDP socket of the other IP family. Datagrams go by the socket of their next hop's family.
    ///
    /// [`udp`](Self::udp) then returns one file descriptor that is readable while one of the two sockets is.
    ///
    /// # Errors
    /// [`WorkerError::SameFamily`] if the worker has a socket of that family, and [`WorkerError::System`] if there is
    /// no file descriptor left.
    pub fn with_udp(self, udp: UdpTransport) -> Result<Self, WorkerError> {
        let Self { sockets, .. } = self;
        Ok(Self { sockets: sockets.with_second(udp)?, ..self })
    }

    /// Returns the same worker without batches: each packet is read, decided on and written by itself. Use it for
    /// comparisons and to find faults.
    #[must_use]
    pub fn unbatched(mut self) -> Self {
        self.engine = self.engine.unbatched();
        self.messages = RecvBatch::new(1);
        self
    }

    /// Moves packets from the file descriptors that are ready, and sends packets whose retry is due. Returns the events
    /// to wait for before the next call.
    ///
    /// The first call may pass [`Ready::default`]. Each direction has a budget of its own. Changes of routes and
    /// changes through a [`Handle`] take effect at the beginning of a call.
    ///
    /// # Errors
    /// If the device or the socket is gone, or if a system call has failed for 10 s. Later calls return the same error.
    pub fn handle(&mut self, ready: Ready, budget: Budget, now: Instant) -> Result<Next, WorkerError> {
        if let Some(error) = &self.ended {
            return Err(error.clone());
        }
        let outcome = self.handle_ready(ready, budget, now);
        if let Err(error) = &outcome {
            self.ended = Some(error.clone());
            self.drop_waiting();
            self.membership.end();
            self.publish(now);
            return outcome;
        }
        let is_idle = outcome.as_ref().is_ok_and(|next| next.wake_at.is_none_or(|at| at > now));
        if self.membership.is_due(is_idle, now) {
            self.publish(now);
        }
        outcome
    }

    fn handle_ready(&mut self, ready: Ready, budget: Budget, now: Instant) -> Result<Next, WorkerError> {
        let clock = self.membership.clock(now);
        self.begin(clock, now);
        let ready = Ready { tun: ready.tun || self.left.tun, udp: ready.udp || self.left.udp };
        let (mut read, mut received) = (Ok(false), Ok(false));
        if ready.tun {
            read = self.read(budget, now, clock);
        }
        let (mut io, engine, routes) = self.parts(now);
        engine.flush(routes.table(), clock, &mut io);
        if ready.udp && read.is_ok() && self.ended.is_none() {
            received = self.receive(budget, now, clock);
        }
        self.sockets.iter().for_each(|udp| udp.retry_gso(now));
        let fallbacks = self.sockets.iter().map(UdpTransport::gso_fallbacks).sum();
        self.engine.endpoint_mut().counters_mut().stats.gso_fallbacks = fallbacks;
        self.left = Ready { tun: read?, udp: received? };
        match &self.ended {
            Some(error) => Err(error.clone()),
            None => Ok(self.next(now)),
        }
    }

    /// Applies changes of routes and settings, and reports of routers, since the last call.
    fn begin(&mut self, clock: Duration, now: Instant) {
        let Self { engine, routes, sockets, membership, .. } = self;
        if routes.update() {
            engine.drop_peers(|next_hop| !routes.table().has_next_hop(next_hop), DropReason::StaleRoute);
        }
        membership.take_over(engine.endpoint_mut(), clock);
        if self.reports_due.is_none_or(|due| due <= now) {
            let endpoint = engine.endpoint_mut();
            for udp in sockets.iter() {
                udp.receive_reports(|report| {
                    endpoint.handle_icmp(report, routes.table(), clock);
                });
            }
            let is_narrow = !endpoint.paths().is_empty();
            self.reports_due = Some(now + if is_narrow { REPORTS_EVERY_NARROW } else { REPORTS_EVERY });
        }
        self.failing.wake(now);
    }

    fn parts(&mut self, now: Instant) -> (Io<'_>, &mut Engine<F>, &RouteReader) {
        let Self { tun, sockets, engine, routes, failing, ended, .. } = self;
        (Io { tun, sockets, failing, ended, now }, engine, routes)
    }

    /// Reads packets from the TUN. Returns true if more may be left.
    fn read(&mut self, budget: Budget, now: Instant, clock: Duration) -> Result<bool, WorkerError> {
        let Self { tun, sockets, engine, routes, failing, ended, buffer, .. } = self;
        let mut left = budget.count() as usize;
        let mut io = Io { tun, sockets, failing, ended, now };
        while left > 0 && io.ended.is_none() && io.failing.read_at().is_none() {
            match tun.recv(buffer) {
                Ok(meta) => {
                    io.failing.read_works();
                    let packet = buffer.get_mut(..meta.len).unwrap_or_default();
                    let datagrams = engine.from_tun(&meta.header, packet, routes.table(), clock, &mut io);
                    left = left.saturating_sub(datagrams);
                }
                Err(TunError::WouldBlock) => {
                    io.failing.read_works();
                    return Ok(false);
                }
                Err(error) if error.is_fatal() => return Err(io.tun_gone(error)),
                Err(error) => {
                    left -= 1;
                    engine.endpoint_mut().counters_mut().stats.read_errors += 1;
                    io.failing.fails(Failure::Read(error), now)?;
                }
            }
        }
        Ok(true)
    }

    /// Receives datagrams, and writes all received packets. Returns true if more may be left.
    fn receive(&mut self, budget: Budget, now: Instant, clock: Duration) -> Result<bool, WorkerError> {
        for socket in 0..SOCKETS_MAX {
            let may_be_left = self.receive_from(socket, budget, now, clock)?;
            if let Some(left) = self.left_of_sockets.get_mut(socket) {
                *left = may_be_left;
            }
        }
        Ok(self.left_of_sockets.contains(&true))
    }

    fn receive_from(
        &mut self,
        socket: usize,
        budget: Budget,
        now: Instant,
        clock: Duration,
    ) -> Result<bool, WorkerError> {
        let Self { tun, sockets, engine, routes, failing, strangers, ended, messages, .. } = self;
        let Some(udp) = sockets.iter().nth(socket) else { return Ok(false) };
        let mut left = budget.count() as usize;
        let mut io = Io { tun, sockets, failing, ended, now };
        while left > 0 && io.ended.is_none() && io.failing.receive_at(socket).is_none() {
            match udp.recv_batch(messages) {
                Ok(_count) => {
                    io.failing.receive_works(socket);
                    for message in messages.iter_mut() {
                        let Ok((meta, bytes)) = message else {
                            left = left.saturating_sub(1);
                            engine.endpoint_mut().counters_mut().stats.read_errors += 1;
                            continue;
                        };
                        let outer = DatagramMeta { from: meta.from, ecn: meta.ecn };
                        for datagram in meta.datagrams_mut(bytes) {
                            left = left.saturating_sub(1);
                            let dropped = engine.from_udp(outer, datagram, routes.table(), clock, &mut io);
                            if F::IS_BARE && dropped == Some(DropReason::UnknownPeer) {
                                strangers.look(datagram, outer.from, routes.table(), now);
                            }
                        }
                    }
                    engine.flush_inbound(clock, &mut io);
                }
                Err(RecvError::WouldBlock) => {
                    io.failing.receive_works(socket);
                    return Ok(false);
                }
                Err(error) if error.is_fatal() => {
                    return Err(WorkerError::SocketClosed { local: udp.local_addr() });
                }
                Err(error) => {
                    left -= 1;
                    engine.endpoint_mut().counters_mut().stats.read_errors += 1;
                    io.failing.fails_on(socket, Failure::Receive(error), now)?;
                }
            }
        }
        Ok(true)
    }

    fn next(&self, now: Instant) -> Next {
        // A call that fails has a retry time of its own.
        let at = |is_left: bool, retry_at: Option<Instant>| is_left.then(|| retry_at.unwrap_or(now));
        let read_at = at(self.left.tun, self.failing.read_at());
        let of_socket = |(socket, left): (usize, bool)| at(left, self.failing.receive_at(socket));
        let receive_at = self.left_of_sockets.into_iter().enumerate().filter_map(of_socket).min();
        let flush_at = self.engine.wake_at().map(|at| self.membership.moment(at));
        Next {
            tun: !self.left.tun,
            udp: !self.left.udp,
            wake_at: [flush_at, read_at, receive_at].into_iter().flatten().min(),
        }
    }

    /// Publishes counters and notices to the group's handles.
    fn publish(&mut self, now: Instant) {
        let disabled = self.tun.disabled().chain(self.sockets.disabled());
        self.membership.publish(&self.engine, disabled, &mut self.failing, &mut self.strangers, now);
    }

    fn drop_waiting(&mut self) {
        self.engine.drop_peers(|_| true, DropReason::Stopped);
    }

    /// Drops the queued packets, closes device and socket, and returns the final counters.
    pub fn stop(mut self) -> Counters {
        self.drop_waiting();
        self.membership.end();
        self.publish(Instant::now());
        self.counters()
    }

    /// Returns a handle of the worker's group, for other threads.
    #[must_use]
    pub fn remote(&self) -> Handle {
        self.membership.group()
    }

    /// Returns the counters of all packets until now.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.engine.counters()
    }

    /// Returns the forwarder.
    #[must_use]
    pub fn forwarder(&self) -> &Forwarder {
        self.engine.endpoint().forwarder()
    }

    /// Returns the TUN device's file descriptor, to wait for.
    #[must_use]
    pub fn tun(&self) -> BorrowedFd<'_> {
        self.tun.as_fd()
    }

    /// Returns the TUN device's name. If the device was renamed, this is the former name.
    #[must_use]
    pub fn tun_name(&self) -> &str {
        self.tun.name()
    }

    /// Returns the file descriptor of the UDP socket, or of both sockets, to wait for.
    #[must_use]
    pub fn udp(&self) -> BorrowedFd<'_> {
        self.sockets.as_fd()
    }

    /// Returns the addresses and ports of the UDP sockets.
    pub fn local_addrs(&self) -> impl Iterator<Item = SocketAddr> {
        self.sockets.local_addrs()
    }
}
