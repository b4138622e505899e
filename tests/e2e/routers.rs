//! R54 end to end: narrow routers of every kind, with short and long quotes of a datagram that is too big.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use loden::ipnet::Ipv4Net;
use loden::sys::{Tun, TunConfig, TunOffload};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::Value;
use testbed::probe::{Amount, path_mtu, tcp_send, tcp_sink};
use testbed::{Namespace, TwoHosts};

use crate::support::{SECOND, Tunnel};

/// The router's address in its reports.
const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 168, 9, 1);

/// A router that forwards packets of host A up to this many bytes. It reports longer datagrams with DF, and fragments
/// others.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kind {
    pub(crate) mtu: u16,
    /// The MTU in its reports. Routers older than RFC 1191 report 0.
    pub(crate) says: u16,
    /// Bytes of the datagram that it quotes.
    pub(crate) quotes: usize,
}

/// The router runs until this is dropped.
pub(crate) struct Router {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Router {
    /// Starts it in the router of [`TwoHosts::through_a_router`].
    pub(crate) fn start(namespace: &Namespace, kind: Kind) -> Self {
        const TABLE: u8 = 100;
        const NAME: &str = "narrow0";
        let [from_a, to_b] = TwoHosts::ROUTER_LINKS;
        let config = TunConfig::new(NAME).with_offload(TunOffload::NONE);
        let tun = namespace.enter(|| Tun::open(&config)).expect("a device");
        namespace.set_up(NAME).expect("up");
        for link in ["all", NAME] {
            namespace.sysctl(&format!("net/ipv4/conf/{link}/rp_filter"), "0").expect("a setting");
        }
        namespace.route_input(from_a, TABLE).expect("a rule");
        namespace.add_route_to_table(TABLE, Ipv4Net::default(), NAME).expect("a route");
        // The kernel fragments datagrams without DF.
        namespace.set_mtu(to_b, kind.mtu.into()).expect("an MTU");
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = namespace.spawn("router", move || {
            let mut buffer = vec![0; 65_536];
            while !stopped.load(Ordering::Relaxed) {
                let mut fds = [PollFd::new(tun.as_fd(), PollFlags::POLLIN)];
                poll(&mut fds, PollTimeout::from(20_u8)).expect("a poll");
                while let Ok(meta) = tun.recv(&mut buffer) {
                    let packet = &buffer[..meta.len];
                    let is_ipv4 = packet[0] >> 4 == 4;
                    let is_refused = packet.len() > kind.mtu.into() && packet[6] & 0x40 != 0;
                    match is_ipv4 && is_refused {
                        true => drop(tun.send(&report(packet, kind.says, kind.quotes))),
                        false => drop(tun.send(packet)),
                    }
                }
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Returns a "fragmentation needed" to the sender of a datagram, with this many quoted bytes.
pub(crate) fn report(datagram: &[u8], mtu: u16, quotes: usize) -> Vec<u8> {
    let mut message = vec![3, 4, 0, 0, 0, 0];
    message.extend(mtu.to_be_bytes());
    message.extend(datagram.iter().take(quotes));
    let sum = checksum(&message).to_be_bytes();
    message[2..4].copy_from_slice(&sum);
    let mut packet = vec![0x45, 0xc0, 0, 0, 0, 0, 0, 0, 64, 1, 0, 0];
    packet.extend(ROUTER.octets());
    packet.extend(&datagram[12..16]);
    let total = (packet.len() + message.len()) as u16;
    packet[2..4].copy_from_slice(&total.to_be_bytes());
    let sum = checksum(&packet).to_be_bytes();
    packet[10..12].copy_from_slice(&sum);
    packet.extend(message);
    packet
}

/// Returns the checksum of RFC 1071.
pub(crate) fn checksum(bytes: &[u8]) -> u16 {
    let pair = |pair: &[u8]| u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
    let mut sum: u32 = bytes.chunks(2).map(pair).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// The arguments that start a tunnel without `CAP_NET_RAW`.
const WITHOUT_RAW: [&str; 4] = ["--bounding-set", "-net_raw", "--inh-caps", "-net_raw"];

/// Sends a stream through such a router. Returns the MTU that the pod's kernel learned, and the last line of host A's
/// tunnel.
fn stream_through(kind: Kind, privileges: &[&str], more: &[&str]) -> (u32, Value) {
    let hosts = TwoHosts::through_a_router().expect("two hosts and a router");
    let _router = Router::start(&hosts.routers[0], kind);
    let a = ["--subnet", "100.96.1.0/24", "--listen", "10.168.0.2", "--route", "100.96.2.0/24=10.168.0.3"];
    let mut a = Tunnel::start_as(&hosts.host_a, privileges, &[&a, more].concat());
    if !privileges.is_empty() {
        a.says("CAP_NET_RAW (reports of narrow paths are not verified)");
    }
    let mut b = Tunnel::on_b(&hosts, &[]);
    let target = SocketAddr::from((TwoHosts::POD_B, 5001));
    let listener = hosts.pod_b.enter(|| TcpListener::bind(target)).expect("a listener");
    let sink = tcp_sink(listener, 9);
    let begin = std::time::Instant::now();
    let sent = hosts.pod_a.enter(|| tcp_send(target, Amount::Bytes(2 << 20), 9)).expect("sent");
    assert_eq!(sink.join().expect("no panic").expect("received").bytes, sent.bytes, "{kind:?}");
    assert!(begin.elapsed() < 20 * SECOND, "{kind:?}: a black hole for {:?}", begin.elapsed());
    let known = hosts.pod_a.enter(|| path_mtu(TwoHosts::POD_B)).expect("a path");
    b.stop();
    (known, a.stop())
}

fn is_lowered(event: &Value) -> bool {
    event["anomalies"]["path_mtu_lowered"].as_u64() >= Some(1)
}

/// With a quoted inner header a path MTU is known exactly. Without it 1280 bytes are the least accepted value, and
/// longer packets are fragmented.
#[test]
fn r54_every_kind_of_narrow_router_is_found() {
    for quotes in [28, 48, 548, 1500] {
        for (mtu, expected) in [(1300, 1272), (1000, if quotes == 28 { 1252 } else { 972 })] {
            let (known, last) = stream_through(Kind { mtu, says: mtu, quotes }, &[], &[]);
            assert_eq!(known, expected, "{mtu} bytes, quotes of {quotes}: {last}");
            assert!(is_lowered(&last), "{last}");
            assert_eq!(last["anomalies"]["gso_fallbacks"], 0, "{last}");
        }
    }
}

/// Routers older than RFC 1191 report no MTU.
#[test]
fn r54_a_router_without_a_number_is_found() {
    for (quotes, expected) in [(28, 1252), (548, 978)] {
        let (known, last) = stream_through(Kind { mtu: 1300, says: 0, quotes }, &[], &[]);
        assert_eq!(known, expected, "quotes of {quotes}: {last}");
    }
}

/// The same with several source ports.
#[test]
fn r54_a_narrow_router_is_found_with_several_source_ports() {
    for quotes in [28, 548] {
        let (known, last) = stream_through(Kind { mtu: 1300, says: 1300, quotes }, &[], &["--source-ports", "4"]);
        assert_eq!(known, 1272, "quotes of {quotes}: {last}");
    }
}

/// Without `CAP_NET_RAW` the kernel's path MTU is used, down to 1280 bytes.
#[test]
fn r54_every_kind_of_narrow_router_is_found_without_cap_net_raw() {
    for quotes in [28, 548, 1500] {
        for (mtu, expected) in [(1300, 1272), (1000, 1252)] {
            let (known, last) = stream_through(Kind { mtu, says: mtu, quotes }, &WITHOUT_RAW, &[]);
            assert_eq!(known, expected, "{mtu} bytes, quotes of {quotes}: {last}");
            assert!(is_lowered(&last), "{last}");
        }
    }
}
