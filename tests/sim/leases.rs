//! Leases that are added, moved and ended, and nodes that miss these events.

use loden::forward::DropReason;
use loden::lease::{Lease, LeaseEvent};
use loden::route::{Route, RouteChange, RouteError};
use loden::sim::{Event, LinkProfile, NodeId, Record, Sim};

use crate::{SOURCE, config_at, icmp, lease, mesh, ms, numbers, packet, subnet, underlay};

/// Adds host 9, which replaces host 1.
fn successor(sim: &mut Sim<u32>) -> NodeId {
    sim.add_node(config_at(1, underlay(9))).unwrap()
}

fn moved() -> LeaseEvent<u32> {
    LeaseEvent::Added { key: 1, lease: Lease::new(subnet(1), underlay(9)) }
}

/// Fault 46, R26: packets after the change go to the new hop, also during a flood. Packets in flight arrive at the old
/// one.
#[test]
fn fault_46_nothing_sent_after_a_lease_moved_goes_to_the_old_hop() {
    let (mut sim, [a, b, c]) = mesh::<3>(1);
    let successor = successor(&mut sim);
    sim.set_link_profile(LinkProfile { latency: ms(7), jitter: ms(5), ..LinkProfile::default() });
    sim.keep_trace();
    for at in 0..200 {
        sim.send_at(ms(at) / 10, a, packet(0, 1, at as u32));
        sim.send_at(ms(at) / 10, c, packet(2, 1, at as u32));
    }
    // The change is also within one instant.
    for _ in 0..203 {
        assert!(sim.step());
    }
    let before = sim.take_trace();
    sim.lease_event(SOURCE, moved());
    sim.run_until_idle();
    sim.check().unwrap();
    let hops = |trace: &[Record]| {
        let hop = |record: &Record| if let Event::Sent { to, .. } = record.event { Some(to) } else { None };
        let mut hops: Vec<_> = trace.iter().filter_map(hop).collect();
        hops.sort_unstable();
        hops.dedup();
        hops
    };
    assert_eq!(hops(&before), [underlay(1)]);
    assert_eq!(hops(&sim.take_trace()), [underlay(9)]);
    let [at_b, at_successor] = [b, successor].map(|node| sim[node].counters().decap.forwarded());
    assert_eq!(at_b + at_successor, 400);
    assert!(at_b > 100 && at_successor > 100);
}

/// A node that missed the change refuses the successor, and still sends to the old host.
#[test]
fn a_node_that_misses_events_keeps_its_routes() {
    let (mut sim, [a, b]) = mesh::<2>(1);
    let successor = successor(&mut sim);
    sim.set_hears_leases(a, false);
    sim.lease_event(SOURCE, moved());
    sim.send(a, packet(0, 1, 1));
    sim.send(successor, packet(1, 0, 2));
    sim.run_until_idle();
    let [delivered] = &sim.take_delivered()[..] else { panic!("the first alone arrives") };
    assert_eq!((delivered.node, sim[a].counters().decap.dropped(DropReason::UnknownPeer)), (b, 1));
    sim.set_hears_leases(a, true);
    sim.send(a, packet(0, 1, 3));
    sim.send(successor, packet(1, 0, 4));
    sim.run_until_idle();
    let delivered = sim.take_delivered();
    assert_eq!(delivered.iter().map(|delivered| delivered.node).collect::<Vec<_>>(), [successor, a]);
    sim.check().unwrap();
}

/// A lease ends when its time is over, between two packets. It does not end while its source is lost.
#[test]
fn leases_end_by_the_simulations_clock() {
    let (mut sim, [a, _]) = mesh::<2>(1);
    let (key, lease) = lease(1);
    let until = |at| LeaseEvent::Added { key, lease: lease.with_expires(Some(ms(at))) };
    sim.lease_event(SOURCE, until(100));
    for at in [99, 100] {
        sim.send_at(ms(at), a, packet(0, 1, at as u32));
    }
    sim.run_until_idle();
    let delivered = sim.take_delivered();
    let seen: Vec<_> = delivered.iter().map(|delivered| (delivered.node == a, delivered.at)).collect();
    assert_eq!(seen, [(true, ms(100)), (false, ms(100))], "the answer, and the packet that was under way");
    assert_eq!(icmp(&delivered[0].packet), (3, 0, 0));
    sim.lease_event(SOURCE, until(300));
    sim.lease_event(SOURCE, LeaseEvent::SourceLost);
    sim.run_until(ms(5000));
    assert_eq!((sim.leases().stale_since(SOURCE), sim.routes(a).len()), (Some(ms(100)), 1));
    sim.lease_event(SOURCE, LeaseEvent::Removed { key: 77 });
    sim.run_for(ms(199));
    assert_eq!(sim.routes(a).len(), 1);
    sim.run_for(ms(1));
    assert_eq!(sim.routes(a).len(), 0);
}

/// Of two hosts that claim one subnet, all others accept the first. Each of the two keeps its own.
#[test]
fn all_other_nodes_resolve_a_conflict_alike() {
    let (mut sim, [a, b]) = mesh::<2>(1);
    let successor = successor(&mut sim);
    sim.lease_event(SOURCE, LeaseEvent::Added { key: 7, lease: Lease::new(subnet(1), underlay(9)) });
    assert_eq!(sim.leases().conflict_counts().duplicate, 1);
    let hop = |sim: &mut Sim<u32>, node| sim.routes(node).exact(subnet(1).into()).map(|hop| hop.address);
    assert_eq!([a, b, successor].map(|node| hop(&mut sim, node)), [Some(underlay(1)), None, None]);
    sim.lease_event(SOURCE, LeaseEvent::Removed { key: 1 });
    assert_eq!([a, b, successor].map(|node| hop(&mut sim, node)), [Some(underlay(9)), None, None]);
}

/// Static routes of a node take precedence over leases, and wrong ones are reported.
#[test]
fn static_routes_take_precedence_over_leases() {
    let (mut sim, [a, b, c]) = mesh::<3>(1);
    let wrong = Route::new(subnet(5), underlay(0));
    let changes = [
        RouteChange::Set(Route::new(subnet(1), underlay(2))),
        RouteChange::Delete(subnet(2).into()),
        RouteChange::Set(wrong),
    ];
    let applied = sim.change_routes(a, changes);
    assert_eq!((applied.changed, applied.refused.len()), (2, 1));
    assert_eq!((applied.refused[0].route, applied.refused[0].reason), (wrong, RouteError::OwnAddress));
    for event in [moved(), LeaseEvent::Removed { key: 0 }] {
        sim.lease_event(SOURCE, event);
        assert_eq!(sim.routes(a).routes(), [Route::new(subnet(1), underlay(2))]);
    }
    assert_eq!((sim.routes(b).len(), sim.routes(c).len()), (1, 1));
    sim.stop(a);
    sim.start(a);
    sim.send(a, packet(0, 1, 1));
    sim.run_until_idle();
    assert_eq!((numbers(&sim.take_delivered()), sim[c].counters().decap.dropped(DropReason::UnknownPeer)), (vec![], 1));
}
