//! The way of libFuzzer into the decoder `claims`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| roost::decoders::run("claims", bytes));
