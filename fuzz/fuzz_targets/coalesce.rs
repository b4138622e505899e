//! See `bodies/offload/coalesce.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| bodies::offload::coalesce::run(bytes));
