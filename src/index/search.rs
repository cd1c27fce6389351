//! One query: route to cells, scan their codes, rerank the best from the rows.

use super::Inner;
use super::exact;
use super::model::Model;
use super::snapshot::{Indexed, Snapshot};
use super::topk::{Near, Survivors, TopK};
use super::tune::within;
use crate::error::{Error, Result};
use crate::kernel::{Ahead, Hit, Isa, Scan};
use crate::options::Metric;
use crate::quantizer::router::Probe;
use crate::quantizer::table::Table;
use crate::quantizer::tour::Tour;
use crate::storage::rows::{RowBytes, RowPlace};
use cellardb_format::{BLOCK_ROWS, CodeKind, NO_ID, floats};
use std::borrow::Cow;
use std::cell::RefCell;

/// How far a search goes.
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
}

/// What a search found, and what it took.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct Answer {
    /// Ids and distances, ascending by distance, then by id.
    pub hits: Vec<(usize, f32)>,
    /// Inverted lists that were touched.
    pub lists: usize,
    /// Cells that were scanned.
    pub cells: usize,
    /// Codes that were scanned, and rows that have no code and were compared in full.
    pub codes: usize,
    /// Rows that were read to rerank.
    pub reranked: usize,
}

/// A query brought to what is compared: normalised under cosine.
#[derive(Debug)]
pub(crate) struct Query<'a> {
    pub(crate) vector: Cow<'a, [f32]>,
    metric: Metric,
    isa: Isa,
}

impl Query<'_> {
    /// The exact distance to a stored row.
    pub(crate) fn distance_to(&self, row: &RowBytes<'_>) -> f32 {
        // The factor lies behind the vector: another cache miss, where it is not needed.
        let scale = if self.metric == Metric::Cosine { row.scale() } else { 1.0 };
        self.distance(&row.vector(), scale)
    }

    /// The exact distance to a row as inserted; `scale` normalises it under cosine.
    pub(super) fn distance(&self, row: &[f32], scale: f32) -> f32 {
        match self.metric {
            Metric::L2 => self.isa.l2(&self.vector, row),
            Metric::InnerProduct => 1.0 - self.product(row, 1.0),
            Metric::Cosine => 1.0 - self.product(row, scale),
        }
    }

    /// The inner product times `scale`. Terms that are too large are added again in double precision.
    fn product(&self, row: &[f32], scale: f32) -> f32 {
        let dot = self.isa.dot(&self.vector, row);
        if dot.is_finite() {
            return dot * scale;
        }
        let terms = self.vector.iter().zip(row).map(|(q, x)| f64::from(*q) * f64::from(*x));
        (terms.sum::<f64>() * f64::from(scale)) as f32
    }

    /// The squared distance that an estimate stands for, `own` being the squared length of the query.
    pub(crate) fn squared(&self, model: &Model, estimate: f32, own: f32) -> f32 {
        match self.metric {
            Metric::L2 => estimate,
            Metric::Cosine => 2.0 * estimate,
            Metric::InnerProduct => own + model.record.squared - 2.0 + 2.0 * estimate,
        }
    }

    /// The part of the estimate that belongs to a cell (SPEC.md, section 5).
    fn base(&self, probe: &Probe, squared: f32) -> f32 {
        match self.metric {
            Metric::InnerProduct => 1.0 - probe.dot,
            Metric::L2 => squared + probe.norm - 2.0 * probe.dot,
            Metric::Cosine => (squared + probe.norm) / 2.0 - probe.dot,
        }
    }
}

/// Room for a search, kept per thread.
#[derive(Debug, Default)]
struct Scratch {
    tour: Tour,
    table: Table,
    rotated: Vec<f32>,
    hits: Vec<Hit>,
    survivors: Survivors,
    /// One bit per list: whether it was touched.
    touched: Vec<u64>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl Inner {
    /// Checks a query and prepares it.
    pub(crate) fn prepare<'a>(&self, vector: &'a [f32]) -> Result<Query<'a>> {
        if vector.len() != self.dim {
            return Err(Error::Dimension { expected: self.dim, found: vector.len() });
        }
        let scale = self.scale(vector).map_err(|why| Error::Vector { position: 0, why })?;
        let vector = self.searched(vector, &[scale]);
        Ok(Query { vector, metric: self.metric, isa: self.isa })
    }

    pub(crate) fn answer(
        &self,
        snapshot: &Snapshot,
        vector: &[f32],
        k: usize,
        plan: Plan,
    ) -> Result<Answer> {
        let query = self.prepare(vector)?;
        if let (Some(indexed), Plan::Probe(effort)) = (&snapshot.indexed, plan)
            && k > 0
            && self.in_bounds(&query.vector)
        {
            let mut top = TopK::new(k);
            let compared = match self.compare_plain(snapshot, &query, &mut top) {
                // They have their codes by now, and their file may have been compacted away.
                Err(_) if self.snapshot().plain.is_empty() && !snapshot.plain.is_empty() => {
                    return self.answer(&self.snapshot(), vector, k, plan);
                }
                compared => compared?,
            };
            let found = SCRATCH
                .with_borrow_mut(|s| widen(snapshot, indexed, &query, (k, effort), &top, s))?;
            if let Some(mut answer) = found {
                answer.codes += compared;
                return Ok(answer);
            }
        }
        let mut answers = exact::answer(snapshot, &[query], k)?;
        Ok(answers.pop().unwrap_or_default())
    }

    /// Whether no distance between such vectors overflows, nor a sum on the way. Rows beyond it are not
    /// trained on; queries beyond it are compared with every row.
    pub(crate) fn in_bounds(&self, vector: &[f32]) -> bool {
        self.isa.dot(vector, vector) < f32::MAX / 64.0
    }
}

/// Probes more and more cells until `k` rows are found, or all that live; `None` if the cells and
/// the nearest of the plain rows do not hold as many, estimates that overflowed aside.
fn widen(
    snapshot: &Snapshot,
    indexed: &Indexed,
    query: &Query<'_>,
    (k, mut effort): (usize, Effort),
    plain: &TopK,
    scratch: &mut Scratch,
) -> Result<Option<Answer>> {
    let wanted = k.min(usize::try_from(snapshot.state.live).unwrap_or(usize::MAX));
    let (mut codes, mut reranked) = (0, 0);
    loop {
        let mut answer = probe(snapshot, indexed, query, (k, effort), plain, scratch)?;
        answer.codes += codes;
        answer.reranked += reranked;
        if answer.hits.len() >= wanted {
            return Ok(Some(answer));
        }
        if effort.probes >= indexed.model.router.cells() {
            return Ok(None);
        }
        (codes, reranked) = (answer.codes, answer.reranked);
        effort = Effort { probes: effort.probes.saturating_mul(4), stop: 0.0, ..effort };
    }
}

fn probe(
    snapshot: &Snapshot,
    indexed: &Indexed,
    query: &Query<'_>,
    (k, effort): (usize, Effort),
    plain: &TopK,
    scratch: &mut Scratch,
) -> Result<Answer> {
    let flat = indexed.model.pq.is_none();
    let least = k.saturating_mul(indexed.model.copies());
    let rerank = if flat { k } else { effort.rerank.max(least) };
    let mut answer = scan(snapshot, indexed, query, Effort { rerank, ..effort }, scratch, None)?;
    let mut top = plain.clone();
    let survivors = scratch.survivors.distinct();
    if flat {
        survivors.iter().for_each(|near| top.push(*near));
    } else {
        answer.reranked =
            rerank_rows(snapshot, indexed, query, (survivors, effort.slack), &mut top)?;
    }
    answer.hits = top.into_hits();
    Ok(answer)
}

/// Compares with rows in full, the best estimates first, until the next is too far from the last of the
/// best so far. So many at a time are looked up first, those that were never read are read ahead in one
/// go, and all are asked for ahead: what takes time is that each lies elsewhere.
fn rerank_rows(
    snapshot: &Snapshot,
    indexed: &Indexed,
    query: &Query<'_>,
    (survivors, slack): (&[Near], f32),
    top: &mut TopK,
) -> Result<usize> {
    let own = query.isa.dot(&query.vector, &query.vector);
    let squared = |distance: f32| query.squared(&indexed.model, distance, own);
    let place = |near: &Near| snapshot.rows.place(near.id).ok_or_else(|| lost(indexed, near.id));
    let begin =
        |row: &RowBytes<'_>| query.isa.prefetch(&row.bytes()[..ROW_START.min(row.bytes().len())]);
    let mut reranked = 0;
    for survivors in survivors.chunks(RERANKED) {
        let places: Vec<_> = survivors.iter().map(place).collect::<Result<_>>()?;
        places.iter().filter(|place| !place.is_seen()).for_each(RowPlace::will_need);
        let rows = places.iter().map(|place| snapshot.rows.at(place));
        let rows: Vec<RowBytes<'_>> = rows.collect::<Result<_>>()?;
        rows.iter().take(LATER).for_each(begin);
        for (at, (near, row)) in survivors.iter().zip(&rows).enumerate() {
            if squared(near.distance) >= within(slack, squared(top.limit())) {
                return Ok(reranked);
            }
            rows.iter().skip(at + LATER).take(1).for_each(begin);
            top.push(Near { distance: query.distance_to(row), ..*near });
            reranked += 1;
        }
    }
    Ok(reranked)
}

/// What a scan met, for measuring what smaller ones would have found.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    /// The best estimates as squared distances, ascending, copies of a row apart.
    pub(crate) near: Vec<Near>,
    /// The squared distance of each probed cell.
    pub(crate) cells: Vec<f32>,
    /// Codes scanned up to and with each probed cell.
    pub(crate) codes: Vec<u32>,
}

impl Trace {
    /// Notes how many codes there are up to and with a probed cell, after the one noted before.
    fn note(&mut self, order: usize, codes: usize) {
        let before = self.codes.last().copied().unwrap_or(0);
        self.codes.resize(order + 1, before);
        self.codes[order] = u32::try_from(codes).unwrap_or(u32::MAX);
    }
}

/// Scans without reranking.
pub(crate) fn trace(
    snapshot: &Snapshot,
    indexed: &Indexed,
    query: &Query<'_>,
    effort: Effort,
) -> Result<Trace> {
    SCRATCH.with_borrow_mut(|scratch| {
        let mut trace = Trace::default();
        scan(snapshot, indexed, query, effort, scratch, Some(&mut trace))?;
        let own = query.isa.dot(&query.vector, &query.vector);
        let best = scratch.survivors.best();
        trace.near.extend(best.map(|near| {
            let distance = query.squared(&indexed.model, near.distance, own);
            Near { distance, ..*near }
        }));
        trace.near.sort_unstable();
        trace.cells.truncate(trace.codes.len());
        Ok(trace)
    })
}

/// Scans the nearest cells; the best estimates are left among the survivors.
fn scan(
    snapshot: &Snapshot,
    indexed: &Indexed,
    query: &Query<'_>,
    effort: Effort,
    scratch: &mut Scratch,
    mut trace: Option<&mut Trace>,
) -> Result<Answer> {
    let model = &*indexed.model;
    let Scratch { tour, table, rotated, hits, survivors, touched } = scratch;
    touched.clear();
    touched.resize(indexed.lists.len().div_ceil(64), 0);
    survivors.reset(effort.rerank);
    model.table(&query.vector, table, rotated);
    let own = query.isa.dot(&query.vector, &query.vector);
    model.router.begin(query.isa, &query.vector, effort.probes, tour);
    let mut answer = Answer::default();
    let (mut runs, mut met): (Vec<Run<'_>>, u32) = (Vec::new(), 0);
    'search: loop {
        let batch = model.router.more(query.isa, &query.vector, tour);
        if batch.is_empty() {
            break;
        }
        for probes in batch.chunks(TOGETHER) {
            let from = runs.len();
            gather(snapshot, indexed, met, probes, &mut runs)?;
            runs[from..].iter().take(AHEAD).for_each(|run| query.isa.prefetch(&run.blocks));
            met += probes.len() as u32;
            if let Some(trace) = &mut trace {
                let distances = probes.iter().map(|probe| own + probe.norm - 2.0 * probe.dot);
                trace.cells.extend(distances);
            }
            for at in from..runs.len() {
                let run = &runs[at];
                let probe = &run.probe;
                let from_cell = own + probe.norm - 2.0 * probe.dot;
                if effort.stop > 0.0
                    && from_cell >= effort.stop * query.squared(model, survivors.limit, own)
                {
                    break 'search;
                }
                let coming = |at: usize| runs.get(at).map_or(&[][..], |run| &*run.blocks);
                let ahead = Ahead { next: coming(at + AHEAD), later: coming(at + LATER) };
                let list = model.router.list_of(probe.cell);
                if let Some(word) = touched.get_mut(list as usize / 64) {
                    *word |= 1 << (list % 64);
                }
                answer.cells = run.order as usize + 1;
                answer.codes += run.rows;
                if let Some(trace) = &mut trace {
                    trace.note(run.order as usize, answer.codes);
                }
                let limit = survivors.limit;
                estimate(model, query, (table, own), run, (ahead, limit), hits);
                for hit in hits.iter().filter(|hit| hit.estimate <= limit) {
                    query.isa.prefetch(run.id_of(model, hit.slot));
                    let near =
                        Near { distance: hit.estimate, probe: at as u32, id: hit.slot.into() };
                    survivors.push(near, |near| look_up(model, &runs, snapshot, near));
                }
            }
        }
    }
    survivors.settle(|near| look_up(model, &runs, snapshot, near));
    answer.lists = touched.iter().map(|w| w.count_ones() as usize).sum();
    Ok(answer)
}

/// Estimates the rows of a run; those beyond the limit may be left out.
fn estimate(
    model: &Model,
    query: &Query<'_>,
    (table, own): (&Table, f32),
    run: &Run<'_>,
    (ahead, limit): (Ahead<'_>, f32),
    hits: &mut Vec<Hit>,
) {
    let scan = Scan {
        table: &table.bytes,
        block_bytes: model.layout.block_bytes(),
        base: query.base(&run.probe, own),
        bias: table.bias,
        slope: table.slope,
        limit,
    };
    hits.clear();
    match model.record.code {
        CodeKind::Flat => compare_flat(model, query, &run.blocks, hits),
        CodeKind::Pq8 => query.isa.scan8(&run.blocks, &scan, ahead, hits),
        CodeKind::Pq4 | CodeKind::RaBitQ => query.isa.scan4(&run.blocks, &scan, ahead, hits),
    }
}

/// Cells whose runs are looked up together, so that the cache misses of that overlap. What was never
/// read is read then: not more of it than a search that ends soon can bear.
const TOGETHER: usize = 64;
/// Runs that are asked for before they are scanned.
const AHEAD: usize = 2;
/// Runs and rows that come so much later have their page looked up.
const LATER: usize = 4;
/// Rows to rerank that are looked up together.
const RERANKED: usize = 32;
/// Bytes of a row that are asked for ahead; the processor asks for the rest when these are read.
const ROW_START: usize = 256;

/// Blocks of one probed cell that lie together.
struct Run<'a> {
    /// Which of the probed cells.
    order: u32,
    probe: Probe,
    rows: usize,
    blocks: Cow<'a, [u8]>,
}

impl Run<'_> {
    /// The block of a slot and its lane.
    fn place_of(&self, model: &Model, slot: u32) -> (&[u8], usize) {
        let (number, lane) = (slot as usize / BLOCK_ROWS, slot as usize % BLOCK_ROWS);
        let bytes = model.layout.block_bytes();
        (self.blocks.get(number * bytes..(number + 1) * bytes).unwrap_or_default(), lane)
    }

    /// The bytes of the id in a slot.
    fn id_of(&self, model: &Model, slot: u32) -> &[u8] {
        let (block, lane) = self.place_of(model, slot);
        model.layout.id_bytes(block, lane)
    }
}

/// Adds the runs of probed cells: of each its frames, then its rows in the tail. Those that were never
/// touched are read ahead in one go; the rest is in memory, as far as we know.
fn gather<'a>(
    snapshot: &'a Snapshot,
    indexed: &'a Indexed,
    first: u32,
    probes: &[Probe],
    runs: &mut Vec<Run<'a>>,
) -> Result<()> {
    let router = &indexed.model.router;
    let isa = indexed.model.isa();
    probes.iter().for_each(|probe| isa.prefetch(indexed.lists.places(probe.cell)));
    let places = || probes.iter().flat_map(|probe| indexed.lists.places(probe.cell));
    let mut asked = false;
    for (order, probe) in (first..).zip(probes) {
        for place in indexed.lists.places(probe.cell) {
            let list = indexed.lists.list_of(place);
            if !asked && !list.is_seen(place) {
                let lists = places().map(|place| (indexed.lists.list_of(place), place));
                let unseen = lists.filter(|(list, place)| !list.is_seen(place));
                unseen.for_each(|(list, place)| list.will_need(place));
                asked = true;
            }
            let blocks = list.blocks(place)?;
            runs.push(Run { order, probe: *probe, rows: place.rows as usize, blocks });
        }
        if snapshot.tail.bytes() > 0
            && let Some(cell) = snapshot.tail.cell(router.list_of(probe.cell), probe.cell)
        {
            let blocks = Cow::Borrowed(&*cell.blocks);
            runs.push(Run { order, probe: *probe, rows: cell.rows, blocks });
        }
    }
    Ok(())
}

/// Turns a slot of a run into the row that is there; false if there is none, or it was removed.
fn look_up(model: &Model, runs: &[Run<'_>], snapshot: &Snapshot, near: &mut Near) -> bool {
    let run = &runs[near.probe as usize];
    let (block, lane) = run.place_of(model, near.id as u32);
    let id = model.layout.id(block, lane);
    *near = Near { distance: near.distance, probe: run.order, id };
    id != NO_ID && !snapshot.dead.contains(id)
}

/// Codes that are the vectors themselves: the distance is exact, the factor normalises.
fn compare_flat(model: &Model, query: &Query<'_>, blocks: &[u8], hits: &mut Vec<Hit>) {
    let row_bytes = 4 * query.vector.len();
    for (number, block) in (0..).zip(blocks.chunks_exact(model.layout.block_bytes())) {
        for (lane, row) in (0..).zip(block.chunks_exact(row_bytes).take(BLOCK_ROWS)) {
            if model.layout.id(block, lane as usize) != NO_ID {
                let factor = model.layout.factors(block, lane as usize).add;
                let estimate = query.distance(&floats(row), factor);
                hits.push(Hit { estimate, slot: number * BLOCK_ROWS as u32 + lane });
            }
        }
    }
}

/// A list names a row that is not there: the list is at odds with the catalog.
fn lost(indexed: &Indexed, id: u64) -> Error {
    let path = indexed.lists.first().map(|l| l.path().to_owned()).unwrap_or_default();
    Error::corrupt(path, 0, format!("a list names row {id}, which is in no row segment"))
}
