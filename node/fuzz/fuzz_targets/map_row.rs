//! The way of libFuzzer into the decoder `map_row`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| roost::decoders::run("map_row", bytes));
