//! ICMPv6 echo (RFC 4443 section 4).

use core::net::{IpAddr, Ipv6Addr};
use core::sync::atomic::{AtomicU16, Ordering};
use core::time::Duration;
use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::UdpSocket;
use std::time::Instant;

const REQUEST: u8 = 128;
const REPLY: u8 = 129;

/// The interval at which a request is repeated. A link that was just set up may lose the first one.
const INTERVAL: Duration = Duration::from_millis(500);

/// Sends ICMPv6 echo requests until there is a reply, and returns its source, or `None` without one. A kernel answers a
/// request to an anycast address from another address.
///
/// # Errors
/// The kernel's error, for example for an unreachable address.
pub fn echo_v6(to: Ipv6Addr, patience: Duration) -> io::Result<Option<Ipv6Addr>> {
    static NEXT: AtomicU16 = AtomicU16::new(1);
    let [high, low] = NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    // The kernel fills in the checksum.
    let request = [REQUEST, 0, 0, 0, high, low, 0, 1, b'p', b'i', b'n', b'g'];
    // The type of the standard library, for its safe reads.
    let socket = UdpSocket::from(Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?);
    let start = Instant::now();
    let (mut buffer, mut next) = ([0; 1500], Duration::ZERO);
    while let Some(left) = patience.checked_sub(start.elapsed()).filter(|left| !left.is_zero()) {
        if start.elapsed() >= next {
            next += INTERVAL;
            socket.send_to(&request, (to, 0))?;
        }
        socket.set_read_timeout(Some(left.min(INTERVAL)))?;
        match socket.recv_from(&mut buffer) {
            Ok((length, from)) => {
                let is_answer = buffer[..length].first() == Some(&REPLY) && buffer[4..length.max(4)] == request[4..];
                if let (true, IpAddr::V6(from)) = (is_answer, from.ip()) {
                    return Ok(Some(from));
                }
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}
