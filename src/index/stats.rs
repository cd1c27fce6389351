//! What an index is made of.

use super::writer::PANICKED;
use super::{Index, Inner};
use crate::error::Error;
use crate::options::{Kind, Metric};
use crate::storage::CATALOG;
use cellardb_format::{CodeKind, Judges, Settings};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What a recall takes, as measured: [`Stats::measured`] says on what.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Setting {
    /// The recall of ten neighbours that was asked for.
    pub recall: f32,
    /// Comparing with every row costs less than cells do: so a search does that, and what follows is not used.
    pub exact: bool,
    /// Cells that a search scans for it, at most.
    pub probes: usize,
    /// Rows that it reranks.
    pub rerank: usize,
    /// Cells whose squared distance is this many times that of the last row to be reranked, or more,
    /// are not scanned; 0 if all are.
    pub stop: f32,
    /// Rows whose estimate is this many times the squared distance of the last neighbour so far, or
    /// more, are not reranked; 0 if all are.
    pub slack: f32,
    /// The recall that was measured; of the rows that there were then.
    pub measured: f32,
    /// Codes that a search scans on average.
    pub codes: f32,
    /// Cells that it scans on average.
    pub cells: f32,
    /// Rows that it compares in full on average.
    pub rows: f32,
}

/// What queries recall was measured on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum MeasuredOn {
    /// Rows of the index, each of which looks for the others. It holds for queries that are like the rows.
    Rows,
    /// A sample of the queries that were asked ([`crate::Options::learn_queries`]).
    Asked,
    /// Queries that were given to [`Index::calibrate`].
    Given,
}

impl MeasuredOn {
    /// "rows", "asked" or "given".
    pub fn name(self) -> &'static str {
        match self {
            Self::Rows => "rows",
            Self::Asked => "asked",
            Self::Given => "given",
        }
    }
}

/// How recall was measured last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Measured {
    /// What the queries were.
    pub on: MeasuredOn,
    /// How many there were.
    pub queries: usize,
    /// When.
    pub time: SystemTime,
    /// Rows that there were then.
    pub rows: u64,
}

impl Measured {
    pub(super) fn of(settings: &Settings) -> Option<Measured> {
        let on = match settings.judges {
            Judges::Rows => MeasuredOn::Rows,
            Judges::Asked => MeasuredOn::Asked,
            Judges::Given => MeasuredOn::Given,
        };
        let time = UNIX_EPOCH.checked_add(Duration::from_secs(settings.time))?;
        let (queries, rows) = (settings.queries as usize, settings.live);
        (queries > 0).then_some(Measured { on, queries, time, rows })
    }
}

/// The state of an index.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Stats {
    /// Dimensions of a vector.
    pub dim: usize,
    /// The distance.
    pub metric: Metric,
    /// The kind that was asked for.
    pub kind: Kind,
    /// What is scanned now: "exact" without a model, else "flat", "pq4", "pq8" or
    /// "rabitq".
    pub code: &'static str,
    /// The instructions that the kernels use: "avx512", "avx2" or "scalar". The best that the processor
    /// has, or up to the one that the environment variable `CELLARDB_ISA` names; answers are the same.
    pub instructions: &'static str,
    /// Rows that are there.
    pub rows: u64,
    /// Removed rows whose space has not been given back.
    pub removed: u64,
    /// The id that the next row gets: as many as were ever given.
    pub next_id: u64,
    /// Rows that are in no list yet.
    pub tail: u64,
    /// Rows of the tail that have no code yet, for a moment after a crash: a search compares with each
    /// of them.
    pub uncoded: u64,
    /// Commits so far: what they made durable is durable.
    pub seq: u64,
    /// Trainings so far.
    pub generation: u32,
    /// Inverted lists.
    pub lists: u64,
    /// Cells of all lists.
    pub cells: u64,
    /// Sub-quantizers of a code.
    pub subquantizers: usize,
    /// Rows that there were when the model was trained.
    pub trained_rows: u64,
    /// Rows from which on the index trains itself.
    pub train_at: u64,
    /// Row segments.
    pub segments: u64,
    /// Bytes of the committed rows.
    pub row_bytes: u64,
    /// Bytes of the committed lists.
    pub list_bytes: u64,
    /// Bytes of the catalog.
    pub catalog_bytes: u64,
    /// What each recall takes; empty without a model.
    pub settings: Vec<Setting>,
    /// How that was measured.
    pub measured: Option<Measured>,
    /// Queries that were asked and may be among those that recall is measured on.
    pub asked: u64,
    /// Why what is done in the background last failed, if it did.
    pub maintenance_error: Option<String>,
    /// Why nothing can be written any more, if so.
    pub poisoned: Option<String>,
}

impl Inner {
    /// Why nothing is written any more, if so.
    fn poisoned(&self) -> Option<String> {
        let told = self.told.poison().or_else(|| self.writer.is_poisoned().then_some(PANICKED));
        told.map(str::to_owned)
    }

    fn catalog_bytes(&self) -> u64 {
        let file = self.options.disk.open(&self.dir.join(CATALOG), false);
        file.and_then(|file| file.len()).unwrap_or(0)
    }
}

impl Index {
    /// The state of the index, told without waiting for anybody.
    pub fn stats(&self) -> Stats {
        let inner = &*self.inner;
        // Without the writer, which may be committing; in a forked child its mutex may be held for ever.
        let (catalog_bytes, poisoned) = match inner.here() {
            Err(forked @ Error::Forked) => (0, Some(forked.to_string())),
            Err(_) => (0, inner.poisoned()),
            Ok(()) => (inner.catalog_bytes(), inner.poisoned()),
        };
        let snapshot = inner.snapshot();
        let state = &snapshot.state;
        let record = snapshot.indexed.as_ref().map(|i| &i.model.record);
        let lists = snapshot.indexed.iter().flat_map(|i| i.lists.iter());
        let settings = snapshot.indexed.iter().flat_map(|i| i.settings.each.iter());
        Stats {
            dim: inner.dim,
            metric: inner.metric,
            kind: inner.config.kind.into(),
            code: match record.map(|r| r.code) {
                None => "exact",
                Some(CodeKind::Flat) => "flat",
                Some(CodeKind::Pq4) => "pq4",
                Some(CodeKind::Pq8) => "pq8",
                Some(CodeKind::RaBitQ) => "rabitq",
            },
            instructions: inner.isa.name(),
            rows: state.live,
            removed: snapshot.dead.len(),
            next_id: state.next_id,
            tail: snapshot.tail_rows(),
            uncoded: snapshot.plain.end - snapshot.plain.start,
            seq: inner.told.seq(),
            generation: state.generation,
            lists: record.map_or(0, |r| u64::from(r.lists)),
            cells: record.map_or(0, |r| u64::from(r.cells)),
            subquantizers: record.map_or(0, |r| r.m as usize),
            trained_rows: record.map_or(0, |r| r.trained_rows),
            train_at: inner.config.train_at,
            segments: snapshot.rows.segments().count() as u64,
            row_bytes: snapshot.rows.bytes(),
            list_bytes: lists.map(|l| l.entry().length).sum(),
            catalog_bytes,
            settings: settings
                .map(|s| Setting {
                    recall: s.recall,
                    exact: s.exact,
                    probes: s.probes as usize,
                    rerank: s.rerank as usize,
                    stop: s.stop,
                    slack: s.slack,
                    measured: s.measured,
                    codes: s.codes,
                    cells: s.cells,
                    rows: s.rows,
                })
                .collect(),
            measured: snapshot.indexed.as_ref().and_then(|i| Measured::of(&i.settings)),
            asked: inner.asked.count(),
            maintenance_error: inner.process.is_current().then(|| inner.signal.error()).flatten(),
            poisoned,
        }
    }
}
