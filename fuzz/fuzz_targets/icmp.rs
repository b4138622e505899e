//! See `bodies/icmp.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| bodies::icmp::run(bytes));
