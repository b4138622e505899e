//! The kernel as the oracle: every packet passes loden's forwarder and a Linux router. Their outputs must be equal byte
//! for byte, except for the differences of [`known_difference::KnownDifference`], each with its reason. Needs root. IPv6 has
//! a router and differences of its own, see [`v6`].
//!
//! A run has the packets of [`sweeps`], those of a fixed seed, and those of a new seed. A difference is printed with the seed;
//! `LODEN_ORACLE_SEED` repeats it.
#![expect(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod answer;
mod compare;
mod generate;
mod kernel;
mod known_difference;
mod options;
mod reference;
mod router;
mod shape;
mod sweeps;
mod v6;
mod world;

use core::cell::RefCell;
use core::hash::{BuildHasher, Hasher};
use std::hash::RandomState;

use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

use compare::Run;
use known_difference::KnownDifference;
use sweeps::Way;
use world::World;

pub(crate) const SEED: &str = "LODEN_ORACLE_SEED";

/// Generated packets of each seed.
const PACKETS: u32 = 5500;

/// Checks packets from the TUN.
#[test]
fn encapsulation_is_the_kernels_forwarding() {
    run(
        World::outbound(),
        &[
            "forward",
            "fragments",
            "answer no_route",
            "answer time_exceeded",
            "answer fragmentation_needed",
            "reject no_route",
            "reject time_exceeded",
            "reject fragmentation_needed",
            "drop loop",
            "drop not_fragmented",
        ],
    );
}

/// Checks packets from peers. The kernel checks sources against its routes.
#[test]
fn decapsulation_is_the_kernels_forwarding() {
    let fates =
        ["forward", "answer time_exceeded", "reject time_exceeded", "drop spoofed_source", "drop foreign_destination"];
    run(World::inbound(), &fates);
}

/// Runs all packets. `fates` must occur, beside those of every direction.
fn run(world: World, fates: &[&str]) {
    let mut run = Run::new(world);
    let entries = run.world.entries.clone();
    for entry in &entries {
        Way::of(*entry).sweep(&mut |shape| {
            if let Err(difference) = run.check(*entry, &shape) {
                panic!("{difference}");
            }
        });
    }
    let swept = run.compared;
    assert_eq!(
        run.applied.dead(run.world.known_differences),
        Vec::<&KnownDifference>::new(),
        "known differences that no packet showed"
    );
    let new = match std::env::var(SEED) {
        Ok(seed) => seed.parse().expect("a number"),
        Err(_) => RandomState::new().build_hasher().finish(),
    };
    let run = RefCell::new(run);
    for seed in [0, new] {
        for entry in &entries {
            let share = PACKETS / entries.len() as u32;
            if let Err(difference) = generated(&run, Way::of(*entry), seed, share) {
                panic!("{difference}\nrepeat it with {SEED}={seed}");
            }
        }
    }
    let run = run.into_inner();
    let generated = run.compared - swept;
    println!("{} packets, {generated} of them generated; {} left out\n{}", run.compared, run.left_out, run.applied);
    assert!(run.compared >= 20_000 && generated >= 10_000, "{} packets, {generated} generated", run.compared);
    assert!(run.left_out * 50 < run.compared, "{} packets left out", run.left_out);
    for fate in fates.iter().chain(&FATES) {
        assert!(run.fates.get(*fate).is_some_and(|count| *count >= 20), "{fate}: {:?}", run.fates);
    }
}

/// The sections on headers, addresses and TTL of `docs/conformance.md`.
const FATES: [&str; 15] = [
    "drop too_short",
    "drop bad_version",
    "drop ipv6_not_carried",
    "drop bad_header_length",
    "drop header_truncated",
    "drop bad_total_length",
    "drop truncated",
    "drop bad_checksum",
    "drop bad_option",
    "drop source_route",
    "drop martian_source",
    "drop martian_destination",
    "drop link_local",
    "drop multicast_destination",
    "drop ttl_zero",
];

/// Runs the packets of a seed. The first difference is reduced to the simplest packet that shows it.
fn generated(run: &RefCell<Run>, way: Way, seed: u64, packets: u32) -> Result<(), String> {
    let config = Config { cases: packets, failure_persistence: None, max_shrink_iters: 2000, ..Config::default() };
    let bytes = [seed.to_le_bytes(); 4].concat();
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let outcome = TestRunner::new_with_rng(config, rng)
        .run(&generate::shapes(way), |shape| run.borrow_mut().check(way.entry, &shape).map_err(TestCaseError::fail));
    match outcome {
        Ok(()) => Ok(()),
        Err(TestError::Fail(difference, shape)) => Err(format!("{difference}\n{shape:x?}")),
        Err(TestError::Abort(reason)) => Err(reason.to_string()),
    }
}
