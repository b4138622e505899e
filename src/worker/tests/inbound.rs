//! Faults in the direction from the peers to the TUN.

use super::*;

fn from_a(number: u16, payload: usize) -> Vec<u8> {
    udp(POD_A, POD, number, Df::Set, payload)
}

#[test]
fn fault_26_an_interrupted_call_is_made_again() {
    let mut stage = Stage::new();
    (1..=40).for_each(|number| stage.arrive(host_a(), &[from_a(number, 100)]));
    stage.script.then(Call::Receive, [Answer::Error(libc::EINTR), Answer::AtMost(3), Answer::Error(libc::EINTR)]);
    stage.fail(Call::Write, [libc::EINTR; 5]);
    assert_eq!(stage.back(), Ok(Progress::Drained));
    assert!(numbers(&stage.take_delivered()).into_iter().eq(1..=40));
    assert_eq!((stage.decap().received(), stage.decap().forwarded()), (40, 40));
    assert_eq!(stage.worker.counters().stats.read_errors, 0, "EINTR is not an error");
}

/// An invalid segment size of the kernel is ignored: the message is one datagram.
#[test]
fn fault_24_a_stride_that_cannot_be_makes_one_datagram() {
    for segment in [0, -1, c_int::MIN, 129, c_int::MAX] {
        let mut stage = Stage::new();
        let bytes = from_a(1, 100);
        assert_eq!(bytes.len(), 128);
        stage.script.give_message(Arrival { from: host_a(), bytes, segment: Some(segment), flags: 0 });
        stage.arrive(host_a(), &[from_a(2, 100)]);
        assert_eq!(stage.back(), Ok(Progress::Drained));
        assert_eq!((numbers(&stage.take_delivered()), stage.decap().received()), (vec![1, 2], 2), "stride {segment}");
    }
    // Shorter than the packet: the pieces are not packets.
    let mut stage = Stage::new();
    let bytes = [from_a(1, 100), from_a(2, 100)].concat();
    stage.script.give_message(Arrival { from: host_a(), bytes, segment: Some(100), flags: 0 });
    assert_eq!(stage.back(), Ok(Progress::Drained));
    let dropped: u64 = stage.decap().drops().map(|(_, count)| count).sum();
    assert_eq!((stage.decap().received(), dropped, stage.decap().dropped(DropReason::Truncated) > 0), (3, 3, true));
    // Longer than the packet: the first piece has a trailer, which is removed, and the second is not a packet.
    let mut stage = Stage::new();
    let bytes = [from_a(1, 100), from_a(2, 100)].concat();
    stage.script.give_message(Arrival { from: host_a(), bytes, segment: Some(150), flags: 0 });
    assert_eq!(stage.back(), Ok(Progress::Drained));
    assert_eq!((numbers(&stage.take_delivered()), stage.decap().received()), (vec![1], 2));
    assert_eq!(stage.worker.counters().stats.trimmed, 1);
}

#[test]
fn fault_25_a_message_that_was_cut_is_lost_alone() {
    let mut stage = Stage::new();
    stage.arrive(host_a(), &[from_a(1, 100)]);
    for (len, flags) in [(128, libc::MSG_TRUNC), (128, libc::MSG_CTRUNC), (65_537, 0)] {
        let bytes = alloc::vec![0x45; len];
        stage.script.give_message(Arrival { from: host_a(), bytes, segment: Some(64), flags });
    }
    stage.arrive(host_a(), &[from_a(2, 100)]);
    assert_eq!(stage.back(), Ok(Progress::Drained));
    assert_eq!(numbers(&stage.take_delivered()), [1, 2]);
    assert_eq!((stage.decap().received(), stage.worker.counters().stats.read_errors), (2, 3));
}

/// A receive that fails is counted. An error of an earlier packet is not.
#[test]
fn fault_28_33_a_receive_that_fails_is_counted_and_the_next_one_goes_on() {
    let mut stage = Stage::new();
    stage.arrive(host_a(), &[from_a(1, 100)]);
    stage.fail(Call::Receive, [libc::ENOBUFS, libc::ENOMEM, libc::ECONNREFUSED, libc::EHOSTUNREACH, libc::EMSGSIZE]);
    assert_eq!(stage.back(), Ok(Progress::Drained));
    assert_eq!(numbers(&stage.take_delivered()), [1]);
    assert_eq!((stage.decap().forwarded(), stage.worker.counters().stats.read_errors), (1, 2));
}

/// Each failure has its own counter, and the other packets of the batch are written.
#[test]
fn fault_27_28_37_a_write_that_fails_costs_its_packet() {
    for (errno, reason) in [
        (libc::EAGAIN, DropReason::TunFull),
        (libc::ENOBUFS, DropReason::TunFull),
        (libc::ENOMEM, DropReason::TunFull),
        (libc::EIO, DropReason::TunDown),
        (libc::EINVAL, DropReason::TunFailed),
        (libc::EFAULT, DropReason::TunFailed),
    ] {
        for offload in [TunOffload::ALL, TunOffload::NONE] {
            let mut stage = Stage::with(offload, UdpOffload::ALL);
            (1..=3).for_each(|number| stage.arrive(host_a(), &[from_a(number, 100)]));
            // UDP packets of different lengths are not coalesced.
            stage.arrive(host_b(), &[udp(POD_B, POD, 4, Df::Set, 10)]);
            let mut answers = alloc::vec![Answer::All; 4];
            answers[1] = Answer::Error(errno);
            stage.worker = stage.worker.unbatched();
            stage.script.then(Call::Write, answers);
            assert_eq!(stage.back(), Ok(Progress::Drained));
            assert_eq!(Stage::lost(stage.decap()), Some((reason, 1)), "error number {errno}");
            assert_eq!((numbers(&stage.take_delivered()), stage.decap().forwarded()), (vec![1, 3, 4], 3));
        }
    }
}

/// A GSO packet that fails counts as its packets. A refused one is written packet by packet. After several refusals GSO
/// packets are disabled.
#[test]
fn fault_28_30_a_gso_packet_that_fails_is_counted_as_its_packets() {
    let packets = |first: u16| -> Vec<Vec<u8>> {
        (0..4).map(|at| tcp(POD_A, POD, first + at, 1000 * u32::from(first + at), 1000)).collect()
    };
    let mut stage = Stage::new();
    stage.arrive(host_a(), &packets(1));
    stage.fail(Call::Write, [libc::ENOBUFS]);
    assert_eq!(stage.back(), Ok(Progress::Drained));
    assert_eq!(Stage::lost(stage.decap()), Some((DropReason::TunFull, 4)));

    let mut stage = Stage::new();
    stage.script.refuse_gso_packets(libc::EINVAL);
    for round in 0..10 {
        let writes = stage.script.count(Call::Write);
        stage.arrive(host_a(), &packets(1 + 4 * round));
        assert_eq!(stage.back(), Ok(Progress::Drained));
        assert_eq!(numbers(&stage.take_delivered()).len(), 4);
        let tried = u64::from(round.min(8));
        assert_eq!(stage.script.count(Call::Write) - writes, if round < 8 { 5 } else { 4 });
        assert_eq!(stage.worker.counters().stats.tun_fallbacks, tried + u64::from(round < 8));
    }
    assert_eq!((stage.decap().forwarded(), Stage::lost(stage.decap())), (40, None));

    // Fault 55: they are enabled again after a minute, and then after two if the first one is refused again.
    let minute = Duration::from_secs(60);
    for (number, (waited, taken, writes)) in
        (11..).zip([(minute, false, 5), (minute, false, 4), (minute, true, 1), (minute, true, 1)])
    {
        stage.now += waited;
        if taken {
            stage.script.accept_gso_packets();
        }
        let before = stage.script.count(Call::Write);
        stage.arrive(host_a(), &packets(1 + 4 * number));
        assert_eq!(stage.back(), Ok(Progress::Drained));
        assert_eq!(stage.take_delivered().len(), 4);
        assert_eq!(stage.script.count(Call::Write) - before, writes, "packet {number}");
    }

    // After an hour without refusals the time is a minute again.
    stage.now += 60 * minute;
    stage.script.refuse_gso_packets(libc::EINVAL);
    for (number, writes) in (20..).zip([5, 5, 5, 5, 5, 5, 5, 5, 4, 5]) {
        if number == 29 {
            stage.now += minute;
        }
        let before = stage.script.count(Call::Write);
        stage.arrive(host_a(), &packets(1 + 4 * number));
        assert_eq!(stage.back(), Ok(Progress::Drained));
        assert_eq!(stage.script.count(Call::Write) - before, writes, "packet {number}");
    }
}

/// The longest datagram is forwarded.
#[test]
fn fault_2_the_longest_datagram() {
    let mut stage = Stage::new();
    let longest = udp(POD_A, POD, 1, Df::Clear, 65_507 - 28);
    stage.arrive(host_a(), core::slice::from_ref(&longest));
    assert_eq!(stage.back(), Ok(Progress::Drained));
    let delivered = stage.take_delivered();
    assert_eq!((delivered.len(), delivered[0].len(), &delivered[0][20..]), (1, 65_507, &longest[20..]));
}
