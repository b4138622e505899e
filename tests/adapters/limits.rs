//! What needs a process of its own: few file descriptors, and signals.

use core::num::NonZeroUsize;
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;
use loden::Transmit;
use loden::sys::{BindError, OpenError, RecvBatch, RecvError, Tun, TunConfig, UdpConfig, UdpTransport};
use nix::sys::signal::{Signal, kill};
use std::fs;
use std::process::Command;
use std::thread;
use std::time::Instant;

use super::support::namespace;

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

#[test]
fn fault_35_nothing_is_left_half_open_without_descriptors() {
    in_a_child("ulimit -n 32", "limits::child_with_32_descriptors");
}

#[test]
#[ignore = "run by fault_35_nothing_is_left_half_open_without_descriptors"]
fn child_with_32_descriptors() {
    let namespace = namespace();
    let open = || fs::read_dir("/proc/self/fd").expect("procfs").count();
    let before = open();
    namespace.enter(|| {
        let many = NonZeroUsize::new(64).expect("not zero");
        for _ in 0..3 {
            let error = Tun::open_queues(&TunConfig::default(), many).expect_err("too many");
            assert!(matches!(error, OpenError::Other { .. }) && error.to_string().contains("os error 24"), "{error}");
            let address = ([127, 0, 0, 1], 8285).into();
            let error = UdpTransport::bind_queues(address, &UdpConfig::default(), many).expect_err("too many");
            assert!(matches!(error, BindError::Other { .. }) && error.to_string().contains("os error 24"), "{error}");
            let flows = UdpConfig { flow_ports: 64, ..UdpConfig::default() };
            UdpTransport::bind(address, &flows).expect_err("too many");
            UdpTransport::bind(address, &UdpConfig::default()).expect("nobody has the port");
        }
    });
    assert_eq!(open(), before);
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
    let (from, to) = (bind(), bind());
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
