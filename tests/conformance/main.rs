//! The core against `docs/conformance.md` (R numbers) and `docs/faults.md`, packet by packet, and against a model.
#![expect(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod addresses;
mod corpus;
mod counters;
mod ecn;
mod fragments;
mod header;
mod icmp;
mod icmp_rules;
mod ipv6;
mod model;
mod model_v6;
mod no_alloc;
mod order;
mod path_mtu;
mod path_mtu_v6;
mod routes;
mod seeds_v6;
mod settings;
mod size;
mod stateful;
mod ttl;
mod tunnel;

use support::allocations::Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;
