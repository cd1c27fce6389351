//! What a recall takes, measured: rows kept out of training are the queries, the exact answer is
//! the truth, and the cheapest probes and rerank depth that reach each recall are stored.

use super::Inner;
use super::build::Source;
use super::confirm::Judges;
use super::model::shift;
use super::search::{Effort, Most, Query};
use super::snapshot::{Indexed, Snapshot};
use super::topk::Near;
use super::truth::Truth;
use super::walk::{Trace, trace};
use crate::error::Result;
use crate::kernel::FACTORS;
use crate::options::Metric;
use crate::storage::{Change, Table};
use cellardb_format::{BLOCK_ROWS, Setting, Settings};
use rayon::prelude::*;
use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashSet};
use std::sync::Arc;

/// The recalls that are measured.
const RECALLS: [f32; 3] = [0.90, 0.95, 0.99];
/// Neighbours that recall is measured on.
const K: usize = 10;
/// Rerank depths to choose from.
const DEPTHS: [usize; 11] = [20, 30, 40, 60, 80, 100, 120, 160, 240, 320, 640];
/// Bounds to choose from, in units of the squared distance of the last candidate; 0 for none.
const STOPS: [f32; 18] = [
    0.0, 0.85, 0.9, 0.95, 0.975, 1.0, 1.025, 1.05, 1.075, 1.1, 1.125, 1.15, 1.175, 1.2, 1.25, 1.3,
    1.4, 1.6,
];
/// Slacks to choose from: beyond them one in so many true neighbours is estimated.
const BEYOND: [usize; 3] = [300, 1000, 4000];
const DEEPEST: usize = DEPTHS[DEPTHS.len() - 1];
/// Distances that the truth may take, so that it costs seconds whatever the number of rows.
const DISTANCES: u64 = 1_800_000_000;

/// A query and its true neighbours.
pub(super) struct Probe {
    id: u64,
    pub(super) vector: Vec<f32>,
    pub(super) truth: Vec<u64>,
    /// The squared distance of the last of them, less what holds for all rows under inner product.
    pub(super) last: f32,
}

/// The scan of one query with some number of probes: enough to tell what any smaller number, with
/// any rerank depth and bound, would have found.
struct Sight {
    trace: Trace,
    /// Of each estimate of the trace the bit of the true neighbour that it is, if it is one.
    truth: Vec<u16>,
    /// The squared distance of the last true neighbour.
    last: f32,
}

impl Sight {
    /// What this query meets at a rerank depth, whatever ends its scan.
    fn reach(&self, rerank: usize, slacks: &Slacks, caps: &[usize]) -> Reach {
        let ends = self.ends(rerank);
        let stopped = ends.map(|end| self.found(rerank, slacks, end));
        let capped = caps.iter().map(|cap| self.found(rerank, slacks, *cap)).collect();
        Reach { ends, stopped, capped }
    }

    /// Where each bound ends the scan of this query: the number of cells visited.
    fn ends(&self, rerank: usize) -> [usize; STOPS.len()] {
        let Trace { near, cells, .. } = &self.trace;
        let mut of_cell: Vec<(u32, f32)> = near.iter().map(|n| (n.probe, n.distance)).collect();
        of_cell.sort_by_key(|(probe, _)| *probe);
        let (mut found, mut best) = (of_cell.into_iter().peekable(), BinaryHeap::new());
        let mut ends = [cells.len(); STOPS.len()];
        let mut open = STOPS.len();
        for (visited, from_cell) in cells.iter().enumerate() {
            while let Some((_, distance)) = found.next_if(|at| (at.0 as usize) < visited) {
                best.push(Sortable(distance));
                if best.len() > rerank {
                    best.pop();
                }
            }
            if best.len() < rerank {
                continue;
            }
            let last = best.peek().map_or(f32::INFINITY, |last| last.0);
            for (stop, end) in STOPS.iter().zip(&mut ends) {
                if *end == cells.len() && *stop > 0.0 && *from_cell >= stop * last {
                    (*end, open) = (visited, open - 1);
                }
            }
            if open == 1 {
                break; // But for the one without a bound.
            }
        }
        ends
    }

    /// True neighbours among the best `rerank` estimates of the first cells, as far as these are
    /// compared under each slack, and how many are.
    fn found(&self, rerank: usize, slacks: &Slacks, cells: usize) -> [Met; BEYOND.len()] {
        let rows = self.trace.near.iter().zip(&self.truth);
        let reached = rows.filter(|(near, _)| (near.probe as usize) < cells).take(rerank);
        let most = slacks.map(|slack| within(slack, self.last));
        let mut met = [(0_u16, 0); BEYOND.len()];
        for (near, bit) in reached {
            for (met, most) in met.iter_mut().zip(&most) {
                if near.distance < *most {
                    *met = (met.0 | bit, met.1 + 1);
                }
            }
        }
        met.map(|(truth, rows)| Met { truth: truth.count_ones(), rows })
    }

    /// How many times the distance of the last true neighbour each of them is estimated at.
    fn ratios(&self) -> impl Iterator<Item = f32> {
        let mut found = 0;
        let first = self.trace.near.iter().zip(&self.truth).filter(move |(_, bit)| {
            let new = **bit & !found;
            found |= new;
            new != 0
        });
        let sound = self.last > 0.0 && self.last.is_finite();
        first.filter(move |_| sound).map(|(near, _)| near.distance / self.last)
    }
}

/// One slack for each of [`BEYOND`].
type Slacks = [f32; BEYOND.len()];

/// Estimates from here on are not compared. Under inner product what stands for a squared distance may
/// be below zero: then there is no bound.
pub(super) fn within(slack: f32, last: f32) -> f32 {
    if slack > 0.0 && last > 0.0 { slack * last } else { f32::INFINITY }
}

/// What a query meets: true neighbours, and rows that it compares.
#[derive(Clone, Copy)]
struct Met {
    truth: u32,
    rows: u32,
}

/// What a query meets at one rerank depth where each bound and each cap ends it.
struct Reach {
    ends: [usize; STOPS.len()],
    stopped: [[Met; BEYOND.len()]; STOPS.len()],
    capped: Vec<[Met; BEYOND.len()]>,
}

impl Reach {
    /// Cells visited and what was met, by the bound or the cap, whichever comes first.
    fn at(&self, stop: usize, (at, cap): (usize, usize)) -> (usize, [Met; BEYOND.len()]) {
        let end = self.ends[stop];
        if cap < end { (cap, self.capped[at]) } else { (end, self.stopped[stop]) }
    }
}

/// An `f32` in its total order.
#[derive(PartialEq)]
struct Sortable(f32);

impl Eq for Sortable {}

impl PartialOrd for Sortable {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Sortable {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}

/// The scans of all queries with some number of probes.
struct Survey {
    probes: usize,
    sights: Vec<Sight>,
    wanted: usize,
}

impl Survey {
    /// The most that any smaller effort finds.
    fn most(&self) -> f32 {
        let none = [0.0; BEYOND.len()];
        let all = self.sights.par_iter().map(|s| s.found(DEEPEST, &none, self.probes)[0].truth);
        all.sum::<u32>() as f32 / self.wanted.max(1) as f32
    }

    /// The ratios that all but a few of the true neighbours that were met are estimated within.
    fn slacks(&self) -> Slacks {
        let mut ratios: Vec<f32> = self.sights.iter().flat_map(Sight::ratios).collect();
        ratios.sort_unstable_by(f32::total_cmp);
        let beyond = |few: usize| ratios.len().checked_sub(1 + ratios.len() / few);
        let slack = |at: usize| ratios[at].max(1.0) * (1.0 + f32::EPSILON);
        BEYOND.map(|few| beyond(few).map_or(0.0, slack))
    }

    /// The cheapest effort for each recall, by the price of its mean query; the best there is where
    /// none reaches it. Less recall never takes more cells.
    fn cheapest(&self, recalls: &[f32], prices: &Prices) -> Vec<Effort> {
        let caps = self.caps();
        let depths = if prices.flat { &[K][..] } else { &DEPTHS[..] };
        // What is exact needs no comparing.
        let slacks = if prices.flat { [0.0; BEYOND.len()] } else { self.slacks() };
        let measure = |depth: &usize| {
            let sights = self.sights.par_iter().map(|sight| sight.reach(*depth, &slacks, &caps));
            let reaches: Vec<Reach> = sights.collect();
            let efforts = (0..STOPS.len())
                .flat_map(|s| caps.iter().copied().enumerate().map(move |c| (s, c)));
            let mean = |(stop, (at, cap)): (usize, (usize, usize))| {
                let mut met = [(0, 0); BEYOND.len()];
                let (mut codes, mut cells) = (0.0, 0);
                for (sight, reach) in self.sights.iter().zip(&reaches) {
                    let (end, found) = reach.at(stop, (at, cap));
                    met.iter_mut().zip(found).for_each(|(m, f)| *m = (m.0 + f.truth, m.1 + f.rows));
                    codes += end.checked_sub(1).map_or(0.0, |at| sight.trace.codes[at] as f32);
                    cells += end;
                }
                let n = self.sights.len().max(1) as f32;
                let of_slack = move |(slack, (truth, rows)): (f32, (u32, u32))| {
                    let effort = Effort {
                        probes: cap,
                        rerank: *depth,
                        stop: STOPS[stop],
                        slack,
                        most: Most::ANY,
                    };
                    let price = prices.of(cap, codes / n, cells as f32 / n, rows as f32 / n);
                    (truth as f32 / self.wanted.max(1) as f32, price, effort)
                };
                slacks.into_iter().zip(met).map(of_slack)
            };
            efforts.flat_map(mean).collect::<Vec<_>>()
        };
        let measured: Vec<(f32, f32, Effort)> = depths.iter().flat_map(measure).collect();
        let least =
            Effort { probes: self.probes, rerank: DEEPEST, stop: 0.0, slack: 0.0, most: Most::ANY };
        let mut chosen: Vec<Effort> = Vec::new();
        for recall in recalls.iter().rev() {
            let most = chosen.last().map_or(usize::MAX, |effort| effort.probes);
            let within = || measured.iter().filter(|(.., effort)| effort.probes <= most);
            let enough = within().filter(|(found, ..)| found >= recall);
            let cheapest = enough.min_by(|a, b| a.1.total_cmp(&b.1));
            let best = || within().max_by(|a, b| a.0.total_cmp(&b.0).then(b.1.total_cmp(&a.1)));
            chosen.push(cheapest.or_else(best).map_or(least, |(.., effort)| *effort));
        }
        chosen.reverse();
        chosen
    }

    /// Numbers of probes to choose from.
    fn caps(&self) -> Vec<usize> {
        let mut caps: Vec<usize> = std::iter::successors(Some(1), |cap| Some(cap + cap / 6 + 1))
            .take_while(|c| *c < self.probes)
            .collect();
        caps.push(self.probes);
        caps
    }
}

/// What a query costs, in nanoseconds: what was measured on real data sets of 50 to 784 dimensions,
/// where one core waits for memory most of the time.
struct Prices {
    dim: f32,
    /// Bytes of a code that a scan reads.
    code: f32,
    flat: bool,
}

impl Prices {
    /// The price of a mean query, which visits `cells` of at most `probes` and compares `rows`.
    fn of(&self, probes: usize, codes: f32, cells: f32, rows: f32) -> f32 {
        // The cells of some lists are compared by a sketch, twice as many as are visited by centroid.
        let route = 6.0 * cells.sqrt() * (self.dim + 64.0) + 2.0 * cells * (60.0 + self.dim / 4.0);
        let scan = cells * 250.0 + codes * self.code / GB_PER_S;
        let row = if self.flat { 0.0 } else { 300.0 + 4.0 * self.dim / GB_PER_S };
        // The hardest queries go as far as they may.
        let worst = probes as f32 * 50.0;
        route + scan + worst + rows * row
    }
}

/// What a core reads of runs of pages here and there.
const GB_PER_S: f32 = 8.0;

impl Inner {
    /// Measures the recall settings again and stores them.
    ///
    /// The caller holds the upkeep.
    pub(crate) fn measure_now(&self) -> Result<()> {
        self.catch_up(&self.trainings)?;
        let snapshot = self.snapshot();
        let Some(indexed) = &snapshot.indexed else { return Ok(()) };
        let settings = self.trainings.run(|| self.tune(&snapshot, indexed))?;
        let mut change = Change::default();
        let generation = u64::from(indexed.model.generation());
        change.put(Table::Settings, generation, Settings(settings.clone()).encode());
        let mut writer = self.writer();
        writer.ready()?;
        let mut next = writer.working.clone();
        // Nobody trained meanwhile: we hold the upkeep.
        if let Some(indexed) = &mut next.indexed {
            indexed.settings = Arc::new(settings);
        }
        writer.working = next;
        self.commit(&mut writer, change)
    }

    /// Measures the recall settings of the model and the lists of a snapshot. Runs in our threads.
    pub(crate) fn tune(&self, trial: &Snapshot, indexed: &Indexed) -> Result<Vec<Setting>> {
        let queries = self.truths(trial, indexed)?;
        if queries.is_empty() {
            return Ok(Vec::new());
        }
        let cells = indexed.model.router.cells();
        let mut probes = (cells / 64).clamp(16, cells.max(16)).min(cells);
        // The cheapest of many efforts is one that its judges were lucky with: others confirm it.
        let (judges, others) = queries.split_at(queries.len().div_ceil(3));
        let others = if others.is_empty() { judges } else { others };
        // How far to go is found with a few of them.
        let mut asked = &judges[..judges.len().div_ceil(4)];
        loop {
            self.progress("measuring recall", probes as u64, cells as u64);
            let survey = self.survey(trial, indexed, asked, probes)?;
            // Some slack beyond the highest recall leaves a choice of rerank depths.
            if probes == cells || survey.most() >= RECALLS[RECALLS.len() - 1] + 0.004 {
                if asked.len() < judges.len() {
                    asked = judges;
                    continue;
                }
                let flat = indexed.model.pq.is_none();
                let scanned = indexed.model.layout.code_bytes() + FACTORS;
                let code = scanned as f32 / BLOCK_ROWS as f32;
                let prices = Prices { dim: self.dim as f32, code, flat };
                let efforts = survey.cheapest(&RECALLS, &prices);
                drop(survey);
                let judges = Judges { inner: self, snapshot: trial, indexed, queries: others };
                let confirm = |(recall, effort): (&f32, Effort)| judges.confirm(*recall, effort);
                return RECALLS.iter().zip(efforts).map(confirm).collect();
            }
            probes = (probes * 3).min(cells);
        }
    }

    /// Exact neighbours of the rows that were kept out of training, in one pass over all rows.
    fn truths(&self, snapshot: &Snapshot, indexed: &Indexed) -> Result<Vec<Probe>> {
        let most = (DISTANCES / snapshot.state.live.max(1)).clamp(1000, 2000) as usize;
        let (mut queries, mut vectors) = (Vec::new(), Vec::new());
        for id in self.held_out(snapshot).into_iter().take(most) {
            if let Some(row) = snapshot.rows.get(id)? {
                let vector = row.vector().into_owned();
                // A row that cannot be compared is no query either: only a forger stores such a one.
                let Ok(Query { vector: searched, .. }) = self.prepare(&vector) else { continue };
                if self.in_bounds(&searched) {
                    vectors.extend_from_slice(&searched);
                    let vector = searched.into_owned();
                    queries.push(Probe { id, vector, truth: Vec::new(), last: f32::INFINITY });
                }
            }
        }
        // Inner products with rows less the center are all less by the same; squared distances stay.
        let (l2, center) = (self.metric == Metric::L2, indexed.model.center.clone());
        if l2 {
            shift(&mut vectors, &center);
        }
        let weight = if l2 { 1.0 } else { 0.0 };
        let mut truth = Truth::new(self.isa, &vectors, self.dim, (K + 1, weight));
        let source = Source { inner: self, snapshot, held: HashSet::new(), center };
        source.each("measuring recall", |ids, rows| {
            truth.add(ids, rows);
            Ok(())
        })?;
        let each = queries.iter_mut().zip(vectors.chunks_exact(self.dim));
        for ((query, vector), hits) in each.zip(truth.nearest()) {
            let others = hits.into_iter().filter(|hit| hit.0 as u64 != query.id);
            let along = if l2 { 0.0 } else { 2.0 * self.isa.dot(vector, &indexed.model.center) };
            let own = self.isa.dot(vector, vector) - along;
            for (id, key) in others.take(K) {
                query.truth.push(id as u64);
                query.last = own + key;
            }
        }
        Ok(queries)
    }

    /// What the keys of rows leave out of their squared distances.
    pub(super) fn apart(&self, indexed: &Indexed) -> f32 {
        if self.metric == Metric::L2 { 0.0 } else { indexed.model.record.squared }
    }

    fn survey(
        &self,
        snapshot: &Snapshot,
        indexed: &Indexed,
        queries: &[Probe],
        probes: usize,
    ) -> Result<Survey> {
        let effort = Effort {
            probes,
            rerank: DEEPEST + indexed.model.copies(),
            stop: 0.0,
            slack: 0.0,
            most: Most::ANY,
        };
        let one = |query: &Probe| -> Result<Sight> {
            self.go_on()?;
            let mut trace = trace(snapshot, indexed, &self.prepare(&query.vector)?, effort)?;
            trace.near.retain(|near| near.id != query.id);
            let bit = |near: &Near| match query.truth.iter().position(|id| *id == near.id) {
                Some(at) => 1 << at,
                None => 0,
            };
            let truth = trace.near.iter().map(bit).collect();
            Ok(Sight { trace, truth, last: query.last + self.apart(indexed) })
        };
        let sights = queries.par_iter().map(one).collect::<Result<_>>()?;
        let wanted = queries.iter().map(|q| q.truth.len()).sum();
        Ok(Survey { probes, sights, wanted })
    }
}
