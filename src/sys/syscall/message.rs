//! Messages to and from a socket, several per system call.

use core::ffi::{c_int, c_long, c_uint, c_ulong};
use core::mem::{MaybeUninit, offset_of};
use core::net::SocketAddr;
use core::ptr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::address::{NAME_LENGTH, SocketName};
use super::control::{CONTROL_LENGTH, Control, Kind, entries};
use crate::wire::Ecn;

/// The largest number of messages per system call.
///
/// Their headers take 5 KiB of stack. With 32 messages, the system call itself is a few percent of the cost.
pub(in crate::sys) const MESSAGES: usize = 32;

/// A datagram or a GSO batch to send.
#[derive(Clone, Copy, Debug)]
pub(in crate::sys) struct Message<'a> {
    pub(in crate::sys) destination: SocketAddr,
    pub(in crate::sys) payload: &'a [u8],
    /// The size of all datagrams but the last. `None` for a single datagram.
    pub(in crate::sys) segment: Option<u16>,
    pub(in crate::sys) ecn: Ecn,
}

/// The memory that the pointers of an [`Entry`] to send refer to.
struct Parts {
    name: SocketName,
    payload: libc::iovec,
    control: Control,
}

/// Struct `user_msghdr` of the kernel's include/linux/socket.h.
#[derive(Clone, Copy)]
#[repr(C)]
struct Header {
    name: *mut SocketName,
    name_length: c_uint,
    payload: *mut libc::iovec,
    payloads: usize,
    control: *mut Control,
    control_length: usize,
    flags: c_int,
}

/// Struct `mmsghdr`, ibid.
#[derive(Clone, Copy)]
#[repr(C)]
struct Entry {
    header: Header,
    length: c_uint,
}

const _: () = assert!(
    size_of::<Header>() == size_of::<libc::msghdr>()
        && offset_of!(Header, name) == offset_of!(libc::msghdr, msg_name)
        && offset_of!(Header, name_length) == offset_of!(libc::msghdr, msg_namelen)
        && offset_of!(Header, payload) == offset_of!(libc::msghdr, msg_iov)
        && offset_of!(Header, payloads) == offset_of!(libc::msghdr, msg_iovlen)
        && offset_of!(Header, control) == offset_of!(libc::msghdr, msg_control)
        && offset_of!(Header, control_length) == offset_of!(libc::msghdr, msg_controllen)
        && offset_of!(Header, flags) == offset_of!(libc::msghdr, msg_flags)
        && size_of::<Entry>() == size_of::<libc::mmsghdr>()
        && offset_of!(Entry, length) == offset_of!(libc::mmsghdr, msg_len)
);

impl Entry {
    const EMPTY: Self = Self {
        header: Header {
            name: ptr::null_mut(),
            name_length: 0,
            payload: ptr::null_mut(),
            payloads: 0,
            control: ptr::null_mut(),
            control_length: 0,
            flags: 0,
        },
        length: 0,
    };
}

/// Sends the first [`MESSAGES`] of `messages` by sendmmsg(2), or a single one by sendmsg(2). Does not consume further
/// messages. Returns the number of sent messages.
pub(in crate::sys) fn send_messages<'a>(
    socket: BorrowedFd<'_>,
    messages: impl Iterator<Item = Message<'a>>,
) -> io::Result<usize> {
    let mut parts = [const { MaybeUninit::<Parts>::uninit() }; MESSAGES];
    let mut entries = [const { MaybeUninit::<Entry>::uninit() }; MESSAGES];
    let mut count: c_uint = 0;
    for ((parts, entry), message) in parts.iter_mut().zip(&mut entries).zip(messages) {
        let (name, name_length) = SocketName::new(message.destination);
        // The kernel does not write through this pointer, although it is mutable.
        let payload =
            libc::iovec { iov_base: message.payload.as_ptr().cast_mut().cast(), iov_len: message.payload.len() };
        let parts = parts.write(Parts { name, payload, control: Control::EMPTY });
        let control_length = describe(&message, &mut parts.control);
        entry.write(Entry {
            header: Header {
                name: &raw mut parts.name,
                name_length,
                payload: &raw mut parts.payload,
                payloads: 1,
                control: if control_length == 0 { ptr::null_mut() } else { &raw mut parts.control },
                control_length,
                flags: 0,
            },
            length: 0,
        });
        count += 1;
    }
    if count == 1 {
        // SAFETY: the first of `entries` is initialized and begins with a `struct msghdr`; the rest is as below.
        let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), entries.as_ptr().cast(), 0) };
        return if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(1) };
    }
    let (fd, pointer) = (c_long::from(socket.as_raw_fd()), entries.as_mut_ptr());
    // A direct system call, because musl's function makes one call per message.
    // SAFETY: the first `count` of `entries` are initialized, with the layout of `struct mmsghdr` as asserted above. The
    // memory that they refer to, in `parts` and in the payloads, lives until the call returns and has the given lengths.
    let sent = unsafe { libc::syscall(libc::SYS_sendmmsg, fd, pointer, c_ulong::from(count), c_long::from(0)) };
    usize::try_from(sent).map_err(|_negative| io::Error::last_os_error())
}

/// Writes the control messages of a message and returns their length in bytes.
#[inline]
fn describe(message: &Message<'_>, control: &mut Control) -> usize {
    let mut length = 0;
    if let Some(segment) = message.segment {
        length = control.put(length, Kind::UDP_SEGMENT, segment.to_ne_bytes());
    }
    if message.ecn != Ecn::NotEct {
        // An IPv6 socket sends to an IPv4 or mapped address by the rules of IPv4 (`udpv6_sendmsg` in the kernel's
        // net/ipv6/udp.c).
        let kind = match message.destination {
            SocketAddr::V6(address) if address.ip().to_ipv4_mapped().is_none() => Kind::IPV6_TCLASS,
            SocketAddr::V4(_) | SocketAddr::V6(_) => Kind::IP_TOS,
        };
        length = control.put(length, kind, c_int::from(message.ecn.bits()).to_ne_bytes());
    }
    length
}

/// The name and the control messages of a message to send.
#[derive(Clone, Copy, Debug)]
pub(in crate::sys) struct SendParts {
    name: SocketName,
    name_length: c_uint,
    control: Control,
    control_length: usize,
}

impl SendParts {
    pub(in crate::sys) const NAME_MAX: usize = NAME_LENGTH as usize;
    pub(in crate::sys) const CONTROL_MAX: usize = CONTROL_LENGTH;

    pub(in crate::sys) fn new(message: &Message<'_>) -> Self {
        let (name, name_length) = SocketName::new(message.destination);
        let mut control = Control::EMPTY;
        let control_length = describe(message, &mut control);
        Self { name, name_length, control, control_length }
    }

    pub(in crate::sys) fn name(&self) -> &[u8] {
        self.name.bytes(self.name_length)
    }

    pub(in crate::sys) fn control(&self) -> &[u8] {
        self.control.bytes(self.control_length)
    }
}

/// Returns the segment size, if these control messages contain one, and the ECN field.
#[inline]
pub(in crate::sys) fn segment_and_ecn(control: &[u8]) -> (Option<c_int>, Ecn) {
    let (mut segment, mut ecn) = (None, Ecn::NotEct);
    for (kind, value) in entries(control) {
        let int = value.first_chunk().map(|bytes| c_int::from_ne_bytes(*bytes));
        if kind == Kind::UDP_GRO {
            segment = int;
        } else if kind == Kind::IP_TOS {
            ecn = value.first().map_or(ecn, |byte| Ecn::of(*byte));
        } else if kind == Kind::IPV6_TCLASS {
            ecn = int.map_or(ecn, |class| Ecn::of(class.to_le_bytes()[0]));
        }
    }
    (segment, ecn)
}

/// The metadata of a received message.
#[derive(Clone, Copy, Debug)]
pub(in crate::sys) struct Slot {
    name: SocketName,
    control: Control,
    control_length: usize,
    flags: c_int,
    /// Bytes of the message, which may exceed the buffer.
    pub(in crate::sys) length: usize,
}

impl Slot {
    pub(in crate::sys) const EMPTY: Self =
        Self { name: SocketName::EMPTY, control: Control::EMPTY, control_length: 0, flags: 0, length: 0 };

    /// Returns a slot with a name of any bytes and without control messages.
    pub(in crate::sys) fn of(name: &[u8], flags: c_int, length: usize) -> Self {
        Self { name: SocketName::from_bytes(name), flags, length, ..Self::EMPTY }
    }

    /// Returns `None` for another family than IP.
    #[inline]
    pub(in crate::sys) fn sender(&self) -> Option<SocketAddr> {
        self.name.parse()
    }

    /// Returns true for `MSG_TRUNC`: the message was longer than the buffer.
    pub(in crate::sys) fn is_truncated(&self) -> bool {
        self.flags & libc::MSG_TRUNC != 0
    }

    /// Returns true for `MSG_CTRUNC`: there were more control messages than fit.
    pub(in crate::sys) fn is_control_truncated(&self) -> bool {
        self.flags & libc::MSG_CTRUNC != 0
    }

    /// Returns the segment size, if the kernel reported one, and the ECN field.
    #[inline]
    pub(in crate::sys) fn segment_and_ecn(&self) -> (Option<c_int>, Ecn) {
        segment_and_ecn(self.control.bytes(self.control_length))
    }

    /// Returns the received control messages.
    #[cfg(test)]
    pub(in crate::sys) fn control_bytes(&self) -> &[u8] {
        self.control.bytes(self.control_length)
    }

    /// Returns a slot as the kernel fills it.
    #[cfg(test)]
    pub(in crate::sys) fn scripted(from: SocketAddr, length: usize, segment: Option<c_int>, flags: c_int) -> Self {
        let mut slot = Self { name: SocketName::new(from).0, length, flags, ..Self::EMPTY };
        if let Some(segment) = segment {
            slot.control_length = slot.control.put(0, Kind::UDP_GRO, segment.to_ne_bytes());
        }
        slot
    }
}

/// Receives by recvmmsg(2) with `MSG_TRUNC` into as many buffers as there are slots, but at most `N`. Returns the
/// number of received messages. Later slots and buffers have unspecified contents.
pub(in crate::sys) fn receive_messages<'b, const N: usize>(
    socket: BorrowedFd<'_>,
    slots: &mut [Slot],
    buffers: impl Iterator<Item = &'b mut [u8]>,
) -> io::Result<usize> {
    let mut payloads = [libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 }; N];
    let mut entries = [Entry::EMPTY; N];
    let mut count: c_uint = 0;
    for (((entry, payload), slot), buffer) in entries.iter_mut().zip(&mut payloads).zip(&mut *slots).zip(buffers) {
        *payload = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        entry.header = Header {
            name: &raw mut slot.name,
            name_length: NAME_LENGTH,
            payload,
            payloads: 1,
            control: &raw mut slot.control,
            control_length: CONTROL_LENGTH,
            flags: 0,
        };
        count += 1;
    }
    if N == 1 {
        // SAFETY: as below, and an entry begins with a `struct msghdr`.
        let received = unsafe { libc::recvmsg(socket.as_raw_fd(), entries.as_mut_ptr().cast(), libc::MSG_TRUNC) };
        let length = usize::try_from(received).map_err(|_negative| io::Error::last_os_error())?;
        if let ([slot, ..], [entry, ..]) = (slots, &entries[..]) {
            slot.length = length;
            slot.flags = entry.header.flags;
            slot.control_length = entry.header.control_length;
        }
        return Ok(1);
    }
    let (fd, count, flags) = (c_long::from(socket.as_raw_fd()), c_ulong::from(count), c_long::from(libc::MSG_TRUNC));
    let (pointer, no_limit) = (entries.as_mut_ptr(), ptr::null_mut::<libc::timespec>());
    // A direct system call, as above.
    // SAFETY: the first `count` of `entries` have the layout of `struct mmsghdr` as asserted above. They refer to
    // names, control messages and buffers of the given lengths. These are distinct, live until the call returns, and
    // have no invalid value as bytes. No time limit is passed.
    let received = unsafe { libc::syscall(libc::SYS_recvmmsg, fd, pointer, count, flags, no_limit) };
    let received = usize::try_from(received).map_err(|_negative| io::Error::last_os_error())?;
    for (slot, entry) in slots.iter_mut().zip(&entries).take(received) {
        slot.length = usize::try_from(entry.length).unwrap_or(usize::MAX);
        slot.flags = entry.header.flags;
        slot.control_length = entry.header.control_length;
    }
    Ok(received)
}
