//! See `bodies/lease/config.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| bodies::lease::config::run(bytes));
