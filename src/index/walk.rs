//! The walk of one query through the cells: which it enters, what it keeps of them, where it ends.

use super::distance::Query;
use super::model::{Model, shift};
use super::plan::Effort;
use super::search::{Answer, in_room};
use super::snapshot::{Indexed, Snapshot, Visible};
use super::topk::{Near, Ranked, Survivors, TopK};
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
    /// The query at the length that estimates are made at, less the center of the model, and its squared
    /// length.
    shifted: Vec<f32>,
    apart: f32,
    /// The inner product of the query with the center.
    along: f32,
    pub(super) scale: Scale,
    stop: f32,
    pub(super) survivors: Survivors,
    /// The nearest rows of cells that hold whole vectors.
    pub(super) nearest: TopK,
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

/// How estimates and exact keys of one query become squared distances, which bounds are in terms of.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Scale {
    /// Both are multiplied by this, and this is added.
    factor: f32,
    shift: f32,
    /// What the query was multiplied by: a key belongs to the query as it was given.
    stretch: f32,
}

impl Scale {
    /// The squared distance that an estimate stands for.
    pub(super) fn of_estimate(&self, estimate: f32) -> f32 {
        self.shift + self.factor * estimate
    }

    /// The estimate that an exact key would have.
    pub(super) fn estimate_of(&self, key: f64) -> f32 {
        (f64::from(self.stretch) * key) as f32
    }

    /// The squared distance that an exact key stands for.
    pub(super) fn of_key(&self, key: f64) -> f32 {
        self.of_estimate(self.estimate_of(key))
    }
}

impl Walk {
    /// Begins a walk that keeps the `effort.rerank` best estimates.
    fn begin(&mut self, indexed: &Indexed, query: &Query<'_>, effort: Effort, all_live: bool) {
        self.touched.clear();
        self.touched.resize(indexed.lists.len().div_ceil(64), 0);
        self.survivors.reset(effort.rerank, all_live);
        // Only cells that hold whole vectors tell the nearest as they are scanned.
        let whole = if indexed.model.pq.is_none() { effort.rerank } else { 0 };
        self.nearest = TopK::new(whole);
        (self.met, self.stop) = (Answer::default(), effort.stop);
        let (isa, model) = (query.isa, &*indexed.model);
        let stretch = query.stretch(model);
        self.shifted.clear();
        self.shifted.extend(query.vector.iter().map(|x| x * stretch));
        let own = isa.dot(&self.shifted, &self.shifted);
        self.along = isa.dot(&self.shifted, &model.center);
        shift(&mut self.shifted, &model.center);
        self.apart = isa.dot(&self.shifted, &self.shifted);
        let (factor, shift) = match model.metric {
            Metric::L2 => (1.0, 0.0),
            Metric::Cosine => (2.0, 0.0),
            Metric::InnerProduct => (2.0, own + model.record.squared),
        };
        self.scale = Scale { factor, shift, stretch };
        model.table(&self.shifted, &mut self.table, &mut self.rotated);
    }

    /// The squared distance of a cell. Where cells are ranked by the inner product that of a row with
    /// this product.
    fn squared(&self, model: &Model, probe: &Probe) -> f32 {
        match model.record.norm_weight > 0.0 {
            true => self.apart + probe.norm - 2.0 * probe.dot,
            false => self.scale.of_estimate(-probe.dot),
        }
    }

    /// The part of the estimate that belongs to a cell (SPEC.md, section 5).
    fn base(&self, model: &Model, probe: &Probe) -> f32 {
        match model.metric {
            Metric::InnerProduct => -self.along - probe.dot,
            Metric::L2 => self.squared(model, probe),
            Metric::Cosine => self.squared(model, probe) / 2.0,
        }
    }

    /// Whether the bound ends the walk before a cell.
    fn ends_at(&self, model: &Model, probe: &Probe) -> bool {
        let last = self.scale.of_estimate(self.survivors.limit);
        self.stop > 0.0 && last > 0.0 && self.squared(model, probe) >= self.stop * last
    }

    /// Goes on into a run of a cell.
    fn enter(&mut self, model: &Model, probe: &Probe, run: &Run<'_>) {
        let list = model.router.list_of(probe.cell);
        if let Some(word) = self.touched.get_mut(list as usize / 64) {
            *word |= 1 << (list % 64);
        }
        self.met.cells = run.order as usize + 1;
        self.met.codes += run.rows;
        self.met.reads += 1;
        self.met.bytes += run.blocks.len();
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
            base: self.base(model, probe),
            bias: self.table.bias,
            slope: self.table.slope,
            limit: self.survivors.limit,
        };
        hits.clear();
        match model.record.code {
            CodeKind::Flat => {
                each_whole(model, query, blocks, |slot, key| {
                    hits.push(Hit { estimate: self.scale.estimate_of(key), slot });
                });
            }
            CodeKind::Pq8 => query.isa.scan8(blocks, &scan, ahead, hits),
            CodeKind::Pq4 | CodeKind::RaBitQ => query.isa.scan4(blocks, &scan, ahead, hits),
        }
    }

    /// Keeps a row that a run holds whole, if it is among the nearest and may be found.
    fn keep_whole(
        &mut self,
        model: &Model,
        query: &Query<'_>,
        run: &Run<'_>,
        slot: u32,
        visible: Visible<'_>,
    ) {
        let id = run.id(model, slot);
        if id != NO_ID && visible.contains(id) {
            let key = key_whole(model, query, run.place_of(model, slot));
            self.nearest.push(Ranked { key, id });
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
    /// What exact keys are in terms of the estimates.
    pub(super) scale: Scale,
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
        let scale = room.walk.scale;
        let squared = |near: &Near| Near { distance: scale.of_estimate(near.distance), ..*near };
        trace.near.extend(room.walk.survivors.best().map(squared));
        trace.scale = scale;
        trace.near.sort_unstable();
        trace.cells.truncate(trace.codes.len());
        Ok(trace)
    })
}

/// Walks through the nearest cells; the best estimates are left among the survivors, and the nearest rows
/// too where cells hold whole vectors.
pub(super) fn alone(
    snapshot: &Snapshot,
    indexed: &Indexed,
    query: &Query<'_>,
    effort: Effort,
    room: &mut Room,
    mut trace: Option<&mut Trace>,
) -> Result<()> {
    let model = &*indexed.model;
    let visible = snapshot.visible(query.hidden);
    let Room { tour, walk, hits, threads } = room;
    walk.begin(indexed, query, effort, visible.all());
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
                trace.cells.extend(probes.iter().map(|probe| walk.squared(model, probe)));
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
                // A cell that was begun is scanned to its end: its rows may lie in several runs.
                let begun = at > from && runs[at - 1].order == run.order;
                if !begun && walk.ends_at(model, probe) {
                    break 'walk;
                }
                walk.enter(model, probe, run);
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
                    walk.survivors.push(near, |near| look_up(model, &runs, visible, near));
                    if model.pq.is_none() {
                        walk.keep_whole(model, query, run, hit.slot, visible);
                    }
                }
            }
            met += probes.len() as u32;
        }
    }
    walk.survivors.settle(|near| look_up(model, &runs, visible, near));
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

/// Turns a slot of a run into the row that is there; false if there is none, or none to be found.
fn look_up(model: &Model, runs: &[Run<'_>], visible: Visible<'_>, near: &mut Near) -> bool {
    let run = &runs[near.probe as usize];
    let id = run.id(model, near.id as u32);
    *near = Near { distance: near.distance, probe: run.order, id };
    id != NO_ID && visible.contains(id)
}

/// Codes that are the vectors themselves: calls `f` with the slot and the exact key of each row.
fn each_whole(model: &Model, query: &Query<'_>, blocks: &[u8], mut f: impl FnMut(u32, f64)) {
    for (number, block) in (0..).zip(blocks.chunks_exact(model.layout.block_bytes())) {
        for lane in 0..BLOCK_ROWS {
            if model.layout.id(block, lane) != NO_ID {
                f(number * BLOCK_ROWS as u32 + lane as u32, key_whole(model, query, (block, lane)));
            }
        }
    }
}

/// The exact key of a row that a block holds whole; the factor normalises it.
fn key_whole(model: &Model, query: &Query<'_>, (block, lane): (&[u8], usize)) -> f64 {
    let row_bytes = 4 * query.vector.len();
    let row = block.get(lane * row_bytes..(lane + 1) * row_bytes).unwrap_or_default();
    query.key(&floats(row), model.layout.factors(block, lane).add)
}
