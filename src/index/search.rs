//! One query: route to cells, scan their codes, rerank the best from the rows.

use super::Inner;
use super::exact;
use super::model::Model;
use super::snapshot::{Indexed, Snapshot};
use super::topk::{Near, Survivors, TopK};
use crate::error::{Error, Result};
use crate::kernel::{Hit, Isa, Scan};
use crate::options::Metric;
use crate::quantizer::router::{Probe, RouteScratch};
use crate::quantizer::table::Table;
use crate::storage::rows::RowBytes;
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
    route: RouteScratch,
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
    for near in scratch.survivors.distinct() {
        if flat {
            top.push(*near);
            continue;
        }
        let row = snapshot.rows.get(near.id)?.ok_or_else(|| lost(indexed, near.id))?;
        let distance = query.distance_to(&row);
        top.push(Near { distance, ..*near });
        answer.reranked += 1;
    }
    answer.hits = top.into_hits();
    Ok(answer)
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
        let best = scratch.survivors.best().iter();
        trace.near.extend(best.map(|near| {
            let distance = query.squared(&indexed.model, near.distance, own);
            Near { distance, ..*near }
        }));
        trace.near.sort_unstable();
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
    let Scratch { route, table, rotated, hits, survivors, touched } = scratch;
    touched.clear();
    touched.resize(indexed.lists.len().div_ceil(64), 0);
    survivors.reset(effort.rerank);
    model.table(&query.vector, table, rotated);
    let own = query.isa.dot(&query.vector, &query.vector);
    let probed = model.router.rank(query.isa, &query.vector, effort.probes, route);
    // What was never touched is read ahead in one go; the rest is in memory, as far as we know.
    for probe in probed {
        if let Some(list) = indexed.lists.get(model.router.list_of(probe.cell) as usize) {
            list.will_need_unseen(probe.cell);
        }
    }
    let mut answer = Answer::default();
    let mut runs = (0..)
        .zip(probed)
        .flat_map(|(order, probe)| runs(snapshot, indexed, order, probe))
        .peekable();
    while let Some(run) = runs.next() {
        let run = run?;
        let from_cell = own + run.probe.norm - 2.0 * run.probe.dot;
        if effort.stop > 0.0
            && from_cell >= effort.stop * query.squared(model, survivors.limit, own)
        {
            break;
        }
        // The next run comes near while this one is scanned.
        if let Some(Ok(next)) = runs.peek() {
            query.isa.prefetch(next.blocks.get(..NEAR.min(next.blocks.len())).unwrap_or_default());
        }
        let list = model.router.list_of(run.probe.cell);
        if let Some(word) = touched.get_mut(list as usize / 64) {
            *word |= 1 << (list % 64);
        }
        answer.cells = run.order as usize + 1;
        answer.codes += run.rows;
        if let Some(trace) = &mut trace {
            let codes = u32::try_from(answer.codes).unwrap_or(u32::MAX);
            note(trace, &run, probed, own, codes);
        }
        if model.pq.is_none() {
            scan_flat(model, query, &run, snapshot, survivors);
            continue;
        }
        let scan = Scan {
            table: &table.bytes,
            block_bytes: model.layout.block_bytes(),
            base: query.base(run.probe, own),
            bias: table.bias,
            slope: table.slope,
            limit: survivors.limit,
        };
        hits.clear();
        match model.record.code {
            CodeKind::Pq8 => query.isa.scan8(&run.blocks, &scan, hits),
            _ => query.isa.scan4(&run.blocks, &scan, hits),
        }
        keep(model, &run, hits, snapshot, survivors);
    }
    answer.lists = touched.iter().map(|w| w.count_ones() as usize).sum();
    Ok(answer)
}

/// Notes the cell of a run, and those before it that hold nothing.
fn note(trace: &mut Trace, run: &Run<'_>, probed: &[Probe], own: f32, codes: u32) {
    let order = run.order as usize;
    while trace.cells.len() <= order {
        let probe = probed.get(trace.cells.len()).unwrap_or(run.probe);
        trace.cells.push(own + probe.norm - 2.0 * probe.dot);
        let before = trace.codes.last().copied().unwrap_or(0);
        trace.codes.push(before);
    }
    if let Some(last) = trace.codes.get_mut(order) {
        *last = codes;
    }
}

/// Bytes of the next run that are asked for ahead: what the kernel does not reach in time.
const NEAR: usize = 4096;

/// Blocks of one probed cell that lie together.
struct Run<'a> {
    order: u32,
    probe: &'a Probe,
    blocks: Cow<'a, [u8]>,
    rows: usize,
}

/// The runs of a probed cell: its frames, then its rows in the tail.
fn runs<'a>(
    snapshot: &'a Snapshot,
    indexed: &'a Indexed,
    order: u32,
    probe: &'a Probe,
) -> impl Iterator<Item = Result<Run<'a>>> {
    let number = indexed.model.router.list_of(probe.cell);
    let list = indexed.lists.get(number as usize).into_iter();
    let frames = list.flat_map(move |list| {
        list.frames_of(probe.cell).map(move |frame| {
            let rows = list.entry().frames.get(frame).map_or(0, |f| f.rows as usize);
            list.blocks(frame).map(|blocks| Run { order, probe, blocks, rows })
        })
    });
    let tail = snapshot
        .tail
        .cell(number, probe.cell)
        .map(|cell| Ok(Run { order, probe, blocks: Cow::Borrowed(&cell.blocks), rows: cell.rows }));
    frames.chain(tail)
}

/// Resolves kernel hits to ids and keeps the live ones.
fn keep(
    model: &Model,
    run: &Run<'_>,
    hits: &[Hit],
    snapshot: &Snapshot,
    survivors: &mut Survivors,
) {
    for hit in hits {
        let (block, lane) = (hit.slot as usize / BLOCK_ROWS, hit.slot as usize % BLOCK_ROWS);
        let start = block * model.layout.block_bytes();
        let block = run.blocks.get(start..start + model.layout.block_bytes()).unwrap_or_default();
        let id = model.layout.id(block, lane);
        if hit.estimate < survivors.limit && id != NO_ID && !snapshot.dead.contains(id) {
            survivors.push(Near { distance: hit.estimate, probe: run.order, id });
        }
    }
}

/// Codes that are the vectors themselves: the distance is exact, the factor normalises.
fn scan_flat(
    model: &Model,
    query: &Query<'_>,
    run: &Run<'_>,
    snapshot: &Snapshot,
    survivors: &mut Survivors,
) {
    let row_bytes = 4 * query.vector.len();
    for block in run.blocks.chunks_exact(model.layout.block_bytes()) {
        for (lane, row) in block.chunks_exact(row_bytes).take(BLOCK_ROWS).enumerate() {
            let id = model.layout.id(block, lane);
            if id == NO_ID || snapshot.dead.contains(id) {
                continue;
            }
            let distance = query.distance(&floats(row), model.layout.factors(block, lane).add);
            if distance <= survivors.limit {
                survivors.push(Near { distance, probe: run.order, id });
            }
        }
    }
}

/// A list names a row that is not there: the list is at odds with the catalog.
fn lost(indexed: &Indexed, id: u64) -> Error {
    let path = indexed.lists.first().map(|l| l.path().to_owned()).unwrap_or_default();
    Error::corrupt(path, 0, format!("a list names row {id}, which is in no row segment"))
}
