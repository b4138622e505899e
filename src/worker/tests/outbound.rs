//! Faults in the direction from the TUN to the peers.

use super::*;

/// Adds three packets to A and two to B, numbered from 1 on, all with DF.
fn five(stage: &Stage) {
    for (number, pod) in (1..).zip([POD_A, POD_A, POD_A, POD_B, POD_B]) {
        stage.give(&udp(POD, pod, number, Df::Set, 100));
    }
}

#[test]
fn fault_26_an_interrupted_call_is_made_again() {
    let mut stage = Stage::new();
    five(&stage);
    stage.fail(Call::Read, [libc::EINTR; 7]);
    stage.script.then(Call::Send, [Answer::Error(libc::EINTR), Answer::AtMost(1), Answer::Error(libc::EINTR)]);
    assert_eq!(stage.out(), Ok(Progress::Drained));
    let sent = stage.script.take_datagrams();
    assert_eq!((numbers(&to(host_a(), &sent)), numbers(&to(host_b(), &sent))), (vec![1, 2, 3], vec![4, 5]));
    assert_eq!((stage.encap().received(), stage.encap().forwarded()), (5, 5));
    assert_eq!(stage.worker.counters().stats.read_errors, 0, "EINTR is not an error");
}

/// A blocked peer's packets are queued, and dropped after a second. Other peers and the device continue.
#[test]
fn fault_27_a_blocked_path_loses_only_its_own_packets() {
    let mut stage = Stage::new();
    five(&stage);
    stage.script.then(Call::Send, [Answer::AtMost(1), Answer::Error(libc::EAGAIN)]);
    assert_eq!(stage.out(), Ok(Progress::Drained));
    assert_eq!((stage.encap().forwarded(), stage.encap().held()), (3, 2), "A's batch was sent, B's was not");
    let next = stage.next();
    assert!(next.tun);
    assert_eq!(next.wake_at, Some(stage.now + Duration::from_micros(500)));

    // It is too early to retry B. New packets to A are sent.
    for number in 6..100 {
        stage.give(&udp(POD, POD_A, number, Df::Set, 100));
        stage.give(&udp(POD, POD_B, 1000 + number, Df::Set, 100));
        let sends = stage.script.count(Call::Send);
        assert_eq!(stage.out(), Ok(Progress::Drained));
        assert_eq!(stage.script.count(Call::Send), sends + 1);
        assert_eq!(stage.encap().held(), 2 + u64::from(number) - 5);
    }
    for _ in 1..=240 {
        stage.fail(Call::Send, [libc::EAGAIN]);
        stage.now += 4 * MILLISECOND;
        assert_eq!(stage.out(), Ok(Progress::Drained));
        assert_eq!(stage.encap().held(), 96);
        let wake_at = stage.next().wake_at.unwrap();
        assert!((stage.now..=stage.now + 4 * MILLISECOND).contains(&wake_at), "neither a spin nor a long pause");
    }
    assert_eq!(stage.encap().forwarded(), 3 + 94);
    stage.fail(Call::Send, [libc::EAGAIN]);
    stage.now += 1000 * MILLISECOND;
    assert_eq!(stage.out(), Ok(Progress::Drained));
    assert_eq!(Stage::lost(stage.encap()), Some((DropReason::SendBufferFull, 96)), "all that were queued for a second");
    assert_eq!(stage.send_errors(), [(host_b().ip(), 96)]);
    assert!(stage.next().wake_at.is_none() && stage.script.is_over());
}

/// A peer has a bounded queue. Beyond it, the newest packets are dropped and counted for that peer.
#[test]
fn fault_27_r69_the_backlog_of_a_peer_is_bounded() {
    let mut stage = Stage::new();
    stage.script.then(Call::Send, core::iter::repeat_n(Answer::Error(libc::EAGAIN), 10_000));
    for number in 1..=2000 {
        stage.give(&udp(POD, POD_A, number, Df::Set, 1400));
        assert_eq!(stage.out(), Ok(Progress::Drained));
    }
    let held = stage.encap().held();
    assert!((512 << 10..=1 << 20).contains(&(held * 1428)), "{held} packets wait");
    assert_eq!(Stage::lost(stage.encap()), Some((DropReason::SendBufferFull, 2000 - held)));
    assert_eq!(stage.send_errors(), [(host_a().ip(), 2000 - held)]);
    stage.script.forget(Call::Send);
    stage.script.take_sends();
    stage.now += 5 * MILLISECOND;
    assert_eq!(stage.out(), Ok(Progress::Drained));
    let sent = numbers(stage.script.take_datagrams().iter().map(|(_, datagram)| datagram));
    assert!(sent.into_iter().eq(1..=held as u16), "the oldest, in order");
}

/// ENOBUFS is retried a few times, and others are sent meanwhile.
#[test]
fn fault_28_no_buffers_is_retried_and_then_dropped() {
    for errno in [libc::ENOBUFS, libc::ENOMEM] {
        let mut stage = Stage::new();
        five(&stage);
        stage.fail(Call::Send, [errno]);
        assert_eq!(stage.out(), Ok(Progress::Drained));
        assert_eq!(numbers(&to(host_b(), &stage.script.take_datagrams())), [4, 5]);
        let begin = stage.now;
        let mut attempts = 0;
        while stage.encap().held() > 0 {
            let wake_at = stage.next().wake_at.unwrap();
            let sends = stage.script.count(Call::Send);
            stage.now = wake_at - Duration::from_micros(1);
            assert_eq!((stage.out(), stage.script.count(Call::Send)), (Ok(Progress::Drained), sends), "too early");
            stage.fail(Call::Send, [errno]);
            stage.now = wake_at;
            assert_eq!(stage.out(), Ok(Progress::Drained));
            attempts += 1;
        }
        assert!((3..10).contains(&attempts), "{attempts}");
        assert!((15 * MILLISECOND..20 * MILLISECOND).contains(&(stage.now - begin)));
        assert_eq!(Stage::lost(stage.encap()), Some((DropReason::SendNoBuffers, 3)), "A's batch");
        assert_eq!(stage.send_errors(), [(host_a().ip(), 3)]);
    }
    // If it ends soon enough, no packet is lost.
    let mut stage = Stage::new();
    five(&stage);
    stage.fail(Call::Send, [libc::ENOBUFS]);
    assert_eq!(stage.out(), Ok(Progress::Drained));
    stage.now += MILLISECOND;
    assert_eq!(stage.out(), Ok(Progress::Drained));
    assert_eq!((stage.encap().forwarded(), Stage::lost(stage.encap())), (5, None));
}

/// Only packets that are too long for A are affected. With DF the sender gets an ICMP error. Without DF the queued
/// packet is dropped and later ones are fragmented. Newer kernels refuse a GSO batch with EMSGSIZE too, older ones with
/// EINVAL.
#[test]
fn fault_29_a_path_that_shrank_concerns_the_packets_that_do_not_fit() {
    for batch_errno in [libc::EMSGSIZE, libc::EINVAL] {
        let mut stage = Stage::new();
        stage.script.narrow(host_a().ip(), 1300, batch_errno);
        let packets = [
            (POD_A, Df::Set, 1372),
            (POD_A, Df::Set, 1372),
            (POD_A, Df::Clear, 1372),
            (POD_A, Df::Set, 1244),
            (POD_B, Df::Set, 1372),
        ];
        for (number, (pod, df, payload)) in (1..).zip(packets) {
            stage.give(&udp(POD, pod, number, df, payload));
        }
        assert_eq!(stage.out(), Ok(Progress::Drained));
        let sent = stage.script.take_datagrams();
        assert_eq!(numbers(&to(host_a(), &sent)), [4]);
        assert!(sent.iter().all(|(to, datagram)| *to == host_b() || datagram.len() <= 1272));
        assert_eq!(numbers(&to(host_b(), &sent)), [5]);
        let told = stage.take_delivered();
        assert_eq!(told.len(), 2);
        for (packet, message) in (1..).zip(told) {
            assert_eq!((message[9], &message[20..22], &message[24..28]), (1, &[3, 4][..], &[0, 0, 4, 248][..]));
            assert_eq!((&message[16..20], &message[32..34]), (&POD.octets()[..], &u16::to_be_bytes(packet)[..]));
        }
        assert_eq!((stage.encap().forwarded(), stage.encap().answered()), (2, 2));
        assert_eq!(Stage::lost(stage.encap()), Some((DropReason::PathTooNarrow, 1)));
        assert_eq!(stage.send_errors(), [(host_a().ip(), 1)]);
        let stats = stage.worker.counters().stats;
        assert_eq!((stats.path_mtu_lowered, stats.fragments_made, stats.gso_fallbacks), (1, 0, 0));
        assert_eq!(stage.script.count(Call::PathMtu), 1);
        // The path MTU is known now, so that the next packet is not tried.
        let sends = stage.script.count(Call::Send);
        stage.give(&udp(POD, POD_A, 6, Df::Set, 1372));
        assert_eq!(stage.out(), Ok(Progress::Drained));
        assert_eq!((stage.script.count(Call::Send), stage.encap().answered()), (sends, 3));
        stage.give(&udp(POD, POD_A, 7, Df::Clear, 1372));
        assert_eq!(stage.out(), Ok(Progress::Drained));
        let sent = stage.script.take_datagrams();
        assert_eq!((numbers(&to(host_a(), &sent)), stage.worker.counters().stats.fragments_made), (vec![7, 7], 2));
    }
}

/// If the kernel does not know the path MTU, ICMP errors name the next plateau. Packets that fit it are sent.
#[test]
fn fault_29_35_53_an_unknown_path_mtu_is_lowered_by_plateaus() {
    for batch_errno in [libc::EMSGSIZE, libc::EINVAL] {
        let mut stage = Stage::new();
        stage.script.narrow(host_a().ip(), 1300, batch_errno);
        stage.fail(Call::Route, [libc::EMFILE; 8]);
        stage.fail(Call::PathMtu, [libc::EMFILE; 8]);
        for (number, payload) in [(1, 1372), (2, 1372), (3, 900)] {
            stage.give(&udp(POD, POD_A, number, Df::Set, payload));
        }
        stage.give(&udp(POD, POD_B, 4, Df::Set, 1372));
        assert_eq!(stage.out(), Ok(Progress::Drained));
        assert_eq!(numbers(stage.script.take_datagrams().iter().map(|(_, datagram)| datagram)), [3, 4]);
        assert_eq!((stage.encap().answered(), Stage::lost(stage.encap())), (2, None));
        let next_hop_mtu = |message: &Vec<u8>| message.get(36..38).map(|mtu| [mtu[0], mtu[1]]);
        let told: Vec<_> = stage.script.take_written().iter().map(next_hop_mtu).collect();
        assert_eq!(told, [Some((1006_u16 - 28).to_be_bytes()); 2]);
    }
}

/// The same batch is sent again at once, datagram by datagram. GSO batches are then disabled for A and not for B.
#[test]
fn fault_30_a_refused_gso_batch_is_sent_unbatched_to_that_peer_alone() {
    for errno in [libc::EIO, libc::EINVAL] {
        let mut stage = Stage::new();
        stage.script.refuse_gso_batches(host_a().ip(), errno);
        for round in 0..2 {
            five(&stage);
            let gso_packet = udp(POD, POD_A, 10, Df::Set, 4000);
            stage.give_with(gso(&gso_packet, 1000), &gso_packet);
            assert_eq!(stage.out(), Ok(Progress::Drained));
            let sent = stage.script.take_sends().concat();
            let lengths =
                |host| sent.iter().filter(|sent| sent.to == host).map(|sent| sent.datagrams.len()).collect::<Vec<_>>();
            assert_eq!((lengths(host_a()), lengths(host_b())), (vec![1; 3 + 4], vec![2]), "round {round}");
            assert_eq!(stage.worker.counters().stats.gso_fallbacks, 1);
        }
        assert_eq!((stage.encap().forwarded(), Stage::lost(stage.encap())), (12, None));
    }
}

/// One error disables GSO batches for a minute. Repeated errors double the time, up to an hour.
#[test]
fn fault_55_gso_batches_are_enabled_again() {
    let minute = Duration::from_secs(60);
    let mut stage = Stage::new();
    let is_batched = |stage: &mut Stage| {
        five(stage);
        assert_eq!(stage.out(), Ok(Progress::Drained));
        let sent = stage.script.take_sends().concat();
        let to_a = sent.iter().filter(|sent| sent.to == host_a()).map(|sent| sent.datagrams.len()).collect::<Vec<_>>();
        to_a == [3]
    };
    assert!(is_batched(&mut stage));
    stage.fail(Call::Send, [libc::EIO]);
    assert!(!is_batched(&mut stage));
    stage.now += minute - MILLISECOND;
    assert!(!is_batched(&mut stage), "not yet");
    stage.now += MILLISECOND;
    // A call without packets notices that the time is over.
    assert_eq!(stage.out(), Ok(Progress::Drained));
    assert!(is_batched(&mut stage), "after a minute");
    stage.now += 60 * minute;

    stage.script.refuse_gso_batches(host_a().ip(), libc::EIO);
    for minutes in [1, 2, 4, 8, 16, 32, 60, 60] {
        let fallbacks = stage.worker.counters().stats.gso_fallbacks;
        assert!(!is_batched(&mut stage));
        for _ in 0..minutes {
            assert!(!is_batched(&mut stage));
            assert_eq!(stage.worker.counters().stats.gso_fallbacks, fallbacks + 1, "{minutes} minutes");
            stage.now += minute;
        }
        assert_eq!(stage.out(), Ok(Progress::Drained));
    }
    assert_eq!(Stage::lost(stage.encap()), None);
}

/// A call that ends with an error counts it, too: here the device is deleted after the reads.
#[test]
fn fault_30_36_a_refused_gso_batch_is_counted_when_the_device_ends() {
    let mut stage = Stage::new();
    stage.script.refuse_gso_batches(host_a().ip(), libc::EIO);
    five(&stage);
    let reads = core::iter::repeat_n(Answer::All, 5).chain([Answer::Error(libc::EBADFD)]);
    stage.script.then(Call::Read, reads);
    assert_eq!(stage.out(), Err(WorkerError::LinkDeleted { name: "script0".into() }));
    assert_eq!((stage.encap().forwarded(), stage.worker.counters().stats.gso_fallbacks), (5, 1));
}

/// If the single datagrams fail too, the GSO batch was not the reason.
#[test]
fn fault_30_datagrams_that_fail_singly_too_are_counted_and_disable_nothing() {
    for errno in [libc::EIO, libc::EINVAL] {
        let mut stage = Stage::new();
        five(&stage);
        // Of A's three: the batches that begin with them, and the datagrams.
        stage.fail(Call::Send, [errno; 5]);
        assert_eq!(stage.out(), Ok(Progress::Drained));
        assert_eq!(Stage::lost(stage.encap()), Some((DropReason::SendFailed, 3)));
        assert_eq!(stage.worker.counters().stats.gso_fallbacks, 0);
        five(&stage);
        assert_eq!(stage.out(), Ok(Progress::Drained));
        let sent = stage.script.take_sends().concat();
        assert_eq!(sent.iter().map(|sent| sent.datagrams.len()).collect::<Vec<_>>(), [2, 3, 2]);
    }
}

/// Each error has its own counter and names its peer. All other packets are sent.
#[test]
fn fault_31_unsent_packets_are_counted_with_their_peer() {
    for (errno, reason) in [
        (libc::ECONNREFUSED, DropReason::SendRefused),
        (libc::EHOSTUNREACH, DropReason::SendUnreachable),
        (libc::EHOSTDOWN, DropReason::SendUnreachable),
        (libc::ENETUNREACH, DropReason::SendUnreachable),
        (libc::ENETDOWN, DropReason::SendUnreachable),
        (libc::EPERM, DropReason::SendForbidden),
        (libc::EACCES, DropReason::SendForbidden),
        (libc::EAFNOSUPPORT, DropReason::SendFailed),
    ] {
        let mut stage = Stage::new();
        five(&stage);
        // Twice, because the first may be the error of an earlier packet.
        let twice = !matches!(reason, DropReason::SendForbidden | DropReason::SendFailed);
        stage.script.then(Call::Send, core::iter::repeat_n(Answer::Error(errno), if twice { 2 } else { 1 }));
        assert_eq!(stage.out(), Ok(Progress::Drained));
        assert_eq!(Stage::lost(stage.encap()), Some((reason, 3)), "error number {errno}");
        assert_eq!(stage.send_errors(), [(host_a().ip(), 3)]);
        assert_eq!(numbers(&to(host_b(), &stage.script.take_datagrams())), [4, 5]);
        assert_eq!(stage.encap().forwarded(), 2);
    }
}

/// However few messages a call accepts, the next one continues behind them. An error is that of the next message alone.
#[test]
fn fault_32_a_short_send_goes_on_where_it_ended() {
    for taken in 0..6 {
        let mut stage = Stage::with(TunOffload::ALL, UdpOffload { gso: false, gro: true });
        (1..=6).for_each(|number| stage.give(&udp(POD, [POD_A, POD_B][usize::from(number) % 2], number, Df::Set, 100)));
        let short = (taken > 0).then_some(Answer::AtMost(taken));
        stage.script.then(Call::Send, short.into_iter().chain([Answer::Error(libc::EPERM)]));
        assert_eq!(stage.out(), Ok(Progress::Drained));
        let sent = stage.script.take_datagrams();
        let all = [to(host_a(), &sent), to(host_b(), &sent)].map(|datagrams| numbers(&datagrams));
        // In the order of each peer's batch: B has the odd numbers and is first.
        let order = [1, 3, 5, 2, 4, 6];
        let kept = |odd: bool| order.into_iter().enumerate().filter(move |(at, n)| *at != taken && (n % 2 == 1) == odd);
        assert_eq!(all, [false, true].map(|odd| kept(odd).map(|(_, number)| number).collect::<Vec<u16>>()));
        assert_eq!(Stage::lost(stage.encap()), Some((DropReason::SendForbidden, 1)));
        let peer = if order[taken] % 2 == 1 { host_b() } else { host_a() };
        assert_eq!(stage.send_errors(), [(peer.ip(), 1)]);
    }
}

/// The kernel reports the fate of a packet to A to the next send. No other packet is lost.
#[test]
fn fault_33_an_error_of_another_peer_costs_no_packet() {
    for errno in [libc::ECONNREFUSED, libc::EHOSTUNREACH, libc::ENETUNREACH, libc::EPROTO] {
        let mut stage = Stage::new();
        stage.give(&udp(POD, POD_A, 1, Df::Set, 100));
        assert_eq!(stage.out(), Ok(Progress::Drained));
        stage.give(&udp(POD, POD_B, 2, Df::Set, 100));
        stage.fail(Call::Send, [errno]);
        assert_eq!(stage.out(), Ok(Progress::Drained));
        assert_eq!(numbers(&to(host_b(), &stage.script.take_datagrams())), [2]);
        assert_eq!((stage.encap().forwarded(), Stage::lost(stage.encap()), stage.send_errors()), (2, None, vec![]));
    }
}

/// Faults 14 to 21 and 36 have tests of their own. Here a read that fails loses only that read.
#[test]
fn fault_15_28_a_read_that_fails_is_counted_and_the_next_one_goes_on() {
    let mut stage = Stage::new();
    five(&stage);
    stage.script.give_packet(&[0; 9]);
    stage.give(&udp(POD, POD_A, 6, Df::Set, 100));
    stage.fail(Call::Read, [libc::EINVAL, libc::ENOMEM, libc::EIO]);
    assert_eq!(stage.out(), Ok(Progress::Drained));
    assert_eq!(stage.worker.counters().stats.read_errors, 4);
    assert_eq!((stage.encap().received(), stage.encap().forwarded()), (6, 6));
}

/// The longest packet of the device is longer than any datagram. It is fragmented, or its sender gets an ICMP error.
#[test]
fn fault_2_the_longest_packet_out_of_the_device() {
    let mut stage = Stage::new();
    stage.worker.remote().set_mtu(Mtu::MAX);
    for (number, df) in [(1, Df::Clear), (2, Df::Set)] {
        stage.give(&udp(POD, POD_A, number, df, 65_507));
    }
    assert_eq!(stage.out(), Ok(Progress::Drained));
    let sent = stage.script.take_datagrams();
    assert_eq!(numbers(&to(host_a(), &sent)), [1, 1]);
    let payload: usize = sent.iter().map(|(_, datagram)| datagram.len() - 20).sum();
    assert_eq!(payload, 65_515, "no byte is missing");
    assert_eq!((stage.encap().forwarded(), stage.encap().answered()), (1, 1));
    assert_eq!(stage.take_delivered()[0][24..28], [0, 0, 0xff, 0xe3], "65,507");
}

/// Each is dropped with its counter, and the packets before and after it are forwarded.
#[test]
fn fault_16_18_19_20_21_an_invalid_gso_packet_is_dropped_alone() {
    let (of_udp, of_tcp) = (udp(POD, POD_A, 7, Df::Set, 3000), tcp(POD, POD_A, 7, 1, 3000));
    let mut fragment = of_udp.clone();
    fragment[6] |= 0x20;
    set_ttl(&mut fragment, 64);
    let mut short_offset = of_tcp.clone();
    short_offset[32] = 0x40;
    let mut long_offset = tcp(POD, POD_A, 7, 1, 20);
    long_offset[32] = 0xf0;
    let header = gso(&of_udp, 1000);
    let cases = [
        ("no size", VnetHeader { gso_size: 0, ..header }, &of_udp),
        ("a checksum past the end", VnetHeader { csum_start: 4000, ..header }, &of_udp),
        ("one that wraps", VnetHeader { csum_start: u16::MAX, csum_offset: u16::MAX, ..header }, &of_udp),
        ("one inside the IP header", VnetHeader { csum_start: 8, gso_type: 0, ..header }, &of_udp),
        ("UDP said to be TCP", gso(&of_tcp, 1000), &of_udp),
        ("TCP said to be UDP", header, &of_tcp),
        ("an unknown type", VnetHeader { gso_type: 0x7f, ..header }, &of_udp),
        ("ECN and UDP", VnetHeader { gso_type: header.gso_type | vnet_gso::ECN, ..header }, &of_udp),
        ("a TCP data offset below 5", gso(&of_tcp, 1000), &short_offset),
        ("one past the end", gso(&of_tcp, 10), &long_offset),
        ("a fragment", header, &fragment),
    ];
    for (what, header, packet) in cases {
        let mut stage = Stage::new();
        stage.give(&udp(POD, POD_A, 1, Df::Set, 100));
        stage.give_with(header, packet);
        stage.give(&udp(POD, POD_A, 2, Df::Set, 100));
        assert_eq!(stage.out(), Ok(Progress::Drained));
        assert_eq!(numbers(&to(host_a(), &stage.script.take_datagrams())), [1, 2], "{what}");
        assert_eq!(Stage::lost(stage.encap()), Some((DropReason::BadOffload, 1)), "{what}");
    }
}

/// For every value of the header, each packet is in exactly one counter and the next one is sent. No output is longer
/// than the input.
#[test]
fn fault_14_17_every_byte_of_the_vnet_header() {
    let packet = tcp(POD, POD_A, 7, 1, 3000);
    let header = gso(&packet, 1400);
    let plain = udp(POD, POD_A, 1, Df::Set, 100);
    let mut stage = Stage::new();
    for at in 0..VNET_HEADER_LEN {
        for value in 0..=u8::MAX {
            let mut bytes = header.to_bytes();
            bytes[at] = value;
            stage.give_with(VnetHeader::from_bytes(bytes), &packet);
            stage.give(&plain);
            let before = stage.encap().received();
            while stage.out() == Ok(Progress::More) {}
            assert_eq!(stage.encap().received() - before, 2, "byte {at} is {value}");
            let sent = stage.script.take_datagrams();
            assert_eq!(sent.last().map(|(_, datagram)| datagram[20..].to_vec()), Some(plain[20..].to_vec()));
            let payload: usize = sent.iter().rev().skip(1).map(|(_, datagram)| datagram.len() - 40).sum();
            assert!(payload <= 3000, "byte {at} is {value}: {payload} bytes of payload");
            let is_hdr_len = (2..4).contains(&at);
            assert!(payload == 3000 || !is_hdr_len, "the kernel's header length is not used");
        }
    }
    let lost: u64 = stage.encap().drops().map(|(_, count)| count).sum();
    assert_eq!(stage.encap().forwarded() + stage.encap().answered() + lost, 2 * 10 * 256);
}
