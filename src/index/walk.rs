//! The walk of one query through the cells: which it enters, what it keeps of them, where it ends.

use super::model::{Model, shift};
use super::search::{Answer, Effort, Query, in_room};
use super::snapshot::{Indexed, Snapshot};
use super::topk::{Near, Survivors};
use crate::error::Result;
use crate::kernel::{Ahead, Hit, Scan};
use crate::options::Metric;
use crate::quantizer::router::Probe;
use crate::quantizer::table::Table;
use crate::quantizer::tour::Tour;
use cellardb_format::{BLOCK_ROWS, CodeKind, NO_ID, floats};
use rayon::prelude::*;
use std::borrow::Cow;

/// How far a query has come. Its buffers serve one query after another.
#[derive(Debug, Default)]
pub(super) struct Walk {
    table: Table,
    rotated: Vec<f32>,
    /// The query less the center of the model, and its squared length.
    shifted: Vec<f32>,
    apart: f32,
    /// The inner product of the query with the center.
    along: f32,
    /// The squared length of the query.
    own: f32,
    stop: f32,
    pub(super) survivors: Survivors,
    /// How many times more rows are asked for though they were read before.
    pub(super) asking: u32,
    /// One bit per list: whether it was touched.
    touched: Vec<u64>,
    met: Answer,
}

/// What a search works in, kept per thread.
#[derive(Debug, Default)]
pub(super) struct Room {
    tour: Tour,
    pub(super) walk: Walk,
    hits: Vec<Hit>,
    /// How many of ours share the work.
    pub(super) threads: usize,
}

impl Walk {
    /// Begins a walk that keeps the `effort.rerank` best estimates.
    fn begin(&mut self, snapshot: &Snapshot, indexed: &Indexed, query: &Query<'_>, effort: Effort) {
        self.touched.clear();
        self.touched.resize(indexed.lists.len().div_ceil(64), 0);
        self.survivors.reset(effort.rerank, snapshot.dead.len() == 0);
        (self.met, self.stop) = (Answer::default(), effort.stop);
        let (isa, center) = (query.isa, &indexed.model.center);
        self.shifted.clear();
        self.shifted.extend_from_slice(&query.vector);
        shift(&mut self.shifted, center);
        self.own = isa.dot(&query.vector, &query.vector);
        self.apart = isa.dot(&self.shifted, &self.shifted);
        self.along = isa.dot(&query.vector, center);
        indexed.model.table(&self.shifted, &mut self.table, &mut self.rotated);
    }

    /// The squared distance of a cell.
    fn squared(&self, probe: &Probe) -> f32 {
        self.apart + probe.norm - 2.0 * probe.dot
    }

    /// The part of the estimate that belongs to a cell (SPEC.md, section 5).
    fn base(&self, metric: Metric, probe: &Probe) -> f32 {
        match metric {
            Metric::InnerProduct => 1.0 - self.along - probe.dot,
            Metric::L2 => self.squared(probe),
            Metric::Cosine => self.squared(probe) / 2.0,
        }
    }

    /// Whether the bound ends the walk before a cell.
    fn ends_at(&self, model: &Model, query: &Query<'_>, probe: &Probe) -> bool {
        let last = query.squared(model, self.survivors.limit, self.own);
        self.stop > 0.0 && self.squared(probe) >= self.stop * last
    }

    /// Goes on into a run of a cell; false if the bound ends the walk before it.
    fn enter(&mut self, model: &Model, query: &Query<'_>, probe: &Probe, run: &Run<'_>) -> bool {
        if self.ends_at(model, query, probe) {
            return false;
        }
        let list = model.router.list_of(probe.cell);
        if let Some(word) = self.touched.get_mut(list as usize / 64) {
            *word |= 1 << (list % 64);
        }
        self.met.cells = run.order as usize + 1;
        self.met.codes += run.rows;
        self.met.reads += 1;
        self.met.bytes += run.blocks.len();
        true
    }

    /// Estimates the rows of a run; those beyond the limit may be left out.
    fn estimate(
        &self,
        model: &Model,
        query: &Query<'_>,
        (probe, blocks): (&Probe, &[u8]),
        ahead: Ahead<'_>,
        hits: &mut Vec<Hit>,
    ) {
        let scan = Scan {
            table: &self.table.bytes,
            block_bytes: model.layout.block_bytes(),
            base: self.base(model.metric, probe),
            bias: self.table.bias,
            slope: self.table.slope,
            limit: self.survivors.limit,
        };
        hits.clear();
        match model.record.code {
            CodeKind::Flat => compare_flat(model, query, blocks, hits),
            CodeKind::Pq8 => query.isa.scan8(blocks, &scan, ahead, hits),
            CodeKind::Pq4 | CodeKind::RaBitQ => query.isa.scan4(blocks, &scan, ahead, hits),
        }
    }

    /// Where the walk went.
    pub(super) fn answer(&self) -> Answer {
        let lists = self.touched.iter().map(|word| word.count_ones() as usize).sum();
        Answer { lists, ..self.met.clone() }
    }
}

/// What a walk met, for measuring what smaller ones would have found.
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

/// Walks without reranking.
pub(crate) fn trace(
    snapshot: &Snapshot,
    indexed: &Indexed,
    query: &Query<'_>,
    effort: Effort,
) -> Result<Trace> {
    in_room(|room| {
        let mut trace = Trace::default();
        alone(snapshot, indexed, query, effort, room, Some(&mut trace))?;
        let squared = |distance| query.squared(&indexed.model, distance, room.walk.own);
        let best = room.walk.survivors.best();
        trace.near.extend(best.map(|near| Near { distance: squared(near.distance), ..*near }));
        trace.near.sort_unstable();
        trace.cells.truncate(trace.codes.len());
        Ok(trace)
    })
}

/// Walks through the nearest cells; the best estimates are left among the survivors.
pub(super) fn alone(
    snapshot: &Snapshot,
    indexed: &Indexed,
    query: &Query<'_>,
    effort: Effort,
    room: &mut Room,
    mut trace: Option<&mut Trace>,
) -> Result<()> {
    let model = &*indexed.model;
    let Room { tour, walk, hits, threads } = room;
    walk.begin(snapshot, indexed, query, effort);
    model.router.begin(query.isa, &walk.shifted, effort.probes, tour);
    let (mut runs, mut met): (Vec<Run<'_>>, u32) = (Vec::with_capacity(2 * TOGETHER), 0);
    'walk: loop {
        let batch = model.router.more(query.isa, &walk.shifted, tour);
        if batch.is_empty() {
            break;
        }
        // Several threads scan a whole batch before any of it is kept.
        let shared = *threads > 1 && batch.len() >= SHARED;
        let together = if shared { batch.len() } else { TOGETHER };
        for probes in batch.chunks(together) {
            let from = runs.len();
            let cells = probes.iter().map(|probe| probe.cell);
            gather(snapshot, indexed, (met, effort.most.runs), cells, &mut runs)?;
            runs[from..].iter().take(AHEAD).for_each(|run| query.isa.prefetch(&run.blocks));
            if let Some(trace) = &mut trace {
                trace.cells.extend(probes.iter().map(|probe| walk.squared(probe)));
            }
            let probe_of = |run: &Run<'_>| &probes[(run.order - met) as usize];
            let mut scanned = if shared {
                spread(model, query, walk, &runs[from..], probe_of, *threads)
            } else {
                Vec::new()
            };
            for at in from..runs.len() {
                let run = &runs[at];
                let probe = probe_of(run);
                if !walk.enter(model, query, probe, run) {
                    break 'walk;
                }
                if let Some(trace) = &mut trace {
                    trace.note(run.order as usize, walk.met.codes);
                }
                match scanned.get_mut(at - from) {
                    Some(scanned) => std::mem::swap(hits, scanned),
                    None => {
                        walk.estimate(model, query, (probe, &run.blocks), ahead(&runs, at), hits);
                    }
                }
                let limit = walk.survivors.limit;
                for hit in hits.iter().filter(|hit| model.is_within(hit.estimate, limit)) {
                    let (probe, id) = (at as u32, hit.slot.into());
                    let near = Near { distance: hit.estimate, probe, id };
                    walk.survivors.push(near, |near| look_up(model, &runs, snapshot, near));
                }
            }
            met += probes.len() as u32;
        }
    }
    walk.survivors.settle(|near| look_up(model, &runs, snapshot, near));
    Ok(())
}

/// Estimates the rows of runs on several threads.
fn spread<'r>(
    model: &Model,
    query: &Query<'_>,
    walk: &Walk,
    runs: &'r [Run<'r>],
    probe_of: impl Fn(&Run<'_>) -> &'r Probe + Sync,
    threads: usize,
) -> Vec<Vec<Hit>> {
    let parts = runs.par_chunks(runs.len().div_ceil(threads).max(1));
    let part = |runs: &[Run<'_>]| -> Vec<Vec<Hit>> {
        let scan = |(at, run): (usize, &Run<'_>)| {
            let mut hits = Vec::new();
            let ahead = ahead(runs, at);
            walk.estimate(model, query, (probe_of(run), &run.blocks), ahead, &mut hits);
            hits
        };
        runs.iter().enumerate().map(scan).collect()
    };
    parts.flat_map_iter(part).collect()
}

/// Cells whose runs are looked up together, so that the cache misses of that overlap. What was never
/// read is read then: not more of it than a search that ends soon can bear.
const TOGETHER: usize = 64;
/// Cells of a batch that is worth handing out: what is kept of them is not known until all are
/// scanned, so that more is looked at than one thread would.
pub(super) const SHARED: usize = 256;
/// Runs that are asked for before they are scanned.
const AHEAD: usize = 2;
/// Runs that come so much later have their page looked up.
const LATER: usize = 4;

/// What is scanned after a run.
fn ahead<'a>(runs: &'a [Run<'_>], at: usize) -> Ahead<'a> {
    let coming = |at: usize| runs.get(at).map_or(&[][..], |run| &*run.blocks);
    Ahead { next: coming(at + AHEAD), later: coming(at + LATER) }
}

/// Blocks of one probed cell that lie together.
struct Run<'a> {
    /// Which of the probed cells.
    order: u32,
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

    /// The row in a slot; [`NO_ID`] if there is none.
    fn id(&self, model: &Model, slot: u32) -> u64 {
        let (block, lane) = self.place_of(model, slot);
        model.layout.id(block, lane)
    }
}

/// Adds the runs of probed cells, numbered from `first` on: of each its frames, then its rows in the
/// tail; no more than `most` in all. Those that were never touched are read ahead in one go; the rest is in
/// memory, as far as we know.
fn gather<'a>(
    snapshot: &'a Snapshot,
    indexed: &'a Indexed,
    (first, most): (u32, usize),
    cells: impl Iterator<Item = u32> + Clone,
    runs: &mut Vec<Run<'a>>,
) -> Result<()> {
    let (lists, isa) = (&*indexed.lists, indexed.model.isa());
    cells.clone().for_each(|cell| isa.prefetch(lists.places(cell)));
    let mut asked = false;
    for (order, cell) in (first..).zip(cells.clone()) {
        for place in lists.places(cell) {
            let list = lists.list_of(place);
            if !asked && !list.is_seen(place) {
                let places = cells.clone().flat_map(|cell| lists.places(cell));
                let places = places.map(|place| (lists.list_of(place), place));
                let unseen = places.filter(|(list, place)| !list.is_seen(place));
                let unseen = unseen.take(most.saturating_sub(runs.len()));
                unseen.for_each(|(list, place)| list.will_need(place));
                asked = true;
            }
            if runs.len() >= most {
                return Ok(());
            }
            let blocks = list.blocks(place)?;
            runs.push(Run { order, rows: place.rows as usize, blocks });
        }
        if runs.len() < most
            && snapshot.tail.bytes() > 0
            && let Some(tail) = snapshot.tail.cell(indexed.model.router.list_of(cell), cell)
        {
            runs.push(Run { order, rows: tail.rows, blocks: Cow::Borrowed(&*tail.blocks) });
        }
    }
    Ok(())
}

/// Turns a slot of a run into the row that is there; false if there is none, or it was removed.
fn look_up(model: &Model, runs: &[Run<'_>], snapshot: &Snapshot, near: &mut Near) -> bool {
    let run = &runs[near.probe as usize];
    let id = run.id(model, near.id as u32);
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
