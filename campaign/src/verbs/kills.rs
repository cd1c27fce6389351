//! A real process, killed with SIGKILL again and again.

use clap::Args;

/// A real process, killed with SIGKILL again and again.
#[derive(Debug, Args)]
pub struct Kills {}

impl Kills {
    pub fn run(&self) -> Result<String, String> {
        Err("is not built yet".into())
    }
}
