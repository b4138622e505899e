//! A host of the overlay without I/O: the [`Endpoint`] with its [`SendQueue`] and its [`Coalescer`].
//!
//! A caller with a ring, a network stack or a test in place of the adapters implements [`Sink`] and passes packets to
//! an [`Engine`].

mod inbound;
mod outbound;
#[cfg(test)]
mod tests;

use core::net::IpAddr;
use core::time::Duration;

use self::inbound::Writer;
use crate::endpoint::Endpoint;
use crate::forward::{Counters, DropReason, PathMode, SystemPath};
use crate::host::Mtu;
use crate::offload::{Coalesce, Coalescer, VnetHeader};
use crate::transmit::{Lost, QueueLimits, SendQueue, Transmit, Way};
use crate::wire::DatagramTooBig;

/// The output of an [`Engine`]: a UDP socket and a TUN.
pub trait Sink {
    /// Sends the datagrams of several batches, in order.
    ///
    /// # Errors
    /// At the first datagram that is not sent. Those before it were sent; those behind it were not tried.
    fn send(&mut self, batches: &[Transmit<'_>], mode: PathMode) -> Result<(), Unsent>;

    /// Writes one packet, or one GSO packet, to the TUN.
    ///
    /// # Errors
    /// If the TUN does not accept it.
    fn write(&mut self, header: &VnetHeader, packet: &[u8]) -> Result<(), WriteFailure>;

    /// Returns the MTUs that the system has for the path to a peer, after a refusal with [`SendFailure::TooLong`].
    /// Passes on the reports of routers that arrived until now.
    fn system_path(&mut self, way: &Way, report: &mut dyn FnMut(&DatagramTooBig)) -> SystemPath {
        let _ = (way, report);
        SystemPath::default()
    }
}

/// A datagram that was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unsent {
    /// Number of its batch, from 0.
    pub batch: usize,
    /// Its number in the batch, from 0.
    pub datagram: usize,
    /// Datagrams that were refused with it. A GSO batch is refused as a whole.
    pub datagrams: usize,
    /// The reason.
    pub reason: SendFailure,
}

/// The reason why a datagram was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendFailure {
    /// The socket is closed. Queued packets stay in the queue.
    Closed,
    /// Another error.
    Failed,
    /// This host forbids sending it (EPERM, EACCES).
    Forbidden,
    /// The socket accepts no more for this peer at the moment. Other peers are tried.
    Full,
    /// The kernel has no memory at the moment.
    NoBuffers,
    /// The peer's host refused an earlier datagram.
    Refused,
    /// The datagram is longer than the path MTU.
    TooLong,
    /// The peer cannot be reached.
    Unreachable,
}

/// The reason why a packet was not written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteFailure {
    /// The TUN is down.
    Down,
    /// Another error, or the TUN is gone.
    Failed,
    /// The TUN accepts no more at the moment.
    Full,
    /// The TUN refuses this packet. If it is a GSO packet, its segments are tried.
    Rejected,
}

/// A host of the overlay that moves packets between a TUN and a socket. The caller reads from them, and a [`Sink`]
/// writes to them.
///
/// 1. Read from the TUN: [`from_tun`](Self::from_tun). Read from the socket: [`from_udp`](Self::from_udp).
/// 2. When nothing more can be read, or after a bounded number of packets: [`flush`](Self::flush).
/// 3. Wait until [`wake_at`](Self::wake_at) at most, then flush.
///
/// A slow path does not delay the packets of other peers. Each peer has a bounded queue of its own.
#[derive(Debug)]
pub struct Engine {
    endpoint: Endpoint,
    queue: SendQueue,
    /// Bytes that were queued since the last flush.
    collected: usize,
    /// True if packets are collected into batches.
    batched: bool,
    writer: Writer,
}

impl Engine {
    /// Returns an engine whose TUN accepts GSO packets of these kinds.
    #[must_use]
    pub fn new(endpoint: Endpoint, limits: QueueLimits, coalesce: Coalesce) -> Self {
        let coalescer = (coalesce != Coalesce::NONE).then(|| Coalescer::new(coalesce));
        let writer = Writer::new(coalescer, coalesce);
        Self { endpoint, queue: SendQueue::new(limits), collected: 0, batched: true, writer }
    }

    /// Returns the same engine without batches: each packet is sent and written by itself. Use it for comparisons and
    /// to find faults.
    #[must_use]
    pub fn unbatched(mut self) -> Self {
        self.batched = false;
        self.writer.coalescer = None;
        self
    }

    /// Returns the endpoint.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Returns the endpoint, to count events outside the engine and to pass on reports of routers.
    pub fn endpoint_mut(&mut self) -> &mut Endpoint {
        &mut self.endpoint
    }

    /// Returns the counters of all packets, queued ones included.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let mut counters = Counters::default();
        self.counters_into(&mut counters);
        counters
    }

    /// Writes the counters to `counters`.
    pub fn counters_into(&self, counters: &mut Counters) {
        counters.clone_from(self.endpoint.counters());
        counters.encap.hold_all(self.queue.packets());
    }

    /// Sets the path MTU of the underlay: see [`Endpoint::set_mtu`].
    pub fn set_mtu(&mut self, mtu: Mtu) {
        self.endpoint.set_mtu(mtu);
    }

    /// Sets the path MTU of the underlay to IPv6 peers: see [`Endpoint::set_mtu_over_ipv6`].
    pub fn set_mtu_over_ipv6(&mut self, mtu: Mtu) {
        self.endpoint.set_mtu_over_ipv6(mtu);
    }

    /// Returns the time of the next flush, if packets are queued.
    #[must_use]
    pub fn wake_at(&self) -> Option<Duration> {
        self.queue.retry_at()
    }

    /// Drops the packets queued for next hops for which `is_gone` returns true, with this reason.
    #[cold]
    pub fn drop_peers(&mut self, is_gone: impl Fn(core::net::SocketAddr) -> bool, reason: DropReason) {
        let Self { endpoint, queue, .. } = self;
        queue.drop_peers(is_gone, |Lost { packets, .. }| {
            endpoint.counters_mut().encap.lose_forwarded(reason, packets);
        });
    }

    #[cold]
    fn lose(&mut self, lost: Option<Lost>, reason: DropReason) {
        if let Some(Lost { destination, packets }) = lost.filter(|lost| lost.packets > 0) {
            self.endpoint.handle_send_error(destination.ip(), reason, packets);
        }
    }
}

impl SendFailure {
    fn drop_reason(self) -> DropReason {
        match self {
            Self::Forbidden => DropReason::SendForbidden,
            Self::Full => DropReason::SendBufferFull,
            Self::NoBuffers => DropReason::SendNoBuffers,
            Self::Refused => DropReason::SendRefused,
            Self::Unreachable => DropReason::SendUnreachable,
            Self::Closed | Self::Failed | Self::TooLong => DropReason::SendFailed,
        }
    }
}

impl WriteFailure {
    fn drop_reason(self) -> DropReason {
        match self {
            Self::Down => DropReason::TunDown,
            Self::Full => DropReason::TunFull,
            Self::Failed | Self::Rejected => DropReason::TunFailed,
        }
    }
}

/// Returns the peer of a batch.
fn peer_of(batch: &Transmit<'_>) -> IpAddr {
    batch.destination.ip()
}
