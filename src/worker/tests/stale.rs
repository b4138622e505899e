//! Routes that change while packets wait for the socket.

use super::*;

impl Stage {
    fn set_route(&mut self, subnet: &str, next_hop: SocketAddr) {
        let route = Route::new(subnet.parse::<ipnet::Ipv4Net>().unwrap(), next_hop);
        assert!(self.routes.apply([RouteChange::Set(route)]).refused.is_empty());
    }

    /// The route to pod A's subnet leads to host B from now on, so that host A is nobody's next hop.
    fn move_a_to_b(&mut self) {
        self.set_route("100.96.2.0/24", host_b());
    }

    fn give_segments(&self, number: u16, segments: usize) {
        let packet = udp(POD, POD_A, number, Df::Set, segments * 100);
        self.give_with(gso(&packet, 100), &packet);
    }
}

/// The first call sends ten of sixty segments. The other fifty are not sent to the next hop that is gone.
#[test]
fn r26_r70_fault_46_the_rest_of_a_gso_packet_is_not_sent_to_a_next_hop_that_is_gone() {
    for udp_first in [false, true] {
        let mut stage = Stage::new();
        stage.give_segments(1, 60);
        assert_eq!(stage.call(Worker::tun_ready, Budget::packets(10)), Ok(Progress::More));
        let sent = stage.script.take_datagrams().len();
        assert!((10..=11).contains(&sent), "{sent}");
        stage.move_a_to_b();
        stage.give(&udp(POD, POD_A, 100, Df::Set, 100));
        if udp_first {
            // It takes over the new table, so that the other direction cannot tell that by itself.
            assert_eq!(stage.back(), Ok(Progress::Drained));
        }
        assert_eq!(stage.out(), Ok(Progress::Drained));
        let sent = stage.script.take_datagrams();
        assert_eq!((numbers(&to(host_b(), &sent)), sent.len()), (vec![100], 1));
        assert_eq!(Stage::lost(stage.encap()), Some((DropReason::StaleRoute, 1)), "one packet, and not fifty");
        assert_eq!((stage.encap().forwarded(), stage.encap().held()), (1, 0));
    }
}

/// Trains that wait for the socket, the front one in part gone, to two peers. Only those to the next hop that is gone are
/// dropped, and the others leave in their order.
#[test]
fn r26_r70_fault_46_datagrams_that_wait_are_not_sent_to_a_next_hop_that_is_gone() {
    for (front, behind) in [(POD_A, POD_B), (POD_B, POD_A)] {
        let mut stage = Stage::with(TunOffload::ALL, UdpOffload { gso: false, gro: true });
        (1..=3).for_each(|number| stage.give(&udp(POD, front, number, Df::Set, 100)));
        (4..=6).for_each(|number| stage.give(&udp(POD, behind, number, Df::Set, 100)));
        stage.script.then(Call::Send, [Answer::AtMost(1), Answer::Error(libc::EAGAIN)]);
        assert_eq!(stage.out(), Ok(Progress::Held));
        assert_eq!((stage.encap().forwarded(), stage.encap().held()), (1, 5));
        stage.script.take_sends();
        stage.move_a_to_b();
        assert_eq!(stage.out(), Ok(Progress::Drained));
        let sent = stage.script.take_datagrams();
        assert!(sent.iter().all(|(to, _)| *to == host_b()));
        let (left, lost) = if front == POD_B { (vec![2, 3], 3) } else { (vec![4, 5, 6], 2) };
        assert_eq!(numbers(sent.iter().map(|(_, datagram)| datagram)), left);
        assert_eq!(Stage::lost(stage.encap()), Some((DropReason::StaleRoute, lost)));
        assert_eq!(stage.send_errors(), [], "no send failed");
    }
}

/// A GSO packet of which some segments have gone, some wait in trains and some are not in trains yet is one packet.
#[test]
fn r67_r70_a_packet_that_is_partly_gone_is_dropped_once() {
    for budget in [1, 10, 40, 256] {
        for (df, mtu) in [(Df::Set, 1500), (Df::Clear, 100)] {
            for taken in [0, 1, 5] {
                let mut stage = Stage::with(TunOffload::ALL, UdpOffload { gso: false, gro: true });
                stage.script.narrow(host_a().ip(), mtu, libc::EINVAL);
                let packet = udp(POD, POD_A, 1, df, 30_000);
                stage.give_with(gso(&packet, 500), &packet);
                stage.give(&udp(POD, POD_A, 200, Df::Set, 10));
                let answers = core::iter::repeat_n(Answer::AtMost(1), taken);
                stage.script.then(Call::Send, answers.chain(core::iter::repeat_n(Answer::Error(libc::EAGAIN), 500)));
                let _ = stage.call(Worker::tun_ready, Budget::packets(budget)).unwrap();
                stage.script.take_sends();
                stage.script.forget(Call::Send);
                let (held, received) = (stage.encap().held(), stage.encap().received());
                stage.move_a_to_b();
                while stage.call(Worker::tun_ready, Budget::packets(budget)).unwrap() == Progress::More {}
                assert!(stage.script.take_datagrams().iter().all(|(to, _)| *to == host_b()), "{budget} {df:?} {taken}");
                assert_eq!(stage.encap().dropped(DropReason::StaleRoute), held);
                assert_eq!((stage.encap().held(), stage.encap().forwarded()), (0, 2 - received));
            }
        }
    }
}

/// Dropped is what no route leads to: not what goes to a next hop that another route still has.
#[test]
fn r70_a_next_hop_that_another_route_has_is_not_gone() {
    let mut stage = Stage::new();
    stage.set_route("100.96.4.0/24", host_a());
    stage.give(&udp(POD, POD_A, 1, Df::Set, 100));
    stage.fail(Call::Send, [libc::EAGAIN]);
    assert_eq!(stage.out(), Ok(Progress::Held));
    stage.move_a_to_b();
    assert_eq!(stage.out(), Ok(Progress::Drained));
    assert_eq!(numbers(&to(host_a(), &stage.script.take_datagrams())), [1]);

    // A port of the same host is another next hop.
    stage.give(&udp(POD, "100.96.4.1".parse().unwrap(), 2, Df::Set, 100));
    stage.fail(Call::Send, [libc::EAGAIN]);
    assert_eq!(stage.out(), Ok(Progress::Held));
    stage.set_route("100.96.4.0/24", SocketAddr::new(host_a().ip(), 9999));
    assert_eq!(stage.out(), Ok(Progress::Drained));
    assert_eq!(stage.script.take_datagrams(), []);
    assert_eq!(Stage::lost(stage.encap()), Some((DropReason::StaleRoute, 1)));
}
