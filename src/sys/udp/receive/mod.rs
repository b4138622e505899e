//! Received messages, one or many at a time.

use alloc::boxed::Box;
use alloc::vec;
use core::ffi::c_int;
use core::net::SocketAddr;
use std::io;

use super::error::RecvError;
use super::send::may_concern_earlier_packet;
use crate::sys::syscall::{MESSAGES, Slot};
use crate::wire::Ecn;

/// The number of pending errors that one call skips.
pub(super) const SKIPPED_ERRORS: usize = 16;

/// The size in bytes of a buffer that every GRO batch fits into: the kernel coalesces up to an IP packet's length.
const BUFFER: usize = 65_536;

/// The metadata of a received message: of one datagram, or of a GRO batch from one sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecvMeta {
    /// The sender. An IPv4 sender is an IPv4 address on an IPv6 socket too.
    pub from: SocketAddr,
    /// The number of bytes received.
    pub len: usize,
    /// The length in bytes of every datagram but the last, which may be shorter. It is `len` for a single datagram,
    /// also for an empty one.
    pub stride: usize,
    /// The ECN field of the outer packets. It is the same for all datagrams of a batch.
    pub ecn: Ecn,
}

impl RecvMeta {
    /// Returns the datagrams of a message, whose bytes are given: one, also if it is empty, or those of a GRO batch.
    #[inline]
    pub fn datagrams_mut<'b>(&self, bytes: &'b mut [u8]) -> impl Iterator<Item = &'b mut [u8]> + use<'b> {
        let empty = bytes.is_empty().then(<&mut [u8]>::default);
        bytes.chunks_mut(self.stride.max(1)).chain(empty)
    }

    /// Reads the metadata of a message that was received into a buffer of `room` bytes.
    #[inline]
    pub(super) fn new(slot: &Slot, room: usize) -> Result<Self, RecvError> {
        Self::with_control(slot, room, slot.segment_and_ecn())
    }

    /// Reads the metadata with a segment size and an ECN field that are given.
    #[inline]
    pub(super) fn with_control(
        slot: &Slot,
        room: usize,
        (segment, ecn): (Option<c_int>, Ecn),
    ) -> Result<Self, RecvError> {
        let len = slot.length;
        if len > room || slot.is_truncated() {
            return Err(RecvError::Truncated { len, have: room });
        }
        if slot.is_control_truncated() {
            return Err(RecvError::ControlTruncated { len });
        }
        let from = unmapped(slot.sender().ok_or(RecvError::Other(libc::EAFNOSUPPORT))?);
        let stride = segment.and_then(|bytes| usize::try_from(bytes).ok()).filter(|bytes| (1..=len).contains(bytes));
        Ok(Self { from, len, stride: stride.unwrap_or(len), ecn })
    }
}

/// Buffers for [`UdpTransport::recv_batch`](super::UdpTransport::recv_batch), and the messages in them.
#[derive(Debug)]
pub struct RecvBatch {
    bytes: Box<[u8]>,
    /// The size of one buffer in bytes.
    room: usize,
    slots: Box<[Slot]>,
    /// The number of messages that were received.
    filled: usize,
}

impl RecvBatch {
    /// The most messages that a batch has room for.
    pub const MESSAGES_MAX: usize = MESSAGES;

    /// Creates a batch with buffers of 64 KiB for 1 to [`RecvBatch::MESSAGES_MAX`] messages. Other numbers count as
    /// the nearest of these.
    ///
    /// A message may be a GRO batch, so that a few messages are enough where the kernel coalesces.
    #[must_use]
    pub fn new(messages: usize) -> Self {
        Self::with_buffers(messages, BUFFER)
    }

    /// Creates a batch with buffers of another size than 64 KiB. Smaller ones lose GRO batches. They are for sockets
    /// without [`UdpOffload::gro`](super::UdpOffload::gro), and for tests.
    #[must_use]
    pub fn with_buffers(messages: usize, bytes: usize) -> Self {
        let (messages, room) = (messages.clamp(1, Self::MESSAGES_MAX), bytes.max(1));
        let bytes = vec![0; messages.saturating_mul(room)].into_boxed_slice();
        Self { bytes, room, slots: vec![Slot::EMPTY; messages].into_boxed_slice(), filled: 0 }
    }

    /// Returns the number of messages that the batch has room for.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.slots.len()
    }

    /// Returns the number of messages that the last call received.
    #[must_use]
    pub fn len(&self) -> usize {
        self.filled
    }

    /// Returns `true` if the last call received nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.filled == 0
    }

    /// Returns the message of a number, counted from 0 in the order of arrival, and its `len` bytes. `None` behind
    /// the last.
    ///
    /// # Errors
    /// Returns [`RecvError::Truncated`] or [`RecvError::ControlTruncated`] if that message is lost. The others are
    /// not.
    pub fn get_mut(&mut self, number: usize) -> Option<Result<(RecvMeta, &mut [u8]), RecvError>> {
        let slot = self.slots.get(..self.filled)?.get(number)?;
        let buffer = self.bytes.chunks_exact_mut(self.room).nth(number)?;
        Some(contents(slot, buffer))
    }

    /// Returns the messages in the order of arrival, as [`RecvBatch::get_mut`] does.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = Result<(RecvMeta, &mut [u8]), RecvError>> {
        let filled = self.slots.iter().take(self.filled);
        filled.zip(self.bytes.chunks_exact_mut(self.room)).map(|(slot, buffer)| contents(slot, buffer))
    }

    /// Fills slots and buffers by `receive`, and stores the number that it filled.
    #[inline]
    pub(super) fn fill(
        &mut self,
        receive: impl FnOnce(&mut [Slot], &mut [u8], usize) -> Result<usize, RecvError>,
    ) -> Result<usize, RecvError> {
        self.filled = 0;
        self.filled = receive(&mut self.slots, &mut self.bytes, self.room)?;
        Ok(self.filled)
    }
}

#[inline]
fn contents<'b>(slot: &Slot, buffer: &'b mut [u8]) -> Result<(RecvMeta, &'b mut [u8]), RecvError> {
    let meta = RecvMeta::new(slot, buffer.len())?;
    Ok((meta, buffer.get_mut(..meta.len).unwrap_or_default()))
}

/// Repeats a call, and skips errors of packets that were sent earlier.
pub(super) fn skip_pending<T>(mut call: impl FnMut() -> io::Result<T>) -> Result<T, RecvError> {
    let mut skipped = 0;
    loop {
        match call() {
            Ok(received) => return Ok(received),
            Err(error) => match error.raw_os_error().unwrap_or(libc::EIO) {
                libc::EINTR => {}
                // EMSGSIZE: a router cannot carry a packet sent earlier.
                errno if errno == libc::EMSGSIZE || may_concern_earlier_packet(errno) => {
                    // Not `WouldBlock`: there may be datagrams behind them.
                    if skipped == SKIPPED_ERRORS {
                        return Err(RecvError::Other(errno));
                    }
                    skipped += 1;
                }
                errno => return Err(RecvError::from_errno(errno)),
            },
        }
    }
}

/// Returns the sender's address as the routes contain it: an IPv4-mapped address becomes an IPv4 address.
fn unmapped(from: SocketAddr) -> SocketAddr {
    match from {
        SocketAddr::V6(address) => match address.ip().to_ipv4_mapped() {
            Some(ip) => SocketAddr::new(ip.into(), address.port()),
            None => from,
        },
        SocketAddr::V4(_) => from,
    }
}

#[cfg(test)]
mod tests;
