//! The kernel's IPv6 router as the oracle (V1 to V11, V13 to V20, V22 to V24). Its results must be those of [`linux`],
//! and equal loden's byte for byte except for the differences of [`known_difference::KnownDifference`].

mod generate;
mod hop_by_hop;
mod known_difference;
mod linux;
mod sweeps;
mod world;

use core::cell::RefCell;
use core::hash::{BuildHasher, Hasher};
use std::collections::BTreeMap;
use std::hash::RandomState;

use loden::forward::ReplyTo;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

use crate::SEED;
use crate::compare::{fate, hex};
use crate::known_difference::Applied;
use crate::router::Place;
use generate::Shape;
use hop_by_hop::Options;
use known_difference::KnownDifference;
use support::host::Outcome;
use support::packet_v6::HOP_BY_HOP;
use sweeps::Way;
use testbed::has_ipv6;
use world::World;

/// Generated packets of each seed.
const PACKETS: u32 = 8000;

/// Checks packets from the TUN: V1 to V11, V13 to V20, and V22 to V24.
#[test]
fn v1_to_v11_encapsulation_of_ipv6_is_the_kernels_forwarding() {
    if !has_ipv6() {
        return;
    }
    run(
        World::outbound(),
        &[
            "answer no_route",
            "reject no_route",
            "answer fragmentation_needed",
            "reject fragmentation_needed",
            "drop loop",
            "drop below_ipv6_minimum",
        ],
    );
}

/// Checks packets from peers: V1 to V11, V15 to V20, and V22.
#[test]
fn v1_to_v11_decapsulation_of_ipv6_is_the_kernels_forwarding() {
    if !has_ipv6() {
        return;
    }
    run(World::inbound(), &["drop spoofed_source", "drop foreign_destination"]);
}

/// Outcomes of both directions.
const FATES: [&str; 14] = [
    "forward",
    "answer time_exceeded",
    "reject time_exceeded",
    "drop too_short",
    "drop bad_version",
    "drop ipv4_not_carried",
    "drop truncated",
    "drop jumbogram",
    "drop source_route",
    "drop ipv6_multicast",
    "drop martian_source",
    "drop link_local",
    "drop martian_destination",
    "drop ttl_zero",
];

/// Runs all packets. `fates` must occur, beside those of every direction.
fn run(world: World, fates: &[&str]) {
    let mut run = Run::new(world);
    let entries = run.world.entries.clone();
    for entry in &entries {
        Way::of(*entry).sweep(&mut |shape| {
            if let Err(difference) = run.check(*entry, &shape.bytes()) {
                panic!("{difference}");
            }
        });
    }
    let swept = run.compared;
    let dead = run.applied.dead(run.world.known_differences);
    assert_eq!(dead, Vec::<&KnownDifference>::new(), "known differences that no packet showed");
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
    assert!(run.compared >= 50_000 && generated >= 15_000, "{} packets, {generated} generated", run.compared);
    assert!(run.left_out * 50 < run.compared, "{} packets left out", run.left_out);
    for fate in fates.iter().chain(&FATES) {
        assert!(run.fates.get(*fate).is_some_and(|count| *count >= 20), "{fate}: {:?}", run.fates);
    }
}

/// Runs the packets of a seed. The first difference is reduced to the simplest packet that shows it.
fn generated(run: &RefCell<Run>, way: Way, seed: u64, packets: u32) -> Result<(), String> {
    let config = Config { cases: packets, failure_persistence: None, max_shrink_iters: 2000, ..Config::default() };
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[seed.to_le_bytes(); 4].concat());
    let check = |shape: Shape| run.borrow_mut().check(way.entry, &shape.bytes()).map_err(TestCaseError::fail);
    match TestRunner::new_with_rng(config, rng).run(&generate::shapes(way), check) {
        Ok(()) => Ok(()),
        Err(TestError::Fail(difference, shape)) => Err(format!("{difference}\n{shape:x?}")),
        Err(TestError::Abort(reason)) => Err(reason.to_string()),
    }
}

struct Run {
    world: World,
    compared: u64,
    /// Packets for which the kernel is not an oracle.
    left_out: u64,
    applied: Applied<KnownDifference>,
    /// The outcomes of the packets.
    fates: BTreeMap<String, u64>,
}

impl Run {
    fn new(world: World) -> Self {
        Self { world, compared: 0, left_out: 0, applied: Applied::default(), fates: BTreeMap::new() }
    }

    /// Sends a packet through both.
    ///
    /// # Errors
    /// A description of a difference that is not a known one.
    fn check(&mut self, entry: Place, packet: &[u8]) -> Result<(), String> {
        let ours = self.world.ours(entry, packet);
        // A known difference follows from the list, not from this program.
        assert_eq!(ours, self.world.by_the_list(entry, packet), "{}", hex(packet));
        assert_eq!(ours, self.world.ours_otherwise(entry, packet), "V23, V31: {}", hex(packet));
        if self.world.concerns_the_router(packet) || has_unpredictable_options(packet) {
            self.left_out += 1;
            return Ok(());
        }
        let expected: Vec<_> = linux::output(&self.world, entry, packet).into_iter().collect();
        let seen = self.world.router.pass(entry, packet);
        let told = |what: &str, other: &[(Place, Vec<u8>)]| {
            format!(
                "in by {}: {}\nour verdict: {}\n{what}:{}\nthe kernel sent:{}",
                self.world.router.link(entry).name,
                hex(packet),
                fate(&ours),
                self.named(other),
                self.named(&seen),
            )
        };
        if expected != seen {
            return Err(told("the kernel should have sent", &expected));
        }
        let sent: Vec<_> = emission(&ours).into_iter().collect();
        if sent != seen {
            match KnownDifference::of(&self.world, entry, packet, &ours) {
                Some(difference) if self.world.known_differences.contains(&difference) => {
                    self.applied.count(&[difference]);
                }
                Some(difference) => return Err(told(&format!("{difference:?} is not known here; ours"), &sent)),
                None => return Err(told("not a known difference; ours", &sent)),
            }
        }
        self.compared += 1;
        *self.fates.entry(fate(&ours)).or_default() += 1;
        Ok(())
    }

    fn named(&self, emissions: &[(Place, Vec<u8>)]) -> String {
        let name = |place| self.world.router.link(place).name;
        emissions.iter().map(|(place, bytes)| format!("\n  {}: {}", name(*place), hex(bytes))).collect()
    }
}

/// Returns the packet that loden sends, with its place.
fn emission(outcome: &Outcome) -> Option<(Place, Vec<u8>)> {
    match outcome {
        Outcome::Forward { to, bytes } => Some((to.map_or(Place::Tun, Place::Peer), bytes.clone())),
        Outcome::Reject { answer: Some((ReplyTo::Tun, message)), .. } => Some((Place::Tun, message.clone())),
        Outcome::Reject { answer: Some((ReplyTo::Peer(peer), message)), .. } => {
            Some((Place::Peer(*peer), message.clone()))
        }
        Outcome::Reject { .. } | Outcome::Drop(_) => None,
        Outcome::Fragments { .. } => panic!("V23: IPv6 packets are never fragmented"),
    }
}

fn has_unpredictable_options(packet: &[u8]) -> bool {
    if packet.len() < 48 || packet[6] != HOP_BY_HOP {
        return false;
    }
    let len = usize::from(u16::from_be_bytes([packet[4], packet[5]]));
    let whole = if len == 0 { packet } else { packet.get(..40 + len).unwrap_or_default() };
    hop_by_hop::walk(whole) == Options::Unpredictable
}
