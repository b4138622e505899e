//! The socket of a lane.

use core::net::SocketAddr;
use std::io;
use std::net::UdpSocket;
use std::os::fd::AsFd;

use super::super::bind::set_buffer;
use super::super::set_sending_options;
use crate::sys::kernel::{Calls, SystemCalls};
use crate::sys::syscall::{self, SocketOption};

/// Returns `true` if the next lane cannot be made either.
pub(super) fn is_final(error: &io::Error) -> bool {
    const FINAL: [libc::c_int; 5] =
        [libc::EAFNOSUPPORT, libc::EPERM, libc::EACCES, libc::EADDRINUSE, libc::ENOPROTOOPT];
    error.kind() == io::ErrorKind::Unsupported || error.raw_os_error().is_some_and(|errno| FINAL.contains(&errno))
}

/// Creates a socket on the address and port of another one. It receives nothing and sends with the same options.
pub(super) fn make_lane(shared: &UdpSocket, calls: &Calls) -> io::Result<UdpSocket> {
    let local = shared.local_addr()?;
    let was_shared = syscall::socket_option(shared.as_fd(), SocketOption::ReusePort)?;
    let (address, ipv6_only) = match local {
        SocketAddr::V4(local) => (SocketAddr::from((local.ip().to_ipv6_mapped(), local.port())), 0),
        SocketAddr::V6(_) => (local, syscall::socket_option(shared.as_fd(), SocketOption::Ipv6Only)?),
    };
    let lane = UdpSocket::from(calls.socket(address)?);
    syscall::set_socket_option(lane.as_fd(), SocketOption::Ipv6Only, ipv6_only)?;
    for option in COPIED {
        copy_option(*option, shared, &lane)?;
    }
    set_sending_options(&lane, address)?;
    // The kernel rounds it up to its minimum. Nothing arrives but copies of broadcasts, which nobody reads.
    syscall::set_socket_option(lane.as_fd(), SocketOption::ReceiveBuffer, 0)?;
    // The kernel returns twice the value that was set (SO_SNDBUF in socket(7)).
    let buffer = syscall::socket_option(shared.as_fd(), SocketOption::SendBuffer)? / 2;
    set_buffer(&lane, usize::try_from(buffer).ok(), SocketOption::SendBufferForce, SocketOption::SendBuffer)?;
    // A thread may be in another network namespace than the socket. The port is free there.
    if syscall::bind(lane.as_fd(), address).is_ok() {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let reuse = |socket: &UdpSocket, value| syscall::set_socket_option(socket.as_fd(), SocketOption::ReusePort, value);
    reuse(&lane, 1)?;
    reuse(shared, 1)?;
    let bound = syscall::bind(lane.as_fd(), address);
    reuse(shared, was_shared)?;
    reuse(&lane, 0)?;
    bound?;
    if was_shared != 0 && local.is_ipv6() {
        leave_group(&lane)?;
    }
    Ok(lane)
}

/// Takes a lane out of the group of queues that share its port. The kernel chooses from the group by a hash, and would
/// give the lane a share.
///
/// A new place in the table of sockets ends the membership (`udp_lib_rehash` in the kernel's net/ipv4/udp.c). The kernel
/// gives one when the interface of a socket is set, also to the same one (`sock_bindtoindex_locked` in net/core/sock.c,
/// Linux 5.1). It refuses that without `CAP_NET_RAW` if the socket is bound to an interface, as on a link-local address.
/// Then there are no lanes.
fn leave_group(lane: &UdpSocket) -> io::Result<()> {
    let interface = syscall::socket_option(lane.as_fd(), SocketOption::BoundInterface)?;
    syscall::set_socket_option(lane.as_fd(), SocketOption::BoundInterface, interface)
}

/// The options that select the route and the priority of packets. The creator of the socket may have set them.
pub(super) const COPIED: &[(libc::c_int, libc::c_int)] = &[
    (libc::SOL_SOCKET, libc::SO_BINDTODEVICE),
    (libc::SOL_SOCKET, libc::SO_MARK),
    (libc::SOL_SOCKET, libc::SO_MAX_PACING_RATE),
    (libc::IPPROTO_IP, libc::IP_FREEBIND),
    (libc::IPPROTO_IP, libc::IP_TOS),
    (libc::IPPROTO_IP, libc::IP_TRANSPARENT),
    (libc::IPPROTO_IP, libc::IP_TTL),
    (libc::IPPROTO_IP, libc::IP_UNICAST_IF),
    (libc::IPPROTO_IPV6, libc::IPV6_TCLASS),
    (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS),
    (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_IF),
    // After IP_TOS, which changes it.
    (libc::SOL_SOCKET, libc::SO_PRIORITY),
];

fn copy_option((level, name): (libc::c_int, libc::c_int), from: &UdpSocket, to: &UdpSocket) -> io::Result<()> {
    let (mut wanted, mut has) = ([0; 64], [0; 64]);
    // An option that the kernel or the socket lacks is not set.
    let Ok(length) = syscall::raw_option(from.as_fd(), level, name, &mut wanted) else { return Ok(()) };
    let wanted = wanted.get(..length).unwrap_or_default();
    let same =
        syscall::raw_option(to.as_fd(), level, name, &mut has).is_ok_and(|length| has.get(..length) == Some(wanted));
    // Some options need privileges to be set, even to the value that they have.
    if same { Ok(()) } else { syscall::set_raw_option(to.as_fd(), level, name, wanted) }
}
