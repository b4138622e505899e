//! IPv6 routes: every length, long common beginnings, and the memory of sparse prefixes.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use ipnet::{IpNet, Ipv6Net};
use loden::Host;
use loden::route::{Route, RouteChange, RouteError, RoutePublisher, RouteTable};
use proptest::prelude::*;
use support::allocations::{allocations, bytes_kept};

use crate::{Naive, assert_same, route};

fn net(bits: u128, len: u8) -> IpNet {
    Ipv6Net::new(Ipv6Addr::from_bits(bits), len).unwrap().trunc().into()
}

fn set(subnet: IpNet, host: u8) -> RouteChange {
    RouteChange::Set(Route::new(subnet, ([10, 168, 0, host % 9], 8001 + u16::from(host % 4))))
}

/// Applies a batch to both tables and compares them.
fn apply(table: &mut RouteTable, naive: &mut Naive, batch: &[RouteChange]) {
    batch.iter().for_each(|change| naive.apply(change));
    let (next, applied) = table.with_changes(batch.iter().copied());
    assert_eq!(applied.refused, []);
    *table = next;
}

/// V13: one route of every length in each other, added and removed in both orders, with a route beside each.
#[test]
fn v13_every_length_in_each_other() {
    const ADDRESS: u128 = 0xfd00_0096_a5a5_5a5a_0ff0_f00f_1234_8001;
    let beside = |len: u8| net(ADDRESS ^ (1 << (128 - len)), len);
    let nested = (0..=128).map(|len| set(net(ADDRESS, len), len));
    let others = (1..=128).map(|len| set(beside(len), len.wrapping_add(3)));
    let all: Vec<_> = nested.chain(others).collect();
    for is_reversed in [false, true] {
        let order = |changes: &[RouteChange]| {
            let mut changes = changes.to_vec();
            if is_reversed {
                changes.reverse();
            }
            changes
        };
        let (mut naive, mut table) = (Naive::default(), RouteTable::new());
        for (number, change) in order(&all).iter().enumerate() {
            apply(&mut table, &mut naive, &[*change]);
            if number % 16 == 0 {
                assert_same(&table, &naive, []);
            }
        }
        assert_same(&table, &naive, []);
        assert_eq!(table.len(), 257);
        for (number, change) in order(&all).iter().enumerate() {
            apply(&mut table, &mut naive, &[RouteChange::Delete(change.subnet())]);
            if number % 16 == 0 {
                assert_same(&table, &naive, []);
            }
        }
        assert_same(&table, &naive, []);
    }
}

/// V13: routes of one family have no effect on addresses of the other, not even those that embed the same bits.
#[test]
fn v13_the_families_never_shadow_each_other() {
    let (v4, v6) = (route("0.0.0.0/0", "10.168.0.3:8285"), route("::/0", "[fd00:168::4]:8285"));
    let v4_addresses = ["0.0.0.0", "1.2.3.4", "255.255.255.255"].map(|text| text.parse::<IpAddr>().unwrap());
    let v6_addresses =
        ["::", "::1.2.3.4", "::ffff:1.2.3.4", "102:304::", "ffff::1"].map(|text| text.parse::<IpAddr>().unwrap());
    let hop = |table: &RouteTable, address| table.lookup(address).map(|hop| hop.address);
    for (routes, of_v4, of_v6) in [
        (vec![v4], Some(v4.next_hop), None),
        (vec![v6], None, Some(v6.next_hop)),
        (vec![v6, v4], Some(v4.next_hop), Some(v6.next_hop)),
    ] {
        let (table, refused) = RouteTable::try_from_routes(routes.iter().copied());
        assert_eq!(refused, []);
        assert!(v4_addresses.iter().all(|address| hop(&table, *address) == of_v4));
        assert!(v6_addresses.iter().all(|address| hop(&table, *address) == of_v6));
        for address in v6_addresses {
            let IpAddr::V6(v6) = address else { panic!("{address}") };
            assert_eq!(table.lookup_v6(v6), table.lookup(address));
        }
        assert_eq!((table.len(), table.routes().len()), (routes.len(), routes.len()));
    }
}

/// V13, R26: a batch of both families is published at once.
#[test]
fn v13_one_publish_replaces_both_families() {
    let both = |port: u16| {
        ["100.96.2.0/24", "fd00:96:2::/64"].map(|net| RouteChange::Set(route(net, &format!("10.1.1.1:{port}"))))
    };
    let mut publisher = RoutePublisher::new();
    let mut reader = publisher.reader();
    for port in 1..100 {
        assert_eq!(publisher.apply(both(port)).into_result(), Ok(2));
        let table = reader.load();
        let ports = ["100.96.2.1", "fd00:96:2::1"].map(|to| table.lookup(to.parse().unwrap()).unwrap().address.port());
        assert_eq!(ports, [port; 2]);
    }
}

/// V12: each bad next hop is named with its reason, for subnets of both families.
#[test]
fn v12_bad_next_hops_are_refused_by_name() {
    let host = |underlay: &str| {
        let nets = |nets: [&str; 2]| nets.map(|net| net.parse::<IpNet>().unwrap());
        let (networks, subnets) = (["100.96.0.0/16", "fd00:96::/32"], ["100.96.1.0/24", "fd00:96:1::/64"]);
        Host::from_sets(&nets(networks), &nets(subnets), &[underlay.parse().unwrap()]).unwrap()
    };
    for subnet in ["100.96.2.0/24", "fd00:96:2::/64"] {
        let bad = [
            (route(subnet, "[::]:8285"), RouteError::UnspecifiedNextHop),
            (route(subnet, "[::ffff:0.0.0.0]:8285"), RouteError::UnspecifiedNextHop),
            (route(subnet, "[ff02::1]:8285"), RouteError::MulticastNextHop),
            (route(subnet, "[ff02::1%2]:8285"), RouteError::MulticastNextHop),
            (route(subnet, "[::ffff:224.0.0.1]:8285"), RouteError::MulticastNextHop),
            (route(subnet, "[::ffff:255.255.255.255]:8285"), RouteError::BroadcastNextHop),
            (route(subnet, "[fe80::1]:8285"), RouteError::LinkLocalNextHop),
            (route(subnet, "[febf:ffff::1]:0"), RouteError::LinkLocalNextHop),
            (route(subnet, "[fd00:168::3]:0"), RouteError::ZeroPort),
            (route(subnet, "[fd00:168::2]:8285"), RouteError::OwnAddress),
        ];
        let good = ["[fd00:168::3]:8285", "[fd00:168::2]:8286", "[2001:db8::1]:1", "[::1]:8285", "[fe80::1%2]:8285"];
        for (bad, reason) in bad {
            let mut publisher = RoutePublisher::for_host(&host("[fd00:168::2]:8285"));
            let refused = publisher.apply([RouteChange::Set(bad)]).into_result().unwrap_err();
            assert_eq!((refused.route, refused.reason), (bad, reason));
            assert!(publisher.table().is_empty());
        }
        for good in good {
            let mut publisher = RoutePublisher::for_host(&host("[fd00:168::2]:8285"));
            assert_eq!(publisher.apply([RouteChange::Set(route(subnet, good))]).into_result(), Ok(1), "{good}");
        }
    }
}

/// V12: a link-local next hop keeps its scope and is another host on another link. Scopes and flow labels of other
/// addresses have no meaning, and an IPv4-mapped address is the IPv4 peer.
/// V24: a path of less than 1280 bytes carries no IPv6. Routes of a family without an own subnet would be of no use.
#[test]
fn v24_routes_that_could_carry_nothing_are_refused() {
    let mtu = |mtu| loden::Mtu::new(mtu).unwrap();
    for (subnet, least) in [("100.96.2.0/24", 68), ("fd00:96:2::/64", 1280)] {
        let refused = |mtu| RouteTable::try_from_routes([route(subnet, "10.168.0.3:8285").with_mtu(mtu)]).1;
        assert_eq!(refused(mtu(least)), [], "{subnet}");
        if subnet.contains(':') {
            assert_eq!(refused(mtu(1279))[0].reason, RouteError::MtuBelowIpv6 { mtu: mtu(1279) });
        }
    }
    let net = |text: &str| text.parse::<IpNet>().unwrap();
    let own: SocketAddr = "10.168.0.2:8285".parse().unwrap();
    for (network, subnet, other) in
        [("100.96.0.0/16", "100.96.1.0/24", "fd00:96:2::/64"), ("fd00:96::/32", "fd00:96:1::/64", "100.96.2.0/24")]
    {
        let mut publisher = RoutePublisher::for_host(&Host::new(net(network), net(subnet), own).unwrap());
        let refused = publisher.apply([RouteChange::Set(route(other, "10.168.0.3:8285"))]).into_result().unwrap_err();
        assert_eq!(refused.reason, RouteError::FamilyNotCarried, "{other}");
    }
}

#[test]
fn v12_a_scope_belongs_to_link_local_next_hops_only() {
    use std::net::SocketAddrV6;

    let v6 = |ip: &str, flow, scope| SocketAddr::V6(SocketAddrV6::new(ip.parse().unwrap(), 8285, flow, scope));
    let hops = [v6("fe80::1", 7, 2), v6("fd00::1", 7, 2), v6("::ffff:10.168.0.3", 7, 2)];
    let subnets = ["fd00:1::/64", "fd00:2::/64", "fd00:3::/64"].map(|net| net.parse::<IpNet>().unwrap());
    let routes = subnets.iter().zip(hops).map(|(subnet, hop)| Route::new(*subnet, hop));
    let (table, refused) = RouteTable::try_from_routes(routes);
    assert_eq!(refused, []);
    let stored = [v6("fe80::1", 0, 2), v6("fd00::1", 0, 0), SocketAddr::from(([10, 168, 0, 3], 8285))];
    assert_eq!(subnets.map(|subnet| table.exact(subnet).unwrap().address), stored);
    for known in stored.iter().chain(&hops).chain(&[v6("fd00::1", 1, 3), v6("fe80::1", 9, 2)]) {
        assert!(table.has_next_hop(*known), "{known}");
    }
    for other in [v6("fe80::1", 0, 3), v6("fe80::1", 0, 0), v6("fe80::2", 0, 2), v6("fd00::2", 0, 0)] {
        assert!(!table.has_next_hop(other), "{other}");
    }
    assert!(stored.iter().all(|hop| table.has_peer(hop.ip())));
}

proptest! {
    /// V13: clusters of routes at any depth, in any order and batches. A change leaves all others unchanged.
    #[test]
    fn v13_clusters_at_any_depth_equal_the_naive_table(
        bases in proptest::collection::vec((any::<u128>(), 0u32..=128), 1..4),
        routes in proptest::collection::vec((0usize..3, any::<u128>(), 0u8..=24, 0u8..=128, 0u8..3), 1..120),
        batch in 1usize..40,
    ) {
        let mut deletes = Vec::new();
        let (mut naive, mut table) = (Naive::default(), RouteTable::new());
        let changes: Vec<_> = routes.iter().zip(0u8..).map(|((base, bits, spread, len, kind), host)| {
            let (base, depth) = bases[base % bases.len()];
            // A window of few bits behind the beginning that the cluster shares.
            let window = bits.checked_shl(104).unwrap() >> depth.min(104);
            let fixed = base & u128::MAX.checked_shl(128 - depth).unwrap_or(0);
            let len = if *kind == 0 { *len } else { (depth as u8).saturating_add(*spread).min(128) };
            let subnet = net(fixed | window, len);
            if *kind == 2 {
                deletes.push(RouteChange::Delete(subnet));
            }
            set(subnet, host)
        }).collect();
        for changes in [changes, deletes] {
            for batch in changes.chunks(batch) {
                let before = (table.clone(), naive.clone());
                apply(&mut table, &mut naive, batch);
                assert_same(&before.0, &before.1, []);
            }
            assert_same(&table, &naive, []);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// V13: many neighbours at any depth, some gaps, and routes near and far that come and go. Older tables are
    /// unchanged, and no memory is lost.
    #[test]
    fn v13_many_neighbours_at_any_depth_equal_the_naive_table(
        runs in proptest::collection::vec((any::<u128>(), 0u32..=118, 1u8..=10, 1u128..400), 1..3),
        others in proptest::collection::vec((any::<bool>(), any::<u128>(), 0u8..=128), 0..12),
        seed in any::<usize>(),
    ) {
        let fixed = |base: u128, depth: u32| base & u128::MAX.checked_shl(128 - depth).unwrap_or(0);
        let run = |(base, depth, bits, count): &(u128, u32, u8, u128)| {
            let place = |number: u128| fixed(*base, *depth) | (number & ((1 << bits) - 1)) << (128 - depth - u32::from(*bits));
            (0..*count).map(|number| set(net(place(number), *depth as u8 + bits), number as u8)).collect::<Vec<_>>()
        };
        let mut changes: Vec<_> = runs.iter().flat_map(run).collect();
        changes.extend(others.iter().zip(0u8..).map(|((is_near, bits, len), host)| {
            let (base, depth, ..) = runs[usize::from(host) % runs.len()];
            set(net(if *is_near { fixed(base, depth) | bits >> depth.min(127) } else { *bits }, *len), host)
        }));
        // Any order, with the far routes anywhere between.
        let count = changes.len();
        changes.sort_by_key(|change| format!("{change:?}").bytes().fold(seed, |hash, byte| hash.rotate_left(5) ^ usize::from(byte).wrapping_mul(0x9e37_79b9)));
        let single = changes.split_off(count.saturating_sub(20));
        let (new, _table) = bytes_kept(RouteTable::new);
        let (kept, table) = bytes_kept(|| {
            let (mut naive, mut table) = (Naive::default(), RouteTable::new());
            apply(&mut table, &mut naive, &changes);
            let before = (table.clone(), naive.clone());
            single.iter().for_each(|change| apply(&mut table, &mut naive, &[*change]));
            assert_same(&table, &naive, []);
            assert_same(&before.0, &before.1, []);
            let deletes: Vec<_> = changes.iter().map(|change| RouteChange::Delete(change.subnet())).collect();
            for deletes in deletes.chunks(deletes.len() / 3 + 1) {
                apply(&mut table, &mut naive, deletes);
                assert_same(&table, &naive, []);
            }
            single.iter().for_each(|change| apply(&mut table, &mut naive, &[RouteChange::Delete(change.subnet())]));
            table
        });
        prop_assert!(table.is_empty());
        prop_assert!(kept <= new + 4096, "{} bytes, and {} for a new one", kept, new);
    }
}

/// V13: a network far from all others comes and goes, so what all routes share changes with it.
#[test]
fn v13_far_networks_come_and_go() {
    let pods = (0..300_u128).map(|i| set(net(0xfd00_0096 << 96 | i << 64, 64), i as u8));
    let (mut naive, mut table) = (Naive::default(), RouteTable::new());
    apply(&mut table, &mut naive, &pods.collect::<Vec<_>>());
    let far = [
        net(0xfd00_0097 << 96, 64),
        net(0x2001_0db8 << 96, 32),
        net(0xfd00_0096_0000_0000_0000_0000_0000_0001, 128),
        net(0xfd00_0096 << 96, 32),
        net(0xfc00 << 112, 7),
        net(0, 0),
    ];
    for one in far {
        for two in far {
            let [mut add, mut remove] = [vec![set(one, 201), set(two, 202)], Vec::new()];
            for change in &add {
                remove.push(RouteChange::Delete(change.subnet()));
            }
            apply(&mut table, &mut naive, &[add.remove(0)]);
            assert_same(&table, &naive, []);
            apply(&mut table, &mut naive, &add);
            assert_same(&table, &naive, []);
            apply(&mut table, &mut naive, &[remove.remove(0)]);
            assert_same(&table, &naive, []);
            apply(&mut table, &mut naive, &remove);
            assert_same(&table, &naive, []);
        }
    }
    assert_eq!(table.len(), 300);
}

/// Two hundred thousand prefixes of the Internet's lengths, spread at random, have a host each. Memory is bounded, a
/// lookup allocates nothing, a change leaves all other routes unchanged, and deleted routes leave no memory behind.
#[test]
fn v13_fault_44_sparse_prefixes_have_bounded_memory() {
    const ROUTES: u32 = 200_000;
    const BYTES: i64 = 60_000_000;
    let bits = |number: u32| {
        let random = u128::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
        0x2 << 124 | random >> 4
    };
    let len =
        |number: u32| if number.is_multiple_of(10) { 49 + (number / 10 % 80) as u8 } else { 32 + (number % 17) as u8 };
    let host = |number: u32| SocketAddr::from((Ipv6Addr::from_bits(0xfd << 120 | u128::from(number)), 8285));
    let route = |number: u32| Route::new(net(bits(number), len(number)), host(number % 1000));
    let mut naive = Naive::default();
    (0..ROUTES).for_each(|number| naive.apply(&RouteChange::Set(route(number))));
    let (kept, table) = bytes_kept(|| RouteTable::try_from_routes((0..ROUTES).map(route)).0);
    assert_eq!(table.len(), naive.0.len());
    assert!(kept < BYTES, "{kept} bytes");
    let expected = |address: Ipv6Addr| {
        (0..=128).rev().find_map(|len| naive.0.get(&net(address.to_bits(), len))).map(|(address, _)| *address)
    };
    let last = |number: u32| bits(number) | u128::MAX.checked_shr(len(number).into()).unwrap_or(0);
    for number in (0..ROUTES).step_by(7) {
        let first = table.exact(route(number).subnet).map(|hop| hop.address);
        assert_eq!(first, Some(naive.0[&route(number).subnet].0));
        for bits in [bits(number), last(number), last(number).wrapping_add(1)] {
            let address = Ipv6Addr::from_bits(bits);
            let mut found = None;
            assert_eq!(allocations(|| found = table.lookup_v6(address).map(|hop| hop.address)), 0);
            assert_eq!(found, expected(address), "{address}");
        }
    }
    let moved = Route::new(route(1234).subnet, host(ROUTES));
    let (more, (after, applied)) = bytes_kept(|| table.with_changes([RouteChange::Set(moved)]));
    assert_eq!(applied.changed, 1);
    assert!(more < kept / 50, "{more} bytes of {kept}");
    let address = Ipv6Addr::from_bits(bits(1234));
    let answers = [&table, &after].map(|table| table.lookup_v6(address).map(|hop| hop.address));
    assert_eq!(answers, [expected(address), Some(host(ROUTES))]);
    let (new, _table) = bytes_kept(RouteTable::new);
    let deletes: Vec<_> = naive.0.keys().map(|subnet| RouteChange::Delete(*subnet)).collect();
    let (kept, empty) = bytes_kept(|| {
        let mut table = table.clone();
        for deletes in deletes.chunks(10_000) {
            table = table.with_changes(deletes.iter().copied()).0;
        }
        table
    });
    assert!(empty.is_empty());
    assert!(kept <= new + 4096, "{kept} bytes, and {new} for a new one");
}
