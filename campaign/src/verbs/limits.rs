//! Full disks, few descriptors, few maps, little address space.

use clap::Args;

/// Full disks, few descriptors, few maps, little address space.
#[derive(Debug, Args)]
pub struct Limits {}

impl Limits {
    pub fn run(&self) -> Result<String, String> {
        Err("is not built yet".into())
    }
}
