//! Errors of sends that Linux itself returns, each for one peer: its counter, and no other peer's.

use std::net::{Ipv4Addr, UdpSocket};

use serde_json::json;
use testbed::TwoHosts;

use crate::support::{SECOND, Tunnel, quiet_hosts};

/// The peers of host A beside host B.
const FORBIDDEN: Ipv4Addr = Ipv4Addr::new(10, 168, 0, 21);
const UNREACHABLE: Ipv4Addr = Ipv4Addr::new(10, 168, 0, 22);
const NO_ROUTE: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 23);
const NO_NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(10, 168, 0, 24);

/// Every packet to a peer that the firewall forbids (`EPERM`), that a route makes unreachable (`EHOSTUNREACH`) or that
/// has no route (`ENETUNREACH`) is counted with that peer and reason. Linux reports neither a silent neighbour nor a
/// closed port to an unconnected socket, so these cause no error of a peer. The peer between them gets all of its
/// packets.
#[test]
fn r61_fault_31_each_error_is_counted_with_its_own_peer_and_reason() {
    /// The rounds, and each peer's packets in a round. Packets to one peer's pods are consecutive, so that they share a
    /// batch.
    const ROUNDS: u32 = 10;
    let hosts = quiet_hosts();
    hosts.host_a.forbid_sending(FORBIDDEN).unwrap();
    hosts.host_a.add_unreachable_route(UNREACHABLE.into()).unwrap();
    let closed_port = format!("{}:9", TwoHosts::HOST_B);
    let peers = [
        (FORBIDDEN.to_string(), 5),
        (UNREACHABLE.to_string(), 4),
        (NO_ROUTE.to_string(), 3),
        (NO_NEIGHBOUR.to_string(), 2),
        (closed_port, 1),
    ];
    let routes = peers.iter().zip(11..).map(|((peer, _), subnet)| format!("100.96.{subnet}.0/24={peer}"));
    let args: Vec<String> = routes.flat_map(|route| ["--route".to_owned(), route]).collect();
    let mut a = Tunnel::on_a(&hosts, &args.iter().map(String::as_str).collect::<Vec<_>>());
    let mut b = Tunnel::on_b(&hosts, &[]);
    let sender = hosts.pod_a.enter(|| UdpSocket::bind((TwoHosts::POD_A, 0))).unwrap();
    let receiver = hosts.pod_b.enter(|| UdpSocket::bind((TwoHosts::POD_B, 7))).unwrap();
    receiver.set_read_timeout(Some(5 * SECOND)).unwrap();
    for round in 0..ROUNDS {
        for ((_, count), subnet) in peers.iter().zip(11..) {
            for _ in 0..*count {
                sender.send_to(&[0; 100], (Ipv4Addr::new(100, 96, subnet, 2), 9)).unwrap();
            }
            sender.send_to(&[round as u8, subnet], (TwoHosts::POD_B, 7)).unwrap();
        }
        for subnet in (11..).take(peers.len()) {
            let mut datagram = [0; 3];
            let len = receiver.recv(&mut datagram).expect("each datagram to the healthy peer");
            assert_eq!(datagram[..len], [round as u8, subnet]);
        }
    }
    let last = a.stop();
    let send_errors = json!({
        (FORBIDDEN.to_string()): 5 * ROUNDS, (UNREACHABLE.to_string()): 4 * ROUNDS, (NO_ROUTE.to_string()): 3 * ROUNDS,
    });
    assert_eq!(last["send_errors"], send_errors, "{last}");
    let mut dropped = last["encap"]["dropped"].as_object().unwrap().clone();
    dropped.retain(|_, count| *count != 0);
    assert_eq!(json!(dropped), json!({ "send_forbidden": 5 * ROUNDS, "send_unreachable": 7 * ROUNDS }), "{last}");
    assert_eq!(last["encap"]["forwarded"], (2 + 1 + peers.len() as u32) * ROUNDS, "{last}");
    assert_eq!(b.stop()["decap"]["forwarded"], peers.len() as u32 * ROUNDS);
}
