//! A frame of an inverted list.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| cellardb_campaign::fuzz::run("frame", data));
