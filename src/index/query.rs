//! Searches with options: how many, how far, on how many threads.

use super::Inner;
use super::plan::{How, Plan};
use super::search::Answer;
use super::snapshot::Snapshot;
use super::walk::SHARED;
use crate::error::{Error, Result};
use crate::runtime::evenly;
use std::ops::Range;
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

        /// The mean recall of ten neighbours to reach; 0.95 by default, exact from 1. What it takes was
        /// measured ([`crate::Stats::measured`]), for 50, 200 and 1,000 neighbours too, between which it is
        /// estimated. Rows from elsewhere than those that were there then are compared in full until it is
        /// measured again: when a quarter of the rows came or went, by [`crate::Index::maintain`] and by
        /// [`crate::Index::calibrate`].
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
        let (inner, k) = (self.inner, self.how.k);
        // Few cells are found sooner than others are woken.
        let few = matches!(plan, Plan::Probe(effort) if effort.probes < SHARED);
        let threads = if few { 1 } else { inner.calls.count(self.threads)? };
        if threads == 1 {
            let one = |at: &Snapshot| inner.answer(at, self.query, (k, 1), plan);
            let answer = inner.ask(Arc::clone(&snapshot), one)?;
            return Ok(self.told(&snapshot, answer));
        }
        let shared = |at: &Snapshot| inner.answer(at, self.query, (k, threads), plan);
        let answer = inner.calls.run(|| inner.ask(Arc::clone(&snapshot), shared))?;
        Ok(self.told(&snapshot, answer))
    }

    /// The answer with how its recall was measured. A query that was answered counts as asked.
    fn told(&self, snapshot: &Snapshot, answer: Answer) -> Answer {
        if self.how.by_recall() {
            self.inner.note_asked(self.query, snapshot);
        }
        self.how.note(snapshot, answer)
    }
}

/// A search of many queries with options; made by [`crate::Index::query_many`].
#[derive(Debug)]
#[must_use = "a query does nothing until it is run"]
pub struct QueryMany<'a> {
    inner: &'a Arc<Inner>,
    queries: &'a [f32],
    how: How,
    threads: usize,
}

/// Queries that share a pass over the rows when the search is exact.
const TILE: usize = 16;

impl<'a> QueryMany<'a> {
    pub(crate) fn new(inner: &'a Arc<Inner>, queries: &'a [f32]) -> Self {
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
        let n = self.queries.len() / dim;
        if self.how.by_recall() {
            inner.note_asked(self.queries, &snapshot);
        }
        if !self.how.exact && n >= MANY && !snapshot.plain.is_empty() {
            // Rows without a code are read for each query: it is quicker to wait for their codes.
            match inner.catch_up(&inner.calls) {
                // Then they stay as they are.
                Err(Error::Closed) => {}
                done => done?,
            }
            snapshot = inner.snapshot();
        }
        let plan = self.how.plan(&snapshot)?;
        // A few are answered sooner than others are woken.
        let threads = if n < MANY { 1 } else { inner.calls.count(self.threads)? };
        let shares = shares(n, threads, plan == Plan::Exact);
        if threads == 1 {
            let of = |share: Range<usize>| &self.queries[share.start * dim..share.end * dim];
            let one = |share| inner.answers(Arc::clone(&snapshot), of(share), k, plan);
            let answers: Result<Vec<Vec<Answer>>> = shares.into_iter().map(one).collect();
            let answers = answers?.into_iter().flatten();
            return Ok(answers.map(|answer| self.how.note(&snapshot, answer)).collect());
        }
        let (own, queries) = (Arc::clone(inner), self.queries.to_vec());
        let (how, at) = (self.how, snapshot);
        inner.calls.share(threads, shares, move |share| {
            let queries = &queries[share.start * dim..share.end * dim];
            let answers = own.answers(Arc::clone(&at), queries, k, plan)?;
            Ok(answers.into_iter().map(|answer| how.note(&at, answer)).collect())
        })
    }
}

impl Inner {
    /// The answers to some queries; an exact search has one pass over the rows for all of them.
    fn answers(
        &self,
        snapshot: Arc<Snapshot>,
        queries: &[f32],
        k: usize,
        plan: Plan,
    ) -> Result<Vec<Answer>> {
        let queries = || queries.chunks_exact(self.dim);
        self.ask(snapshot, |snapshot| {
            if plan == Plan::Exact {
                let prepared: Result<Vec<_>> = queries().map(|query| self.prepare(query)).collect();
                return super::exact::answer(snapshot, &prepared?, k, 1);
            }
            queries().map(|query| self.answer(snapshot, query, (k, 1), plan)).collect()
        })
    }
}

/// Queries from which on several threads share them.
const MANY: usize = 16;
/// Shares of a thread, at least as far as there are so many queries: none waits for long at the end.
const SHARES: usize = 16;

/// How `n` queries are shared out, so that as many threads come to the end together, or nearly.
fn shares(n: usize, threads: usize, exact: bool) -> Vec<Range<usize>> {
    let shares = if exact {
        // Each share is one more pass over all rows.
        n.div_ceil(TILE).next_multiple_of(threads)
    } else {
        n.div_ceil(TILE).max(threads * SHARES).next_multiple_of(threads)
    };
    evenly(n, shares.min(n)).collect()
}

#[cfg(test)]
mod tests {
    use super::{TILE, shares};

    /// What the thread that has most to do answers, if each takes the next share when it is free.
    fn longest(n: usize, threads: usize, exact: bool) -> usize {
        let shares = shares(n, threads, exact);
        assert!(shares.iter().all(|share| share.len() <= TILE && !share.is_empty()), "{n}");
        let ends: Vec<usize> = shares.iter().map(|share| share.end).collect();
        let starts: Vec<usize> = shares.iter().map(|share| share.start).collect();
        assert!(starts[0] == 0 && starts[1..] == ends[..ends.len() - 1] && ends.last() == Some(&n));
        let mut loads = vec![0; threads];
        for share in shares {
            *loads.iter_mut().min().unwrap() += share.len();
        }
        loads.into_iter().max().unwrap()
    }

    #[test]
    fn threads_share_any_number_of_queries_evenly() {
        for n in (16..700).chain([1_000, 9_983, 9_984, 9_985, 10_000, 10_007]) {
            for threads in [2, 3, 4, 8] {
                for exact in [false, true] {
                    let (longest, even) = (longest(n, threads, exact), n as f64 / threads as f64);
                    let gain = n as f64 / longest as f64;
                    assert!(gain >= 0.66 * threads as f64, "{n} on {threads}: {gain}");
                    let enough = n < 32 * threads || longest as f64 <= 1.1 * even;
                    assert!(enough, "{n} on {threads}: {longest} where {even} are even");
                }
            }
        }
    }
}
