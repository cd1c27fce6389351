//! Other processes that truncate and replace the files under a query loop.

use clap::Args;

/// Other processes that truncate and replace the files under a query loop.
#[derive(Debug, Args)]
pub struct Hostile {}

impl Hostile {
    pub fn run(&self) -> Result<String, String> {
        Err("is not built yet".into())
    }
}
