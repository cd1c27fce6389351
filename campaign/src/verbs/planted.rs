//! Plants one bug after the other and demands that a suite notices it.

use clap::Args;

/// Plants one bug after the other and demands that a suite notices it.
#[derive(Debug, Args)]
pub struct Planted {}

impl Planted {
    pub fn run(&self) -> Result<String, String> {
        Err("is not built yet".into())
    }
}
