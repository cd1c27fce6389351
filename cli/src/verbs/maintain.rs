//! `train`, `calibrate` and `compact`: long work on the whole index.

use super::{manual, parse_bytes};
use crate::failure::Failure;
use crate::output::{Console, bytes, grouped};
use crate::vectors::{Input, VectorFile};
use cellardb::Kind;
use clap::Args;
use serde_json::json;
use std::path::PathBuf;
use std::time::Instant;

/// Train on the rows that are there, build the lists anew, measure the recall settings.
#[derive(Debug, Args)]
pub(crate) struct Train {
    /// Directory of the index.
    dir: PathBuf,
    /// Memory to use, in bytes; K, M and G are understood.
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes, default_value = "512M")]
    memory: usize,
}

impl Train {
    pub(crate) fn run(&self, console: &Console) -> Result<(), Failure> {
        let bar = console.bar(None, "training");
        let index = manual(&bar).memory(self.memory).open(&self.dir)?;
        let start = Instant::now();
        index.train()?;
        bar.finish_and_clear();
        let (stats, seconds) = (index.stats(), start.elapsed().as_secs_f64());
        index.close()?;
        let done = json!({
            "rows": stats.rows, "lists": stats.lists, "cells": stats.cells, "seconds": seconds,
        });
        console.result(&done, |_| {
            let (rows, lists, cells) =
                (grouped(stats.rows), grouped(stats.lists), grouped(stats.cells));
            match stats.lists {
                0 if stats.kind == Kind::Exact => "an exact index is not trained".to_owned(),
                0 => format!("not trained: {rows} rows are fewer than --train-at"),
                _ => {
                    format!("trained on {rows} rows: {lists} lists, {cells} cells, {seconds:.1} s")
                }
            }
        })
    }
}

/// Measure what each recall takes on these queries, instead of on rows: for queries that are not like the rows.
///
/// Texts that ask for images, or questions for answers, lie apart from the rows, and find fewer of their neighbours
/// than was measured. A few hundred queries are enough; 4,000 are looked at, and 1,000 are stored in the index.
#[derive(Debug, Args)]
#[command(after_help = CALIBRATE)]
pub(crate) struct Calibrate {
    /// Directory of the index.
    dir: PathBuf,
    /// File of query vectors, in any format that import reads; - for standard input.
    file: PathBuf,
    #[command(flatten)]
    input: Input,
}

const CALIBRATE: &str = "\
Example:
  cellardb calibrate images texts.npy";

/// Queries that are looked at.
const CALIBRATED: u64 = 4_000;

impl Calibrate {
    pub(crate) fn run(&self, console: &Console) -> Result<(), Failure> {
        let file = VectorFile::open_whole(&self.file, self.input)?;
        let bar = console.bar(None, "measuring recall");
        let index = manual(&bar).open(&self.dir)?;
        file.expect_dim(index.dim())?;
        let start = Instant::now();
        let queries = file.rows().unwrap_or(0).min(CALIBRATED);
        let given = file.floats(0, queries as usize)?;
        index.calibrate(&given).map_err(|error| file.blame(error, 0))?;
        bar.finish_and_clear();
        let (stats, seconds) = (index.stats(), start.elapsed().as_secs_f64());
        index.close()?;
        let settings = super::inspect::settings(&stats);
        let done = json!({ "queries": queries, "settings": settings, "seconds": seconds });
        console.result(&done, |_| {
            if stats.settings.is_empty() {
                return "not trained: every search compares with all rows, its recall is 1"
                    .to_owned();
            }
            format!("measured on {} queries, {seconds:.1} s", grouped(queries))
        })
    }
}

/// Drop removed rows and give their space back.
#[derive(Debug, Args)]
pub(crate) struct Compact {
    /// Directory of the index.
    dir: PathBuf,
    /// Memory to use, in bytes; K, M and G are understood.
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes, default_value = "512M")]
    memory: usize,
}

impl Compact {
    pub(crate) fn run(&self, console: &Console) -> Result<(), Failure> {
        let bar = console.bar(None, "compacting");
        let index = manual(&bar).memory(self.memory).open(&self.dir)?;
        let start = Instant::now();
        let compacted = index.compact()?;
        bar.finish_and_clear();
        let seconds = start.elapsed().as_secs_f64();
        index.close()?;
        let done = json!({
            "rows": compacted.rows, "bytes": compacted.bytes, "seconds": seconds,
        });
        console.result(&done, |_| {
            let (rows, given_back) = (grouped(compacted.rows), bytes(compacted.bytes));
            format!("{rows} removed rows dropped, {given_back} given back, {seconds:.1} s")
        })
    }
}
