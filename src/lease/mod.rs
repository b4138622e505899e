//! Leases: which host owns which subnet, turned into the minimal route changes.
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
//! This module does no I/O and reads no clock. Events and time are arguments. The time is the
//! [`Duration`](core::time::Duration) since any fixed moment, by a clock that does not jump.
//!
//! # The loop
//! 1. Pass every event to [`Reconciler::handle_event`]. At [`Reconciler::poll_timeout`] call
//!    [`Reconciler::handle_timeout`].
//! 2. When no event is waiting, pass [`Reconciler::take_changes`] to the publisher, once for all of them.
//! 3. Report [`Reconciler::take_conflict_changes`]. After a failure of a source, [`Backoff`] gives the time of the next
//!    attempt, and tells whether to log the failure.
//! 4. A host that leases its own subnet follows the steps of [`allocation_order`] and renews its lease by
//!    [`RenewalTimer`].
//!
//! `examples/static_leases.rs` is such a loop with a file as its source.
//!
//! ```
//! use core::time::Duration;
//! use loden::Host;
//! use loden::lease::{Lease, LeaseEvent, Reconciler, SourceId};
//! use loden::route::{Route, RouteChange};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let host = Host::new(
//!     "100.96.0.0/16".parse::<ipnet::Ipv4Net>()?,
//!     "100.96.1.0/24".parse::<ipnet::Ipv4Net>()?,
//!     ([10, 168, 0, 2], 8285),
//! )?;
//! let mut reconciler = Reconciler::new(&host);
//! let source = SourceId::default();
//! let theirs = "100.96.2.0/24".parse::<ipnet::Ipv4Net>()?;
//! let list = vec![
//!     ("ours", Lease::new("100.96.1.0/24".parse::<ipnet::Ipv4Net>()?, ([10, 168, 0, 2], 8285))),
//!     ("theirs", Lease::new(theirs, ([10, 168, 0, 3], 8285))),
//! ];
//! reconciler.handle_event(source, LeaseEvent::Snapshot(list), Duration::ZERO);
//! assert_eq!(reconciler.take_changes(), [RouteChange::Set(Route::new(theirs, ([10, 168, 0, 3], 8285)))]);
//!
//! // A lease that moved while the source was unreachable: the next list shows it.
//! let list = vec![("theirs", Lease::new(theirs, ([10, 168, 0, 4], 8285)))];
//! reconciler.handle_event(source, LeaseEvent::Snapshot(list), Duration::from_secs(60));
//! assert_eq!(reconciler.take_changes(), [RouteChange::Set(Route::new(theirs, ([10, 168, 0, 4], 8285)))]);
//! # Ok(())
//! # }
//! ```
//!
//! # Routes and conflicts
//! Routes and conflicts depend only on the current leases, not on the order of their events. So every host that sees
//! the same leases decides the same. A lease without a route gets it as soon as the obstacle is gone.
//!
//! | lease | route | conflict |
//! | --- | --- | --- |
//! | own subnet, own address | none: packets for it stay on this host | none |
//! | another subnet, own address | none: it is a further subnet of this host | none |
//! | own subnet or a part of it, another address | none | [`Refusal::OwnSubnet`] |
//! | a next hop or subnet that no table accepts | none | [`Refusal::Unroutable`] |
//! | a subnet outside the overlay network | none: the overlay route does not cover it | [`Refusal::OutsideOverlay`] |
//! | a subnet around the own one, own address | none | [`Refusal::OwnAddress`] |
//! | a next hop inside the overlay network | none: the tunnel would carry its own packets | [`Refusal::NextHopInOverlay`] |
//! | a subnet that others claim for another host | that of the lowest [`LeaseId`]; refused leases do not compete | [`Conflict::Duplicate`] |
//! | a subnet inside another's | both stay, the longest match decides | [`Conflict::Overlap`] |
//! | one of several subnets of one host | all stay: only the host knows which it serves | [`Conflict::SharedNextHop`] |

mod allocate;
mod backoff;
mod claims;
mod conflict;
mod event;
#[cfg(feature = "flannel")]
pub mod flannel;
mod identity;
mod range;
mod reconciler;
mod renewal_timer;
mod source;

pub use allocate::{AllocateError, Held, Step, allocation_order};
pub use backoff::{Backoff, Retry};
pub use conflict::{Conflict, ConflictChange, ConflictCounts, Refusal};
pub use event::{Lease, LeaseEvent, LeaseId, SourceId};
#[cfg(feature = "sim")]
pub(crate) use identity::Identity;
pub use range::{RangeEnd, RangeError, SubnetRange};
pub use reconciler::{Counters, Reconciler};
pub use renewal_timer::RenewalTimer;
