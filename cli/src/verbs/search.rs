//! `search`: the nearest rows of the vectors in a file.

use super::note_untrained;
use crate::failure::Failure;
use crate::npy;
use crate::output::{Console, grouped, shown};
use crate::target;
use crate::vectors::{Input, VectorFile};
use cellardb::QueryMany;
use clap::Args;
use serde_json::json;
use std::path::PathBuf;
use std::time::Instant;

/// Queries that are in memory, and searched on all processors, at once.
const BATCH: u64 = 1024;

/// Find the nearest rows of each vector in a file.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Search {
    /// Directory of the index.
    dir: PathBuf,
    /// File of query vectors, in any format that import reads; - for standard input.
    file: PathBuf,
    #[command(flatten)]
    input: Input,
    /// Neighbours to find for each query.
    #[arg(short, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    k: u64,
    /// Recall to aim at, 0 to 1, by what the index has measured on its own rows.
    #[arg(long, value_name = "R", value_parser = parse_recall, conflicts_with_all = ["probes", "rerank"])]
    recall: Option<f32>,
    /// Cells to scan; more only if they hold fewer than K rows.
    #[arg(long, value_name = "N", value_parser = parse_count)]
    probes: Option<usize>,
    /// Candidates to compare exactly.
    #[arg(long, value_name = "N", value_parser = parse_count)]
    rerank: Option<usize>,
    /// Read at most so many places of lists and rows for each query, however far the recall would go.
    #[arg(long, value_name = "N", value_parser = parse_reads)]
    max_reads: Option<usize>,
    /// Compare with every row.
    #[arg(long, conflicts_with_all = ["recall", "probes", "rerank", "max_reads"])]
    exact: bool,
    /// Write the ids to a .npy file of i64, a row per query, -1 for none; prints a summary instead.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

const EXAMPLES: &str = "\
Examples:
  cellardb search words queries.npy -k 10 --recall 0.99
  cellardb search words queries.npy --exact -k 100 --out truth.npy
  cat query.npy | cellardb search words - --json";

/// A recall on the command line.
pub(crate) fn parse_recall(text: &str) -> Result<f32, String> {
    match text.parse() {
        Ok(recall) if recall > 0.0 && recall <= 1.0 => Ok(recall),
        _ => Err("a number above 0 and up to 1".to_owned()),
    }
}

/// A bound on reads on the command line.
pub(crate) fn parse_reads(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(reads) if reads > 1 => Ok(reads),
        _ => Err("a number, 2 or more".to_owned()),
    }
}

fn parse_count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count) if count > 0 => Ok(count),
        _ => Err("a number, 1 or more".to_owned()),
    }
}

impl Search {
    pub(crate) fn run(&self, console: &Console) -> Result<(), Failure> {
        let file = VectorFile::open_whole(&self.file, self.input)?;
        let index = super::stored().open_read_only(&self.dir)?;
        file.expect_dim(index.dim())?;
        if !self.exact {
            note_untrained(console, &self.dir, &index.stats());
        }
        if let Some(out) = &self.out {
            target::check(&self.dir, &[&self.file], &[out])?;
        }
        let (queries, k) = (file.rows().unwrap_or(0), self.k as usize);
        let mut out = match &self.out {
            Some(path) => Some(npy::Writer::create(path, "<i8", queries, Some(self.k))?),
            None => None,
        };
        let bar = console.bar(Some(queries), "searching");
        let start = Instant::now();
        for first in (0..queries).step_by(BATCH as usize) {
            let batch = file.floats(first, BATCH.min(queries - first) as usize)?;
            let found = self.with_settings(index.query_many(&batch)).run();
            let found = found.map_err(|error| file.blame(error, first))?;
            for (query, hits) in (first..).zip(found) {
                match &mut out {
                    Some(out) => {
                        let ids = hits.iter().map(|(id, _)| *id as i64);
                        let padded: Vec<i64> = ids.chain(std::iter::repeat(-1)).take(k).collect();
                        out.integers(&padded)?;
                    }
                    None => print(console, query, &hits)?,
                }
                bar.inc(1);
            }
        }
        bar.finish_and_clear();
        let seconds = start.elapsed().as_secs_f64();
        let (Some(out), Some(path)) = (out, &self.out) else { return Ok(()) };
        out.finish()?;
        let done =
            json!({ "queries": queries, "k": self.k, "seconds": seconds, "out": shown(path) });
        console.result(&done, |_| {
            format!("{} queries in {seconds:.3} s, ids written", grouped(queries))
        })
    }

    fn with_settings<'a>(&self, mut query: QueryMany<'a>) -> QueryMany<'a> {
        query = query.k(self.k as usize);
        if let Some(recall) = self.recall {
            query = query.recall(recall);
        }
        if let Some(probes) = self.probes {
            query = query.probes(probes);
        }
        if let Some(rerank) = self.rerank {
            query = query.rerank(rerank);
        }
        if let Some(reads) = self.max_reads {
            query = query.max_reads(reads);
        }
        if self.exact { query.exact() } else { query }
    }
}

fn print(console: &Console, query: u64, hits: &[(usize, f32)]) -> Result<(), Failure> {
    let (ids, distances): (Vec<_>, Vec<_>) = hits.iter().copied().unzip();
    let line = json!({ "query": query, "ids": ids, "distances": distances });
    console.result(&line, |_| {
        let hits: Vec<_> = hits.iter().map(|(id, d)| format!("{id} ({d:.4})")).collect();
        format!("{query:>6}  {}", hits.join("  "))
    })
}
