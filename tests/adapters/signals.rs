//! A loop whose thread gets a signal each millisecond.
#![expect(unsafe_code, reason = "a signal handler without SA_RESTART; this one only counts")]

use core::net::Ipv4Addr;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use core::time::Duration;
use loden::sys::{TunOffload, UdpConfig, UdpTransport};
use loden::worker::{Budget, Ready, Worker};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::pthread::{Pthread, pthread_kill, pthread_self};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use std::net::UdpSocket;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Instant;

use super::support::{SOON, in_a_child, with_tun, worker};

/// The minimum number of interruptions, and the number of packets in each direction.
const INTERRUPTIONS: u64 = 300;
const PACKETS: u32 = 5000;
/// The limit of packets in flight, so that no queue is full.
const WINDOW: u32 = 64;
const LIMIT: Duration = Duration::from_secs(60);

static SIGNALS: AtomicU64 = AtomicU64::new(0);
static INTERRUPTED: AtomicU64 = AtomicU64::new(0);

extern "C" fn count_signal(_signal: i32) {
    SIGNALS.fetch_add(1, Ordering::Relaxed);
}

/// The loop of the worker's documentation. It counts how often its wait was interrupted.
fn run(worker: &mut Worker, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let mut fds = [worker.udp(), worker.tun()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        match poll(&mut fds, PollTimeout::from(1000_u16)) {
            Ok(_) => {}
            Err(Errno::EINTR) => {
                INTERRUPTED.fetch_add(1, Ordering::Relaxed);
            }
            Err(errno) => panic!("{errno}"),
        }
        let _next = worker.handle(Ready::ALL, Budget::default(), Instant::now()).expect("alive");
    }
}

/// Sends each inner packet back to where it came from, until it gets an empty datagram.
pub(crate) fn send_back(peer: &UdpSocket) {
    let mut packet = [0; 2048];
    loop {
        let (len, from) = peer.recv_from(&mut packet).expect("another");
        let Some(inner) = packet.get_mut(..len).filter(|inner| !inner.is_empty()) else { return };
        // Swapped addresses and ports change no checksum.
        let (sources, destinations) = inner[12..24].split_at_mut(4);
        sources.swap_with_slice(&mut destinations[..4]);
        let (source, destination) = destinations[4..].split_at_mut(2);
        source.swap_with_slice(destination);
        peer.send_to(inner, from).expect("sent");
    }
}

#[test]
fn fault_26_a_loop_that_signals_interrupt_loses_nothing_and_sends_nothing_twice() {
    in_a_child("signals::child_under_signals");
}

/// Linux interrupts only calls that wait, and of this loop that is poll(2). `worker::tests::interrupted` interrupts every call
/// that moves packets.
#[test]
#[ignore = "run by fault_26_a_loop_that_signals_interrupt_loses_nothing_and_sends_nothing_twice"]
fn child_under_signals() {
    let action = SigAction::new(SigHandler::Handler(count_signal), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler only adds to an atomic number, which is safe at any moment (signal-safety(7)).
    unsafe { sigaction(Signal::SIGUSR1, &action) }.expect("a handler");
    with_tun(TunOffload::ALL, |_, tun| {
        let peer = UdpSocket::bind((Ipv4Addr::new(127, 0, 0, 2), 8285)).expect("bound");
        let own = ([127, 0, 0, 1], 8285).into();
        let udp = UdpTransport::bind(own, &UdpConfig::default()).expect("bound");
        let mut worker = worker(tun, udp, peer.local_addr().expect("an address"));
        let pod = UdpSocket::bind((Ipv4Addr::new(100, 96, 1, 1), 4000)).expect("bound");
        pod.set_read_timeout(Some(SOON)).expect("timeout");
        let stop = AtomicBool::new(false);
        let interrupted = || INTERRUPTED.load(Ordering::Relaxed);
        let (mut sent, mut received, started) = (0_u32, Vec::new(), Instant::now());
        thread::scope(|scope| {
            let (stop, worker, peer) = (&stop, &mut worker, &peer);
            // musl's is a pointer, which no thread may hand to another.
            let (is, id) = channel::<usize>();
            let looping = scope.spawn(move || {
                is.send(pthread_self() as usize).expect("asked for");
                run(worker, stop);
                // Alive until nobody sends it signals any more.
                thread::park();
            });
            let target = id.recv().expect("told");
            let signalling = scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    pthread_kill(target as Pthread, Signal::SIGUSR1).expect("alive");
                    thread::sleep(Duration::from_millis(1));
                }
            });
            scope.spawn(|| send_back(peer));
            let mut take = || {
                let mut number = [0; 8];
                match pod.recv(&mut number) {
                    Ok(len) => received.push((len, number)),
                    Err(_) => received.push((0, [0; 8])),
                }
            };
            while (sent < PACKETS || interrupted() < INTERRUPTIONS) && started.elapsed() < LIMIT {
                pod.send_to(&sent.to_be_bytes(), "100.96.2.3:5000").expect("sent");
                sent += 1;
                if sent > WINDOW {
                    take();
                }
            }
            (0..WINDOW).for_each(|_| take());
            // A packet that went twice would be behind the others.
            pod.set_nonblocking(true).expect("set");
            thread::sleep(Duration::from_millis(20));
            take();
            stop.store(true, Ordering::Relaxed);
            let stopper = UdpSocket::bind("127.0.0.1:0").expect("bound");
            stopper.send_to(b"", peer.local_addr().expect("an address")).expect("sent");
            signalling.join().expect("no panic");
            looping.thread().unpark();
        });
        let number = |number: u32| {
            let mut bytes = [0; 8];
            bytes[..4].copy_from_slice(&number.to_be_bytes());
            (4, bytes)
        };
        let expected: Vec<_> = (0..sent).map(number).chain([(0, [0; 8])]).collect();
        assert!(received == expected, "{} of {sent} were received in order", received.len());
        for flow in [&worker.counters().encap, &worker.counters().decap] {
            assert_eq!((flow.received(), flow.forwarded()), (sent.into(), sent.into()));
        }
        assert_eq!(worker.counters().stats.read_errors, 0);
        let signals = SIGNALS.load(Ordering::Relaxed);
        assert!(sent >= PACKETS && interrupted() >= INTERRUPTIONS, "{sent} packets, {} of {signals}", interrupted());
    });
}
