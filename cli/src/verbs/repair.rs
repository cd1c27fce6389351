//! `repair`: all but the damaged part of an index.

use super::create::{How, MetricName};
use super::{manual, parse_bytes};
use crate::failure::Failure;
use crate::output::{Console, grouped, shown};
use cellardb::Repaired;
use clap::Args;
use serde_json::{Value, json};
use std::ops::Range;
use std::path::PathBuf;
use std::time::Instant;

/// Bring back all but the damaged part, and say which rows are lost.
///
/// Rows keep their ids, lists are trained anew, damaged files are kept under other names. Nothing is
/// changed if nothing is damaged. The options of `create` are for when the catalog that held them is
/// gone (while it is there they must be what it says); then the metric has to be given, and has to be
/// the right one: rows tell cosine from the others, but not l2 from ip, and with the wrong one every answer is
/// wrong from then on.
///
/// Files that are kept (*.damaged-N) are read by nothing but another repair. They take room, `compact`
/// leaves them, and they may be deleted.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Repair {
    /// Directory of the index.
    dir: PathBuf,
    /// How far apart two vectors are, when the catalog is gone. Rows do not tell l2 from ip.
    #[arg(long, value_enum)]
    metric: Option<MetricName>,
    /// Dimensions of the vectors, when every file that tells them is damaged.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    dim: Option<u16>,
    #[command(flatten)]
    how: How,
    /// Memory to use, in bytes; K, M and G are understood.
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes, default_value = "512M")]
    memory: usize,
}

const EXAMPLES: &str = "\
Examples:
  cellardb verify words || cellardb repair words
  cellardb repair words --metric cosine";

impl Repair {
    pub(crate) fn run(&self, console: &Console) -> Result<(), Failure> {
        let bar = console.bar(None, "repairing");
        let mut options = self.how.apply(manual(&bar)).memory(self.memory);
        if let Some(metric) = self.metric {
            options = options.metric(metric.into());
        }
        if let Some(dim) = self.dim {
            options = options.dim(usize::from(dim));
        }
        let start = Instant::now();
        let repaired = options.repair(&self.dir)?;
        bar.finish_and_clear();
        let seconds = start.elapsed().as_secs_f64();
        console.result(&as_json(&repaired, seconds), |_| as_text(&repaired, seconds))
    }
}

fn as_json(repaired: &Repaired, seconds: f64) -> Value {
    let ranges = |ranges: &[Range<usize>]| -> Vec<[usize; 2]> {
        ranges.iter().map(|range| [range.start, range.end]).collect()
    };
    let damage: Vec<Value> = repaired
        .damage
        .iter()
        .map(|d| json!({ "path": shown(&d.path), "offset": d.offset, "what": d.what }))
        .collect();
    let aside: Vec<String> = repaired.aside.iter().map(|path| shown(path)).collect();
    json!({
        "damage": damage,
        "rows": repaired.rows,
        "lost": ranges(&repaired.lost),
        "lost_rows": count(&repaired.lost),
        "unknown": ranges(&repaired.unknown),
        "lists": repaired.lists,
        "catalog": repaired.catalog,
        "aside": aside,
        "notes": repaired.notes,
        "seconds": seconds,
    })
}

/// What becomes of files that are kept.
const ASIDE: &str = "what is kept aside (*.damaged-N) is only read by another repair; it may be deleted once \
                     the index is as it should be";
/// What to do about lost rows.
const AGAIN: &str = "import --resume counts lost rows as inserted; import --append (--skip 0) adds all rows of its files \
                     again, under new ids";

fn as_text(repaired: &Repaired, seconds: f64) -> String {
    if repaired.damage.is_empty() {
        return format!("nothing is damaged: {} rows, nothing changed", grouped(repaired.rows));
    }
    let mut lines: Vec<String> = repaired
        .damage
        .iter()
        .map(|d| format!("{}: byte {}: {}", d.path.display(), d.offset, d.what))
        .collect();
    lines.extend(repaired.aside.iter().map(|path| format!("kept aside: {}", path.display())));
    if !repaired.aside.is_empty() {
        lines.push(ASIDE.to_owned());
    }
    lines.extend(repaired.notes.iter().cloned());
    for (ranges, what) in
        [(&repaired.lost, "rows lost"), (&repaired.unknown, "ids without a row, removed or lost")]
    {
        if !ranges.is_empty() {
            lines.push(format!("{what}: {} ({})", grouped(count(ranges)), spelled(ranges)));
        }
    }
    if !repaired.lost.is_empty() {
        lines.push(AGAIN.to_owned());
    }
    lines.push(format!("the index is whole: {} rows, {seconds:.1} s", grouped(repaired.rows)));
    lines.join("\n")
}

fn count(ranges: &[Range<usize>]) -> u64 {
    ranges.iter().map(|range| range.len() as u64).sum()
}

/// `3, 7 to 9`
fn spelled(ranges: &[Range<usize>]) -> String {
    let one = |range: &Range<usize>| match range.len() {
        1 => range.start.to_string(),
        _ => format!("{} to {}", range.start, range.end.saturating_sub(1)),
    };
    ranges.iter().map(one).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_spelled_with_their_last_id() {
        assert_eq!(spelled(&[3..4, 7..10]), "3, 7 to 9");
        assert_eq!(count(&[3..4, 7..10]), 4);
    }
}
