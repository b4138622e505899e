//! R67: every packet is in exactly one counter at every step. The names of the reasons.

use std::collections::HashSet;

use loden::forward::{Counters, DirectionCounters, DropReason, Stats};
use proptest::prelude::*;

/// A step of a caller: it receives packets, or gives a held packet its outcome.
#[derive(Clone, Copy, Debug)]
enum Step {
    Receive,
    Forward,
    Answer,
    Discard(DropReason),
    /// The number of packets of a step.
    ForwardAll(u64),
    DiscardAll(DropReason, u64),
}

fn step() -> impl Strategy<Value = Step> {
    let reason = || (0..DropReason::ALL.len()).prop_map(|i| DropReason::ALL[i]);
    prop_oneof![
        8 => Just(Step::Receive),
        2 => Just(Step::Forward),
        1 => Just(Step::Answer),
        2 => reason().prop_map(Step::Discard),
        1 => (0..4_u64).prop_map(Step::ForwardAll),
        1 => (reason(), 0..4_u64).prop_map(|(reason, packets)| Step::DiscardAll(reason, packets)),
    ]
}

/// The oracle: a list of fates, one for every received packet that is not held.
#[derive(Clone, Default)]
struct Ledger {
    held: u64,
    forwarded: u64,
    answered: u64,
    dropped: Vec<DropReason>,
}

/// Applies a step to both, unless there are too few packets for it.
fn take(step: Step, flow: &mut DirectionCounters, ledger: &mut Ledger) {
    if let Step::Receive = step {
        flow.receive();
        ledger.held += 1;
        return;
    }
    let packets = match step {
        Step::ForwardAll(packets) | Step::DiscardAll(_, packets) => packets,
        Step::Receive | Step::Forward | Step::Answer | Step::Discard(_) => 1,
    };
    let Some(held) = ledger.held.checked_sub(packets) else { return };
    ledger.held = held;
    match step {
        Step::Receive => {}
        Step::Forward => {
            flow.forward();
            ledger.forwarded += 1;
        }
        Step::Answer => {
            flow.answer();
            ledger.answered += 1;
        }
        Step::Discard(reason) => {
            flow.discard(reason);
            ledger.dropped.push(reason);
        }
        Step::ForwardAll(packets) => {
            flow.forward_all(packets);
            ledger.forwarded += packets;
        }
        Step::DiscardAll(reason, packets) => {
            flow.discard_all(reason, packets);
            ledger.dropped.extend((0..packets).map(|_| reason));
        }
    }
}

fn assert_same(flow: &DirectionCounters, ledger: &Ledger) {
    assert!(flow.is_conserved(), "R67: {flow:?}");
    let Ledger { held, forwarded, answered, ref dropped } = *ledger;
    let received = held + forwarded + answered + dropped.len() as u64;
    assert_eq!(
        [flow.received(), flow.held(), flow.forwarded(), flow.answered()],
        [received, held, forwarded, answered]
    );
    let mut expected = Vec::new();
    for reason in DropReason::ALL {
        let count = dropped.iter().filter(|dropped| *dropped == reason).count() as u64;
        assert_eq!(flow.dropped(*reason), count, "{reason}");
        expected.extend((count > 0).then_some((*reason, count)));
    }
    assert_eq!(flow.drops().collect::<Vec<_>>(), expected, "in the order of the checks, without zeros");
}

proptest! {
    #[test]
    fn r67_flows_are_conserved_at_every_step(steps in proptest::collection::vec(step(), 0..200)) {
        let (mut flow, mut ledger) = (DirectionCounters::default(), Ledger::default());
        for step in steps {
            take(step, &mut flow, &mut ledger);
            assert_same(&flow, &ledger);
        }
    }

    /// The sum of workers' counters equals the counters of one worker with all packets.
    #[test]
    fn r67_sums_are_conserved(workers in proptest::collection::vec(proptest::collection::vec(step(), 0..40), 0..5)) {
        let (mut sum, mut encap, mut decap) = (Counters::default(), Ledger::default(), Ledger::default());
        for steps in workers {
            let mut worker = Counters::default();
            let (mut out, mut back) = (Ledger::default(), Ledger::default());
            for (i, step) in steps.into_iter().enumerate() {
                match i % 3 {
                    0 => take(step, &mut worker.decap, &mut back),
                    _ => take(step, &mut worker.encap, &mut out),
                }
                worker.stats.trimmed += 1;
                worker.stats.icmp_limited += 2;
            }
            sum += &worker;
            for (total, part) in [(&mut encap, out), (&mut decap, back)] {
                total.held += part.held;
                total.forwarded += part.forwarded;
                total.answered += part.answered;
                total.dropped.extend(part.dropped);
            }
        }
        assert_same(&sum.encap, &encap);
        assert_same(&sum.decap, &decap);
        prop_assert_eq!(sum.stats.icmp_limited, sum.stats.trimmed * 2);
    }
}

/// Each number is different, so that a missing or misplaced one shows.
#[test]
fn each_stat_is_summed_and_named() {
    let times = |factor: u64| {
        let mut stats = Stats::default();
        stats.trimmed = factor;
        stats.icmp_limited = 2 * factor;
        stats.read_errors = 3 * factor;
        stats.path_mtu_lowered = 4 * factor;
        stats.segments_made = 5 * factor;
        stats.fragments_made = 6 * factor;
        stats.coalesced = 7 * factor;
        stats.gso_fallbacks = 8 * factor;
        stats.tun_fallbacks = 9 * factor;
        stats.control_received = 10 * factor;
        stats.control_sent = 11 * factor;
        stats.control_unsent = 12 * factor;
        stats
    };
    let mut sum = times(1);
    sum += &times(10);
    assert_eq!(sum, times(11));
    let names = [
        "trimmed",
        "icmp_limited",
        "read_errors",
        "path_mtu_lowered",
        "segments_made",
        "fragments_made",
        "coalesced",
        "gso_fallbacks",
        "tun_fallbacks",
        "control_received",
        "control_sent",
        "control_unsent",
    ];
    assert!(sum.named().eq(names.into_iter().zip((11..).step_by(11))), "{sum:?}");
}

/// A fate for a packet that was not received breaks the invariant, so the check can fail.
#[test]
fn r67_a_fate_without_a_packet_is_noticed() {
    let mut flow = DirectionCounters::default();
    flow.forward();
    assert!(!flow.is_conserved());
}

/// `ALL` is complete and in order. The macro that makes both ensures that no value is missing. This test ensures that
/// the last discriminant is the last index.
#[test]
fn reasons_are_numbered_in_the_order_of_the_list() {
    for (i, reason) in DropReason::ALL.iter().enumerate() {
        assert_eq!(*reason as usize, i, "{reason}");
    }
    let last = DropReason::Stopped as usize;
    assert_eq!(last + 1, DropReason::ALL.len());
}

#[test]
fn reasons_have_names_of_their_own() {
    let names: HashSet<_> = DropReason::ALL.iter().map(|reason| reason.name()).collect();
    assert_eq!(names.len(), DropReason::ALL.len());
    for reason in DropReason::ALL {
        let name = reason.name();
        assert_eq!(name, snake_case(&format!("{reason:?}")), "the name is that of the variant");
        assert_eq!(name, reason.to_string());
    }
}

#[test]
fn debug_output_names_the_reasons() {
    let mut counters = DirectionCounters::default();
    counters.receive();
    counters.discard(DropReason::NoRoute);
    let text = "DirectionCounters { received: 1, forwarded: 0, answered: 0, held: 0, no_route: 1 }";
    assert_eq!(format!("{counters:?}"), text);
}

/// Converts `Ipv6NotCarried` to `ipv6_not_carried`.
fn snake_case(camel: &str) -> String {
    let mut snake = String::new();
    for letter in camel.chars() {
        if letter.is_ascii_uppercase() && !snake.is_empty() {
            snake.push('_');
        }
        snake.push(letter.to_ascii_lowercase());
    }
    snake
}
