//! The UDP sockets of a worker: one, or one for each IP family of the underlay.

use core::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};

use super::WorkerError;
use super::error::system;
use crate::sys::{Feature, UdpTransport};

/// The number of sockets: one for each IP family.
pub(super) const SOCKETS_MAX: usize = 2;

#[derive(Debug)]
pub(super) struct Sockets {
    first: UdpTransport,
    second: Option<Second>,
}

/// A socket of the other IP family.
#[derive(Debug)]
struct Second {
    udp: UdpTransport,
    /// Readable while one of the two sockets is. Callers wait for this one file descriptor.
    either: Epoll,
}

impl Sockets {
    pub(super) fn new(udp: UdpTransport) -> Self {
        Self { first: udp, second: None }
    }

    /// Adds the socket of the other IP family.
    pub(super) fn with_second(self, udp: UdpTransport) -> Result<Self, WorkerError> {
        let Self { first, second } = self;
        let (one, other) = (first.local_addr(), udp.local_addr());
        if second.is_some() || is_ipv4(one) == is_ipv4(other) {
            return Err(WorkerError::SameFamily { one, other });
        }
        let either =
            Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(|errno| system("epoll_create1", &errno.into()))?;
        for socket in [&first, &udp] {
            let readable = EpollEvent::new(EpollFlags::EPOLLIN, 0);
            either.add(socket, readable).map_err(|errno| system("epoll_ctl", &errno.into()))?;
        }
        Ok(Self { first, second: Some(Second { udp, either }) })
    }

    /// Returns the socket that sends to a next hop.
    #[inline]
    pub(super) fn to(&self, next_hop: SocketAddr) -> &UdpTransport {
        match &self.second {
            Some(second) if next_hop.is_ipv4() != is_ipv4(self.first.local_addr()) => &second.udp,
            Some(_) | None => &self.first,
        }
    }

    /// Returns true if two next hops are reached by different sockets.
    #[inline]
    pub(super) fn divide(&self, one: SocketAddr, other: SocketAddr) -> bool {
        self.second.is_some() && one.is_ipv4() != other.is_ipv4()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &UdpTransport> {
        [Some(&self.first), self.second.as_ref().map(|second| &second.udp)].into_iter().flatten()
    }

    /// Returns the addresses and ports that the sockets are bound to.
    pub(super) fn local_addrs(&self) -> impl Iterator<Item = SocketAddr> {
        self.iter().map(UdpTransport::local_addr)
    }

    /// Returns the features that the kernel lacks for any of the sockets, each once.
    pub(super) fn disabled(&self) -> impl Iterator<Item = Feature> {
        let of_first = move |feature: &Feature| self.first.disabled().any(|other| other == *feature);
        let second = self.second.iter().flat_map(|second| second.udp.disabled());
        self.first.disabled().chain(second.filter(move |feature| !of_first(feature)))
    }
}

/// Returns true if a socket sends to IPv4 peers. One that was taken over may be bound to an IPv4-mapped address.
#[inline]
fn is_ipv4(local: SocketAddr) -> bool {
    local.ip().to_canonical().is_ipv4()
}

impl AsFd for Sockets {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.second {
            Some(second) => second.either.0.as_fd(),
            None => self.first.as_fd(),
        }
    }
}
