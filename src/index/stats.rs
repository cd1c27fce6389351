//! What an index is made of.

use super::writer::PANICKED;
use super::{Index, Inner};
use crate::error::Error;
use crate::options::{Kind, Metric};
use crate::storage::CATALOG;
use cellardb_format::CodeKind;

/// What a recall takes, as measured on rows of the index that were kept out of training. It holds for rows like
/// those that were there then: see [`crate::Query::recall`].
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Setting {
    /// The recall of ten neighbours that was asked for.
    pub recall: f32,
    /// Cells that a search scans for it.
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
    /// The instructions that the kernels use: "avx512", "avx2" or "scalar".
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
        let settings = snapshot.indexed.iter().flat_map(|i| i.settings.iter());
        Stats {
            dim: inner.dim,
            metric: inner.metric,
            kind: inner.options.kind,
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
            train_at: inner.options.train_at as u64,
            segments: snapshot.rows.segments().count() as u64,
            row_bytes: snapshot.rows.bytes(),
            list_bytes: lists.map(|l| l.entry().length).sum(),
            catalog_bytes,
            settings: settings
                .map(|s| Setting {
                    recall: s.recall,
                    probes: s.probes as usize,
                    rerank: s.rerank as usize,
                    stop: s.stop,
                    slack: s.slack,
                    measured: s.measured,
                    codes: s.codes,
                })
                .collect(),
            maintenance_error: inner.process.is_current().then(|| inner.signal.error()).flatten(),
            poisoned,
        }
    }
}
