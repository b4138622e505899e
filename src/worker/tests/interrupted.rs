//! Fault 26: every system call that moves packets is interrupted, at each position in turn and each time. The outcome
//! is that of uninterrupted calls.

use super::*;

/// The most messages of a call, so that a batch takes several.
const PART: Answer = Answer::AtMost(1);
const INTERRUPTED: Answer = Answer::Error(libc::EINTR);

/// The packets sent and written, and the number of calls of a kind.
#[derive(Clone, Debug, PartialEq)]
struct Outcome {
    sent: Vec<(SocketAddr, Vec<u8>)>,
    written: Vec<Vec<u8>>,
    counters: Counters,
    calls: usize,
}

/// Passes a stage packets for both directions and moves them. The calls of this kind give these answers first.
fn outcome(offload: TunOffload, call: Call, answers: Vec<Answer>) -> Outcome {
    let mut stage = Stage::with(offload, UdpOffload::ALL);
    stage.script.narrow(host_b().ip(), 1300, libc::EMSGSIZE);
    for answered in [Call::Send, Call::Receive] {
        stage.script.then(answered, if answered == call { Vec::new() } else { alloc::vec![PART; 100] });
    }
    stage.script.then(call, answers);
    // The first refusal teaches the path MTU.
    stage.give(&udp(POD, POD_B, 9, Df::Set, 1372));
    assert_eq!(stage.out(), Ok(Progress::Drained));
    // GSO batches, single packets, fragments, one ICMP error of the remote host and two of this host.
    for number in 1..=4 {
        stage.give(&udp(POD, POD_A, number, Df::Set, 100));
        stage.give(&udp(POD, POD_B, 10 + number, Df::Clear, 1372));
    }
    stage.give(&udp(POD, NOBODY, 20, Df::Set, 100));
    let mut expired = udp(POD_A, POD, 30, Df::Set, 100);
    set_ttl(&mut expired, 1);
    stage.arrive(host_a(), &[expired]);
    for number in 31..=36 {
        stage.arrive(host_a(), &[udp(POD_A, POD, number, Df::Set, 100)]);
    }
    stage.arrive(host_a(), &[1, 2, 3].map(|at| tcp(POD_A, POD, 40 + at, 1000 * u32::from(at), 1000)));
    assert_eq!((stage.out(), stage.back()), (Ok(Progress::Drained), Ok(Progress::Drained)));
    assert!(stage.script.is_given());
    let (sent, written) = (stage.script.take_datagrams(), stage.script.take_written());
    let counters = stage.worker.counters().clone();
    Outcome { sent, written, counters, calls: stage.script.count(call) }
}

#[test]
fn fault_26_interrupted_calls_lose_and_duplicate_no_packet() {
    for offload in [TunOffload::ALL, TunOffload::NONE] {
        for (call, part) in
            [(Call::Read, Answer::All), (Call::Write, Answer::All), (Call::Send, PART), (Call::Receive, PART)]
        {
            let undisturbed = outcome(offload, call, alloc::vec![part; 100]);
            assert!(undisturbed.calls >= 4, "{} of {call:?}", undisturbed.calls);
            let Counters { encap, decap, .. } = &undisturbed.counters;
            assert_eq!((encap.forwarded(), encap.answered()), (8, 2));
            assert_eq!((decap.forwarded(), decap.answered()), (9, 1));
            for at in 0..undisturbed.calls {
                let mut answers = alloc::vec![part; 100];
                answers.insert(at, INTERRUPTED);
                let interrupted = outcome(offload, call, answers);
                let calls = undisturbed.calls + 1;
                assert_eq!(interrupted, Outcome { calls, ..undisturbed.clone() }, "{call:?} {at}");
            }
            let each = [INTERRUPTED, INTERRUPTED, part];
            let interrupted = outcome(offload, call, each.repeat(100));
            assert_eq!(interrupted, Outcome { calls: 3 * undisturbed.calls, ..undisturbed }, "{call:?} each time");
        }
    }
}
