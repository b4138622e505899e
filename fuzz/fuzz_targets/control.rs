//! See `bodies/control.rs`.
#![no_main]
#![allow(dead_code, reason = "each target uses a part of what they share")]

#[path = "../bodies/mod.rs"]
mod bodies;
#[path = "../../tests/support/mod.rs"]
mod support;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| bodies::control::run(bytes));
