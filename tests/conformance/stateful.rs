//! Histories of a whole host against a host of lists: those of the corpus, and random ones.
//!
//! `LODEN_WRITE_SEEDS=1 cargo test --test conformance seeds` writes those of the corpus anew.

use loden::forward::{Counters, DropReason};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use bodies::stateful::script::op;
use bodies::stateful::{history, run};
use support::corpus::{assert_committed, run_over};
use support::scenario::policy;

type Step = [u8; 5];

#[test]
fn stateful_over_the_corpus() {
    run_over("stateful", run);
}

#[test]
fn the_committed_seeds_are_these() {
    assert_committed("stateful", seeds());
}

/// Mostly packets that could go somewhere, and all the rest.
fn step() -> impl Strategy<Value = Step> {
    let rest = || any::<[u8; 3]>();
    let often = [op::FLUSH, op::FLUSH, op::FLUSH, op::FLUSH, op::PUBLISH, op::ADDED, op::REPORT];
    let ops = proptest::sample::select((op::IN..op::STOP).chain([op::TUN]).chain(often).collect::<Vec<_>>());
    prop_oneof![
        3 => (0u8..3, 2u8..8, any::<u8>(), 0u8..16, any::<u8>())
            .prop_map(|(from, to, kind, length, batch)| [op::OUT, from << 4 | to, kind, length, batch]),
        1 => (any::<u8>(), rest()).prop_map(|(addresses, [kind, shape, batch])| [op::OUT, addresses, kind, shape, batch]),
        1 => (2u8..6, 0u8..2, any::<u8>(), 0u8..16, 0u8..2)
            .prop_map(|(from, to, kind, length, sender)| [op::IN, from << 4 | to, kind, length, sender]),
        4 => (ops, any::<u8>(), any::<u8>(), rest())
            .prop_map(|(op, source, a, [b, c, d])| [source << 4 | op, a, b, c, d]),
    ]
}

/// One of those, or a path that takes nothing for some time.
fn steps() -> impl Strategy<Value = Vec<Step>> {
    let mishap = prop_oneof![Just(n::FULL_SOCKET), Just(n::NO_BUFFERS)];
    let stuck = (mishap, 0u8..3, n::MS_1..=n::S_1).prop_map(|(mishap, go, time)| {
        let (short, again) = (to_a(n::DF, n::SHORT), flush(0, mishap));
        vec![short, short, short, flush(go, mishap), pass(time), short, again, pass(time), again]
    });
    prop_oneof![20 => step().prop_map(|step| vec![step]), 1 => stuck]
}

fn script() -> impl Strategy<Value = Vec<u8>> {
    let policy = prop_oneof![2 => Just(0u8), 1 => any::<u8>()];
    let steps = vec(steps(), 1..80).prop_map(|steps| steps.concat());
    (policy, any::<u8>(), steps).prop_map(|(policy, mtu, steps)| [&[policy, mtu], &steps.concat()[..]].concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn any_history_is_that_of_the_lists(script in script()) {
        run(&script);
    }
}

/// The histories are such that everything happens in them.
#[test]
fn the_histories_reach_every_fate() {
    let (mut runner, mut total) = (TestRunner::deterministic(), Counters::default());
    for _ in 0..400 {
        total += &history(&script().new_tree(&mut runner).unwrap().current()).unwrap();
    }
    let Counters { encap, decap, stats } = &total;
    assert!(
        encap.forwarded() > 500 && encap.answered() > 200 && decap.forwarded() > 200 && decap.answered() > 20,
        "{total:?}"
    );
    let of_sending = [
        DropReason::SendBufferFull,
        DropReason::SendNoBuffers,
        DropReason::SendRefused,
        DropReason::SendUnreachable,
        DropReason::SendForbidden,
        DropReason::SendFailed,
        DropReason::NotFragmented,
        DropReason::FragmentationNeeded,
        DropReason::PathTooNarrow,
        DropReason::StaleRoute,
        DropReason::Stopped,
    ];
    for reason in of_sending {
        assert!(encap.dropped(reason) > 10, "{reason}: {encap:?}");
    }
    for reason in [DropReason::TunDown, DropReason::TunFailed, DropReason::TunFull] {
        assert!(decap.dropped(reason) > 3, "{reason}: {decap:?}");
    }
    let cut = stats.fragments_made.min(stats.segments_made);
    assert!(stats.icmp_limited > 50 && stats.path_mtu_lowered > 50 && cut > 200, "{stats:?}");
}

/// Numbers of what is in the lists of the script.
mod n {
    pub(crate) const POD: u8 = 0;
    pub(crate) const OTHER_POD: u8 = 1;
    pub(crate) const POD_A: u8 = 2;
    pub(crate) const POD_B: u8 = 4;
    pub(crate) const NOBODY: u8 = 5;
    /// Host A as next hop, as sender, and its subnet; and B likewise.
    pub(crate) const A: u8 = 0;
    pub(crate) const B: u8 = 1;
    pub(crate) const DF: u8 = 0;
    pub(crate) const NO_DF: u8 = 1;
    pub(crate) const TTL_1: u8 = 2 << 5;
    /// 100 bytes of data, and the most that the overlay carries.
    pub(crate) const SHORT: u8 = 4;
    pub(crate) const FULL: u8 = 13;
    pub(crate) const LAST_OFFSET: u8 = 7;
    pub(crate) const MTU_576: u8 = 3;
    pub(crate) const MTU_68: u8 = 4;
    pub(crate) const OUTER_1000: u8 = 5;
    pub(crate) const MS_1: u8 = 0;
    pub(crate) const MS_50: u8 = 2;
    pub(crate) const S_1: u8 = 4;
    pub(crate) const MIN_10_LESS_1_MS: u8 = 6;
    pub(crate) const ENDS_AFTER_50_MS: u8 = 2;
    pub(crate) const NOTHING: u8 = 0;
    pub(crate) const FULL_SOCKET: u8 = 1;
    pub(crate) const NO_BUFFERS: u8 = 2;
    pub(crate) const REFUSED: u8 = 3;
    pub(crate) const UNEXPLAINED: u8 = 4;
    pub(crate) const TOO_LONG: u8 = OUTER_1000 << 3 | 5;
    pub(crate) const TOO_LONG_68: u8 = 3 << 3 | 5;
    pub(crate) const UNREACHABLE: u8 = 6;
    /// To be cut into segments with 480 or 1000 bytes of data.
    pub(crate) const GSO_480: u8 = 64 | 1;
    pub(crate) const GSO_1000: u8 = 64 | 3;
}

const FLUSH: Step = flush(0, n::NOTHING);

fn out(from: u8, to: u8, kind: u8, length: u8) -> Step {
    [op::OUT, from << 4 | to, kind, length, 0]
}

fn to_a(kind: u8, length: u8) -> Step {
    out(n::POD, n::POD_A, kind, length)
}

fn of_the_same_batch([op, a, b, c, _]: Step) -> Step {
    [op, a, b, c, 1]
}

fn gso([op, a, b, c, _]: Step, gso: u8) -> Step {
    [op, a, b, c, gso << 1]
}

const fn flush(go: u8, mishap: u8) -> Step {
    [op::FLUSH, go, mishap, 0, n::NOTHING]
}

fn pass(time: u8) -> Step {
    [op::PASS, time, 0, 0, 0]
}

fn added(key: u8, subnet: u8, hop: u8, end: u8) -> Step {
    [op::ADDED, key, subnet, hop, end]
}

fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    const PUBLISH: Step = [op::PUBLISH, 0, 0, 0, 0];
    const LOST: Step = [op::SOURCE_LOST, 0, 0, 0, 0];
    const STOP: Step = [op::STOP, 0, 0, 0, 0];
    let (short, full) = (to_a(n::DF, n::SHORT), to_a(n::DF, n::FULL));
    let to_b = out(n::POD, n::POD_B, n::DF, n::SHORT);
    let from_a = |kind| [op::IN, n::POD_A << 4 | n::POD, kind, n::SHORT, n::A];
    let no_route = |from| out(from, n::NOBODY, n::DF, n::SHORT);
    let gone = [op::ROUTE, n::A, 0, 0, 1];
    let tight = [op::ROUTE, n::A, n::A, n::MTU_68, 0];
    let report = [op::REPORT, n::OUTER_1000, 0, n::A, 0];
    let pieces = to_a(n::NO_DF, n::FULL);
    let in_from_a = |addresses, kind, shape| [op::IN, addresses, kind, shape, n::A];
    let every_address =
        (0..16).flat_map(|to| [out(n::POD, to, n::DF, n::SHORT), in_from_a(n::POD_A << 4 | to, n::DF, n::SHORT)]);
    let every_defect = (0..6)
        .map(|defect| defect << 4 | n::SHORT)
        .flat_map(|shape| [to_a(n::DF, shape), in_from_a(n::POD_A << 4, n::DF, shape)]);
    let every_kind =
        (0..32).map(|kind| to_a(kind << 3 | n::NO_DF, n::FULL)).chain((0..8).map(|fragment| to_a(fragment, n::FULL)));
    let every_lease = (0..13).map(|number| added(number, number, number, number)).chain([
        PUBLISH,
        short,
        [op::SNAPSHOT, 7, 5, 8, 0],
        PUBLISH,
        short,
    ]);
    let every_route = (0..13).flat_map(|number| [[op::ROUTE, number, number, number, 0], short, to_b]);
    let histories: Vec<(&'static str, u8, Vec<Step>)> = vec![
        ("addresses-of-every-kind", policy::TRANSIT, every_address.collect()),
        ("defects-of-every-kind", 0, every_defect.collect()),
        ("kinds-of-packets", 0, every_kind.chain([FLUSH]).collect()),
        ("leases-of-every-kind", 0, every_lease.chain([FLUSH]).collect()),
        ("routes-of-every-kind", 0, every_route.chain([FLUSH]).collect()),
        (
            "answer-from-the-far-end",
            0,
            vec![from_a(n::TTL_1), [op::IN, n::POD_B << 4 | n::POD, n::TTL_1, n::SHORT, n::B]],
        ),
        (
            "answers-over-all",
            0,
            (0..3).flat_map(|_| [n::POD, n::OTHER_POD, n::POD_A, n::POD_B].map(no_route)).collect(),
        ),
        (
            "answers-per-source",
            0,
            [vec![no_route(n::POD); 5], vec![pass(n::MS_50), no_route(n::POD), pass(n::MS_50), no_route(n::POD)]]
                .concat(),
        ),
        ("batch-keeps-its-table", 0, vec![short, gone, of_the_same_batch(short), short, FLUSH]),
        ("both-ways", 0, vec![short, FLUSH, from_a(n::DF), to_b, FLUSH]),
        (
            "clock-goes-back",
            0,
            vec![
                no_route(n::POD),
                no_route(n::POD),
                [op::PASS, n::S_1, 7, 0, 0],
                no_route(n::POD),
                no_route(n::POD),
                pass(n::S_1),
                no_route(n::POD),
            ],
        ),
        (
            "gso-packets-on-paths-of-any-width",
            0,
            vec![
                gso(full, n::GSO_1000),
                FLUSH,
                gso(full, n::GSO_480),
                flush(3, n::REFUSED),
                gso(full, n::GSO_1000),
                flush(0, n::TOO_LONG),
                gso(pieces, n::GSO_1000),
                FLUSH,
                gso(pieces, n::GSO_480),
                flush(1, n::FULL_SOCKET),
                gso(full, n::GSO_1000),
            ],
        ),
        (
            "lease-ends-but-not-while-its-source-is-lost",
            0,
            vec![
                added(1, 8, n::B, n::ENDS_AFTER_50_MS),
                PUBLISH,
                LOST,
                pass(n::S_1),
                PUBLISH,
                no_route(n::POD),
                added(2, 9, n::A, 0),
                PUBLISH,
                pass(n::MS_50),
                PUBLISH,
                no_route(n::POD),
                FLUSH,
            ],
        ),
        (
            "lease-moves",
            0,
            vec![added(1, 0, n::A, 0), PUBLISH, short, added(1, 0, n::B, 0), short, PUBLISH, short, FLUSH],
        ),
        (
            "leases-listed-and-listed-again",
            0,
            vec![[op::SNAPSHOT, 5, 0, 0, 0], PUBLISH, [op::SNAPSHOT, 3, 1, 1, 0], short, PUBLISH, short, FLUSH],
        ),
        (
            "leases-of-two-sources-for-one-subnet",
            0,
            vec![
                added(1, 0, n::A, 0),
                [1 << 4 | op::ADDED, 1, 0, n::B, 0],
                PUBLISH,
                short,
                [op::REMOVED, 1, 0, 0, 0],
                PUBLISH,
                short,
                FLUSH,
            ],
        ),
        (
            "path-full-for-too-long",
            0,
            vec![
                short,
                to_b,
                flush(0, n::FULL_SOCKET),
                pass(n::S_1),
                short,
                to_b,
                flush(0, n::FULL_SOCKET),
                pass(n::S_1),
                flush(0, n::FULL_SOCKET),
                FLUSH,
            ],
        ),
        ("path-full-up-to-its-bound", 0, [[pieces; 6].as_slice(), &[to_b, gso(full, n::GSO_480), FLUSH]].concat()),
        ("path-narrows-in-a-train", 0, vec![full, pieces, short, flush(0, n::TOO_LONG)]),
        (
            "path-narrows-for-what-cannot-be-fragmented",
            0,
            vec![to_a(n::LAST_OFFSET, n::FULL), full, flush(0, n::TOO_LONG)],
        ),
        (
            "path-narrows-where-no-ttl-is-taken",
            policy::TTL_PRESERVE,
            vec![to_a(n::TTL_1, n::FULL), flush(0, n::TOO_LONG)],
        ),
        ("path-narrows-without-a-word", 0, vec![full, short, flush(0, n::UNEXPLAINED)]),
        (
            "path-reported-and-confirmed",
            0,
            vec![report, full, pass(n::MIN_10_LESS_1_MS), report, pass(n::MS_1), full, pieces, FLUSH],
        ),
        (
            "path-reported-by-a-stranger",
            0,
            vec![[op::REPORT, n::OUTER_1000, 2, n::A, 0], [op::REPORT, 2, 0, n::A, 0], full, FLUSH],
        ),
        (
            "pieces-fill-the-trains",
            0,
            vec![tight, pieces, to_b, pieces, to_b, pieces, flush(2, n::FULL_SOCKET), flush(1, n::REFUSED), FLUSH],
        ),
        (
            "pieces-in-pieces",
            0,
            vec![[op::ROUTE, n::A, n::A, n::MTU_576, 0], pieces, pieces, flush(1, n::TOO_LONG_68), FLUSH],
        ),
        (
            "route-gone-while-packets-wait",
            0,
            vec![short, to_b, flush(0, n::FULL_SOCKET), gone, to_b, pass(n::MS_50), FLUSH],
        ),
        (
            "socket-has-no-memory",
            0,
            vec![
                short,
                pieces,
                flush(1, n::NO_BUFFERS),
                pass(n::MS_1),
                flush(0, n::NO_BUFFERS),
                pass(n::MS_50),
                flush(0, n::NO_BUFFERS),
                short,
                flush(0, n::UNREACHABLE),
            ],
        ),
        ("socket-full-in-a-train", 0, vec![short, short, short, to_b, flush(1, n::FULL_SOCKET), short, to_b, FLUSH]),
        (
            "socket-refuses",
            0,
            vec![short, short, short, to_b, to_b, flush(1, n::REFUSED), short, short, flush(0, n::NO_BUFFERS), FLUSH],
        ),
        (
            "tun-refuses",
            0,
            vec![[op::TUN, 0, 0, 0, 0], from_a(n::DF), [op::TUN, 2, 0, 0, 0], no_route(n::POD), from_a(n::DF)],
        ),
        ("stopped", 0, vec![short, short, pieces, to_b, flush(1, n::FULL_SOCKET), STOP, short, FLUSH]),
    ];
    let bytes = |(name, policy, steps): (_, u8, Vec<Step>)| (name, [&[policy, 0], &steps.concat()[..]].concat());
    histories.into_iter().map(bytes).collect()
}
