//! The way of libFuzzer into the decoder `deflated`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| roost::decoders::run("deflated", bytes));
