//! Leases compared with a full recompute, the numbered mistakes of other implementations, flannel's formats, and
//! allocation.
#![expect(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod allocate;
mod corpus;
mod endless;
mod faults;
mod formats;
mod mistakes;
mod properties;
mod renewal_timer;
mod subnet_file;

use std::time::Duration;

use ipnet::IpNet;
use loden::Host;
use loden::lease::{Lease, LeaseEvent, Reconciler, SourceId};
use loden::route::{Route, RouteChange};
use support::allocations::Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const SOURCE: SourceId = SourceId(0);

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

/// Returns 10.168.0.2, which owns 100.96.1.0/24 of 100.96.0.0/16.
fn host() -> Host {
    Host::new(net("100.96.0.0/16"), net("100.96.1.0/24"), ([10, 168, 0, 2], 8285)).unwrap()
}

/// Returns a lease of the host with this last byte. Its key is its subnet as text.
fn lease(subnet: &'static str, host: u8) -> (&'static str, Lease) {
    (subnet, Lease::new(net(subnet), ([10, 168, 0, host], 8285)))
}

fn ours() -> (&'static str, Lease) {
    lease("100.96.1.0/24", 2)
}

fn set(subnet: &str, host: u8) -> RouteChange {
    RouteChange::Set(Route::new(net(subnet), ([10, 168, 0, host], 8285)))
}

fn delete(subnet: &str) -> RouteChange {
    RouteChange::Delete(net(subnet))
}

fn snapshot<const N: usize>(leases: [(&'static str, Lease); N]) -> LeaseEvent<&'static str> {
    LeaseEvent::Snapshot(leases.to_vec())
}

fn added((key, lease): (&'static str, Lease)) -> LeaseEvent<&'static str> {
    LeaseEvent::Added { key, lease }
}

/// Returns a reconciler after this list at second 0, with its changes drained.
fn listed<const N: usize>(leases: [(&'static str, Lease); N]) -> Reconciler<&'static str> {
    let mut reconciler = Reconciler::new(&host());
    reconciler.handle_event(SOURCE, snapshot(leases), at(0));
    drop((reconciler.take_changes(), reconciler.take_conflict_changes()));
    reconciler
}

fn routes(reconciler: &Reconciler<&'static str>) -> Vec<String> {
    reconciler.routes().map(|route| route.to_string()).collect()
}
