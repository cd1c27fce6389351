//! Whether the recall that is asked for is reached: cases, how they are built, and how they are judged.

pub mod cases;
pub mod idle;
pub mod judge;
pub mod lives;
pub mod npy;
pub mod report;
pub mod truth;
pub mod worlds;
