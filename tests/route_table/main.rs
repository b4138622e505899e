//! The route table against a naive one, a list that is searched completely.

mod room;
mod v6;

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::{IpNet, Ipv4Net};
use loden::route::{Route, RouteChange, RouteError, RoutePublisher, RouteTable};
use loden::{Host, Mtu};
use proptest::prelude::*;
use support::allocations::{Counting, bytes_kept};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The oracle, which compares every prefix in every lookup.
#[derive(Clone, Default)]
struct Naive(HashMap<IpNet, (SocketAddr, Option<Mtu>)>);

impl Naive {
    fn apply(&mut self, change: &RouteChange) {
        if let RouteChange::Set(Route { subnet, next_hop, mtu, .. }) = change {
            self.0.insert(subnet.trunc(), (*next_hop, *mtu));
        } else if let RouteChange::Delete(subnet) = change {
            self.0.remove(&subnet.trunc());
        }
    }

    fn lookup(&self, destination: IpAddr) -> Option<(SocketAddr, Option<Mtu>)> {
        let holding = self.0.iter().filter(|(subnet, _)| subnet.contains(&destination));
        holding.max_by_key(|(subnet, _)| subnet.prefix_len()).map(|(_, hop)| *hop)
    }

    fn has_peer(&self, address: IpAddr) -> bool {
        self.0.values().any(|(hop, _)| hop.ip() == address)
    }
}

/// Returns addresses from few values per byte, so that prefixes nest, cover and repeat. IPv6 addresses begin with the
/// bytes of IPv4 addresses.
fn address() -> impl Strategy<Value = IpAddr> {
    let byte = prop_oneof![Just(0u8), Just(1), Just(96), Just(127), Just(128), Just(255), any::<u8>()];
    let v4 = (prop_oneof![Just(10u8), Just(100), any::<u8>()], byte.clone(), byte.clone(), byte)
        .prop_map(|(a, b, c, d)| Ipv4Addr::new(a, b, c, d));
    // Runs of equal bytes: routes share long paths, and differ far from each other.
    let cuts = proptest::collection::vec(0usize..16, 0..4);
    let other = prop_oneof![Just(0u8), Just(1), Just(255), any::<u8>()];
    let v6 = (v4.clone(), cuts, other).prop_map(|(first, cuts, other)| {
        let mut octets = [0; 16];
        octets[..4].copy_from_slice(&first.octets());
        cuts.into_iter().for_each(|at| octets[at] = other);
        octets
    });
    prop_oneof![v4.prop_map(IpAddr::V4), v6.prop_map(IpAddr::from)]
}

fn subnet() -> impl Strategy<Value = IpNet> {
    (address(), 0u8..=128).prop_map(|(address, len)| match address {
        IpAddr::V4(_) => IpNet::new(address, len % 33).unwrap(),
        IpAddr::V6(_) => IpNet::new(address, len).unwrap(),
    })
}

fn change() -> impl Strategy<Value = RouteChange> {
    let set = (subnet(), 1u8..8, 1u16..4, prop_oneof![4 => Just(None), 1 => Just(Mtu::new(1300).ok())]);
    prop_oneof![
        3 => set.prop_map(|(subnet, host, port, mtu)| RouteChange::Set(Route::new(subnet, ([10, 168, 0, host], 8000 + port)).with_mtu(mtu))),
        1 => subnet().prop_map(RouteChange::Delete),
    ]
}

/// Returns the addresses on both sides of every edge of every prefix, where a wrong table shows.
fn edges(naive: &Naive) -> Vec<IpAddr> {
    let edge = |net: &IpNet| [net.network(), net.broadcast()];
    let around = |address| match address {
        IpAddr::V4(address) => {
            let bits = address.to_bits();
            [bits.wrapping_sub(1), bits, bits.wrapping_add(1)].map(|bits| Ipv4Addr::from_bits(bits).into())
        }
        IpAddr::V6(address) => {
            let bits = address.to_bits();
            [bits.wrapping_sub(1), bits, bits.wrapping_add(1)].map(|bits| Ipv6Addr::from_bits(bits).into())
        }
    };
    naive.0.keys().flat_map(edge).flat_map(around).collect()
}

fn assert_same(table: &RouteTable, naive: &Naive, destinations: impl IntoIterator<Item = IpAddr>) {
    for destination in destinations.into_iter().chain(edges(naive)) {
        let found = table.lookup(destination).map(|hop| (hop.address, hop.mtu));
        assert_eq!(found, naive.lookup(destination), "lookup of {destination}");
    }
    assert_eq!(table.len(), naive.0.len());
    let listed: HashMap<_, _> = table.routes().into_iter().map(|r| (r.subnet, (r.next_hop, r.mtu))).collect();
    assert_eq!(listed, naive.0);
    for (subnet, hop) in &naive.0 {
        assert_eq!(table.exact(*subnet).map(|hop| (hop.address, hop.mtu)), Some(*hop));
    }
    for host in 0..9 {
        let peer = IpAddr::from([10, 168, 0, host]);
        assert_eq!(table.has_peer(peer), naive.has_peer(peer), "peer {peer}");
        for port in 8000..8005 {
            let socket = SocketAddr::new(peer, port);
            assert_eq!(table.has_next_hop(socket), naive.0.values().any(|(hop, _)| *hop == socket), "{socket}");
        }
    }
}

proptest! {
    /// R21, R22, V13, fault 45: any changes of both families in any order, published in any batches. Every older table is unchanged.
    #[test]
    fn v13_fault_45_equals_the_naive_table_under_churn(
        batches in proptest::collection::vec(proptest::collection::vec(change(), 1..12), 1..10),
        destinations in proptest::collection::vec(address(), 20),
    ) {
        let mut naive = Naive::default();
        let mut table = RouteTable::new();
        let mut history = Vec::new();
        for batch in &batches {
            history.push((table.clone(), naive.clone()));
            batch.iter().for_each(|change| naive.apply(change));
            let (next, applied) = table.with_changes(batch.iter().copied());
            prop_assert!(applied.refused.is_empty());
            table = next;
            assert_same(&table, &naive, destinations.iter().copied());
        }
        for (table, naive) in history {
            assert_same(&table, &naive, destinations.iter().copied());
        }
    }

    /// Prefixes of any length, close to each other: a change leaves all others unchanged.
    #[test]
    fn changes_keep_other_prefixes_of_every_length(
        prefixes in proptest::collection::vec((any::<u32>(), 8u8..=32, any::<bool>()), 1..60),
        destinations in proptest::collection::vec(any::<u32>(), 200),
    ) {
        let within = |bits: u32| Ipv4Addr::from_bits(0x0a00_0000 | bits & 0x0001_ffff);
        let mut naive = Naive::default();
        let mut table = RouteTable::new();
        for (number, (bits, len, stays)) in (1..).zip(prefixes) {
            let subnet = Ipv4Net::new(within(bits), len).unwrap();
            let set = RouteChange::Set(Route::new(subnet, ([10, 168, 0, 1], number)));
            for change in [set, RouteChange::Delete(subnet.into())].iter().take(if stays { 1 } else { 2 }) {
                naive.apply(change);
                table = table.with_changes([*change]).0;
            }
        }
        assert_same(&table, &naive, destinations.into_iter().map(|bits| within(bits).into()));
    }

    /// A table without routes has no peer and no lookup result.
    #[test]
    fn nothing_is_left_of_deleted_routes(changes in proptest::collection::vec(change(), 1..60)) {
        let (table, _) = RouteTable::new().with_changes(changes);
        let deletes: Vec<_> = table.routes().iter().map(|route| RouteChange::Delete(route.subnet)).collect();
        let destinations: Vec<_> = table.routes().iter().map(|route| route.subnet.addr()).collect();
        let (empty, applied) = table.with_changes(deletes);
        prop_assert_eq!(applied.changed, table.len());
        assert_same(&empty, &Naive::default(), destinations);
    }
}

fn route(subnet: &str, next_hop: &str) -> Route {
    Route::new(subnet.parse::<IpNet>().unwrap(), next_hop.parse::<SocketAddr>().unwrap())
}

/// The example of flannel's documentation, in every order of insertion.
#[test]
fn r21_the_longest_prefix_wins_in_any_order() {
    let routes = [
        route("172.20.10.0/24", "10.168.0.1:8285"),
        route("172.20.0.0/16", "10.168.0.2:8285"),
        route("0.0.0.0/0", "10.168.0.3:8285"),
    ];
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let (table, refused) = RouteTable::try_from_routes(order.map(|i| routes[i]));
        assert_eq!(refused, []);
        for (destination, expected) in [("172.20.10.5", 0), ("172.20.11.5", 1), ("8.8.8.8", 2), ("172.20.10.5", 0)] {
            let hop = table.lookup(destination.parse().unwrap()).unwrap();
            assert_eq!(hop.address, routes[expected].next_hop, "{destination}");
        }
    }
}

/// R20 and R63: each bad route is named with its reason, and the good ones of the batch are added.
#[test]
fn r20_bad_routes_are_refused_by_name_and_the_others_taken() {
    let net = |text: &str| text.parse::<Ipv4Net>().unwrap();
    let host = Host::new(net("100.96.0.0/16"), net("100.96.1.0/24"), ([10, 168, 0, 2], 8285)).unwrap();
    let bad = [
        (route("100.96.2.0/24", "0.0.0.0:8285"), RouteError::UnspecifiedNextHop),
        (route("100.96.2.0/24", "224.0.0.1:8285"), RouteError::MulticastNextHop),
        (route("100.96.2.0/24", "239.255.255.255:8285"), RouteError::MulticastNextHop),
        (route("100.96.2.0/24", "255.255.255.255:8285"), RouteError::BroadcastNextHop),
        (route("100.96.2.0/24", "10.168.0.3:0"), RouteError::ZeroPort),
        (route("100.96.2.0/24", "10.168.0.2:8285"), RouteError::OwnAddress),
        (route("100.96.2.0/24", "[::ffff:10.168.0.2]:8285"), RouteError::OwnAddress),
        (route("100.96.1.9/24", "10.168.0.3:8285"), RouteError::OwnSubnet),
        (route("100.96.2.0/24", "[::]:8285"), RouteError::UnspecifiedNextHop),
        (route("100.96.2.0/24", "[ff02::1]:8285"), RouteError::MulticastNextHop),
    ];
    let good = [
        route("100.96.1.0/25", "10.168.0.3:8285"),
        route("100.96.3.0/24", "127.0.0.1:8285"),
        route("100.96.4.0/24", "10.168.0.2:8286"),
        route("100.96.5.0/24", "10.168.0.3:1"),
        route("100.96.6.0/24", "10.168.0.3:65535"),
    ];
    let mut publisher = RoutePublisher::for_host(&host);
    let batch = bad.iter().map(|(route, _)| *route).chain(good).map(RouteChange::Set);
    let applied = publisher.apply(batch);
    assert_eq!(applied.changed, good.len());
    let refused: Vec<_> = applied.refused.iter().map(|refused| (refused.route, refused.reason)).collect();
    assert_eq!(refused, bad);
    assert_eq!(
        applied.refused[0].to_string(),
        "route 100.96.2.0/24 via 0.0.0.0:8285 is refused: the next hop is the unspecified address; name the host that \
         owns the subnet"
    );
    assert_eq!(publisher.table().len(), good.len());
}

#[test]
fn host_bits_are_normalised_and_changes_that_change_nothing_do_not_count() {
    let mut publisher = RoutePublisher::new();
    let applied = publisher.apply([RouteChange::Set(route("100.96.2.77/24", "10.168.0.3:8285"))]);
    assert_eq!(applied.changed, 1);
    assert_eq!(publisher.table().routes(), [route("100.96.2.0/24", "10.168.0.3:8285")]);
    let again = [
        RouteChange::Set(route("100.96.2.1/24", "10.168.0.3:8285")),
        RouteChange::Delete("100.96.0.0/16".parse().unwrap()),
        RouteChange::Delete("fd00::/64".parse().unwrap()),
    ];
    assert_eq!(publisher.apply(again).changed, 0);
    assert_eq!(publisher.apply([RouteChange::Delete("100.96.2.9/24".parse().unwrap())]).changed, 1);
    assert!(publisher.table().is_empty());
}

/// More peers than any part of the table holds at once, some of them in use by several routes.
#[test]
fn every_peer_of_thousands_is_known_and_no_other() {
    const PEERS: u32 = 5000;
    let peer = |number: u32| SocketAddr::from((Ipv4Addr::from_bits(0xac10_0000 + 2 * number), 8285));
    let route = |number: u32| {
        let subnet = Ipv4Net::new(Ipv4Addr::from_bits(0x0a00_0000 + 256 * number), 24).unwrap();
        Route::new(subnet, peer(number / 2))
    };
    let mut publisher = RoutePublisher::new();
    assert_eq!(publisher.apply((0..2 * PEERS).map(|number| RouteChange::Set(route(number)))).into_result(), Ok(10_000));
    let gone = (PEERS..2 * PEERS).map(|number| RouteChange::Delete(route(number).subnet));
    assert_eq!(publisher.apply(gone).into_result(), Ok(5000));
    let table = publisher.table();
    for number in 0..PEERS {
        let (own, SocketAddr::V4(between)) = (peer(number), peer(number)) else { panic!("{number}") };
        let stays = number < PEERS / 2;
        assert_eq!((table.has_peer(own.ip()), table.has_next_hop(own)), (stays, stays), "{own}");
        let between = Ipv4Addr::from_bits(between.ip().to_bits() + 1);
        assert!(!table.has_peer(between.into()) && !table.has_next_hop((between, 8285).into()), "{between}");
        assert!(!table.has_next_hop((own.ip(), 8286).into()), "another port of {own}");
        assert_eq!(table.exact(route(number).subnet).map(|hop| hop.address), Some(peer(number / 2)));
    }
}

#[test]
fn a_batch_says_what_it_changed_or_what_it_refused_first() {
    let mut publisher = RoutePublisher::new();
    assert!(publisher.table().is_empty());
    let good = ["100.96.2.0/24", "100.96.3.0/24"].map(|subnet| RouteChange::Set(route(subnet, "10.168.0.3:8285")));
    assert_eq!(publisher.apply(good).into_result(), Ok(2));
    assert!(!publisher.table().is_empty());
    assert_eq!(publisher.apply(good).into_result(), Ok(0));
    let bad = [route("100.96.4.0/24", "10.168.0.3:0"), route("100.96.4.0/24", "0.0.0.0:8285")];
    let refused = publisher.apply(bad.map(RouteChange::Set)).into_result().unwrap_err();
    assert_eq!((refused.route, refused.reason), (bad[0], RouteError::ZeroPort));
    assert!(format!("{:?}", publisher.table()).contains("len: 2"));
    let host_bits = ["100.96.2.77/24", "100.96.2.0/24"].map(|subnet| subnet.parse().unwrap());
    assert_eq!(RouteChange::Delete(host_bits[0]).subnet(), host_bits[1]);
    assert_eq!(RouteChange::Set(route("100.96.2.77/24", "10.168.0.3:8285")).subnet(), host_bits[1]);
}

/// R26 and fault 46: while one thread publishes, readers see complete tables, and never an older one than was published
/// before they began.
#[test]
fn r26_fault_46_readers_see_whole_tables_and_never_an_old_one() {
    use std::sync::atomic::{AtomicU16, Ordering};

    const VERSIONS: u16 = 20_000;
    let both =
        |port| ["100.96.2.0/24", "10.0.0.0/8"].map(|net| RouteChange::Set(route(net, &format!("10.1.1.1:{port}"))));
    let mut publisher = RoutePublisher::new();
    assert_eq!(publisher.apply(both(1)).changed, 2);
    let published = AtomicU16::new(1);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            let mut reader = publisher.reader();
            let published = &published;
            scope.spawn(move || {
                let mut last = 0;
                while last < VERSIONS {
                    let least = published.load(Ordering::Acquire);
                    let table = reader.load();
                    let near = table.lookup([100, 96, 2, 1].into()).unwrap().address.port();
                    let far = table.lookup([10, 2, 3, 4].into()).unwrap().address.port();
                    assert_eq!(near, far, "one table, one version");
                    assert!(near >= least && near >= last, "version {near} after {least} was published");
                    last = near;
                }
            });
        }
        for version in 2..=VERSIONS {
            assert_eq!(publisher.apply(both(version)).changed, 2);
            published.store(version, Ordering::Release);
        }
    });
}

/// A million subnets, /24 to /28 in turn, have a host each, so that every lookup's result can be computed. Memory is
/// bounded, and a change leaves all other routes unchanged.
#[test]
fn fault_44_a_million_routes_each_answer_for_their_own() {
    const ROUTES: u32 = 1_000_000;
    const BYTES: i64 = 256 << 20;
    let first = |number: u32| 0x1000_0000 + (number << 8);
    let host = |number: u32| SocketAddr::from((Ipv4Addr::from_bits(0xac10_0000 + number), 8285));
    let subnet = |number: u32| Ipv4Net::new(Ipv4Addr::from_bits(first(number)), 24 + (number % 5) as u8).unwrap();
    let (kept, table) = bytes_kept(|| {
        RouteTable::try_from_routes((0..ROUTES).map(|number| Route::new(subnet(number), host(number)))).0
    });
    assert_eq!(table.len(), ROUTES as usize);
    assert!(kept < BYTES, "{kept} bytes");
    let answer =
        |table: &RouteTable, address: u32| table.lookup(Ipv4Addr::from_bits(address).into()).map(|hop| hop.address);
    let expected = |number: u32, last: u32| (last < 256 >> (number % 5)).then(|| host(number));
    // An odd stride visits all of them in an order without cache hits.
    for step in 0..200_000_u32 {
        let number = step.wrapping_mul(7_919) % ROUTES;
        let last = step.wrapping_mul(31) % 256;
        assert_eq!(answer(&table, first(number) + last), expected(number, last), "{} and {last}", subnet(number));
    }
    assert_eq!(answer(&table, first(ROUTES)), None);
    let moved = ROUTES / 3;
    let (after, applied) = table.with_changes([RouteChange::Set(Route::new(subnet(moved), host(ROUTES)))]);
    assert_eq!(applied.changed, 1);
    for number in moved - 1000..=moved + 1000 {
        let wanted = if number == moved { host(ROUTES) } else { host(number) };
        assert_eq!((answer(&after, first(number)), answer(&table, first(number))), (Some(wanted), Some(host(number))));
    }
}
