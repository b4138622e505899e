//! See `bodies/stateful/mod.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| bodies::stateful::run(bytes));
