//! Searches with options: how many, how far, on how many threads.

use super::Inner;
use super::search::{Answer, Effort, Most, Plan};
use super::snapshot::Snapshot;
use super::walk::SHARED;
use crate::error::{Error, Result};
use crate::runtime::evenly;
use cellardb_format::Setting;
use std::ops::Range;
use std::sync::Arc;

/// How far a search goes, as the caller says it.
#[derive(Debug, Clone, Copy)]
struct How {
    k: usize,
    probes: Option<usize>,
    rerank: Option<usize>,
    recall: f32,
    exact: bool,
    max_reads: Option<usize>,
}

impl Default for How {
    fn default() -> Self {
        Self { k: 10, probes: None, rerank: None, recall: 0.95, exact: false, max_reads: None }
    }
}

impl How {
    fn plan(&self, snapshot: &Snapshot) -> Result<Plan> {
        if !(self.recall > 0.0 && self.recall <= 1.0) {
            return Err(Error::invalid(
                "recall",
                format!("{} is not above 0 and up to 1", self.recall),
            ));
        }
        let exact = self.exact || (self.recall >= 1.0 && self.probes.is_none());
        if let Some(reads) = self.max_reads
            && (reads < 2 || exact)
        {
            let what = if exact { "an exact search reads every row" } else { "2 at least" };
            return Err(Error::invalid("max_reads", format!("{reads}: {what}")));
        }
        let Some(indexed) = &snapshot.indexed else { return Ok(Plan::Exact) };
        if exact {
            return Ok(Plan::Exact);
        }
        let cells = indexed.model.router.cells();
        let effort = at_recall(&indexed.settings, self.recall, cells);
        // Measured for ten neighbours; more of them lie in more cells.
        let more = (self.k as f32 / 10.0).max(1.0);
        // Who says how many wants as many.
        let stop = if self.probes.is_some() { 0.0 } else { effort.stop };
        let slack = if self.rerank.is_some() { 0.0 } else { effort.slack };
        let probes = self.probes.unwrap_or((effort.probes * more.sqrt()).round() as usize);
        let rerank = self.rerank.unwrap_or((effort.rerank * more).round() as usize);
        let probes = probes.clamp(1, cells);
        // What is exact already is not read again.
        let rows = indexed.model.pq.is_some().then_some(rerank);
        let most = self.max_reads.map_or(Most::ANY, |reads| share(reads, probes, rows));
        let probes = probes.min(most.runs);
        Ok(Plan::Probe(Effort { probes, rerank, stop, slack, most }))
    }
}

/// Shares a bound on reads between cells and rows as an effort without it would.
fn share(reads: usize, probes: usize, rows: Option<usize>) -> Most {
    let part = |rows: f64| reads as f64 * rows / (probes as f64 + rows);
    let rows = rows.map_or(0, |rows| (part(rows as f64).round() as usize).clamp(1, reads - 1));
    Most { runs: reads - rows, rows }
}

/// An effort between two that were measured.
struct Between {
    probes: f32,
    rerank: f32,
    stop: f32,
    slack: f32,
}

/// What a recall takes: between the measured settings by the logarithm of what is missed, which is
/// close to straight against the logarithm of the effort.
fn at_recall(settings: &[Setting], recall: f32, cells: usize) -> Between {
    let missed = |r: f32| (1.0 - r).max(1e-4).ln();
    let pair = match settings.iter().position(|s| s.recall >= recall) {
        Some(0) => settings.get(0..2).or(settings.get(0..1)),
        Some(at) => settings.get(at - 1..=at),
        None => settings.len().checked_sub(2).and_then(|at| settings.get(at..)).or(Some(settings)),
    };
    match pair {
        Some([low, high]) if missed(low.recall) > missed(high.recall) => {
            let t =
                (missed(low.recall) - missed(recall)) / (missed(low.recall) - missed(high.recall));
            let number = |a: u32, b: u32| {
                let (a, b) = ((a.max(1) as f32).ln(), (b.max(1) as f32).ln());
                (a + t * (b - a)).exp()
            };
            // Without a bound at either end there is none.
            let bound = |a: f32, b: f32| if a.min(b) > 0.0 { a + t * (b - a) } else { 0.0 };
            Between {
                probes: number(low.probes, high.probes),
                rerank: number(low.rerank, high.rerank),
                stop: bound(low.stop, high.stop),
                slack: bound(low.slack, high.slack),
            }
        }
        Some([only, ..]) => {
            let (probes, rerank) = (only.probes as f32, only.rerank as f32);
            Between { probes, rerank, stop: only.stop, slack: only.slack }
        }
        // Never measured: generous.
        _ => Between { probes: (cells as f32).sqrt() * 4.0, rerank: 200.0, stop: 0.0, slack: 0.0 },
    }
}

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
        let (inner, k) = (self.inner, self.how.k);
        // Few cells are found sooner than others are woken.
        let few = matches!(plan, Plan::Probe(effort) if effort.probes < SHARED);
        let threads = if few { 1 } else { inner.calls.count(self.threads)? };
        if threads == 1 {
            return inner.ask(snapshot, |at| inner.answer(at, self.query, (k, 1), plan));
        }
        let shared = |at: &Snapshot| inner.answer(at, self.query, (k, threads), plan);
        inner.calls.run(|| inner.ask(snapshot, shared))
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
        let (n, plan) = (self.queries.len() / dim, self.how.plan(&snapshot)?);
        if plan != Plan::Exact && n >= MANY && !snapshot.plain.is_empty() {
            // Rows without a code are read for each query: it is quicker to wait for their codes.
            match inner.catch_up(&inner.calls) {
                // Then they stay as they are.
                Err(Error::Closed) => {}
                done => done?,
            }
            snapshot = inner.snapshot();
        }
        // A few are answered sooner than others are woken.
        let threads = if n < MANY { 1 } else { inner.calls.count(self.threads)? };
        let shares = shares(n, threads, plan == Plan::Exact);
        if threads == 1 {
            let of = |share: Range<usize>| &self.queries[share.start * dim..share.end * dim];
            let one = |share| inner.answers(Arc::clone(&snapshot), of(share), k, plan);
            let answers: Result<Vec<Vec<Answer>>> = shares.into_iter().map(one).collect();
            return Ok(answers?.into_iter().flatten().collect());
        }
        let (own, queries) = (Arc::clone(inner), self.queries.to_vec());
        inner.calls.share(threads, shares, move |share| {
            let queries = &queries[share.start * dim..share.end * dim];
            own.answers(Arc::clone(&snapshot), queries, k, plan)
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
