//! Fault 33 under load: a flood to a peer whose host answers each packet with "port unreachable".

use core::net::{Ipv4Addr, SocketAddr};
use core::sync::atomic::{AtomicBool, Ordering};
use core::time::Duration;
use loden::Host;
use loden::forward::{Forwarder, ForwarderConfig};
use loden::ipnet::Ipv4Net;
use loden::route::{Route, RouteChange, RoutePublisher};
use loden::sys::{TunOffload, UdpConfig, UdpTransport};
use loden::worker::{Budget, Ready, Worker};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{setsockopt, sockopt};
use std::net::UdpSocket;
use std::thread;
use std::time::Instant;

use super::support::{SOON, namespace, with_tun};

/// The number of packets for the healthy peer, and of packets for the dead peer per healthy one.
const HEALTHY: u32 = 4000;
const FLOOD: u32 = 8;
/// The limit of the healthy peer's packets in flight, so that no queue is full.
const WINDOW: u32 = 16;

/// Returns the number of "destination unreachable" messages that the calling thread's namespace has received.
fn unreachables() -> u64 {
    let snmp = std::fs::read_to_string("/proc/thread-self/net/snmp").expect("procfs");
    let [names, values] = [0, 1].map(|at| snmp.lines().filter(|line| line.starts_with("Icmp:")).nth(at).expect("ICMP"));
    let counter = names.split(' ').zip(values.split(' ')).find(|(name, _)| *name == "InDestUnreachs");
    counter.and_then(|(_, value)| value.parse().ok()).expect("a number")
}

fn run(worker: &mut Worker, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let mut fds = [worker.udp(), worker.tun()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        poll(&mut fds, PollTimeout::from(5_u8)).expect("polled");
        let _next = worker.handle(Ready::ALL, Budget::default(), Instant::now()).expect("alive");
    }
}

/// Every packet to the healthy peer arrives, once and in order, and only packets to the dead peer are lost. With
/// loden's socket options Linux reports nothing of the dead peer. With `IP_RECVERR`, which loden never sets, it reports
/// each error to the next call for any peer.
#[test]
fn r61_fault_33_a_flood_to_a_dead_peer_costs_a_healthy_one_no_packet() {
    for receive_errors in [false, true] {
        with_tun(TunOffload::ALL, |near, tun| {
            let (dead, healthy) = (namespace(), namespace());
            let net = |text: &str| text.parse::<Ipv4Net>().expect("a network");
            for (link, far, own, other) in
                [("eth1", &dead, "10.1.1.1/24", "10.1.1.2/24"), ("eth2", &healthy, "10.1.2.1/24", "10.1.2.2/24")]
            {
                near.connect(link, far, "eth0").expect("veth");
                near.add_address(link, net(own)).expect("address");
                far.add_address("eth0", net(other)).expect("address");
                far.sysctl("net/ipv4/icmp_ratemask", "0").expect("sysctl");
            }
            let receiver = healthy.enter(|| UdpSocket::bind("10.1.2.2:8285")).expect("bound");
            receiver.set_read_timeout(Some(SOON)).expect("timeout");
            let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 8285));
            let udp = UdpTransport::bind(any, &UdpConfig::default()).expect("bound");
            if receive_errors {
                setsockopt(&udp, sockopt::Ipv4RecvErr, &true).expect("set");
            }
            let peers = [("100.96.2.0/24", [10, 1, 1, 2]), ("100.96.3.0/24", [10, 1, 2, 2])];
            let mut routes = RoutePublisher::new();
            let changes = peers.map(|(subnet, host)| RouteChange::Set(Route::new(net(subnet), (host, 8285))));
            assert!(routes.apply(changes).refused.is_empty());
            let own = SocketAddr::from(([10, 1, 1, 1], 8285));
            let host = Host::new(net("100.96.0.0/16"), net("100.96.1.0/24"), own).expect("valid");
            let forwarder = Forwarder::new(ForwarderConfig::new(&host)).expect("valid");
            let mut worker = Worker::new(tun, udp, forwarder, routes.reader());
            if receive_errors {
                // One packet per call, so that the next call that meets the error is a send.
                worker = worker.unbatched();
            }

            let pod = UdpSocket::bind((Ipv4Addr::new(100, 96, 1, 1), 0)).expect("bound");
            let (stop, before) = (AtomicBool::new(false), unreachables());
            thread::scope(|scope| {
                let (worker, stop) = (&mut worker, &stop);
                scope.spawn(move || run(worker, stop));
                let mut arrived = Vec::new();
                // After a loss there is no further waiting.
                let mut receive = || {
                    let mut packet = [0; 64];
                    if arrived.last() != Some(&None) {
                        let received = receiver.recv(&mut packet).ok();
                        let number = received.and_then(|len| packet[..len].last_chunk().copied());
                        arrived.push(number.map(u32::from_be_bytes));
                    }
                };
                for number in 0..HEALTHY {
                    for _ in 0..FLOOD {
                        pod.send_to(b"anybody?", "100.96.2.3:9").expect("sent");
                    }
                    pod.send_to(&number.to_be_bytes(), "100.96.3.4:9").expect("sent");
                    if number >= WINDOW {
                        receive();
                    }
                }
                (0..WINDOW).for_each(|_| receive());
                thread::sleep(Duration::from_millis(50));
                stop.store(true, Ordering::Relaxed);
                assert!(arrived.into_iter().eq((0..HEALTHY).map(Some)), "the option is {receive_errors}");
            });
            let blamed = worker.remote().send_errors();
            let encap = &worker.stop().encap;
            assert!(encap.is_conserved());
            assert_eq!(encap.received(), u64::from(HEALTHY * (FLOOD + 1)));
            let lost = encap.received() - encap.forwarded();
            if receive_errors {
                assert!(
                    blamed.iter().all(|(peer, count)| (*peer, *count) == (Ipv4Addr::from([10, 1, 1, 2]).into(), lost))
                );
            } else {
                assert_eq!((lost, blamed), (0, vec![]));
            }
            let told = unreachables() - before;
            // The peer's host answers a GSO batch once.
            let least = if receive_errors { HEALTHY * FLOOD / 2 } else { 100 };
            assert!(told >= least.into(), "{told} answers of the dead peer's host");
        });
    }
}
