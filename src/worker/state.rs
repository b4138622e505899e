//! What a worker does with one packet's outcome: send it, hold it, answer it, count it.

use alloc::collections::BTreeMap;
use alloc::string::String;
use core::net::{IpAddr, SocketAddr};
use core::time::Duration;
use std::time::Instant;

use super::WorkerError;
use crate::forward::{Counters, DropReason, Flow, Forwarder, IcmpLimiter, PathMtus, Reject, ReplyTo};
use crate::sys::{SendErrorKind, Tun, TunError, UdpTransport};
use crate::transmit::Transmit;
use crate::wire::icmpv4;

/// Peers whose send errors are counted one by one; those of later ones are not.
const PEERS_COUNTED: usize = 1024;

/// How long a packet is held for a socket that takes nothing.
const HELD_FOR: Duration = Duration::from_secs(1);

/// The first wait after the kernel had no buffers; it doubles with each of [`NO_BUFFERS_RETRIES`].
const NO_BUFFERS_WAIT: Duration = Duration::from_millis(1);

/// How often a packet is tried again for which the kernel had no buffers.
const NO_BUFFERS_RETRIES: u32 = 4;

/// Where packets come from and go to, and who decides.
#[derive(Debug)]
pub(super) struct Ends {
    pub(super) tun: Tun,
    pub(super) udp: UdpTransport,
    pub(super) forwarder: Forwarder,
}

/// What the worker remembers from packet to packet.
#[derive(Debug)]
pub(super) struct State {
    pub(super) counters: Counters,
    pub(super) limiter: IcmpLimiter,
    pub(super) paths: PathMtus,
    pub(super) send_errors: BTreeMap<IpAddr, u64>,
    /// Where the clock of the limiter and the path MTUs begins: at the first packet that asks for it.
    pub(super) started: Option<Instant>,
}

/// An encapsulated packet at the front of a buffer, to be sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outgoing {
    pub(super) destination: SocketAddr,
    pub(super) len: usize,
    /// When it is given up.
    pub(super) until: Instant,
    /// How often the kernel had no buffers for it.
    pub(super) refusals: u32,
}

impl Outgoing {
    #[inline]
    pub(super) fn new(destination: SocketAddr, len: usize, now: Instant) -> Self {
        Self { destination, len, until: now + HELD_FOR, refusals: 0 }
    }
}

/// A packet that was not sent yet, and what it waits for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    pub(super) packet: Outgoing,
    /// Tried again then. Without it, when the socket is writable; which one without buffers is all the time.
    pub(super) retry_at: Option<Instant>,
}

impl Ends {
    pub(super) fn tun_gone(&self, error: TunError) -> WorkerError {
        let name = String::from(self.tun.name());
        match error {
            TunError::Closed => WorkerError::TunClosed { name },
            TunError::Deleted
            | TunError::Down
            | TunError::Full
            | TunError::Headless { .. }
            | TunError::Rejected(_)
            | TunError::WouldBlock => WorkerError::LinkDeleted { name },
        }
    }

    pub(super) fn socket_gone(&self) -> WorkerError {
        WorkerError::SocketClosed { local: self.udp.local_addr() }
    }
}

impl State {
    pub(super) fn new() -> Self {
        Self {
            counters: Counters::default(),
            limiter: IcmpLimiter::default(),
            paths: PathMtus::default(),
            send_errors: BTreeMap::new(),
            started: None,
        }
    }

    fn clock(&mut self, now: Instant) -> Duration {
        now.saturating_duration_since(*self.started.get_or_insert(now))
    }

    /// Sends a packet; `Some` if it has to wait.
    #[inline]
    pub(super) fn send(
        &mut self,
        packet: Outgoing,
        ends: &Ends,
        buffer: &mut [u8],
        now: Instant,
    ) -> Result<Option<Held>, WorkerError> {
        let contents = buffer.get_mut(..packet.len).unwrap_or_default();
        let clock = self.clock(now);
        let known = self.paths.lookup(packet.destination.ip(), clock);
        let refused = match known {
            Some(mtu) if contents.len() > usize::from(mtu) => SendErrorKind::TooLong,
            _ => match ends.udp.send(&Transmit::datagram(packet.destination, contents)) {
                Ok(()) => {
                    self.counters.encap.forward();
                    return Ok(None);
                }
                Err(error) => error.kind,
            },
        };
        if refused == SendErrorKind::WouldBlock && now < packet.until {
            return Ok(Some(Held { packet, retry_at: None }));
        }
        if refused == SendErrorKind::NoBuffers && packet.refusals < NO_BUFFERS_RETRIES {
            let retry_at = now + NO_BUFFERS_WAIT * (1 << packet.refusals);
            let packet = Outgoing { refusals: packet.refusals + 1, ..packet };
            return Ok(Some(Held { packet, retry_at: Some(retry_at) }));
        }
        if refused == SendErrorKind::TooLong {
            self.too_long(packet.destination, contents, ends, now)?;
            return Ok(None);
        }
        self.counters.encap.discard(send_failure(refused));
        self.count_send_error(packet.destination.ip());
        if refused.is_fatal() {
            return Err(ends.socket_gone());
        }
        Ok(None)
    }

    /// The path to a peer carries less than was thought: remembers how much, and tells the packet's sender.
    #[cold]
    fn too_long(
        &mut self,
        destination: SocketAddr,
        contents: &mut [u8],
        ends: &Ends,
        now: Instant,
    ) -> Result<(), WorkerError> {
        let clock = self.clock(now);
        let known = self.paths.lookup(destination.ip(), clock).filter(|mtu| usize::from(*mtu) < contents.len());
        let mtu = known.or_else(|| {
            let mtu = inner_mtu(ends.udp.path_mtu(destination).ok()?, destination);
            self.counters.anomalies.path_mtu_lowered += u64::from(self.paths.lower(destination.ip(), mtu, clock));
            (usize::from(mtu) < contents.len()).then_some(mtu)
        });
        // Without a number, or with one that the packet fits, there is nothing that could be told its sender.
        let Some(mtu) = mtu else {
            self.count_send_error(destination.ip());
            self.counters.encap.discard(DropReason::SendFailed);
            return Ok(());
        };
        match ends.forwarder.refused_as_too_long(contents, mtu) {
            Ok(reject) => return self.answer_near(&reject, ends, now),
            Err(reason) => self.counters.encap.discard(reason),
        }
        Ok(())
    }

    pub(super) fn deliver(&mut self, packet: &[u8], ends: &Ends) -> Result<(), WorkerError> {
        let Err(error) = ends.tun.send(packet) else {
            self.counters.decap.forward();
            return Ok(());
        };
        self.counters.decap.discard(match error {
            TunError::Down => DropReason::TunDown,
            TunError::Full | TunError::WouldBlock => DropReason::TunFull,
            TunError::Closed | TunError::Deleted | TunError::Headless { .. } | TunError::Rejected(_) => {
                DropReason::TunFailed
            }
        });
        if error.is_fatal() { Err(ends.tun_gone(error)) } else { Ok(()) }
    }

    /// Answers the sender of a packet from the TUN, if that is permitted; otherwise the packet is dropped.
    #[cold]
    pub(super) fn answer_near(&mut self, reject: &Reject<'_>, ends: &Ends, now: Instant) -> Result<(), WorkerError> {
        let answered = self.answer(reject, ends, now);
        settle(&mut self.counters.encap, reject, answered)
    }

    /// The same for a packet from a peer.
    #[cold]
    pub(super) fn answer_far(&mut self, reject: &Reject<'_>, ends: &Ends, now: Instant) -> Result<(), WorkerError> {
        let answered = self.answer(reject, ends, now);
        settle(&mut self.counters.decap, reject, answered)
    }

    /// Whether an ICMP error is on its way to the packet's sender.
    fn answer(&mut self, reject: &Reject<'_>, ends: &Ends, now: Instant) -> Result<bool, WorkerError> {
        let Some(reply_to) = reject.reply_to() else { return Ok(false) };
        let clock = self.clock(now);
        if !self.limiter.allow(reject.offender().header().source(), clock) {
            self.counters.anomalies.icmp_limited += 1;
            return Ok(false);
        }
        let mut message = [0; icmpv4::ERROR_MAX];
        let Some(message) = reject.icmp_error(&mut message) else { return Ok(false) };
        match reply_to {
            ReplyTo::Tun => match ends.tun.send(message) {
                Ok(()) => Ok(true),
                Err(error) if error.is_fatal() => Err(ends.tun_gone(error)),
                Err(_) => Ok(false),
            },
            ReplyTo::Peer(peer) => match ends.udp.send(&Transmit::datagram(peer, message)) {
                Ok(()) => Ok(true),
                Err(error) if error.is_fatal() => Err(ends.socket_gone()),
                Err(_) => {
                    self.count_send_error(peer.ip());
                    Ok(false)
                }
            },
        }
    }

    /// R8: the bytes behind a packet's total length go nowhere.
    pub(super) fn count_trimmed(&mut self, packet: &[u8], received: usize) {
        self.counters.anomalies.trimmed += u64::from(packet.len() < received);
    }

    fn count_send_error(&mut self, peer: IpAddr) {
        if self.send_errors.len() < PEERS_COUNTED || self.send_errors.contains_key(&peer) {
            *self.send_errors.entry(peer).or_default() += 1;
        }
    }
}

/// Counts a rejected packet, also when answering it showed that the worker is at its end.
fn settle(flow: &mut Flow, reject: &Reject<'_>, answered: Result<bool, WorkerError>) -> Result<(), WorkerError> {
    match answered {
        Ok(true) => flow.answer(),
        Ok(false) | Err(_) => flow.discard(reject.reason().into()),
    }
    answered.map(|_| ())
}

/// What of an outer packet is left for the inner one.
fn inner_mtu(outer: u32, destination: SocketAddr) -> u16 {
    /// The longest payload of a UDP datagram over IPv4.
    const DATAGRAM_MAX: u32 = 65_507;
    let overhead = match destination {
        SocketAddr::V4(_) => 28,
        SocketAddr::V6(_) => 48,
    };
    outer.saturating_sub(overhead).min(DATAGRAM_MAX) as u16
}

fn send_failure(kind: SendErrorKind) -> DropReason {
    match kind {
        SendErrorKind::Forbidden => DropReason::SendForbidden,
        SendErrorKind::NoBuffers => DropReason::SendNoBuffers,
        SendErrorKind::Refused => DropReason::SendRefused,
        SendErrorKind::Unreachable => DropReason::SendUnreachable,
        SendErrorKind::WouldBlock => DropReason::SendBufferFull,
        SendErrorKind::Closed | SendErrorKind::Other(_) | SendErrorKind::TooLong => DropReason::SendFailed,
    }
}
