//! Any events in any order: the state equals the full recompute, and the changes are the fewest that lead to it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use loden::lease::{ConflictChange, Lease, LeaseEvent, LeaseId, Reconciler, SourceId};
use loden::route::{RouteChange, RoutePublisher};
use loden::{Host, Mtu};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::{host, net};
use support::leases::{Expected, Key, Model, recompute, text};

/// Returns one of few leases with every possible defect, so that conflicts are frequent.
fn any_lease() -> impl Strategy<Value = Lease> {
    let subnet = prop::sample::select(vec![
        "100.96.0.0/16",
        "100.96.0.0/22",
        "100.96.0.0/23",
        "100.96.1.0/24",
        "100.96.1.128/25",
        "100.96.2.0/23",
        "100.96.2.0/24",
        "100.96.2.9/24",
        "100.96.2.128/25",
        "100.96.2.255/32",
        "100.96.3.0/24",
        "100.96.255.0/24",
        "0.0.0.0/0",
        "100.0.0.0/8",
        "9.9.9.0/24",
        "fd00:1::/64",
    ]);
    let hop = prop::sample::select(vec![
        "10.168.0.2:8285",
        "10.168.0.2:8286",
        "10.168.0.3:8285",
        "10.168.0.4:8285",
        "10.168.0.5:8285",
        "10.168.0.3:1",
        "[::ffff:10.168.0.2]:8285",
        "[::ffff:10.168.0.3]:8285",
        "100.96.3.7:8285",
        "0.0.0.0:8285",
        "224.0.0.1:8285",
        "255.255.255.255:8285",
        "10.168.0.3:0",
        "[fd00::3]:8285",
    ]);
    let mtu = prop_oneof![8 => Just(None), 1 => Just(Mtu::new(1300).ok()), 1 => Just(Some(Mtu::MIN))];
    // Three of four hosts are valid, or nothing would be routed.
    let hop = prop_oneof![3 => (3u8..7).prop_map(|host| SocketAddr::from(([10, 168, 0, host], 8285))),
        1 => hop.prop_map(|hop| hop.parse().unwrap())];
    let expires = prop_oneof![3 => Just(None), 2 => (0u64..60).prop_map(|at| Some(Duration::from_secs(at)))];
    (subnet, hop, mtu, expires).prop_map(|(subnet, next_hop, mtu, expires)| {
        Lease::new(net(subnet), next_hop).with_mtu(mtu).with_expires(expires)
    })
}

fn any_event() -> impl Strategy<Value = LeaseEvent<Key>> {
    prop_oneof![
        6 => (0u8..8, any_lease()).prop_map(|(key, lease)| LeaseEvent::Added { key, lease }),
        3 => (0u8..8).prop_map(|key| LeaseEvent::Removed { key }),
        2 => vec((0u8..8, any_lease()), 0..8).prop_map(LeaseEvent::Snapshot),
        1 => Just(LeaseEvent::SourceHeard),
        1 => Just(LeaseEvent::SourceLost),
    ]
}

#[derive(Clone, Debug)]
enum Step {
    Event(SourceId, LeaseEvent<Key>),
    Take,
    Timeout,
}

fn any_step() -> impl Strategy<Value = (i8, Step)> {
    let step = prop_oneof![
        6 => (0u16..3, any_event()).prop_map(|(source, event)| Step::Event(SourceId(source), event)),
        2 => Just(Step::Take),
        2 => Just(Step::Timeout),
    ];
    (prop_oneof![3 => Just(0i8), 2 => 0..10i8, 1 => -5..0i8], step)
}

fn found(reconciler: &Reconciler<Key>) -> Expected {
    let conflicts: Vec<String> = reconciler.conflicts().map(text).collect();
    let expected = Expected {
        routes: reconciler.routes().collect(),
        conflicts: conflicts.iter().cloned().collect(),
        further: reconciler.further_subnets().collect(),
    };
    assert_eq!(expected.conflicts.len(), conflicts.len(), "each conflict once");
    assert_eq!(reconciler.conflict_counts().total(), conflicts.len() as u64);
    assert_eq!(reconciler.route_count(), expected.routes.len());
    expected
}

/// A follower that knows only the drained changes.
struct Follower {
    publisher: RoutePublisher,
    conflicts: BTreeSet<String>,
}

impl Follower {
    fn new(host: &Host) -> Self {
        let publisher = RoutePublisher::for_host(host);
        Self { publisher, conflicts: BTreeSet::new() }
    }

    fn take(&mut self, reconciler: &mut Reconciler<Key>) {
        let changes = reconciler.take_changes();
        let subnet = |change: &RouteChange| {
            if let RouteChange::Set(route) = change {
                Some(route.subnet)
            } else if let RouteChange::Delete(subnet) = change {
                Some(*subnet)
            } else {
                None
            }
        };
        assert!(changes.is_sorted_by_key(subnet));
        let expected = changes.len();
        let applied = self.publisher.apply(changes);
        assert_eq!((applied.refused, applied.changed), (vec![], expected), "every change changes something");
        let mut routes = self.publisher.table().routes();
        routes.sort_by_key(|route| route.subnet);
        assert_eq!(routes, reconciler.routes().collect::<Vec<_>>());
        for change in reconciler.take_conflict_changes() {
            if let ConflictChange::Began(conflict) = change {
                assert!(self.conflicts.insert(text(&conflict)), "{conflict:?} began twice");
            } else if let ConflictChange::Ended(conflict) = change {
                assert!(self.conflicts.remove(&text(&conflict)), "{conflict:?} had not begun");
            }
        }
        assert_eq!(self.conflicts, reconciler.conflicts().map(text).collect());
        assert!(!reconciler.has_changes());
        assert_eq!(reconciler.take_changes(), []);
        assert_eq!(reconciler.take_conflict_changes(), []);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn any_events_give_what_a_full_recompute_gives(steps in vec(any_step(), 1..40)) {
        let host = host();
        let (mut reconciler, mut model) = (Reconciler::new(&host), Model::default());
        let mut follower = Follower::new(&host);
        let mut now = Duration::from_secs(20);
        for (passed, step) in steps {
            let moved = Duration::from_secs(passed.unsigned_abs().into());
            now = if passed < 0 { now.saturating_sub(moved) } else { now + moved };
            match step {
                Step::Event(source, event) => {
                    model.advance(now);
                    model.handle(source, &event);
                    model.expire();
                    reconciler.handle_event(source, event, now);
                }
                Step::Take => follower.take(&mut reconciler),
                Step::Timeout => {
                    model.advance(now);
                    model.expire();
                    reconciler.handle_timeout(now);
                }
            }
            prop_assert_eq!(found(&reconciler), recompute(&host, &model.leases()));
            prop_assert_eq!(reconciler.poll_timeout(), model.next_deadline());
            for source in (0..3).map(SourceId) {
                prop_assert_eq!(reconciler.stale_since(source), model.stale_since(source));
            }
        }
        follower.take(&mut reconciler);
    }

    /// The same leases after any history and in any order give the same routes and conflicts.
    #[test]
    fn the_order_of_events_does_not_matter(
        leases in vec(((0u16..3, 0u8..20), any_lease()), 0..30),
        before in vec((0u16..3, any_event()), 0..20),
        seed in any::<u64>(),
    ) {
        let leases: BTreeMap<(u16, Key), Lease> =
            leases.into_iter().map(|(id, lease)| (id, lease.with_expires(None))).collect();
        let mut in_order = Reconciler::new(&host());
        for ((source, key), lease) in &leases {
            let event = LeaseEvent::Added { key: *key, lease: *lease };
            in_order.handle_event(SourceId(*source), event, Duration::ZERO);
        }

        let mut otherwise = Reconciler::new(&host());
        for (source, event) in before {
            otherwise.handle_event(SourceId(source), event, Duration::ZERO);
        }
        for source in 0..3 {
            otherwise.handle_event(SourceId(source), LeaseEvent::Snapshot(vec![]), Duration::ZERO);
        }
        let mut shuffled: Vec<_> = leases.iter().collect();
        shuffled.sort_by_key(|((source, key), _)| (u64::from(*source) << 8 | u64::from(*key)).wrapping_mul(seed | 1));
        for ((source, key), lease) in shuffled {
            let event = LeaseEvent::Added { key: *key, lease: *lease };
            otherwise.handle_event(SourceId(*source), event, Duration::ZERO);
        }
        prop_assert_eq!(found(&otherwise), found(&in_order));

        let ids = leases.iter().map(|((source, key), lease)| (LeaseId { source: SourceId(*source), key: *key }, *lease));
        prop_assert_eq!(found(&in_order), recompute(&host(), &ids.collect()));
    }

    /// A list equals the events that lead to it, and the same list again changes nothing.
    #[test]
    fn a_repeated_snapshot_changes_nothing(
        before in vec(any_event(), 0..20),
        leases in vec((0u8..20, any_lease()), 0..20),
    ) {
        let source = SourceId(1);
        let leases: Vec<_> = leases.into_iter().map(|(key, lease)| (key, lease.with_expires(None))).collect();
        let mut reconciler = Reconciler::new(&host());
        for event in before {
            reconciler.handle_event(source, event, Duration::ZERO);
        }
        reconciler.handle_event(source, LeaseEvent::Snapshot(leases.clone()), Duration::ZERO);
        let held: BTreeMap<_, _> = leases.iter().map(|(key, lease)| (LeaseId { source, key: *key }, *lease)).collect();
        prop_assert_eq!(found(&reconciler), recompute(&host(), &held));
        drop((reconciler.take_changes(), reconciler.take_conflict_changes()));
        let counters = reconciler.counters();
        reconciler.handle_event(source, LeaseEvent::Snapshot(leases), Duration::ZERO);
        prop_assert!(!reconciler.has_changes());
        prop_assert_eq!(reconciler.take_conflict_changes(), []);
        prop_assert_eq!(reconciler.counters().added, counters.added);
        prop_assert_eq!(reconciler.counters().changed, counters.changed);
        prop_assert_eq!(reconciler.counters().removed, counters.removed);
    }
}
