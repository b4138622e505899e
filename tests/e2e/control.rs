//! The control socket: flannel's own commands, from any number of clients, also in the middle of a flood.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use loden::control::Command;
use serde_json::Value;
use socket2::{Domain, SockAddr, Socket, Type};
use testbed::TwoHosts;
use testbed::probe::{Ping, PingOutcome, ping};

use crate::support::{SECOND, Tunnel, run, wait_until};

struct Controlled {
    hosts: TwoHosts,
    tunnel: Tunnel,
    _b: Tunnel,
    path: PathBuf,
    _directory: tempfile::TempDir,
}

impl Controlled {
    /// Host A without any route of its own.
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control");
        let hosts = TwoHosts::new().unwrap();
        let tunnel = Tunnel::start(&hosts.host_a, &args(&path));
        let b = Tunnel::on_b(&hosts, &[]);
        Self { hosts, tunnel, _b: b, path, _directory: directory }
    }

    fn client(&self) -> Socket {
        connect(&self.path)
    }

    /// Returns true if one of three pings is answered: on a busy machine one may be late.
    fn reaches(&self) -> bool {
        let answered = || {
            let quick = Ping { timeout: SECOND / 2, ..Ping::default() };
            let outcome = self.hosts.pod_a.enter(|| ping(TwoHosts::POD_B, quick)).unwrap();
            matches!(outcome[..], [PingOutcome::Reply { .. }])
        };
        (0..3).any(|_| answered())
    }

    fn wait_for(&self, what: &str, holds: impl Fn(&Value) -> bool) {
        wait_until(what, || holds(&self.tunnel.next_event()));
    }
}

fn args(path: &Path) -> [&str; 8] {
    let path = path.to_str().unwrap();
    ["--subnet", "100.96.1.0/24", "--listen", "10.168.0.2", "--stats", "0.02", "--control", path]
}

fn connect(path: &Path) -> Socket {
    let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None).unwrap();
    socket.connect(&SockAddr::unix(path).unwrap()).unwrap();
    socket
}

fn set(subnet: &str, next_hop: &str) -> [u8; 20] {
    Command::SetRoute { subnet: subnet.parse().unwrap(), next_hop: next_hop.parse().unwrap() }.encode()
}

fn delete(subnet: &str) -> [u8; 20] {
    Command::DeleteRoute { subnet: subnet.parse().unwrap() }.encode()
}

#[test]
fn routes_are_set_and_deleted_and_it_stops() {
    let mut at = Controlled::start();
    assert_eq!(std::fs::metadata(&at.path).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!at.reaches());
    let (one, two) = (at.client(), at.client());
    one.send(&set("100.96.2.0/24", "10.168.0.3:8285")).unwrap();
    at.wait_for("a route", |event| event["routes"] == 1);
    assert!(at.reaches());
    // Another client changes what the first one set; the first one leaves; host bits do not matter.
    two.send(&set("100.96.2.77/24", "10.168.0.3:9")).unwrap();
    drop(one);
    wait_until("the other port to be used", || !at.reaches());
    two.send(&delete("100.96.2.0/24")).unwrap();
    at.wait_for("no route", |event| event["routes"] == 0);
    two.send(&delete("100.96.2.0/24")).unwrap();
    two.send(&Command::Stop.encode()).unwrap();
    let status = at.tunnel.child.wait(SECOND).unwrap().expect("an end within a second");
    assert!(status.success());
    at.tunnel.last_event();
    assert!(!at.path.exists(), "the socket file is removed");
}

/// Short, long, empty and unknown messages are counted, change nothing, and cost the client nothing.
#[test]
fn malformed_messages_change_nothing() {
    let at = Controlled::start();
    let client = at.client();
    client.send(&set("100.96.2.0/24", "10.168.0.3:8285")).unwrap();
    let good = delete("100.96.2.0/24");
    let mut bad_len = good;
    bad_len[8..12].copy_from_slice(&33i32.to_ne_bytes());
    let unknown = [9; 20];
    let long = [good.as_slice(), &[0]].concat();
    for message in [&[][..], &good[..1], &good[..19], &long, &[1; 4096], &unknown, &bad_len] {
        client.send(message).unwrap();
    }
    // Refused routes are counted apart: they are commands, but no routes.
    for next_hop in ["0.0.0.0:8285", "224.0.0.1:8285", "10.168.0.3:0", "10.168.0.2:8285"] {
        client.send(&set("100.96.2.0/24", next_hop)).unwrap();
    }
    client.send(&set("100.96.1.0/24", "10.168.0.3:8285")).unwrap();
    at.wait_for("all of them counted", |event| {
        event["anomalies"]["control_malformed"] == 7 && event["anomalies"]["control_refused"] == 5
    });
    assert!(at.reaches(), "the route still stands");
    // No replies, ever.
    client.set_nonblocking(true).unwrap();
    assert!(client.recv(&mut [core::mem::MaybeUninit::uninit(); 8]).is_err());
}

/// Fault 48: a route set and a stop asked for in the middle of a flood.
#[test]
fn fault_48_commands_are_taken_under_flood() {
    let mut at = Controlled::start();
    let flood = at.hosts.host_b.enter(|| std::net::UdpSocket::bind((TwoHosts::HOST_B, 0))).unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let status = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let _ = flood.send_to(&[0x45; 64], (TwoHosts::HOST_A, 8285));
            }
        });
        at.wait_for("the flood", |event| event["decap"]["in"].as_u64() > Some(1000));
        let client = at.client();
        client.send(&set("100.96.2.0/24", "10.168.0.3:8285")).unwrap();
        let start = std::time::Instant::now();
        while at.tunnel.next_event()["routes"] != 1 && start.elapsed() < SECOND {}
        let in_time = start.elapsed() < SECOND;
        client.send(&Command::Stop.encode()).unwrap();
        let status = at.tunnel.child.wait(SECOND);
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(in_time, "the route was set within a second");
        status
    });
    assert!(status.unwrap().expect("an end within a second").success());
}

/// Fault 50: of what others get wrong, as often as they like, a few sentences a second are said and the rest is counted; of
/// packets, however bad, none. The tunnel's own lines come when they are due.
#[test]
fn fault_50_a_flood_of_mistakes_is_not_a_flood_of_sentences() {
    let mut at = Controlled::start();
    let said_before = at.tunnel.child.stderr().lines().count();
    let from_peer = at.hosts.host_b.enter(|| std::net::UdpSocket::bind((TwoHosts::HOST_B, 0))).unwrap();
    let from_pod = at.hosts.pod_a.enter(|| std::net::UdpSocket::bind((TwoHosts::POD_A, 0))).unwrap();
    let client = at.client();
    let (start, mut sent) = (std::time::Instant::now(), 0);
    while start.elapsed() < 3 * SECOND / 2 {
        client.send(&[9; 20]).unwrap();
        client.send(&set("100.96.2.0/24", "0.0.0.0:8285")).unwrap();
        let _ = from_peer.send_to(&[0x45; 64], (TwoHosts::HOST_A, 8285));
        let _ = from_pod.send_to(&[0; 64], ("100.96.9.9", 9));
        sent += 1;
        std::thread::sleep(SECOND / 10_000);
    }
    at.wait_for("all of them counted", |event| {
        event["anomalies"]["control_malformed"] == sent && event["anomalies"]["control_refused"] == sent
    });
    let last = at.tunnel.stop();
    let seconds = start.elapsed().as_secs() as usize + 1;
    let said = at.tunnel.child.stderr();
    let lines: Vec<_> = said.lines().skip(said_before).collect();
    // Two kinds, ten of each a second, and one line that says how many were left out.
    assert!(lines.len() <= 2 * 11 * (seconds + 1), "{} lines in {seconds} seconds: {lines:?}", lines.len());
    assert!(lines.iter().all(|line| line.contains("control: ") || line.contains("left out")), "{lines:?}");
    assert!(lines.iter().any(|line| line.contains("left out")) && sent > 1000, "{sent} of each: {lines:?}");
    assert!(last["decap"]["in"].as_u64() > Some(1000) && last["encap"]["in"].as_u64() > Some(1000), "{last}");
}

/// Many clients, each with many commands at once: all of them count, the last one last.
#[test]
fn many_clients_are_served() {
    let at = Controlled::start();
    let clients: Vec<_> = (0..100).map(|_| at.client()).collect();
    for (number, client) in clients.iter().enumerate() {
        for host in 0..5 {
            client.send(&set(&format!("100.96.{}.0/24", 2 + number), &format!("10.168.0.{}:8285", 3 + host))).unwrap();
        }
    }
    at.wait_for("100 routes", |event| event["routes"] == 100);
}

#[test]
fn a_stale_socket_is_replaced_and_one_in_use_refused() {
    let hosts = TwoHosts::new().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control");
    let mut killed = Tunnel::start(&hosts.host_a, &args(&path));
    let refused = |sentence: &str| {
        let args = [&["--network", "100.96.0.0/16"], &args(&path)[..]].concat();
        let args: Vec<_> = args.iter().map(|arg| if *arg == "10.168.0.2" { "10.168.0.2:9000" } else { arg }).collect();
        let (status, said) = run(&hosts.host_a, &args);
        assert_eq!(status.code(), Some(2));
        assert!(said.contains(sentence), "{said}");
    };
    refused("in use by another process");
    killed.child.signal(nix::sys::signal::Signal::SIGKILL).unwrap();
    killed.child.wait(SECOND).unwrap();
    assert!(path.exists(), "killed, it leaves its socket");
    let mut next = Tunnel::start(&hosts.host_a, &args(&path));
    connect(&path).send(&Command::Stop.encode()).unwrap();
    next.child.wait(SECOND).unwrap().expect("an end within a second");
    std::fs::write(&path, "precious").unwrap();
    refused("no socket");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
}
