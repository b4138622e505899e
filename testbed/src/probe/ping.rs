//! ICMP echo, one request at a time.

use super::icmp::{self, Answer, Request};
use super::pattern::Pattern;
use crate::error::Context;
use core::net::{Ipv4Addr, SocketAddr};
use core::sync::atomic::{AtomicU16, Ordering};
use core::time::Duration;
use nix::errno::Errno;
use nix::sys::socket::{getsockopt, sockopt};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::io::{self, Read};
use std::net::UdpSocket;
use std::time::Instant;

const DEFAULT_TTL: u8 = 64;
const LARGEST_PACKET: usize = 65_535;

/// The settings of a ping. The default is one request of 56 bytes, a timeout of one second, and an identifier that no
/// other default of this process has.
#[derive(Clone, Debug)]
pub struct Ping {
    /// The number of requests. Each is sent when the outcome of the previous one is known.
    pub count: u16,
    /// The bytes after the ICMP header, 0..=65507. The IP packet is 28 bytes longer.
    pub payload_len: usize,
    /// The TTL of the requests; 64 if `None`.
    pub ttl: Option<u8>,
    /// The timeout of each answer.
    pub timeout: Duration,
    /// The identifier of the requests. Two simultaneous pings in one namespace need different identifiers.
    pub identifier: u16,
    /// The treatment of requests that are too long for a link.
    pub fragmentation: Fragmentation,
}

impl Default for Ping {
    fn default() -> Self {
        static NEXT: AtomicU16 = AtomicU16::new(1);
        Self {
            count: 1,
            payload_len: 56,
            ttl: None,
            timeout: Duration::from_secs(1),
            identifier: NEXT.fetch_add(1, Ordering::Relaxed),
            fragmentation: Fragmentation::default(),
        }
    }
}

/// The treatment of requests that are too long for a link.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Fragmentation {
    /// As any Linux program: DF is set up to the path MTU that the kernel knows. The kernel fragments longer requests.
    #[default]
    Kernel,
    /// DF is clear, and routers may fragment. A request longer than the MTU of the sender's own link is
    /// [`PingOutcome::TooLong`].
    Allowed,
    /// DF is set. The first request that is too long for the path gets the router's [`PingOutcome::Error`]. The next
    /// one is [`PingOutcome::TooLong`], because the kernel has learned the path MTU
    /// ([`Namespace::forget_path_mtus`](crate::Namespace::forget_path_mtus)).
    Forbidden,
}

/// The outcome of one request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PingOutcome {
    /// The payload was returned unchanged.
    Reply {
        /// The sender of the reply.
        from: Ipv4Addr,
        /// The remaining TTL of the reply.
        ttl: u8,
        /// The time from before the request was sent to after the reply was read.
        rtt: Duration,
    },
    /// An ICMP error that quotes the request.
    Error {
        /// The sender of the error.
        from: Ipv4Addr,
        /// The ICMP type: 3 unreachable, 11 time exceeded, 12 parameter problem.
        kind: u8,
        /// The ICMP code.
        code: u8,
        /// The next hop's MTU in bytes for "fragmentation needed" (3/4), otherwise 0.
        mtu: u16,
        /// The time from before the request was sent to after the error was read.
        rtt: Duration,
    },
    /// The sender's kernel refused the request (`EMSGSIZE`). It is longer than the MTU of its link, or it may not be
    /// fragmented and is longer than the path MTU.
    TooLong,
    /// No answer arrived in time.
    Timeout,
}

/// Sends echo requests and returns their outcomes in order.
///
/// # Errors
/// `InvalidData` if a payload was returned changed, `NetworkUnreachable` without a route, `PermissionDenied` without
/// `CAP_NET_RAW`; otherwise the kernel's error.
pub fn ping(destination: Ipv4Addr, ping: Ping) -> io::Result<Vec<PingOutcome>> {
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4))
        .context(|| "cannot open a raw ICMP socket".into())?;
    match ping.fragmentation {
        Fragmentation::Kernel => socket.set_ttl_v4(u32::from(ping.ttl.unwrap_or(DEFAULT_TTL)))?,
        Fragmentation::Allowed | Fragmentation::Forbidden => socket.set_header_included_v4(true)?,
    }
    let mut buffer = vec![0; LARGEST_PACKET];
    let target = SockAddr::from(SocketAddr::from((destination, 0)));
    let payload = Pattern::new(u64::from(ping.identifier), ping.payload_len);
    let mut outcomes = Vec::with_capacity(usize::from(ping.count));
    for sequence in 1..=ping.count {
        let request = Request { identifier: ping.identifier, sequence };
        let packet = packet(&ping, destination, icmp::echo_request(request, payload.at(0)));
        let sent = Instant::now();
        let outcome = match socket.send_to(&packet, &target) {
            Ok(_) => await_answer(&socket, &mut buffer, destination, request, payload.at(0), sent, ping.timeout)?,
            Err(error) if error.raw_os_error() == Some(Errno::EMSGSIZE as i32) => PingOutcome::TooLong,
            Err(error) => return Err(error).context(|| format!("cannot ping {destination}")),
        };
        outcomes.push(outcome);
    }
    Ok(outcomes)
}

/// Returns the kernel's current path MTU to a destination, in bytes. It sends nothing.
///
/// # Errors
/// `NetworkUnreachable` without a route; otherwise the kernel's error.
pub fn path_mtu(destination: Ipv4Addr) -> io::Result<u32> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    // The discard port of RFC 863. A connected UDP socket has a route, which is all this needs.
    socket.connect((destination, 9)).context(|| format!("no path to {destination}"))?;
    u32::try_from(getsockopt(&socket, sockopt::IpMtu)?).map_err(io::Error::other)
}

/// Returns the message, with an IP header where the kernel's header is unsuitable.
///
/// raw(7): the kernel fills in the total length and the checksum, and a source address and identification of zero.
fn packet(ping: &Ping, destination: Ipv4Addr, message: Vec<u8>) -> Vec<u8> {
    let dont_fragment = match ping.fragmentation {
        Fragmentation::Kernel => return message,
        Fragmentation::Allowed => 0,
        Fragmentation::Forbidden => 0x40,
    };
    let ttl = ping.ttl.unwrap_or(DEFAULT_TTL);
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, dont_fragment, 0, ttl, icmp::PROTOCOL, 0, 0, 0, 0, 0, 0];
    packet.extend(destination.octets());
    packet.extend(message);
    packet
}

/// Reads until the request is answered. A raw socket receives the ICMP messages of the whole namespace.
fn await_answer(
    mut socket: &Socket,
    buffer: &mut [u8],
    destination: Ipv4Addr,
    wanted: Request,
    sent_payload: &[u8],
    sent: Instant,
    timeout: Duration,
) -> io::Result<PingOutcome> {
    loop {
        let left = timeout.saturating_sub(sent.elapsed());
        if left < Duration::from_micros(1) {
            return Ok(PingOutcome::Timeout);
        }
        socket.set_read_timeout(Some(left))?;
        let length = match socket.read(buffer) {
            Ok(length) => length,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => continue,
            Err(error) => return Err(error).context(|| "cannot read from a raw ICMP socket".into()),
        };
        let rtt = sent.elapsed();
        match icmp::parse(buffer.get(..length).unwrap_or_default()) {
            Some(Answer::Reply { from, ttl, request, payload }) if request == wanted => {
                if payload != sent_payload {
                    let what = format!("{from} returned another payload than was sent to it");
                    return Err(io::Error::new(io::ErrorKind::InvalidData, what));
                }
                return Ok(PingOutcome::Reply { from, ttl, rtt });
            }
            Some(Answer::Error { from, kind, code, mtu, destination: quoted, request })
                if request == wanted && quoted == destination =>
            {
                return Ok(PingOutcome::Error { from, kind, code, mtu, rtt });
            }
            Some(Answer::Reply { .. } | Answer::Error { .. }) | None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Namespace;
    use ipnet::Ipv4Net;

    const HERE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
    const THERE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);

    fn pair() -> (Namespace, Namespace) {
        let (here, there) = (Namespace::new().expect("namespace"), Namespace::new().expect("namespace"));
        here.connect("eth0", &there, "eth0").expect("veth");
        here.add_address("eth0", Ipv4Net::new_assert(HERE, 24)).expect("address");
        there.add_address("eth0", Ipv4Net::new_assert(THERE, 24)).expect("address");
        (here, there)
    }

    #[test]
    fn every_fragmentation_and_size_is_answered() {
        let (here, _there) = pair();
        for fragmentation in [Fragmentation::Kernel, Fragmentation::Allowed, Fragmentation::Forbidden] {
            for payload_len in [0, 1, 56, 1472] {
                let settings = Ping { count: 2, payload_len, fragmentation, ..Ping::default() };
                let outcomes = here.enter(|| ping(THERE, settings)).expect("ping");
                assert_eq!(outcomes.len(), 2);
                for outcome in outcomes {
                    let PingOutcome::Reply { from: THERE, ttl: 64, .. } = outcome else { panic!("{outcome:?}") };
                }
            }
        }
    }

    #[test]
    fn only_the_kernel_fragments_at_the_sender() {
        let (here, _there) = pair();
        let long = |fragmentation| {
            let settings = Ping { payload_len: 65_507, fragmentation, ..Ping::default() };
            here.enter(|| ping(THERE, settings)).expect("ping").remove(0)
        };
        assert!(matches!(long(Fragmentation::Kernel), PingOutcome::Reply { .. }));
        assert_eq!(long(Fragmentation::Allowed), PingOutcome::TooLong);
        assert_eq!(long(Fragmentation::Forbidden), PingOutcome::TooLong);
    }

    #[test]
    fn silence_is_a_timeout_and_no_route_an_error() {
        let (here, there) = pair();
        there.set_down("eth0").expect("down");
        let settings = Ping { timeout: Duration::from_millis(50), ..Ping::default() };
        let start = Instant::now();
        assert_eq!(here.enter(|| ping(THERE, settings)).expect("ping"), [PingOutcome::Timeout]);
        assert!(start.elapsed() < Duration::from_secs(1));
        let elsewhere = Ipv4Addr::new(192, 0, 2, 1);
        let error = here.enter(|| ping(elsewhere, Ping::default())).expect_err("no route");
        assert_eq!(error.kind(), io::ErrorKind::NetworkUnreachable);
    }

    #[test]
    fn pings_at_the_same_time_do_not_take_each_others_answers() {
        let (here, _there) = pair();
        let run = || here.enter(|| ping(THERE, Ping { count: 50, ..Ping::default() })).expect("ping");
        let (left, right) = std::thread::scope(|scope| {
            let left = scope.spawn(run);
            (run(), left.join().expect("no panic"))
        });
        assert!(left.iter().chain(&right).all(|outcome| matches!(outcome, PingOutcome::Reply { .. })));
    }
}
