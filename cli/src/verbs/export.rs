//! `export`: the live rows as a NumPy array.

use crate::failure::Failure;
use crate::npy;
use crate::output::{Console, grouped, shown};
use crate::target;
use clap::Args;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Write the live rows, in insertion order, to a .npy file of f32.
#[derive(Debug, Args)]
pub(crate) struct Export {
    /// Directory of the index.
    dir: PathBuf,
    /// The file to write; an existing one is replaced.
    out: PathBuf,
    /// Also write the ids of the rows, as a .npy file of i64 with one dimension.
    #[arg(long, value_name = "FILE")]
    ids: Option<PathBuf>,
}

impl Export {
    pub(crate) fn run(&self, console: &Console) -> Result<(), Failure> {
        let index = super::stored().open_read_only(&self.dir)?;
        let outputs: Vec<&Path> = [Some(&self.out), self.ids.as_ref()]
            .into_iter()
            .flatten()
            .map(PathBuf::as_path)
            .collect();
        target::check(&self.dir, &[], &outputs)?;
        let start = Instant::now();
        let ids = index.ids();
        let rows = ids.len() as u64;
        let bar = console.bar(Some(rows), "exporting");
        let mut out = npy::Writer::create(&self.out, "<f4", rows, Some(index.dim() as u64))?;
        for id in &ids {
            let vector = index.get(*id)?.ok_or_else(|| {
                Failure::file(&self.dir, format!("row {id} is listed but cannot be read"))
            })?;
            out.floats(&vector)?;
            bar.inc(1);
        }
        out.finish()?;
        bar.finish_and_clear();
        if let Some(path) = &self.ids {
            let mut out = npy::Writer::create(path, "<i8", rows, None)?;
            ids.iter().try_for_each(|id| out.integers(&[*id as i64]))?;
            out.finish()?;
        }
        let seconds = start.elapsed().as_secs_f64();
        let ids = self.ids.as_deref().map(shown);
        let done = json!({ "rows": rows, "out": shown(&self.out), "ids": ids, "seconds": seconds });
        console.result(&done, |_| {
            format!("{} rows written to {}, {seconds:.1} s", grouped(rows), self.out.display())
        })
    }
}
