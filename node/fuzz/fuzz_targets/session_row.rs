//! The way of libFuzzer into the decoder `session_row`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| roost::decoders::run("session_row", bytes));
