//! Every system call of a real process fails in turn (needs strace).

use clap::Args;

/// Every system call of a real process fails in turn (needs strace).
#[derive(Debug, Args)]
pub struct Syscalls {}

impl Syscalls {
    pub fn run(&self) -> Result<String, String> {
        Err("is not built yet".into())
    }
}
