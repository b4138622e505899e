//! Creation of UDP sockets, one or several on a port.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ffi::c_int;
use core::iter;
use core::net::{IpAddr, SocketAddr};
use core::num::NonZeroUsize;
use std::io;
use std::net::UdpSocket;
use std::os::fd::AsFd;

use super::lanes::Lanes;
use super::{BindError, UdpConfig, UdpTransport, set_sending_options};
use crate::sys::kernel::{Calls, SystemCalls};
use crate::sys::syscall::{self, SocketOption};

/// The address and the settings of sockets to be bound.
#[derive(Clone, Debug)]
pub(super) struct Binding<'a> {
    pub(super) calls: Calls,
    pub(super) address: SocketAddr,
    pub(super) config: &'a UdpConfig,
}

/// The sharing of an address and port with other sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sharing {
    Alone,
    Port,
}

impl<'a> Binding<'a> {
    /// An IPv4-mapped address is the IPv4 address, because IPv6 sockets are for IPv6 alone.
    pub(super) fn new(address: SocketAddr, config: &'a UdpConfig) -> Self {
        let address = match address.ip().to_canonical() {
            canonical @ IpAddr::V4(_) => SocketAddr::new(canonical, address.port()),
            IpAddr::V6(_) => address,
        };
        Self { calls: Calls::default(), address, config }
    }

    /// Creates one socket, and those of its flow ports.
    pub(super) fn alone(&self) -> Result<UdpTransport, BindError> {
        let transport = self.one(Sharing::Alone)?;
        // After the requested port, which could be among those that the kernel chooses from.
        let flows = self.flows()?;
        let lanes = Arc::new(Lanes::new(flows.len()));
        Ok(UdpTransport { flows, lanes, ..transport })
    }

    /// Creates several sockets on one port, which share those of the flow ports.
    pub(super) fn queues(&self, queues: NonZeroUsize) -> Result<Vec<UdpTransport>, BindError> {
        // The first one alone, which fails if another socket has the port. Only then further ones may join.
        let first = self.alone()?;
        if queues > NonZeroUsize::MIN {
            syscall::set_socket_option(first.as_fd(), SocketOption::ReusePort, 1)
                .map_err(|source| BindError::new(self.address, source))?;
        }
        // With the port that the kernel chose for port 0.
        let binding = Self { address: first.local, ..self.clone() };
        let (flows, overruling, lanes) =
            (Arc::clone(&first.flows), Arc::clone(&first.overruling), Arc::clone(&first.lanes));
        let another = |_| {
            let (flows, overruling, lanes) = (Arc::clone(&flows), Arc::clone(&overruling), Arc::clone(&lanes));
            Ok(UdpTransport { flows, overruling, lanes, ..binding.one(Sharing::Port)? })
        };
        iter::once(Ok(first)).chain((1..queues.get()).map(another)).collect()
    }

    fn one(&self, sharing: Sharing) -> Result<UdpTransport, BindError> {
        let Self { ref calls, address, config } = *self;
        let make = || {
            let socket = self.socket(address)?;
            if sharing == Sharing::Port {
                syscall::set_socket_option(socket.as_fd(), SocketOption::ReusePort, 1)?;
            }
            set_buffer(&socket, config.receive_buffer, SocketOption::ReceiveBufferForce, SocketOption::ReceiveBuffer)?;
            set_buffer(&socket, config.send_buffer, SocketOption::SendBufferForce, SocketOption::SendBuffer)?;
            syscall::bind(socket.as_fd(), address)?;
            Ok(UdpTransport {
                calls: calls.clone(),
                ..UdpTransport::configured(socket, config.offload, config.path_reports)?
            })
        };
        make().map_err(|source| BindError::new(address, source))
    }

    /// Creates a socket that is not bound. One for IPv6 neither receives nor sends IPv4, so that a socket for IPv4 can
    /// have the same port.
    fn socket(&self, address: SocketAddr) -> io::Result<UdpSocket> {
        let socket = UdpSocket::from(self.calls.socket(address)?);
        if address.is_ipv6() {
            syscall::set_socket_option(socket.as_fd(), SocketOption::Ipv6Only, 1)?;
        }
        Ok(socket)
    }

    /// Creates the sockets of the flow ports: on the same address, on ports that the kernel chooses. They receive
    /// nothing.
    fn flows(&self) -> Result<Arc<[UdpSocket]>, BindError> {
        let Self { mut address, config, .. } = *self;
        address.set_port(0);
        let make = || {
            let socket = self.socket(address)?;
            // The kernel rounds that up to its minimum, about one packet. What arrives is never read.
            syscall::set_socket_option(socket.as_fd(), SocketOption::ReceiveBuffer, 0)?;
            set_buffer(&socket, config.send_buffer, SocketOption::SendBufferForce, SocketOption::SendBuffer)?;
            set_sending_options(&socket, address)?;
            syscall::bind(socket.as_fd(), address)?;
            Ok(socket)
        };
        let sockets: io::Result<_> = (0..config.flow_ports).map(|_| make()).collect();
        sockets.map_err(|source| BindError::new(address, source))
    }
}

pub(super) fn set_buffer(
    socket: &UdpSocket,
    size: Option<usize>,
    force: SocketOption,
    plain: SocketOption,
) -> io::Result<()> {
    let Some(size) = size else { return Ok(()) };
    // The kernel doubles it (SO_RCVBUF in socket(7)), and half of the largest int is its limit.
    let size = c_int::try_from(size).unwrap_or(c_int::MAX).min(c_int::MAX / 2);
    syscall::set_socket_option(socket.as_fd(), force, size)
        .or_else(|_not_permitted| syscall::set_socket_option(socket.as_fd(), plain, size))
}
