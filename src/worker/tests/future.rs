//! The loop on tokio.

use core::future::poll_fn;
use core::task::Poll;

use super::*;

/// Fault 49: a flood of one direction, whose budget each call uses up, does not starve the other one.
#[test]
fn fault_49_a_flood_starves_neither_direction_of_the_future() {
    for from_outside in [true, false] {
        let mut stage = Stage::new();
        let (script, mut polls) = (stage.script.clone(), 0);
        let packet = udp(POD, POD_A, 1, Df::Set, 100);
        let give = |stage: &Stage, is_arrival: bool| match is_arrival {
            true => stage.arrive(host_a(), &[udp(POD_A, POD, 1, Df::Set, 100)]),
            false => stage.give(&packet),
        };
        give(&stage, from_outside);
        stage.script.never_end();
        let other = Stage { script, ..Stage::new() };
        let stop = poll_fn(|context| {
            polls += 1;
            if polls == 10 {
                give(&other, !from_outside);
            }
            context.waker().wake_by_ref();
            if polls < 30 { Poll::Pending } else { Poll::Ready(()) }
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(run_tokio(&mut stage.worker, stop)).unwrap();
        let Counters { encap, decap, .. } = stage.worker.counters();
        assert!(encap.forwarded() > 0 && decap.forwarded() > 0, "{encap:?} {decap:?}");
    }
}
