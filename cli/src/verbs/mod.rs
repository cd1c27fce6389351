//! The verbs of the command line, a file each or a few that belong together.

pub(crate) mod bench;
pub(crate) mod create;
pub(crate) mod export;
pub(crate) mod import;
pub(crate) mod inspect;
pub(crate) mod maintain;
pub(crate) mod repair;
pub(crate) mod rows;
pub(crate) mod search;

use crate::output::{Console, grouped};
use cellardb::{Index, Kind, Maintenance, Metric, Options, Progress, Reads, Stats};
use clap::{Args, ValueEnum};
use indicatif::ProgressBar;
use std::path::Path;

/// A metric as it is spelled on the command line.
pub(crate) fn metric_name(metric: Metric) -> &'static str {
    match metric {
        Metric::L2 => "l2",
        Metric::InnerProduct => "ip",
        Metric::Cosine => "cosine",
        _ => "unknown",
    }
}

/// A kind as it is spelled on the command line.
pub(crate) fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Auto => "auto",
        Kind::Exact => "exact",
        Kind::IvfFlat => "ivf-flat",
        Kind::IvfPq => "ivf-pq",
        _ => "unknown",
    }
}

/// Options of a process that does one thing and ends: maintenance when the verb says so, and the
/// steps of long work shown on `bar`.
fn manual(bar: &ProgressBar) -> Options {
    let bar = bar.clone();
    Options::stored().maintenance(Maintenance::Manual).progress(move |step: Progress| {
        bar.set_message(step.stage);
        bar.set_length(step.total);
        bar.set_position(step.done);
    })
}

/// How the files of an index are read, of all verbs that open one.
#[derive(Debug, Clone, Copy, Args)]
struct Reading {
    /// Read files through maps, or copy what is read and verify it each time: where others write to them,
    /// on the file system of a network, where memory is limited (ulimit -v).
    #[arg(long, value_enum, value_name = "HOW", default_value = "map")]
    reads: ReadsName,
}

/// A way to read as it is spelled on the command line.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum ReadsName {
    Map,
    Copy,
}

impl Reading {
    fn apply(self, options: Options) -> Options {
        options.reads(match self.reads {
            ReadsName::Map => Reads::Map,
            ReadsName::Copy => Reads::Copy,
        })
    }

    fn open_read_only(self, dir: &Path) -> cellardb::Result<Index> {
        self.apply(Options::stored()).open_read_only(dir)
    }
}

/// Says that searches compare every row where training would spare them that.
fn note_untrained(console: &Console, dir: &Path, stats: &Stats) {
    if stats.kind != Kind::Exact && stats.trained_rows == 0 && stats.rows >= stats.train_at {
        let (rows, dir) = (grouped(stats.rows), dir.display());
        console.note(&format!(
            "the index has {rows} rows and is not trained: every one is compared; \
             `cellardb train {dir}` makes searches quick"
        ));
    }
}

/// A number of bytes: `65536`, `64K`, `512M`, `2G`.
fn parse_bytes(text: &str) -> Result<usize, String> {
    let (digits, shift) = match text.char_indices().last() {
        Some((at, 'k' | 'K')) => (&text[..at], 10),
        Some((at, 'm' | 'M')) => (&text[..at], 20),
        Some((at, 'g' | 'G')) => (&text[..at], 30),
        _ => (text, 0),
    };
    let number: usize = digits.parse().map_err(|e| format!("{e}; such as 65536, 512M or 2G"))?;
    number.checked_mul(1 << shift).ok_or_else(|| "too large".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_read_with_and_without_a_unit() {
        assert_eq!(parse_bytes("4096"), Ok(4096));
        assert_eq!(parse_bytes("3K"), Ok(3072));
        assert_eq!(parse_bytes("512m"), Ok(512 << 20));
        assert_eq!(parse_bytes("2G"), Ok(2 << 30));
        for bad in ["", "M", "-1", "1.5G", "99999999999G", "4T"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
    }
}
