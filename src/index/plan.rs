//! How far a search goes: from what a caller asks for, and what was measured, to cells and rows.

use super::measure::{K, MANY};
use super::search::Answer;
use super::snapshot::{Indexed, Snapshot};
use super::stats::Measured;
use crate::error::{Error, Result};
use crate::kernel::FACTORS;
use cellardb_format::{BLOCK_ROWS, Many, Setting};

/// What a search does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Plan {
    /// Compares with every row.
    Exact,
    /// Scans cells and reranks the best estimates.
    Probe(Effort),
}

/// What a search by cells may cost.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Effort {
    /// Cells to scan at most.
    pub(crate) probes: usize,
    /// Estimates to rerank.
    pub(crate) rerank: usize,
    /// Cells whose squared distance is this many times that of the last of these, or more, are not
    /// scanned; 0 if all are.
    pub(crate) stop: f32,
    /// Rows estimated at this many times the squared distance of the last of the `k` best so far, or
    /// more, are not reranked; 0 if all are.
    pub(crate) slack: f32,
    /// Runs of codes, and rows, to read at most.
    pub(crate) most: Most,
}

/// A bound on what a search reads.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Most {
    pub(crate) runs: usize,
    pub(crate) rows: usize,
}

impl Most {
    /// No bound.
    pub(crate) const ANY: Most = Most { runs: usize::MAX, rows: usize::MAX };
}

impl Effort {
    /// The effort of a setting.
    pub(crate) fn of(setting: &Setting) -> Effort {
        let Setting { probes, rerank, stop, slack, .. } = *setting;
        let (probes, rerank) = (probes as usize, rerank as usize);
        Effort { probes, rerank, stop, slack, most: Most::ANY }
    }

    /// Estimates enough for `k` rows: copies of a row are estimated apart.
    pub(super) fn at_least(self, indexed: &Indexed, k: usize) -> Effort {
        let least = k.saturating_mul(indexed.model.copies());
        Effort { rerank: self.rerank.max(least), ..self }
    }

    /// The effort for `k` neighbours of one that was measured for ten: more of them lie in more cells, which
    /// the bound ends that lies farther out by itself, and everything goes farther by `wide`.
    pub(super) fn for_neighbours(self, k: usize, wide: f32) -> Effort {
        let more = (k as f32 / 10.0).max(1.0);
        Effort {
            probes: (self.probes as f32 * more * (1.0 + 3.0 * wide)).round() as usize,
            rerank: (self.rerank as f32 * more * (1.0 + wide)).round() as usize,
            stop: farther(self.stop, wide),
            slack: farther(self.slack, wide),
            ..self
        }
    }

    /// Whether no part of it goes farther than the other's.
    pub(super) fn is_within(&self, other: &Effort) -> bool {
        self.probes <= other.probes
            && self.rerank <= other.rerank
            && bound(self.stop) <= bound(other.stop)
            && bound(self.slack) <= bound(other.slack)
    }

    /// The least that goes as far as both.
    pub(super) fn union(&self, other: &Effort) -> Effort {
        let farther = |a: f32, b: f32| if bound(a) >= bound(b) { a } else { b };
        Effort {
            probes: self.probes.max(other.probes),
            rerank: self.rerank.max(other.rerank),
            stop: farther(self.stop, other.stop),
            slack: farther(self.slack, other.slack),
            ..*self
        }
    }
}

/// A bound that is as far out as this bounds nothing.
const FARTHEST: f32 = 4.0;

/// A bound that is farther out by a step; none in the end.
pub(super) fn farther(bound: f32, step: f32) -> f32 {
    let next = bound * (1.0 + step);
    if next > FARTHEST { 0.0 } else { next }
}

/// A bound as a number to compare: none is the farthest.
fn bound(bound: f32) -> f32 {
    if bound > 0.0 { bound } else { f32::INFINITY }
}

/// Estimates from here on are not compared. Under inner product what stands for a squared distance may
/// be below zero: then there is no bound.
pub(super) fn within(slack: f32, last: f32) -> f32 {
    if slack > 0.0 && last > 0.0 { slack * last } else { f32::INFINITY }
}

/// What a mean query does.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Work {
    pub(super) codes: f32,
    /// Cells that it visits.
    pub(super) cells: f32,
    /// Rows that it compares in full, each at its own place.
    pub(super) rows: f32,
}

impl Work {
    pub(super) fn of(setting: &Setting) -> Work {
        Work { codes: setting.codes, cells: setting.cells, rows: setting.rows }
    }

    /// What a search did.
    pub(super) fn done(answer: &Answer) -> Work {
        let (codes, cells, rows) = (answer.codes, answer.cells, answer.reranked);
        Work { codes: codes as f32, cells: cells as f32, rows: rows as f32 }
    }

    /// The mean of what searches did.
    pub(super) fn mean<'a>(all: impl ExactSizeIterator<Item = &'a Work>) -> Work {
        let n = all.len().max(1) as f64;
        let sum = all.fold([0.0; 3], |[codes, cells, rows], work| {
            [
                codes + f64::from(work.codes),
                cells + f64::from(work.cells),
                rows + f64::from(work.rows),
            ]
        });
        let [codes, cells, rows] = sum.map(|sum| (sum / n) as f32);
        Work { codes, cells, rows }
    }
}

/// What a query costs, in nanoseconds: what was measured on real data sets of 50 to 784 dimensions,
/// where one core waits for memory most of the time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Prices {
    dim: f32,
    /// Bytes of a code that a scan reads.
    code: f32,
    /// Codes are whole vectors: no row is compared again.
    flat: bool,
}

/// What a core reads of runs of pages here and there.
const GB_PER_S: f32 = 8.0;
/// What a row of an exact search costs beside the reading.
const EXACT_ROW: f32 = 12.0;
/// Cells are worth their while below this share of an exact search: prices are not known to more than that.
const WORTH: f32 = 0.7;

impl Prices {
    pub(super) fn new(indexed: &Indexed) -> Prices {
        let model = &indexed.model;
        let scanned = model.layout.code_bytes() + FACTORS;
        let (dim, code) = (model.router.dim() as f32, scanned as f32 / BLOCK_ROWS as f32);
        Prices { dim, code, flat: model.pq.is_none() }
    }

    /// The price of a mean query that visits at most `probes` cells.
    pub(super) fn of(&self, probes: usize, work: Work) -> f32 {
        let Work { codes, cells, rows } = work;
        // The cells of some lists are compared by a sketch, twice as many as are visited by centroid.
        let route = 6.0 * cells.sqrt() * (self.dim + 64.0) + 2.0 * cells * (60.0 + self.dim / 4.0);
        let scan = cells * 250.0 + codes * self.code / GB_PER_S;
        let row = if self.flat { 0.0 } else { 300.0 + 4.0 * self.dim / GB_PER_S };
        // The hardest queries go as far as they may.
        let worst = probes as f32 * 50.0;
        route + scan + worst + rows * row
    }

    /// The price of comparing with `rows` rows one after the other.
    pub(super) fn exact(&self, rows: u64) -> f32 {
        rows as f32 * (EXACT_ROW + 4.0 * self.dim / GB_PER_S)
    }

    /// Whether what cells take is less than an exact search by enough to be sure of it.
    pub(super) fn pays(&self, price: f32, live: u64) -> bool {
        price < WORTH * self.exact(live)
    }
}

/// How far a search goes, as the caller says it.
#[derive(Debug, Clone, Copy)]
pub(super) struct How {
    pub(super) k: usize,
    pub(super) probes: Option<usize>,
    pub(super) rerank: Option<usize>,
    pub(super) recall: f32,
    pub(super) exact: bool,
    pub(super) max_reads: Option<usize>,
}

impl Default for How {
    fn default() -> Self {
        Self { k: 10, probes: None, rerank: None, recall: 0.95, exact: false, max_reads: None }
    }
}

impl How {
    /// Whether it goes as far as the recall takes.
    pub(super) fn by_recall(&self) -> bool {
        !self.exact && self.probes.is_none() && self.rerank.is_none()
    }

    /// Adds to an answer how its recall was measured.
    pub(super) fn note(&self, snapshot: &Snapshot, answer: Answer) -> Answer {
        let by_recall = self.by_recall() && !answer.exact;
        let indexed = snapshot.indexed.as_ref().filter(|_| by_recall);
        Answer { measured: indexed.and_then(|i| Measured::of(&i.settings)), ..answer }
    }

    pub(super) fn plan(&self, snapshot: &Snapshot) -> Result<Plan> {
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
        let settings = &indexed.settings;
        let setting = at_recall(&settings.each, self.recall);
        let by_recall = self.by_recall() && self.max_reads.is_none();
        if by_recall && setting.is_some_and(|s| !pays(snapshot, indexed, &s, self.k)) {
            return Ok(Plan::Exact);
        }
        // What is measured to be no use, or was never measured: generous.
        let setting = setting.filter(|setting| !setting.exact).unwrap_or(Setting {
            probes: (cells as f32).sqrt() as u32 * 4,
            rerank: 200,
            ..NOTHING
        });
        let Effort { probes, rerank, stop, slack, .. } =
            Effort::of(&setting).for_neighbours(self.k, many(&setting, self.k).wide);
        // The same neighbours lie in more cells when there are fewer rows in each.
        let grown = snapshot.state.live.max(1) as f32 / settings.live.max(1) as f32;
        let thinned = (1.0 / grown).max(1.0);
        // Who says how many wants as many.
        let stop = if self.probes.is_some() { 0.0 } else { stop };
        let slack = if self.rerank.is_some() { 0.0 } else { slack };
        let probes = self.probes.unwrap_or((probes as f32 * thinned).round() as usize);
        // And more estimates are close where there are more rows.
        let rerank = self.rerank.unwrap_or((rerank as f32 * grown.max(1.0)).round() as usize);
        let probes = probes.clamp(1, cells);
        // What is exact already is not read again.
        let rows = indexed.model.pq.is_some().then_some(rerank);
        let most = self.max_reads.map_or(Most::ANY, |reads| share(reads, probes, rows));
        let probes = probes.min(most.runs);
        Ok(Plan::Probe(Effort { probes, rerank, stop, slack, most }))
    }
}

/// Whether cells are the cheaper way to `k` neighbours, by what was measured and the rows that live now.
fn pays(snapshot: &Snapshot, indexed: &Indexed, setting: &Setting, k: usize) -> bool {
    let (prices, live) = (Prices::new(indexed), snapshot.state.live);
    let in_full: u64 = snapshot.in_full().iter().map(|ids| ids.end - ids.start).sum();
    let price = prices.of(setting.probes as usize, Work::of(setting)) * many(setting, k).dear;
    !setting.exact && prices.pays(price + prices.exact(in_full), live)
}

/// What `k` neighbours take beside what ten of them do: between those that were measured by the logarithm
/// of their number.
fn many(setting: &Setting, k: usize) -> Many {
    let log = |k: usize| (k.max(K) as f32).ln();
    // The last of those below it and the next; beyond the last the last two.
    let next = MANY.iter().take(MANY.len() - 1).filter(|number| k > **number).count();
    let (from, low) = match next.checked_sub(1) {
        None => (log(K), Many { wide: 0.0, dear: 1.0 }),
        Some(last) => (log(MANY[last]), setting.many[last]),
    };
    let (to, high) = (log(MANY[next]), setting.many[next]);
    let t = (log(k) - from) / (to - from);
    let (low_dear, high_dear) = (low.dear.max(1.0).ln(), high.dear.max(1.0).ln());
    Many {
        // The step to the next heap of rows lies anywhere between the two: more of it sooner.
        wide: (low.wide + t.max(t.sqrt()) * (high.wide - low.wide)).max(0.0),
        dear: (low_dear + t * (high_dear - low_dear)).exp().max(1.0),
    }
}

/// Shares a bound on reads between cells and rows as an effort without it would.
fn share(reads: usize, probes: usize, rows: Option<usize>) -> Most {
    let part = |rows: f64| reads as f64 * rows / (probes as f64 + rows);
    let rows = rows.map_or(0, |rows| (part(rows as f64).round() as usize).clamp(1, reads - 1));
    Most { runs: reads - rows, rows }
}

const NOTHING: Setting = Setting {
    recall: 0.0,
    exact: false,
    probes: 0,
    rerank: 0,
    stop: 0.0,
    slack: 0.0,
    measured: 0.0,
    codes: 0.0,
    cells: 0.0,
    rows: 0.0,
    many: [Many { wide: 0.0, dear: 0.0 }; MANY.len()],
};

/// What a recall takes: between the measured settings by the logarithm of what is missed, which is
/// close to straight against the logarithm of the effort. `None` if nothing was measured. As every part of a
/// setting is at least that of a lower recall, so is every part of what lies between them.
fn at_recall(settings: &[Setting], recall: f32) -> Option<Setting> {
    if let Some(same) = settings.iter().find(|s| s.recall == recall) {
        return Some(*same);
    }
    let (useful, exact) = settings.split_at(settings.partition_point(|s| !s.exact));
    let last = useful.last().map_or(0.0, |s| s.recall);
    if let Some(exact) = exact.first().filter(|_| recall > last) {
        return Some(*exact);
    }
    let above = useful.iter().position(|s| s.recall > recall).unwrap_or(useful.len());
    // The two on both sides; beyond the ends the two that are next.
    let pair = above.clamp(1, useful.len().saturating_sub(1).max(1));
    match useful.get(pair - 1..=pair) {
        Some([low, high]) => Some(between(low, high, recall)),
        _ => useful.first().copied(),
    }
}

/// The greater parts of both.
fn farthest(a: Many, b: Many) -> Many {
    Many { wide: a.wide.max(b.wide), dear: a.dear.max(b.dear) }
}

fn between(low: &Setting, high: &Setting, recall: f32) -> Setting {
    let missed = |r: f32| (1.0 - r).max(1e-4).ln();
    let span = (missed(low.recall) - missed(high.recall)).max(f32::MIN_POSITIVE);
    let t = (missed(low.recall) - missed(recall)) / span;
    let grow = |a: f32, b: f32| {
        let (a, b) = (a.max(1e-3).ln(), b.max(1e-3).ln());
        (a + t * (b - a)).exp()
    };
    let number = |a: u32, b: u32| grow(a.max(1) as f32, b.max(1) as f32).round() as u32;
    // Beyond a bound and none there is none.
    let limit = |a: f32, b: f32| match (a > 0.0, b > 0.0) {
        (true, true) => (a + t * (b - a)).max(f32::MIN_POSITIVE),
        (true, false) if t <= 0.0 => a,
        _ => 0.0,
    };
    Setting {
        recall,
        probes: number(low.probes, high.probes),
        rerank: number(low.rerank, high.rerank),
        stop: limit(low.stop, high.stop),
        slack: limit(low.slack, high.slack),
        codes: grow(low.codes, high.codes),
        cells: grow(low.cells, high.cells),
        rows: grow(low.rows, high.rows),
        many: std::array::from_fn(|at| farthest(low.many[at], high.many[at])),
        ..*low
    }
}
