//! See `bodies/path_mtu.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| bodies::path_mtu::run(bytes));
