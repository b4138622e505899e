//! Fault 54: calls that fail every time.

use super::*;
use crate::sys::Feature;
use crate::sys::{RecvError, SendErrorKind, TunError};

const SECOND: Duration = Duration::from_secs(1);
/// The step of tests that do not count calls.
const COARSE: Duration = Duration::from_millis(10);

/// Returns a stage with endless packets in both directions, and a call that always fails with this error number.
fn failing(call: Call, errno: c_int) -> Stage {
    let stage = Stage::new();
    stage.give(&udp(POD, POD_A, 1, Df::Set, 100));
    stage.arrive(host_a(), &[udp(POD_A, POD, 1, Df::Set, 100)]);
    stage.script.never_end();
    stage.script.then(call, core::iter::repeat_n(Answer::Error(errno), 100_000));
    stage
}

/// Runs a level-triggered loop whose file descriptors are ready all the time. It calls the worker at once, or at the
/// time that `Next` names. Returns the error that ended the worker, if any, and the number of rounds.
fn run(stage: &mut Stage, lasts: Duration, step: Duration) -> (Option<WorkerError>, usize) {
    let over = stage.now + lasts;
    for rounds in 0.. {
        if stage.now >= over {
            return (None, rounds);
        }
        let Next { tun, udp, .. } = stage.next();
        let outcome = stage.call(Ready { tun, udp }, Budget::packets(4));
        stage.script.take_sends();
        stage.script.take_written();
        if let Err(end) = outcome {
            return (Some(end), rounds);
        }
        // A busy loop runs one round per step.
        let next = stage.next();
        let soonest = stage.now + step;
        let is_idle = !next.tun && !next.udp;
        stage.now = if is_idle { next.wake_at.unwrap_or(over).max(soonest) } else { soonest };
    }
    unreachable!()
}

/// Returns calls with the error number of each attempt, and the reported failure.
fn cases() -> [(Call, c_int, Failure); 9] {
    [
        (Call::Receive, libc::ENOSYS, Failure::Receive(RecvError::Other(libc::ENOSYS))),
        (Call::Receive, libc::EPERM, Failure::Receive(RecvError::Other(libc::EPERM))),
        (Call::Receive, libc::ENOMEM, Failure::Receive(RecvError::Other(libc::ENOMEM))),
        (Call::Read, libc::ENOSYS, Failure::Read(TunError::Rejected(libc::ENOSYS))),
        (Call::Read, libc::EPERM, Failure::Read(TunError::Rejected(libc::EPERM))),
        (Call::Read, libc::EIO, Failure::Read(TunError::Down)),
        (Call::Write, libc::ENOSYS, Failure::Write(TunError::Rejected(libc::ENOSYS))),
        (Call::Write, libc::EINVAL, Failure::Write(TunError::Rejected(libc::EINVAL))),
        (Call::Send, libc::ENOSYS, Failure::Send(SendErrorKind::Other(libc::ENOSYS))),
    ]
}

#[test]
fn fault_54_a_call_that_always_fails_backs_off_is_reported_once_and_ends_the_worker() {
    for (call, errno, failure) in cases() {
        let mut stage = failing(call, errno);
        let (end, _) = run(&mut stage, SECOND, MILLISECOND);
        assert_eq!(end, None);
        // A batch of 16 messages is received before its packets are written.
        let most = if call == Call::Write { 40 * 16 + 48 } else { 100 };
        let calls = stage.script.count(call);
        assert!((30..=most).contains(&calls), "{calls} calls of {call:?} in a second");
        assert_eq!(stage.worker.remote().take_notices().pop(), Some(Notice::Failing(failure)));
        // The other direction continues.
        let before = stage.worker.counters().clone();
        let begin = stage.now;
        let (end, _) = run(&mut stage, 20 * SECOND, COARSE);
        assert_eq!(end, Some(WorkerError::CallFails { failure, seconds: 10 }));
        assert!((8 * SECOND..10 * SECOND).contains(&(stage.now - begin)), "{:?}", stage.now - begin);
        assert_eq!(stage.worker.remote().take_notices(), [], "reported once");
        let after = stage.worker.counters();
        let other = |counters: &Counters| match matches!(call, Call::Receive | Call::Write) {
            true => counters.encap.forwarded(),
            false => counters.decap.forwarded(),
        };
        let other = other(&after) - other(&before);
        assert!(other > 300, "{call:?}: {other}");
    }
}

/// Any success restarts the time limit, and ends the pauses at once.
#[test]
fn fault_54_a_success_resets_the_limit() {
    for (call, errno, _) in cases() {
        let mut stage = failing(call, errno);
        for _ in 0..5 {
            let (end, _) = run(&mut stage, 9 * SECOND, COARSE);
            assert_eq!(end, None, "{call:?}");
            stage.script.forget(call);
            let before = stage.worker.counters().clone();
            let (end, _) = run(&mut stage, SECOND / 10, COARSE);
            assert_eq!(end, None);
            let after = stage.worker.counters();
            assert!(after.encap.forwarded() - before.encap.forwarded() > 30);
            assert!(after.decap.forwarded() - before.decap.forwarded() > 30);
            stage.script.then(call, core::iter::repeat_n(Answer::Error(errno), 100_000));
        }
        // It is reported again after a minute at most.
        assert_eq!(stage.worker.remote().take_notices().len(), 1);
        let (end, _) = run(&mut stage, 9 * SECOND, COARSE);
        assert_eq!((end, stage.worker.remote().take_notices().len()), (None, 0));
        let mut notices = 0;
        for _ in 0..20 {
            stage.script.forget(call);
            assert_eq!(run(&mut stage, SECOND, COARSE).0, None);
            stage.script.then(call, core::iter::repeat_n(Answer::Error(errno), 100_000));
            assert_eq!(run(&mut stage, 5 * SECOND, COARSE).0, None);
            notices += stage.worker.remote().take_notices().len();
        }
        assert!((2..=3).contains(&notices), "{notices} in two minutes");
    }
}

/// `Next` names a time and not the readable file descriptor, so that a level-triggered loop does not spin.
#[test]
fn fault_54_the_loop_does_not_spin() {
    for (call, errno) in [(Call::Receive, libc::ENOSYS), (Call::Read, libc::ENOSYS)] {
        let mut stage = failing(call, errno);
        // The other direction is idle.
        let quiet = if call == Call::Read { Call::Receive } else { Call::Read };
        stage.script.then(quiet, core::iter::repeat_n(Answer::Error(libc::EAGAIN), 100_000));
        let _ = if call == Call::Read { stage.out().unwrap() } else { stage.back().unwrap() };
        let next = stage.next();
        assert_eq!((next.tun, next.udp), (call != Call::Read, call == Call::Read));
        assert_eq!(next.wake_at, Some(stage.now + 25 * MILLISECOND));
        let (read, received) = (stage.script.count(Call::Read), stage.script.count(Call::Receive));
        stage.now += 24 * MILLISECOND;
        let outcome = if call == Call::Read { stage.out() } else { stage.back() };
        assert_eq!(outcome, Ok(Progress::Held), "too early");
        assert_eq!((stage.script.count(Call::Read), stage.script.count(Call::Receive)), (read, received));
        stage.now += MILLISECOND;
        let outcome = if call == Call::Read { stage.back() } else { stage.out() };
        assert_eq!(outcome, Ok(Progress::Drained), "a call for the other end");
        let before = if call == Call::Read { read } else { received };
        assert!((1..=2).contains(&(stage.script.count(call) - before)), "one or two calls are enough");
    }
}

/// A firewall that drops all outbound packets does not end the worker, and no packet is queued because of it (fault 31,
/// R61).
#[test]
fn r61_fault_54_errors_that_a_peer_may_cause_do_not_end_the_worker() {
    for (errno, said) in [
        (libc::EPERM, Some(SendErrorKind::Forbidden)),
        (libc::EAFNOSUPPORT, Some(SendErrorKind::Other(libc::EAFNOSUPPORT))),
        (libc::EHOSTUNREACH, None),
    ] {
        let mut stage = failing(Call::Send, errno);
        let (end, rounds) = run(&mut stage, 30 * SECOND, COARSE);
        assert!(end.is_none() && rounds >= 3000, "{end:?} {rounds}");
        let notices = stage.worker.remote().take_notices();
        assert_eq!(notices.last(), said.map(|kind| Notice::Failing(Failure::Send(kind))).as_ref());
    }
    // The device is down, which an administrator may intend.
    let mut stage = failing(Call::Write, libc::EIO);
    assert_eq!(run(&mut stage, 30 * SECOND, COARSE).0, None);
    assert_eq!(stage.worker.remote().take_notices(), []);
}

/// Without the system calls for several messages, those for one message are used from then on. One notice names both.
#[test]
fn fault_54_without_system_calls_for_several_messages_each_has_its_own() {
    for errno in [libc::ENOSYS, libc::EPERM] {
        let mut stage = Stage::new();
        stage.script.refuse_batches(errno);
        for round in 0..3 {
            for (number, pod) in (1..).zip([POD_A, POD_A, POD_B, POD_B]) {
                stage.give(&udp(POD, pod, number, Df::Set, 100));
            }
            (1..=20)
                .for_each(|number| stage.arrive(host_a(), &[udp(POD_A, POD, number, Df::Set, 100 + number as usize)]));
            assert_eq!((stage.out(), stage.back()), (Ok(Progress::Drained), Ok(Progress::Drained)), "round {round}");
            let sent = stage.script.take_datagrams();
            assert_eq!((to(host_a(), &sent).len(), to(host_b(), &sent).len()), (2, 2));
            assert!(numbers(&stage.take_delivered()).into_iter().eq(1..=20));
        }
        assert_eq!((Stage::lost(stage.encap()), stage.worker.counters().stats.read_errors), (None, 0));
        let both = vec![Feature::ReceiveMany, Feature::SendMany];
        assert_eq!(stage.worker.sockets.disabled().collect::<Vec<_>>(), both);
        let notices = stage.worker.remote().take_notices();
        assert_eq!(notices, [Notice::Disabled(both)]);
        let sentence = alloc::format!("{}", notices[0]);
        assert!(sentence.contains("lacks recvmmsg") && sentence.contains(", sendmmsg"), "{sentence}");
        assert_eq!(stage.worker.remote().take_notices(), []);
    }
}
