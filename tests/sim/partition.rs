//! Nodes that cannot reach each other.

use loden::sim::{LinkProfile, Loss};

use crate::{mesh, ms, numbers, packet};

/// Returns the pairs of nodes that reach each other.
fn pairs(sim: &mut loden::sim::Sim<u32>) -> Vec<(u32, u32)> {
    for (from, node) in (0..).zip(sim.nodes()) {
        for to in (0..sim.nodes().count() as u32).filter(|to| *to != from) {
            sim.send(node, packet(from, to, from * 10 + to));
        }
    }
    sim.run_until_idle();
    sim.check().unwrap();
    let mut heard = numbers(&sim.take_delivered());
    heard.sort_unstable();
    heard.iter().map(|number| (number / 10, number % 10)).collect()
}

#[test]
fn groups_and_the_ungrouped_nodes_reach_only_themselves() {
    let (mut sim, [a, b, c, _, _]) = mesh::<5>(1);
    let all = pairs(&mut sim);
    assert_eq!(all.len(), 20);
    sim.partition([vec![a, b], vec![c]]);
    assert_eq!(pairs(&mut sim), [(0, 1), (1, 0), (3, 4), (4, 3)]);
    assert_eq!(sim.underlay().lost(Loss::Partition), 16);
    sim.partition([[a, c]]);
    assert_eq!(pairs(&mut sim), [(0, 2), (1, 3), (1, 4), (2, 0), (3, 1), (3, 4), (4, 1), (4, 3)]);
    sim.heal();
    assert_eq!(pairs(&mut sim), all);
}

/// A partition loses the datagrams that are in flight when it begins or ends.
#[test]
fn a_partition_loses_the_datagrams_in_flight_at_its_beginning_and_end() {
    let (mut sim, [a, b]) = mesh::<2>(1);
    sim.set_link_profile(LinkProfile { latency: ms(10), ..LinkProfile::default() });
    for at in [0, 15, 25] {
        sim.send_at(ms(at), a, packet(0, 1, at as u32));
    }
    sim.run_until(ms(5));
    sim.partition([[a], [b]]);
    sim.run_until(ms(20));
    sim.heal();
    sim.run_until_idle();
    assert_eq!(numbers(&sim.take_delivered()), [25]);
    assert_eq!((sim.underlay().lost(Loss::Partition), sim.now()), (2, ms(35)));
}
