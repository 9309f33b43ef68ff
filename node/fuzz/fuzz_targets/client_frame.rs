//! The way of libFuzzer into the decoder `client_frame`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| roost::decoders::run("client_frame", bytes));
