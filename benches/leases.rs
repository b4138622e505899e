//! Leases: a list with one difference, single events with and without the table behind them, and a million leases at
//! once.
//!
//! `cargo bench --bench leases -- sustained 60` runs changes at full speed for 60 seconds instead. Another thread
//! forwards packets by the current tables and checks every verdict (fault 43).

use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use criterion::{BatchSize, Criterion, Throughput};
use ipnet::Ipv4Net;
use loden::Host;
use loden::lease::{Lease, LeaseEvent, Reconciler, SourceId};
use loden::route::RoutePublisher;
use support::churn;

const SOURCE: SourceId = SourceId(1);
const UNDERLAY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(192, 168, 0, 1)), 8285);

type Leases = Vec<(Ipv4Net, Lease)>;

/// Returns /28s of 10.0.0.0/8, each with its own host.
fn leases(count: u32) -> Leases {
    let lease = |number: u32| {
        let subnet = Ipv4Net::new(Ipv4Addr::from_bits(0x0a00_0000 + 16 * number), 28).expect("a short prefix");
        (subnet, Lease::new(subnet, (Ipv4Addr::from_bits(0xac10_0000 + number), 8285)))
    };
    (1..=count).map(lease).collect()
}

fn host() -> Host {
    let net = |bits: u32, len| Ipv4Net::new(Ipv4Addr::from_bits(bits), len).expect("a short prefix");
    Host::new(net(0x0a00_0000, 8), net(0x0a00_0000, 28), UNDERLAY).expect("an identity")
}

fn reconciler() -> Reconciler<Ipv4Net> {
    Reconciler::new(&host())
}

fn moved(lease: Lease, port: u16) -> Lease {
    lease.with_next_hop(SocketAddr::new(lease.next_hop.ip(), port))
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

/// Measures events that move one of 100,000 leases.
fn events(criterion: &mut Criterion) {
    const LEASES: u32 = 100_000;
    let leases = leases(LEASES);
    let mut group = criterion.benchmark_group("events");
    for (name, per_change) in [("reconciler alone", 0), ("published one by one", 1), ("published by thousands", 1000)] {
        let mut reconciler = reconciler();
        let mut publisher = RoutePublisher::for_host(&host());
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
    let leases = leases(1_000_000);
    let (mut reconciler, mut publisher) = (reconciler(), RoutePublisher::for_host(&host()));
    let (before, started) = (memory("VmRSS:"), Instant::now());
    reconciler.handle_event(SOURCE, LeaseEvent::Snapshot(leases.clone()), Duration::ZERO);
    let reconciled = started.elapsed();
    let changes = reconciler.take_changes();
    let held = memory("VmRSS:");
    let applied = publisher.apply(changes);
    assert_eq!(applied.changed, 1_000_000);
    let published = started.elapsed();
    let in_force = memory("VmRSS:");
    let peak = memory("VmHWM:");
    reconciler.handle_event(SOURCE, LeaseEvent::Snapshot(leases), Duration::ZERO);
    let again = started.elapsed() - published;
    assert!(!reconciler.has_changes());
    println!("a million leases: {reconciled:?} to reconcile, {published:?} until published, {again:?} to list again");
    let [held, in_force, peak] = [held, in_force, peak].map(|memory| memory - before);
    println!(
        "a million leases: {held:.0} MB with all changes at hand, {in_force:.0} MB in force, {peak:.0} MB at most"
    );
}

/// Returns a memory counter of this process in megabytes.
fn memory(name: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("procfs");
    let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a line with this name");
    let kibibytes: f64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kibibytes * 1024.0 / 1e6
}

/// Returns the processor time of this thread, which excludes other processes.
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").expect("procfs with schedstat");
    let nanos = stat.split(' ').next().and_then(|first| first.parse().ok());
    Duration::from_nanos(nanos.expect("proc(5): nanoseconds on the processor"))
}

/// Runs changes for this many seconds, a third each with every batch size.
fn sustained(seconds: f64) {
    const SIZES: [u32; 3] = [10, 100, 1000];
    let mut feeder = churn::Feeder::new();
    let (published, done) = (AtomicU32::new(feeder.list_all()), AtomicBool::new(false));
    let mut observer = feeder.observer(2);
    let before = memory("VmRSS:");
    let packets = std::thread::scope(|scope| {
        let looking = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                observer.look(published.load(Ordering::Acquire)).expect("a table with routes");
            }
            let flow = observer.flow();
            assert!(flow.is_conserved());
            flow.received()
        });
        for size in SIZES {
            let (started, on_cpu, mut tables, mut events) = (Instant::now(), cpu_time(), 0, 0);
            while started.elapsed().as_secs_f64() < seconds / SIZES.len() as f64 {
                let (version, count) = feeder.change(size);
                published.store(version, Ordering::Release);
                (tables, events) = (tables + 1, events + count as u32);
            }
            let (wall, cpu) = (started.elapsed().as_secs_f64(), (cpu_time() - on_cpu).as_secs_f64());
            let [by_wall, by_cpu] = [wall, cpu].map(|seconds| f64::from(events) / seconds);
            let tables = f64::from(tables) / wall;
            println!(
                "sustained, {size} at a time: {by_wall:.0} events/s, {tables:.0} tables/s; {by_cpu:.0} events per second of \
                 processor time"
            );
        }
        feeder.list_all();
        done.store(true, Ordering::Relaxed);
        looking.join().expect("every verdict was that of a whole table")
    });
    feeder.sweep();
    println!("sustained: {packets} packets, each with a verdict of a whole table that was not too old; 0 lost");
    println!("sustained: {before:.1} MB before, {:.1} MB with the same leases afterwards", memory("VmRSS:"));
    feeder.list_nothing();
}

fn settings() -> Criterion {
    Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
}

criterion::criterion_group!(name = benches; config = settings(); targets = million, snapshot, events);

fn main() {
    let mut args = std::env::args().skip_while(|arg| arg != "sustained");
    match args.next() {
        Some(_) => sustained(args.next().and_then(|seconds| seconds.parse().ok()).unwrap_or(60.0)),
        None => {
            benches();
            Criterion::default().configure_from_args().final_summary();
        }
    }
}
