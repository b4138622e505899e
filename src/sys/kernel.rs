//! The system calls of the adapters: those that open them and those that pass packets. In the tests of this crate a
//! script replaces them.

use core::net::SocketAddr;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::route_query::{FlowKey, RouteMtu, RouteSocket};
use super::syscall::{self, Message, SendBacklog, Slot};

/// The system calls of an adapter. Each method makes one call and returns its result. The adapter decides whether to
/// try again, and which packet an error concerns.
pub(super) trait SystemCalls {
    /// Opens the node of the TUN driver, non-blocking and closed on exec (open(2)).
    fn open(&self, node: &Path) -> io::Result<File>;

    /// Calls [`syscall::socket`].
    fn socket(&self, family_of: SocketAddr) -> io::Result<OwnedFd>;

    /// Calls [`syscall::send_messages`].
    fn send<'m>(&self, socket: BorrowedFd<'_>, messages: impl Iterator<Item = Message<'m>>) -> io::Result<usize>;

    /// Calls [`syscall::send_backlog`].
    fn send_backlog(&self, socket: BorrowedFd<'_>) -> io::Result<SendBacklog>;

    /// Calls [`syscall::receive_messages`].
    fn receive<'b, const N: usize>(
        &self,
        socket: BorrowedFd<'_>,
        slots: &mut [Slot],
        buffers: impl Iterator<Item = &'b mut [u8]>,
    ) -> io::Result<usize>;

    /// Calls read(2).
    fn read(&self, device: &File, buffer: &mut [u8]) -> io::Result<usize>;

    /// Calls readv(2).
    fn read_parts(&self, device: &File, parts: &mut [IoSliceMut<'_>]) -> io::Result<usize>;

    /// Calls write(2).
    fn write(&self, device: &File, bytes: &[u8]) -> io::Result<usize>;

    /// Calls writev(2).
    fn write_parts(&self, device: &File, parts: &[IoSlice<'_>]) -> io::Result<usize>;

    /// Calls [`syscall::path_mtu`], which makes several system calls.
    fn path_mtu(&self, source: SocketAddr, destination: SocketAddr) -> io::Result<u32>;

    /// Calls [`RouteSocket::ask`], which makes several system calls.
    fn route_mtu(&self, socket: Option<&RouteSocket>, flow: &FlowKey) -> io::Result<RouteMtu>;
}

/// The system calls that every adapter holds. Outside of this crate's tests it is the kernel, without size or cost.
#[cfg(not(test))]
pub(super) type Calls = Kernel;
#[cfg(test)]
pub(super) type Calls = super::script::Calls;

const _: () = assert!(size_of::<Kernel>() == 0);

/// The kernel itself.
#[derive(Clone, Debug, Default)]
pub(super) struct Kernel;

impl SystemCalls for Kernel {
    fn open(&self, node: &Path) -> io::Result<File> {
        // std adds O_CLOEXEC.
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(node)
    }

    fn socket(&self, family_of: SocketAddr) -> io::Result<OwnedFd> {
        syscall::socket(family_of)
    }

    #[inline]
    fn send<'m>(&self, socket: BorrowedFd<'_>, messages: impl Iterator<Item = Message<'m>>) -> io::Result<usize> {
        syscall::send_messages(socket, messages)
    }

    fn send_backlog(&self, socket: BorrowedFd<'_>) -> io::Result<SendBacklog> {
        syscall::send_backlog(socket)
    }

    #[inline]
    fn receive<'b, const N: usize>(
        &self,
        socket: BorrowedFd<'_>,
        slots: &mut [Slot],
        buffers: impl Iterator<Item = &'b mut [u8]>,
    ) -> io::Result<usize> {
        syscall::receive_messages::<N>(socket, slots, buffers)
    }

    #[inline]
    fn read(&self, mut device: &File, buffer: &mut [u8]) -> io::Result<usize> {
        device.read(buffer)
    }

    #[inline]
    fn read_parts(&self, mut device: &File, parts: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        device.read_vectored(parts)
    }

    #[inline]
    fn write(&self, mut device: &File, bytes: &[u8]) -> io::Result<usize> {
        device.write(bytes)
    }

    #[inline]
    fn write_parts(&self, mut device: &File, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        device.write_vectored(parts)
    }

    fn path_mtu(&self, source: SocketAddr, destination: SocketAddr) -> io::Result<u32> {
        syscall::path_mtu(source, destination)
    }

    fn route_mtu(&self, socket: Option<&RouteSocket>, flow: &FlowKey) -> io::Result<RouteMtu> {
        socket.ok_or(io::ErrorKind::Unsupported)?.ask(flow)
    }
}
