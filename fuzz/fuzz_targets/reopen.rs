//! Operations with cuts, faults and damage, then reopened.
#![no_main]

libfuzzer_sys::fuzz_target!(
    init: cellardb_campaign::fuzz::redb_may_panic(),
    |data: &[u8]| cellardb_campaign::fuzz::run("reopen", data)
);
