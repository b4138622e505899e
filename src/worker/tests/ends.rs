//! The end of the device or the socket: one typed error, which later calls repeat without another system call.

use super::*;

/// The four calls that can fail so. For each, the worker has a packet to forward before and another one after.
const CALLS: [Call; 6] = [Call::Read, Call::Send, Call::Write, Call::Receive, Call::Write, Call::Send];

/// Returns a worker whose call fails with the error number: outbound for the first three calls of the list, inbound for
/// the others.
fn met(at: usize, errno: c_int) -> (Stage, WorkerError) {
    let mut stage = Stage::new();
    let back = at >= 3;
    stage.give(&udp(POD, POD_A, 1, Df::Set, 100));
    stage.arrive(host_a(), &[udp(POD_A, POD, 1, Df::Set, 100)]);
    assert_eq!((stage.out(), stage.back()), (Ok(Progress::Drained), Ok(Progress::Drained)));
    // A packet without a route is answered by a write, and a peer's packet whose TTL ends here by a send.
    let mut expired = udp(POD_A, POD, 2, Df::Set, 100);
    set_ttl(&mut expired, 1);
    for packet in
        [udp(POD, POD_A, 2, Df::Set, 100), udp(POD, NOBODY, 3, Df::Set, 100), udp(POD, POD_B, 4, Df::Set, 100)]
    {
        stage.give(&packet);
    }
    stage.arrive(host_a(), &[expired]);
    stage.arrive(host_a(), &[udp(POD_A, POD, 3, Df::Set, 100)]);
    stage.arrive(host_a(), &[udp(POD_A, POD, 4, Df::Set, 100)]);
    stage.fail(CALLS[at], [errno; 8]);
    let error = if back { stage.back() } else { stage.out() };
    (stage, error.unwrap_err())
}

fn assert_is_over(stage: &mut Stage, error: &WorkerError) {
    let all = [Call::Read, Call::Receive, Call::Send, Call::Write];
    let calls = all.map(|call| stage.script.count(call));
    for _ in 0..3 {
        assert_eq!((stage.out().as_ref(), stage.back().as_ref()), (Err(error), Err(error)));
    }
    assert_eq!(all.map(|call| stage.script.count(call)), calls, "the number may belong to another file by now");
    assert_eq!((stage.encap().held(), stage.decap().held()), (0, 0), "the counters are final");
}

#[test]
fn fault_34_a_closed_descriptor_is_one_typed_error() {
    for (at, call) in CALLS.into_iter().enumerate() {
        let (mut stage, error) = met(at, libc::EBADF);
        match (call, &error) {
            (Call::Read | Call::Write, WorkerError::TunClosed { name }) => assert_eq!(name, "script0"),
            (Call::Send | Call::Receive, WorkerError::SocketClosed { local }) => {
                assert_eq!(Some(*local), stage.worker.local_addrs().next());
            }
            _ => panic!("{call:?}: {error:?}"),
        }
        let message = alloc::format!("{error}");
        assert!(message.contains("closed a file descriptor that is not its own"), "{message}");
        assert_is_over(&mut stage, &error);
    }
}

#[test]
fn fault_36_a_deleted_device_is_one_typed_error() {
    for at in
        CALLS.into_iter().enumerate().filter(|(_, call)| matches!(call, Call::Read | Call::Write)).map(|(at, _)| at)
    {
        let (mut stage, error) = met(at, libc::EBADFD);
        assert_eq!(error, WorkerError::LinkDeleted { name: "script0".into() });
        let message = alloc::format!("{error}");
        assert!(message.contains("script0 was deleted; open a new one"), "{message}");
        assert_is_over(&mut stage, &error);
    }
}

/// Packets that are queued at the end are counted as stopped.
#[test]
fn fault_36_packets_held_when_the_device_ends_are_counted() {
    let mut stage = Stage::new();
    (1..=3).for_each(|number| stage.give(&udp(POD, POD_A, number, Df::Set, 100)));
    stage.fail(Call::Send, [libc::EAGAIN]);
    assert_eq!((stage.out(), stage.encap().held()), (Ok(Progress::Drained), 3));
    stage.arrive(host_a(), &[udp(POD_A, POD, 1, Df::Set, 100)]);
    stage.fail(Call::Write, [libc::EBADFD]);
    let error = stage.back().unwrap_err();
    assert_eq!(Stage::lost(stage.encap()), Some((DropReason::Stopped, 3)));
    assert_eq!(Stage::lost(stage.decap()), Some((DropReason::TunFailed, 1)));
    assert_is_over(&mut stage, &error);
}
