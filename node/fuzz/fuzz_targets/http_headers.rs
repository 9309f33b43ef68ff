//! The way of libFuzzer into the decoder `http_headers`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| roost::decoders::run("http_headers", bytes));
