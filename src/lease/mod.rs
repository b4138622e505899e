//! Which host owns which subnet, as others say: leases in, the fewest route changes out.
//!
//! ```text
//!  a source of leases              Reconciler                        RoutePublisher
//!  Snapshot, Added, Removed,   ┌──────────────────┐  take_changes  ┌────────────────┐
//!  SourceLost, and the time ──▶│ leases by source ├───────────────▶│ the next table │
//!                              │ claims by subnet │                └────────────────┘
//!  handle_timeout(now) ───────▶│ conflicts        ├──▶ take_conflict_changes, conflicts, stale_since
//!                              └──────────────────┘
//! ```
//!
//! Nothing here reads a clock, waits or talks to anybody: time is an argument (the [`Duration`](core::time::Duration) since
//! any fixed moment, by a clock that does not jump), and so are the events.
//!
//! # The loop
//! 1. Hand every event to [`Reconciler::handle_event`]; at [`Reconciler::poll_timeout`] call [`Reconciler::handle_timeout`].
//! 2. When no event waits, give [`Reconciler::take_changes`] to the publisher, once for all of them.
//! 3. Report [`Reconciler::take_conflict_changes`]. Where a source had to be asked again, [`Backoff`] says when, and whether that is
//!    news.
//! 4. A host that has to lease its own subnet tries [`allocation_order`] in their order, and renews as [`RenewalTimer`] says.
//!
//! `examples/static_leases.rs` is such a loop, with a file for a source.
//!
//! ```
//! use core::time::Duration;
//! use loden::lease::{Host, Lease, LeaseEvent, Reconciler, SourceId};
//! use loden::route::{Route, RouteChange};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let host = Host::new(
//!     "100.96.0.0/16".parse::<ipnet::Ipv4Net>()?,
//!     "100.96.1.0/24".parse::<ipnet::Ipv4Net>()?,
//!     ([10, 168, 0, 2], 8285),
//! );
//! let mut reconciler = Reconciler::new(host);
//! let source = SourceId::default();
//! let theirs = "100.96.2.0/24".parse::<ipnet::Ipv4Net>()?;
//! let list = vec![
//!     ("ours", Lease::new("100.96.1.0/24".parse::<ipnet::Ipv4Net>()?, ([10, 168, 0, 2], 8285))),
//!     ("theirs", Lease::new(theirs, ([10, 168, 0, 3], 8285))),
//! ];
//! reconciler.handle_event(source, LeaseEvent::Snapshot(list), Duration::ZERO);
//! assert_eq!(reconciler.take_changes(), [RouteChange::Set(Route::new(theirs, ([10, 168, 0, 3], 8285)))]);
//!
//! // A lease that moved while nobody watched: the next list shows it.
//! let list = vec![("theirs", Lease::new(theirs, ([10, 168, 0, 4], 8285)))];
//! reconciler.handle_event(source, LeaseEvent::Snapshot(list), Duration::from_secs(60));
//! assert_eq!(reconciler.take_changes(), [RouteChange::Set(Route::new(theirs, ([10, 168, 0, 4], 8285)))]);
//! # Ok(())
//! # }
//! ```
//!
//! # What becomes of a lease
//! Routes and conflicts depend on the leases that are held and on nothing else: not on the order in which they came. So every
//! host that sees the same leases decides alike, and a lease that had to stand back gets its route as soon as what was in its
//! way is gone.
//!
//! | the lease | its route | the conflict |
//! | --- | --- | --- |
//! | our subnet, our address | none: packets for it stay here | none |
//! | our subnet or a part of it, another's address | none | [`Refusal::OwnSubnet`] |
//! | a next hop or subnet that no table takes | none | [`Refusal::Unroutable`] |
//! | a subnet that is no part of the overlay network | none: the kernel sends us nothing for it | [`Refusal::OutsideOverlay`] |
//! | another subnet, our address | none | [`Refusal::OwnAddress`] |
//! | a next hop inside the overlay network | none: it would need the tunnel to reach the tunnel | [`Refusal::NextHopInOverlay`] |
//! | a subnet that others claim for another host | that of the lowest [`LeaseId`]; leases that are refused do not compete | [`Conflict::Duplicate`] |
//! | a subnet inside another's | both stay, the longest match decides | [`Conflict::Overlap`] |
//! | one of several subnets of one host | all stay: the host alone knows which it serves | [`Conflict::SharedNextHop`] |

mod allocate;
mod backoff;
mod claims;
mod conflict;
mod event;
#[cfg(feature = "flannel")]
pub mod flannel;
mod host;
mod range;
mod reconciler;
mod renewal_timer;
mod source;

pub use allocate::{AllocateError, Held, Step, allocation_order};
pub use backoff::{Backoff, Retry};
pub use conflict::{Conflict, ConflictChange, ConflictCounts, Refusal};
pub use event::{Lease, LeaseEvent, LeaseId, SourceId};
pub use host::Host;
pub use range::{RangeEnd, RangeError, SubnetRange};
pub use reconciler::{Counters, Reconciler};
pub use renewal_timer::RenewalTimer;
