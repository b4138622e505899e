//! Where the adapters meet the kernel: the system calls by which they are opened and by which packets pass. In the tests of
//! this crate a script can stand in for it.

use core::net::SocketAddr;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::route_query::{FlowKey, RouteMtu, RouteSocket};
use super::syscall::{self, Message, SendBacklog, Slot};

/// The system calls an adapter is made with. Each method is one, and tells what that one told: whether to try again, and what
/// an error means for which packet, is the adapter's business.
pub(super) trait SystemCalls {
    /// open(2) of the node that TUN devices come from, non-blocking and closed on exec.
    fn open(&self, node: &Path) -> io::Result<File>;

    /// [`syscall::socket`].
    fn socket(&self, family_of: SocketAddr) -> io::Result<OwnedFd>;

    /// [`syscall::send_messages`].
    fn send<'m>(&self, socket: BorrowedFd<'_>, messages: impl Iterator<Item = Message<'m>>) -> io::Result<usize>;

    /// [`syscall::send_backlog`].
    fn send_backlog(&self, socket: BorrowedFd<'_>) -> io::Result<SendBacklog>;

    /// [`syscall::receive_messages`].
    fn receive<'b, const N: usize>(
        &self,
        socket: BorrowedFd<'_>,
        slots: &mut [Slot],
        buffers: impl Iterator<Item = &'b mut [u8]>,
    ) -> io::Result<usize>;

    /// read(2).
    fn read(&self, device: &File, buffer: &mut [u8]) -> io::Result<usize>;

    /// readv(2).
    fn read_parts(&self, device: &File, parts: &mut [IoSliceMut<'_>]) -> io::Result<usize>;

    /// write(2).
    fn write(&self, device: &File, bytes: &[u8]) -> io::Result<usize>;

    /// writev(2).
    fn write_parts(&self, device: &File, parts: &[IoSlice<'_>]) -> io::Result<usize>;

    /// [`syscall::path_mtu`], which is a few.
    fn path_mtu(&self, source: SocketAddr, destination: SocketAddr) -> io::Result<u32>;

    /// [`RouteSocket::ask`], which is a few too.
    fn route_mtu(&self, socket: Option<&RouteSocket>, flow: &FlowKey) -> io::Result<RouteMtu>;
}

/// What every adapter has: outside of this crate's tests the kernel, which takes neither room nor time.
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
