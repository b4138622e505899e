//! Paths that are too narrow, at the sender's link and in the middle.

use loden::Mtu;
use loden::forward::{DropReason, PathMtus};
use loden::sim::{LinkProfile, Loss, Sim};

use crate::{at, config, icmp, mesh, ms, network, packet_of, underlay, with_byte};

/// As with EMSGSIZE, nothing is sent, and the packet's sender gets an ICMP error at once.
#[test]
fn the_nodes_own_link_refuses_at_once() {
    let (mut sim, [a, b]) = mesh::<2>(1);
    sim.set_link_mtu(a, 1300);
    sim.send(a, packet_of(1273, 0, 1));
    let [told] = &sim.take_delivered()[..] else { panic!("one answer") };
    assert_eq!((told.node, told.at, icmp(&told.packet)), (a, ms(0), (3, 4, 1272)));
    assert_eq!((sim.underlay().sent(), sim[a].counters().stats.path_mtu_lowered), (0, 1));
    sim.send(a, packet_of(1272, 0, 1));
    sim.run_until_idle();
    assert_eq!(sim.take_delivered().iter().map(|delivered| delivered.node).collect::<Vec<_>>(), [b]);
    sim.check().unwrap();
}

/// R50 and R54: the first packet is lost on the way. The senders of later ones get an ICMP error from this host for ten
/// minutes.
#[test]
fn a_router_in_the_middle_reports_after_a_delay() {
    let (mut sim, [a, b]) = mesh::<2>(1);
    sim.set_link_profile_from(a, b, LinkProfile { latency: ms(10), mtu: 1000, ..LinkProfile::default() });
    let try_one = |sim: &mut Sim<u32>, len| {
        sim.send(a, packet_of(len, 0, 1));
        sim.run_until_idle();
        sim.check().unwrap();
        sim.take_delivered().iter().map(|delivered| (delivered.node, icmp(&delivered.packet))).collect::<Vec<_>>()
    };
    assert_eq!(try_one(&mut sim, 1400), []);
    assert_eq!((sim.underlay().lost(Loss::TooLong), sim.now()), (1, ms(10)));
    assert_eq!(sim[a].path_mtu(underlay(1).ip(), sim.now()), Some(972));
    assert_eq!(try_one(&mut sim, 973), [(a, (3, 4, 972))]);
    assert_eq!(sim.underlay().sent(), 1);
    sim.send(a, packet_of(972, 0, 1));
    sim.run_until_idle();
    assert_eq!(sim.take_delivered()[0].node, b);
    sim.run_until(ms(10) + PathMtus::LIFETIME);
    assert_eq!(try_one(&mut sim, 973), [], "tried again, and lost again");
    assert_eq!(sim.underlay().lost(Loss::TooLong), 2);
    assert_eq!(try_one(&mut sim, 973), [(a, (3, 4, 972))]);
}

/// Several packets are lost before the first report arrives. A node that was stopped meanwhile has learned nothing.
#[test]
fn an_absent_host_gets_no_packet() {
    let (mut sim, [a, b]) = mesh::<2>(1);
    sim.set_link_profile_from(a, b, LinkProfile { latency: ms(10), mtu: 1000, ..LinkProfile::default() });
    sim.send(a, packet_of(1400, 0, 1));
    sim.send(a, packet_of(1400, 0, 1));
    sim.stop(a);
    sim.run_until_idle();
    sim.start(a);
    assert_eq!(sim[a].path_mtu(underlay(1).ip(), sim.now()), None);
    assert_eq!(sim.underlay().lost(Loss::TooLong), 2);
}

/// An impossible MTU is not accepted. Longer packets are lost without an ICMP error.
#[test]
fn an_impossible_mtu_is_a_hole() {
    let (mut sim, [a, b]) = mesh::<2>(1);
    sim.set_link_profile_from(a, b, LinkProfile { mtu: 67, ..LinkProfile::default() });
    for _ in 0..3 {
        sim.send(a, packet_of(100, 0, 1));
        sim.run_until_idle();
    }
    assert_eq!((sim.underlay().lost(Loss::TooLong), sim.take_delivered()), (3, vec![]));
}

/// An ICMP error through the tunnel that does not fit is not sent. Its offender is counted as dropped.
#[test]
fn an_answer_that_is_too_long_is_not_sent() {
    let mut sim: Sim = Sim::new(network(), 1);
    let [a, b] = [0, 1].map(|number| sim.add_node(config(number).with_mtu(Mtu::new(1472).unwrap())).unwrap());
    for (node, other) in [(a, 1), (b, 0)] {
        let (subnet, next_hop) = (crate::subnet(other), underlay(other));
        assert_eq!(
            sim.change_routes(node, [loden::route::RouteChange::Set(loden::route::Route::new(subnet, next_hop))])
                .changed,
            1
        );
    }
    sim.set_link_mtu(b, 300);
    // A TTL that expires at the remote host: R30.
    let packet = with_byte(&packet_of(500, 0, 1), at::TTL, 2);
    sim.send(a, packet.clone());
    sim.run_until_idle();
    assert_eq!(sim[b].counters().decap.dropped(DropReason::TimeExceeded), 1);
    assert_eq!((sim.take_delivered(), sim.underlay().sent()), (vec![], 1));
    sim.set_link_mtu(b, 1500);
    sim.send(a, packet);
    sim.run_until_idle();
    let [told] = &sim.take_delivered()[..] else { panic!("one answer") };
    assert_eq!((told.node, &icmp(&told.packet)), (a, &(11, 0, 0)));
    assert_eq!(sim[b].counters().decap.answered(), 1);
    sim.check().unwrap();
}

/// R51: packets without DF are fragmented on a path that is known to be narrow. The packet that finds the node's own
/// link too narrow is dropped, because it was already sent. Fragments are lost independently.
#[test]
fn without_df_it_goes_in_fragments() {
    let (mut sim, [a, b, c]) = mesh::<3>(1);
    sim.set_link_mtu(a, 1000);
    let send = |sim: &mut Sim<u32>, to| {
        sim.send(a, with_byte(&packet_of(1400, 0, to), at::FLAGS, 0));
        sim.run_until_idle();
        sim.check().unwrap();
        sim.take_delivered().iter().map(|delivered| (delivered.node, delivered.packet.len())).collect::<Vec<_>>()
    };
    assert_eq!(send(&mut sim, 1), []);
    assert_eq!((sim[a].counters().encap.dropped(DropReason::PathTooNarrow), sim.underlay().sent()), (1, 0));
    // 972 bytes leave room for 952 of payload, a multiple of 8.
    assert_eq!(send(&mut sim, 1), [(b, 972), (b, 448)]);
    sim.set_link_profile_from(a, c, LinkProfile { mtu: 600, ..LinkProfile::default() });
    assert_eq!(send(&mut sim, 2), []);
    assert_eq!(sim[a].counters().encap.dropped(DropReason::PathTooNarrow), 2, "each path is learned by itself");
    assert_eq!(send(&mut sim, 2), [(c, 448)], "the first of two is lost, and the path known from then on");
    assert_eq!(send(&mut sim, 2), [(c, 572), (c, 572), (c, 296)]);
    let counters = sim[a].counters();
    assert_eq!((counters.encap.forwarded(), counters.stats.fragments_made, sim.underlay().sent()), (3, 7, 7));
    assert_eq!(sim.underlay().lost(Loss::TooLong), 1);
}
