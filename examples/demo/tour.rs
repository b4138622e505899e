//! A tour of the tunnel: ping, TCP, traceroute and ICMP errors. Each step is checked.

use core::fmt::Display;
use core::net::{Ipv4Addr, Ipv6Addr};
use core::time::Duration;
use std::io;
use std::net::TcpListener;

use testbed::TwoHosts;
use testbed::probe::{Amount, EchoV6, Ping, PingOutcome, PingV6, Transfer, ping, ping_v6, tcp_send, tcp_sink};

use crate::end::{End, check_interrupt};

/// A reply starts with 64. The kernel and the tunnel of each host subtract one.
const TTL_LEFT: u8 = 60;
/// The TUN address, as flannel chooses it: the network address of the host's subnet.
const TUN_B: Ipv4Addr = TwoHosts::SUBNET_B.addr();
/// An address inside the overlay network without a route.
const HOLE: Ipv4Addr = Ipv4Addr::new(100, 96, 9, 9);
/// ICMP types (RFC 792).
const UNREACHABLE: u8 = 3;
const TIME_EXCEEDED: u8 = 11;
/// The IPv6 addresses of the TUN devices: the highest of each subnet that is no reserved anycast address (RFC 2526).
const TUN_A_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x96, 1, 0, 0xffff, 0xffff, 0xffff, 0xff7f);
const TUN_B_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x96, 2, 0, 0xffff, 0xffff, 0xffff, 0xff7f);
/// An IPv6 address inside the overlay network without a route.
const HOLE_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x96, 0x99, 0, 0, 0, 0, 9);
/// ICMPv6 types (RFC 4443).
const UNREACHABLE_V6: u8 = 1;
const TIME_EXCEEDED_V6: u8 = 3;
/// The timeout of a ping over IPv6, whose neighbours first look for duplicates of their addresses.
const PATIENCE: Duration = Duration::from_secs(5);

pub(crate) fn take(hosts: &TwoHosts, has_ipv6: bool) -> Result<(), End> {
    step("1. Ping from pod a to pod b")?;
    round_trips(hosts)?;
    step("2. TCP from pod a to pod b")?;
    transfer(hosts)?;
    step("3. Traceroute from pod a to pod b: a ping with TTL 1, one with TTL 2, and so on")?;
    trace(hosts)?;
    step(format_args!("4. Ping from pod a to {HOLE}, which is in the network but in no host's subnet"))?;
    hole(hosts)?;
    if !has_ipv6 {
        return say!("\n5. This kernel has no IPv6, so that the tunnels carry IPv4 alone");
    }
    step("5. The same with IPv6, over the same IPv4 datagrams")?;
    ipv6(hosts)
}

fn step(title: impl Display) -> Result<(), End> {
    check_interrupt()?;
    say!("\n{title}")
}

fn round_trips(hosts: &TwoHosts) -> Result<(), End> {
    for _ in 0..4 {
        let outcome = one_ping(hosts, TwoHosts::POD_B, None)?;
        let PingOutcome::Reply { from: from @ TwoHosts::POD_B, ttl: ttl @ TTL_LEFT, rtt } = outcome else {
            return Err(unexpected(format_args!("a reply from pod b with TTL {TTL_LEFT}"), outcome));
        };
        say!("   reply from {from}: TTL {ttl}, {:.3} ms", rtt.as_secs_f64() * 1e3)?;
    }
    say!("   They set out with TTL 64: two kernels and two tunnels are on the way, and each is a router hop.")
}

/// Sends short streams, so that Ctrl-C need not wait for a long one.
fn transfer(hosts: &TwoHosts) -> Result<(), End> {
    const STREAMS: u64 = 8;
    const LENGTH: Duration = Duration::from_millis(250);
    let (mut bytes, mut elapsed) = (0, Duration::ZERO);
    for seed in 0..STREAMS {
        check_interrupt()?;
        let sent = stream(hosts, Amount::For(LENGTH), seed).map_err(End::failed("the TCP stream broke"))?;
        bytes += sent.bytes;
        elapsed += sent.elapsed;
    }
    let (mebibytes, seconds) = (bytes >> 20, elapsed.as_secs_f64());
    let gigabits = bytes as f64 * 8.0 / 1e9 / seconds;
    say!("   {mebibytes} MiB in {STREAMS} streams and {seconds:.1} s: {gigabits:.2} Gbit/s; every byte was compared")
}

/// Sends from pod a to pod b, which compares every byte.
fn stream(hosts: &TwoHosts, amount: Amount, seed: u64) -> io::Result<Transfer> {
    let listener = hosts.pod_b.enter(|| TcpListener::bind((TwoHosts::POD_B, 0)))?;
    let address = listener.local_addr()?;
    let sink = tcp_sink(listener, seed);
    let sent = hosts.pod_a.enter(|| tcp_send(address, amount, seed))?;
    let received = sink.join().map_err(|_panic| io::Error::other("the receiver panicked"))??;
    if received.bytes != sent.bytes {
        let what = format!("{} bytes were sent and {} arrived", sent.bytes, received.bytes);
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    Ok(sent)
}

/// Pings with growing TTLs, as `traceroute` does.
fn trace(hosts: &TwoHosts) -> Result<(), End> {
    let hops = [
        (1, TwoHosts::GATEWAY_A, "the kernel of host a"),
        (2, TwoHosts::POD_B, "the tunnel of host a, in pod b's name (*)"),
        (3, TUN_B, "the tunnel of host b, under its TUN address"),
        (4, TUN_B, "the kernel of host b, whose way back is that TUN"),
    ];
    for (ttl, from, who) in hops {
        let outcome = one_ping(hosts, TwoHosts::POD_B, Some(ttl))?;
        if !is_error(outcome, from, TIME_EXCEEDED) {
            return Err(unexpected(format_args!("time exceeded from {from} at TTL {ttl}"), outcome));
        }
        say!("   TTL {ttl}  time exceeded  {from}  {who}")?;
    }
    let outcome = one_ping(hosts, TwoHosts::POD_B, Some(5))?;
    let PingOutcome::Reply { from: from @ TwoHosts::POD_B, .. } = outcome else {
        return Err(unexpected("a reply from pod b at TTL 5", outcome));
    };
    say!("   TTL 5  reply          {from}  pod b")?;
    say!("   (*) Linux would drop what comes out of a TUN under that TUN's own address.")
}

fn hole(hosts: &TwoHosts) -> Result<(), End> {
    let outcome = one_ping(hosts, HOLE, None)?;
    if !is_error(outcome, HOLE, UNREACHABLE) {
        return Err(unexpected(format_args!("net unreachable from {HOLE}"), outcome));
    }
    say!("   net unreachable  {HOLE}  the tunnel of host a, again in the destination's name")
}

/// Pings with IPv6, with short hop limits, and to an address without a route.
fn ipv6(hosts: &TwoHosts) -> Result<(), End> {
    let b = TwoHosts::POD_B_V6;
    let error = |from, kind| EchoV6::Error { from, kind, code: 0, mtu: 0 };
    for (to, hop_limit, wanted, says) in [
        (b, 64, EchoV6::Reply { from: b }, "reply           "),
        (b, 2, error(TUN_A_V6, TIME_EXCEEDED_V6), "hop limit 2: time exceeded, from the tunnel of host a,"),
        (b, 3, error(TUN_B_V6, TIME_EXCEEDED_V6), "hop limit 3: time exceeded, from the tunnel of host b,"),
        (HOLE_V6, 64, error(TUN_A_V6, UNREACHABLE_V6), "no route, from the tunnel of host a,"),
    ] {
        check_interrupt()?;
        let settings = PingV6 { hop_limit, timeout: PATIENCE, ..PingV6::default() };
        let outcome = hosts.pod_a.enter(|| ping_v6(to, settings)).map_err(End::failed("pod a cannot ping"))?;
        if outcome != wanted {
            return Err(End::Failed(format!("pod a pinged {to} and should have got {wanted:?}, but got {outcome:?}")));
        }
        let (EchoV6::Reply { from } | EchoV6::Error { from, .. }) = outcome else { continue };
        say!("   {says} {from}")?;
    }
    say!("   An IPv6 error comes from the TUN's own address, which Linux accepts.")
}

/// Returns whether `wanted` answered with an error of this type and code 0: net unreachable, or time exceeded in
/// transit.
fn is_error(outcome: PingOutcome, wanted: Ipv4Addr, wanted_kind: u8) -> bool {
    matches!(outcome, PingOutcome::Error { from, kind, code: 0, .. } if (from, kind) == (wanted, wanted_kind))
}

fn one_ping(hosts: &TwoHosts, destination: Ipv4Addr, ttl: Option<u8>) -> Result<PingOutcome, End> {
    check_interrupt()?;
    let outcomes = hosts.pod_a.enter(|| ping(destination, Ping { ttl, ..Ping::default() }));
    let outcomes = outcomes.map_err(End::failed("pod a cannot ping"))?;
    Ok(outcomes.first().copied().unwrap_or(PingOutcome::Timeout))
}

fn unexpected(wanted: impl Display, outcome: PingOutcome) -> End {
    let got = match outcome {
        PingOutcome::Reply { from, ttl, .. } => format!("a reply from {from} with TTL {ttl}"),
        PingOutcome::Error { from, kind, code, .. } => format!("ICMP {kind}/{code} from {from}"),
        PingOutcome::TooLong => "a packet that was too long".to_owned(),
        PingOutcome::Timeout => "silence".to_owned(),
    };
    End::Failed(format!("pod a pinged and should have got {wanted}, but got {got}"))
}
