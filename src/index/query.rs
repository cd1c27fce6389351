//! Searches with options: how many, how far, on how many threads.

use super::Inner;
use super::plan::{How, Plan};
use super::search::Answer;
use super::snapshot::Snapshot;
use super::walk::SHARED;
use crate::error::{Error, Result};
use rayon::prelude::*;
use std::sync::Arc;

macro_rules! setters {
    () => {
        /// Neighbours to find; 10 by default.
        pub fn k(mut self, k: usize) -> Self {
            self.how.k = k;
            self
        }

        /// Cells to scan, instead of what the recall takes. More are scanned only if these hold fewer
        /// than `k` rows.
        pub fn probes(mut self, probes: usize) -> Self {
            self.how.probes = Some(probes);
            self
        }

        /// Rows to rerank, instead of what the recall takes.
        pub fn rerank(mut self, rerank: usize) -> Self {
            self.how.rerank = Some(rerank);
            self
        }

        /// The mean recall of ten neighbours to reach; 0.95 by default, exact from 1. What it takes
        /// was measured on rows of this index. Where rows come later from elsewhere than those, recall falls
        /// below until it is measured again, by itself when the index has grown by a quarter or halved,
        /// or trained again, at four times the rows; [`crate::Index::train`] does both now.
        pub fn recall(mut self, recall: f32) -> Self {
            self.how.recall = recall;
            self
        }

        /// Reads at most so many places of the lists and rows, 2 or more, however far the recall would
        /// have it go: a bound on what one search may cost while the index is not in memory. It may
        /// find fewer than `k`. An index without cells, and rows that have no code yet, are compared
        /// in full all the same.
        pub fn max_reads(mut self, reads: usize) -> Self {
            self.how.max_reads = Some(reads);
            self
        }

        /// Compares with every row.
        pub fn exact(mut self) -> Self {
            self.how.exact = true;
            self
        }
    };
}

/// One search with options; made by [`crate::Index::query`].
#[derive(Debug)]
#[must_use = "a query does nothing until it is run"]
pub struct Query<'a> {
    inner: &'a Inner,
    query: &'a [f32],
    how: How,
    threads: usize,
}

impl<'a> Query<'a> {
    pub(crate) fn new(inner: &'a Inner, query: &'a [f32]) -> Self {
        Self { inner, query, how: How::default(), threads: 1 }
    }

    setters!();

    /// At most this many threads share the work of this search; 0 for those of the index. It finds the
    /// same on any number. Pays for exact searches and for thousands of cells; 1 by default.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self
    }

    /// Searches.
    ///
    /// # Errors
    ///
    /// As [`crate::Index::search`]; [`Error::Invalid`] for a recall outside of 0 to 1.
    pub fn run(self) -> Result<Vec<(usize, f32)>> {
        self.explain().map(|answer| answer.hits)
    }

    /// Searches, and says what it took.
    ///
    /// # Errors
    ///
    /// As [`Query::run`].
    pub fn explain(self) -> Result<Answer> {
        self.inner.here()?;
        let snapshot = self.inner.snapshot();
        let plan = self.how.plan(&snapshot)?;
        if self.how.by_recall() {
            self.inner.asked.note(self.query, self.inner.dim);
        }
        let (inner, k, threads) = (self.inner, self.how.k, self.inner.threads(self.threads));
        // Few cells are found sooner than others are woken.
        let few = matches!(plan, Plan::Probe(effort) if effort.probes < SHARED);
        if threads == 1 || few {
            let one = |at: &Snapshot| inner.answer(at, self.query, (k, 1), plan);
            let answer = inner.ask(Arc::clone(&snapshot), one)?;
            return Ok(self.how.note(&snapshot, answer));
        }
        let shared = |at: &Snapshot| inner.answer(at, self.query, (k, threads), plan);
        let answer = inner.run(|| inner.ask(Arc::clone(&snapshot), shared))?;
        Ok(self.how.note(&snapshot, answer))
    }
}

/// A search of many queries with options; made by [`crate::Index::query_many`].
#[derive(Debug)]
#[must_use = "a query does nothing until it is run"]
pub struct QueryMany<'a> {
    inner: &'a Inner,
    queries: &'a [f32],
    how: How,
    threads: usize,
}

/// Queries that share a pass over the rows when the search is exact.
const TILE: usize = 16;

impl<'a> QueryMany<'a> {
    pub(crate) fn new(inner: &'a Inner, queries: &'a [f32]) -> Self {
        Self { inner, queries, how: How::default(), threads: 0 }
    }

    setters!();

    /// At most this many threads; 0 (the default) for those of the index.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self
    }

    /// Searches; one list of neighbours per query, in the order of the queries.
    ///
    /// # Errors
    ///
    /// As [`Query::run`]; a query that cannot be compared is named by its place, and none is searched.
    pub fn run(self) -> Result<Vec<Vec<(usize, f32)>>> {
        Ok(self.explain()?.into_iter().map(|answer| answer.hits).collect())
    }

    /// Searches, and says what each query took.
    ///
    /// # Errors
    ///
    /// As [`QueryMany::run`].
    pub fn explain(self) -> Result<Vec<Answer>> {
        let (inner, dim, k) = (self.inner, self.inner.dim, self.how.k);
        inner.here()?;
        // All of them before any is searched: an error says which it is.
        inner.scales(self.queries)?;
        let mut snapshot = inner.snapshot();
        let plan = self.how.plan(&snapshot)?;
        if self.how.by_recall() {
            inner.asked.note(self.queries, dim);
        }
        if plan != Plan::Exact && self.queries.len() > dim && !snapshot.plain.is_empty() {
            // Rows without a code are read for each query: it is quicker to wait for their codes.
            match inner.catch_up() {
                // Then they stay as they are.
                Err(Error::Closed) => {}
                done => done?,
            }
            snapshot = inner.snapshot();
        }
        let answer = |snapshot: &Snapshot, queries: &[f32]| -> Result<Vec<Answer>> {
            if plan == Plan::Exact {
                let queries: Result<Vec<_>> =
                    queries.chunks_exact(dim).map(|q| inner.prepare(q)).collect();
                return super::exact::answer(snapshot, &queries?, k, 1);
            }
            queries.chunks_exact(dim).map(|q| inner.answer(snapshot, q, (k, 1), plan)).collect()
        };
        let tile = |queries: &[f32]| {
            inner.ask(Arc::clone(&snapshot), |snapshot| answer(snapshot, queries))
        };
        let (n, threads) = (self.queries.len() / dim, inner.threads(self.threads));
        let answers: Result<Vec<Vec<Answer>>> = if threads == 1 {
            self.queries.chunks(TILE * dim).map(tile).collect()
        } else {
            let fewest = n.div_ceil(TILE).div_ceil(threads);
            let tiles = self.queries.par_chunks(TILE * dim);
            inner.run(|| tiles.with_min_len(fewest).map(tile).collect())
        };
        Ok(answers?.into_iter().flatten().map(|answer| self.how.note(&snapshot, answer)).collect())
    }
}
