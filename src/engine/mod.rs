//! A host of the overlay without I/O: the [`Endpoint`] with its [`SendQueue`] and its [`Coalescer`].
//!
//! A caller with a ring, a network stack or a test in place of the adapters implements [`Sink`] and passes packets to
//! an [`Engine`].

mod framed;
mod hold;
mod inbound;
mod outbound;
#[cfg(test)]
mod tests;

use core::net::IpAddr;
use core::time::Duration;

use self::hold::HoldQueue;
use self::inbound::Writer;
use crate::endpoint::Endpoint;
use crate::forward::{Counters, DropReason, PathMode, SystemPath};
use crate::framing::{Bare, Framing, OVERHEAD_LIMIT};
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
///
/// With a [`Framing`] each datagram is sealed in the queue, and opened before the endpoint decides on it. Datagrams that
/// turn out to be too long for their path are dropped as [`DropReason::PathTooNarrow`] without an ICMP error, and the
/// path MTU is learned. Routers' reports about them are verified by their lengths alone.
///
/// ```
/// # use core::net::SocketAddr;
/// # use core::time::Duration;
/// # use loden::forward::{DatagramMeta, DropReason};
/// # use loden::framing::{Framing, Reply};
/// # struct Tag;
/// # impl Framing for Tag {
/// #     const HEAD: usize = 4;
/// #     const OVERHEAD_MAX: usize = 4;
/// #     fn seal(&mut self, _: SocketAddr, datagram: &mut [u8], _: usize) {
/// #         datagram[..4].copy_from_slice(b"tag:");
/// #     }
/// #     fn open<'d>(
/// #         &mut self, _: &mut DatagramMeta, datagram: &'d mut [u8], _: Duration, _: &mut impl Reply,
/// #     ) -> Result<Option<&'d mut [u8]>, DropReason> {
/// #         datagram.strip_prefix_mut(b"tag:").map(Some).ok_or(DropReason::NotAuthentic)
/// #     }
/// # }
/// # trait StripPrefixMut { fn strip_prefix_mut(&mut self, prefix: &[u8]) -> Option<&mut [u8]>; }
/// # impl StripPrefixMut for [u8] {
/// #     fn strip_prefix_mut(&mut self, prefix: &[u8]) -> Option<&mut [u8]> {
/// #         if self.starts_with(prefix) { self.get_mut(prefix.len()..) } else { None }
/// #     }
/// # }
/// use loden::endpoint::Endpoint;
/// use loden::engine::Engine;
/// use loden::forward::{Forwarder, ForwarderConfig};
/// use loden::offload::Coalesce;
/// use loden::transmit::QueueLimits;
/// use loden::{Host, Mtu, ipnet::Ipv4Net};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (network, ours): (Ipv4Net, Ipv4Net) = ("100.96.0.0/16".parse()?, "100.96.1.0/24".parse()?);
/// let host = Host::new(network, ours, ([10, 168, 0, 2], 8285))?;
/// let mtu = Mtu::of_inner(1500, Tag::overhead(host.underlay().ip()))?;
/// let endpoint = Endpoint::new(Forwarder::new(ForwarderConfig::new(&host).with_mtu(mtu))?);
/// let engine = Engine::new(endpoint, QueueLimits::default(), Coalesce::ALL).with_framing(Tag);
/// assert_eq!(engine.endpoint().forwarder().config().mtu.get(), 1500 - 28 - 4);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Engine<F = Bare> {
    endpoint: Endpoint,
    queue: SendQueue,
    /// Bytes that were queued since the last flush.
    collected: usize,
    /// True if packets are collected into batches.
    batched: bool,
    writer: Writer,
    framing: F,
    /// Packets that wait for a session.
    hold: HoldQueue,
}

impl Engine {
    /// Returns an engine whose TUN accepts GSO packets of these kinds.
    #[must_use]
    pub fn new(endpoint: Endpoint, limits: QueueLimits, coalesce: Coalesce) -> Self {
        Self::with_queue(endpoint, SendQueue::new(limits), coalesce)
    }

    pub(crate) fn with_queue(endpoint: Endpoint, queue: SendQueue, coalesce: Coalesce) -> Self {
        let coalescer = (coalesce != Coalesce::NONE).then(|| Coalescer::new(coalesce));
        let writer = Writer::new(coalescer, coalesce);
        let hold = HoldQueue::default();
        Self { endpoint, queue, collected: 0, batched: true, writer, framing: Bare, hold }
    }

    /// Returns the same engine with a framing. Packets that are queued already stay as they are, so call it at the
    /// beginning.
    #[must_use]
    pub fn with_framing<F: Framing>(self, framing: F) -> Engine<F> {
        const { assert!(F::HEAD <= F::OVERHEAD_MAX && F::OVERHEAD_MAX <= OVERHEAD_LIMIT) }
        let Self { mut endpoint, queue, collected, batched, mut writer, framing: Bare, hold } = self;
        endpoint.set_framing::<F>();
        writer.make_room::<F>();
        Engine { endpoint, queue, collected, batched, writer, framing, hold }
    }
}

impl<F: Framing> Engine<F> {
    /// Returns the framing.
    #[must_use]
    pub fn framing(&self) -> &F {
        &self.framing
    }

    /// Returns the framing, to change keys or peers.
    pub fn framing_mut(&mut self) -> &mut F {
        &mut self.framing
    }

    /// Exchanges the send queue, so that engines whose queues are empty between calls share one.
    #[cfg(feature = "sim")]
    pub(crate) fn swap_queue(&mut self, queue: &mut SendQueue) {
        core::mem::swap(&mut self.queue, queue);
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
        counters.encap.receive_waiting(self.hold.len());
    }

    /// Sets the path MTU of the underlay: see [`Endpoint::set_mtu`].
    pub fn set_mtu(&mut self, mtu: Mtu) {
        self.endpoint.set_mtu(mtu);
    }

    /// Sets the path MTU of the underlay to IPv6 peers: see [`Endpoint::set_mtu_over_ipv6`].
    pub fn set_mtu_over_ipv6(&mut self, mtu: Mtu) {
        self.endpoint.set_mtu_over_ipv6(mtu);
    }

    /// Returns the time of the next flush, if packets are queued or the framing has a timeout.
    #[must_use]
    pub fn wake_at(&self) -> Option<Duration> {
        let times = [self.queue.retry_at(), self.framing.poll_timeout(), self.hold.ends_at()];
        times.into_iter().flatten().min()
    }

    /// Drops the packets queued for next hops for which `is_gone` returns true, with this reason.
    #[cold]
    pub fn drop_peers(&mut self, is_gone: impl Fn(core::net::SocketAddr) -> bool, reason: DropReason) {
        let Self { endpoint, queue, hold, .. } = self;
        let mut peers = hold::ALL;
        while let Some(peer) = hold.next(&mut peers) {
            let count = if is_gone(peer) { hold.take(peer).map_or(0, |waiting| waiting.count()) } else { 0 };
            for _ in 0..count {
                endpoint.counters_mut().encap.receive();
                endpoint.counters_mut().encap.discard(reason);
            }
        }
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
