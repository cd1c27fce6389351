//! `stats` and `verify`: what an index holds, and whether it is whole.

use super::{kind_name, metric_name};
use crate::failure::Failure;
use crate::output::{Console, bytes, grouped, pairs, shown};
use cellardb::{Error, Stats};
use clap::Args;
use serde_json::{Value, json};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Instant;
use std::time::UNIX_EPOCH;

/// Show what an index holds.
#[derive(Debug, Args)]
pub(crate) struct ShowStats {
    /// Directory of the index.
    dir: PathBuf,
}

impl ShowStats {
    pub(crate) fn run(&self, console: &Console) -> Result<(), Failure> {
        // Held meanwhile, so that nobody writes.
        let index = super::stored().open_read_only(&self.dir)?;
        let (stats, disk) = (index.stats(), allocated(&self.dir).map_err(Failure::io(&self.dir))?);
        console.result(&as_json(&stats, disk), |_| as_table(&stats, disk))
    }
}

/// What a directory takes of the disk, as `du` counts: the catalog has room behind its end.
fn allocated(path: &Path) -> io::Result<u64> {
    let found = fs::symlink_metadata(path)?;
    let mut sum = found.blocks() * 512;
    if found.is_dir() {
        for entry in fs::read_dir(path)? {
            sum += allocated(&entry?.path())?;
        }
    }
    Ok(sum)
}

/// What each recall takes.
pub(super) fn settings(stats: &Stats) -> Value {
    let each = stats.settings.iter().map(|s| {
        json!({
            "recall": s.recall, "exact": s.exact, "probes": s.probes, "rerank": s.rerank,
            "measured": s.measured, "codes": s.codes, "cells": s.cells, "rows": s.rows,
        })
    });
    each.collect()
}

fn as_json(stats: &Stats, disk: u64) -> Value {
    let measured = stats.measured.map(|m| {
        let time = m.time.duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        json!({ "on": m.on.name(), "queries": m.queries, "rows": m.rows, "time": time })
    });
    json!({
        "dim": stats.dim,
        "metric": metric_name(stats.metric),
        "kind": kind_name(stats.kind),
        "code": stats.code,
        "rows": stats.rows,
        "removed": stats.removed,
        "next_id": stats.next_id,
        "tail": stats.tail,
        "seq": stats.seq,
        "generation": stats.generation,
        "lists": stats.lists,
        "cells": stats.cells,
        "subquantizers": stats.subquantizers,
        "trained_rows": stats.trained_rows,
        "train_at": stats.train_at,
        "segments": stats.segments,
        "row_bytes": stats.row_bytes,
        "list_bytes": stats.list_bytes,
        "catalog_bytes": stats.catalog_bytes,
        "disk_bytes": disk,
        "settings": settings(stats),
        "measured": measured,
        "asked": stats.asked,
        "maintenance_error": stats.maintenance_error,
    })
}

fn as_table(stats: &Stats, disk: u64) -> String {
    let mut table = vec![
        ("dimensions", grouped(stats.dim as u64)),
        ("metric", metric_name(stats.metric).to_owned()),
        ("kind", format!("{}, searched as {}", kind_name(stats.kind), stats.code)),
        ("rows", grouped(stats.rows)),
        ("removed", grouped(stats.removed)),
        ("tail", grouped(stats.tail)),
        ("commits", grouped(stats.seq)),
        ("trained rows", grouped(stats.trained_rows)),
        ("generation", stats.generation.to_string()),
        ("lists", grouped(stats.lists)),
        ("cells", grouped(stats.cells)),
        ("sub-quantizers", stats.subquantizers.to_string()),
        ("row segments", grouped(stats.segments)),
        ("bytes of rows", bytes(stats.row_bytes)),
        ("bytes of lists", bytes(stats.list_bytes)),
        ("bytes of catalog", bytes(stats.catalog_bytes)),
        ("disk in all", format!("{}, room kept for growth included", bytes(disk))),
    ];
    for s in &stats.settings {
        let setting = match s.exact {
            true => format!("{:.2}: every row is compared, which costs less than cells", s.recall),
            false => format!(
                "{:.2}: {} probes, {} reranked, measured {:.4}, {:.0} codes",
                s.recall, s.probes, s.rerank, s.measured, s.codes
            ),
        };
        table.push(("recall", setting));
    }
    if let Some(measured) = stats.measured {
        let (on, queries, rows) = (measured.on.name(), measured.queries, grouped(measured.rows));
        let what = match on {
            "asked" => "queries that were asked",
            "given" => "queries that were given",
            _ => "rows, as if they were queries",
        };
        table.push(("measured on", format!("{queries} {what}, when there were {rows} rows")));
    }
    if let Some(error) = &stats.maintenance_error {
        table.push(("maintenance", error.clone()));
    }
    pairs(&table)
}

/// Read everything and report what is damaged.
#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// Directory of the index.
    dir: PathBuf,
}

impl Verify {
    pub(crate) fn run(&self, console: &Console) -> Result<(), Failure> {
        let start = Instant::now();
        let verified = super::stored()
            .open_read_only(&self.dir)
            .and_then(|index| Ok((index.verify()?, index.len() as u64)));
        let (report, live) = match verified {
            // Too damaged to be opened or read on is a finding as well.
            Err(Error::Corrupt { path, offset, what }) => {
                let damage = json!([{ "path": shown(&path), "offset": offset, "what": what }]);
                let found = json!({ "files": 0, "bytes": 0, "rows": 0, "damage": damage });
                console.result(&found, |_| damaged(&path, offset, &what))?;
                return Err(Failure::Damage(1));
            }
            other => other?,
        };
        let seconds = start.elapsed().as_secs_f64();
        let damage: Vec<Value> = report
            .damage
            .iter()
            .map(|d| json!({ "path": shown(&d.path), "offset": d.offset, "what": d.what }))
            .collect();
        let found = json!({
            "files": report.files, "bytes": report.bytes, "rows": report.rows, "live": live,
            "seconds": seconds, "damage": damage,
        });
        console.result(&found, |_| {
            let mut lines: Vec<_> =
                report.damage.iter().map(|d| damaged(&d.path, d.offset, &d.what)).collect();
            let [files, rows, live] = [report.files, report.rows, live].map(grouped);
            let read = bytes(report.bytes);
            let rows = format!("{rows} rows whole, {live} live");
            lines.push(format!("{files} files, {rows}, {read} read in {seconds:.1} s"));
            lines.join("\n")
        })?;
        match report.damage.len() {
            0 => Ok(()),
            n => Err(Failure::Damage(n)),
        }
    }
}

fn damaged(path: &std::path::Path, offset: u64, what: &str) -> String {
    format!("{}: byte {offset}: {what}", path.display())
}
