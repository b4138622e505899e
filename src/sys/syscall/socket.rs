//! Sockets and their options.

use core::ffi::c_int;
use core::net::SocketAddr;
use std::io;
use std::net::UdpSocket;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::address::SocketName;
use super::checked;

/// Creates a non-blocking UDP socket for addresses of the same family, closed on exec (socket(2)).
pub(in crate::sys) fn socket(family_of: SocketAddr) -> io::Result<OwnedFd> {
    let family = match family_of {
        SocketAddr::V4(_) => libc::AF_INET,
        SocketAddr::V6(_) => libc::AF_INET6,
    };
    make_socket(family, libc::SOCK_DGRAM, 0)
}

/// A socket that is not for datagrams.
#[derive(Clone, Copy, Debug)]
pub(in crate::sys) enum SpecialSocket {
    /// All ICMPv4 messages to this host (raw(7)). It needs `CAP_NET_RAW`.
    Icmp,
    /// All ICMPv6 messages to this host (RFC 3542 section 3). It needs `CAP_NET_RAW`.
    Icmpv6,
    /// Route queries (rtnetlink(7)).
    Route,
}

/// Creates a non-blocking socket, closed on exec (socket(2)).
pub(in crate::sys) fn special_socket(kind: SpecialSocket) -> io::Result<OwnedFd> {
    match kind {
        SpecialSocket::Icmp => make_socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP),
        SpecialSocket::Icmpv6 => make_socket(libc::AF_INET6, libc::SOCK_RAW, libc::IPPROTO_ICMPV6),
        SpecialSocket::Route => make_socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE),
    }
}

fn make_socket(family: c_int, kind: c_int, protocol: c_int) -> io::Result<OwnedFd> {
    // SAFETY: only numbers are passed.
    let result = unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, protocol) };
    let fd = checked(result)?;
    // SAFETY: the kernel has just created it, so it is open and has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Binds a socket (bind(2)).
pub(in crate::sys) fn bind(socket: BorrowedFd<'_>, address: SocketAddr) -> io::Result<()> {
    let (name, length) = SocketName::new(address);
    // SAFETY: the kernel reads `length` bytes of `name`, which has as many and lives until the call returns.
    let result = unsafe { libc::bind(socket.as_raw_fd(), (&raw const name).cast(), length) };
    checked(result).map(|_zero| ())
}

/// Returns the kernel's MTU of the path between two addresses, in bytes of outer packet (`IP_MTU` in ip(7), `IPV6_MTU`
/// in ipv6(7)). Only a connected socket has the option, so the function connects a temporary one.
pub(in crate::sys) fn path_mtu(source: SocketAddr, destination: SocketAddr) -> io::Result<u32> {
    let probe = UdpSocket::bind(source)?;
    probe.connect(destination)?;
    let option = match destination {
        SocketAddr::V4(_) => SocketOption::Ipv4Mtu,
        SocketAddr::V6(_) => SocketOption::Ipv6Mtu,
    };
    u32::try_from(socket_option(probe.as_fd(), option)?).map_err(io::Error::other)
}

/// The socket options in use. The value of each is an `int`.
#[derive(Clone, Copy, Debug)]
pub(in crate::sys) enum SocketOption {
    /// `SO_BINDTOIFINDEX` (Linux 5.0): the index of the interface that the socket is bound to, or 0.
    BoundInterface,
    /// `ICMP_FILTER` in raw(7): a bit for each filtered type.
    IcmpFilter,
    /// `IP_MTU`: the MTU of the path to the peer, in bytes. It needs a connected socket.
    Ipv4Mtu,
    Ipv4MtuDiscover,
    Ipv4ReceiveErrors,
    /// `IP_RECVTOS`: report the type of service of every packet.
    Ipv4ReceiveTos,
    /// `IPV6_MTU`: the MTU of the path to the peer, in bytes. It needs a connected socket.
    Ipv6Mtu,
    Ipv6MtuDiscover,
    Ipv6Only,
    Ipv6ReceiveErrors,
    /// `IPV6_RECVTCLASS`: report the traffic class of every packet.
    Ipv6ReceiveTrafficClass,
    /// `SO_MARK`.
    Mark,
    /// `SO_NO_CHECK`: send without a UDP checksum.
    NoChecksum,
    ReceiveBuffer,
    ReceiveBufferForce,
    ReusePort,
    SendBuffer,
    SendBufferForce,
    /// `UDP_GRO`: receive GRO batches.
    UdpGro,
    /// `UDP_SEGMENT`: segment everything that is sent into datagrams of this size.
    UdpSegment,
}

impl SocketOption {
    const fn level_and_name(self) -> (c_int, c_int) {
        match self {
            Self::BoundInterface => (libc::SOL_SOCKET, libc::SO_BINDTOIFINDEX),
            Self::IcmpFilter => (libc::SOL_RAW, ICMP_FILTER),
            Self::Ipv4Mtu => (libc::IPPROTO_IP, libc::IP_MTU),
            Self::Ipv4MtuDiscover => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER),
            Self::Ipv4ReceiveErrors => (libc::IPPROTO_IP, libc::IP_RECVERR),
            Self::Ipv4ReceiveTos => (libc::IPPROTO_IP, libc::IP_RECVTOS),
            Self::Ipv6Mtu => (libc::IPPROTO_IPV6, libc::IPV6_MTU),
            Self::Ipv6MtuDiscover => (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER),
            Self::Ipv6Only => (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY),
            Self::Ipv6ReceiveErrors => (libc::IPPROTO_IPV6, libc::IPV6_RECVERR),
            Self::Ipv6ReceiveTrafficClass => (libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS),
            Self::Mark => (libc::SOL_SOCKET, libc::SO_MARK),
            Self::NoChecksum => (libc::SOL_SOCKET, libc::SO_NO_CHECK),
            Self::ReceiveBuffer => (libc::SOL_SOCKET, libc::SO_RCVBUF),
            Self::ReceiveBufferForce => (libc::SOL_SOCKET, libc::SO_RCVBUFFORCE),
            Self::ReusePort => (libc::SOL_SOCKET, libc::SO_REUSEPORT),
            Self::SendBuffer => (libc::SOL_SOCKET, libc::SO_SNDBUF),
            Self::SendBufferForce => (libc::SOL_SOCKET, libc::SO_SNDBUFFORCE),
            Self::UdpGro => (libc::SOL_UDP, libc::UDP_GRO),
            Self::UdpSegment => (libc::SOL_UDP, libc::UDP_SEGMENT),
        }
    }
}

/// Defined in linux/icmp.h.
const ICMP_FILTER: c_int = 1;

/// Sets an option (setsockopt(2)).
pub(in crate::sys) fn set_socket_option(socket: BorrowedFd<'_>, option: SocketOption, value: c_int) -> io::Result<()> {
    let (level, name) = option.level_and_name();
    set_raw_option(socket, level, name, &value.to_ne_bytes())
}

/// Returns the value of an option (getsockopt(2)).
pub(in crate::sys) fn socket_option(socket: BorrowedFd<'_>, option: SocketOption) -> io::Result<c_int> {
    let (level, name) = option.level_and_name();
    let mut value = [0; size_of::<c_int>()];
    raw_option(socket, level, name, &mut value).map(|_length| c_int::from_ne_bytes(value))
}

/// The fill level of a socket's send buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::sys) struct SendBacklog {
    /// The number of bytes that the device has not freed yet, with the kernel's overhead.
    pub(in crate::sys) charged: usize,
    /// The number of bytes from which on the socket accepts no more.
    pub(in crate::sys) limit: usize,
}

/// Returns the fill level of a socket's send buffer: `SIOCOUTQ` and `SO_SNDBUF` in one call of getsockopt(2)
/// (`SO_MEMINFO`, Linux 4.12).
pub(in crate::sys) fn send_backlog(socket: BorrowedFd<'_>) -> io::Result<SendBacklog> {
    // Defined in linux/sock_diag.h.
    const SK_MEMINFO_SNDBUF: usize = 3;
    const SK_MEMINFO_WMEM_ALLOC: usize = 2;
    // linux/sock_diag.h has 9 numbers. A newer kernel may have more, and returns as many as fit.
    let mut value = [0; 9 * size_of::<u32>()];
    let length = raw_option(socket, libc::SOL_SOCKET, libc::SO_MEMINFO, &mut value)?;
    let numbers = value.get(..length).unwrap_or_default().as_chunks().0;
    let number = |index: usize| numbers.get(index).map(|bytes| u32::from_ne_bytes(*bytes) as usize);
    let (charged, limit) = (number(SK_MEMINFO_WMEM_ALLOC), number(SK_MEMINFO_SNDBUF));
    let (Some(charged), Some(limit)) = (charged, limit) else { return Err(io::ErrorKind::Unsupported.into()) };
    Ok(SendBacklog { charged, limit })
}

/// Sets any option with a value of any length (setsockopt(2)).
pub(in crate::sys) fn set_raw_option(
    socket: BorrowedFd<'_>,
    level: c_int,
    name: c_int,
    value: &[u8],
) -> io::Result<()> {
    let length = libc::socklen_t::try_from(value.len()).map_err(io::Error::other)?;
    // SAFETY: the kernel reads `length` bytes of `value`, which has as many and lives until the call returns.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value.as_ptr().cast(), length) };
    checked(result).map(|_zero| ())
}

/// Reads any option and returns the length of its value (getsockopt(2)).
pub(in crate::sys) fn raw_option(
    socket: BorrowedFd<'_>,
    level: c_int,
    name: c_int,
    value: &mut [u8],
) -> io::Result<usize> {
    let mut length = libc::socklen_t::try_from(value.len()).map_err(io::Error::other)?;
    let pointer = value.as_mut_ptr().cast();
    // SAFETY: the kernel writes at most `length` bytes to `value`, which has as many, and the length.
    let result = unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, pointer, &raw mut length) };
    checked(result).map(|_zero| length as usize)
}
