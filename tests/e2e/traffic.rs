//! Typical traffic through a tunnel.

use std::net::{SocketAddr, TcpListener, UdpSocket};

use testbed::TwoHosts;
use testbed::probe::{Amount, Ping, PingOutcome, UdpEcho, ping, tcp_send, tcp_sink, udp_exchange};

use crate::support::{SECOND, Tunnels, wait_until};

#[test]
fn ping_crosses_four_hops_each_way() {
    let mut tunnels = Tunnels::start();
    let outcomes = tunnels.hosts.pod_a.enter(|| ping(TwoHosts::POD_B, Ping { count: 3, ..Ping::default() })).unwrap();
    for outcome in &outcomes {
        // Kernel, tunnel, tunnel and kernel decrement 64 to 60, as behind flannel.
        assert!(matches!(outcome, PingOutcome::Reply { from, ttl: 60, .. } if *from == TwoHosts::POD_B), "{outcome:?}");
    }
    let (a, b) = (tunnels.a.stop(), tunnels.b.stop());
    assert_eq!(outcomes.len(), 3);
    for event in [a, b] {
        assert!(event["encap"]["forwarded"].as_u64() >= Some(3), "{event}");
        assert!(event["decap"]["forwarded"].as_u64() >= Some(3), "{event}");
    }
}

/// The other TTL policies as a pod sees them: the tunnel as one hop, and as no hop.
#[test]
fn ttl_policies_show_in_what_arrives() {
    for (policy, left) in [("ingress", 61), ("preserve", 62)] {
        let tunnels = Tunnels::with(&["--ttl", policy], &["--ttl", policy]);
        let outcome = tunnels.hosts.pod_a.enter(|| ping(TwoHosts::POD_B, Ping::default())).unwrap();
        assert!(matches!(outcome[..], [PingOutcome::Reply { ttl, .. }] if ttl == left), "{policy}: {outcome:?}");
    }
}

#[test]
fn tcp_arrives_whole() {
    const BYTES: u64 = 32 << 20;
    let mut tunnels = Tunnels::start();
    let listener = tunnels.hosts.pod_b.enter(|| TcpListener::bind((TwoHosts::POD_B, 5001))).unwrap();
    let sink = tcp_sink(listener, 7);
    let target = SocketAddr::from((TwoHosts::POD_B, 5001));
    let sent = tunnels.hosts.pod_a.enter(|| tcp_send(target, Amount::Bytes(BYTES), 7)).unwrap();
    let received = sink.join().unwrap().unwrap();
    assert_eq!((sent.bytes, received.bytes), (BYTES, BYTES));
    tunnels.a.stop();
    tunnels.b.stop();
}

/// Every payload from 0 to the most of one packet (1472 − 28), and some that the pod's kernel fragments.
#[test]
fn udp_of_every_size_arrives_whole() {
    let mut tunnels = Tunnels::start();
    let echo = tunnels.hosts.pod_b.enter(|| UdpSocket::bind((TwoHosts::POD_B, 7))).unwrap();
    let echo = UdpEcho::start(echo).unwrap();
    // The pods' kernels fragment to their own MTU, which is the TUN's.
    for (pod, link) in [(&tunnels.hosts.pod_a, TwoHosts::UPLINK), (&tunnels.hosts.pod_b, TwoHosts::UPLINK)] {
        pod.set_mtu(link, 1472).unwrap();
    }
    let sizes: Vec<usize> = (0..=1444).chain([1445, 1472, 3000, 8000, 60_000]).collect();
    let target = SocketAddr::from((TwoHosts::POD_B, 7));
    tunnels.hosts.pod_a.enter(|| udp_exchange(target, &sizes, 5 * SECOND)).unwrap();
    assert!(echo.stop().unwrap() >= sizes.len() as u64);
    tunnels.a.stop();
    tunnels.b.stop();
}

/// Fault 38: the device's MTU goes up and down while the tunnel runs, and nothing is cut.
#[test]
fn fault_38_an_mtu_that_changes_while_running_cuts_nothing() {
    let mut tunnels = Tunnels::start();
    let hosts = &tunnels.hosts;
    let echo = hosts.pod_b.enter(|| UdpSocket::bind((TwoHosts::POD_B, 7))).unwrap();
    let _echo = UdpEcho::start(echo).unwrap();
    let target = SocketAddr::from((TwoHosts::POD_B, 7));
    for mtu in [1300, 1472, 1000, 1472] {
        let ends = [(&hosts.host_a, &tunnels.a), (&hosts.host_b, &tunnels.b)];
        for (host, tunnel) in ends {
            host.set_mtu(tunnel.tun(), mtu).unwrap();
        }
        // Until a tunnel knows the larger MTU, it refuses longer packets.
        for (_, tunnel) in ends {
            let expected = serde_json::json!({ "event": "mtu", "limit": mtu, "tun": mtu, "underlay": 1500 });
            wait_until("the tunnel to notice", || tunnel.next_event() == expected);
        }
        // The pods' MTUs follow, so that their kernels fragment longer packets and learn no path MTU.
        for pod in [&hosts.pod_a, &hosts.pod_b] {
            pod.set_mtu(TwoHosts::UPLINK, mtu).unwrap();
        }
        let longest = mtu as usize - 28;
        hosts.pod_a.enter(|| udp_exchange(target, &[1, longest - 1, longest, longest + 1, 5000], 5 * SECOND)).unwrap();
    }
    tunnels.a.stop();
    tunnels.b.stop();
}

/// An idle tunnel does not wake up.
#[test]
fn an_idle_tunnel_does_not_wake() {
    let tunnels = Tunnels::start();
    let reaches = || {
        let outcome =
            tunnels.hosts.pod_a.enter(|| ping(TwoHosts::POD_B, Ping { count: 3, ..Ping::default() })).unwrap();
        outcome.iter().any(|outcome| matches!(outcome, PingOutcome::Reply { .. }))
    };
    assert!(reaches());
    // The kernel's own packets in a new device (router solicitations) come first.
    let wake_ups = |_| {
        let before = tunnels.a.child.context_switches().unwrap();
        std::thread::sleep(2 * SECOND);
        tunnels.a.child.context_switches().unwrap() - before
    };
    assert!((0..10).map(wake_ups).any(|count| count == 0), "never two seconds without a wake-up");
    assert!(reaches(), "idle, and not dead");
}
