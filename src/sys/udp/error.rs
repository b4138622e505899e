//! Errors of UDP sockets: of binding, sending and receiving.

use core::net::SocketAddr;
use std::io;

/// The error of a socket that could not be created.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// Another socket has the address and port.
    #[error(
        "the UDP address {address} is in use; stop the program that uses it (`ss -lunp` lists it, it may be flanneld), \
         or choose another port for all hosts of the overlay"
    )]
    AddressInUse {
        /// The address asked for.
        address: SocketAddr,
    },
    /// The kernel has no IPv6.
    #[error(
        "the kernel has no IPv6, so that {address} cannot be bound; load its module (`modprobe ipv6`), boot without \
         `ipv6.disable=1`, or use IPv4 addresses"
    )]
    NoIpv6 {
        /// The address asked for.
        address: SocketAddr,
    },
    /// The process may not bind to this port.
    #[error(
        "no permission to bind to {address}: ports below the sysctl net.ipv4.ip_unprivileged_port_start need \
         CAP_NET_BIND_SERVICE; grant it, or choose a higher port"
    )]
    NoPermission {
        /// The address asked for.
        address: SocketAddr,
    },
    /// No interface of this host has the address.
    #[error(
        "no interface of this host holds {}, so that {address} cannot be bound; use an address that `ip address` lists \
         in this network namespace",
        .address.ip()
    )]
    NotLocal {
        /// The address asked for.
        address: SocketAddr,
    },
    /// The kernel refused for another reason.
    #[error("could not create a UDP socket on {address}: {source}")]
    Other {
        /// The address asked for.
        address: SocketAddr,
        /// The error number.
        source: io::Error,
    },
}

impl BindError {
    pub(super) fn new(address: SocketAddr, source: io::Error) -> Self {
        match source.raw_os_error() {
            Some(libc::EADDRINUSE) => Self::AddressInUse { address },
            Some(libc::EADDRNOTAVAIL) => Self::NotLocal { address },
            Some(libc::EAFNOSUPPORT) if address.is_ipv6() => Self::NoIpv6 { address },
            Some(libc::EACCES | libc::EPERM) => Self::NoPermission { address },
            _ => Self::Other { address, source },
        }
    }
}

/// The error of a call that received nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecvError {
    /// EBADF: the file descriptor is not open. Every later call fails too. It is a bug: other code closed the file
    /// descriptor.
    #[error("the file descriptor of the UDP socket was closed by other code in this process; find that code")]
    Closed,
    /// The control messages of a message did not fit (`MSG_CTRUNC`), as with a socket that was taken over with
    /// unknown options. The sizes of its datagrams are not known, so it is lost.
    #[error(
        "a message of {len} bytes came with more control messages than fit; take over a socket without options such as \
         SO_TIMESTAMP or IP_PKTINFO"
    )]
    ControlTruncated {
        /// Bytes in the message.
        len: usize,
    },
    /// A datagram or GRO batch did not fit into the buffer and is lost.
    #[error("a datagram of {len} bytes did not fit into a buffer of {have}; use one of 65536 bytes")]
    Truncated {
        /// Bytes in the datagram.
        len: usize,
        /// Bytes in the buffer.
        have: usize,
    },
    /// EAGAIN: there is nothing to receive.
    #[error("nothing to receive; wait until the UDP socket is readable")]
    WouldBlock,
    /// Another error, ENOBUFS or ENOMEM for example.
    #[error("receiving failed: {}", io::Error::from_raw_os_error(*.0))]
    Other(
        /// The error number.
        i32,
    ),
}

impl RecvError {
    /// Returns `true` if every later call would fail too.
    #[must_use]
    pub fn is_fatal(self) -> bool {
        match self {
            Self::Closed => true,
            Self::ControlTruncated { .. } | Self::Truncated { .. } | Self::WouldBlock | Self::Other(_) => false,
        }
    }

    /// Returns the error of a receive that failed with this number: that of recvmsg(2), or the negated result of a ring's
    /// operation.
    #[must_use]
    pub fn from_errno(errno: i32) -> Self {
        match errno {
            libc::EAGAIN => Self::WouldBlock,
            libc::EBADF => Self::Closed,
            other => Self::Other(other),
        }
    }
}

/// The error of the first datagram of a transmit that was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("datagram {segment} of the transmit was not sent: {kind}")]
pub struct SendError {
    /// The number of the datagram, counted from 0. Those before it were sent, and those after it were not tried.
    pub segment: usize,
    /// The reason.
    pub kind: SendErrorKind,
}

impl SendError {
    /// Returns `true` if every later call would fail too.
    #[must_use]
    pub fn is_fatal(self) -> bool {
        self.kind.is_fatal()
    }
}

/// The error of the first datagram of several transmits that was not sent.
///
/// All datagrams before it were sent, and none after it was tried. To continue, send the transmits from that number
/// on. The first segment is `segment` to try it again, or `segment + datagrams` to drop what was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("datagram {segment} of transmit {transmit} was not sent: {kind}")]
pub struct BatchError {
    /// The number of the transmit, counted from 0.
    pub transmit: usize,
    /// The number of the datagram in the transmit, counted from 0.
    pub segment: usize,
    /// The number of datagrams that were refused: the kernel refuses a GSO batch as a whole.
    pub datagrams: usize,
    /// The reason.
    pub kind: SendErrorKind,
}

impl BatchError {
    /// Returns `true` if every later call would fail too.
    #[must_use]
    pub fn is_fatal(self) -> bool {
        self.kind.is_fatal()
    }
}

/// The reason why a datagram was not sent. Only [`SendErrorKind::Closed`] concerns the next one too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendErrorKind {
    /// EBADF: the file descriptor is not open. Every later call fails too. It is a bug: other code closed the file
    /// descriptor.
    #[error("the file descriptor of the UDP socket was closed by other code in this process; find that code")]
    Closed,
    /// EPERM or EACCES: a firewall rule of this host, or a broadcast address.
    #[error("this host forbids it; check its firewall's output rules, and that the next hop is no broadcast address")]
    Forbidden,
    /// ENOBUFS or ENOMEM: the kernel has no memory. Try again a little later, without waiting for readiness. (The
    /// kernel reports a full device queue only to sockets with `IP_RECVERR`.)
    #[error("the kernel has no buffer for it; send fewer at once")]
    NoBuffers,
    /// EAGAIN of a lane or of one of the [`flow_ports`](super::UdpConfig::flow_ports): the path to this peer accepts
    /// no more. Other peers are not affected. Try this peer again a little later: the socket does not become writable
    /// for it.
    #[error("the path to the peer accepts no more; try again a little later")]
    PathFull,
    /// ECONNREFUSED: no socket listens on the peer's port.
    #[error("no program listens on the peer's port; check that the peer's tunnel runs")]
    Refused,
    /// EMSGSIZE: the datagram is longer than the path to this peer carries, as far as the kernel knows.
    /// [`PathMtus::handle_emsgsize`](crate::forward::PathMtus::handle_emsgsize) decides what the path carries.
    #[error("it is longer than the path carries; lower the MTU of the TUN device")]
    TooLong,
    /// EHOSTUNREACH, ENETUNREACH, EHOSTDOWN, ENETDOWN or ENONET: the peer is unreachable at the moment.
    #[error("the peer is unreachable; check `ip route get` for its address, and that it answers a ping")]
    Unreachable,
    /// EAGAIN: the send buffer that peers share is full. A peer that fills it gets a lane: see
    /// [`UdpTransport`](super::UdpTransport).
    #[error("the send buffer is full; wait until the UDP socket is writable")]
    WouldBlock,
    /// Another error: EINVAL for the destination port 0, EAFNOSUPPORT for an IPv6 destination on an IPv4 socket.
    #[error("{}; check that the socket can send to such an address", io::Error::from_raw_os_error(*.0))]
    Other(
        /// The error number.
        i32,
    ),
}

impl SendErrorKind {
    /// Returns `true` if every later call would fail too.
    #[must_use]
    pub fn is_fatal(self) -> bool {
        match self {
            Self::Closed => true,
            Self::Forbidden
            | Self::NoBuffers
            | Self::PathFull
            | Self::Refused
            | Self::TooLong
            | Self::Unreachable
            | Self::WouldBlock
            | Self::Other(_) => false,
        }
    }

    /// Returns the reason of a send that failed with this number: that of sendmsg(2), or the negated result of a ring's
    /// operation. EINVAL and EIO of a GSO batch may mean that the path has no GSO: send its datagrams one by one then.
    #[must_use]
    pub fn from_errno(errno: i32) -> Self {
        match errno {
            libc::EAGAIN => Self::WouldBlock,
            libc::EBADF => Self::Closed,
            libc::ECONNREFUSED => Self::Refused,
            libc::EHOSTDOWN | libc::EHOSTUNREACH | libc::ENETDOWN | libc::ENETUNREACH | libc::ENONET => {
                Self::Unreachable
            }
            libc::EMSGSIZE => Self::TooLong,
            libc::ENOBUFS | libc::ENOMEM => Self::NoBuffers,
            libc::EACCES | libc::EPERM => Self::Forbidden,
            other => Self::Other(other),
        }
    }
}
