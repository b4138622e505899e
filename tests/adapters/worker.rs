//! A worker on a real device that is deleted: it returns one error, and its loop then uses almost no processor time.

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

/// The time of measurement after the end, and the permitted processor time in it: 1 %.
const MEASURED: Duration = Duration::from_secs(2);
const PERMITTED: Duration = Duration::from_millis(20);

/// The longest time until the end.
const LIMIT: Duration = Duration::from_secs(10);

/// Returns the processor time of the calling thread.
fn processor_time() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_THREAD).expect("the usage of this thread");
    let times = [usage.user_time(), usage.system_time()];
    times.iter().map(|time| Duration::new(time.tv_sec() as u64, time.tv_usec() as u32 * 1000)).sum()
}

/// The errors of a loop's worker, and the cost of the loop after them.
#[derive(Debug)]
struct End {
    errors: Vec<WorkerError>,
    /// Processor time in [`MEASURED`] from the first error on.
    cost: Duration,
    /// True if packets were held at any time.
    held: bool,
}

/// Runs the loop of the worker's documentation. It continues after the worker has ended, as a loop with other events
/// does.
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

/// Deletes the device under a flood in both directions, which continues until the loop has ended.
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
                    // The route is deleted with the device.
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

fn assert_reported_once_and_idle(end: &End) {
    assert_eq!(end.errors, [WorkerError::LinkDeleted { name: "loden0".into() }]);
    assert!(end.cost < PERMITTED, "{:?} of processor time in {MEASURED:?} after the end", end.cost);
}

#[test]
fn fault_36_a_deleted_device_is_reported_once_and_the_loop_idles() {
    with_tun(TunOffload::ALL, |namespace, tun| {
        let (own, peer) = (([127, 0, 0, 1], 8285).into(), ([127, 0, 0, 2], 8285).into());
        let delete = || namespace.delete_link("loden0").expect("deleted");
        let end = deleted_under_flood(tun, own, peer, &UdpConfig::default(), delete);
        assert_reported_once_and_idle(&end);
        assert!(!end.held);
    });
}

/// Packets are held at the end of the device. Nobody answers ARP for the peer, so that they are queued.
#[test]
fn fault_27_36_a_device_deleted_while_packets_are_held_is_reported() {
    with_tun(TunOffload::ALL, |near, tun| {
        let far = namespace();
        near.connect("eth0", &far, "eth0").expect("veth");
        near.add_address("eth0", "10.1.0.1/24".parse().expect("a network")).expect("address");
        let (own, peer) = (([10, 1, 0, 1], 8285).into(), ([10, 1, 0, 2], 8285).into());
        let config = UdpConfig::default().with_send_buffer(Some(0));
        let end = deleted_under_flood(tun, own, peer, &config, || near.delete_link("loden0").expect("deleted"));
        assert_reported_once_and_idle(&end);
        assert!(end.held);
    });
}
