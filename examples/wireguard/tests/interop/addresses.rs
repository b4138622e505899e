//! Addresses as configurations have them: of one host, and of the whole world. And the packets that a narrow path costs.

use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use nix::sys::signal::Signal;
use testbed::TwoHosts;
use testbed::probe::{Amount, Ping, PingOutcome, ping};

use crate::net::{A, B, ENDPOINT_A, ENDPOINT_B, Net, count, is_answered, peer, run};
use crate::{endpoint, peer_a, peer_b};

const MIB: u64 = 1 << 20;
/// A host behind host B.
const BEHIND_B: Ipv4Addr = Ipv4Addr::new(192, 168, 7, 5);

/// Its peers are in no network of its own, so each needs a route of the kernel.
#[test]
fn an_interface_may_have_the_address_of_one_host() {
    let net = Net::new();
    let _b = net.start_b(0, &peer_a(&endpoint(ENDPOINT_A)));
    let a = net.start_a("10.7.0.1", &peer_b(&endpoint(ENDPOINT_B)), &[]);
    assert!(net.a_reaches(B[0]));
    assert!(net.b_reaches_a());
    net.check_stream(true, Amount::Bytes(MIB));
    a.end(Signal::SIGTERM);
}

/// The longest prefix is preferred, also as the check of sources.
#[test]
fn one_peer_may_have_all_addresses_that_no_other_has() {
    let net = Net::new();
    let [_world, _narrow] = [0, 1].map(|at| net.start_b(at, &peer_a(&endpoint(ENDPOINT_A))));
    let host = &net.hosts.host_b;
    run(host, "ip", &["address", "add", &BEHIND_B.to_string(), "dev", "lo"]);
    let peers = peer(2, "0.0.0.0/0", &endpoint(ENDPOINT_B)) + &peer(3, "10.7.0.3/32", "");
    let a = net.start_a("10.7.0.1/24", &("Table = off\n".to_owned() + &peers), &[]);
    run(&net.hosts.host_a, "ip", &["route", "add", "192.168.7.0/24", "dev", "wga"]);
    assert!(is_answered(&net.hosts.host_a, BEHIND_B));
    assert!(net.a_reaches(B[0]));
    // Device 0 has everything but the address of device 1.
    let socket = host.enter(|| UdpSocket::bind((B[1], 7000))).expect("bound");
    let listener = net.hosts.host_a.enter(|| UdpSocket::bind((A, 7))).expect("bound");
    listener.set_read_timeout(Some(Duration::from_millis(300))).expect("set");
    run(host, "ip", &["route", "add", "10.7.0.1/32", "dev", "wgb0"]);
    socket.send_to(b"hello", (A, 7)).expect("sent");
    assert!(listener.recv(&mut [0; 8]).is_err(), "the source is of another peer");
    let counters = a.end(Signal::SIGTERM);
    assert_eq!(count(&counters, "spoofed_source"), 1, "{counters}");
}

/// The first packet is lost to find the size, and the second is answered with it.
#[test]
fn a_narrow_path_costs_a_few_packets() {
    let net = Net::on(TwoHosts::with_narrow_middle(1300));
    let _b = net.start_b(0, &peer_a(""));
    let a = net.start_a("10.7.0.1/24", &peer_b(&endpoint(ENDPOINT_B)), &[]);
    let longest = Ping { count: 20, payload_len: 1392, timeout: Duration::from_millis(500), ..Ping::default() };
    let outcomes = net.hosts.host_a.enter(|| ping(B[0], longest)).expect("ping");
    let answered = outcomes.iter().filter(|outcome| matches!(outcome, PingOutcome::Reply { .. })).count();
    assert!((15..20).contains(&answered), "{outcomes:?}");
    assert!(matches!(outcomes.last(), Some(PingOutcome::Reply { .. })), "{outcomes:?}");
    let counters = a.end(Signal::SIGTERM);
    assert_eq!(count(&counters, "path_mtu_lowered"), 1, "{counters}");
}
