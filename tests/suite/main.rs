//! Everything that is tested through the public interface, in one binary: `cargo test --test suite
//! kill` runs one part of it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "tests"
)]

mod api;
mod background;
mod catalog;
mod concurrency;
mod corpora;
mod corrupt;
mod crash;
mod disk;
mod full;
mod golden;
mod hostile;
mod kill;
mod measured;
mod model;
mod recall;
mod repair;
mod segments;
mod small;
mod waiting;
