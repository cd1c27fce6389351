//! One query: route to cells, scan their codes, rerank the best from the rows.

use super::Inner;
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plan {
    /// Compares with every row.
    Exact,
    /// Scans `probes` cells and reranks the best `rerank` estimates.
    Probe { probes: usize, rerank: usize },
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
    /// Codes that were scanned (rows, when the search was exact), those of a cell as often as it was.
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
        let scale = if self.metric == Metric::Cosine { row.scale() } else { 1.0 };
        self.distance(&row.vector(), scale)
    }

    /// The exact distance to a row as inserted; `scale` normalises it under cosine.
    fn distance(&self, row: &[f32], scale: f32) -> f32 {
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
        query: &[f32],
        k: usize,
        plan: Plan,
    ) -> Result<Answer> {
        let query = self.prepare(query)?;
        if let (Some(indexed), Plan::Probe { probes, rerank }) = (&snapshot.indexed, plan)
            && k > 0
            && self.in_bounds(&query.vector)
        {
            let limits = (k, probes, rerank.max(k));
            let found = SCRATCH.with_borrow_mut(|s| widen(snapshot, indexed, &query, limits, s))?;
            if let Some(answer) = found {
                return Ok(answer);
            }
        }
        let mut answers = super::exact::answer(snapshot, &[query], k)?;
        Ok(answers.pop().unwrap_or_default())
    }

    /// Whether no distance between such vectors overflows, nor a sum on the way. What is beyond is
    /// not trained on, and compared with every row.
    pub(crate) fn in_bounds(&self, vector: &[f32]) -> bool {
        self.isa.dot(vector, vector) < f32::MAX / 64.0
    }
}

/// Probes more and more cells until `k` rows are found, or all that live; `None` if the cells do not
/// hold as many, estimates that overflowed aside.
fn widen(
    snapshot: &Snapshot,
    indexed: &Indexed,
    query: &Query<'_>,
    (k, mut probes, rerank): (usize, usize, usize),
    scratch: &mut Scratch,
) -> Result<Option<Answer>> {
    let wanted = k.min(usize::try_from(snapshot.state.live).unwrap_or(usize::MAX));
    let (mut codes, mut reranked) = (0, 0);
    loop {
        let mut answer = probe(snapshot, indexed, query, (k, probes, rerank), scratch)?;
        answer.codes += codes;
        answer.reranked += reranked;
        if answer.hits.len() >= wanted {
            return Ok(Some(answer));
        }
        if probes >= indexed.model.router.cells() {
            return Ok(None);
        }
        (codes, reranked) = (answer.codes, answer.reranked);
        probes = probes.saturating_mul(4);
    }
}

fn probe(
    snapshot: &Snapshot,
    indexed: &Indexed,
    query: &Query<'_>,
    (k, probes, rerank): (usize, usize, usize),
    scratch: &mut Scratch,
) -> Result<Answer> {
    let flat = indexed.model.pq.is_none();
    let keep = if flat { k } else { rerank };
    let mut answer = scan(snapshot, indexed, query, (probes, keep), scratch, None)?;
    let mut top = TopK::new(k);
    for near in scratch.survivors.best() {
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
#[derive(Debug)]
pub(crate) struct Trace {
    /// The best estimates, ascending.
    pub(crate) near: Vec<Near>,
    /// Codes scanned up to and with each probed cell.
    pub(crate) codes: Vec<u32>,
}

/// Scans without reranking.
pub(crate) fn trace(
    snapshot: &Snapshot,
    indexed: &Indexed,
    query: &Query<'_>,
    probes: usize,
    keep: usize,
) -> Result<Trace> {
    SCRATCH.with_borrow_mut(|scratch| {
        let mut codes = Vec::with_capacity(probes);
        scan(snapshot, indexed, query, (probes, keep), scratch, Some(&mut codes))?;
        let mut near = scratch.survivors.best().to_vec();
        near.sort_unstable();
        Ok(Trace { near, codes })
    })
}

/// Scans the nearest `probes` cells; the best `keep` estimates are left among the survivors.
fn scan(
    snapshot: &Snapshot,
    indexed: &Indexed,
    query: &Query<'_>,
    (probes, keep_best): (usize, usize),
    scratch: &mut Scratch,
    mut trace: Option<&mut Vec<u32>>,
) -> Result<Answer> {
    let model = &*indexed.model;
    let Scratch { route, table, hits, survivors, touched } = scratch;
    touched.clear();
    touched.resize(indexed.lists.len().div_ceil(64), 0);
    survivors.reset(keep_best);
    if let Some(pq) = &model.pq {
        let s = if query.metric == Metric::L2 { -2.0 } else { -1.0 };
        table.build(pq, &query.vector, s);
    }
    let squared = query.isa.dot(&query.vector, &query.vector);
    let mut answer = Answer::default();
    let probed = model.router.rank(query.isa, &query.vector, probes, route);
    // What was never touched is read ahead in one go; the rest is in memory, as far as we know.
    for probe in probed {
        let number = model.router.list_of(probe.cell);
        if let Some(list) = indexed.lists.get(number as usize) {
            list.will_need_unseen(probe.cell);
        }
        if let Some(word) = touched.get_mut(number as usize / 64) {
            *word |= 1 << (number % 64);
        }
    }
    answer.lists = touched.iter().map(|w| w.count_ones() as usize).sum();
    answer.cells = probed.len();
    let mut met = vec![0; if trace.is_some() { probed.len() } else { 0 }];
    let mut runs = (0..)
        .zip(probed)
        .flat_map(|(order, probe)| runs(snapshot, indexed, order, probe))
        .peekable();
    while let Some(run) = runs.next() {
        let run = run?;
        // The next run comes near while this one is scanned.
        if let Some(Ok(next)) = runs.peek() {
            query.isa.prefetch(next.blocks.get(..NEAR.min(next.blocks.len())).unwrap_or_default());
        }
        answer.codes += run.rows;
        if let Some(met) = met.get_mut(run.order as usize) {
            *met += run.rows;
        }
        if model.pq.is_none() {
            scan_flat(model, query, &run, snapshot, survivors);
            continue;
        }
        let base = query.base(run.probe, squared) + table.bias;
        let (limit, block_bytes) = (survivors.limit, model.layout.block_bytes());
        let scan = Scan { table: &table.bytes, block_bytes, base, slope: table.slope, limit };
        hits.clear();
        match model.record.code {
            CodeKind::Pq8 => query.isa.scan8(&run.blocks, &scan, hits),
            _ => query.isa.scan4(&run.blocks, &scan, hits),
        }
        keep(model, &run, hits, snapshot, survivors);
    }
    if let Some(trace) = &mut trace {
        let mut sum = 0;
        trace.extend(met.iter().map(|rows| {
            sum += rows;
            u32::try_from(sum).unwrap_or(u32::MAX)
        }));
    }
    Ok(answer)
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
            let distance = query.distance(&floats(row), model.layout.factor(block, lane));
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
