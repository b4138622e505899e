//! See `bodies/forward.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| bodies::forward::run(bytes));
