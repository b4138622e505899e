//! See `bodies/offload/segment.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| bodies::offload::segment::run(bytes));
