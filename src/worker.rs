//! One pair of hands: binds a TUN device, a UDP socket, a forwarder and a route reader.
//!
//! The worker has no loop of its own. Yours waits until a file descriptor is ready and calls the method of that name, which
//! does at most a budget of work and never blocks:
//!
//! 1. Ask [`Worker::interest`] what to wait for: TUN readable, UDP readable, at times UDP writable, at times a moment.
//! 2. Wait, with `poll`, `epoll`, tokio or whatever you have.
//! 3. Call [`Worker::tun_ready`] when the TUN is readable, the socket writable or the moment has come; call
//!    [`Worker::udp_ready`] when the socket is readable.
//! 4. On [`Progress::More`] do not wait: see to your other work, then call again. (With level-triggered `poll` that comes of
//!    itself, since what is left is reported at once.)
//! 5. An error is final: the device or the socket is gone.
//!
//! A deleted TUN device is reported as an error condition, not as readable: with tokio wait for both. `poll` reports it whether
//! asked or not: leave the TUN out of the set while [`Interest::tun_readable`] is false.

mod state;

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec;
use core::net::{IpAddr, SocketAddr};
use core::num::NonZeroU32;
use std::time::Instant;

use self::state::{Ends, Held, Outgoing, State};
use crate::forward::{Counters, Decap, DropReason, Encap, Forwarder, IcmpLimiter};
use crate::route::RouteReader;
use crate::sys::{PACKET_MAX, RecvError, Tun, TunError, UdpTransport};
use crate::transmit::Transmit;

/// Moves packets between one TUN device and one UDP socket.
///
/// Memory: two packet buffers of 64 KiB, the ICMP limiter's 24 KiB, up to 1,024 learned path MTUs and as many counters of
/// send errors, and a share in the route table. No call allocates for a packet that is forwarded.
#[derive(Debug)]
pub struct Worker {
    ends: Ends,
    routes: RouteReader,
    state: State,
    outbound: Box<[u8]>,
    inbound: Box<[u8]>,
    /// The packet at the front of `outbound`, if the socket has not taken it yet.
    held: Option<Held>,
    /// Why it ended, once it has: a file descriptor that was closed may be somebody else's by now.
    ended: Option<WorkerError>,
}

/// How many packets, or other units of work, one call may do.
///
/// It is what keeps one direction from starving the other, and both from starving your own work.
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
    /// 64 packets: about 0.2 ms of work, one packet per system call.
    fn default() -> Self {
        Self::packets(64)
    }
}

/// Whether there is more to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "after `More` the next call must not wait for readiness"]
#[non_exhaustive]
pub enum Progress {
    /// Nothing is left: wait until the file descriptor is ready again.
    Drained,
    /// There may be more to read, but a packet waits for the UDP socket: see [`Worker::interest`]. Whoever is told of
    /// readiness only once, as with tokio, must not take the TUN for drained, and must take the socket for not writable.
    Held,
    /// The budget is used up. Call again without waiting, after seeing to other work.
    More,
}

/// What to wait for, beside the UDP socket's being readable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Interest {
    /// Whether to wait for the TUN: not while a packet from it waits for the socket.
    pub tun_readable: bool,
    /// Whether to wait until the UDP socket is writable.
    pub udp_writable: bool,
    /// When to call [`Worker::tun_ready`] at the latest.
    pub wake_at: Option<Instant>,
}

/// The end of a worker. No call works afterwards; every one says so again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WorkerError {
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
        let buffer = || vec![0; PACKET_MAX + 1].into_boxed_slice();
        let ends = Ends { tun, udp, forwarder };
        Self { ends, routes, state: State::new(), outbound: buffer(), inbound: buffer(), held: None, ended: None }
    }

    /// The same worker with other limits on the ICMP errors it sends.
    #[must_use]
    pub fn with_icmp_limiter(mut self, limiter: IcmpLimiter) -> Self {
        self.state.limiter = limiter;
        self
    }

    /// Moves packets from the TUN to their peers.
    ///
    /// # Errors
    /// If the device or the socket is gone.
    pub fn tun_ready(&mut self, budget: Budget, now: Instant) -> Result<Progress, WorkerError> {
        self.unless_ended(|worker| worker.move_outbound(budget, now))
    }

    /// Moves datagrams from peers to the TUN.
    ///
    /// # Errors
    /// If the device or the socket is gone.
    pub fn udp_ready(&mut self, budget: Budget, now: Instant) -> Result<Progress, WorkerError> {
        self.unless_ended(|worker| worker.move_inbound(budget, now))
    }

    fn unless_ended(
        &mut self,
        act: impl FnOnce(&mut Self) -> Result<Progress, WorkerError>,
    ) -> Result<Progress, WorkerError> {
        if let Some(error) = &self.ended {
            return Err(error.clone());
        }
        let outcome = act(self);
        if let Err(error) = &outcome {
            self.ended = Some(error.clone());
            self.stop();
        }
        outcome
    }

    fn move_outbound(&mut self, budget: Budget, now: Instant) -> Result<Progress, WorkerError> {
        let Self { ends, routes, state, outbound, held, .. } = self;
        if let Some(Held { packet, retry_at }) = *held {
            if retry_at.is_some_and(|at| now < at) {
                return Ok(Progress::Held);
            }
            *held = None;
            *held = state.send(packet, ends, outbound, now)?;
        }
        let routes = routes.load();
        for _ in 0..budget.count() {
            if held.is_some() {
                return Ok(Progress::Held);
            }
            let len = match ends.tun.recv(outbound) {
                Ok(meta) => meta.len,
                Err(TunError::WouldBlock) => return Ok(Progress::Drained),
                Err(error) if error.is_fatal() => return Err(ends.tun_gone(error)),
                Err(_) => {
                    state.counters.anomalies.read_errors += 1;
                    continue;
                }
            };
            state.counters.encap.receive();
            match ends.forwarder.encapsulate(outbound.get_mut(..len).unwrap_or_default(), routes) {
                Encap::Send(Transmit { destination, contents, .. }) => {
                    let packet = Outgoing::new(destination, contents.len(), now);
                    state.count_trimmed(contents, len);
                    *held = state.send(packet, ends, outbound, now)?;
                }
                Encap::Reject(reject) => {
                    state.count_trimmed(reject.offender().as_bytes(), len);
                    state.answer_near(&reject, ends, now)?;
                }
                Encap::Drop(reason) => state.counters.encap.discard(reason),
            }
        }
        Ok(Progress::More)
    }

    fn move_inbound(&mut self, budget: Budget, now: Instant) -> Result<Progress, WorkerError> {
        let Self { ends, routes, state, inbound, .. } = self;
        let routes = routes.load();
        for _ in 0..budget.count() {
            let meta = match ends.udp.recv(inbound) {
                Ok(meta) => meta,
                Err(RecvError::WouldBlock) => return Ok(Progress::Drained),
                Err(error) if error.is_fatal() => return Err(ends.socket_gone()),
                Err(_) => {
                    state.counters.anomalies.read_errors += 1;
                    continue;
                }
            };
            let mut rest = inbound.get_mut(..meta.len).unwrap_or_default();
            loop {
                let (datagram, behind) = rest.split_at_mut(meta.stride.min(rest.len()));
                let len = datagram.len();
                state.counters.decap.receive();
                match ends.forwarder.decapsulate(datagram, meta.from, routes) {
                    Decap::Deliver(packet) => {
                        state.count_trimmed(packet, len);
                        state.deliver(packet, ends)?;
                    }
                    Decap::Reject(reject) => {
                        state.count_trimmed(reject.offender().as_bytes(), len);
                        state.answer_far(&reject, ends, now)?;
                    }
                    Decap::Drop(reason) => state.counters.decap.discard(reason),
                }
                if behind.is_empty() {
                    break;
                }
                rest = behind;
            }
        }
        Ok(Progress::More)
    }

    /// What to wait for now.
    #[must_use]
    pub fn interest(&self) -> Interest {
        match self.held {
            None => Interest { tun_readable: true, udp_writable: false, wake_at: None },
            Some(Held { packet, retry_at }) => Interest {
                tun_readable: false,
                udp_writable: retry_at.is_none(),
                wake_at: Some(retry_at.unwrap_or(packet.until)),
            },
        }
    }

    /// Gives up what is held, so that the counters are final.
    pub fn stop(&mut self) {
        if self.held.take().is_some() {
            self.state.counters.encap.discard(DropReason::Stopped);
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
