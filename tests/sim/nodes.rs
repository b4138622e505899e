//! Nodes that are added, stopped and restarted, and datagrams from elsewhere.

use ipnet::Ipv4Net;
use loden::Host;
use loden::forward::{ConfigError, DatagramMeta, DropReason, ForwarderConfig};
use loden::sim::{LinkProfile, Loss, NodeError, Sim};
use loden::wire::Ecn;

use crate::{config, config_at, icmp, mesh, ms, network, numbers, packet, packet_of, subnet, underlay};

#[test]
fn an_invalid_node_is_refused() {
    let mut sim: Sim = Sim::new(network(), 1);
    let first = sim.add_node(config(1)).unwrap();
    let other = config_at(2, underlay(1));
    assert_eq!(sim.add_node(other), Err(NodeError::AddressTaken { address: underlay(1), node: first }));
    let elsewhere = Ipv4Net::new_assert(network().addr(), 16);
    let elsewhere = ForwarderConfig::new(&Host::new(elsewhere, subnet(2), underlay(2)).unwrap());
    let error = sim.add_node(elsewhere).unwrap_err();
    assert_eq!(
        error.to_string(),
        "100.64.0.0/16 is not an overlay network of this simulation; use the same networks for all nodes"
    );
    assert_eq!(sim.add_node(config(2).with_icmp_ttl(0)), Err(ConfigError::IcmpTtl.into()));
    assert!(sim.add_node(config(2)).is_ok());
    assert_eq!(sim.nodes().count(), 2);
}

/// A stopped node accepts no packet from either side. A restarted node is a new process: it has forgotten learned
/// state, keeps its routes, and its counters continue.
#[test]
fn a_restarted_node_forwards_again() {
    let (mut sim, [a, b]) = mesh::<2>(1);
    sim.set_link_mtu(b, 1000);
    sim.send(b, packet_of(1400, 1, 0));
    sim.send(a, packet(0, 1, 1));
    sim.run_until_idle();
    assert_eq!(icmp(&sim.take_delivered()[0].packet), (3, 4, 972));
    sim.stop(b);
    sim.set_link_mtu(b, 1500);
    assert!(!sim[b].is_up());
    sim.send(a, packet(0, 1, 2));
    sim.send(b, packet(1, 0, 3));
    sim.run_until_idle();
    assert_eq!((sim.take_delivered(), sim[b].refused(), sim.underlay().lost(Loss::NodeStopped)), (vec![], 1, 1));
    sim.check().unwrap();
    sim.start(b);
    sim.send(b, packet_of(1400, 1, 0));
    sim.send(a, packet(0, 1, 4));
    sim.run_until_idle();
    assert_eq!(sim.take_delivered().len(), 2, "the long packet goes, too");
    let counters = sim[b].counters();
    assert_eq!((counters.encap.received(), counters.decap.received()), (2, 2));
    sim.check().unwrap();
    // A running node is not restarted.
    sim.set_link_mtu(b, 1000);
    sim.send(b, packet_of(1400, 1, 0));
    sim.start(b);
    assert_eq!(sim[b].path_mtu(underlay(0).ip(), sim.now()), Some(972));
}

/// R48: the limits follow the virtual clock, and a new process starts with full ones.
#[test]
fn icmp_errors_are_limited_by_the_simulations_clock() {
    let (mut sim, [a]) = mesh::<1>(1);
    for at in 0..10_000 {
        sim.send_at(ms(at) / 10, a, packet(0, 9, 0));
    }
    sim.run_until_idle();
    let answered = sim[a].counters().encap.answered();
    assert!((29..=30).contains(&answered), "{answered} answers in a second, burst 20 and 10 a second");
    assert_eq!(sim[a].counters().encap.dropped(DropReason::NoRoute), 10_000 - answered);
    assert_eq!(sim.take_delivered().len() as u64, answered);
    sim.stop(a);
    sim.start(a);
    for _ in 0..100 {
        sim.send(a, packet(0, 9, 0));
    }
    assert_eq!(sim[a].counters().encap.answered(), answered + 20);
    sim.check().unwrap();
}

/// Strangers, and peers with spoofed sources.
#[test]
fn datagrams_from_outside_the_simulation_can_arrive() {
    let (mut sim, [a, b, _]) = mesh::<3>(1);
    let inner = packet(0, 1, 1);
    sim.inject(b, underlay(99), inner.clone());
    sim.inject(b, underlay(2), inner.clone());
    sim.inject(b, DatagramMeta { from: underlay(0), ecn: Ecn::Ce }, inner.clone());
    sim.inject(b, underlay(0), inner.clone());
    let decap = &sim[b].counters().decap;
    let reasons = [DropReason::UnknownPeer, DropReason::SpoofedSource, DropReason::EcnNotCapable];
    assert_eq!(reasons.map(|reason| decap.dropped(reason)), [1, 1, 1]);
    assert_eq!((numbers(&sim.take_delivered()), sim.underlay().injected()), (vec![1], 4));
    sim.stop(a);
    sim.inject(a, underlay(0), inner);
    assert_eq!(sim.underlay().lost(Loss::NodeStopped), 1);
    sim.check().unwrap();
}

/// A route to an absent host.
#[test]
fn a_host_that_is_not_there_receives_nothing() {
    let (mut sim, [a]) = mesh::<1>(1);
    sim.lease_event(crate::SOURCE, loden::lease::LeaseEvent::Snapshot(vec![crate::lease(0), crate::lease(5)]));
    sim.send(a, packet(0, 5, 1));
    sim.run_until_idle();
    assert_eq!((sim.underlay().sent(), sim.underlay().lost(Loss::NoHost)), (1, 1));
    let losses: Vec<_> = sim.underlay().losses().collect();
    assert_eq!(losses, [(Loss::NoHost, 1)]);
    sim.check().unwrap();
}

/// Time moves to the requested instant, and never back.
#[test]
fn the_clock_moves_to_the_requested_time() {
    let (mut sim, [a, b]) = mesh::<2>(1);
    sim.set_link_profile(LinkProfile { latency: ms(10), ..LinkProfile::default() });
    sim.run_for(ms(5));
    sim.send(a, packet(0, 1, 1));
    sim.send_at(ms(1), a, packet(0, 1, 2));
    sim.run_for(ms(9));
    assert_eq!((sim.now(), sim.take_delivered()), (ms(14), vec![]));
    sim.run_until(ms(3));
    assert_eq!(sim.now(), ms(14));
    sim.run_until(ms(15));
    let delivered = sim.take_delivered();
    assert_eq!(delivered.iter().map(|delivered| (delivered.node, delivered.at)).collect::<Vec<_>>(), [(b, ms(15)); 2]);
    assert!(!sim.step());
    assert_eq!(subnet(0).addr(), network().addr());
}
