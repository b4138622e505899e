//! What needs a process of its own: few file descriptors, and signals.

use core::num::NonZeroUsize;
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;
use loden::Transmit;
use loden::sys::{BindError, OpenError, RecvBatch, RecvError, Tun, TunConfig, UdpConfig, UdpTransport};
use loden::worker::Budget;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use std::fs;
use std::iter;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::thread;
use std::time::Instant;

use super::support::{namespace, within, worker};

/// Runs a test of this program in a shell, behind a command of the shell.
fn in_a_child(before: &str, test: &str) {
    let output = Command::new("sh")
        .args(["-c", &format!("{before}; exec \"$@\""), "sh"])
        .arg(std::env::current_exe().expect("this program"))
        .args(["--ignored", "--exact", test, "--nocapture"])
        .output()
        .expect("the child runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

/// How many file descriptors this process has open, less the one that tells.
fn open_descriptors() -> usize {
    fs::read_dir("/proc/self/fd").expect("procfs").count() - 1
}

#[test]
fn fault_35_nothing_is_left_half_open_without_descriptors() {
    in_a_child(":", "limits::child_with_few_descriptors");
}

/// With room for one more descriptor each time, so that whichever is opened is once the first that cannot be.
#[test]
#[ignore = "run by fault_35_nothing_is_left_half_open_without_descriptors"]
fn child_with_few_descriptors() {
    let namespace = namespace();
    let address = ([127, 0, 0, 1], 8285).into();
    let config = UdpConfig { flow_ports: 2, ..UdpConfig::default() };
    let queues = NonZeroUsize::new(3).expect("not zero");
    namespace.enter(|| {
        let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("limits");
        let limit = |descriptors| setrlimit(Resource::RLIMIT_NOFILE, descriptors, most).expect("a limit");
        // The limit is on the numbers: those that are free below the highest are taken first.
        let file = || fs::File::open("/dev/null").expect("opened");
        let is_within = |file: &fs::File| file.as_raw_fd() as usize + 1 < open_descriptors();
        let _taken: Vec<_> = iter::repeat_with(file).take_while(is_within).collect();
        let before = open_descriptors();
        let [mut no_device, mut no_sockets] = [0; 2];
        for room in 0..12 {
            limit((before + room) as u64);
            let tuns = Tun::open_queues(&TunConfig::default(), queues);
            limit(most);
            if let Err(error) = &tuns {
                no_device += 1;
                let message = error.to_string();
                assert!(matches!(error, OpenError::Other { .. }) && message.contains("os error 24"), "{message}");
                assert!(namespace.link_mtu("loden0").expect("asked").is_none(), "with room for {room}");
            }
            drop(tuns);
            assert_eq!(open_descriptors(), before, "with room for {room}");

            limit((before + room) as u64);
            let sockets = UdpTransport::bind_queues(address, &config, queues);
            limit(most);
            if let Err(error) = &sockets {
                no_sockets += 1;
                let message = error.to_string();
                assert!(matches!(error, BindError::Other { .. }) && message.contains("os error 24"), "{message}");
                UdpTransport::bind(address, &UdpConfig::default()).expect("nobody has the port");
            }
            drop(sockets);
            assert_eq!(open_descriptors(), before, "with room for {room}");
        }
        // Three UDP sockets, two of flows, and before the last UDP socket four that there may be.
        assert_eq!((no_device, no_sockets), (3, 9), "each of them was the first that could not be opened");
    });
}

#[test]
fn fault_42_dropping_closes_and_removes_all_that_was_made() {
    in_a_child(":", "limits::child_that_drops");
}

#[test]
#[ignore = "run by fault_42_dropping_closes_and_removes_all_that_was_made"]
fn child_that_drops() {
    let namespace = namespace();
    let own = ([127, 0, 0, 1], 8285).into();
    let config = UdpConfig { flow_ports: 2, ..UdpConfig::default() };
    namespace.enter(|| {
        let before = open_descriptors();
        for queues in [1, 3] {
            let queues = NonZeroUsize::new(queues).expect("not zero");
            let tuns = Tun::open_queues(&TunConfig::default(), queues).expect("a device");
            let sockets = UdpTransport::bind_queues(own, &config, queues).expect("sockets");
            // Each queue has a device, a UDP socket, one for ICMP and one for routes.
            assert_eq!(open_descriptors(), before + 4 * queues.get() + 2);
            namespace.add_address("loden0", "100.96.1.1/16".parse().expect("a network")).expect("address");
            namespace.set_up("loden0").expect("up");
            let mut workers: Vec<_> = tuns
                .into_iter()
                .zip(sockets)
                .map(|(tun, udp)| worker(tun, udp, ([127, 0, 0, 2], 8285).into()))
                .collect();
            let socket = UdpSocket::bind("100.96.1.1:0").expect("bound");
            socket.send_to(b"out", "100.96.2.3:5000").expect("sent");
            for worker in &mut workers {
                worker.tun_ready(Budget::default(), Instant::now()).map(drop).expect("alive");
                worker.udp_ready(Budget::default(), Instant::now()).map(drop).expect("alive");
            }
            drop(socket);
            drop(workers);
            assert_eq!(open_descriptors(), before, "{queues} queues");
            assert!(within(Duration::from_millis(100), || namespace.link_mtu("loden0").expect("asked").is_none()));
            UdpTransport::bind(own, &UdpConfig::default()).expect("nobody has the port");
        }
        // One that was there before us stays, and one that was deleted meanwhile is closed all the same.
        Tun::open(&TunConfig::default()).expect("a device").set_persistent(true).expect("persistent");
        drop(Tun::open(&TunConfig { name: "loden0".into(), ..TunConfig::default() }).expect("the same"));
        assert!(namespace.link_mtu("loden0").expect("asked").is_some());
        let tun = Tun::open(&TunConfig { name: "loden0".into(), ..TunConfig::default() }).expect("the same");
        namespace.delete_link("loden0").expect("deleted");
        drop(tun);
        assert_eq!(open_descriptors(), before);
    });
}

#[test]
fn fault_26_a_1_khz_signal_loses_nothing_and_sends_nothing_twice() {
    in_a_child(":", "limits::child_under_signals");
}

#[test]
#[ignore = "run by fault_26_a_1_khz_signal_loses_nothing_and_sends_nothing_twice"]
fn child_under_signals() {
    static SIGNALS: AtomicU64 = AtomicU64::new(0);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let kind = tokio::signal::unix::SignalKind::user_defined1();
    let mut signals = runtime.block_on(async { tokio::signal::unix::signal(kind) }).expect("a handler");
    thread::spawn(move || {
        runtime.block_on(async {
            while signals.recv().await.is_some() {
                SIGNALS.fetch_add(1, Ordering::Relaxed);
            }
        })
    });
    thread::spawn(|| {
        loop {
            kill(nix::unistd::Pid::this(), Signal::SIGUSR1).expect("sent");
            thread::sleep(Duration::from_millis(1));
        }
    });
    let address = ([127, 0, 0, 1], 0).into();
    let bind = || UdpTransport::bind(address, &UdpConfig::default()).expect("bound");
    let (from, to) = namespace().enter(|| (bind(), bind()));
    let mut batch = RecvBatch::new(32);
    let (mut sent, mut received) = (0_u32, 0_u32);
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(500) {
        // 40 trains of 20 numbers of 4 bytes, each by itself, so that one call does not take them all.
        let contents: Vec<u8> = (sent..sent + 800).flat_map(u32::to_be_bytes).collect();
        sent += 800;
        let train =
            |chunk| Transmit { segment_size: NonZeroUsize::new(4), ..Transmit::datagram(to.local_addr(), chunk) };
        let transmits: Vec<_> = contents.chunks(80).map(train).collect();
        from.send_batch(&transmits, 0).expect("sent");
        while received < sent {
            match to.recv_batch(&mut batch) {
                Ok(_) => {}
                Err(RecvError::WouldBlock) => continue,
                Err(error) => panic!("{error}"),
            }
            for message in batch.iter_mut() {
                let (meta, contents) = message.expect("whole");
                for number in contents.chunks(meta.stride) {
                    assert_eq!(number, received.to_be_bytes());
                    received += 1;
                }
            }
        }
        assert_eq!(to.recv_batch(&mut batch), Err(RecvError::WouldBlock));
    }
    assert!(SIGNALS.load(Ordering::Relaxed) > 50 && received > 10_000);
}
