//! The bytes of the format: what is written is read back, and nothing else is.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test that overflows, indexes or unwraps wrongly fails, as it should"
)]

mod block;
mod catalog;
mod common;
mod damage;
mod frame;
mod golden;
mod hostile;
mod identity;
mod row;
