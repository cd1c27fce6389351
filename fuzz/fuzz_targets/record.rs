//! The values of the catalog, headers, rows and `LOCK`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| cellardb_campaign::fuzz::run("record", data));
