//! Route tables: lookup compared with `prefix-trie` and flannel's linear table, construction, and publication of one
//! change.

use std::hint::black_box;
use std::net::Ipv4Addr;
use std::time::Duration;

use crate::tables::{TABLES, TABLES_V6, destinations, destinations_v6, subnet, subnet_v6};
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput};
use ipnet::{Ipv4Net, Ipv6Net};
use loden::route::{NextHop, Route, RouteChange, RoutePublisher, RouteTable};
use prefix_trie::PrefixMap;

/// The number of destinations. No branch predictor learns the order of so many, and their parts of a large table exceed
/// the L2 cache.
const LOOKUPS: usize = 1 << 16;

/// flannel's table: the first match of a list, which is then moved to the front.
struct Linear(Vec<(Ipv4Net, std::net::SocketAddr)>);

impl Linear {
    fn lookup(&mut self, destination: Ipv4Addr) -> Option<std::net::SocketAddr> {
        let at = self.0.iter().position(|(subnet, _)| subnet.contains(&destination))?;
        self.0.swap(0, at);
        Some(self.0[0].1)
    }
}

pub(crate) fn lookup(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("lookup");
    group.throughput(Throughput::Elements(LOOKUPS as u64)).sample_size(20);
    group.warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    for kind in TABLES {
        let routes = (kind.routes)();
        let destinations = destinations(&routes, LOOKUPS);
        let (table, refused) = RouteTable::try_from_routes(routes.iter().copied());
        assert!(refused.is_empty());
        let trie: PrefixMap<Ipv4Net, NextHop> =
            routes.iter().filter_map(|route| Some((subnet(route), *table.exact(route.subnet)?))).collect();
        group.bench_function(BenchmarkId::new("loden", kind.name), |bench| {
            bench.iter(|| {
                for destination in &destinations {
                    black_box(table.lookup_v4(*destination));
                }
            });
        });
        group.bench_function(BenchmarkId::new("prefix-trie", kind.name), |bench| {
            bench.iter(|| {
                for destination in &destinations {
                    black_box(trie.get_lpm(&Ipv4Net::from(*destination)));
                }
            });
        });
        if routes.len() > 10_000 {
            continue;
        }
        let mut linear = Linear(routes.iter().map(|route| (subnet(route), route.next_hop)).collect());
        group.bench_function(BenchmarkId::new("linear, move to front", kind.name), |bench| {
            bench.iter(|| {
                for destination in &destinations {
                    black_box(linear.lookup(*destination));
                }
            });
        });
    }
    group.finish();
}

pub(crate) fn lookup_v6(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("lookup");
    group.throughput(Throughput::Elements(LOOKUPS as u64)).sample_size(20);
    group.warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    for kind in TABLES_V6 {
        let routes = (kind.routes)();
        let destinations = destinations_v6(&routes, LOOKUPS);
        let (table, refused) = RouteTable::try_from_routes(routes.iter().copied());
        assert!(refused.is_empty());
        let trie: PrefixMap<Ipv6Net, NextHop> =
            routes.iter().filter_map(|route| Some((subnet_v6(route), *table.exact(route.subnet)?))).collect();
        for destination in &destinations {
            let theirs = trie.get_lpm(&Ipv6Net::from(*destination)).map(|(_, hop)| hop);
            assert_eq!(table.lookup_v6(*destination), theirs, "{destination}");
        }
        group.bench_function(BenchmarkId::new("loden", kind.name), |bench| {
            bench.iter(|| {
                for destination in &destinations {
                    black_box(table.lookup_v6(*destination));
                }
            });
        });
        group.bench_function(BenchmarkId::new("prefix-trie", kind.name), |bench| {
            bench.iter(|| {
                for destination in &destinations {
                    black_box(trie.get_lpm(&Ipv6Net::from(*destination)));
                }
            });
        });
    }
    group.finish();
}

pub(crate) fn build(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("build");
    group.sample_size(10).measurement_time(Duration::from_secs(3));
    for kind in TABLES.into_iter().chain(TABLES_V6) {
        let routes = (kind.routes)();
        group.bench_function(kind.name, |bench| {
            bench.iter_batched(|| routes.clone(), RouteTable::try_from_routes, BatchSize::PerIteration);
        });
    }
    group.finish();
}

/// Prints the memory of a table as the difference of the process's memory.
pub(crate) fn memory(_: &mut Criterion) {
    let resident = || -> Option<f64> {
        let pages = std::fs::read_to_string("/proc/self/statm").ok()?;
        Some(pages.split(' ').nth(1)?.parse::<f64>().ok()? * 4096.0 / 1e6)
    };
    for kind in TABLES.into_iter().chain(TABLES_V6) {
        let routes = (kind.routes)();
        let before = resident();
        let (table, _) = RouteTable::try_from_routes(routes.iter().copied());
        if let (Some(before), Some(after)) = (before, resident()) {
            println!("memory/{}: {:.1} MB for {} routes", kind.name, after - before, table.len());
        }
    }
}

/// Publishes one change while a reader holds the previous table, as a worker does.
pub(crate) fn publish(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("publish one change");
    group.sample_size(20).measurement_time(Duration::from_secs(3));
    for kind in TABLES.into_iter().chain(TABLES_V6) {
        let routes = (kind.routes)();
        let changes: Vec<Route> = routes.iter().copied().filter(|route| route.subnet.prefix_len() >= 16).collect();
        let mut publisher = RoutePublisher::new();
        let applied = publisher.apply(routes.iter().copied().map(RouteChange::Set));
        assert_eq!(applied.changed, routes.len());
        let mut reader = publisher.reader();
        let (mut next, mut port) = (0, 1000);
        group.bench_function(kind.name, |bench| {
            bench.iter(|| {
                // The changes are far apart, so no change finds its parts in the cache.
                next = (next + 7919) % changes.len();
                // It is coprime to the number of routes, so no route is set to its current value.
                port = 1000 + (port + 1) % 1009;
                let mut route = changes[next];
                route.next_hop.set_port(port);
                let applied = publisher.apply([RouteChange::Set(route)]);
                assert_eq!(applied.changed, 1);
                black_box(reader.load().len())
            });
        });
    }
    group.finish();
}
