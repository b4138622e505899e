//! Peers behind NAT: they are named once, and `--peer-check` decides whether their packets are accepted.

use std::net::{Ipv4Addr, UdpSocket};

use etherparse::PacketBuilder;
use testbed::TwoHosts;

use crate::support::{SECOND, Tunnel, dropped, wait_until};

const ARGS: [&str; 8] =
    ["--subnet", "100.96.1.0/24", "--listen", "10.168.0.2", "--route", "100.96.2.0/24=10.168.0.3", "--stats", "0.05"];
/// The NAT of host B.
const NAT: Ipv4Addr = Ipv4Addr::new(10, 168, 0, 33);

/// Returns a datagram from pod B to a port of pod A.
fn packet() -> Vec<u8> {
    let builder = PacketBuilder::ipv4(TwoHosts::POD_B.octets(), TwoHosts::POD_A.octets(), 64).udp(4000, 7);
    let mut packet = Vec::new();
    builder.write(&mut packet, b"question").unwrap();
    packet
}

/// Returns whether pod A gets a datagram of pod B from an address and port, under a setting (R68).
fn arrives(hosts: &TwoHosts, more: &[&str], from: (Ipv4Addr, u16)) -> (bool, Tunnel) {
    let tunnel = Tunnel::start(&hosts.host_a, &[&ARGS, more].concat());
    let pod = hosts.pod_a.enter(|| UdpSocket::bind((TwoHosts::POD_A, 7))).unwrap();
    pod.set_read_timeout(Some(SECOND / 2)).unwrap();
    let sender = hosts.host_b.enter(|| UdpSocket::bind(from)).unwrap();
    for _ in 0..5 {
        sender.send_to(&packet(), (TwoHosts::HOST_A, 8285)).unwrap();
    }
    (pod.recv(&mut [0; 100]).is_ok(), tunnel)
}

fn hosts() -> TwoHosts {
    let hosts = TwoHosts::new().unwrap();
    hosts.host_b.add_address("eth0", format!("{NAT}/24").parse().unwrap()).unwrap();
    hosts
}

/// R68, and R64 as its default.
#[test]
fn r68_the_peer_check_decides_which_senders_are_accepted() {
    let hosts = hosts();
    let (peer, other_port, behind_nat) = ((TwoHosts::HOST_B, 8285), (TwoHosts::HOST_B, 40_000), (NAT, 40_000));
    for (check, expected) in [
        (&[][..], [true, true, false]),
        (&["--peer-check", "address"], [true, true, false]),
        (&["--peer-check", "address-port"], [true, false, false]),
        (&["--peer-check", "off"], [true, true, true]),
    ] {
        for (from, expected) in [peer, other_port, behind_nat].into_iter().zip(expected) {
            let (arrived, mut tunnel) = arrives(&hosts, check, from);
            let last = tunnel.stop();
            assert_eq!(
                (arrived, dropped(&last, "decap", "unknown_peer")),
                (expected, u64::from(!expected) * 5),
                "{check:?} {from:?}"
            );
        }
    }
}

/// A peer behind NAT is named once, with both addresses and the setting that helps, also by several queues.
#[test]
fn r64_a_peer_behind_nat_is_named_once() {
    let hosts = hosts();
    for (check, from, help) in [
        (&[][..], (NAT, 40_000), "--peer-check off"),
        (&["--queues", "4"], (NAT, 40_000), "--peer-check off"),
        (&["--peer-check", "address-port"], (TwoHosts::HOST_B, 40_000), "--peer-check address"),
    ] {
        let (arrived, mut tunnel) = arrives(&hosts, check, from);
        assert!(!arrived);
        // Other ports reach other queues.
        for port in 40_001..40_020 {
            let sender = hosts.host_b.enter(|| UdpSocket::bind((from.0, port))).unwrap();
            sender.send_to(&packet(), (TwoHosts::HOST_A, 8285)).unwrap();
        }
        let sender = hosts.host_b.enter(|| UdpSocket::bind((from.0, 0))).unwrap();
        // Of no stranger: bytes that are not a packet, and an inner source without a route.
        sender.send_to(&[0x45; 60], (TwoHosts::HOST_A, 8285)).unwrap();
        wait_until("all of them dropped", || dropped(&tunnel.next_event(), "decap", "unknown_peer") == 25);
        tunnel.says(&format!("datagrams from {}:", from.0));
        tunnel.stop();
        let said = tunnel.child.stderr();
        let named: Vec<_> = said.lines().filter(|line| line.starts_with("datagrams from ")).collect();
        let whole = [&format!("{} belongs to 10.168.0.3:8285", TwoHosts::POD_B), help];
        assert!(named.len() == 1 && whole.iter().all(|part| named[0].contains(*part)), "{check:?}: {said}");
    }
}
