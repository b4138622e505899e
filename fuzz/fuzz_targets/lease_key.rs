//! See `bodies/lease/key.rs`.
#![no_main]
#![allow(dead_code, reason = "each target uses a part of what they share")]

#[path = "../bodies/lease/mod.rs"]
mod bodies;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| bodies::key::run(bytes));
