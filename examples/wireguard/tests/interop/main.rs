//! `wireguard` and Debian's wireguard-go are each other's other end. The tests need root, wireguard-go and wireguard-tools.
#![cfg(target_os = "linux")]

mod addresses;
mod net;

use std::net::{Ipv4Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::PublicKey;
use nix::sys::signal::Signal;
use testbed::TwoHosts;
use testbed::probe::{Amount, EchoV6, PingV6, UdpEcho, ping_v6};

use net::{A, B, ENDPOINT_A, ENDPOINT_B, Net, SOON, count, peer, preshared, private_key, run, until};

const MIB: u64 = 1 << 20;

fn endpoint(address: &str) -> String {
    format!("Endpoint = {address}\n")
}

/// Host A as a peer of host B's devices.
fn peer_a(more: &str) -> String {
    peer(1, "10.7.0.1/32", more)
}

/// Host B's first device as a peer of host A.
fn peer_b(more: &str) -> String {
    peer(2, "10.7.0.2/32", more)
}

#[test]
fn a_handshake_begins_with_the_first_packet_and_loses_none() {
    let net = Net::new();
    let b = net.start_b(0, &peer_a(""));
    let a = net.start_a("10.7.0.1/24", &peer_b(&endpoint(ENDPOINT_B)), &[]);
    assert_eq!(b.last_handshake(), 0);
    assert!(net.a_reaches(B[0]), "{}", b.log());
    assert!(b.last_handshake() > 0);
    assert!(net.b_reaches_a());
    net.check_stream(true, Amount::Bytes(16 * MIB));
    net.check_stream(false, Amount::Bytes(16 * MIB));
    let counters = a.end(Signal::SIGTERM);
    for name in ["no_session", "not_authentic", "replayed", "unknown_peer"] {
        assert_eq!(count(&counters, name), 0, "{counters}");
    }
    let links = net.hosts.host_a.links().expect("links");
    assert!(!links.contains(&"wga".to_owned()), "{links:?}");
}

#[test]
fn a_peer_without_endpoint_is_answered_where_it_begins() {
    let net = Net::new();
    let a = net.start_a("10.7.0.1/24", &peer_b(""), &[]);
    assert!(!net.a_reaches(B[0]), "its address is not known");
    let b = net.start_b(0, &peer_a(&endpoint(ENDPOINT_A)));
    assert!(net.b_reaches_a(), "{}", b.log());
    assert!(net.a_reaches(B[0]));
    net.check_stream(true, Amount::Bytes(MIB));
    // It forgets its sessions, and begins a new one while the old one is in use here.
    b.set("");
    b.set(&peer_a(&endpoint(ENDPOINT_A)));
    assert!(net.b_reaches_a());
    assert!(net.a_reaches(B[0]));
    a.end(Signal::SIGINT);
}

#[test]
fn a_restart_here_begins_a_new_session() {
    let net = Net::new();
    let _b = net.start_b(0, &peer_a(""));
    for _ in 0..2 {
        let a = net.start_a("10.7.0.1/24", &peer_b(&endpoint(ENDPOINT_B)), &["--unbatched"]);
        assert!(net.a_reaches(B[0]));
        assert!(net.b_reaches_a());
        a.end(Signal::SIGTERM);
    }
}

#[test]
fn a_preshared_key_is_part_of_the_handshake() {
    let net = Net::new();
    let _b = net.start_b(0, &peer_a(&preshared(9)));
    let with = |key| net.start_a("10.7.0.1/24", &peer_b(&(endpoint(ENDPOINT_B) + &preshared(key))), &[]);
    let a = with(9);
    assert!(net.a_reaches(B[0]));
    net.check_stream(false, Amount::Bytes(MIB));
    a.end(Signal::SIGTERM);
    let a = with(8);
    assert!(!net.a_reaches(B[0]));
    let counters = a.end(Signal::SIGTERM);
    assert!(count(&counters, "not_authentic") > 0, "{counters}");
}

#[test]
fn new_keys_interrupt_no_stream() {
    let net = Net::new();
    let b = net.start_b(0, &peer_a(""));
    let a = net.start_a("10.7.0.1/24", &peer_b(&endpoint(ENDPOINT_B)), &["--rekey-after", "1"]);
    let mut seen = Vec::new();
    // Short streams, because a full buffer may cost a message of a handshake, which is repeated only after 5 s.
    let is_new = until(3 * SOON, || {
        assert!(net.a_reaches(B[0]) && net.b_reaches_a());
        net.check_stream(true, Amount::Bytes(MIB / 4));
        net.check_stream(false, Amount::Bytes(MIB / 4));
        seen.push(b.last_handshake());
        seen.dedup();
        seen.len() >= 4
    });
    assert!(is_new, "handshakes at {seen:?}");
    let counters = a.end(Signal::SIGTERM);
    for name in ["no_session", "not_authentic", "replayed", "unknown_peer"] {
        assert_eq!(count(&counters, name), 0, "{counters}");
    }
}

#[test]
fn a_peer_is_followed_to_its_new_port_and_address() {
    let net = Net::new();
    let b = net.start_b(0, &peer_a(&endpoint(ENDPOINT_A)));
    let a = net.start_a("10.7.0.1/24", &peer_b(&endpoint(ENDPOINT_B)), &[]);
    assert!(net.a_reaches(B[0]));
    b.wg(&["set", &b.name, "listen-port", "40000"]);
    assert!(net.b_reaches_a());
    assert!(net.a_reaches(B[0]));
    let host = &net.hosts.host_b;
    run(host, "ip", &["address", "delete", "10.168.0.3/24", "dev", "eth0"]);
    run(host, "ip", &["address", "add", "10.168.0.77/24", "dev", "eth0"]);
    assert!(!net.a_reaches(B[0]), "its old address is gone");
    // wireguard-go keeps its source address until it binds another port.
    b.wg(&["set", &b.name, "listen-port", "40001"]);
    // The first packet from another address is delivered too.
    assert!(net.b_reaches_a(), "{}", b.log());
    net.check_stream(true, Amount::Bytes(MIB));
    let counters = a.end(Signal::SIGTERM);
    assert_eq!(count(&counters, "unknown_peer"), 0, "{counters}");
}

#[test]
fn this_host_may_change_its_address() {
    let net = Net::new();
    let b = net.start_b(0, &peer_a(&endpoint(ENDPOINT_A)));
    let a = net.start_a("10.7.0.1/24", &peer_b(&endpoint(ENDPOINT_B)), &[]);
    assert!(net.b_reaches_a());
    assert_eq!(b.show("endpoints"), ENDPOINT_A);
    let host = &net.hosts.host_a;
    run(host, "ip", &["address", "delete", "10.168.0.2/24", "dev", "eth0"]);
    run(host, "ip", &["address", "add", "10.168.0.66/24", "dev", "eth0"]);
    assert!(net.a_reaches(B[0]));
    assert!(net.b_reaches_a());
    assert_eq!(b.show("endpoints"), "10.168.0.66:51820");
    a.end(Signal::SIGTERM);
}

/// Each peer has its own networks, and no other source is delivered from it.
#[test]
fn several_peers_use_their_own_addresses_only() {
    const OTHER: Ipv4Addr = Ipv4Addr::new(192, 168, 7, 5);
    let net = Net::new();
    let devices = [0, 1].map(|at| net.start_b(at, &peer_a(&endpoint(ENDPOINT_A))));
    let peers = peer_b("") + &peer(3, "10.7.0.3/32, 192.168.7.0/24", "");
    let a = net.start_a("10.7.0.1/24", &peers, &[]);
    let host = &net.hosts.host_b;
    run(host, "ip", &["address", "add", &OTHER.to_string(), "dev", "lo"]);
    // The source port selects the device.
    for (device, (port, table)) in devices.iter().zip([("7000", "100"), ("7001", "101")]) {
        run(host, "ip", &["route", "add", "10.7.0.1/32", "dev", &device.name, "table", table]);
        run(host, "ip", &["rule", "add", "ipproto", "udp", "sport", port, "table", table]);
    }
    let echo = UdpEcho::start(net.hosts.host_a.enter(|| UdpSocket::bind((A, 7))).expect("bound")).expect("started");
    let is_answered = |from: Ipv4Addr, device: u16| {
        host.enter(|| {
            let socket = UdpSocket::bind((from, 7000 + device)).expect("bound");
            socket.set_read_timeout(Some(Duration::from_millis(500))).expect("set");
            socket.send_to(b"hello", (A, 7)).expect("sent");
            socket.recv(&mut [0; 8]).is_ok()
        })
    };
    for (from, device) in [(B[0], 0), (B[1], 1), (OTHER, 1)] {
        assert!(is_answered(from, device), "{from} from device {device}");
    }
    for (from, device) in [(B[1], 0), (OTHER, 0), (B[0], 1), (TwoHosts::HOST_B, 1)] {
        assert!(!is_answered(from, device), "{from} from device {device}");
    }
    assert_eq!(echo.stop().expect("stopped"), 3);
    let counters = a.end(Signal::SIGTERM);
    assert_eq!(count(&counters, "spoofed_source"), 4, "{counters}");
}

#[test]
fn a_stream_survives_loss() {
    let net = Net::new();
    net.lose(5);
    let _b = net.start_b(0, &peer_a(&endpoint(ENDPOINT_A)));
    let a = net.start_a("10.7.0.1/24", &peer_b(&endpoint(ENDPOINT_B)), &[]);
    assert!(until(SOON * 3, || net.a_reaches(B[0])));
    net.check_stream(true, Amount::Bytes(MIB));
    net.check_stream(false, Amount::Bytes(MIB));
    let lost = run(&net.hosts.host_a, "nft", &["list", "table", "ip", "loss"]);
    assert!(!lost.contains("packets 0 "), "{lost}");
    a.end(Signal::SIGTERM);
}

#[test]
fn keepalives_begin_and_keep_a_session_without_packets() {
    let net = Net::new();
    let b = net.start_b(0, &peer_a(""));
    let keepalive = endpoint(ENDPOINT_B) + "PersistentKeepalive = 1\n";
    let a = net.start_a("10.7.0.1/24", &peer_b(&keepalive), &[]);
    assert!(until(SOON, || b.last_handshake() > 0));
    let received = || b.wg(&["show", &b.name, "transfer"]).split_whitespace().nth(1).unwrap_or("0").parse::<u64>();
    let before = received().expect("a number");
    // Three of 32 bytes.
    assert!(until(SOON, || received().expect("a number") >= before + 96));
    let counters = a.end(Signal::SIGTERM);
    assert_eq!(count(&counters, "forwarded"), 0, "{counters}");
}

/// A flood of handshakes makes the host ask for cookies, and a peer that has one is served.
#[test]
fn a_peer_with_a_cookie_gets_through_a_flood() {
    let net = Net::new();
    let b = net.start_b(0, "");
    let a = net.start_a("10.7.0.1/24", &peer_b(""), &[]);
    let mut stranger = Tunn::new(private_key(77), PublicKey::from(&private_key(1)), None, None, 1, None);
    let mut buffer = [0; 256];
    let TunnResult::WriteToNetwork(message) = stranger.format_handshake_initiation(&mut buffer, false) else {
        panic!("no handshake");
    };
    let socket = net.hosts.host_b.enter(|| UdpSocket::bind("0.0.0.0:0")).expect("bound");
    socket.set_nonblocking(true).expect("set");
    let is_done = AtomicBool::new(false);
    let cookies = thread::scope(|scope| {
        let flood = scope.spawn(|| {
            let (mut cookies, mut answer) = (0, [0; 256]);
            while !is_done.load(Ordering::Relaxed) {
                for _ in 0..2 {
                    let _ = socket.send_to(message, ENDPOINT_A);
                    cookies += usize::from(socket.recv(&mut answer).is_ok_and(|len| (len, answer[0]) == (64, 3)));
                }
                thread::sleep(Duration::from_millis(2));
            }
            cookies
        });
        thread::sleep(Duration::from_millis(300));
        let mut log = String::new();
        // Just after the count of handshakes begins anew there are a few without a cookie.
        let is_through = until(SOON * 12, || {
            b.set("");
            b.set(&peer_a(&endpoint(ENDPOINT_A)));
            let is_reached = until(SOON * 3, || net.b_reaches_a());
            log += &b.log();
            is_reached && log.contains("Receiving cookie response")
        });
        is_done.store(true, Ordering::Relaxed);
        assert!(is_through, "{log}");
        flood.join().expect("no panic")
    });
    assert!(cookies > 100, "{cookies} cookies");
    a.end(Signal::SIGTERM);
}

/// The link between two routers carries 1300 bytes, and the hosts' own carry 1500.
#[test]
fn the_size_of_a_narrow_path_is_found() {
    let net = Net::on(TwoHosts::with_narrow_middle(1300));
    let _b = net.start_b(0, &peer_a(""));
    let a = net.start_a("10.7.0.1/24", &peer_b(&endpoint(ENDPOINT_B)), &[]);
    net.check_stream(true, Amount::Bytes(MIB));
    let counters = a.end(Signal::SIGTERM);
    assert_eq!(count(&counters, "path_mtu_lowered"), 1, "{counters}");
}

#[test]
fn ipv6_is_carried_and_may_carry() {
    if !testbed::has_ipv6() {
        return;
    }
    let net = Net::new();
    net.hosts.add_ipv6().expect("addresses");
    let b = net.start_b(0, &peer(1, "10.7.0.1/32, fd07::1", ""));
    // With DAD it is tentative until the kernel's work on addresses has run.
    run(&net.hosts.host_b, "ip", &["address", "add", "fd07::2/64", "dev", &b.name, "nodad"]);
    let endpoint = endpoint("[fd00:168::3]:51821");
    let a = net.start_a("10.7.0.1/24, fd07::1/64", &peer(2, "10.7.0.2/32, fd07::2", &endpoint), &[]);
    assert!(until(SOON, || net.a_reaches(B[0])), "{}", b.log());
    let to = "fd07::2".parse().expect("an address");
    let outcome = net.hosts.host_a.enter(|| ping_v6(to, PingV6::default())).expect("ping");
    assert!(matches!(outcome, EchoV6::Reply { .. }), "{outcome:?}");
    net.check_stream(true, Amount::Bytes(MIB));
    a.end(Signal::SIGTERM);
}

#[test]
fn it_says_what_is_wrong_with_its_file() {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_wireguard")).arg("/nowhere/wg0.conf").output();
    let output = output.expect("run");
    assert_eq!(output.status.code(), Some(1));
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(complaint.starts_with("wireguard: cannot read /nowhere/wg0.conf: "), "{complaint}");
}
