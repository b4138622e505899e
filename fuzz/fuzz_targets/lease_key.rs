//! See `bodies/lease/key.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| bodies::lease::key::run(bytes));
