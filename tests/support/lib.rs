//! Helpers that the tests, the benchmarks and the fuzz targets share. Nothing here uses loden's own parsing or
//! arithmetic.
#![expect(
    missing_docs,
    clippy::unwrap_used,
    reason = "helpers of tests: names say what they do, and a failure is a panic"
)]

pub mod allocations;
pub mod churn;
pub mod corpus;
pub mod fragments;
pub mod host;
pub mod icmp;
pub mod leases;
pub mod model;
pub mod packet;
pub mod packet_v6;
pub mod scenario;
