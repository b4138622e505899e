//! Leases: a list with one difference, events one by one with and without the table behind them, and a million at once.

use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use criterion::{BatchSize, Criterion, Throughput};
use ipnet::Ipv4Net;
use loden::lease::{Host, Lease, LeaseEvent, Reconciler, SourceId};
use loden::route::RoutePublisher;

const SOURCE: SourceId = SourceId(1);
const UNDERLAY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(192, 168, 0, 1)), 8285);

type Leases = Vec<(Ipv4Net, Lease)>;

/// /28s of 10.0.0.0/8, each of a host of its own.
fn leases(count: u32) -> Leases {
    let lease = |number: u32| {
        let subnet = Ipv4Net::new(Ipv4Addr::from_bits(0x0a00_0000 + 16 * number), 28).expect("a short prefix");
        (subnet, Lease::new(subnet, (Ipv4Addr::from_bits(0xac10_0000 + number), 8285)))
    };
    (1..=count).map(lease).collect()
}

fn reconciler() -> Reconciler<Ipv4Net> {
    let net = |bits: u32, len| Ipv4Net::new(Ipv4Addr::from_bits(bits), len).expect("a short prefix");
    Reconciler::new(Host::new(net(0x0a00_0000, 8), net(0x0a00_0000, 28), UNDERLAY))
}

fn moved(lease: Lease, port: u16) -> Lease {
    Lease { next_hop: SocketAddr::new(lease.next_hop.ip(), port), ..lease }
}

fn snapshot(criterion: &mut Criterion) {
    let mut leases = leases(10_000);
    let mut reconciler = reconciler();
    reconciler.handle_event(SOURCE, LeaseEvent::Snapshot(leases.clone()), Duration::ZERO);
    assert_eq!(reconciler.take_changes().len(), 10_000);
    let mut port = 1;
    criterion.bench_function("snapshot of 10,000 leases, one moved", |bench| {
        let next = || {
            port = 1 + port % 1000;
            let (_, lease) = &mut leases[5_000];
            *lease = moved(*lease, port);
            leases.clone()
        };
        let run = |leases| {
            reconciler.handle_event(SOURCE, LeaseEvent::Snapshot(leases), Duration::ZERO);
            let changes = reconciler.take_changes();
            assert_eq!(changes.len(), 1);
            changes
        };
        bench.iter_batched(next, run, BatchSize::PerIteration);
    });
}

/// Every event moves one of 100,000 leases.
fn events(criterion: &mut Criterion) {
    const LEASES: u32 = 100_000;
    let leases = leases(LEASES);
    let mut group = criterion.benchmark_group("events");
    for (name, per_change) in [("reconciler alone", 0), ("published one by one", 1), ("published by thousands", 1000)] {
        let mut reconciler = reconciler();
        let mut publisher = RoutePublisher::bound_to(UNDERLAY);
        let mut reader = publisher.reader();
        reconciler.handle_event(SOURCE, LeaseEvent::Snapshot(leases.clone()), Duration::ZERO);
        assert!(publisher.apply(reconciler.take_changes()).refused.is_empty());
        let (mut at, mut port, mut count) = (0, 1000, 0);
        group.throughput(Throughput::Elements(1));
        group.bench_function(name, |bench| {
            bench.iter(|| {
                at = (at + 7919) % leases.len();
                port = 1000 + (port + 1) % 1009;
                let (key, lease) = leases[at];
                let event = LeaseEvent::Added { key, lease: moved(lease, port) };
                reconciler.handle_event(SOURCE, event, Duration::ZERO);
                count += 1;
                if per_change == 0 {
                    black_box(reconciler.take_changes());
                } else if count % per_change == 0 {
                    assert!(publisher.apply(reconciler.take_changes()).refused.is_empty());
                    black_box(reader.load().len());
                }
            });
        });
    }
    group.finish();
}

fn million(_: &mut Criterion) {
    let resident = || -> Option<f64> {
        let pages = std::fs::read_to_string("/proc/self/statm").ok()?;
        Some(pages.split(' ').nth(1)?.parse::<f64>().ok()? * 4096.0 / 1e6)
    };
    let leases = leases(1_000_000);
    let (mut reconciler, mut publisher) = (reconciler(), RoutePublisher::bound_to(UNDERLAY));
    let (before, started) = (resident(), Instant::now());
    reconciler.handle_event(SOURCE, LeaseEvent::Snapshot(leases.clone()), Duration::ZERO);
    let reconciled = started.elapsed();
    let changes = reconciler.take_changes();
    let held = resident();
    let applied = publisher.apply(changes);
    assert_eq!(applied.changed, 1_000_000);
    let published = started.elapsed();
    reconciler.handle_event(SOURCE, LeaseEvent::Snapshot(leases), Duration::ZERO);
    let again = started.elapsed() - published;
    assert!(!reconciler.has_changes());
    println!("a million leases: {reconciled:?} to reconcile, {published:?} until published, {again:?} to list again");
    if let (Some(before), Some(held)) = (before, held) {
        println!("a million leases: {:.0} MB with all changes at hand", held - before);
    }
}

fn settings() -> Criterion {
    Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
}

criterion::criterion_group!(name = benches; config = settings(); targets = million, snapshot, events);
criterion::criterion_main!(benches);
