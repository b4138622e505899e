//! The soak: two hosts with two real tunnels, mixed traffic, continuous route changes, and a sequence of faults. Memory
//! stays constant, every packet is counted at every moment, and only packets that the test itself drops are lost. Needs
//! root.
//!
//! ```text
//!  fault-free ──────────────▶ faulty ─────────────▶ settled ──▶ fault-free …
//!  nothing may be lost;  one fault; what may  the path is whole, the
//!  misfits are counted   be lost is listed    counters stand still
//! ```
//!
//! It takes a minute, or `LODEN_SOAK_SECONDS`. It prints the seed of the order of the faults, and `LODEN_SOAK_SEED`
//! repeats it.
#![expect(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod answers;
mod chance;
mod churn;
mod fault;
mod fault_free;
mod fault_schedule;
mod lab;
mod misfits;
mod settle;
mod side;
mod stage;
mod traffic;
mod tunnel;

use core::time::Duration;
use std::env;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use fault_schedule::Soak;

const SECONDS: &str = "LODEN_SOAK_SECONDS";
const SEED: &str = "LODEN_SOAK_SEED";

/// The tests run one at a time, because one counts threads and each would be load for the other.
static TURN: Mutex<()> = Mutex::new(());

fn number(name: &str) -> Option<u64> {
    env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is no whole number: {text:?}")))
}

/// R67 and the faults 29, 31, 33, 36 to 38, 43 and 46 in one long run.
#[test]
fn a_long_time_of_everything_at_once() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let seed = number(SEED).unwrap_or_else(chance::any_seed);
    let length = Duration::from_secs(number(SECONDS).unwrap_or(60));
    println!("{SEED}={seed} {SECONDS}={}", length.as_secs());
    let mut soak = Soak::begin(seed);
    soak.last(length);
    soak.end();
}

/// A failing check leaves no program, no thread and no file.
#[test]
fn a_failure_leaves_nothing_behind() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let (mut programs, mut directory) = (Vec::new(), None);
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let mut soak = Soak::begin(1);
        programs = soak.programs();
        directory = Some(soak.directory());
        soak.last(Duration::from_secs(1));
        panic!("as a check would");
    }));
    assert_eq!(outcome.unwrap_err().downcast_ref(), Some(&"as a check would"));
    assert_eq!(programs.len(), 2);
    let ours = format!("{}", std::process::id());
    let is_ours = |id: &u32| {
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        stat.rsplit_once(')').and_then(|(_, rest)| rest.split_ascii_whitespace().nth(1)) == Some(&ours)
    };
    assert!(!programs.iter().any(is_ours), "a tunnel is left");
    assert!(!directory.unwrap().exists(), "its control sockets are left");
    // The readers of the tunnels' output end with it.
    let start = Instant::now();
    while names_of_threads().iter().any(|name| name.starts_with("flow-") || name.starts_with("child-")) {
        assert!(start.elapsed() < Duration::from_secs(5), "threads are left: {:?}", names_of_threads());
    }
}

fn names_of_threads() -> Vec<String> {
    let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
    tasks.filter_map(|task| fs::read_to_string(task.path().join("comm")).ok()).collect()
}
