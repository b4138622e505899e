//! Bytes of other protocols around each packet: encryption, authentication, a key or a tag.
//!
//! A [`Framing`] turns each packet into a datagram and back. An [`Engine`](crate::engine::Engine) calls it in place, in
//! the buffers of its queues, so that batches and offloads stay in use and no call allocates. [`Bare`] is flannel's
//! wire: each datagram is a packet.
//!
//! ```
//! use core::net::SocketAddr;
//! use core::time::Duration;
//! use loden::forward::{DatagramMeta, DropReason};
//! use loden::framing::{Framing, Reply};
//!
//! /// A key of 8 bytes in front of each packet.
//! struct Keyed([u8; 8]);
//!
//! impl Framing for Keyed {
//!     const HEAD: usize = 8;
//!     const OVERHEAD_MAX: usize = 8;
//!
//!     fn seal(&mut self, _peer: SocketAddr, datagram: &mut [u8], _len: usize) {
//!         if let Some(key) = datagram.first_chunk_mut() {
//!             *key = self.0;
//!         }
//!     }
//!
//!     fn open<'d>(
//!         &mut self,
//!         _meta: &mut DatagramMeta,
//!         datagram: &'d mut [u8],
//!         _now: Duration,
//!         _reply: &mut impl Reply,
//!     ) -> Result<Option<&'d mut [u8]>, DropReason> {
//!         match datagram.split_first_chunk_mut() {
//!             Some((key, packet)) if *key == self.0 => Ok(Some(packet)),
//!             _ => Err(DropReason::NotAuthentic),
//!         }
//!     }
//! }
//! ```

use core::net::{IpAddr, SocketAddr};
use core::time::Duration;

use crate::forward::{DatagramMeta, DropReason};
use crate::host::Overhead;

/// The encapsulation of packets in datagrams. Calls are static: [`Bare`] costs nothing.
///
/// Each [`Engine`](crate::engine::Engine) has one of its own. The framings of several workers share state, such as
/// sessions, by means of their own.
///
/// A peer is the next hop of a route: the underlay address and port that packets are sent to. Times are those of the
/// engine's clock.
pub trait Framing {
    /// Bytes of a datagram before its packet. At most [`OVERHEAD_MAX`](Self::OVERHEAD_MAX).
    const HEAD: usize;

    /// The most bytes by which a datagram is longer than its packet, padding included. At most
    /// [`OVERHEAD_LIMIT`]. The limit for packets on a path is its MTU less these bytes.
    const OVERHEAD_MAX: usize;

    /// True if each datagram is its packet, as with [`Bare`]. Then no method is called.
    const IS_BARE: bool = false;

    /// True if packets need a session: [`ready`](Self::ready) is called for each packet from the TUN. False by default.
    const HAS_SESSIONS: bool = false;

    /// True if senders are checked before [`open`](Self::open), so that a stranger's datagram costs little. The reason
    /// of the drop is [`DropReason::UnknownPeer`]. A framing whose peers change their addresses sets it to false.
    /// It replaces the sender in [`open`](Self::open), and the endpoint checks the new one.
    ///
    /// Datagrams still go to the next hop. So after the first authentic datagram from another address, change the
    /// peer's routes with a [`RoutePublisher`](crate::route::RoutePublisher), and then the replacement.
    const CHECKS_SENDER_FIRST: bool = true;

    /// Returns the overhead of datagrams to or from an underlay address, outer headers included. With it
    /// [`Mtu::of_inner`](crate::Mtu::of_inner) returns the MTU for the TUN and for
    /// [`ForwarderConfig::mtu`](crate::forward::ForwarderConfig::mtu).
    ///
    /// With a higher MTU the first packet that is too long is lost, and then the path MTU is learned.
    #[must_use]
    fn overhead(underlay: IpAddr) -> Overhead
    where
        Self: Sized,
    {
        Overhead::of(underlay).and(Self::OVERHEAD_MAX as u16)
    }

    /// Returns the bytes of the datagram that a packet of `len` bytes becomes, padding included. Packets of equal
    /// length must become datagrams of equal length, or batches get short.
    ///
    /// `mtu` is the length in bytes of the longest packet that the path carries, at least `len`. The result is limited
    /// to `HEAD + len` to `len + OVERHEAD_MAX`, which is the default.
    #[inline]
    fn sealed_len(&self, len: usize, mtu: usize) -> usize {
        let _ = mtu;
        len + Self::OVERHEAD_MAX
    }

    /// Returns whether packets can be sealed for this peer. `packet` came from the TUN and may be a GSO packet; its
    /// header is valid.
    ///
    /// It may start a handshake with messages through `reply`. The first packet that waits for each peer is passed to it
    /// again after each datagram of the peer, each control message and each timeout. Once it may go, the next one is.
    #[inline]
    fn ready(&mut self, peer: SocketAddr, packet: &[u8], now: Duration, reply: &mut impl Reply) -> Ready {
        let _ = (peer, packet, now, reply);
        Ready::Go
    }

    /// Seals a packet in place. `datagram` has the length from [`sealed_len`](Self::sealed_len), and the packet is at
    /// `HEAD..HEAD + len`. The other bytes are undefined and must all be written.
    ///
    /// Each segment and fragment is sealed by itself. A sealed datagram may be dropped before it is sent.
    fn seal(&mut self, peer: SocketAddr, datagram: &mut [u8], len: usize);

    /// Opens a datagram in place, and returns its packet. `None`: it was a control message, which is counted as
    /// [`Stats::control_received`](crate::forward::Stats::control_received) and not as a packet.
    ///
    /// The endpoint checks the packet as one that came from `meta.from`. A framing that identifies its peers by other
    /// means may set this to the next hop of the peer's route.
    ///
    /// # Errors
    /// The reason for which the datagram is dropped: [`DropReason::NoSession`], [`DropReason::NotAuthentic`] or
    /// [`DropReason::Replayed`].
    fn open<'d>(
        &mut self,
        meta: &mut DatagramMeta,
        datagram: &'d mut [u8],
        now: Duration,
        reply: &mut impl Reply,
    ) -> Result<Option<&'d mut [u8]>, DropReason>;

    /// Does the work that is due at `now`, such as retries of handshakes and keepalives.
    #[inline]
    fn handle_timeout(&mut self, now: Duration, reply: &mut impl Reply) {
        let _ = (now, reply);
    }

    /// Returns the time of the next call of [`handle_timeout`](Self::handle_timeout). A call must put it off.
    ///
    /// With several workers, the answer to a handshake may reach another worker's socket. A worker whose packets wait
    /// finds the shared session at its next timeout, so set one some milliseconds after each [`Ready::Hold`].
    #[inline]
    #[must_use]
    fn poll_timeout(&self) -> Option<Duration> {
        None
    }
}

/// The highest value of [`Framing::OVERHEAD_MAX`] in bytes: 256. An IPv4 path of 552 bytes, the shortest that is
/// learned, still carries packets then.
pub const OVERHEAD_LIMIT: usize = 256;

/// An answer of [`Framing::ready`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ready {
    /// Seal the packet and send it.
    Go,
    /// Keep the packet until there is a session, for at most 5 s. 1 MiB is kept. Beyond it, the peer with the most
    /// waiting bytes loses its newest packets as [`DropReason::NoSession`], so that no peer takes the room of another.
    Hold,
    /// Drop the packet for this reason.
    Drop(DropReason),
}

/// An output for control messages of a [`Framing`].
pub trait Reply {
    /// Sends a message as one datagram, or loses it. It goes before the packets that are queued.
    fn send(&mut self, to: SocketAddr, message: &[u8]);
}

/// flannel's wire: each datagram is its packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Bare;

impl Framing for Bare {
    const HEAD: usize = 0;
    const OVERHEAD_MAX: usize = 0;
    const IS_BARE: bool = true;

    #[inline(always)]
    fn seal(&mut self, _: SocketAddr, _: &mut [u8], _: usize) {}

    #[inline(always)]
    fn open<'d>(
        &mut self,
        _: &mut DatagramMeta,
        datagram: &'d mut [u8],
        _: Duration,
        _: &mut impl Reply,
    ) -> Result<Option<&'d mut [u8]>, DropReason> {
        Ok(Some(datagram))
    }
}

/// Seals the packet that `write` puts into its place in a datagram. With [`Bare`] that is the datagram.
#[inline(always)]
pub(crate) fn seal_with<F: Framing>(
    framing: &mut F,
    peer: SocketAddr,
    datagram: &mut [u8],
    len: usize,
    write: impl FnOnce(&mut [u8]),
) {
    if F::IS_BARE {
        return write(datagram);
    }
    if let Some(packet) = datagram.get_mut(F::HEAD..).and_then(|rest| rest.get_mut(..len)) {
        write(packet);
        framing.seal(peer, datagram, len);
    }
}

/// Returns the length of a datagram within the limits of the framing.
#[inline(always)]
pub(crate) fn sealed_len<F: Framing>(framing: &F, len: usize, mtu: usize) -> usize {
    if F::IS_BARE {
        return len;
    }
    framing.sealed_len(len, mtu.max(len)).clamp(F::HEAD + len, len + F::OVERHEAD_MAX)
}
