//! The way of libFuzzer into the decoder `hello`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| roost::decoders::run("hello", bytes));
