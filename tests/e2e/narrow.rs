//! A path with a narrow link between two routers: R50 to R52 and fault 29 end to end. The receiving kernel reassembles
//! the fragments.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::UdpGsoSegment;
use serde_json::Value;
use socket2::SockRef;
use testbed::probe::{
    Amount, Fragmentation, Ping, PingOutcome, UdpEcho, path_mtu, ping, tcp_send, tcp_sink, udp_exchange,
};
use testbed::{Namespace, TwoHosts};

use crate::support::{SECOND, Tunnel, Tunnels, dropped, wait_until};

/// The MTU of the link between the two routers, which leaves 1272 bytes to an inner packet.
const MIDDLE: u32 = 1300;
const INNER: u32 = MIDDLE - 28;

/// An address of the overlay without an owner.
const HOLE: Ipv4Addr = Ipv4Addr::new(100, 96, 9, 9);

impl Tunnels {
    /// Returns two routers between the hosts, and pods and devices with an MTU that neither the hosts nor the routers
    /// have.
    fn over_a_narrow_middle(mtu: u32, more: &[&str]) -> Self {
        let hosts = TwoHosts::with_narrow_middle(MIDDLE).expect("two hosts and two routers");
        for (namespace, link) in [
            (&hosts.host_a, TwoHosts::POD_LINK),
            (&hosts.pod_a, TwoHosts::UPLINK),
            (&hosts.host_b, TwoHosts::POD_LINK),
            (&hosts.pod_b, TwoHosts::UPLINK),
        ] {
            namespace.set_mtu(link, mtu).expect("an MTU");
        }
        let mtu = mtu.to_string();
        let more = [&["--mtu", &mtu], more].concat();
        let a = Tunnel::on_a(&hosts, &more);
        let b = Tunnel::on_b(&hosts, &more);
        Self { hosts, a, b }
    }

    /// Waits until both tunnels know the path MTU, which loses the datagrams that find it.
    fn find_the_narrow_middle(&self) {
        for (pod, to) in [(&self.hosts.pod_a, TwoHosts::POD_B), (&self.hosts.pod_b, TwoHosts::POD_A)] {
            let long = || Ping { payload_len: 1400, timeout: SECOND / 2, ..Ping::default() };
            wait_until("an answer to what is longer", || {
                let outcome = pod.enter(|| ping(to, long())).expect("a ping");
                matches!(outcome[..], [PingOutcome::Reply { .. }])
            });
        }
    }
}

/// Sockets of this namespace no longer set DF (`ip_no_pmtu_disc` in ip(7)).
fn without_df(namespace: &Namespace) {
    namespace.sysctl("net/ipv4/ip_no_pmtu_disc", "1").expect("a setting");
}

fn anomaly(event: &Value, name: &str) -> u64 {
    event["anomalies"][name].as_u64().unwrap_or_else(|| panic!("{name} in {event}"))
}

/// Asserts that only packets that had to be dropped were, besides the packet that found the path MTU.
fn assert_nothing_lost(event: &Value) {
    let drops = event["encap"]["dropped"].as_object().expect("an object");
    let is_known =
        |(reason, count): (&String, &Value)| reason == "ipv6_not_carried" || reason == "path_too_narrow" && *count == 1;
    assert!(drops.iter().all(is_known), "{event}");
}

fn tcp(hosts: &TwoHosts, bytes: u64) {
    let target = SocketAddr::from((TwoHosts::POD_B, 5001));
    let listener = hosts.pod_b.enter(|| TcpListener::bind(target)).expect("a listener");
    let sink = tcp_sink(listener, 9);
    let sent = hosts.pod_a.enter(|| tcp_send(target, Amount::Bytes(bytes), 9)).expect("sent");
    let received = sink.join().expect("no panic").expect("received");
    assert_eq!((sent.bytes, received.bytes), (bytes, bytes));
}

/// R50: TCP sets DF, gets the path MTU, and applies it. Nothing is fragmented.
#[test]
fn r50_tcp_finds_the_size_of_a_path() {
    for more in [&[][..], &["--no-offload"]] {
        let mut tunnels = Tunnels::over_a_narrow_middle(1472, more);
        tcp(&tunnels.hosts, 4 << 20);
        let known = tunnels.hosts.pod_a.enter(|| path_mtu(TwoHosts::POD_B)).expect("a path");
        assert_eq!(known, INNER);
        let last = tunnels.a.stop();
        assert_eq!((anomaly(&last, "path_mtu_lowered"), anomaly(&last, "fragments_made")), (1, 0), "{last}");
        assert!(last["encap"]["answered"].as_u64() >= Some(1), "{last}");
        assert_eq!(anomaly(&last, "gso_fallbacks"), 0, "the path MTU is the reason, not the GSO batches: {last}");
        tunnels.b.stop();
    }
}

/// R48: a pod that sends 1,000 packets a second without a route still learns the path MTU, and so does its TCP.
#[test]
fn r48_fragmentation_needed_arrives_beside_unroutable_packets() {
    let mut tunnels = Tunnels::over_a_narrow_middle(1472, &[]);
    let hosts = &tunnels.hosts;
    tunnels.find_the_narrow_middle();
    hosts.pod_a.forget_path_mtus().expect("nothing known");
    let stop = AtomicBool::new(false);
    let socket = hosts.pod_a.enter(|| UdpSocket::bind((TwoHosts::POD_A, 0))).expect("a socket");
    std::thread::scope(|scope| {
        let flood = scope.spawn(|| {
            let mut sent = 0u64;
            while !stop.load(Ordering::Relaxed) {
                sent += u64::from(socket.send_to(b"nobody", (HOLE, 9)).is_ok());
                std::thread::sleep(Duration::from_millis(1));
            }
            sent
        });
        // Until the source's limit of ICMP errors is exhausted.
        std::thread::sleep(SECOND);
        let long = || Ping { payload_len: 1400, fragmentation: Fragmentation::Forbidden, ..Ping::default() };
        let outcome = hosts.pod_a.enter(|| ping(TwoHosts::POD_B, long())).expect("a ping");
        let is_told = |outcome: &PingOutcome| matches!(outcome, PingOutcome::Error { kind: 3, code: 4, mtu, .. } if u32::from(*mtu) == INNER);
        assert!(outcome.iter().all(is_told), "{outcome:?}");
        hosts.pod_a.forget_path_mtus().expect("nothing known");
        tcp(hosts, 4 << 20);
        stop.store(true, Ordering::Relaxed);
        assert!(flood.join().expect("no panic") > 100, "there was a flood");
    });
    let last = tunnels.a.stop();
    assert!(anomaly(&last, "icmp_limited") > 0 && dropped(&last, "encap", "no_route") > 0, "{last}");
    tunnels.b.stop();
}

/// R51: UDP without DF of every size around the path MTU arrives completely, and so do the answers.
#[test]
fn r51_udp_without_df_arrives_whole() {
    for (mtu, more) in [(9000, &[][..]), (9000, &["--no-offload"]), (1472, &[])] {
        let mut tunnels = Tunnels::over_a_narrow_middle(mtu, more);
        let hosts = &tunnels.hosts;
        without_df(&hosts.pod_a);
        without_df(&hosts.pod_b);
        let echo = hosts.pod_b.enter(|| UdpSocket::bind((TwoHosts::POD_B, 7))).expect("a socket");
        let echo = UdpEcho::start(echo).expect("an echo");
        tunnels.find_the_narrow_middle();
        let edges = (1..7).flat_map(|count| (0..17).map(move |off| count * 1248 - 16 + off));
        let sizes: Vec<_> = (1400..=9000).step_by(89).chain(edges).chain([20_000, 65_507]).collect();
        let target = SocketAddr::from((TwoHosts::POD_B, 7));
        hosts.pod_a.enter(|| udp_exchange(target, &sizes, 5 * SECOND)).expect("every size");
        assert!(echo.stop().expect("an echo") >= sizes.len() as u64);
        for last in [tunnels.a.stop(), tunnels.b.stop()] {
            assert_nothing_lost(&last);
            assert!(anomaly(&last, "fragments_made") > sizes.len() as u64, "{last}");
            assert_eq!(anomaly(&last, "path_mtu_lowered"), 1, "{last}");
        }
    }
}

/// R51: once the path MTU is known, a packet above the route's MTU is fragmented to the path MTU at once.
#[test]
fn r51_a_known_path_takes_the_fewest_fragments() {
    let hosts = TwoHosts::with_narrow_middle(MIDDLE).expect("two hosts and two routers");
    let mut tunnel = Tunnel::on_a(&hosts, &["--mtu", "9000"]);
    for (namespace, link) in [(&hosts.host_a, TwoHosts::POD_LINK), (&hosts.pod_a, TwoHosts::UPLINK)] {
        namespace.set_mtu(link, 9000).expect("an MTU");
    }
    without_df(&hosts.pod_a);
    let wire = hosts.host_b.enter(|| UdpSocket::bind((TwoHosts::HOST_B, 8285))).expect("a socket");
    let pod = hosts.pod_a.enter(|| UdpSocket::bind((TwoHosts::POD_A, 0))).expect("a socket");
    let lengths_of = |len: usize, patience| {
        wire.set_read_timeout(Some(patience)).expect("a timeout");
        pod.send_to(&vec![7; len], (TwoHosts::POD_B, 9)).expect("sent");
        let (mut buffer, mut lengths) = ([0; 65_536], Vec::new());
        let (mut behind_headers, all) = (0, 8 + len);
        while behind_headers < all
            && let Ok(len) = wire.recv(&mut buffer)
        {
            // The kernel's own packets in a new device do not count.
            if buffer[12..16] == TwoHosts::POD_A.octets() {
                lengths.push(len);
                behind_headers += len - 20;
            }
        }
        lengths
    };
    wait_until("the path to be known", || lengths_of(1400, SECOND / 2) == [20 + 1248, 20 + 1408 - 1248]);
    // The longest fragment in units of 8 bytes, seven times, and the rest of 8980.
    assert_eq!(lengths_of(9000 - 28, 5 * SECOND), [1268, 1268, 1268, 1268, 1268, 1268, 1268, 20 + 244]);
    assert_nothing_lost(&tunnel.stop());
}

/// R51 and R50 together: the segments of a UDP GSO packet without DF are longer than the path MTU. Each arrives
/// completely.
#[test]
fn r51_a_udp_gso_packet_arrives_whole() {
    const SEGMENT: usize = 1400;
    let mut tunnels = Tunnels::over_a_narrow_middle(1472, &[]);
    let hosts = &tunnels.hosts;
    without_df(&hosts.pod_a);
    tunnels.find_the_narrow_middle();
    let receiver = hosts.pod_b.enter(|| UdpSocket::bind((TwoHosts::POD_B, 7))).expect("a socket");
    SockRef::from(&receiver).set_recv_buffer_size(4 << 20).expect("room");
    receiver.set_read_timeout(Some(5 * SECOND)).expect("a timeout");
    let sender = hosts.pod_a.enter(|| UdpSocket::bind((TwoHosts::POD_A, 0))).expect("a socket");
    setsockopt(&sender, UdpGsoSegment, &(SEGMENT as i32)).expect("GSO packets");
    let contents: Vec<u8> = (0..SEGMENT * 40 + 77).map(|at| (at % 251) as u8).collect();
    for round in 0..3 {
        assert_eq!(sender.send_to(&contents, (TwoHosts::POD_B, 7)).expect("sent"), contents.len());
        let mut buffer = [0; 65_536];
        for (index, expected) in contents.chunks(SEGMENT).enumerate() {
            let len = receiver.recv(&mut buffer).expect("a datagram");
            assert_eq!(&buffer[..len], expected, "datagram {index} of round {round}");
        }
    }
    let last = tunnels.a.stop();
    assert_nothing_lost(&last);
    assert!(anomaly(&last, "fragments_made") >= 3 * 80, "{last}");
    let has_uso = tunnels.a.ready["offload"].as_array().expect("names").iter().any(|name| name == "tun-uso");
    assert_eq!(anomaly(&last, "segments_made") >= 3 * 41, has_uso, "{last}");
    tunnels.b.stop();
}

/// The same with TCP without DF, which gets no ICMP error and needs none.
#[test]
fn r51_tcp_without_df_goes_in_fragments() {
    let mut tunnels = Tunnels::over_a_narrow_middle(1472, &[]);
    // The other end as well, or it would learn the path MTU and request shorter segments.
    without_df(&tunnels.hosts.pod_a);
    without_df(&tunnels.hosts.pod_b);
    tunnels.find_the_narrow_middle();
    tcp(&tunnels.hosts, 4 << 20);
    let last = tunnels.a.stop();
    // Two fragments for each of at least this many segments.
    assert!(anomaly(&last, "fragments_made") > 2 * (4 << 20) / 1472, "{last}");
    assert_eq!(last["encap"]["answered"], 0, "{last}");
    assert_eq!(dropped(&last, "encap", "not_fragmented"), 0, "{last}");
    tunnels.b.stop();
}

/// R54: the first router may be a kernel that receives whole GSO batches and quotes the length of a batch. The path MTU
/// is found although no datagram is sent by itself.
#[test]
fn r54_a_router_that_quotes_a_whole_gso_batch_is_found() {
    for more in [&[][..], &["--source-ports", "4"]] {
        let mut tunnels = Tunnels::over_a_narrow_middle(1472, more);
        let hosts = &tunnels.hosts;
        let receiver = hosts.pod_b.enter(|| UdpSocket::bind((TwoHosts::POD_B, 7))).expect("a socket");
        receiver.set_read_timeout(Some(SECOND / 20)).expect("a timeout");
        let sender = hosts.pod_a.enter(|| UdpSocket::bind((TwoHosts::POD_A, 0))).expect("a socket");
        setsockopt(&sender, UdpGsoSegment, &1400).expect("GSO packets");
        wait_until("a datagram to arrive in fragments", || {
            sender.send_to(&[7; 20 * 1400], (TwoHosts::POD_B, 7)).expect("sent");
            receiver.recv(&mut [0; 2048]).is_ok()
        });
        let last = tunnels.a.stop();
        assert_eq!(anomaly(&last, "path_mtu_lowered"), 1, "{last}");
        tunnels.b.stop();
    }
}
