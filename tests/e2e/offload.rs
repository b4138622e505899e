//! GSO packets, GSO batches and queues: the same packets arrive with and without them.

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;

use etherparse::{IpNumber, Ipv4Slice, PacketBuilder};
use loden::offload::VnetHeader;
use loden::sys::{RecvError, Tun, TunConfig, TunOffload, UdpConfig, UdpTransport};
use loden::wire::Ecn;
use serde_json::Value;
use socket2::SockRef;
use testbed::probe::{Amount, UdpEcho, tcp_send, tcp_sink, udp_exchange};
use testbed::{Namespace, TwoHosts};

use crate::support::{SECOND, Tunnel, Tunnels, dropped, run, wait_until};

/// Sends through both tunnels in both directions, and checks every byte.
pub(crate) fn tcp_both_ways(hosts: &TwoHosts, bytes: u64, streams: u64) {
    let ends = [(&hosts.pod_a, &hosts.pod_b, TwoHosts::POD_B), (&hosts.pod_b, &hosts.pod_a, TwoHosts::POD_A)];
    std::thread::scope(|scope| {
        for (from, to, address) in ends {
            for stream in 0..streams {
                let target = SocketAddr::from((address, 5001 + stream as u16));
                let listener = to.enter(|| TcpListener::bind(target)).expect("a listener");
                let sink = tcp_sink(listener, stream);
                scope.spawn(move || {
                    let sent = from.enter(|| tcp_send(target, Amount::Bytes(bytes), stream)).expect("sent");
                    let received = sink.join().expect("no panic").expect("received");
                    assert_eq!((sent.bytes, received.bytes), (bytes, bytes));
                });
            }
        }
    });
}

fn anomaly(event: &Value, name: &str) -> u64 {
    event["anomalies"][name].as_u64().unwrap_or_else(|| panic!("{name} in {event}"))
}

/// Every offload by itself, and tunnels with offloads at one end only: everything arrives, and every packet is counted
/// once.
#[test]
fn tcp_and_udp_arrive_whole_with_every_switch() {
    let all = ["tun-tso", "tun-uso", "udp-gso", "udp-gro"];
    let but = |left_out: &str| all.into_iter().filter(|name| *name != left_out).collect::<Vec<_>>().join(",");
    let without = all.map(but);
    let mut cases: Vec<(Vec<&str>, Vec<&str>)> =
        without.iter().map(|list| (vec!["--offload", list.as_str()], vec![])).collect();
    cases.extend([(vec![], vec![]), (vec!["--no-offload"], vec![]), (vec!["--no-offload"], vec!["--no-offload"])]);
    for (a, b) in cases {
        let mut tunnels = Tunnels::with(&a, &b);
        tcp_both_ways(&tunnels.hosts, 4 << 20, 2);
        let echo = tunnels.hosts.pod_b.enter(|| UdpSocket::bind((TwoHosts::POD_B, 7))).expect("a socket");
        let echo = UdpEcho::start(echo).expect("an echo");
        let sizes: Vec<_> = (0..1400).step_by(7).collect();
        let target = SocketAddr::from((TwoHosts::POD_B, 7));
        tunnels.hosts.pod_a.enter(|| udp_exchange(target, &sizes, 5 * SECOND)).expect("every size");
        echo.stop().expect("an echo");
        let (last_a, last_b) = (tunnels.a.stop(), tunnels.b.stop());
        for last in [&last_a, &last_b] {
            assert_eq!(dropped(last, "encap", "bad_offload"), 0, "{a:?} {b:?}: {last}");
            assert_eq!(anomaly(last, "gso_fallbacks") + anomaly(last, "tun_fallbacks"), 0, "{a:?} {b:?}: {last}");
        }
        let tso = |args: &[&str]| args.is_empty() || args.last().is_some_and(|list| list.contains("tun-tso"));
        assert_eq!(anomaly(&last_a, "segments_made") > 0, tso(&a), "{a:?}: {last_a}");
        assert_eq!(anomaly(&last_b, "segments_made") > 0, tso(&b), "{b:?}: {last_b}");
    }
}

/// The source of the test's own GSO packets: a second device on host A.
const INJECTOR: Ipv4Addr = Ipv4Addr::new(100, 96, 1, 77);

struct Injector {
    tun: Tun,
}

impl Injector {
    fn on(host: &Namespace) -> Self {
        let config = TunConfig::new("inject0").with_offload(TunOffload::ALL);
        let tun = host.enter(|| Tun::open(&config)).expect("a TUN device");
        host.set_up("inject0").expect("up");
        host.set_mtu("inject0", 1500).expect("an MTU");
        host.add_route(INJECTOR.into(), None, "inject0").expect("a route");
        Self { tun }
    }

    /// Returns a TCP GSO packet as a kernel writes it: with a partial checksum.
    fn tcp(&self, id: u16, sequence: u32, segment: u16, payload: &[u8], fin: bool) {
        let builder = PacketBuilder::ip(ip(id, 64)).tcp(4000, 80, sequence, 500);
        let builder = builder.ack(77).psh();
        let builder = if fin { builder.fin() } else { builder };
        self.send(builder.size(payload.len()), |out| builder.write(out, payload).expect("a packet"), 1, segment, 16);
    }

    fn udp(&self, id: u16, segment: u16, payload: &[u8]) {
        if usize::from(segment) < payload.len() && !self.tun.offload().uso {
            println!("skipped: this kernel's TUN devices take no UDP GSO packets (Linux 6.2 does)");
            return;
        }
        let builder = PacketBuilder::ip(ip(id, 64)).udp(4000, 53);
        self.send(builder.size(payload.len()), |out| builder.write(out, payload).expect("a packet"), 5, segment, 6);
    }

    fn send(&self, size: usize, write: impl FnOnce(&mut Vec<u8>), gso_type: u8, segment: u16, csum_offset: u16) {
        let mut packet = Vec::with_capacity(size);
        write(&mut packet);
        let at = 20 + usize::from(csum_offset);
        let pseudo = pseudo_sum(&packet);
        packet[at..at + 2].copy_from_slice(&pseudo.to_be_bytes());
        let gso = usize::from(segment) < packet.len() - 20;
        let header = VnetHeader {
            flags: 1,
            gso_type: if gso { gso_type } else { 0 },
            hdr_len: if gso_type == 1 { 40 } else { 28 },
            gso_size: if gso { segment } else { 0 },
            csum_start: 20,
            csum_offset,
        };
        self.tun.send_with(&header, &packet).expect("the kernel takes it");
    }
}

fn ip(id: u16, ttl: u8) -> etherparse::IpHeaders {
    let mut header =
        etherparse::Ipv4Header::new(0, ttl, IpNumber::TCP, INJECTOR.octets(), [100, 96, 2, 3]).expect("a header");
    header.identification = id;
    header.dont_fragment = true;
    etherparse::IpHeaders::Ipv4(header, etherparse::Ipv4Extensions::default())
}

/// Returns the pseudo header's sum (RFC 9293 3.1, RFC 768): addresses, protocol and length.
fn pseudo_sum(packet: &[u8]) -> u16 {
    let word = |at: usize| u32::from(packet[at]) << 8 | u32::from(packet[at + 1]);
    let mut sum = (12..20).step_by(2).map(word).sum::<u32>() + u32::from(packet[9]) + packet.len() as u32 - 20;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|at| (at * 31 % 253) as u8 ^ seed).collect()
}

/// Returns all output of host A for the same input, in order.
fn on_the_wire(more: &[&str]) -> Vec<Vec<u8>> {
    let hosts = TwoHosts::new().expect("two hosts");
    let mut tunnel = Tunnel::on_a(&hosts, more);
    let wire = hosts.host_b.enter(|| UdpSocket::bind((TwoHosts::HOST_B, 8285))).expect("a socket");
    SockRef::from(&wire).set_recv_buffer_size(4 << 20).expect("room");
    wire.set_read_timeout(Some(Duration::from_millis(300))).expect("a timeout");
    let injector = Injector::on(&hosts.host_a);
    injector.tcp(0xfff0, 0xffff_ff00, 1400, &pattern(60_000, 1), false);
    injector.tcp(100, 7, 1432, &pattern(1432 * 3, 2), true);
    injector.tcp(200, 9, 536, &pattern(536 * 100 + 1, 3), false);
    injector.tcp(300, 11, 1400, &pattern(100, 4), false);
    injector.udp(400, 1000, &pattern(40_001, 5));
    injector.udp(500, 64, &pattern(64 * 60, 6));
    injector.udp(600, 1400, &pattern(33, 7));
    let mut datagrams = Vec::new();
    let mut buffer = [0; 65_536];
    while let Ok((len, from)) = wire.recv_from(&mut buffer) {
        assert_eq!(from, SocketAddr::from((TwoHosts::HOST_A, 8285)));
        // The kernel's own packets in a new device are not the same every time.
        if Ipv4Slice::from_slice(&buffer[..len]).is_ok_and(|packet| packet.header().source_addr() == INJECTOR) {
            datagrams.push(buffer[..len].to_vec());
        }
    }
    let last = tunnel.stop();
    assert_eq!(last["encap"]["dropped"].as_object().map(|drops| drops.contains_key("bad_offload")), Some(false));
    datagrams
}

/// The kernel cuts the GSO packets itself if the tunnel accepts none, and it is the oracle.
#[test]
fn bytes_on_the_wire_are_the_same_with_and_without_offload() {
    let expected = on_the_wire(&["--no-offload"]);
    let segments = 60_000usize.div_ceil(1400) + 3 + 101 + 1 + 41 + 60 + 1;
    assert_eq!(expected.len(), segments, "the kernel cuts all of them");
    for more in [
        &[][..],
        &["--offload", "tun-tso,udp-gso,udp-gro"],
        &["--offload", "tun-uso,udp-gso,udp-gro"],
        &["--offload", "tun-tso,tun-uso,udp-gro"],
        &["--offload", "udp-gso,udp-gro"],
    ] {
        let datagrams = on_the_wire(more);
        assert_eq!(datagrams.len(), expected.len(), "{more:?}");
        for (index, (datagram, expected)) in datagrams.iter().zip(&expected).enumerate() {
            assert_eq!(datagram, expected, "datagram {index} with {more:?}");
        }
    }
}

/// Many small packets of several flows: all arrive, in the order of their flow.
#[test]
fn small_packets_keep_their_order() {
    const FLOWS: u16 = 3;
    const COUNT: u32 = 2000;
    let mut tunnels = Tunnels::start();
    let bind = |namespace: &Namespace, address: Ipv4Addr, port| {
        let socket = namespace.enter(|| UdpSocket::bind((address, port))).expect("a socket");
        SockRef::from(&socket).set_recv_buffer_size(8 << 20).expect("room");
        socket.set_read_timeout(Some(SECOND)).expect("a timeout");
        socket
    };
    let hosts = &tunnels.hosts;
    let pairs: Vec<_> = (0..FLOWS)
        .map(|flow| {
            (bind(&hosts.pod_a, TwoHosts::POD_A, 6000 + flow), bind(&hosts.pod_b, TwoHosts::POD_B, 7000 + flow))
        })
        .collect();
    for number in 0..COUNT {
        for (flow, (sender, _)) in pairs.iter().enumerate() {
            // A different length now and then begins a new batch.
            let mut payload = vec![flow as u8; 60 + (number as usize / 10 % 3) * 4];
            payload[1..5].copy_from_slice(&number.to_be_bytes());
            sender.send_to(&payload, (TwoHosts::POD_B, 7000 + flow as u16)).expect("sent");
        }
        // No more at once than the queues on the path hold.
        if number % 100 == 99 {
            for (flow, (_, receiver)) in pairs.iter().enumerate() {
                let mut buffer = [0; 100];
                for number in number - 99..=number {
                    let len = receiver.recv(&mut buffer).expect("all arrive");
                    assert_eq!(buffer[0], flow as u8);
                    assert_eq!(u32::from_be_bytes([buffer[1], buffer[2], buffer[3], buffer[4]]), number, "flow {flow}");
                    assert_eq!(len, 60 + (number as usize / 10 % 3) * 4);
                }
            }
        }
    }
    tunnels.a.stop();
    tunnels.b.stop();
}

/// Several queues: everything arrives, and the counters are their sum.
#[test]
fn queues_share_the_work_and_the_counters() {
    let more = ["--queues", "3", "--source-ports", "4", "--stats", "0.05"];
    let mut tunnels = Tunnels::with(&more, &more);
    tcp_both_ways(&tunnels.hosts, 4 << 20, 4);
    let (sent, received) = (tunnels.a.stop(), tunnels.b.stop());
    assert!(received["decap"]["in"].as_u64() > sent["encap"]["in"].as_u64(), "{sent} {received}");
    // The kernel's own packets in a new device.
    let sent_by_kernel = dropped(&sent, "encap", "ipv6_not_carried");
    assert_eq!(sent["encap"]["in"].as_u64(), sent["encap"]["forwarded"].as_u64().map(|n| n + sent_by_kernel), "{sent}");
}

/// Fault 41: a second tunnel cannot open the first one's device, with one queue or several, nor its address.
#[test]
fn fault_41_a_second_tunnel_on_the_same_device_does_not_start() {
    for queues in ["1", "2"] {
        let hosts = TwoHosts::new().expect("two hosts");
        let more = ["--queues", queues, "--tun", "shared0"];
        let mut tunnel = Tunnel::on_a(&hosts, &more);
        let args = ["--network", "100.96.0.0/16", "--subnet", "100.96.1.0/24", "--listen", "10.168.0.2:9999"];
        for more in [["--tun", "shared0", "--queues", "1"], ["--tun", "shared0", "--queues", "2"]] {
            let (status, said) = run(&hosts.host_a, &[&args[..], &more].concat());
            assert_eq!(status.code(), Some(2), "{said}");
            assert!(said.contains("shared0"), "{said}");
        }
        let args = ["--network", "100.96.0.0/16", "--subnet", "100.96.1.0/24", "--listen", "10.168.0.2"];
        let (status, said) = run(&hosts.host_a, &[&args[..], &["--queues", queues]].concat());
        assert_eq!(status.code(), Some(2), "{said}");
        assert!(said.contains("10.168.0.2:8285 is in use"), "{said}");
        tunnel.stop();
    }
}

/// R60: the flows to one peer leave from several ports, each from one of its own.
#[test]
fn r60_flows_spread_over_source_ports() {
    let hosts = TwoHosts::new().expect("two hosts");
    let mut tunnel = Tunnel::on_a(&hosts, &["--source-ports", "4"]);
    let wire = hosts.host_b.enter(|| UdpSocket::bind((TwoHosts::HOST_B, 8285))).expect("a socket");
    wire.set_read_timeout(Some(SECOND)).expect("a timeout");
    let mut ports = HashSet::new();
    for port in 6000..6032u16 {
        let sender = hosts.pod_a.enter(|| UdpSocket::bind((TwoHosts::POD_A, port))).expect("a socket");
        let mut of_flow = HashSet::new();
        for _ in 0..3 {
            sender.send_to(b"a flow", (TwoHosts::POD_B, 7)).expect("sent");
            let (_, from) = wire.recv_from(&mut [0; 2000]).expect("a datagram");
            assert_eq!(from.ip(), TwoHosts::HOST_A);
            of_flow.insert(from.port());
        }
        assert_eq!(of_flow.len(), 1, "one flow, one port");
        ports.extend(of_flow);
    }
    assert_eq!(ports.len(), 4, "32 flows use all of 4 ports");
    assert!(!ports.contains(&8285));
    tunnel.stop();
}

/// R57 end to end: a mark on the outer header drops a packet that is not ECN-capable, unless the tunnel ignores marks.
#[test]
fn r57_outer_marks_are_heeded() {
    for (more, expected) in [(&[][..], 1), (&["--ecn-ignore"], 0)] {
        let hosts = TwoHosts::new().expect("two hosts");
        let mut tunnel = Tunnel::on_a(&hosts, &[more, &["--stats", "0.05"]].concat());
        let peer = hosts.host_b.enter(|| UdpSocket::bind((TwoHosts::HOST_B, 8285))).expect("a socket");
        SockRef::from(&peer).set_tos_v4(3).expect("a mark");
        let builder = PacketBuilder::ipv4([100, 96, 2, 3], [100, 96, 1, 2], 64).udp(9, 7);
        let mut packet = Vec::new();
        builder.write(&mut packet, b"not capable").expect("a packet");
        peer.send_to(&packet, (TwoHosts::HOST_A, 8285)).expect("sent");
        wait_until("the datagram", || tunnel.next_event()["decap"]["in"] == 1);
        let last = tunnel.stop();
        assert_eq!(dropped(&last, "decap", "ecn_not_capable"), expected, "{more:?}: {last}");
        assert_eq!(last["decap"]["forwarded"], 1 - expected, "{more:?}: {last}");
    }
}

/// R56: the outer header is not marked, unless the tunnel copies the field.
#[test]
fn r56_outer_headers_are_marked_when_asked() {
    for (more, copies) in [(&[][..], false), (&["--ecn-copy"], true)] {
        let hosts = TwoHosts::new().expect("two hosts");
        let mut tunnel = Tunnel::on_a(&hosts, more);
        let address = SocketAddr::from((TwoHosts::HOST_B, 8285));
        let wire = hosts.host_b.enter(|| UdpTransport::bind(address, &UdpConfig::default())).expect("a socket");
        let pod = hosts.pod_a.enter(|| UdpSocket::bind((TwoHosts::POD_A, 0))).expect("a socket");
        for mark in [Ecn::NotEct, Ecn::Ect1, Ecn::Ect0, Ecn::Ce] {
            SockRef::from(&pod).set_tos_v4(mark.bits().into()).expect("a mark");
            pod.send_to(b"marked", (TwoHosts::POD_B, 7)).expect("sent");
            let mut received = Err(RecvError::WouldBlock);
            let mut buffer = [0; 65_536];
            wait_until("the datagram", || {
                received = wire.recv(&mut buffer);
                received.is_ok()
            });
            assert_eq!(received.expect("a datagram").ecn, if copies { mark } else { Ecn::NotEct });
            assert_eq!(Ecn::of(buffer[1]), mark, "the inner field stays");
        }
        tunnel.stop();
    }
}

/// Faults 29 and 30 with GSO batches: the path MTU becomes lower under a stream. Its sender learns it, and every packet
/// is counted.
#[test]
fn fault_29_a_stream_survives_a_path_that_shrinks() {
    let mut tunnels = Tunnels::start();
    let hosts = &tunnels.hosts;
    let target = SocketAddr::from((TwoHosts::POD_B, 5001));
    let listener = hosts.pod_b.enter(|| TcpListener::bind(target)).expect("a listener");
    let sink = tcp_sink(listener, 3);
    let sent = std::thread::scope(|scope| {
        let amount = Amount::For(Duration::from_millis(900));
        let sender = scope.spawn(move || hosts.pod_a.enter(|| tcp_send(target, amount, 3)));
        std::thread::sleep(Duration::from_millis(300));
        for (host, peer) in [(&hosts.host_a, TwoHosts::HOST_B), (&hosts.host_b, TwoHosts::HOST_A)] {
            host.narrow_path(peer, TwoHosts::UPLINK, 1300).expect("a narrow path");
        }
        sender.join().expect("no panic")
    });
    let (sent, received) = (sent.expect("sent"), sink.join().expect("no panic").expect("received"));
    assert_eq!(sent.bytes, received.bytes);
    let last = tunnels.a.stop();
    assert!(last["encap"]["answered"].as_u64() >= Some(1), "{last}");
    assert_eq!(anomaly(&last, "path_mtu_lowered"), 1, "{last}");
    assert_eq!(anomaly(&last, "gso_fallbacks"), 0, "the path MTU is the reason, not the GSO batches: {last}");
    tunnels.b.stop();
}

/// Fault 31 with GSO batches: only packets to an unreachable peer are lost, and they are counted.
#[test]
fn fault_31_a_stream_survives_a_peer_that_is_away() {
    let mut tunnels = Tunnels::start();
    let hosts = &tunnels.hosts;
    let target = SocketAddr::from((TwoHosts::POD_B, 5001));
    let listener = hosts.pod_b.enter(|| TcpListener::bind(target)).expect("a listener");
    let sink = tcp_sink(listener, 3);
    let uplink = "10.168.0.0/24".parse().expect("a network");
    let sent = std::thread::scope(|scope| {
        let amount = Amount::For(Duration::from_millis(1200));
        let sender = scope.spawn(move || hosts.pod_a.enter(|| tcp_send(target, amount, 3)));
        std::thread::sleep(Duration::from_millis(300));
        hosts.host_a.delete_route(uplink).expect("deleted");
        std::thread::sleep(Duration::from_millis(200));
        hosts.host_a.add_route(uplink, None, TwoHosts::UPLINK).expect("put back");
        sender.join().expect("no panic")
    });
    let (sent, received) = (sent.expect("sent"), sink.join().expect("no panic").expect("received"));
    assert_eq!(sent.bytes, received.bytes);
    let last = tunnels.a.stop();
    let lost = dropped(&last, "encap", "send_unreachable");
    assert!(lost > 0, "{last}");
    assert_eq!(last["send_errors"]["10.168.0.3"].as_u64(), Some(lost), "{last}");
    tunnels.b.stop();
}

/// Fault 36 with several queues: the tunnel ends with the device, and prints the counters of each thread.
#[test]
fn fault_36_a_deleted_link_ends_all_queues() {
    let hosts = TwoHosts::new().expect("two hosts");
    let mut tunnel = Tunnel::on_a(&hosts, &["--queues", "3"]);
    hosts.host_a.delete_link(tunnel.tun()).expect("deleted");
    let status = tunnel.child.wait(SECOND).expect("a child").expect("an end within a second");
    assert_eq!(status.code(), Some(1), "{}", tunnel.child.stderr());
    assert!(tunnel.child.stderr().contains("was deleted; start the tunnel again"), "{}", tunnel.child.stderr());
    tunnel.last_event();
}
