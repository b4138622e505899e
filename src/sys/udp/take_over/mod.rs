//! Sockets that other programs created: the checks, and the options that are reset.

use core::ffi::c_int;
use core::net::SocketAddr;
use std::io;
use std::net::UdpSocket;
use std::os::fd::AsFd;

use crate::sys::syscall;

/// The reason why a socket is not taken over.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TakeOverError {
    /// The socket is connected, and so receives from one address alone.
    #[error(
        "the socket is connected to {peer}, and so receives from no other peer; pass one that is bound and not connected"
    )]
    Connected {
        /// The address.
        peer: SocketAddr,
    },
    /// The socket has no port.
    #[error("the socket is not bound to a port; bind it before it is passed on")]
    NotBound,
    /// The socket is one of TCP, UDP-Lite or another protocol.
    #[error("the socket is not one of UDP (type {kind}, protocol {protocol}); pass one of SOCK_DGRAM and IPPROTO_UDP")]
    NotUdp {
        /// `SO_TYPE`.
        kind: i32,
        /// `SO_PROTOCOL`.
        protocol: i32,
    },
    /// An option that the transport relies on cannot be reset.
    #[error("the socket's option {name} cannot be reset: {source}; pass a socket without it")]
    Option {
        /// The option.
        name: &'static str,
        /// The error number.
        source: io::Error,
    },
    /// Another system call failed.
    #[error("the socket cannot be taken over: {source}")]
    Other {
        /// The error number.
        #[from]
        source: io::Error,
    },
}

/// An option, and the value it has on a new socket.
#[derive(Debug)]
pub(super) struct Reset {
    pub(super) level: c_int,
    pub(super) number: c_int,
    pub(super) name: &'static str,
    pub(super) value: &'static [u8],
}

const OFF: &[u8] = &0_i32.to_ne_bytes();
const ONE: &[u8] = &1_i32.to_ne_bytes();
/// The default of the system.
const DEFAULT: &[u8] = &(-1_i32).to_ne_bytes();
/// No options of the IP header.
const EMPTY: &[u8] = &[];
/// struct `in6_pktinfo` of linux/ipv6.h.
const NO_PACKET_INFO: &[u8] = &[0; 20];

/// Numbers that the libc crate does not have for every platform: asm-generic/socket.h, linux/in.h, linux/in6.h,
/// linux/udp.h.
mod number {
    use core::ffi::c_int;

    // With times of 64 bits. The kernel does not show them under the numbers of those with 32 bits.
    pub(super) const SO_TIMESTAMP_NEW: c_int = 63;
    pub(super) const SO_TIMESTAMPNS_NEW: c_int = 64;
    pub(super) const SO_RCVMARK: c_int = 75;
    pub(super) const SO_RCVPRIORITY: c_int = 82;
    pub(super) const IP_PASSSEC: c_int = 18;
    pub(super) const IP_CHECKSUM: c_int = 23;
    pub(super) const IP_RECVFRAGSIZE: c_int = 25;
    pub(super) const IPV6_2292PKTINFO: c_int = 2;
    pub(super) const IPV6_2292HOPOPTS: c_int = 3;
    pub(super) const IPV6_2292DSTOPTS: c_int = 4;
    pub(super) const IPV6_2292RTHDR: c_int = 5;
    pub(super) const IPV6_2292HOPLIMIT: c_int = 8;
    pub(super) const IPV6_FLOWINFO: c_int = 11;
    pub(super) const IPV6_RECVPATHMTU: c_int = 60;
    pub(super) const IPV6_DONTFRAG: c_int = 62;
    pub(super) const IPV6_RECVORIGDSTADDR: c_int = 74;
    pub(super) const IPV6_RECVFRAGSIZE: c_int = 77;
    pub(super) const UDP_CORK: c_int = 1;
    pub(super) const UDP_ENCAP: c_int = 100;
    pub(super) const UDP_NO_CHECK6_TX: c_int = 101;
    pub(super) const UDP_NO_CHECK6_RX: c_int = 102;
}

macro_rules! resets {
    ($level:path: $($module:ident::$name:ident = $value:ident,)+) => {
        [$(Reset { level: $level, number: $module::$name, name: stringify!($name), value: $value },)+]
    };
}

/// Options of any socket. The second group of each list makes the kernel add control messages for which there is no
/// room.
const SOCKET: [Reset; 14] = resets![
    libc::SOL_SOCKET:
    libc::SO_BROADCAST = OFF,
    libc::SO_DONTROUTE = OFF,
    libc::SO_PEEK_OFF = DEFAULT,
    libc::SO_RCVLOWAT = ONE,
    libc::SO_SELECT_ERR_QUEUE = OFF,

    libc::SO_RXQ_OVFL = OFF,
    libc::SO_TIMESTAMP = OFF,
    libc::SO_TIMESTAMPING = OFF,
    libc::SO_TIMESTAMPNS = OFF,
    libc::SO_WIFI_STATUS = OFF,
    number::SO_RCVMARK = OFF,
    number::SO_RCVPRIORITY = OFF,
    number::SO_TIMESTAMPNS_NEW = OFF,
    number::SO_TIMESTAMP_NEW = OFF,
];

const UDP: [Reset; 5] = resets![
    libc::SOL_UDP:
    number::UDP_CORK = OFF,
    number::UDP_ENCAP = OFF,
    number::UDP_NO_CHECK6_RX = OFF,
    number::UDP_NO_CHECK6_TX = OFF,
    libc::UDP_SEGMENT = OFF,
];

/// Options of an IPv6 socket too, which sends and receives IPv4 by these.
const IPV4: [Reset; 11] = resets![
    libc::IPPROTO_IP:
    libc::IP_OPTIONS = EMPTY,
    libc::IP_TOS = OFF,
    libc::IP_TTL = DEFAULT,

    number::IP_CHECKSUM = OFF,
    number::IP_PASSSEC = OFF,
    libc::IP_PKTINFO = OFF,
    number::IP_RECVFRAGSIZE = OFF,
    libc::IP_RECVOPTS = OFF,
    libc::IP_RECVORIGDSTADDR = OFF,
    libc::IP_RECVTTL = OFF,
    libc::IP_RETOPTS = OFF,
];

const IPV6: [Reset; 23] = resets![
    libc::IPPROTO_IPV6:
    number::IPV6_DONTFRAG = OFF,
    libc::IPV6_DSTOPTS = EMPTY,
    libc::IPV6_HOPOPTS = EMPTY,
    libc::IPV6_MTU = OFF,
    libc::IPV6_PKTINFO = NO_PACKET_INFO,
    libc::IPV6_RTHDR = EMPTY,
    libc::IPV6_RTHDRDSTOPTS = EMPTY,
    libc::IPV6_TCLASS = OFF,
    libc::IPV6_UNICAST_HOPS = DEFAULT,

    number::IPV6_2292DSTOPTS = OFF,
    number::IPV6_2292HOPLIMIT = OFF,
    number::IPV6_2292HOPOPTS = OFF,
    number::IPV6_2292PKTINFO = OFF,
    number::IPV6_2292RTHDR = OFF,
    number::IPV6_FLOWINFO = OFF,
    libc::IPV6_RECVDSTOPTS = OFF,
    number::IPV6_RECVFRAGSIZE = OFF,
    libc::IPV6_RECVHOPLIMIT = OFF,
    libc::IPV6_RECVHOPOPTS = OFF,
    number::IPV6_RECVORIGDSTADDR = OFF,
    number::IPV6_RECVPATHMTU = OFF,
    libc::IPV6_RECVPKTINFO = OFF,
    libc::IPV6_RECVRTHDR = OFF,
];

/// Returns the options that are reset on a socket with this address.
pub(super) fn resets(local: SocketAddr) -> impl Iterator<Item = &'static Reset> {
    let ipv6: &[Reset] = if local.is_ipv6() { &IPV6 } else { &[] };
    SOCKET.iter().chain(&UDP).chain(&IPV4).chain(ipv6)
}

/// Checks a socket, and resets its options.
pub(super) fn take_over(socket: &UdpSocket) -> Result<(), TakeOverError> {
    let [kind, protocol] = [libc::SO_TYPE, libc::SO_PROTOCOL].map(|number| int(socket, libc::SOL_SOCKET, number));
    let (kind, protocol) = (kind?, protocol?);
    if (kind, protocol) != (libc::SOCK_DGRAM, libc::IPPROTO_UDP) {
        return Err(TakeOverError::NotUdp { kind, protocol });
    }
    let local = socket.local_addr()?;
    if local.port() == 0 {
        return Err(TakeOverError::NotBound);
    }
    if let Ok(peer) = socket.peer_addr() {
        return Err(TakeOverError::Connected { peer });
    }
    // A filter may cut datagrams.
    match syscall::set_raw_option(socket.as_fd(), libc::SOL_SOCKET, libc::SO_DETACH_FILTER, OFF) {
        Err(source) if source.raw_os_error() != Some(libc::ENOENT) && !is_unknown(&source) => {
            return Err(TakeOverError::Option { name: "SO_ATTACH_FILTER", source });
        }
        Ok(()) | Err(_) => {}
    }
    resets(local).try_for_each(|option| option.apply(socket))
}

impl Reset {
    fn apply(&self, socket: &UdpSocket) -> Result<(), TakeOverError> {
        // Some options need privileges or cost something, even if they have that value: `UDP_ENCAP` makes the kernel
        // look for tunnels in every datagram of the host.
        let is_set_so = self.value(socket).is_ok_and(|value| value == self.value || is_zero(&value, self.value));
        if is_set_so {
            return Ok(());
        }
        match syscall::set_raw_option(socket.as_fd(), self.level, self.number, self.value) {
            Err(source) if !is_unknown(&source) => Err(TakeOverError::Option { name: self.name, source }),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    pub(super) fn value(&self, socket: &impl AsFd) -> io::Result<alloc::vec::Vec<u8>> {
        let mut value = [0; 64];
        let length = syscall::raw_option(socket.as_fd(), self.level, self.number, &mut value)?;
        Ok(value.get(..length).unwrap_or(&value).to_vec())
    }
}

/// Returns `true` if both are zero and not empty. Some options are longer on newer kernels.
fn is_zero(value: &[u8], wanted: &[u8]) -> bool {
    let zero = |bytes: &[u8]| !bytes.is_empty() && bytes.iter().all(|byte| *byte == 0);
    zero(value) && zero(wanted)
}

/// Returns `true` if the kernel does not know the option, so that it is not set.
fn is_unknown(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOPROTOOPT | libc::EOPNOTSUPP | libc::ENOSYS))
}

fn int(socket: &UdpSocket, level: c_int, number: c_int) -> io::Result<c_int> {
    let mut value = [0; size_of::<c_int>()];
    syscall::raw_option(socket.as_fd(), level, number, &mut value).map(|_length| c_int::from_ne_bytes(value))
}

#[cfg(all(test, feature = "link"))]
mod tests;
