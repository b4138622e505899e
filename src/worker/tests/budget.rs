//! Packets without end: every call ends within a known number of packets.

use super::*;

/// Messages that a call may receive beyond its budget, in its last batch.
const BATCH: u64 = 16;

/// Returns a stage whose device and peers send packets without end.
fn flooded() -> Stage {
    let stage = Stage::new();
    stage.give(&udp(POD, POD_A, 1, Df::Set, 100));
    stage.arrive(host_b(), &[udp(POD_B, POD, 1, Df::Set, 100)]);
    stage.script.never_end();
    stage
}

#[test]
fn fault_48_49_a_call_ends_within_its_budget_and_each_direction_has_its_own() {
    let mut stage = flooded();
    for budget in [0, 1, 7, 64, 256, 1000] {
        for _ in 0..10 {
            let (before, least) = (stage.worker.counters(), u64::from(budget.max(1)));
            assert_eq!(stage.call(Ready::ALL, Budget::packets(budget)), Ok(Progress::More));
            assert_eq!(stage.encap().received() - before.encap.received(), least);
            assert_eq!(stage.encap().forwarded(), stage.encap().received(), "no packet is queued");
            let received = stage.decap().received() - before.decap.received();
            assert!((least..least + BATCH).contains(&received), "{received} with a budget of {budget}");
            assert_eq!(stage.decap().forwarded(), stage.decap().received());
        }
        stage.script.take_sends();
        stage.script.take_written();
    }
}

/// Every segment of a GSO packet and every datagram of a GRO batch counts. The last one is finished.
#[test]
fn fault_48_a_gso_packet_does_not_stretch_a_call() {
    let mut stage = Stage::new();
    const SEGMENTS: u64 = 60;
    let gso_packet = udp(POD, POD_A, 1, Df::Set, 60_000);
    stage.give_with(gso(&gso_packet, 1000), &gso_packet);
    stage.arrive(host_b(), &(1..=64).map(|number| udp(POD_B, POD, number, Df::Set, 100)).collect::<Vec<_>>());
    stage.script.never_end();
    for budget in [1, 10, 256] {
        for _ in 0..10 {
            let (made, received) = (stage.worker.counters().stats.segments_made, stage.decap().received());
            assert_eq!(stage.call(Ready::ALL, Budget::packets(budget)), Ok(Progress::More));
            let made = stage.worker.counters().stats.segments_made - made;
            assert!((1..u64::from(budget) + SEGMENTS).contains(&made), "{made} segments with a budget of {budget}");
            let received = stage.decap().received() - received;
            assert!(received < u64::from(budget) + BATCH * 64, "{received} with a budget of {budget}");
        }
        stage.script.take_sends();
        stage.script.take_written();
    }
}

/// Collected datagrams are sent at 128 KiB, and not only when the device is empty.
#[test]
fn collected_bytes_are_bounded() {
    const COLLECTED: usize = 128 << 10;
    let mut stage = Stage::new();
    (0..400).for_each(|number| stage.give(&udp(POD, POD_A, number, Df::Set, 1372)));
    assert_eq!(stage.call(TUN, Budget::packets(1000)), Ok(Progress::Drained));
    let bytes = |call: &Vec<Sent>| call.iter().flat_map(|sent| &sent.datagrams).map(Vec::len).sum::<usize>();
    let calls: Vec<usize> = stage.script.take_sends().iter().map(bytes).collect();
    assert_eq!(calls.iter().sum::<usize>(), 400 * 1400);
    let (last, others) = calls.split_last().unwrap();
    assert!(*last < COLLECTED && others.iter().all(|bytes| (COLLECTED..COLLECTED + 1400).contains(bytes)), "{calls:?}");
    assert_eq!(calls.len(), 5);
}

/// A change of routes applies from the next call on, and a request to stop takes effect at once.
#[test]
fn fault_46_48_a_route_that_changes_under_a_flood_is_in_force_with_the_next_call() {
    let mut stage = flooded();
    for turn in 0..20 {
        let next_hop = [host_a(), host_b()][turn % 2];
        let route = Route::new("100.96.2.0/24".parse::<ipnet::Ipv4Net>().unwrap(), next_hop);
        assert!(stage.routes.apply([RouteChange::Set(route)]).refused.is_empty());
        stage.script.take_sends();
        assert_eq!(stage.out(), Ok(Progress::More));
        let sent = stage.script.take_datagrams();
        assert!(sent.len() == 256 && sent.iter().all(|(to, _)| *to == next_hop));
        assert_eq!(stage.back(), Ok(Progress::More));
    }
    stage.worker.drop_waiting();
    assert_eq!((stage.encap().held(), stage.decap().held()), (0, 0));
}

/// A read that always fails is counted, and does not keep a call from ending.
#[test]
fn fault_48_54_errors_without_end_do_not_stretch_a_call() {
    let mut stage = flooded();
    for (call, errno) in [(Call::Read, libc::EIO), (Call::Receive, libc::ENOMEM), (Call::Receive, libc::ECONNREFUSED)] {
        stage.script.then(call, core::iter::repeat_n(Answer::Error(errno), 10_000));
        let (errors, calls) = (stage.worker.counters().stats.read_errors, stage.script.count(call));
        assert_eq!(stage.call(Ready::ALL, Budget::default()), Ok(Progress::More));
        let next = stage.next();
        assert!(!next.tun && !next.udp);
        assert_eq!(stage.worker.counters().stats.read_errors - errors, 8);
        assert!(stage.script.count(call) - calls <= 8 * 17, "each of them after 16 errors of earlier packets");
        stage.script.forget(call);
        stage.now += 25 * MILLISECOND;
        assert_eq!((stage.out(), stage.back()), (Ok(Progress::More), Ok(Progress::More)));
    }
}
