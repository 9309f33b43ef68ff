//! The way of libFuzzer into the decoder `jwks`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| roost::decoders::run("jwks", bytes));
