//! GSO packets against a naive model, the list of faults (14 to 23) and the kernel itself.
#![expect(clippy::unwrap_used, reason = "a test may fail by panicking")]

#[path = "../support/allocations.rs"]
mod allocations;
#[path = "../../fuzz/bodies/offload/mod.rs"]
mod bodies;
#[path = "../support/corpus.rs"]
mod seeds;
#[expect(dead_code, reason = "what the tests of the core share is more than is needed here")]
#[path = "../support/mod.rs"]
mod support;

mod coalesce;
mod corpus;
mod inspect;
mod kernel;
mod no_alloc;
mod order;
mod segment;
