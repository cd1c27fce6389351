//! A whole directory behind mended checksums.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| cellardb_campaign::fuzz::run("directory", data));
