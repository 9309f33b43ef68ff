//! The way of libFuzzer into the decoder `environment`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| roost::decoders::run("environment", bytes));
