//! A thousand hosts with routes to each other, while leases are added, moved and removed.

use loden::lease::{Lease, LeaseEvent};
use loden::sim::{LinkProfile, Loss, NodeId, Probability, Sim};

use crate::memory::peak;
use crate::{SOURCE, config, lease, ms, network, packet, subnet, underlay};

const NODES: u32 = 1000;

fn thousand() -> (Sim<u32>, Vec<NodeId>) {
    let mut sim = Sim::new(network(), 1);
    let nodes = (0..NODES).map(|number| sim.add_node(config(number)).unwrap()).collect();
    sim.lease_event(SOURCE, LeaseEvent::Snapshot((0..NODES).map(lease).collect()));
    (sim, nodes)
}

/// Removes the leases of ten nodes, adds those of ten others, and moves a host that is not a node.
fn change_leases(sim: &mut Sim<u32>, time: u32) {
    let ten = |first| (0..NODES).skip(first as usize).step_by(100);
    for key in ten(time) {
        sim.lease_event(SOURCE, LeaseEvent::Removed { key });
    }
    for (key, lease) in time.checked_sub(1).into_iter().flat_map(ten).map(lease) {
        sim.lease_event(SOURCE, LeaseEvent::Added { key, lease });
    }
    let moved = Lease::new(subnet(NODES), underlay(NODES + time % 3));
    sim.lease_event(SOURCE, LeaseEvent::Added { key: NODES, lease: moved });
}

/// Sends from every node to every other, one per round. Leases change every forty rounds.
fn exchange(sim: &mut Sim<u32>, nodes: &[NodeId]) {
    sim.set_link_profile(LinkProfile { jitter: ms(5), loss: Probability::percent(1), ..LinkProfile::default() });
    for round in 1..NODES {
        if round % 40 == 0 {
            change_leases(sim, round / 40 - 1);
        }
        for (from, node) in (0..).zip(nodes) {
            sim.send(*node, packet(from, (from + round) % NODES, from));
        }
        sim.run_until_idle();
        sim.check().unwrap();
        let errors = sim.take_delivered().iter().filter(|delivered| delivered.packet[9] == 1).count();
        assert_eq!(errors, if round < 40 { 0 } else { 10 }, "one for each that is gone");
    }
}

#[test]
fn a_thousand_nodes_share_what_they_have_in_common() {
    let ((mut sim, nodes), made, _) = peak(thousand);
    let ((), exchanged, kept) = peak(|| exchange(&mut sim, &nodes));
    let megabytes = |bytes: u64| bytes / 1_000_000;
    println!(
        "made: {} MB, most while leases change: {} MB, after: {} MB",
        megabytes(made),
        megabytes(exchanged),
        megabytes(kept)
    );
    assert!(made < 42_000_000, "{made} bytes for {NODES} nodes");
    assert!(made + exchanged < 150_000_000, "{exchanged} bytes more while leases change");
    // All have the current routes, each without its own.
    let own: Vec<_> = nodes.iter().map(|node| sim.routes(*node).len() as u32).collect();
    let routed = sim.leases().route_count() as u32;
    assert!(routed > NODES - 20, "{routed} routes");
    let has_lease = |number: u32| sim.leases().leases(SOURCE).any(|(key, _)| *key == number);
    let expected: Vec<_> = (0..NODES).map(|number| routed - u32::from(has_lease(number))).collect();
    assert_eq!(own, expected);
    let total = sim.counters();
    let pairs = u64::from(NODES * (NODES - 1));
    assert_eq!((total.encap.received(), total.encap.forwarded() + total.encap.answered()), (pairs, pairs));
    let lost = sim.underlay().lost(Loss::Random);
    assert_eq!(total.decap.received(), total.encap.forwarded() - lost);
}
