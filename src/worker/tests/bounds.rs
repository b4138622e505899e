//! What the worker remembers of peers and of refusals has bounds.

use super::*;

/// Fault 31: errors are counted for 1,024 peers, and go on being counted for these.
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
    let expected: Vec<_> = (0..1024).map(|number| (host(number), 1 + u64::from(number < 10))).collect();
    assert_eq!(stage.send_errors(), expected);
    assert_eq!(Stage::lost(stage.encap()), Some((DropReason::SendForbidden, u64::from(PEERS) + 20)));
}

/// Fault 30: super-packets end after refusals in a row, not after as many over all time.
#[test]
fn fault_30_a_super_packet_that_is_taken_makes_up_for_refusals() {
    let mut stage = Stage::new();
    for round in 0..20_u16 {
        let train = (0..4).map(|at| tcp(POD_A, POD, 4 * round + at, 1000 * u32::from(4 * round + at), 1000));
        stage.arrive(host_a(), &train.collect::<Vec<_>>());
        let (writes, refused) = (stage.script.count(Call::Write), round % 8 < 7);
        if refused {
            stage.fail(Call::Write, [libc::EINVAL]);
        }
        assert_eq!(stage.back(), Ok(Progress::Drained));
        assert_eq!(stage.script.count(Call::Write) - writes, if refused { 5 } else { 1 }, "round {round}");
        assert_eq!(stage.take_delivered().len(), 4);
    }
    assert_eq!(stage.worker.counters().anomalies.tun_fallbacks, 18);
}
