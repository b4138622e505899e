//! The core against the conformance list (R numbers) and the list of faults, packet by packet, and against a model.
#![expect(clippy::unwrap_used, reason = "a test may fail by panicking")]

#[path = "../support/allocations.rs"]
mod allocations;
#[path = "../../fuzz/bodies/mod.rs"]
mod bodies;
#[path = "../support/corpus.rs"]
mod seeds;
#[path = "../support/mod.rs"]
mod support;

mod addresses;
mod corpus;
mod counters;
mod ecn;
mod fragments;
mod header;
mod icmp;
mod icmp_rules;
mod model;
mod no_alloc;
mod order;
mod path_mtu;
mod routes;
mod settings;
mod size;
mod stateful;
mod ttl;
mod tunnel;
