//! The rows of `docs/faults.md` about leases.

use loden::lease::{Conflict, Lease, LeaseEvent, LeaseId, Reconciler, Refusal};
use loden::route::RouteError;

use crate::{SOURCE, added, at, host, lease, listed, net, ours, routes, set, snapshot};
use support::allocations::bytes_kept;

/// Fault 45, in one list: every odd lease is reported by name, and the good ones are routed.
#[test]
fn fault_45_odd_subnets_are_reported_and_the_others_routed() {
    let mut reconciler = Reconciler::new(&host());
    let list = snapshot([
        ours(),
        lease("100.96.2.77/24", 3),
        lease("100.96.4.0/23", 4),
        lease("100.96.5.0/24", 5),
        lease("100.96.9.9/32", 6),
        lease("0.0.0.0/0", 7),
        lease("100.96.1.128/25", 8),
        lease("100.96.0.0/23", 9),
        ("duplicate", lease("100.96.5.0/24", 10).1),
        ("claimed", lease("100.96.1.0/24", 11).1),
    ]);
    reconciler.handle_event(SOURCE, list, at(0));
    assert_eq!(
        routes(&reconciler),
        [
            "100.96.0.0/23 via 10.168.0.9:8285",
            "100.96.2.0/24 via 10.168.0.3:8285",
            "100.96.4.0/23 via 10.168.0.4:8285",
            "100.96.5.0/24 via 10.168.0.5:8285",
            "100.96.9.9/32 via 10.168.0.6:8285",
        ]
    );
    let conflicts: Vec<String> = reconciler.conflicts().map(ToString::to_string).collect();
    assert_eq!(
        conflicts,
        [
            "the lease of 0.0.0.0/0 to 10.168.0.7:8285 is refused: the subnet is no part of the overlay network 100.96.0.0/16; \
             delete the lease if it is left of an older network",
            "the lease of 100.96.1.128/25 to 10.168.0.8:8285 is refused: the subnet belongs to this host's own, \
             100.96.1.0/24; only one of the two can keep it",
            "the lease of 100.96.1.0/24 to 10.168.0.11:8285 is refused: the subnet belongs to this host's own, \
             100.96.1.0/24; only one of the two can keep it",
            "100.96.5.0/24 is leased to 10.168.0.5:8285, which is in force, and to 10.168.0.10:8285; delete one of the leases",
            "100.96.1.0/24 lies inside 100.96.0.0/23; the longer prefix is in force there",
            "100.96.5.0/24 lies inside 100.96.4.0/23; the longer prefix is in force there",
        ]
    );
}

/// R20 and R63: leases that no table accepts are refused before, with the table's own reason.
#[test]
fn r20_invalid_next_hops_are_refused_by_name() {
    let bad = [
        ("0.0.0.0:8285", RouteError::UnspecifiedNextHop),
        ("224.0.0.1:8285", RouteError::MulticastNextHop),
        ("255.255.255.255:8285", RouteError::BroadcastNextHop),
        ("10.168.0.3:0", RouteError::ZeroPort),
    ];
    for (next_hop, reason) in bad {
        let next_hop: std::net::SocketAddr = next_hop.parse().unwrap();
        let mut reconciler = listed([lease("100.96.2.0/24", 3)]);
        reconciler.handle_event(SOURCE, added(("bad", Lease::new(net("100.96.3.0/24"), next_hop))), at(1));
        assert_eq!(reconciler.take_changes(), []);
        let id = LeaseId { source: SOURCE, key: "bad" };
        let reason = Refusal::Unroutable(reason);
        let conflict = Conflict::Refused { id, subnet: net("100.96.3.0/24"), next_hop, reason };
        assert_eq!(reconciler.conflicts().collect::<Vec<_>>(), [&conflict]);
        assert_eq!(reconciler.conflict_counts().unroutable, 1);
        reconciler.handle_event(SOURCE, added(("bad", lease("100.96.3.0/24", 4).1)), at(2));
        assert_eq!(reconciler.take_changes(), [set("100.96.3.0/24", 4)]);
        assert_eq!(reconciler.conflicts().count(), 0);
    }
}

/// A lease that was added and removed between two calls leaves no change and no memory.
#[test]
fn fault_43_removed_routes_leave_no_memory() {
    let mut reconciler = listed([lease("100.96.2.0/24", 3)]);
    let mut churn = |rounds: core::ops::Range<u64>| {
        for round in rounds {
            let host = 4 + (round % 200) as u8;
            reconciler.handle_event(SOURCE, added(lease("100.96.3.0/24", host)), at(round));
            reconciler.handle_event(SOURCE, added(lease("100.96.2.0/24", host)), at(round));
            assert!(reconciler.has_changes());
            reconciler.handle_event(SOURCE, LeaseEvent::Removed { key: "100.96.3.0/24" }, at(round));
            reconciler.handle_event(SOURCE, added(lease("100.96.2.0/24", 3)), at(round));
            assert!(!reconciler.has_changes());
        }
    };
    // The first ones allocate memory that the others reuse.
    churn(0..100);
    assert_eq!(bytes_kept(|| churn(100..10_000)).0, 0);
    assert_eq!(reconciler.take_conflict_changes(), []);
    assert_eq!(reconciler.take_changes(), []);
    let counters = reconciler.counters();
    assert_eq!((counters.added, counters.changed, counters.removed), (10_001, 20_000, 10_000));
    assert_eq!(routes(&reconciler), ["100.96.2.0/24 via 10.168.0.3:8285"]);
}

/// Of leases with one key in one list the last one applies, and the others are counted.
#[test]
fn a_key_twice_in_a_list_is_counted_and_the_last_stands() {
    let mut reconciler = Reconciler::new(&host());
    let again = ("100.96.2.0/24", lease("100.96.2.0/24", 4).1);
    reconciler.handle_event(SOURCE, snapshot([lease("100.96.2.0/24", 3), ours(), again]), at(0));
    assert_eq!(reconciler.take_changes(), [set("100.96.2.0/24", 4)]);
    assert_eq!(reconciler.counters().repeated, 1);
}
