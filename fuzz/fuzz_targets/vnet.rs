//! See `bodies/offload/vnet.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| bodies::offload::vnet::run(bytes));
