//! A real file system, shut down under a running process (needs root and a loop device).

use clap::Args;

/// A real file system, shut down under a running process (needs root and a loop device).
#[derive(Debug, Args)]
pub struct Kernel {}

impl Kernel {
    pub fn run(&self) -> Result<String, String> {
        Err("is not built yet".into())
    }
}
