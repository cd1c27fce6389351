//! Operations against the model.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| cellardb_campaign::fuzz::run("operations", data));
