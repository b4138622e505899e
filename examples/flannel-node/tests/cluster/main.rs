//! Nodes with a real etcd, each host and each pod in its own network namespace. The tests need root and `etcd` on the
//! path; the repository's test command provides both.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may fail by panicking")]

mod config;
mod container;
mod drop_in;
mod dual_stack;
mod etcd;
mod exchange;
mod history;
mod hosts;
mod leases;
mod node;
mod operator;
mod own_subnets;
mod peers;
mod poison;
mod races;
mod readers;
mod rules;
mod service;
mod survive;
mod tls;
mod traffic;
mod unit_file;
mod words;

use std::time::{Duration, Instant};

/// The timeout of operations on a busy machine.
const SOON: Duration = Duration::from_secs(30);

/// Waits until a condition holds.
fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < SOON, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
