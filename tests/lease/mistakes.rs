//! The eight numbered mistakes of other implementations (fault 47).

use loden::lease::SourceId;
use loden::lease::flannel::LeaseReader;
use loden::lease::{
    Backoff, Conflict, ConflictChange, ConflictCounts, Lease, LeaseEvent, LeaseId, Reconciler, Refusal,
};
use loden::route::RoutePublisher;
use loden::{Host, Mtu};

use crate::{SOURCE, added, at, delete, host, lease, listed, net, ours, routes, set, snapshot};

#[test]
fn fault_47_mistake_1_a_lease_that_moved_during_a_gap_is_seen_by_its_attributes() {
    let mut reconciler = listed([ours(), lease("100.96.2.0/24", 3), lease("100.96.3.0/24", 4)]);
    reconciler.handle_event(SOURCE, LeaseEvent::SourceLost, at(10));
    let narrower = ("100.96.3.0/24", lease("100.96.3.0/24", 4).1.with_mtu(Mtu::new(1400).ok()));
    reconciler.handle_event(SOURCE, snapshot([ours(), lease("100.96.2.0/24", 5), narrower]), at(20));
    let changes = reconciler.take_changes();
    assert_eq!(changes[0], set("100.96.2.0/24", 5));
    assert_eq!(changes[1], loden::route::RouteChange::Set(narrower.1.route()));
    assert_eq!(changes.len(), 2);
    assert_eq!(reconciler.counters().changed, 2);
}

/// NAT: the own lease names the address that others see, and the bound address may be another host's.
#[test]
fn the_own_lease_is_the_one_with_the_public_address() {
    let mut reconciler = Reconciler::new(&host()).with_public_address("[::ffff:10.168.0.77]:8285".parse().unwrap());
    let list = snapshot([lease("100.96.1.0/24", 77), lease("100.96.2.0/24", 2), lease("100.96.3.0/24", 77)]);
    reconciler.handle_event(SOURCE, list, at(0));
    assert!(reconciler.holds_own_lease());
    assert_eq!(routes(&reconciler), ["100.96.2.0/24 via 10.168.0.2:8285"]);
    assert_eq!(reconciler.further_subnets().collect::<Vec<_>>(), [net("100.96.3.0/24")]);
    let mut bound = Reconciler::new(&host());
    bound.handle_event(SOURCE, snapshot([lease("100.96.1.0/24", 77)]), at(0));
    assert!(!bound.holds_own_lease());
    assert_eq!(bound.conflict_counts().own_subnet, 1);
}

/// A reservation for this host is a further subnet while no other host leases it or a part of it.
#[test]
fn another_lease_of_this_host_is_a_further_subnet() {
    let further =
        |reconciler: &Reconciler<_>| reconciler.further_subnets().map(|net| net.to_string()).collect::<Vec<_>>();
    let mut reconciler =
        listed([ours(), lease("100.96.2.0/24", 3), lease("100.96.9.0/24", 2), lease("100.96.1.128/25", 2)]);
    assert_eq!(further(&reconciler), ["100.96.9.0/24"]);
    assert_eq!((reconciler.route_count(), reconciler.conflict_counts().total()), (1, 0));
    // The same subnet by another key, and once more.
    reconciler.handle_event(SOURCE, added(("again", lease("100.96.9.7/24", 2).1)), at(1));
    reconciler.handle_event(SOURCE, LeaseEvent::Removed { key: "100.96.9.0/24" }, at(2));
    assert_eq!(further(&reconciler), ["100.96.9.0/24"]);
    for claimed in ["100.96.9.128/25", "100.96.9.0/24"] {
        reconciler.handle_event(SOURCE, added(("theirs", lease(claimed, 3).1)), at(3));
        assert_eq!(further(&reconciler), Vec::<String>::new(), "another host has {claimed}");
        reconciler.handle_event(SOURCE, LeaseEvent::Removed { key: "theirs" }, at(4));
        assert_eq!(further(&reconciler), ["100.96.9.0/24"]);
    }
    reconciler.handle_event(SOURCE, LeaseEvent::Removed { key: "again" }, at(5));
    assert_eq!(further(&reconciler), Vec::<String>::new());
    assert!(reconciler.holds_own_lease());
}

/// A dual-stack host without IPv6 in the underlay has one subnet of each family behind one address.
#[test]
fn a_subnet_of_each_family_is_no_shared_next_hop() {
    let networks = [net("100.96.0.0/16"), net("fd97::/48")];
    let host =
        Host::from_sets(&networks, &[net("100.96.1.0/24"), net("fd97:0:0:1::/64")], &[([10, 168, 0, 2], 8285).into()]);
    let mut reconciler = Reconciler::new(&host.unwrap());
    let six = |key: &'static str, host: u8| (key, Lease::new(net(key), ([10, 168, 0, host], 8285)));
    reconciler.handle_event(
        SOURCE,
        snapshot([lease("100.96.2.0/24", 3), six("fd97:0:0:2::/64", 3), six("fd97:0:0:1::/64", 2)]),
        at(0),
    );
    assert_eq!((reconciler.route_count(), reconciler.conflict_counts().total()), (2, 0));
    reconciler.handle_event(SOURCE, added(six("fd97:0:0:3::/64", 3)), at(1));
    assert_eq!(reconciler.conflict_counts().shared_next_hop, 1);
    reconciler.handle_event(SOURCE, added(lease("100.96.3.0/24", 3)), at(1));
    reconciler.handle_event(SOURCE, LeaseEvent::Removed { key: "fd97:0:0:3::/64" }, at(2));
    assert_eq!(reconciler.conflict_counts().shared_next_hop, 1);
    reconciler.handle_event(SOURCE, LeaseEvent::Removed { key: "100.96.3.0/24" }, at(2));
    assert_eq!(reconciler.conflict_counts().total(), 0);
}

#[test]
fn fault_47_mistake_2_an_unreadable_key_or_value_is_set_aside_alone() {
    let mut reader = LeaseReader::new("/coreos.com/network/", 8285);
    let good: [(&[u8], &[u8]); 2] = [
        (b"/coreos.com/network/subnets/100.96.2.0-24", br#"{"PublicIP":"10.168.0.3","PublicIPv6":null}"#),
        (b"/coreos.com/network/subnets/100.96.3.0-24", br#"{"PublicIP":"10.168.0.4"}"#),
    ];
    let bad: [(&[u8], &[u8]); 7] = [
        (b"/coreos.com/network/subnets/100.96.4.0-33", br#"{"PublicIP":"10.168.0.5"}"#),
        (b"/coreos.com/network/subnets/\xff\xfe", br#"{"PublicIP":"10.168.0.5"}"#),
        (b"/coreos.com/network/config", br#"{"Network":"100.96.0.0/16"}"#),
        (b"/coreos.com/network/subnets/100.96.5.0-24", b"{"),
        (b"/coreos.com/network/subnets/100.96.6.0-24", br#"{"PublicIP":"10.168.0"}"#),
        (b"/coreos.com/network/subnets/100.96.7.0-24", b"{}"),
        (b"/coreos.com/network/subnets/100.96.8.0-24", br#"{"PublicIP":"10.168.0.5","BackendType":"vxlan"}"#),
    ];
    for at_front in [true, false] {
        let mut entries = good.to_vec();
        let place = if at_front { 0 } else { 1 };
        entries.splice(place..place, bad);
        let update = reader.snapshot(entries);
        assert_eq!(update.skipped.len(), bad.len());
        let mut reconciler = Reconciler::new(&host());
        reconciler.handle_event(SOURCE, update.event.unwrap(), at(0));
        assert_eq!(reconciler.take_changes(), [set("100.96.2.0/24", 3), set("100.96.3.0/24", 4)]);
    }
    let counts = reader.skipped();
    assert_eq!((counts.unreadable_keys, counts.elsewhere), (4, 2));
    assert_eq!((counts.unreadable_values, counts.other_backends), (6, 2));

    // The same during a watch: a value that became unreadable removes its own lease, as a new list would.
    let mut reconciler = Reconciler::new(&host());
    reconciler.handle_event(SOURCE, reader.snapshot(good).event.unwrap(), at(0));
    drop(reconciler.take_changes());
    let put = reader.put(good[0].0, b"garbage");
    assert_eq!(
        put.skipped[0].to_string(),
        "lease 100.96.2.0-24 is skipped: invalid JSON: expected value at line 1 column 1"
    );
    reconciler.handle_event(SOURCE, put.event.unwrap(), at(1));
    assert_eq!(reader.put(bad[0].0, bad[0].1).event, None);
    assert_eq!(reader.deleted(b"/coreos.com/network/config").event, None);
    assert_eq!(reconciler.take_changes(), [delete("100.96.2.0/24")]);
    reconciler.handle_event(SOURCE, reader.put(good[0].0, good[0].1).event.unwrap(), at(2));
    assert_eq!(reconciler.take_changes(), [set("100.96.2.0/24", 3)]);
}

/// A failed listing has no leases for a snapshot. The source is lost.
#[test]
fn fault_47_mistake_3_a_failed_listing_takes_nothing_away_and_an_empty_one_does() {
    let mut reconciler = listed([ours(), lease("100.96.2.0/24", 3)]);
    reconciler.handle_event(SOURCE, LeaseEvent::SourceLost, at(10));
    assert_eq!(reconciler.take_changes(), []);
    assert_eq!(reconciler.stale_since(SOURCE), Some(at(10)));
    reconciler.handle_event(SOURCE, snapshot([]), at(20));
    assert_eq!(reconciler.take_changes(), [delete("100.96.2.0/24")]);
    assert_eq!(reconciler.stale_since(SOURCE), None);
}

#[test]
fn fault_47_mistake_4_our_own_lease_is_never_a_route_and_never_removed_as_one() {
    let mut reconciler = listed([ours(), lease("100.96.2.0/24", 3)]);
    assert!(reconciler.holds_own_lease());
    for (second, list) in [
        (1, snapshot([ours(), lease("100.96.2.0/24", 3)])),
        (2, snapshot([lease("100.96.2.0/24", 3)])),
        (3, snapshot([ours(), lease("100.96.2.0/24", 3)])),
    ] {
        reconciler.handle_event(SOURCE, list, at(second));
        assert_eq!(reconciler.take_changes(), []);
        assert_eq!(reconciler.take_conflict_changes(), []);
        assert_eq!(reconciler.holds_own_lease(), second != 2);
    }
    reconciler.handle_event(SOURCE, LeaseEvent::Removed { key: "100.96.1.0/24" }, at(4));
    assert_eq!(reconciler.take_changes(), []);
    assert!(!reconciler.holds_own_lease(), "what tells the caller to stop");
}

/// After a compaction every list succeeds and every watch fails at once, for any time.
#[test]
fn fault_47_mistake_5_compaction_backs_off_and_is_news_once() {
    let mut reconciler = listed([ours(), lease("100.96.2.0/24", 3)]);
    let mut backoff = Backoff::default();
    let (mut now, mut lists, mut news) = (at(100), 0, 0);
    while now < at(100 + 3600) {
        reconciler.handle_event(SOURCE, LeaseEvent::SourceLost, now);
        let retry = backoff.failed(now, 0x9e37_79b9_7f4a_7c15u64.wrapping_mul(lists));
        assert!(retry.at > now);
        news += u32::from(retry.is_news);
        now = retry.at;
        reconciler.handle_event(SOURCE, snapshot([ours(), lease("100.96.2.0/24", 3)]), now);
        backoff.succeeded(now);
        lists += 1;
        assert_eq!(reconciler.take_changes(), []);
    }
    assert_eq!(news, 1);
    assert!((60..130).contains(&lists), "{lists} lists in an hour, a minute at most between two");
    // After a success, the next failure is reported again and retried soon.
    let retry = backoff.failed(now + at(3600), u64::MAX);
    assert_eq!((retry.at, retry.is_news), (now + at(3601), true));
}

/// One conflict at a time beside an ordinary lease: it is named and counted once, the rest is routed, and it ends with
/// its cause.
#[test]
fn fault_47_mistake_6_each_contradiction_is_a_conflict_and_the_rest_goes_on() {
    let hop = |host: u8| std::net::SocketAddr::from(([10, 168, 0, host], 8285));
    let refused = |key, hop, reason| Conflict::Refused {
        id: LeaseId { source: SOURCE, key },
        subnet: net(key).trunc(),
        next_hop: hop,
        reason,
    };
    let in_overlay = ("100.96.4.0/24", Lease::new(net("100.96.4.0/24"), ([100, 96, 3, 7], 8285)));
    let network = host().network_v4().unwrap().into();
    let cases = [
        (
            vec![lease("100.96.3.0/24", 4), ("again", lease("100.96.3.0/24", 5).1)],
            vec!["100.96.3.0/24 via 10.168.0.4:8285"],
            Conflict::Duplicate { subnet: net("100.96.3.0/24"), in_force: hop(4), rival: hop(5) },
        ),
        (
            vec![lease("100.96.3.0/24", 4), lease("100.96.4.0/24", 4)],
            vec!["100.96.3.0/24 via 10.168.0.4:8285", "100.96.4.0/24 via 10.168.0.4:8285"],
            Conflict::SharedNextHop { next_hop: hop(4) },
        ),
        (
            vec![lease("100.96.4.0/23", 4), lease("100.96.5.0/24", 5)],
            vec!["100.96.4.0/23 via 10.168.0.4:8285", "100.96.5.0/24 via 10.168.0.5:8285"],
            Conflict::Overlap { inner: net("100.96.5.0/24"), outer: net("100.96.4.0/23") },
        ),
        (
            vec![lease("100.96.4.0/24", 4), lease("100.96.0.0/23", 2)],
            vec!["100.96.4.0/24 via 10.168.0.4:8285"],
            refused("100.96.0.0/23", hop(2), Refusal::OwnAddress),
        ),
        (
            vec![lease("100.96.5.0/24", 5), in_overlay],
            vec!["100.96.5.0/24 via 10.168.0.5:8285"],
            refused("100.96.4.0/24", in_overlay.1.next_hop, Refusal::NextHopInOverlay { network }),
        ),
        (
            vec![lease("100.96.5.0/24", 5), lease("100.96.1.0/24", 9)],
            vec!["100.96.5.0/24 via 10.168.0.5:8285"],
            refused("100.96.1.0/24", hop(9), Refusal::OwnSubnet { own: host().subnet_v4().unwrap().into() }),
        ),
    ];
    for (leases, expected, conflict) in cases {
        let mut reconciler = listed([lease("100.96.2.0/24", 3)]);
        reconciler.handle_event(
            SOURCE,
            LeaseEvent::Snapshot([&leases[..], &[lease("100.96.2.0/24", 3)]].concat()),
            at(1),
        );
        let others: Vec<String> =
            routes(&reconciler).into_iter().filter(|route| !route.starts_with("100.96.2.")).collect();
        assert_eq!(others, expected);
        assert_eq!(reconciler.route_count(), expected.len() + 1, "the ordinary lease stays");
        assert_eq!(reconciler.take_conflict_changes(), [ConflictChange::Began(conflict.clone())]);
        assert_eq!(reconciler.conflicts().collect::<Vec<_>>(), [&conflict]);
        assert_eq!((reconciler.conflict_counts().total(), reconciler.conflict_totals().total()), (1, 1));
        reconciler.handle_event(SOURCE, LeaseEvent::Removed { key: leases[1].0 }, at(2));
        assert_eq!(reconciler.take_conflict_changes(), [ConflictChange::Ended(conflict)]);
        assert_eq!(reconciler.conflict_counts(), ConflictCounts::default());
        assert_eq!(reconciler.conflict_totals().total(), 1);
    }
}

/// The second claimant gets the route as soon as the first is gone, in one change.
#[test]
fn fault_47_mistake_6_the_loser_takes_over_when_the_winner_leaves() {
    let (etcd, operator) = (SourceId(1), SourceId(0));
    let mut publisher = RoutePublisher::for_host(&host());
    let mut reconciler = Reconciler::new(&host());
    reconciler.handle_event(etcd, added(lease("100.96.2.0/24", 3)), at(0));
    assert_eq!(publisher.apply(reconciler.take_changes()).changed, 1);
    reconciler.handle_event(operator, added(("by hand", lease("100.96.2.0/24", 4).1)), at(1));
    assert_eq!(reconciler.take_changes(), [set("100.96.2.0/24", 4)]);
    let first = reconciler.conflicts().next().unwrap();
    assert_eq!(
        first.to_string(),
        "100.96.2.0/24 is leased to 10.168.0.4:8285, which is in force, and to 10.168.0.3:8285; delete one of the leases"
    );
    // Both sources agree: no conflict is left, and no change is due.
    reconciler.handle_event(etcd, added(lease("100.96.2.0/24", 4)), at(2));
    assert_eq!((reconciler.take_changes(), reconciler.conflicts().count()), (vec![], 0));
    reconciler.handle_event(etcd, added(lease("100.96.2.0/24", 3)), at(3));
    reconciler.handle_event(operator, LeaseEvent::Removed { key: "by hand" }, at(4));
    assert_eq!(reconciler.take_changes(), [set("100.96.2.0/24", 3)]);
    assert_eq!(reconciler.conflicts().count(), 0);
}

#[test]
fn fault_47_mistake_7_a_silent_source_keeps_its_table_and_says_since_when() {
    let for_a_day = |host, second: u64| {
        let (key, lease) = lease("100.96.2.0/24", host);
        (key, lease.with_expires(Some(at(second + 86_400))))
    };
    let mut reconciler = listed([ours(), for_a_day(3, 0)]);
    for second in [3_600, 7_200, 10_800] {
        reconciler.handle_event(SOURCE, LeaseEvent::SourceLost, at(second));
    }
    assert_eq!(reconciler.stale_since(SOURCE), Some(at(3_600)));
    assert_eq!(reconciler.poll_timeout(), None, "nothing ends while nobody could say that it was renewed");
    reconciler.handle_timeout(at(10 * 86_400));
    assert_eq!(reconciler.take_changes(), []);
    assert_eq!(routes(&reconciler), ["100.96.2.0/24 via 10.168.0.3:8285"]);
    assert_eq!(reconciler.counters().lost, 1);
    // It is back with one event. The others were not renewed yet, and keep their remaining time.
    reconciler.handle_event(SOURCE, added(lease("100.96.3.0/24", 4)), at(10 * 86_400));
    assert_eq!(reconciler.stale_since(SOURCE), None);
    assert_eq!(reconciler.take_changes(), [set("100.96.3.0/24", 4)]);
    assert_eq!(reconciler.poll_timeout(), Some(at(10 * 86_400 + 86_400 - 3_600)));
    reconciler.handle_event(SOURCE, added(for_a_day(3, 10 * 86_400)), at(10 * 86_400 + 1));
    assert_eq!(reconciler.poll_timeout(), Some(at(11 * 86_400)));
    assert_eq!(reconciler.take_changes(), []);
}

/// Only elapsed time ends a lease. There is no wall clock, and a clock that goes back has no effect.
#[test]
fn fault_47_mistake_8_only_time_that_passed_ends_a_lease() {
    let (key, lease) = lease("100.96.2.0/24", 3);
    let lease = lease.with_expires(Some(at(1_000)));
    let mut reconciler = listed([ours()]);
    reconciler.handle_event(SOURCE, added((key, lease)), at(500));
    assert_eq!(reconciler.take_changes(), [set(key, 3)]);
    assert_eq!(reconciler.poll_timeout(), Some(at(1_000)));
    for second in [0, 999, 400] {
        reconciler.handle_timeout(at(second));
        assert_eq!(reconciler.take_changes(), []);
    }
    // Renewed in time: only its end changes.
    reconciler.handle_event(SOURCE, added((key, lease.with_expires(Some(at(2_000))))), at(999));
    reconciler.handle_timeout(at(1_999));
    assert_eq!(reconciler.take_changes(), []);
    reconciler.handle_timeout(at(2_000));
    assert_eq!(reconciler.take_changes(), [delete(key)]);
    assert_eq!((reconciler.counters().expired, reconciler.poll_timeout()), (1, None));
}
