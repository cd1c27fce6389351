//! The kernels on any bytes.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| cellardb_campaign::fuzz::run("kernels", data));
