//! See `bodies/lease/value.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| bodies::lease::value::run(bytes));
