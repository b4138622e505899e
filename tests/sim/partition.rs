//! Nodes that cannot hear each other.

use loden::sim::{LinkProfile, Loss};

use crate::{mesh, ms, numbers, packet};

/// Who hears whom, over every pair.
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
fn groups_hear_themselves_and_those_in_none_each_other() {
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

/// A partition is between those who are parted for as long as a datagram is under way, at its beginning or at its end.
#[test]
fn what_is_under_way_when_it_begins_is_lost_and_what_was_sent_before_it_ended_too() {
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
