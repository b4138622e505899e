//! The parts of a `msghdr`, for callers that receive and send by themselves: with a ring, for example.

use core::ffi::c_int;
use core::num::NonZeroUsize;

use super::error::RecvError;
use super::receive::RecvMeta;
use crate::Transmit;
use crate::sys::syscall::{Message, SendParts, Slot, segment_and_ecn};

/// The parts of a `msghdr` after recvmsg(2), which io_uring's `IORING_OP_RECVMSG` fills too.
///
/// The buffers should have [`NAME_MAX`](Self::NAME_MAX) and [`CONTROL_MAX`](Self::CONTROL_MAX) bytes or more. Control
/// messages of other kinds are ignored. Any bytes are accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecvHeader<'a> {
    /// The sender's socket address: the first `msg_namelen` bytes of `msg_name`.
    pub name: &'a [u8],
    /// The control messages: the first `msg_controllen` bytes of `msg_control`.
    pub control: &'a [u8],
    /// `msg_flags`.
    pub flags: c_int,
}

impl RecvHeader<'_> {
    /// Bytes of the longest socket address.
    pub const NAME_MAX: usize = SendHeader::NAME_MAX;
    /// Bytes of the control messages of a socket of [`UdpTransport`](super::UdpTransport), at most.
    pub const CONTROL_MAX: usize = SendHeader::CONTROL_MAX;
}

impl RecvMeta {
    /// Returns the metadata of a message of `len` bytes that was received into a buffer of `room` bytes. With the flag
    /// `MSG_TRUNC` in the call, `len` may exceed `room`.
    ///
    /// # Errors
    /// [`RecvError::Truncated`] or [`RecvError::ControlTruncated`] if the message is lost, as for
    /// [`UdpTransport::recv`](super::UdpTransport::recv). [`RecvError::Other`] with `EAFNOSUPPORT` if the name is no
    /// IP socket address.
    pub fn from_header(header: &RecvHeader<'_>, len: usize, room: usize) -> Result<Self, RecvError> {
        let slot = Slot::of(header.name, header.flags, len);
        Self::with_control(&slot, room, segment_and_ecn(header.control))
    }
}

/// The parts of a `msghdr` that sendmsg(2) or io_uring's `IORING_OP_SENDMSG` sends a [`Transmit`] with: destination,
/// segment size of a GSO batch (`UDP_SEGMENT`) and ECN field. The payload is [`Transmit::contents`]. The source is the
/// address of the socket.
///
/// The kernel reads these bytes until the send completes. Keep the header in its place until then.
///
/// ```
/// use loden::Transmit;
/// use loden::sys::SendHeader;
///
/// let header = SendHeader::new(&Transmit::datagram(([10, 168, 0, 3], 8285).into(), b"a packet"));
/// assert_eq!(header.name().len(), 16); // A `sockaddr_in`.
/// assert!(header.control().is_empty());
/// ```
#[derive(Clone, Copy, Debug)]
pub struct SendHeader(SendParts);

impl SendHeader {
    /// Bytes of [`name`](Self::name), at most.
    pub const NAME_MAX: usize = SendParts::NAME_MAX;
    /// Bytes of [`control`](Self::control), at most.
    pub const CONTROL_MAX: usize = SendParts::CONTROL_MAX;

    /// Returns the header of a transmit. The socket must have [`UdpOffload::gso`](super::UdpOffload::gso) if the
    /// transmit has several datagrams: see [`UdpTransport::offload`](super::UdpTransport::offload).
    #[must_use]
    pub fn new(transmit: &Transmit<'_>) -> Self {
        let Transmit { destination, contents: payload, segment_size, ecn, .. } = *transmit;
        // A single datagram has no segment size: some drivers fail with EIO otherwise.
        let size = segment_size.map(NonZeroUsize::get).filter(|size| *size < payload.len());
        let segment = size.and_then(|size| u16::try_from(size).ok());
        Self(SendParts::new(&Message { destination, payload, segment, ecn }))
    }

    /// Returns the bytes for `msg_name`, with the length for `msg_namelen`.
    #[must_use]
    pub fn name(&self) -> &[u8] {
        self.0.name()
    }

    /// Returns the bytes for `msg_control`, with the length for `msg_controllen`. They are aligned for a `cmsghdr`, and
    /// may be empty.
    #[must_use]
    pub fn control(&self) -> &[u8] {
        self.0.control()
    }
}

#[cfg(test)]
mod tests;
