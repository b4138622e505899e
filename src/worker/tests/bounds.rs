//! Bounds and counters of the worker for peers, refusals and trailers.

use super::*;

/// Fault 31: errors are counted for the first 1,024 peers, and those counters keep counting.
#[test]
fn fault_31_send_errors_are_counted_for_the_first_peers() {
    const PEERS: u16 = 1500;
    let mut stage = Stage::new();
    let pod = |number: u16| Ipv4Addr::from_bits(0x6460_1000 + u32::from(number));
    let host = |number: u16| IpAddr::from(Ipv4Addr::from_bits(0x0aa9_0000 + u32::from(number)));
    let route = |number| Route::new(ipnet::Ipv4Net::new_assert(pod(number), 32), (host(number), 8285));
    assert!(stage.routes.apply((0..PEERS).map(|number| RouteChange::Set(route(number)))).refused.is_empty());
    for number in (0..PEERS).chain(0..10).chain(PEERS - 10..PEERS) {
        stage.give(&udp(POD, pod(number), number, Df::Set, 100));
        stage.fail(Call::Send, [libc::EPERM]);
        assert_eq!(stage.out(), Ok(Progress::Drained));
    }
    // A long table is published ten times a second.
    stage.now += 100 * MILLISECOND;
    assert_eq!(stage.out(), Ok(Progress::Drained));
    let expected: Vec<_> = (0..1024).map(|number| (host(number), 1 + u64::from(number < 10))).collect();
    assert_eq!(stage.send_errors(), expected);
    assert_eq!(Stage::lost(stage.encap()), Some((DropReason::SendForbidden, u64::from(PEERS) + 20)));
}

/// Fault 30: GSO packets are disabled after refusals in a row, not after as many in total.
#[test]
fn fault_30_an_accepted_gso_packet_resets_the_refusals() {
    let mut stage = Stage::new();
    for round in 0..20_u16 {
        let packets = (0..4).map(|at| tcp(POD_A, POD, 4 * round + at, 1000 * u32::from(4 * round + at), 1000));
        stage.arrive(host_a(), &packets.collect::<Vec<_>>());
        let (writes, refused) = (stage.script.count(Call::Write), round % 8 < 7);
        if refused {
            stage.fail(Call::Write, [libc::EINVAL]);
        }
        assert_eq!(stage.back(), Ok(Progress::Drained));
        assert_eq!(stage.script.count(Call::Write) - writes, if refused { 5 } else { 1 }, "round {round}");
        assert_eq!(stage.take_delivered().len(), 4);
    }
    assert_eq!(stage.worker.counters().stats.tun_fallbacks, 18);
}

/// Fault 31: an ICMP error that cannot be sent to a peer counts as that peer's send error.
#[test]
fn fault_31_an_answer_that_cannot_be_sent_is_counted_with_its_peer() {
    let mut stage = Stage::new();
    let mut expired = udp(POD_A, POD, 1, Df::Set, 100);
    set_ttl(&mut expired, 1);
    stage.arrive(host_a(), &[expired]);
    stage.arrive(host_b(), &[udp(POD_B, POD, 2, Df::Set, 100)]);
    stage.fail(Call::Send, [libc::EPERM]);
    assert_eq!(stage.back(), Ok(Progress::Drained));
    assert_eq!(stage.send_errors(), [(host_a().ip(), 1)]);
    assert_eq!((stage.decap().received(), stage.decap().forwarded(), stage.decap().answered()), (2, 1, 0));
}

/// R8: bytes behind a packet are counted once, for every verdict.
#[test]
fn r8_every_trailer_is_counted() {
    let mut stage = Stage::new();
    let with_trailer = |packet: Vec<u8>| [packet, alloc::vec![0xee; 10]].concat();
    let trimmed = |stage: &Stage| stage.worker.counters().stats.trimmed;
    for (number, (pod, payload)) in (1..).zip([(POD_A, 100), (NOBODY, 100), (POD_A, 2000)]) {
        stage.give(&with_trailer(udp(POD, pod, 1, Df::Clear, payload)));
        assert_eq!(stage.out(), Ok(Progress::Drained));
        assert_eq!(trimmed(&stage), number, "{pod} and {payload} bytes");
    }
    assert_eq!((stage.encap().forwarded(), stage.encap().answered()), (2, 1));
    for (number, ttl) in (4..).zip([64, 1]) {
        let mut packet = udp(POD_A, POD, 1, Df::Set, 100);
        set_ttl(&mut packet, ttl);
        stage.arrive(host_a(), &[with_trailer(packet)]);
        assert_eq!(stage.back(), Ok(Progress::Drained));
        assert_eq!(trimmed(&stage), number, "TTL {ttl}");
    }
    assert_eq!((stage.decap().forwarded(), stage.decap().answered()), (1, 1));
}
