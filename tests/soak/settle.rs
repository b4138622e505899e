//! After a faulty phase: until the path is whole again, both pods know what it carries, and no counter of a loss moves any more.

use core::time::Duration;
use std::thread;
use std::time::Instant;

use testbed::probe::{Fragmentation, Ping, PingOutcome, ping};

use crate::lab::Lab;
use crate::side::{SIDES, Side};
use crate::stage::Stage;
use crate::tunnel::Tally;

/// The longest inner packet of the underlay.
const MOST: usize = 1472;
/// Both tunnels' rates of ICMP errors, and TCP's patience with a path that was gone, are within this.
const PATIENCE: Duration = Duration::from_secs(30);

/// # Panics
/// If that takes too long.
pub(crate) fn settle(lab: &mut Lab, stage: &Stage, after: &str) {
    let start = Instant::now();
    SIDES.iter().for_each(|side| forget(lab, *side));
    let mut last = None;
    loop {
        stage.check();
        let outcomes = SIDES.map(|side| (of_length(lab, side, MOST), of_length(lab, side, MOST + 1)));
        // It was told of the faulty phase's limit when the faulty phase was over, by an answer that was still on its way.
        let misled = |side: &Side| !matches!(outcomes[*side as usize].0, PingOutcome::Reply { .. });
        SIDES.into_iter().filter(misled).for_each(|side| forget(lab, side));
        let whole = |(fits, longer): &(PingOutcome, PingOutcome)| {
            matches!(fits, PingOutcome::Reply { .. }) && *longer == PingOutcome::TooLong
        };
        let losses = lab.tallies().map(|tally| losses(&tally));
        if outcomes.iter().all(whole) && last.as_ref() == Some(&losses) {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "no peace after {after}: {outcomes:?}, {last:?}, {losses:?}");
        last = Some(losses);
        thread::sleep(Duration::from_millis(100));
    }
}

/// Removes the path MTUs that a pod's kernel has learned.
fn forget(lab: &Lab, side: Side) {
    side.pod(&lab.hosts).forget_path_mtus().unwrap();
}

/// Of a packet of so many bytes that may not be fragmented.
fn of_length(lab: &Lab, side: Side, len: usize) -> PingOutcome {
    let settings = Ping {
        payload_len: len - 28,
        fragmentation: Fragmentation::Forbidden,
        timeout: Duration::from_millis(500),
        ..Ping::default()
    };
    // Without a way, as long as a device is down, there is no answer either.
    side.pod(&lab.hosts)
        .enter(|| ping(side.other().place().pod, settings))
        .map_or(PingOutcome::Timeout, |outcomes| outcomes[0])
}

fn losses(tally: &Tally) -> impl PartialEq + core::fmt::Debug + use<> {
    [&tally.encap, &tally.decap].map(|flow| (flow.answered, flow.dropped.clone()))
}
