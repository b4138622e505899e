//! IPv6 inside and outside of real tunnels.

use std::net::{Ipv6Addr, SocketAddr, TcpListener, UdpSocket};

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::Ipv6RecvErr;
use serde_json::Value;
use testbed::probe::{
    Amount, EchoV6, Ping, PingOutcome, PingV6, UdpEcho, ping, ping_v6, tcp_send, tcp_sink, udp_exchange,
};
use testbed::{Namespace, TwoHosts};

use crate::support::{SECOND, Tunnel, Tunnels, dropped, wait_until};

/// The addresses of the TUN devices (V33).
const TUN_A: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x96, 1, 0, 0xffff, 0xffff, 0xffff, 0xff7f);
const TUN_B: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x96, 2, 0, 0xffff, 0xffff, 0xffff, 0xff7f);
/// An address of the overlay without an owner.
const HOLE: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x96, 0x99, 0, 0, 0, 0, 9);

/// IP families, inside or outside of the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Families {
    v4: bool,
    v6: bool,
}

const V4: Families = Families { v4: true, v6: false };
const V6: Families = Families { v4: false, v6: true };
const BOTH: Families = Families { v4: true, v6: true };

/// Returns the command lines of both hosts. Routes lead over the underlay of their own family if there is one.
fn command_lines(inner: Families, outer: Families) -> [Vec<String>; 2] {
    let host = |own: usize, other: usize| {
        let underlays = [["10.168.0.2", "10.168.0.3"], ["[fd00:168::2]", "[fd00:168::3]"]];
        let [four, six] = underlays;
        let next_hop = if outer.v4 { four[other - 1] } else { six[other - 1] };
        // With both underlays, IPv6 goes over IPv6.
        let next_hop_v6 = if outer.v6 { six[other - 1] } else { four[other - 1] };
        let mut args = Vec::new();
        if inner.v4 {
            args.extend([
                "--network=100.96.0.0/16".to_owned(),
                format!("--subnet=100.96.{own}.0/24"),
                format!("--route=100.96.{other}.0/24={next_hop}"),
            ]);
        }
        if inner.v6 {
            args.extend([
                "--network=fd00:96::/32".to_owned(),
                format!("--subnet=fd00:96:{own}::/64"),
                format!("--route=fd00:96:{other}::/64={next_hop_v6}"),
            ]);
        }
        args.extend(outer.v4.then(|| format!("--listen={}", four[own - 1])));
        args.extend(outer.v6.then(|| format!("--listen={}", six[own - 1])));
        args
    };
    [host(1, 2), host(2, 1)]
}

fn start(hosts: TwoHosts, inner: Families, outer: Families, more: &[&str]) -> Tunnels {
    let [a, b] = command_lines(inner, outer).map(|args| {
        let more = more.iter().map(|more| (*more).to_owned());
        args.into_iter().chain(more).collect::<Vec<_>>()
    });
    let start = |host: &Namespace, args: &[String]| {
        Tunnel::start_exactly(host, &args.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let (a, b) = (start(&hosts.host_a, &a), start(&hosts.host_b, &b));
    Tunnels { hosts, a, b }
}

fn dual_stack(inner: Families, outer: Families) -> Tunnels {
    let tunnels = start(TwoHosts::dual_stack().expect("two hosts"), inner, outer, &[]);
    if inner.v6 {
        tunnels.settle();
    }
    tunnels
}

impl Tunnels {
    /// Waits until the pods reach each other: a kernel looks for duplicates of its link-local addresses for a while.
    fn settle(&self) {
        for (pod, to) in [(&self.hosts.pod_a, TwoHosts::POD_B_V6), (&self.hosts.pod_b, TwoHosts::POD_A_V6)] {
            wait_until("an answer over IPv6", || {
                pod.enter(|| ping_v6(to, PingV6::default())).is_ok_and(|answer| answer == EchoV6::Reply { from: to })
            });
        }
    }

    fn ping_v6_from_a(&self, to: Ipv6Addr, settings: PingV6) -> EchoV6 {
        self.hosts.pod_a.enter(|| ping_v6(to, settings)).expect("sent")
    }

    fn tcp_to_b(&self, address: SocketAddr) {
        const BYTES: u64 = 16 << 20;
        let listener = self.hosts.pod_b.enter(|| TcpListener::bind(address)).expect("bound");
        let sink = tcp_sink(listener, 7);
        let sent = self.hosts.pod_a.enter(|| tcp_send(address, Amount::Bytes(BYTES), 7)).expect("sent");
        let received = sink.join().expect("no panic").expect("received");
        assert_eq!((sent.bytes, received.bytes), (BYTES, BYTES));
    }
}

/// Dual-stack pods, IPv4 pods alone and IPv6 pods alone, over an IPv4 underlay, an IPv6 underlay and both.
#[test]
fn each_family_crosses_each_underlay() {
    for (inner, outer) in [(BOTH, V4), (V4, V6), (V6, V6), (V6, V4), (BOTH, V6), (BOTH, BOTH)] {
        let mut tunnels = dual_stack(inner, outer);
        if inner.v4 {
            let outcomes = tunnels.hosts.pod_a.enter(|| ping(TwoHosts::POD_B, Ping::default())).expect("sent");
            assert!(matches!(outcomes[..], [PingOutcome::Reply { ttl: 60, .. }]), "{inner:?} {outer:?} {outcomes:?}");
            tunnels.tcp_to_b((TwoHosts::POD_B, 5001).into());
        }
        if inner.v6 {
            tunnels.tcp_to_b((TwoHosts::POD_B_V6, 5001).into());
        }
        let (a, b) = (tunnels.a.stop(), tunnels.b.stop());
        for event in [a, b] {
            for direction in ["encap", "decap"] {
                let forwarded = event[direction]["forwarded"].as_u64();
                assert!(forwarded > Some(100), "{inner:?} over {outer:?}: {event}");
            }
            assert_eq!(dropped(&event, "decap", "unknown_peer"), 0, "{event}");
        }
    }
}

/// V26, V27. A stream comes out of one TUN and goes into the other as GSO packets, which no kernel refuses.
#[test]
fn v26_v27_a_stream_over_ipv6_passes_as_gso_packets() {
    for outer in [V4, V6] {
        let mut tunnels = dual_stack(V6, outer);
        tunnels.tcp_to_b((TwoHosts::POD_B_V6, 5001).into());
        let (a, b) = (tunnels.a.stop(), tunnels.b.stop());
        let count = |event: &Value, name: &str| event["anomalies"][name].as_u64().expect(name);
        assert!(count(&a, "segments_made") > 1000, "{outer:?}: {a}");
        assert!(count(&b, "coalesced") > 1000, "{outer:?}: {b}");
        for event in [&a, &b] {
            assert_eq!(dropped(event, "encap", "bad_offload"), 0, "{outer:?}: {event}");
            assert_eq!(count(event, "gso_fallbacks") + count(event, "tun_fallbacks"), 0, "{outer:?}: {event}");
        }
    }
}

/// Every payload from 0 to the most of one packet over IPv4 (1472 − 48), and some that the pod's kernel fragments.
#[test]
fn ipv6_udp_of_every_size_arrives_whole() {
    let mut tunnels = dual_stack(BOTH, V4);
    let echo = tunnels.hosts.pod_b.enter(|| UdpSocket::bind((TwoHosts::POD_B_V6, 7))).expect("bound");
    let echo = UdpEcho::start(echo).expect("started");
    for pod in [&tunnels.hosts.pod_a, &tunnels.hosts.pod_b] {
        pod.set_mtu(TwoHosts::UPLINK, 1472).expect("an MTU");
    }
    let sizes: Vec<usize> = (0..=1424).chain([1425, 1472, 3000, 8000, 60_000]).collect();
    let target = SocketAddr::from((TwoHosts::POD_B_V6, 7));
    tunnels.hosts.pod_a.enter(|| udp_exchange(target, &sizes, 5 * SECOND)).expect("all of them");
    assert!(echo.stop().expect("stopped") >= sizes.len() as u64);
    tunnels.a.stop();
    tunnels.b.stop();
}

/// V15, V20: the kernel of host A, the near tunnel, the far tunnel and the kernel of host B are hops of their own.
#[test]
fn v15_v20_a_traceroute_shows_both_tunnels() {
    for outer in [V4, V6] {
        let tunnels = dual_stack(BOTH, outer);
        let hop = |hop_limit| {
            let settings = PingV6 { hop_limit, timeout: 2 * SECOND, ..PingV6::default() };
            tunnels.ping_v6_from_a(TwoHosts::POD_B_V6, settings)
        };
        let expired = |from| EchoV6::Error { from, kind: 3, code: 0, mtu: 0 };
        assert_eq!(hop(1), expired(TwoHosts::GATEWAY_A_V6));
        assert_eq!(hop(2), expired(TUN_A), "the near tunnel");
        assert_eq!(hop(3), expired(TUN_B), "the far tunnel");
        assert!(matches!(hop(4), EchoV6::Error { kind: 3, code: 0, .. }), "the kernel of host B");
        assert_eq!(hop(5), EchoV6::Reply { from: TwoHosts::POD_B_V6 });
    }
}

/// V14: an address without a route is answered, and a UDP socket hears of it.
#[test]
fn v14_no_route_is_reported_to_the_sender() {
    let mut tunnels = dual_stack(BOTH, V4);
    let expected = EchoV6::Error { from: TUN_A, kind: 1, code: 0, mtu: 0 };
    assert_eq!(tunnels.ping_v6_from_a(HOLE, PingV6::default()), expected);
    tunnels.hosts.pod_a.enter(|| {
        let socket = UdpSocket::bind((TwoHosts::POD_A_V6, 0)).expect("bound");
        setsockopt(&socket, Ipv6RecvErr, &true).expect("a setting");
        socket.connect((HOLE, 9)).expect("connected");
        wait_until("an error of the socket", || {
            let error = socket.send(b"hello").err().and_then(|error| error.raw_os_error());
            error == Some(nix::libc::ENETUNREACH)
        });
    });
    let last = tunnels.a.stop();
    assert!(last["encap"]["answered"].as_u64() >= Some(2), "{last}");
}

/// V23, V25: packets that are longer than a narrow path are answered with the inner MTU, and then arrive.
#[test]
fn v23_v25_a_narrow_middle_is_learned_by_the_sender() {
    const MIDDLE: u32 = 1400;
    for (outer, inner_mtu) in [(V4, MIDDLE - 28), (V6, MIDDLE - 48)] {
        let hosts = TwoHosts::with_narrow_middle(MIDDLE).expect("two hosts and two routers");
        hosts.add_ipv6().expect("IPv6");
        let mut tunnels = start(hosts, BOTH, outer, &[]);
        tunnels.settle();
        let long = PingV6 { payload_len: 1400, timeout: SECOND / 2, ..PingV6::default() };
        let mut reported = None;
        wait_until("an error with the MTU", || {
            if let EchoV6::Error { kind: 2, mtu, from, .. } = tunnels.ping_v6_from_a(TwoHosts::POD_B_V6, long) {
                reported = Some((from, mtu));
            }
            reported.is_some()
        });
        assert_eq!(reported, Some((TUN_A, inner_mtu)), "{outer:?}");
        tunnels.tcp_to_b((TwoHosts::POD_B_V6, 5001).into());
        let last = tunnels.a.stop();
        assert_eq!(last["anomalies"]["fragments_made"].as_u64().unwrap_or(0), 0, "IPv6 is never fragmented: {last}");
        tunnels.b.stop();
    }
}

/// A host that carries IPv4 only has a silent device, and the kernel's own packets on another are no anomaly (V9, V33).
#[test]
fn v9_v33_the_kernel_s_own_packets_are_counted_by_themselves() {
    // A host that forwards IPv6 reports its membership of the routers' groups on every device.
    let mut plain = start(TwoHosts::new().expect("two hosts"), V4, V4, &[]);
    std::thread::sleep(SECOND);
    let last = plain.a.stop();
    assert_eq!(last["encap"]["in"], 0, "nothing came from the device: {last}");
    let mut tunnels = dual_stack(BOTH, V4);
    let last = tunnels.a.stop();
    let reasons: Vec<&str> =
        last["encap"]["dropped"].as_object().expect("an object").keys().map(String::as_str).collect();
    assert!(reasons.iter().all(|reason| *reason == "ipv6_multicast"), "{last}");
}

/// Routes change while packets flow. A route for one family does not change the other.
#[test]
fn live_changes_of_ipv6_routes() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("routes");
    let write = |text: &str| std::fs::write(&file, text).expect("written");
    let route = "fd00:96:2::/64 10.168.0.3\n";
    write(route);
    let hosts = TwoHosts::dual_stack().expect("two hosts");
    let [_, b] = command_lines(BOTH, V4);
    let b = Tunnel::start_exactly(&hosts.host_b, &b.iter().map(String::as_str).collect::<Vec<_>>());
    let a = Tunnel::start_exactly(
        &hosts.host_a,
        &[
            "--network=100.96.0.0/16",
            "--network=fd00:96::/32",
            "--subnet=100.96.1.0/24",
            "--subnet=fd00:96:1::/64",
            "--listen=10.168.0.2",
            "--route=100.96.2.0/24=10.168.0.3",
            "--routes-file",
            file.to_str().expect("a path"),
        ],
    );
    let mut tunnels = Tunnels { hosts, a, b };
    tunnels.settle();
    for (text, kind) in [("# none\n", Some(1)), (route, None)] {
        write(text);
        tunnels.a.child.signal(nix::sys::signal::Signal::SIGHUP).expect("a running tunnel");
        wait_until("the routes of the file", || match tunnels.ping_v6_from_a(TwoHosts::POD_B_V6, PingV6::default()) {
            EchoV6::Reply { .. } => kind.is_none(),
            EchoV6::Error { kind: reported, .. } => kind == Some(reported),
            EchoV6::Silence | EchoV6::TooLong => false,
        });
        let outcomes = tunnels.hosts.pod_a.enter(|| ping(TwoHosts::POD_B, Ping::default())).expect("sent");
        assert!(matches!(outcomes[..], [PingOutcome::Reply { .. }]), "IPv4 is not affected: {outcomes:?}");
    }
    tunnels.a.stop();
    tunnels.b.stop();
}
