//! The UDP socket on the underlay.

mod error;

use core::ffi::c_int;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::io;
use std::net::UdpSocket;
use std::os::fd::{AsFd, BorrowedFd};

pub use self::error::{BindError, RecvError, SendError, SendErrorKind};
use super::syscall::{self, SocketOption};
use crate::Transmit;

/// How many pending errors one [`UdpTransport::recv`] skips.
const SKIPPED_ERRORS: usize = 16;

/// How a socket is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UdpConfig {
    /// Bytes the kernel may hold for us that we have not received yet; its overhead of some hundred bytes per packet
    /// counts. `None`: the system's default.
    ///
    /// It is a wish: without `CAP_NET_ADMIN` the kernel grants no more than the sysctl `net.core.rmem_max`.
    pub receive_buffer: Option<usize>,
    /// Bytes the kernel may hold that we have sent and that are not on the wire yet; its overhead counts. `None`: the
    /// system's default. A wish too, with `net.core.wmem_max`.
    pub send_buffer: Option<usize>,
}

impl Default for UdpConfig {
    /// 4 MiB each: 1,500-byte packets at 10 Gbit/s for about 2 ms, which is what a busy scheduler may keep us waiting.
    fn default() -> Self {
        Self { receive_buffer: Some(4 << 20), send_buffer: Some(4 << 20) }
    }
}

/// A UDP socket that all packets to and from all peers pass through.
///
/// It never blocks; wait for its file descriptor ([`AsFd`]) to become ready. The outer packets carry DF and are never
/// fragmented by this host: one that does not fit is [`SendErrorKind::TooLong`].
#[derive(Debug)]
pub struct UdpTransport {
    socket: UdpSocket,
    local: SocketAddr,
}

impl UdpTransport {
    /// Makes a socket and binds it to an address of this host. With port 0 the kernel chooses one:
    /// [`UdpTransport::local_addr`].
    ///
    /// Bound to a wildcard address it receives on all, but the kernel chooses the source address, and peers may not
    /// know it. `[::]` takes IPv4 as well unless the sysctl `net.ipv6.bindv6only` is set.
    ///
    /// # Errors
    /// [`BindError`]; nothing is left open then.
    pub fn bind(address: SocketAddr, config: &UdpConfig) -> Result<Self, BindError> {
        let socket = UdpSocket::bind(address).map_err(|source| BindError::new(address, source))?;
        let prepare = || {
            set_buffer(&socket, config.receive_buffer, SocketOption::ReceiveBufferForce, SocketOption::ReceiveBuffer)?;
            set_buffer(&socket, config.send_buffer, SocketOption::SendBufferForce, SocketOption::SendBuffer)
        };
        prepare().map_err(|source| BindError::Other { address, source })?;
        Self::from_socket(socket).map_err(|source| BindError::Other { address, source })
    }

    /// Takes over a bound socket, as systemd or a privileged parent passes it on.
    ///
    /// It is made non-blocking, is told never to fragment (`IP_PMTUDISC_DO`), and no longer reports to the sender what
    /// became of earlier packets (`IP_RECVERR`): that would cost healthy peers packets while another one is dead. Its
    /// buffers stay as they are.
    ///
    /// # Errors
    /// Of the system call that failed. The socket is closed then.
    pub fn from_socket(socket: UdpSocket) -> io::Result<Self> {
        let local = socket.local_addr()?;
        socket.set_nonblocking(true)?;
        let set = |option, value| syscall::set_socket_option(socket.as_fd(), option, value);
        // An IPv6 socket sends IPv4 too, by the IPv4 options.
        set(SocketOption::Ipv4MtuDiscover, libc::IP_PMTUDISC_DO)?;
        set(SocketOption::Ipv4ReceiveErrors, 0)?;
        if local.is_ipv6() {
            set(SocketOption::Ipv6MtuDiscover, libc::IPV6_PMTUDISC_DO)?;
            set(SocketOption::Ipv6ReceiveErrors, 0)?;
        }
        Ok(Self { socket, local })
    }

    /// The address it is bound to, with the port that the kernel chose if 0 was asked for.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Sends every datagram of a transmit, in order.
    ///
    /// # Errors
    /// At the first datagram that was not sent. Go on with [`UdpTransport::send_from`].
    pub fn send(&self, transmit: &Transmit<'_>) -> Result<(), SendError> {
        self.send_from(transmit, 0)
    }

    /// Sends the datagrams of a transmit from the one numbered `first_segment` on, counted from 0. Sends nothing when
    /// there are not so many.
    ///
    /// After a [`SendError`] `e`: from `e.segment` on once the socket is writable again if its kind is
    /// [`SendErrorKind::WouldBlock`], else from `e.segment + 1` on, which gives that datagram up.
    ///
    /// # Errors
    /// At the first datagram that was not sent.
    pub fn send_from(&self, transmit: &Transmit<'_>, first_segment: usize) -> Result<(), SendError> {
        for (segment, payload) in transmit.segments().enumerate().skip(first_segment) {
            attempt(|| self.socket.send_to(payload, transmit.destination))
                .map_err(|kind| SendError { segment, kind })?;
        }
        Ok(())
    }

    /// Receives the next datagram into the begin of `buffer`, which 65,535 bytes of are always enough.
    ///
    /// # Errors
    /// [`RecvError::WouldBlock`] when there is none. [`RecvError::is_fatal`] ends it. What became of an earlier packet
    /// of ours (refused, unreachable) is no error here.
    pub fn recv(&self, buffer: &mut [u8]) -> Result<RecvMeta, RecvError> {
        let room = buffer.len();
        let (len, from) = skip_pending(|| syscall::receive_from(self.socket.as_fd(), buffer))?;
        if len > room {
            return Err(RecvError::Truncated { len, have: room });
        }
        Ok(RecvMeta { from: unmapped(from), len, stride: len })
    }

    /// The largest outer packet, in bytes and with all its headers, that the path to `destination` is known to carry.
    ///
    /// It is the kernel's knowledge: the MTU of the interface at first, and less once a router reported less. It comes
    /// from a socket made for the question, bound to the same address (`IP_MTU` in ip(7), `IPV6_MTU` in ipv6(7)), so
    /// this is nothing to ask per packet.
    ///
    /// # Errors
    /// Of the system call that failed: ENETUNREACH without a route, EMFILE without a free file descriptor.
    pub fn path_mtu(&self, destination: SocketAddr) -> io::Result<u32> {
        let (any, option): (IpAddr, _) = match destination {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED.into(), SocketOption::Ipv4Mtu),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED.into(), SocketOption::Ipv6Mtu),
        };
        let mut source = self.local;
        source.set_port(0);
        if source.is_ipv4() != destination.is_ipv4() {
            source.set_ip(any);
        }
        let probe = UdpSocket::bind(source)?;
        probe.connect(destination)?;
        let mtu = syscall::socket_option(probe.as_fd(), option)?;
        u32::try_from(mtu).map_err(io::Error::other)
    }
}

impl AsFd for UdpTransport {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// What was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecvMeta {
    /// The sender. An IPv4 sender is an IPv4 address on an IPv6 socket too.
    pub from: SocketAddr,
    /// Bytes received.
    pub len: usize,
    /// Bytes in every datagram but the last, which may be shorter; equal to `len` for a single datagram, also an empty
    /// one.
    pub stride: usize,
}

/// Sends one datagram. What looks like the answer to an earlier one may be just that, so it is tried once more at once:
/// the kernel reports such an error a single time, to whoever sends next.
fn attempt(mut call: impl FnMut() -> io::Result<usize>) -> Result<(), SendErrorKind> {
    let mut first = true;
    loop {
        match call() {
            Ok(_all) => return Ok(()),
            Err(error) => match error.raw_os_error().unwrap_or(libc::EIO) {
                libc::EINTR => {}
                errno if first && tells_of_an_earlier_packet(errno) => first = false,
                errno => return Err(SendErrorKind::from_errno(errno)),
            },
        }
    }
}

/// Receives one datagram, past errors that tell what became of packets sent earlier.
fn skip_pending<T>(mut call: impl FnMut() -> io::Result<T>) -> Result<T, RecvError> {
    let mut skipped = 0;
    loop {
        match call() {
            Ok(received) => return Ok(received),
            Err(error) => match error.raw_os_error().unwrap_or(libc::EIO) {
                libc::EINTR => {}
                // EMSGSIZE: a router cannot carry a packet sent earlier.
                errno if errno == libc::EMSGSIZE || tells_of_an_earlier_packet(errno) => {
                    // Not `WouldBlock`: there may be datagrams behind them.
                    if skipped == SKIPPED_ERRORS {
                        return Err(RecvError::Other(errno));
                    }
                    skipped += 1;
                }
                errno => return Err(RecvError::from_errno(errno)),
            },
        }
    }
}

/// Whether an ICMP error may be behind it (`icmp_err_convert` in the kernel's net/ipv4/icmp.c, `icmpv6_err_convert` in
/// net/ipv6/icmp.c), in contrast to EMSGSIZE, which on sending concerns the packet at hand.
fn tells_of_an_earlier_packet(errno: c_int) -> bool {
    matches!(
        errno,
        libc::ECONNREFUSED
            | libc::EHOSTDOWN
            | libc::EHOSTUNREACH
            | libc::ENETDOWN
            | libc::ENETUNREACH
            | libc::ENONET
            | libc::ENOPROTOOPT
            | libc::EOPNOTSUPP
            | libc::EPROTO
    )
}

fn set_buffer(socket: &UdpSocket, wish: Option<usize>, force: SocketOption, plain: SocketOption) -> io::Result<()> {
    let Some(wish) = wish else { return Ok(()) };
    // The kernel doubles it (SO_RCVBUF in socket(7)), and half of the largest int is its limit.
    let size = c_int::try_from(wish).unwrap_or(c_int::MAX).min(c_int::MAX / 2);
    syscall::set_socket_option(socket.as_fd(), force, size)
        .or_else(|_not_permitted| syscall::set_socket_option(socket.as_fd(), plain, size))
}

/// The sender as it is known to the routes, whichever family the socket has.
fn unmapped(from: SocketAddr) -> SocketAddr {
    match from {
        SocketAddr::V6(address) => match address.ip().to_ipv4_mapped() {
            Some(ip) => SocketAddr::new(ip.into(), address.port()),
            None => from,
        },
        SocketAddr::V4(_) => from,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use alloc::vec::Vec;

    fn scripted<T>(script: Vec<Result<T, i32>>) -> impl FnMut() -> io::Result<T> {
        let mut script = script.into_iter();
        move || script.next().unwrap_or(Err(libc::EBADF)).map_err(io::Error::from_raw_os_error)
    }

    #[test]
    fn every_errno_of_a_send_has_its_meaning() {
        use SendErrorKind as Kind;
        for (errno, kind) in [
            (libc::EACCES, Kind::Forbidden),
            (libc::EAGAIN, Kind::WouldBlock),
            (libc::ECONNREFUSED, Kind::Refused),
            (libc::EHOSTDOWN, Kind::Unreachable),
            (libc::EHOSTUNREACH, Kind::Unreachable),
            (libc::EINVAL, Kind::Other(libc::EINVAL)),
            (libc::EMSGSIZE, Kind::TooLong),
            (libc::ENETDOWN, Kind::Unreachable),
            (libc::ENETUNREACH, Kind::Unreachable),
            (libc::ENOBUFS, Kind::NoBuffers),
            (libc::ENOMEM, Kind::NoBuffers),
            (libc::EPERM, Kind::Forbidden),
        ] {
            assert_eq!(attempt(scripted(vec![Err(errno); 2])), Err(kind));
            assert!(!kind.is_fatal());
        }
        assert_eq!(attempt(scripted(vec![Err(libc::EBADF), Ok(0)])), Err(Kind::Closed));
        assert!(Kind::Closed.is_fatal());
    }

    #[test]
    fn a_send_is_tried_twice_only_where_an_earlier_one_may_be_to_blame() {
        let outcome =
            |errnos: &[i32]| attempt(scripted(errnos.iter().map(|errno| Err(*errno)).chain([Ok(0)]).collect()));
        for errno in [libc::ECONNREFUSED, libc::EHOSTUNREACH, libc::ENETUNREACH, libc::EPROTO] {
            assert_eq!(outcome(&[errno]), Ok(()));
            assert_eq!(outcome(&[libc::EINTR, errno, libc::EINTR]), Ok(()));
            assert_eq!(outcome(&[errno, libc::EAGAIN]), Err(SendErrorKind::WouldBlock));
            assert_eq!(outcome(&[libc::ECONNREFUSED, errno]), Err(SendErrorKind::from_errno(errno)));
        }
        for errno in [libc::EAGAIN, libc::EMSGSIZE, libc::ENOBUFS, libc::EPERM, libc::EBADF, libc::EINVAL] {
            assert_eq!(outcome(&[errno]), Err(SendErrorKind::from_errno(errno)));
        }
        assert_eq!(outcome(&[libc::EINTR; 100]), Ok(()));
    }

    #[test]
    fn pending_errors_are_skipped_but_not_for_ever() {
        let outcome =
            |errors: &[i32]| skip_pending(scripted(errors.iter().map(|errno| Err(*errno)).chain([Ok(7)]).collect()));
        assert_eq!(outcome(&[libc::EINTR; 100]), Ok(7));
        assert_eq!(outcome(&[libc::ECONNREFUSED; SKIPPED_ERRORS]), Ok(7));
        assert_eq!(outcome(&[libc::EMSGSIZE, libc::EHOSTUNREACH, libc::EINTR, libc::ENETUNREACH]), Ok(7));
        assert_eq!(outcome(&[libc::ECONNREFUSED; SKIPPED_ERRORS + 1]), Err(RecvError::Other(libc::ECONNREFUSED)));
        assert_eq!(outcome(&[libc::ECONNREFUSED, libc::EAGAIN]), Err(RecvError::WouldBlock));
        assert_eq!(outcome(&[libc::ENOMEM]), Err(RecvError::Other(libc::ENOMEM)));
        assert_eq!(outcome(&[libc::EBADF]), Err(RecvError::Closed));
    }

    #[test]
    fn every_errno_of_a_bind_has_its_meaning() {
        let address = SocketAddr::from(([10, 168, 0, 3], 8285));
        let error = |errno| BindError::new(address, io::Error::from_raw_os_error(errno));
        assert!(matches!(error(libc::EADDRINUSE), BindError::AddressInUse { .. }));
        assert!(matches!(error(libc::EADDRNOTAVAIL), BindError::NotLocal { .. }));
        assert!(matches!(error(libc::EACCES), BindError::NoPermission { .. }));
        assert!(matches!(error(libc::EMFILE), BindError::Other { .. }));
    }

    /// Fault 33, with the option that a socket of ours never has.
    #[test]
    fn a_dead_peer_costs_a_healthy_one_no_packet() {
        let transport = UdpTransport::bind((Ipv4Addr::LOCALHOST, 0).into(), &UdpConfig::default()).unwrap();
        syscall::set_socket_option(transport.as_fd(), SocketOption::Ipv4ReceiveErrors, 1).unwrap();
        let healthy = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        healthy.set_nonblocking(true).unwrap();
        let dead = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
        for round in 0..100_u8 {
            transport.send(&Transmit::datagram(dead, b"anyone?")).unwrap();
            transport.send(&Transmit::datagram(healthy.local_addr().unwrap(), &[round])).unwrap();
            let mut buffer = [0; 2];
            assert_eq!(healthy.recv(&mut buffer).unwrap(), 1);
            assert_eq!(buffer[0], round);
            assert_eq!(transport.recv(&mut buffer), Err(RecvError::WouldBlock));
        }
    }

    #[test]
    fn a_socket_that_is_taken_over_forgets_its_options() {
        let socket = UdpSocket::bind("[::1]:0").unwrap();
        let set = |option| syscall::set_socket_option(socket.as_fd(), option, 1).unwrap();
        set(SocketOption::Ipv4ReceiveErrors);
        set(SocketOption::Ipv6ReceiveErrors);
        let transport = UdpTransport::from_socket(socket).unwrap();
        let value = |option| syscall::socket_option(transport.as_fd(), option).unwrap();
        assert_eq!((value(SocketOption::Ipv4ReceiveErrors), value(SocketOption::Ipv6ReceiveErrors)), (0, 0));
        assert_eq!(value(SocketOption::Ipv4MtuDiscover), libc::IP_PMTUDISC_DO);
        assert_eq!(value(SocketOption::Ipv6MtuDiscover), libc::IPV6_PMTUDISC_DO);
        assert_eq!(transport.recv(&mut [0; 8]), Err(RecvError::WouldBlock), "was blocking before");
    }

    #[test]
    fn buffers_are_as_large_as_permitted() {
        let granted = |config: &UdpConfig| {
            let transport = UdpTransport::bind((Ipv4Addr::LOCALHOST, 0).into(), config).unwrap();
            let value = |option| syscall::socket_option(transport.as_fd(), option).unwrap();
            (value(SocketOption::ReceiveBuffer), value(SocketOption::SendBuffer))
        };
        let config = |bytes| UdpConfig { receive_buffer: bytes, send_buffer: bytes };
        // The kernel doubles what was asked for. Root is limited by nothing, others by a sysctl.
        let limit = |name: &str| -> Option<usize> {
            std::fs::read_to_string(std::format!("/proc/sys/net/core/{name}")).ok()?.trim().parse().ok()
        };
        let probe = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let forced = syscall::set_socket_option(probe.as_fd(), SocketOption::ReceiveBufferForce, 1 << 20).is_ok();
        let wish = UdpConfig::default().receive_buffer.unwrap();
        let expected = |name| 2 * if forced { wish } else { limit(name).map_or(wish, |limit| wish.min(limit)) };
        let (receive, send) = granted(&UdpConfig::default());
        assert_eq!((receive as usize, send as usize), (expected("rmem_max"), expected("wmem_max")));
        assert!(granted(&config(Some(usize::MAX))).0 >= receive);
        assert!(granted(&config(Some(0))).0 > 0);
        assert!(granted(&config(None)).0 < receive);
    }
}
