//! Routes that change while packets are queued.

use super::*;

impl Stage {
    fn set_route(&mut self, subnet: &str, next_hop: SocketAddr) {
        let route = Route::new(subnet.parse::<ipnet::Ipv4Net>().unwrap(), next_hop);
        assert!(self.routes.apply([RouteChange::Set(route)]).refused.is_empty());
    }

    /// Moves the route of pod A's subnet to host B. Host A is then nobody's next hop.
    fn move_a_to_b(&mut self) {
        self.set_route("100.96.2.0/24", host_b());
    }

    fn give_segments(&self, number: u16, segments: usize) {
        let packet = udp(POD, POD_A, number, Df::Set, segments * 100);
        self.give_with(gso(&packet, 100), &packet);
    }
}

/// The peer is blocked after ten of sixty segments. The other fifty are not sent to the removed next hop.
#[test]
fn r26_r70_fault_46_the_rest_of_a_gso_packet_is_not_sent_to_a_next_hop_that_is_gone() {
    for udp_first in [false, true] {
        let mut stage = Stage::with(TunOffload::ALL, UdpOffload { gso: false, gro: true });
        stage.give_segments(1, 60);
        stage.script.then(Call::Send, [Answer::AtMost(10), Answer::Error(libc::EAGAIN)]);
        assert_eq!(stage.out(), Ok(Progress::Drained));
        assert_eq!(stage.script.take_datagrams().len(), 10);
        stage.move_a_to_b();
        stage.give(&udp(POD, POD_A, 100, Df::Set, 100));
        if udp_first {
            // The other direction applies the new table first, so that this one cannot compare tables itself.
            assert_eq!(stage.back(), Ok(Progress::Drained));
        }
        assert_eq!(stage.out(), Ok(Progress::Drained));
        let sent = stage.script.take_datagrams();
        assert_eq!((numbers(&to(host_b(), &sent)), sent.len()), (vec![100], 1));
        assert_eq!(Stage::lost(stage.encap()), Some((DropReason::StaleRoute, 1)), "one packet, and not fifty");
        assert_eq!((stage.encap().forwarded(), stage.encap().held()), (1, 0));
    }
}

/// GSO batches to two peers are queued, the first one partly sent. Only those to the removed next hop are dropped, and
/// the others are sent in order.
#[test]
fn r26_r70_fault_46_datagrams_that_wait_are_not_sent_to_a_next_hop_that_is_gone() {
    for (front, behind) in [(POD_A, POD_B), (POD_B, POD_A)] {
        let mut stage = Stage::with(TunOffload::ALL, UdpOffload { gso: false, gro: true });
        (1..=3).for_each(|number| stage.give(&udp(POD, front, number, Df::Set, 100)));
        (4..=6).for_each(|number| stage.give(&udp(POD, behind, number, Df::Set, 100)));
        stage.script.then(Call::Send, [Answer::AtMost(1), Answer::Error(libc::EAGAIN), Answer::Error(libc::EAGAIN)]);
        assert_eq!(stage.out(), Ok(Progress::Drained));
        assert_eq!((stage.encap().forwarded(), stage.encap().held()), (1, 5));
        stage.script.take_sends();
        stage.move_a_to_b();
        stage.now += MILLISECOND;
        assert_eq!(stage.out(), Ok(Progress::Drained));
        let sent = stage.script.take_datagrams();
        assert!(sent.iter().all(|(to, _)| *to == host_b()));
        let (left, lost) = if front == POD_B { (vec![2, 3], 3) } else { (vec![4, 5, 6], 2) };
        assert_eq!(numbers(sent.iter().map(|(_, datagram)| datagram)), left);
        assert_eq!(Stage::lost(stage.encap()), Some((DropReason::StaleRoute, lost)));
        assert_eq!(stage.send_errors(), [], "no send failed");
    }
}

/// A GSO packet with sent and queued segments is one packet.
#[test]
fn r67_r70_a_packet_that_is_partly_sent_is_dropped_once() {
    for taken in [0, 1, 5, 60] {
        let mut stage = Stage::with(TunOffload::ALL, UdpOffload { gso: false, gro: true });
        let packet = udp(POD, POD_A, 1, Df::Set, 30_000);
        stage.give_with(gso(&packet, 500), &packet);
        stage.give(&udp(POD, POD_A, 200, Df::Set, 10));
        let answers = core::iter::repeat_n(Answer::AtMost(1), taken);
        stage.script.then(Call::Send, answers.chain(core::iter::repeat_n(Answer::Error(libc::EAGAIN), 500)));
        assert_eq!(stage.out(), Ok(Progress::Drained));
        stage.script.take_sends();
        stage.script.forget(Call::Send);
        let (held, forwarded) = (stage.encap().held(), stage.encap().forwarded());
        assert_eq!((held, forwarded), if taken < 60 { (2, 0) } else { (1, 1) });
        stage.move_a_to_b();
        stage.now += 5 * MILLISECOND;
        assert_eq!(stage.out(), Ok(Progress::Drained));
        assert_eq!(stage.script.take_datagrams(), [], "{taken}");
        assert_eq!(stage.encap().dropped(DropReason::StaleRoute), held);
        assert_eq!((stage.encap().held(), stage.encap().forwarded()), (0, forwarded));
    }
}

/// Only packets to a next hop of no route are dropped. A next hop that another route has stays.
#[test]
fn r70_a_next_hop_that_another_route_has_is_not_gone() {
    let mut stage = Stage::new();
    stage.set_route("100.96.4.0/24", host_a());
    stage.give(&udp(POD, POD_A, 1, Df::Set, 100));
    stage.fail(Call::Send, [libc::EAGAIN]);
    assert_eq!(stage.out(), Ok(Progress::Drained));
    stage.now += MILLISECOND;
    stage.move_a_to_b();
    assert_eq!(stage.out(), Ok(Progress::Drained));
    assert_eq!(numbers(&to(host_a(), &stage.script.take_datagrams())), [1]);

    // A port of the same host is another next hop.
    stage.give(&udp(POD, "100.96.4.1".parse().unwrap(), 2, Df::Set, 100));
    stage.fail(Call::Send, [libc::EAGAIN]);
    assert_eq!(stage.out(), Ok(Progress::Drained));
    stage.now += MILLISECOND;
    stage.set_route("100.96.4.0/24", SocketAddr::new(host_a().ip(), 9999));
    assert_eq!(stage.out(), Ok(Progress::Drained));
    assert_eq!(stage.script.take_datagrams(), []);
    assert_eq!(Stage::lost(stage.encap()), Some((DropReason::StaleRoute, 1)));
}
