//! ICMPv6 echo, one request at a time, and the errors about it (RFC 4443).

use core::net::{IpAddr, Ipv6Addr};
use core::sync::atomic::{AtomicU16, Ordering};
use core::time::Duration;
use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::UdpSocket;
use std::time::Instant;

const REQUEST: u8 = 128;
const REPLY: u8 = 129;
/// Bytes of the header of an ICMPv6 echo or error.
const HEADER: usize = 8;
/// Bytes of an IPv6 header.
const IP_HEADER: usize = 40;

/// The outcome of one request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum EchoV6 {
    /// The payload was returned unchanged. A kernel answers a request to an anycast address from another address.
    Reply {
        /// The sender of the reply.
        from: Ipv6Addr,
    },
    /// An ICMPv6 error that quotes the request.
    Error {
        /// The sender of the error.
        from: Ipv6Addr,
        /// Its type: 1 unreachable, 2 packet too big, 3 time exceeded, 4 parameter problem.
        kind: u8,
        /// Its code.
        code: u8,
        /// The MTU of a packet-too-big error, else 0.
        mtu: u32,
    },
    /// Nothing arrived in time.
    Silence,
    /// The own kernel refuses a request that is longer than the path it knows.
    TooLong,
}

/// The settings of a request.
#[derive(Clone, Copy, Debug)]
pub struct PingV6 {
    /// Bytes after the ICMPv6 header. The IPv6 packet is 48 bytes longer.
    pub payload_len: usize,
    /// The hop limit of the request.
    pub hop_limit: u8,
    /// The timeout of the answer.
    pub timeout: Duration,
}

impl Default for PingV6 {
    /// Returns 56 bytes, a hop limit of 64 and one second.
    fn default() -> Self {
        Self { payload_len: 56, hop_limit: 64, timeout: Duration::from_secs(1) }
    }
}

/// Sends one ICMPv6 echo request in one piece and waits for the reply or an error.
///
/// # Errors
/// The kernel's error, for example without a route.
pub fn ping_v6(to: Ipv6Addr, settings: PingV6) -> io::Result<EchoV6> {
    static NEXT: AtomicU16 = AtomicU16::new(0x4000);
    let [high, low] = NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    // The kernel fills in the checksum.
    let mut request = vec![REQUEST, 0, 0, 0, high, low, 0, 1];
    request.extend((0..settings.payload_len).map(|at| at as u8));
    let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?;
    socket.set_unicast_hops_v6(settings.hop_limit.into())?;
    nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::Ipv6DontFrag, &true)?;
    // The type of the standard library, for its safe reads.
    let socket = UdpSocket::from(socket);
    if let Err(error) = socket.send_to(&request, (to, 0)) {
        return if error.raw_os_error() == Some(nix::libc::EMSGSIZE) { Ok(EchoV6::TooLong) } else { Err(error) };
    }
    let start = Instant::now();
    let mut buffer = vec![0; 65_536];
    while let Some(left) = settings.timeout.checked_sub(start.elapsed()).filter(|left| !left.is_zero()) {
        socket.set_read_timeout(Some(left))?;
        match socket.recv_from(&mut buffer) {
            Ok((length, from)) => {
                let IpAddr::V6(from) = from.ip() else { continue };
                if let Some(outcome) = outcome(&buffer[..length], from, &request) {
                    return Ok(outcome);
                }
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(EchoV6::Silence)
}

fn outcome(message: &[u8], from: Ipv6Addr, request: &[u8]) -> Option<EchoV6> {
    let (&[kind, code, _, _, m0, m1, m2, m3], rest) = message.split_first_chunk::<HEADER>()?;
    if kind == REPLY {
        return (message[4..] == request[4..]).then_some(EchoV6::Reply { from });
    }
    // The quoted checksum is the kernel's.
    let quoted = rest.get(IP_HEADER..)?.first_chunk::<HEADER>()?;
    let is_about_it = kind < REQUEST && quoted[0] == REQUEST && quoted[4..] == request[4..HEADER];
    let mtu = if kind == 2 { u32::from_be_bytes([m0, m1, m2, m3]) } else { 0 };
    is_about_it.then_some(EchoV6::Error { from, kind, code, mtu })
}
