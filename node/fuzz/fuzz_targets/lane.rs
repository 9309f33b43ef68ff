//! The way of libFuzzer into the decoder `lane`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| roost::decoders::run("lane", bytes));
