//! `get` and `remove`: rows by their ids.

use super::manual;
use crate::failure::Failure;
use crate::output::{Console, grouped};
use clap::Args;
use indicatif::ProgressBar;
use serde_json::json;
use std::path::PathBuf;

/// Print vectors by their ids.
#[derive(Debug, Args)]
pub(crate) struct Get {
    /// Directory of the index.
    dir: PathBuf,
    /// Ids of rows.
    #[arg(required = true)]
    ids: Vec<usize>,
}

impl Get {
    pub(crate) fn run(&self, console: &Console) -> Result<(), Failure> {
        let index = super::stored().open_read_only(&self.dir)?;
        let mut missing = Vec::new();
        for id in &self.ids {
            let vector = index.get(*id)?;
            if vector.is_none() {
                missing.push(id.to_string());
            }
            console.result(&json!({ "id": id, "vector": vector }), |_| match &vector {
                Some(vector) => format!("{id}  {vector:?}"),
                None => format!("{id}  none"),
            })?;
        }
        if missing.is_empty() {
            return Ok(());
        }
        Err(Failure::file(&self.dir, format!("no row {}", missing.join(", "))))
    }
}

/// Remove rows by their ids; the space comes back with compact.
#[derive(Debug, Args)]
pub(crate) struct Remove {
    /// Directory of the index.
    dir: PathBuf,
    /// Ids of rows. Those that are not there are passed over.
    #[arg(required = true)]
    ids: Vec<usize>,
}

impl Remove {
    pub(crate) fn run(&self, console: &Console) -> Result<(), Failure> {
        let index = manual(&ProgressBar::hidden()).open(&self.dir)?;
        let removed = index.remove_many(&self.ids)?;
        index.close()?;
        console.result(&json!({ "asked": self.ids.len(), "removed": removed }), |_| {
            format!("{} of {} rows removed", grouped(removed as u64), self.ids.len())
        })
    }
}
