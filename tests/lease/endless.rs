//! Fault 43: leases that change without end while packets are forwarded, for 5 seconds or as many as the environment variable
//! `LODEN_UPDATES_SECONDS` says. How many events a second a machine does is a figure of the benchmark
//! (`cargo bench --bench leases -- sustained`), and no test asserts it.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use loden::forward::{DirectionCounters, DropReason};

use support::allocations::bytes_kept;
use support::churn::Feeder;

/// The largest number of leases that are drained and published at once.
const BATCH: u32 = 2000;
/// At least so many events in each half, and more until its time is over and who looks has seen so many tables.
const EVENTS: usize = 25_000;
const TABLES: u32 = 20;
/// For both halves, without a word from the environment.
const SECONDS: f64 = 5.0;

/// The limit of retained memory after all leases have returned to their first state, of the 14 MB that they take. The
/// table keeps arrays and places of deleted routes for later ones.
const ROOM: i64 = 2 << 20;
/// The limit of additional memory of the second half: the occupancy of a map's nodes is random.
const CHANCE: i64 = 1 << 19;
/// The limit of retained memory after all leases are gone: the roots of maps.
const ROOTS: i64 = 1 << 14;

/// Returns the minimum duration of each half.
fn half() -> Duration {
    let seconds = std::env::var("LODEN_UPDATES_SECONDS").ok().map(|text| text.parse().expect("a number of seconds"));
    Duration::from_secs_f64(seconds.unwrap_or(SECONDS) / 2.0)
}

/// No verdict but one that a whole table can give, none of a table older than the one that was published before the batch
/// began (fault 46), and memory is back to where it was: with the leases as before, and without any.
#[test]
fn fault_43_under_updates_without_end_no_lookup_is_torn_and_memory_is_given_back() {
    let (mut feeder, half) = (Feeder::new(), half());
    let list = watch(&mut feeder, |feeder, published, _| {
        published.store(feeder.list_all(), Ordering::Release);
    });
    assert!(list.bytes > ROOM, "{} bytes for all leases", list.bytes);
    let halves = [(); 2].map(|()| {
        watch(&mut feeder, |feeder, published, tables| {
            let (mut events, started) = (0, Instant::now());
            while events < EVENTS || started.elapsed() < half || tables.load(Ordering::Relaxed) < TABLES {
                let leases = 1 + (events as u32).wrapping_mul(7919) % BATCH;
                let (version, count) = feeder.change(leases);
                published.store(version, Ordering::Release);
                events += count;
            }
            published.store(feeder.list_all(), Ordering::Release);
        })
    });
    let end = watch(&mut feeder, |feeder, _, _| feeder.list_nothing());

    let [first, second] = &halves;
    assert!(first.bytes < ROOM, "{} bytes more than before", first.bytes);
    assert!(second.bytes < CHANCE, "{} bytes more than before, once more", second.bytes);
    let left = [&list, first, second, &end].iter().map(|watched| watched.bytes).sum::<i64>();
    assert!(left < ROOTS, "{left} bytes are left of nothing");
    for Watched { flow, .. } in [&list, first, second, &end] {
        assert!(flow.is_conserved() && flow.received() > 0);
        assert_eq!(flow.received(), flow.forwarded() + flow.dropped(DropReason::NoRoute));
    }
    for Watched { flow, tables, empty_looks, .. } in halves {
        assert_eq!(empty_looks, 0, "there were leases all the time");
        assert!(tables >= TABLES && flow.forwarded() > 0 && flow.dropped(DropReason::NoRoute) > 0);
    }
    assert_eq!((list.is_empty, end.is_empty), (false, true));
}

/// The result of an observed run.
struct Watched {
    /// The bytes that both threads allocated and did not free.
    bytes: i64,
    /// The number of observed tables.
    tables: u32,
    /// The number of empty tables.
    empty_looks: u32,
    /// The last table was empty.
    is_empty: bool,
    flow: DirectionCounters,
}

/// Does something to the leases while another thread looks at the tables. What was published and how many tables were seen is
/// known to both.
fn watch(feeder: &mut Feeder, act: impl FnOnce(&mut Feeder, &AtomicU32, &AtomicU32)) -> Watched {
    /// Ends the waiting for who looks also when that has panicked.
    struct Ends<'a>(&'a AtomicU32);
    impl Drop for Ends<'_> {
        fn drop(&mut self) {
            if thread::panicking() {
                self.0.store(u32::MAX, Ordering::Relaxed);
            }
        }
    }
    let (published, tables, done) = (AtomicU32::new(0), AtomicU32::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        let mut observer = feeder.observer(2);
        let (published, tables, done) = (&published, &tables, &done);
        let looking = scope.spawn(move || {
            let _ends = Ends(tables);
            let (bytes, looks) = bytes_kept(|| {
                let (mut last, mut empty_looks) = (None, 0);
                loop {
                    // Asked before it looks, so that the last look is at the last table.
                    let done = done.load(Ordering::Acquire);
                    let version = observer.look(published.load(Ordering::Acquire));
                    assert!(version >= last || version.is_none(), "{version:?} after {last:?}");
                    tables.fetch_add(u32::from(version != last), Ordering::Relaxed);
                    empty_looks += u32::from(version.is_none());
                    last = version;
                    if done {
                        return (last, empty_looks);
                    }
                }
            });
            (bytes, looks, observer.flow().clone())
        });
        let (by_feeder, ()) = bytes_kept(|| act(feeder, published, tables));
        done.store(true, Ordering::Release);
        let (by_observer, (last, empty_looks), flow) = looking.join().unwrap();
        let (swept, ()) = bytes_kept(|| feeder.sweep());
        let bytes = by_feeder + by_observer + swept;
        Watched { bytes, tables: tables.load(Ordering::Relaxed), empty_looks, is_empty: last.is_none(), flow }
    })
}
