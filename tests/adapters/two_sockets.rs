//! A worker with an IPv4 and an IPv6 socket.

use core::net::SocketAddr;
use etherparse::PacketBuilder;
use loden::Host;
use loden::forward::{Forwarder, ForwarderConfig};
use loden::ipnet::Ipv4Net;
use loden::route::{Route, RouteChange, RoutePublisher};
use loden::sys::{Tun, TunConfig, UdpConfig, UdpTransport};
use loden::worker::{Budget, Ready, Running, Worker, WorkerError};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::net::UdpSocket;
use std::time::Instant;

use super::support::{SOON, can_have, namespace, peer, transport};

const OWN: [&str; 2] = ["127.0.0.1:8285", "[::1]:8285"];

/// Returns a worker for 100.96.1.0/24 with both sockets, whose routes to 100.96.2.0/24 and 100.96.3.0/24 lead to the
/// peers.
fn worker(tun: Tun, peers: [SocketAddr; 2]) -> Worker {
    let net = |text: &str| text.parse::<Ipv4Net>().expect("a network");
    let own = OWN.map(|own| own.parse().expect("an address"));
    let host = Host::from_sets(&[net("100.96.0.0/16").into()], &[net("100.96.1.0/24").into()], &own).expect("a host");
    let mut routes = RoutePublisher::for_host(&host);
    let [one, other] = peers;
    let both = [Route::new(net("100.96.2.0/24"), one), Route::new(net("100.96.3.0/24"), other)];
    assert!(routes.apply(both.map(RouteChange::Set)).refused.is_empty());
    let forwarder = Forwarder::new(ForwarderConfig::new(&host)).expect("valid settings");
    let [first, second] = OWN.map(transport);
    let worker = Worker::new(tun, first, forwarder, routes.reader()).with_udp(second).expect("of another family");
    assert_eq!(worker.local_addrs().collect::<Vec<_>>(), own);
    worker
}

fn packet_to_pod(source: [u8; 4], pod: SocketAddr, text: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    let builder = PacketBuilder::ipv4(source, [100, 96, 1, 1], 64).udp(9, pod.port());
    builder.write(&mut packet, text).expect("a packet");
    packet
}

fn is_ready(worker: &Worker, timeout: PollTimeout) -> bool {
    poll(&mut [PollFd::new(worker.udp(), PollFlags::POLLIN)], timeout).expect("polled") > 0
}

/// Datagrams go by the socket of their next hop's family, in turn, and one file descriptor tells of both.
#[test]
fn datagrams_go_by_the_socket_of_their_family() {
    if !can_have("[::1]") {
        return;
    }
    let near = namespace();
    near.enter(|| {
        let tun = Tun::open(&TunConfig::default()).expect("opened");
        near.add_address(tun.name(), "100.96.1.1/16".parse().expect("a network")).expect("address");
        near.set_up(tun.name()).expect("up");
        let peers = [peer("127.0.0.2:0"), peer("[::1]:0")];
        let mut worker = worker(tun, [peers[0].1, peers[1].1]);
        let next = worker.handle(Ready::ALL, Budget::default(), Instant::now()).expect("it goes on");
        assert!(next.udp && !is_ready(&worker, PollTimeout::ZERO), "both are drained");

        let pod = UdpSocket::bind("100.96.1.1:0").expect("bound");
        pod.set_read_timeout(Some(SOON)).expect("timeout");
        let own = pod.local_addr().expect("address");
        for ((socket, _), (third, to)) in peers.iter().zip([(2, OWN[0]), (3, OWN[1])]) {
            socket.send_to(&packet_to_pod([100, 96, third, 3], own, to.as_bytes()), to).expect("sent");
            assert!(is_ready(&worker, PollTimeout::from(1000_u16)), "a datagram at {to}");
            let next = worker.handle(Ready { tun: false, udp: true }, Budget::default(), Instant::now());
            assert!(next.expect("it goes on").udp && !is_ready(&worker, PollTimeout::ZERO), "it is drained again");
            let mut buffer = [0; 100];
            let len = pod.recv(&mut buffer).expect("the packet");
            assert_eq!(&buffer[..len], to.as_bytes());
        }

        let running = Running::start([worker]).expect("started");
        for number in 0..40_u8 {
            pod.send_to(&[number], SocketAddr::from(([100, 96, 2 + number % 2, 3], 9))).expect("sent");
        }
        for (parity, (socket, _)) in (0..2_u8).zip(&peers) {
            for number in (parity..40).step_by(2) {
                let mut buffer = [0; 100];
                let (len, from) = socket.recv_from(&mut buffer).expect("a datagram");
                assert_eq!((buffer[18], buffer[len - 1]), (2 + parity, number), "in order, each to its own peer");
                assert_eq!(from.to_string(), OWN[usize::from(parity)]);
            }
        }
        let counters = running.stop().expect("stopped");
        assert_eq!((counters.encap.forwarded(), counters.decap.forwarded()), (40, 2));
    });
}

#[test]
fn a_second_socket_of_the_same_family_is_refused() {
    let near = namespace();
    near.enter(|| {
        let tun = Tun::open(&TunConfig::default()).expect("opened");
        let [one, other] = ["127.0.0.1:8285", "127.0.0.2:8285"].map(|own| own.parse().expect("an address"));
        let worker = super::support::worker(tun, transport(&format!("{one}")), ([127, 0, 0, 3], 8285).into());
        let second = UdpTransport::bind(other, &UdpConfig::default()).expect("bound");
        assert_eq!(worker.with_udp(second).map(drop), Err(WorkerError::SameFamily { one, other }));
    });
}
