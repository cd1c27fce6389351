//! Every bit of every byte of small indexes, and structural damage.

use clap::Args;

/// Every bit of every byte of small indexes, and structural damage.
#[derive(Debug, Args)]
pub struct Damage {}

impl Damage {
    pub fn run(&self) -> Result<String, String> {
        Err("is not built yet".into())
    }
}
