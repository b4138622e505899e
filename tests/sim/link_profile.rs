//! Loss, duplicates, delays and marks occur at the configured rates and places.

use std::collections::BTreeMap;

use loden::forward::EcnIngress;
use loden::sim::{LinkProfile, Loss, Probability, Sim};
use loden::wire::Ecn;

use crate::{SOURCE, at, config, lease, mesh, ms, network, numbers, packet, with_byte};
use loden::lease::LeaseEvent;

const PACKETS: u32 = 10_000;

/// Sends packets one millisecond apart from host 0 to host 1. Returns the received ones with their delays.
fn run(sim: &mut Sim<u32>) -> Vec<(u32, u64)> {
    let [a, b] = [0, 1].map(|at| sim.nodes().nth(at).unwrap());
    for number in 0..PACKETS {
        sim.send_at(ms(number.into()), a, packet(0, 1, number));
    }
    while sim.step() {
        sim.check().unwrap();
    }
    let delivered = sim.take_delivered();
    assert!(delivered.iter().all(|delivered| delivered.node == b));
    let times = delivered.iter().map(|delivered| delivered.at);
    numbers(&delivered)
        .into_iter()
        .zip(times)
        .map(|(number, at)| (number, (at - ms(number.into())).as_micros() as u64))
        .collect()
}

#[test]
fn by_default_all_arrive_in_order_after_a_millisecond() {
    let (mut sim, _) = mesh::<2>(1);
    assert_eq!(run(&mut sim), (0..PACKETS).map(|number| (number, 1000)).collect::<Vec<_>>());
}

#[test]
fn loss_and_copies_are_as_frequent_as_asked_for() {
    let (mut sim, _) = mesh::<2>(1);
    let (loss, duplication) = (Probability::percent(10), Probability::of(1, 20));
    sim.set_link_profile(LinkProfile { loss, duplication, ..LinkProfile::default() });
    let arrived = run(&mut sim);
    let (lost, copies) = (sim.underlay().lost(Loss::Random), sim.underlay().duplicated());
    // Within four standard deviations.
    assert!((880..1120).contains(&lost), "{lost} lost");
    assert!((366..534).contains(&copies), "{copies} copies of what was not lost");
    assert_eq!(arrived.len() as u64, u64::from(PACKETS) - lost + copies);
    let mut times: BTreeMap<u32, u32> = BTreeMap::new();
    arrived.iter().for_each(|(number, _)| *times.entry(*number).or_default() += 1);
    assert_eq!(times.values().filter(|times| **times == 2).count() as u64, copies);
    assert!(times.values().all(|times| *times <= 2));
}

#[test]
fn jitter_is_uniform_and_reorders() {
    let (mut sim, _) = mesh::<2>(1);
    sim.set_link_profile(LinkProfile { latency: ms(30), jitter: ms(20), ..LinkProfile::default() });
    let arrived = run(&mut sim);
    assert_eq!(arrived.len() as u32, PACKETS);
    assert!(arrived.iter().all(|(_, took)| (30_000..=50_000).contains(took)));
    for twentieth in 0..20 {
        let range = 30_000 + twentieth * 1000..31_000 + twentieth * 1000;
        let count = arrived.iter().filter(|(_, took)| range.contains(took)).count();
        assert!((413..587).contains(&count), "{count} of 500 in {range:?} µs");
    }
    let overtaken = arrived.windows(2).filter(|pair| pair[0].0 > pair[1].0).count();
    assert!(overtaken > PACKETS as usize / 4, "{overtaken} came before one that was sent earlier");
}

/// The two directions between two nodes, and those of other nodes, are independent.
#[test]
fn a_profile_applies_to_the_direction_it_is_set_for() {
    let (mut sim, [a, b, c]) = mesh::<3>(1);
    let slow = |latency| LinkProfile { latency: ms(latency), ..LinkProfile::default() };
    sim.set_link_profile(slow(5));
    sim.set_link_profile_between(a, b, slow(10));
    sim.set_link_profile_from(b, a, slow(20));
    for (from, to) in [(0, 1), (1, 0), (0, 2), (2, 1)] {
        sim.send([a, b, c][from as usize], packet(from, to, from * 10 + to));
    }
    sim.run_until_idle();
    let took: Vec<_> = sim.take_delivered().iter().map(|d| (crate::number(&d.packet), d.at)).collect();
    assert_eq!(took, [(2, ms(5)), (21, ms(5)), (1, ms(10)), (10, ms(20))]);
}

/// A mark on the outer packet is copied to the inner one if both ends are configured so. A packet that is not
/// ECN-capable is unchanged then.
#[test]
fn a_congested_link_marks_ecn_capable_packets() {
    let mut sim = Sim::new(network(), 1);
    let [a, b] = [0, 1].map(|number| sim.add_node(config(number).with_ecn_ingress(EcnIngress::Normal)).unwrap());
    sim.lease_event(SOURCE, LeaseEvent::Snapshot(vec![lease(0), lease(1)]));
    sim.set_link_profile_from(a, b, LinkProfile { congestion: Probability::ALWAYS, ..LinkProfile::default() });
    for ecn in [Ecn::NotEct, Ecn::Ect0] {
        sim.send(a, with_byte(&packet(0, 1, 0), at::TOS, ecn.bits()));
    }
    sim.run_until_idle();
    let marks: Vec<_> =
        sim.take_delivered().iter().map(|delivered| (delivered.node, Ecn::of(delivered.packet[1]))).collect();
    assert_eq!(marks, [(b, Ecn::NotEct), (b, Ecn::Ce)]);
    sim.check().unwrap();
}
