//! Why there is no UDP socket, or nothing was sent or received.

use core::net::SocketAddr;
use std::io;

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// Another socket has the address and port.
    #[error(
        "the UDP address {address} is in use; end who uses it (`ss -lunp` tells, a running flanneld for one), or \
         choose another port for all hosts of the overlay"
    )]
    AddressInUse {
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
    /// The address is not one of this host's.
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
    #[error("could not make a UDP socket on {address}: {source}")]
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
            Some(libc::EACCES | libc::EPERM) => Self::NoPermission { address },
            _ => Self::Other { address, source },
        }
    }
}

/// Why nothing was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecvError {
    /// EBADF: the file descriptor is not open. Final, and a bug: somebody closed a file descriptor that is not theirs.
    #[error("the file descriptor of the UDP socket was closed by someone else in this process; find out by whom")]
    Closed,
    /// The kernel had more to say about a message than there was room for (`MSG_CTRUNC`), as happens with a socket that was
    /// taken over with options of somebody else's. Where its datagrams begin is not known, so it is lost.
    #[error(
        "a message of {len} bytes came with more control messages than fit; take over a socket without options such as \
         SO_TIMESTAMP or IP_PKTINFO"
    )]
    ControlTruncated {
        /// Bytes in the message.
        len: usize,
    },
    /// A datagram, or a train of them, did not fit into the buffer and is lost.
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
    /// Whether every later call would fail too.
    #[must_use]
    pub fn is_fatal(self) -> bool {
        match self {
            Self::Closed => true,
            Self::ControlTruncated { .. } | Self::Truncated { .. } | Self::WouldBlock | Self::Other(_) => false,
        }
    }

    pub(super) fn from_errno(errno: i32) -> Self {
        match errno {
            libc::EAGAIN => Self::WouldBlock,
            libc::EBADF => Self::Closed,
            other => Self::Other(other),
        }
    }
}

/// One datagram of a transmit was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("datagram {segment} of the transmit was not sent: {kind}")]
pub struct SendError {
    /// Its number, counted from 0. Those before it were sent, those after it were not tried.
    pub segment: usize,
    /// Why.
    pub kind: SendErrorKind,
}

impl SendError {
    /// Whether every later call would fail too.
    #[must_use]
    pub fn is_fatal(self) -> bool {
        self.kind.is_fatal()
    }
}

/// One datagram of a batch of transmits was not sent.
///
/// Everything before it, in order, was sent; nothing behind it was tried. To go on, send the transmits from that number on,
/// with `segment` as the first segment to try it again, or `segment + datagrams` to give up what was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("datagram {segment} of transmit {transmit} was not sent: {kind}")]
pub struct BatchError {
    /// Number of the transmit, counted from 0.
    pub transmit: usize,
    /// Number of the datagram in the transmit, counted from 0.
    pub segment: usize,
    /// How many datagrams the kernel refused with it: a train is refused as a whole.
    pub datagrams: usize,
    /// Why.
    pub kind: SendErrorKind,
}

impl BatchError {
    /// Whether every later call would fail too.
    #[must_use]
    pub fn is_fatal(self) -> bool {
        self.kind.is_fatal()
    }
}

/// Why a datagram was not sent. Nothing but [`SendErrorKind::Closed`] says anything about the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendErrorKind {
    /// EBADF: the file descriptor is not open. Final, and a bug: somebody closed a file descriptor that is not theirs.
    #[error("the file descriptor of the UDP socket was closed by someone else in this process; find out by whom")]
    Closed,
    /// EPERM or EACCES: a firewall rule of this host, or a broadcast address.
    #[error(
        "this host forbids it; look for a firewall rule on its output, and whether the next hop is a broadcast address"
    )]
    Forbidden,
    /// ENOBUFS or ENOMEM: there is no memory. (That a device's queue is full the kernel tells only sockets with
    /// `IP_RECVERR`.) Wait a little, but not for readiness.
    #[error("the kernel has no buffer for it; send fewer at once")]
    NoBuffers,
    /// EAGAIN, of a lane or of one of the [`flow_ports`](super::UdpConfig::flow_ports): the path to this peer takes no more. Others
    /// are not concerned. The socket does not become writable when that is over: try this peer again a little later.
    #[error("the path to the peer takes no more; try again a little later")]
    PathFull,
    /// ECONNREFUSED: nobody listens on the peer's port.
    #[error("nobody listens on the peer's port; see whether it runs")]
    Refused,
    /// EMSGSIZE: longer than the path to this peer carries, as far as the kernel knows.
    /// [`PathMtus::handle_emsgsize`](crate::forward::PathMtus::handle_emsgsize) tells whether that is so.
    #[error("it is longer than the path carries; lower the MTU of the TUN device")]
    TooLong,
    /// EHOSTUNREACH, ENETUNREACH, EHOSTDOWN, ENETDOWN or ENONET: no way to the peer at the moment.
    #[error("the peer cannot be reached; see `ip route get` for its address, and whether it answers a ping")]
    Unreachable,
    /// EAGAIN: the send buffer that peers share is full. A peer that fills it gets another one: see
    /// [`UdpTransport`](super::UdpTransport).
    #[error("the send buffer is full; wait until the UDP socket is writable")]
    WouldBlock,
    /// Another error: EINVAL for the destination port 0, EAFNOSUPPORT for an IPv6 destination on an IPv4 socket.
    #[error("{}; see whether the socket can send to such an address", io::Error::from_raw_os_error(*.0))]
    Other(
        /// The error number.
        i32,
    ),
}

impl SendErrorKind {
    /// Whether every later call would fail too.
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

    pub(super) fn from_errno(errno: i32) -> Self {
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
