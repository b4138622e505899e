//! Peers behind slow interfaces, beside peers that must not be affected (fault 51, R69). The tests need tc(8).

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::UdpGsoSegment;
use serde_json::Value;
use testbed::Namespace;
use testbed::probe::{Ping, PingOutcome, ping};

use crate::support::{SECOND, Tunnel, dropped};

const HOST: Ipv4Addr = Ipv4Addr::new(10, 168, 0, 2);
const DATAGRAM: usize = 1400;
const GSO_BATCH: usize = 44;

/// The arguments of tc(8) that limit the rate to a peer, for each qdisc and class.
type Shaper = &'static [&'static str];

const TBF: Shaper = &["qdisc add dev {} root tbf rate 10mbit burst 128k limit 100mb"];
const SLOW_TBF: Shaper = &["qdisc add dev {} root tbf rate 1mbit burst 128k limit 100mb"];
const HTB: Shaper = &[
    "qdisc add dev {} root handle 1: htb default 1",
    "class add dev {} parent 1: classid 1:1 htb rate 10mbit ceil 10mbit",
];
const NONE: Shaper = &[];

/// A host with a tunnel, and a peer with one on each of its interfaces:
///
/// ```text
///  ┌ host ─────────────┐     ┌ peers[0] ─┐
///  │       shaper ─ u0 ┼─────┼ eth0      │  10.168.0.3, 100.96.2.0/24
///  │ 10.168.0.2        │     └───────────┘
///  │       shaper ─ u1 ┼───── …             10.168.0.4, 100.96.3.0/24
///  └───────────────────┘
/// ```
struct Star {
    tunnel: Tunnel,
    _tunnels: Vec<Tunnel>,
    host: Namespace,
    peers: Vec<Namespace>,
}

/// Returns the address of a peer on the underlay.
fn underlay(peer: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 168, 0, 3 + peer as u8)
}

/// Returns the address of a peer's TUN device.
fn inside(peer: usize) -> Ipv4Addr {
    Ipv4Addr::new(100, 96, 2 + peer as u8, 0)
}

impl Star {
    fn new(shapers: &[Shaper], more: &[&str]) -> Self {
        let one = |address| Ipv4Net::new_assert(address, 32);
        let host = Namespace::new().expect("root");
        host.add_address("lo", one(HOST)).unwrap();
        let mut routes = Vec::new();
        let mut peers = Vec::new();
        for (number, shaper) in shapers.iter().enumerate() {
            let peer = Namespace::new().unwrap();
            let link = format!("u{number}");
            host.connect(&link, &peer, "eth0").unwrap();
            peer.add_address("eth0", one(underlay(number))).unwrap();
            peer.add_route(one(HOST), None, "eth0").unwrap();
            host.add_route(one(underlay(number)), None, &link).unwrap();
            for line in *shaper {
                let line = line.replace("{}", &link);
                let status = host.enter(|| Command::new("tc").args(line.split(' ')).status()).expect("tc");
                assert!(status.success(), "tc {line}");
            }
            routes.extend(["--route".to_owned(), format!("{}/24={}", inside(number), underlay(number))]);
            peers.push(peer);
        }
        let base = ["--subnet", "100.96.1.0/24", "--listen", "10.168.0.2", "--mtu", "1472"];
        let routes: Vec<_> = routes.iter().map(String::as_str).collect();
        let tunnel = Tunnel::start(&host, &[&base, &routes[..], more].concat());
        let start = |(number, peer): (usize, &Namespace)| {
            let (subnet, listen) = (format!("{}/24", inside(number)), underlay(number).to_string());
            let route = ["--route", "100.96.1.0/24=10.168.0.2", "--mtu", "1472"];
            Tunnel::start(peer, &[&["--subnet", &subnet, "--listen", &listen], &route[..]].concat())
        };
        let _tunnels = peers.iter().enumerate().map(start).collect();
        Self { tunnel, _tunnels, host, peers }
    }

    /// Stops the tunnel. Every dropped packet is counted for one of these peers, and each of them had some.
    fn stop(mut self, slow: &[usize]) -> Value {
        let event = self.tunnel.stop();
        let full = dropped(&event, "encap", "send_buffer_full");
        let errors = event["send_errors"].as_object().expect("an object");
        let of = |peer: &usize| errors.get(&underlay(*peer).to_string()).and_then(Value::as_u64).unwrap_or(0);
        assert!(full > 0 && slow.iter().all(|peer| of(peer) > 0), "{event}");
        assert_eq!(slow.iter().map(of).sum::<u64>(), full, "{event}");
        assert_eq!(errors.len(), slow.len(), "{event}");
        event
    }
}

/// Pings a peer every 10 ms while `act` runs, and returns the sorted delays. No ping is lost.
fn delays_while(host: &Namespace, peer: usize, act: impl FnOnce()) -> Vec<Duration> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let pinging = scope.spawn(|| {
            let mut delays = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let one = Ping { timeout: SECOND, ..Ping::default() };
                match host.enter(|| ping(inside(peer), one)).unwrap()[..] {
                    [PingOutcome::Reply { rtt, .. }] => delays.push(rtt),
                    ref lost => panic!("after {} pings: {lost:?}", delays.len()),
                }
                std::thread::sleep(SECOND / 100);
            }
            delays.sort_unstable();
            delays
        });
        act();
        stop.store(true, Ordering::Relaxed);
        pinging.join().unwrap()
    })
}

/// Sends GSO batches of UDP to peers, at a rate in Mbit/s to each.
fn load(host: &Namespace, peers: &[usize], rate: usize, bytes: usize) {
    let to = |peer: &usize| SocketAddr::from((inside(*peer), 9999));
    let (batch, start, mut sent) = ([7; GSO_BATCH * DATAGRAM], Instant::now(), 0);
    host.enter(|| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        setsockopt(&socket, UdpGsoSegment, &(DATAGRAM as i32)).unwrap();
        while sent < bytes {
            for peer in peers {
                let _ = socket.send_to(&batch, to(peer));
            }
            sent += batch.len();
            std::thread::sleep(Duration::from_micros((sent * 8 / rate) as u64).saturating_sub(start.elapsed()));
        }
    });
}

fn median(delays: &[Duration]) -> Duration {
    delays[delays.len() / 2]
}

/// Asserts that the delay is what it is without the load. A busy scheduler may delay the slowest few.
#[track_caller]
fn assert_unaffected(idle: &[Duration], loaded: &[Duration]) {
    let slow = loaded.len() * 9 / 10;
    println!("idle {:?}, loaded {:?}, nine of ten {:?}", median(idle), median(loaded), loaded[slow]);
    let most = (2 * median(idle)).max(Duration::from_millis(5));
    assert!(median(loaded) <= most, "idle {:?}, loaded {:?}", median(idle), median(loaded));
    assert!(loaded[slow] < 10 * most, "nine of ten within {:?}", loaded[slow]);
}

/// The number of bytes of a load: four times what one send buffer holds, and ten times what the path carries.
const MUCH: usize = 32 << 20;

#[test]
fn r69_fault_51_a_slow_peer_costs_an_idle_one_nothing() {
    for (shaper, more) in [(TBF, &[][..]), (HTB, &[]), (TBF, &["--source-ports", "4"]), (TBF, &["--queues", "2"])] {
        let star = Star::new(&[shaper, NONE], more);
        let idle = delays_while(&star.host, 1, || std::thread::sleep(SECOND));
        let loaded = delays_while(&star.host, 1, || load(&star.host, &[0], 100, MUCH));
        assert_unaffected(&idle, &loaded);
        star.stop(&[0]);
    }
}

#[test]
fn r69_fault_51_eight_slow_peers_cost_an_idle_one_nothing() {
    for slow in [8, 10] {
        let shapers: Vec<_> = (0..slow).map(|peer| if peer % 2 == 0 { TBF } else { HTB }).chain([NONE]).collect();
        let star = Star::new(&shapers, &[]);
        let idle = delays_while(&star.host, slow, || std::thread::sleep(SECOND));
        let all: Vec<_> = (0..slow).collect();
        let loaded = delays_while(&star.host, slow, || load(&star.host, &all, 40, MUCH / 2));
        assert_unaffected(&idle, &loaded);
        star.stop(&all);
    }
}

/// 12 MB at once to a peer behind 1 Mbit/s.
#[test]
fn r69_fault_51_a_burst_to_a_slow_peer_delays_nobody_else() {
    let star = Star::new(&[SLOW_TBF, NONE], &[]);
    let idle = delays_while(&star.host, 1, || std::thread::sleep(SECOND));
    let loaded = delays_while(&star.host, 1, || {
        load(&star.host, &[0], 100_000, 12_000_000);
        std::thread::sleep(SECOND);
    });
    assert_unaffected(&idle, &loaded);
    star.stop(&[0]);
}

/// The datagrams of a flow arrive in order, though the socket that sends them changes while they wait.
#[test]
fn fault_51_a_peer_that_gets_a_lane_has_its_datagrams_in_order() {
    let star = Star::new(&[TBF, NONE], &[]);
    let peer = &star.peers[0];
    let sink = peer.enter(|| UdpSocket::bind((inside(0), 9999))).unwrap();
    sink.set_read_timeout(Some(2 * SECOND)).unwrap();
    let (received, last) = std::thread::scope(|scope| {
        let receiving = scope.spawn(|| {
            let (mut buffer, mut last, mut received) = ([0; 2048], None, 0);
            while let Ok(length) = sink.recv(&mut buffer) {
                let number = u64::from_be_bytes(*buffer[..length].first_chunk().unwrap());
                assert!(last < Some(number), "{number} after {last:?}");
                (last, received) = (Some(number), received + 1);
            }
            (received, last)
        });
        star.host.enter(|| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
            let mut datagram = [0; DATAGRAM];
            // Through a quarter of the buffer, where the peer gets its lane.
            for number in 0..6000_u64 {
                datagram[..8].copy_from_slice(&number.to_be_bytes());
                socket.send_to(&datagram, (inside(0), 9999)).unwrap();
                if number % 16 == 0 {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        });
        receiving.join().unwrap()
    });
    assert!(received > 3000 && last > Some(3000), "{received} received, up to {last:?}");
}
