//! A worker on a real device that goes away: it says so once, and a loop that heeds that costs next to nothing.

use core::net::{Ipv4Addr, SocketAddr};
use core::sync::atomic::{AtomicBool, Ordering};
use core::time::Duration;
use loden::sys::{Tun, TunOffload, UdpConfig, UdpTransport};
use loden::worker::{Budget, Ready, Worker, WorkerError};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{UsageWho, getrusage};
use std::net::UdpSocket;
use std::thread;
use std::time::Instant;

use super::support::{namespace, with_tun, worker};

/// How long is measured after the end, and how much processor time may be used meanwhile: 1 %.
const MEASURED: Duration = Duration::from_secs(2);
const PERMITTED: Duration = Duration::from_millis(20);

/// How long the end may be in coming: with packets held, as long as these are.
const LIMIT: Duration = Duration::from_secs(10);

/// Processor time of the calling thread.
fn processor_time() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_THREAD).expect("the usage of this thread");
    let times = [usage.user_time(), usage.system_time()];
    times.iter().map(|time| Duration::new(time.tv_sec() as u64, time.tv_usec() as u32 * 1000)).sum()
}

/// What a loop saw of its worker's end, and what it cost.
#[derive(Debug)]
struct End {
    errors: Vec<WorkerError>,
    /// Processor time in [`MEASURED`] from the first error on.
    cost: Duration,
    /// Whether packets were held at any time.
    held: bool,
}

/// The loop of the worker's documentation, which goes on after the worker has ended, as one does that has more to wait for.
fn run(mut worker: Worker) -> End {
    let (mut errors, mut held) = (Vec::new(), false);
    let (started, mut since) = (Instant::now(), None);
    let mut ready = Ready::default();
    loop {
        let mut next = None;
        if errors.is_empty() {
            match worker.handle(ready, Budget::default(), Instant::now()) {
                Ok(named) => next = Some(named),
                Err(error) => {
                    errors.push(error);
                    since = Some((Instant::now(), processor_time()));
                }
            }
        }
        held |= worker.counters().encap.held() > 0;
        let mut fds = Vec::new();
        fds.extend(next.filter(|next| next.tun).map(|_| PollFd::new(worker.tun(), PollFlags::POLLIN)));
        fds.extend(next.filter(|next| next.udp).map(|_| PollFd::new(worker.udp(), PollFlags::POLLIN)));
        let over_at = since.map_or(started + LIMIT, |(at, _)| at + MEASURED);
        let wake_at = next.and_then(|next| next.wake_at).map_or(over_at, |at| at.min(over_at));
        let left = wake_at.saturating_duration_since(Instant::now()) + Duration::from_micros(999);
        poll(&mut fds, PollTimeout::try_from(left).expect("soon")).expect("polled");
        if Instant::now() >= over_at {
            let cost = since.map_or(Duration::ZERO, |(_, before)| processor_time() - before);
            return End { errors, cost, held };
        }
        ready = if fds.iter().any(|fd| fd.any() != Some(false)) { Ready::ALL } else { Ready::default() };
    }
}

/// Deletes the device under a flood both ways, which goes on until the loop has ended.
fn deleted_under_flood(tun: Tun, own: SocketAddr, peer: SocketAddr, config: &UdpConfig, delete: impl FnOnce()) -> End {
    let worker = worker(tun, UdpTransport::bind(own, config).expect("bound"), peer);
    let pod = UdpSocket::bind((Ipv4Addr::new(100, 96, 1, 1), 0)).expect("bound");
    let outside = UdpSocket::bind((own.ip(), 0)).expect("bound");
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for (socket, to) in [(pod, ([100, 96, 2, 3], 9).into()), (outside, own)] {
            let done = &done;
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    // The route goes with the device.
                    let _ = socket.send_to(&[0x45; 100], to);
                    thread::sleep(Duration::from_micros(100));
                }
            });
        }
        let running = scope.spawn(|| run(worker));
        thread::sleep(Duration::from_millis(300));
        delete();
        let end = running.join();
        done.store(true, Ordering::Relaxed);
        end.expect("no panic")
    })
}

fn assert_told_once_and_idle(end: &End) {
    assert_eq!(end.errors, [WorkerError::LinkDeleted { name: "loden0".into() }]);
    assert!(end.cost < PERMITTED, "{:?} of processor time in {MEASURED:?} after the end", end.cost);
}

#[test]
fn fault_36_a_loop_whose_device_was_deleted_is_told_once_and_idles() {
    with_tun(TunOffload::ALL, |namespace, tun| {
        let (own, peer) = (([127, 0, 0, 1], 8285).into(), ([127, 0, 0, 2], 8285).into());
        let delete = || namespace.delete_link("loden0").expect("deleted");
        let end = deleted_under_flood(tun, own, peer, &UdpConfig::default(), delete);
        assert_told_once_and_idle(&end);
        assert!(!end.held);
    });
}

/// While packets wait for the socket, the device is not waited for: it would be ready for ever. Nobody answers ARP for the peer,
/// so that they wait for as long as that takes, or until they are given up.
#[test]
fn fault_27_36_a_device_deleted_while_packets_are_held_is_told_of_afterwards() {
    with_tun(TunOffload::ALL, |near, tun| {
        let far = namespace();
        near.connect("eth0", &far, "eth0").expect("veth");
        near.add_address("eth0", "10.1.0.1/24".parse().expect("a network")).expect("address");
        let (own, peer) = (([10, 1, 0, 1], 8285).into(), ([10, 1, 0, 2], 8285).into());
        let config = UdpConfig { send_buffer: Some(0), ..UdpConfig::default() };
        let end = deleted_under_flood(tun, own, peer, &config, || near.delete_link("loden0").expect("deleted"));
        assert_told_once_and_idle(&end);
        assert!(end.held);
    });
}
