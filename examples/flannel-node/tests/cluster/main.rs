//! Nodes against a real etcd, each host and each pod in a network namespace of its own. They need root and `etcd` on the path;
//! the repository's test command brings both.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may fail by panicking")]

mod config;
mod etcd;
mod history;
mod hosts;
mod leases;
mod node;
mod operator;
mod peers;
mod poison;
mod races;
mod readers;
mod survive;
mod tls;
mod traffic;

use std::time::{Duration, Instant};

/// How long things may take on a machine that has more to do.
const SOON: Duration = Duration::from_secs(30);

/// Waits until something holds.
fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < SOON, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
