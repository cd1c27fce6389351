//! Power cuts at every operation of generated workloads, on the simulated disk.

use clap::Args;

/// Power cuts at every operation of generated workloads, on the simulated disk.
#[derive(Debug, Args)]
pub struct Cuts {}

impl Cuts {
    pub fn run(&self) {}
}
