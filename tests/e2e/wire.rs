//! flannel's wire format: the other end is a plain UDP socket that sends and receives bare IP packets.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

use testbed::probe::{Ping, ping};
use testbed::{Namespace, TwoHosts};

use crate::support::{SECOND, Tunnel, dropped, wait_until};

/// Host A with a tunnel, host B with a socket.
struct Peer {
    hosts: TwoHosts,
    tunnel: Tunnel,
    socket: UdpSocket,
}

impl Peer {
    fn start(more: &[&str]) -> Self {
        let hosts = TwoHosts::new().expect("two hosts");
        let tunnel = Tunnel::on_a(&hosts, more);
        let socket = bind(&hosts.host_b, TwoHosts::HOST_B, 8285);
        Self { hosts, tunnel, socket }
    }

    fn send(&self, datagram: &[u8]) {
        self.socket.send_to(datagram, (TwoHosts::HOST_A, 8285)).expect("sent");
    }

    fn receive(&self) -> (Vec<u8>, SocketAddr) {
        let mut buffer = [0; 65_536];
        let (len, from) = self.socket.recv_from(&mut buffer).expect("a datagram within a second");
        (buffer[..len].to_vec(), from)
    }

    /// Returns a socket in pod A that receives all UDP for port 7.
    fn pod_socket(&self) -> UdpSocket {
        bind(&self.hosts.pod_a, Ipv4Addr::UNSPECIFIED, 7)
    }
}

fn bind(namespace: &Namespace, address: Ipv4Addr, port: u16) -> UdpSocket {
    let socket = namespace.enter(|| UdpSocket::bind((address, port))).expect("a socket");
    socket.set_read_timeout(Some(SECOND)).expect("a timeout");
    socket
}

/// Returns a UDP packet for port 7 with right checksums, made without any of the library's code.
fn packet(source: [u8; 4], destination: [u8; 4], ttl: u8, payload: &[u8]) -> Vec<u8> {
    let builder = etherparse::PacketBuilder::ipv4(source, destination, ttl).udp(9, 7);
    let mut packet = Vec::with_capacity(builder.size(payload.len()));
    builder.write(&mut packet, payload).expect("a packet");
    packet
}

const POD_A: [u8; 4] = [100, 96, 1, 2];
const POD_B: [u8; 4] = [100, 96, 2, 3];

#[test]
fn the_sent_datagram_is_exactly_the_packet() {
    let peer = Peer::start(&[]);
    let socket = bind(&peer.hosts.pod_a, TwoHosts::POD_A, 9);
    socket.send_to(b"flannel", (TwoHosts::POD_B, 7)).unwrap();
    let (datagram, from) = peer.receive();
    assert_eq!(from, SocketAddr::from((TwoHosts::HOST_A, 8285)));
    let parsed = etherparse::Ipv4Slice::from_slice(&datagram).expect("an IPv4 packet");
    let header = parsed.header();
    assert_eq!(usize::from(header.total_len()), datagram.len(), "no byte more");
    // The pod's 64, decremented by the host's kernel and by the tunnel.
    assert_eq!((header.source(), header.destination(), header.ttl()), (POD_A, POD_B, 62));
    assert_eq!(header.header_checksum(), header.to_header().calc_header_checksum());
    assert!(datagram.ends_with(b"flannel"));
}

#[test]
fn fault_12_datagrams_from_any_port_of_a_known_host_are_delivered() {
    let peer = Peer::start(&[]);
    let pod = peer.pod_socket();
    let other_port = bind(&peer.hosts.host_b, TwoHosts::HOST_B, 50_000);
    for socket in [&peer.socket, &other_port] {
        socket.send_to(&packet(POD_B, POD_A, 64, b"hello"), (TwoHosts::HOST_A, 8285)).unwrap();
        let mut buffer = [0; 100];
        let (len, from) = pod.recv_from(&mut buffer).expect("delivered");
        assert_eq!((&buffer[..len], from), (&b"hello"[..], SocketAddr::from((POD_B, 9))));
    }
}

/// R8 end to end: the trailer of a datagram does not reach the pod.
#[test]
fn a_trailer_is_cut_off_and_counted() {
    let mut peer = Peer::start(&[]);
    let pod = peer.pod_socket();
    let mut datagram = packet(POD_B, POD_A, 64, b"hello");
    datagram.extend_from_slice(&[0xaa; 30]);
    peer.send(&datagram);
    let mut buffer = [0; 100];
    let (len, _) = pod.recv_from(&mut buffer).expect("delivered");
    assert_eq!(&buffer[..len], b"hello");
    assert_eq!(peer.tunnel.stop()["anomalies"]["trimmed"], 1);
}

/// R64, R65, R66, faults 1, 2, 10, 11, 12, 13: each is dropped without an ICMP error, with exactly its own counter.
#[test]
fn fault_1_2_10_11_invalid_inbound_packets_are_dropped_and_counted() {
    let mut peer = Peer::start(&["--stats", "0.05"]);
    let stranger = bind(&peer.hosts.host_b, Ipv4Addr::UNSPECIFIED, 0);
    peer.hosts.host_b.add_address(TwoHosts::UPLINK, "10.168.0.77/24".parse().unwrap()).unwrap();
    let stranger_address = bind(&peer.hosts.host_b, [10, 168, 0, 77].into(), 8285);
    drop(stranger);
    let good = packet(POD_B, POD_A, 64, b"never");
    let mut broken = good.clone();
    broken[12] ^= 1;
    let cases: [(&UdpSocket, Vec<u8>, &str); 11] = [
        (&stranger_address, good.clone(), "unknown_peer"),
        (&peer.socket, Vec::new(), "too_short"),
        (&peer.socket, vec![0x45], "too_short"),
        (&peer.socket, good[..19].to_vec(), "too_short"),
        (&peer.socket, good[..30].to_vec(), "truncated"),
        (&peer.socket, vec![0; 65_507], "bad_version"),
        (&peer.socket, broken, "bad_checksum"),
        (&peer.socket, packet([100, 96, 3, 3], POD_A, 64, b"never"), "spoofed_source"),
        (&peer.socket, packet([100, 96, 1, 9], POD_A, 64, b"never"), "spoofed_source"),
        (&peer.socket, packet(POD_B, [100, 96, 2, 9], 64, b"never"), "foreign_destination"),
        (&peer.socket, packet([127, 0, 0, 1], POD_A, 64, b"never"), "martian_source"),
    ];
    let pod = peer.pod_socket();
    let mut expected = std::collections::BTreeMap::<&str, u64>::new();
    for (socket, datagram, reason) in cases {
        *expected.entry(reason).or_default() += 1;
        socket.send_to(&datagram, (TwoHosts::HOST_A, 8285)).unwrap();
    }
    let total: u64 = expected.values().sum();
    wait_until("all datagrams", || peer.tunnel.next_event()["decap"]["in"].as_u64() == Some(total));
    let last = peer.tunnel.stop();
    for (reason, count) in expected {
        assert_eq!(dropped(&last, "decap", reason), count, "{reason} in {last}");
    }
    assert_eq!(last["decap"]["forwarded"], 0);
    pod.set_nonblocking(true).unwrap();
    assert!(pod.recv(&mut [0; 100]).is_err(), "nothing may reach the pod");
}

/// `--no-source-check` disables only R65. A stranger stays refused.
#[test]
fn without_source_check_strangers_stay_refused() {
    let mut peer = Peer::start(&["--no-source-check"]);
    peer.hosts.host_b.add_address(TwoHosts::UPLINK, "10.168.0.77/24".parse().unwrap()).unwrap();
    let stranger = bind(&peer.hosts.host_b, [10, 168, 0, 77].into(), 8285);
    let pod = peer.pod_socket();
    let spoofed = packet([100, 96, 2, 99], POD_A, 64, b"stranger");
    stranger.send_to(&spoofed, (TwoHosts::HOST_A, 8285)).unwrap();
    // From a subnet that is not the peer's. The kernel needs a route back to it, or it drops it as a martian.
    peer.send(&packet([100, 96, 3, 3], POD_A, 64, b"peer"));
    let mut buffer = [0; 100];
    let (len, from) = pod.recv_from(&mut buffer).expect("delivered");
    assert_eq!((&buffer[..len], from.ip()), (&b"peer"[..], Ipv4Addr::new(100, 96, 3, 3).into()));
    assert_eq!(dropped(&peer.tunnel.stop(), "decap", "unknown_peer"), 1);
}

/// R30 end to end: a TTL that expires at the remote host gets an ICMP error through the tunnel, from the TUN's own
/// address.
#[test]
fn the_far_end_answers_through_the_tunnel() {
    let mut peer = Peer::start(&[]);
    let offender = packet(POD_B, POD_A, 1, b"last breath");
    peer.send(&offender);
    let (answer, from) = peer.receive();
    assert_eq!(from, SocketAddr::from((TwoHosts::HOST_A, 8285)));
    assert_eq!((&answer[12..16], &answer[16..20]), (&[100, 96, 1, 0][..], &POD_B[..]));
    assert_eq!(answer[20..22], [11, 0]);
    assert_eq!(answer[28..], offender, "the quote is the packet as it arrived");
    assert_eq!(peer.tunnel.stop()["decap"]["answered"], 1);
}

/// A kernel behind a flannel node answers an echo to its TUN address, and so does loden's.
#[test]
fn the_tun_address_answers_a_ping_from_a_pod() {
    let hosts = TwoHosts::new().unwrap();
    let _a = Tunnel::on_a(&hosts, &[]);
    let _b = Tunnel::on_b(&hosts, &[]);
    let outcome = hosts.pod_a.enter(|| ping([100, 96, 2, 0].into(), Ping::default())).unwrap();
    assert!(matches!(outcome[..], [testbed::probe::PingOutcome::Reply { .. }]), "{outcome:?}");
}
