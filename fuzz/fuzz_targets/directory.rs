//! A whole directory, patched, on the simulated disk.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| cellardb_campaign::fuzz::directory(data));
