//! GSO packets against a naive model, `docs/faults.md` (14 to 23) and the kernel itself.
#![expect(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod coalesce;
mod corpus;
mod inspect;
mod kernel;
mod kernel_v6;
mod no_alloc;
mod order;
mod segment;
mod v6;

use support::allocations::Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;
