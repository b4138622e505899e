//! See `bodies/lease/subnet_env.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| bodies::lease::subnet_env::run(bytes));
