//! The verbs of the command line, a file each or a few that belong together.

pub(crate) mod bench;
pub(crate) mod create;
pub(crate) mod export;
pub(crate) mod import;
pub(crate) mod inspect;
pub(crate) mod maintain;
pub(crate) mod repair;
mod resume;
pub(crate) mod rows;
pub(crate) mod search;

use crate::output::{Console, bounded, grouped, unbounded};
use cellardb::{Kind, Maintenance, Metric, Options, Progress, Stats};
use indicatif::ProgressBar;
use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

/// How long a verb waits for the lock of its index.
static WAIT: OnceLock<Duration> = OnceLock::new();

/// Sets how long verbs wait for the lock of their index.
pub(crate) fn wait_for_locks(wait: Duration) {
    let _ = WAIT.set(wait);
}

/// Options of every verb that opens an index.
fn stored() -> Options {
    Options::stored().lock_wait(WAIT.get().copied().unwrap_or_default())
}

/// A time in seconds: `3`, `0.5`.
pub(crate) fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|e| format!("{e}; such as 3 or 0.5"))?;
    Duration::try_from_secs_f64(seconds).map_err(|e| e.to_string())
}

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
    let (bar, stage) = (bar.clone(), Mutex::new(("", 0)));
    stored().maintenance(Maintenance::Manual).progress(move |step: Progress| {
        let mut stage = stage.lock().unwrap_or_else(PoisonError::into_inner);
        let now = (step.stage, step.total);
        if *stage != now {
            *stage = now;
            match step.total {
                0 => unbounded(&bar, step.stage),
                total => bounded(&bar, step.stage, total),
            }
        }
        bar.set_position(step.done);
    })
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
