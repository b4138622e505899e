//! The library's own loops: over `ppoll`, on threads, and as a future.

use core::future::pending;
use core::net::Ipv4Addr;
use core::num::NonZeroUsize;
use core::time::Duration;
use std::io;
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use loden::sys::{Tun, TunConfig, TunOffload, UdpConfig, UdpTransport};
use loden::worker::{Running, Worker, WorkerError, run, run_tokio};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::time::timeout;

use super::signals::send_back;
use super::support::{SOON, namespace, with_tun, within, worker};

const PACKETS: u32 = 2000;
const WINDOW: u32 = 16;

/// Sends numbered packets from a pod to a peer that returns them. Asserts that each returns once, in order.
fn assert_packets_pass(pod: &UdpSocket, count: u32) {
    pod.set_read_timeout(Some(SOON)).expect("timeout");
    let receive = |number: u32| {
        let mut received = [0; 8];
        let len = pod.recv(&mut received).unwrap_or_else(|error| panic!("packet {number}: {error}"));
        assert_eq!((len, &received[..4]), (4, &number.to_be_bytes()[..]));
    };
    for number in 0..count {
        pod.send_to(&number.to_be_bytes(), "100.96.2.3:5000").expect("sent");
        if number >= WINDOW {
            receive(number - WINDOW);
        }
    }
    (count - WINDOW..count).for_each(receive);
}

/// Runs a test with a peer at 127.0.0.2, a worker, and a pod's socket.
fn with_worker(test: impl FnOnce(Worker, &UdpSocket) + Send) {
    with_tun(TunOffload::ALL, |_, tun| {
        let peer = UdpSocket::bind((Ipv4Addr::new(127, 0, 0, 2), 8285)).expect("bound");
        let address = peer.local_addr().expect("an address");
        // So that a test that fails ends.
        peer.set_read_timeout(Some(SOON)).expect("timeout");
        let udp = UdpTransport::bind(([127, 0, 0, 1], 8285).into(), &UdpConfig::default()).expect("bound");
        let worker = worker(tun, udp, address);
        let pod = UdpSocket::bind((Ipv4Addr::new(100, 96, 1, 1), 4000)).expect("bound");
        thread::scope(|scope| {
            scope.spawn(|| send_back(&peer));
            test(worker, &pod);
            UdpSocket::bind("127.0.0.1:0").expect("bound").send_to(b"", address).expect("sent");
        });
    });
}

/// A future that is dropped and created again, repeatedly, loses no packet and sends none twice.
#[test]
fn the_future_is_cancel_safe() {
    with_worker(|mut worker, pod| {
        let (done, worker) = (AtomicBool::new(false), &mut worker);
        thread::scope(|scope| {
            let (done, worker) = (&done, &mut *worker);
            let forwarding = scope.spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
                let mut cancelled = 0;
                while !done.load(Ordering::Relaxed) {
                    let forwarding = run_tokio(worker, pending());
                    // Even the first wait may be dropped.
                    let wait = Duration::from_micros(cancelled % 500);
                    cancelled += u64::from(runtime.block_on(async { timeout(wait, forwarding).await }).is_err());
                }
                cancelled
            });
            assert_packets_pass(pod, PACKETS);
            done.store(true, Ordering::Relaxed);
            let cancelled = forwarding.join().expect("no panic");
            assert!(cancelled > 20, "{cancelled}");
        });
        let counters = worker.counters();
        for flow in [&counters.encap, &counters.decap] {
            assert_eq!((flow.received(), flow.forwarded()), (PACKETS.into(), PACKETS.into()));
        }
    });
}

/// `run` ends when its file descriptor is readable or closed, and returns the counters.
#[test]
fn a_loop_runs_until_it_is_told_to_stop() {
    with_worker(|worker, pod| {
        let (handle, (stopped, stop)) = (worker.remote(), io::pipe().expect("a pipe"));
        thread::scope(|scope| {
            let running = scope.spawn(|| run([worker], stopped));
            assert_packets_pass(pod, 100);
            assert!(within(SOON, || handle.counters().decap.forwarded() == 100), "{:?}", handle.counters());
            drop(stop);
            let counters = running.join().expect("no panic").expect("no error");
            assert_eq!((counters.encap.forwarded(), counters.decap.forwarded()), (100, 100));
            assert_eq!(handle.counters(), counters);
        });
    });
}

/// Several workers on threads of their own: they stop together, and the end of one ends the others.
#[test]
fn fault_36_workers_on_threads_end_together() {
    let namespace = namespace();
    namespace.enter(|| {
        for is_deleted in [false, true] {
            let queues = NonZeroUsize::new(3).expect("not zero");
            let own = ([127, 0, 0, 1], 8285).into();
            let tuns = Tun::open_queues(&TunConfig::default(), queues).expect("a device");
            let name = tuns[0].name().to_owned();
            let sockets = UdpTransport::bind_queues(own, &UdpConfig::default(), queues).expect("sockets");
            let peer = ([127, 0, 0, 2], 8285).into();
            let workers = tuns.into_iter().zip(sockets).map(|(tun, udp)| worker(tun, udp, peer));
            let running = Running::start(workers).expect("started");
            let has_ended = |running: &Running, wait: PollTimeout| {
                poll(&mut [PollFd::new(running.as_fd(), PollFlags::POLLIN)], wait).expect("polled") == 1
            };
            assert!(!has_ended(&running, PollTimeout::from(20_u8)));
            if is_deleted {
                namespace.delete_link(&name).expect("deleted");
                assert!(has_ended(&running, PollTimeout::from(5000_u16)));
                assert_eq!(running.stop(), Err(WorkerError::LinkDeleted { name }));
            } else {
                running.stop().expect("no error");
                assert_eq!(namespace.links().expect("links"), ["lo"]);
            }
        }
    });
}
