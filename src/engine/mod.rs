//! A host between a TUN and a socket, without either: the [`Endpoint`] with its [`SendQueue`] and its [`Coalescer`].
//!
//! Whoever has a ring, a stack or a test in place of the adapters implements [`Sink`], and gives an [`Engine`] what comes in.

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

/// The way out of an [`Engine`].
pub trait Sink {
    /// Sends the datagrams of several batches, in order.
    ///
    /// # Errors
    /// At the first datagram that is not sent. Those before it are sent, those behind it are not tried.
    fn send(&mut self, batches: &[Transmit<'_>], mode: PathMode) -> Result<(), Unsent>;

    /// Writes one packet, or one GSO packet, to the TUN.
    ///
    /// # Errors
    /// If the TUN does not take it.
    fn write(&mut self, header: &VnetHeader, packet: &[u8]) -> Result<(), WriteFailure>;

    /// Returns what the system knows of the path to a peer that refused a datagram as [`SendFailure::TooLong`], and passes the
    /// reports of routers on that came in until now.
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
    /// Datagrams that were refused with it: a GSO batch is refused as a whole.
    pub datagrams: usize,
    /// The reason.
    pub reason: SendFailure,
}

/// The reason why a datagram was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendFailure {
    /// The socket is closed. What waits keeps waiting.
    Closed,
    /// Another error.
    Failed,
    /// This host forbids it.
    Forbidden,
    /// The path to this peer takes no more for the moment. Others are tried.
    Full,
    /// The kernel has no memory for the moment.
    NoBuffers,
    /// The peer's host refused an earlier datagram.
    Refused,
    /// It is longer than the path carries.
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
    /// The TUN takes no more for the moment.
    Full,
    /// The TUN refuses this packet. If it is a GSO packet, its segments are tried.
    Rejected,
}

/// Moves packets between a TUN and a socket that somebody else reads from, and that a [`Sink`] writes to.
///
/// 1. Read from the TUN: [`from_tun`](Self::from_tun). Read from the socket: [`from_udp`](Self::from_udp).
/// 2. When nothing more is there, or after a bounded number of packets: [`flush`](Self::flush).
/// 3. Wait, until [`wake_at`](Self::wake_at) at most, and flush then.
///
/// No path of a peer costs another peer its packets: what a path does not take waits in a queue of its own, which is bounded.
#[derive(Debug)]
pub struct Engine {
    endpoint: Endpoint,
    queue: SendQueue,
    /// Bytes that were put into the queue since it was flushed.
    collected: usize,
    /// Whether packets wait for each other.
    batched: bool,
    writer: Writer,
}

impl Engine {
    /// An engine whose TUN takes GSO packets of these kinds.
    #[must_use]
    pub fn new(endpoint: Endpoint, limits: QueueLimits, coalesce: Coalesce) -> Self {
        let coalescer = (coalesce.tcp || coalesce.udp).then(|| Coalescer::new(coalesce));
        let writer = Writer::new(coalescer, coalesce);
        Self { endpoint, queue: SendQueue::new(limits), collected: 0, batched: true, writer }
    }

    /// The same engine, but each packet is sent and written by itself: to compare, and to find faults.
    #[must_use]
    pub fn unbatched(mut self) -> Self {
        self.batched = false;
        self.writer.coalescer = None;
        self
    }

    /// The endpoint.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// The endpoint, to count what happened outside, and to tell it what routers report.
    pub fn endpoint_mut(&mut self) -> &mut Endpoint {
        &mut self.endpoint
    }

    /// Where every packet went, or waits.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let mut counters = Counters::default();
        self.counters_into(&mut counters);
        counters
    }

    /// Writes the counters to where they are published.
    pub fn counters_into(&self, counters: &mut Counters) {
        counters.clone_from(self.endpoint.counters());
        counters.encap.hold_all(self.queue.packets());
    }

    /// See [`Endpoint::set_mtu`].
    pub fn set_mtu(&mut self, mtu: Mtu) {
        self.endpoint.set_mtu(mtu);
    }

    /// When to flush at the latest, if anything waits.
    #[must_use]
    pub fn wake_at(&self) -> Option<Duration> {
        self.queue.retry_at()
    }

    /// Drops what waits for next hops that `is_gone` names, for this reason.
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

/// The peer of a batch.
fn peer_of(batch: &Transmit<'_>) -> IpAddr {
    batch.destination.ip()
}
