//! A group of workers, and its handle.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicU32, Ordering};

use ipnet::IpNet;

use super::*;

/// Returns two stages whose workers are one group.
pub(super) fn pair() -> [Stage; 2] {
    let mut stages = [Stage::new(), Stage::new()];
    let [one, other] = &mut stages;
    let forwarder = one.worker.forwarder().clone();
    let queue = |stage: &Stage| {
        let (tun, udp) = (TunOffload::ALL, UdpOffload::ALL);
        (Tun::scripted(&stage.script, tun), UdpTransport::scripted(&stage.script, udp, 0))
    };
    let mut workers = Worker::group([queue(one), queue(other)], &forwarder, &one.routes.reader());
    other.worker = workers.pop().unwrap();
    one.worker = workers.pop().unwrap();
    other.now = one.now;
    stages
}

/// R48: the limits of ICMP errors are those of the group, not of each worker.
#[test]
fn r48_the_limits_on_icmp_errors_are_the_groups() {
    let mut stages = pair();
    for round in 0..30 {
        for stage in &mut stages {
            stage.give(&udp(POD, NOBODY, round, Df::Set, 100));
            assert_eq!(stage.out(), Ok(Progress::Drained));
        }
    }
    let answered = stages.each_ref().map(|stage| stage.encap().answered());
    assert_eq!(answered.iter().sum::<u64>(), 20, "{answered:?}");
    let limited = stages[0].worker.remote().counters().stats.icmp_limited;
    assert_eq!(limited, 40);
}

/// R54: a path MTU that one worker learned applies to the others from their next call on.
#[test]
fn r54_path_mtus_are_the_groups() {
    let [mut one, mut other] = pair();
    one.script.narrow(host_a().ip(), 1300, libc::EMSGSIZE);
    one.give(&udp(POD, POD_A, 1, Df::Set, 1372));
    assert_eq!(one.out(), Ok(Progress::Drained));
    assert_eq!(one.encap().answered(), 1);
    // A worker publishes learned path MTUs at the beginning of its next call.
    assert_eq!(one.out(), Ok(Progress::Drained));
    other.give(&udp(POD, POD_A, 2, Df::Set, 1372));
    assert_eq!(other.out(), Ok(Progress::Drained));
    assert_eq!((other.encap().answered(), other.script.count(Call::Send)), (1, 0));
    // After a higher MTU both forget it.
    one.worker.remote().set_mtu(Mtu::new(1472).unwrap());
    one.script.narrow(host_a().ip(), 1500, libc::EMSGSIZE);
    for (stage, number) in [(&mut one, 3), (&mut other, 4)] {
        stage.give(&udp(POD, POD_A, number, Df::Set, 1372));
        assert_eq!(stage.out(), Ok(Progress::Drained));
        assert_eq!(numbers(&to(host_a(), &stage.script.take_datagrams())), [number]);
    }
}

/// Fault 38: a worker that was idle while the limit fell and rose forgets what the others forgot.
#[test]
fn fault_38_no_worker_brings_a_forgotten_path_mtu_back() {
    let [mut one, mut other] = pair();
    other.script.narrow(host_a().ip(), 1300, libc::EMSGSIZE);
    other.give(&udp(POD, POD_A, 1, Df::Set, 1372));
    assert_eq!((other.out(), other.out()), (Ok(Progress::Drained), Ok(Progress::Drained)));
    other.script.narrow(host_a().ip(), 1500, libc::EMSGSIZE);
    for mtu in [1300, 1400] {
        one.worker.remote().set_mtu(Mtu::new(mtu).unwrap());
    }
    for (stage, number) in [(&mut other, 2), (&mut one, 3)] {
        stage.give(&udp(POD, POD_A, number, Df::Set, 1372));
        assert_eq!(stage.out(), Ok(Progress::Drained));
        assert_eq!(numbers(&to(host_a(), &stage.script.take_datagrams())), [number]);
    }
}

#[test]
fn a_limit_that_is_set_from_outside_holds_for_the_next_packet_of_each_worker() {
    let mut stages = pair();
    let handle = stages[0].worker.remote();
    for (mtu, forwarded) in [(1400, 1), (1399, 1), (1400, 2)] {
        handle.set_mtu(Mtu::new(mtu).unwrap());
        for stage in &mut stages {
            stage.give(&udp(POD, POD_A, 1, Df::Set, 1372));
            assert_eq!((stage.out(), stage.encap().forwarded()), (Ok(Progress::Drained), forwarded), "{mtu}");
        }
    }
}

/// R66: the own subnets that are set apply to the next packet of each worker, and learned path MTUs stay.
#[test]
fn r66_subnets_that_are_set_from_outside_hold_for_each_worker() {
    let mut stages = pair();
    let handle = stages[0].worker.remote();
    let [own, further]: [IpNet; 2] = ["100.96.1.0/24", "100.96.9.0/24"].map(|net| net.parse().unwrap());
    for stage in &mut stages {
        stage.script.narrow(host_a().ip(), 1300, libc::EMSGSIZE);
        stage.give(&udp(POD, POD_A, 1, Df::Set, 1372));
        assert_eq!((stage.out(), stage.out()), (Ok(Progress::Drained), Ok(Progress::Drained)));
    }
    let answered = stages.each_ref().map(|stage| stage.encap().answered());
    stages.iter_mut().for_each(|stage| drop(stage.take_delivered()));
    for (number, (subnets, delivered)) in [(&[own][..], 0), (&[own, further], 1), (&[own], 0)].into_iter().enumerate() {
        handle.set_subnets(subnets).unwrap();
        for stage in &mut stages {
            stage.arrive(host_a(), &[udp(POD_A, Ipv4Addr::new(100, 96, 9, 9), number as u16, Df::Set, 100)]);
            assert_eq!(stage.back(), Ok(Progress::Drained));
            assert_eq!(stage.take_delivered().len(), delivered, "{subnets:?}");
        }
    }
    assert!(handle.set_subnets(&[]).is_err());
    for (stage, answered) in stages.iter_mut().zip(answered) {
        let sent = stage.script.count(Call::Send);
        stage.give(&udp(POD, POD_A, 2, Df::Set, 1372));
        assert_eq!(stage.out(), Ok(Progress::Drained));
        assert_eq!((stage.script.count(Call::Send), stage.encap().answered()), (sent, answered + 1), "still known");
    }
}

/// The limit for IPv6 peers is lower for itself, and `set_mtu` sets both again.
#[test]
fn a_limit_over_ipv6_that_is_set_from_outside_reaches_each_worker() {
    let mut stages = pair();
    let handle = stages[0].worker.remote();
    let mtus = |stage: &Stage| {
        let config = stage.worker.forwarder().config();
        (config.mtu.get(), config.mtu_over_ipv6.get())
    };
    handle.set_mtu(Mtu::new(1472).unwrap());
    handle.set_mtu_over_ipv6(Mtu::new(1452).unwrap());
    for stage in &mut stages {
        assert_eq!(stage.out(), Ok(Progress::Drained));
        assert_eq!(mtus(stage), (1472, 1452));
    }
    handle.set_mtu(Mtu::new(1400).unwrap());
    for stage in &mut stages {
        assert_eq!(stage.out(), Ok(Progress::Drained));
        assert_eq!(mtus(stage), (1400, 1400));
    }
}

/// A handle in another thread adds up all workers, also one that was stopped.
#[test]
fn a_handle_returns_the_counters_of_all_workers() {
    let [mut one, mut other] = pair();
    let handle = other.worker.remote();
    let counters = |handle: &Handle| {
        let handle = handle.clone();
        std::thread::spawn(move || handle.counters()).join().unwrap()
    };
    for (stage, count) in [(&mut one, 3), (&mut other, 4)] {
        (0..count).for_each(|number| stage.give(&udp(POD, POD_B, number, Df::Set, 100)));
        stage.fail(Call::Send, [libc::EPERM]);
        assert_eq!(stage.out(), Ok(Progress::Drained));
    }
    let lost = |counters: &Counters| counters.encap.dropped(DropReason::SendForbidden);
    assert_eq!((counters(&handle).encap.received(), lost(&counters(&handle))), (7, 7));
    assert_eq!(handle.send_errors(), [(host_b().ip(), 7)]);
    one.give(&udp(POD, POD_A, 1, Df::Set, 100));
    one.fail(Call::Send, [libc::EAGAIN]);
    assert_eq!(one.out(), Ok(Progress::Drained));
    assert_eq!(counters(&handle).encap.held(), 1);
    assert_eq!(one.worker.stop().encap.dropped(DropReason::Stopped), 1);
    assert_eq!((counters(&handle).encap.held(), counters(&handle).encap.received()), (0, 8));
}

/// A busy worker publishes ten times a second, and an idle one after each call.
#[test]
fn a_busy_worker_publishes_now_and_then() {
    let mut stage = Stage::new();
    let handle = stage.worker.remote();
    stage.give(&udp(POD, POD_A, 1, Df::Set, 100));
    stage.script.never_end();
    let mut published = Vec::new();
    for _ in 0..100 {
        assert_eq!(stage.call(TUN, Budget::packets(10)), Ok(Progress::More));
        published.push(handle.counters().encap.received());
        stage.now += 5 * MILLISECOND;
    }
    published.dedup();
    assert!((5..=6).contains(&published.len()), "{published:?}");
}

/// Each missing feature is named once for the group, and the listener is called for it.
#[test]
fn fault_54_a_group_says_once_what_the_kernel_lacks() {
    let mut stages = pair();
    let handle = stages[0].worker.remote();
    let calls = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&calls);
    handle.set_listener(move || {
        counted.fetch_add(1, Ordering::Relaxed);
    });
    for stage in &mut stages {
        stage.script.refuse_batches(libc::ENOSYS);
        for (number, pod) in (1..).zip([POD_A, POD_B]) {
            stage.give(&udp(POD, pod, number, Df::Set, 100));
        }
        assert_eq!(stage.out(), Ok(Progress::Drained));
    }
    assert_eq!(calls.load(Ordering::Relaxed), 2);
    assert_eq!(handle.take_notices(), [Notice::Disabled(vec![crate::sys::Feature::SendMany])]);
    assert_eq!(handle.take_notices(), []);
    assert_eq!(stages[1].out(), Ok(Progress::Drained));
    assert_eq!(calls.load(Ordering::Relaxed), 2, "nothing is new");
}
