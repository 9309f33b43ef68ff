//! The way of libFuzzer into the decoder `event_id`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| roost::decoders::run("event_id", bytes));
