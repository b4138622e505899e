//! Memory of route tables: deleted routes and unused versions are freed.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use loden::route::{Route, RouteChange, RoutePublisher, RouteTable};

use crate::{Naive, assert_same, route};
use support::allocations::bytes_kept;

/// The publisher frees old tables as soon as no reader has them. A reader never does.
#[test]
fn old_tables_are_freed_by_the_publisher_and_not_kept() {
    let change = |version: u32, blocks: u32| {
        (0..blocks).map(move |block| {
            let subnet = Ipv4Net::new(Ipv4Addr::from_bits(0x0a00_0000 + (block << 16)), 28).unwrap();
            RouteChange::Set(Route::new(subnet, (Ipv4Addr::from_bits(0xac10_0000 + version), 8285)))
        })
    };
    let mut publisher = RoutePublisher::new();
    let (one, _) = bytes_kept(|| publisher.apply(change(0, 100)));
    let (more, _) = bytes_kept(|| (1..50).for_each(|version| drop(publisher.apply(change(version, 100)))));
    assert!(more < one / 2, "{more} bytes for fifty versions, {one} for the first");
    let (more, _) = bytes_kept(|| {
        for version in 1..50 {
            // This publishes nothing and holds nothing.
            assert_eq!([publisher.apply([]), publisher.apply([])].map(|applied| applied.changed), [0, 0]);
            assert_eq!(publisher.apply(change(version, 100)).changed, 100);
        }
    });
    assert!(more < one / 2, "{more} bytes for fifty versions, {one} for the first");

    let mut reader = publisher.reader();
    reader.load();
    assert_eq!(publisher.apply(change(50, 100)).into_result(), Ok(100));
    let (by_reader, _) = bytes_kept(|| reader.load().len());
    assert_eq!(by_reader, 0, "a reader frees nothing");
    let (by_publisher, _) = bytes_kept(|| publisher.apply([]));
    assert!(by_publisher < 0, "{by_publisher} bytes");
}

#[test]
fn an_emptied_table_keeps_no_more_than_a_new_one() {
    let (new, _table) = bytes_kept(RouteTable::new);
    for subnets in
        [&["10.0.0.0/28"][..], &["10.0.0.0/24"], &["10.0.0.0/24", "10.0.0.0/32"], &["10.0.0.1/32", "10.0.0.0/16"]]
    {
        let subnets = || subnets.iter().map(|subnet| route(subnet, "10.168.0.3:8285"));
        let (kept, table) = bytes_kept(|| {
            let table = RouteTable::try_from_routes(subnets()).0;
            subnets().fold(table, |table, route| table.with_changes([RouteChange::Delete(route.subnet)]).0)
        });
        assert!(table.is_empty());
        assert!(kept <= new + 4096, "{kept} bytes, and {new} for a new one");
    }
}

/// Deleted routes below a /24 and below a /16 leave their memory to later ones.
#[test]
fn freed_memory_is_reused() {
    let subnet = |address: u32, len| Ipv4Net::new(Ipv4Addr::from_bits(address), len).unwrap();
    let stays = |number: u32| Route::new(subnet(0x0a00_0000 + (number << 16), 30), ([10, 168, 0, 1], 8285));
    let mut table = RouteTable::try_from_routes((0..8).map(stays)).0;
    let mut round = |number: u32| {
        let block = 0x0b00_0000 + ((number % 200) << 16);
        let comes = [(0, 30), (0x100, 28), (0x100, 32), (0x8000, 17)].map(|(at, len)| subnet(block + at, len));
        let hop = (Ipv4Addr::from_bits(0xac10_0000 + number % 400), 8285);
        table = table.with_changes(comes.map(|subnet| RouteChange::Set(Route::new(subnet, hop)))).0;
        // The first one is deleted with all routes below its /24, the others singly.
        for subnet in comes {
            table = table.with_changes([RouteChange::Delete(subnet.into())]).0;
        }
    };
    (0..400).for_each(&mut round);
    let (more, ()) = bytes_kept(|| (400..3000).for_each(&mut round));
    assert!(more <= 1024, "{more} bytes more after what came and went before");
    assert_eq!(table.len(), 8);
}

/// The remaining routes of a large table give the same results. The table has the memory of a small one at once if
/// nearly all routes are deleted together. If they are deleted one by one, it has up to four times that, and the first
/// few blocks of each kind.
#[test]
fn a_shrunk_table_frees_its_memory() {
    const BLOCKS: i64 = 4 * (64 + 64 + 36) * 1024;
    // Each kind of memory by itself: arrays of a /24, arrays of a /16, next hops; and all of them.
    for (routes, len, own_hop) in [(100_000, 28, false), (20_000, 24, false), (20_000, 16, true), (100_000, 28, true)] {
        let route = |number: u32| {
            let at = if len == 28 { number << 4 } else { number << 16 };
            let subnet = Ipv4Net::new(Ipv4Addr::from_bits(0x0a00_0000 + at), len).unwrap();
            Route::new(subnet, (Ipv4Addr::from_bits(0xac10_0000 + if own_hop { number } else { 0 }), 8285))
        };
        let few = (0..routes).step_by(1000).map(route);
        let many = (0..routes).filter(|number| number % 1000 > 0).map(route);
        let (alone, _table) = bytes_kept(|| RouteTable::try_from_routes(few.clone()).0);
        let full = || RouteTable::try_from_routes(few.clone().chain(many.clone())).0;
        let naive = Naive(few.clone().map(|route| (route.subnet, (route.next_hop, None))).collect());
        let deletes: Vec<_> = many.clone().map(|route| RouteChange::Delete(route.subnet)).collect();
        for (batch, most) in [(deletes.len(), alone + alone / 8), (1000, 4 * alone + BLOCKS)] {
            let (kept, shrunk) = bytes_kept(|| {
                let mut table = full();
                for deletes in deletes.chunks(batch) {
                    table = table.with_changes(deletes.iter().copied()).0;
                }
                table
            });
            assert!(kept <= most, "{kept} bytes, and {alone} alone, after batches of {batch} of {routes} /{len}s");
            assert_same(&shrunk, &naive, []);
        }
        // A holder of the previous table still has all of it.
        let before = full();
        let (after, _) = before.with_changes(deletes);
        assert_eq!((before.len(), after.len()), (routes as usize, routes as usize / 1000));
        assert!(many.clone().all(|route| before.exact(route.subnet).is_some_and(|hop| hop.address == route.next_hop)));
    }
}
