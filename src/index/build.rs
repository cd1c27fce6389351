//! Training: two levels of k-means, the codebook, then every row into its cell, in passes over the
//! rows that keep to the memory budget. The result becomes the index in one commit.

use super::Inner;
use super::assemble::Assembly;
use super::drift::Drift;
use super::fold::ROUNDS;
use super::lengths::{Lengths, center};
use super::measure::Asking;
use super::model::{Model, routing_record, shift};
use super::snapshot::{Indexed, Snapshot};
use super::tail::Tail;
use crate::error::{Error, Result};
use crate::kernel;
use crate::quantizer::FEW;
use crate::quantizer::assign::Refinement;
use crate::quantizer::kmeans::{self, Training};
use crate::quantizer::pq::Pq;
use crate::quantizer::rotation::Rotation;
use crate::quantizer::router::{ListRouting, Router};
use crate::storage::lists;
use crate::storage::row_scan::RowBatch;
use crate::storage::{Change, Table};
use cellardb_format::{CodeKind, KindCode, ModelRecord, ROTATION_STEPS, Row, encode_floats};
use rand::SeedableRng;
use rand::seq::index;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use std::borrow::Cow;
use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Rows that a cell should hold. Of 14, 28 and 56 it was the quickest on text and GloVe at every recall,
/// where memory is slow to answer; it scans more codes, in half as many places.
const ROWS_PER_CELL: usize = 56;
/// Cells that a list should hold, so that files are few and of some hundred kilobytes.
const CELLS_PER_LIST: usize = 64;
/// Lloyd iterations of both levels.
const ITERATIONS: usize = 10;
/// Rows that a centroid of the first level is trained on.
const ROWS_PER_PARENT: usize = 256;
/// Residuals that a codebook is trained on.
const PQ_ROWS: usize = 65_536;
/// Dimensions from which on a bit for each of them is enough: the error of a sum falls with their
/// number.
const SIGNS_FROM: usize = 200;
const _: () = assert!(ROTATION_STEPS == kernel::ROTATION_STEPS);
/// Rows of a step of a pass.
pub(crate) const STEP: usize = 8192;

/// The rows to train on.
pub(crate) struct Source<'a> {
    pub(crate) inner: &'a Inner,
    pub(crate) snapshot: &'a Snapshot,
    /// Rows kept out of training, to measure recall with.
    pub(crate) held: HashSet<u64>,
    /// What is taken off each of them; nothing if empty.
    pub(crate) center: Vec<f32>,
}

impl Inner {
    pub(crate) fn train(&self) -> Result<()> {
        let _upkeep = self.hold_upkeep();
        self.train_now()
    }

    /// Trains; the caller holds the upkeep.
    pub(crate) fn train_now(&self) -> Result<()> {
        self.writer().begin()?;
        self.catch_up(&self.trainings)?;
        let snapshot = self.snapshot();
        let live = snapshot.state.live;
        if self.config.kind == KindCode::Exact {
            return Ok(());
        }
        if live < self.config.train_at.max(1) {
            // Too few to train on; what is there of an older model has to be true of them.
            return self.measure(&Asking::Known);
        }
        let (model, routing) = self.trainings.run(|| self.learn(&snapshot))?;
        let generation = model.generation();
        let build = || {
            let indexed = self.guard(self.trainings.run(|| self.assemble(&snapshot, model)))?;
            let mut trial = (*snapshot).clone();
            (trial.tail, trial.plain) = (Tail::new(indexed.lists.len()), 0..0);
            trial.indexed = Some(indexed.clone());
            trial.state.watermark = trial.state.next_id;
            trial.drift = Drift::default();
            let settings = self.trainings.run(|| self.tune(&trial, &indexed, &Asking::Known))?;
            self.adopt(&snapshot, Indexed { settings: Arc::new(settings), ..indexed }, routing)
        };
        let disk = &*self.options.disk;
        let done = self.give_back(build(), || lists::files(disk, &self.dir, generation));
        if done.as_ref().is_err_and(|e| self.writer().unharmed(e)) {
            lists::remove_folders(disk, &lists::generation(&self.dir, generation));
        }
        done
    }

    /// Learns a model from the rows. No lists yet.
    fn learn(&self, snapshot: &Snapshot) -> Result<(Model, Vec<ListRouting>)> {
        let held = self.held_out(snapshot).into_iter().collect();
        let mut source = Source { inner: self, snapshot, held, center: Vec::new() };
        let live = usize::try_from(snapshot.state.live).unwrap_or(usize::MAX);
        let cells = (live / ROWS_PER_CELL).clamp(1, 1 << 20);
        let lists = match self.config.nlist as usize {
            0 => cells.div_ceil(CELLS_PER_LIST),
            n => n.min(live),
        };
        let lists = lists.clamp(1, 16_384);
        let cells = cells.max(lists);
        let seed = self.config.seed;
        let mut sample = source.sample(ROWS_PER_PARENT * lists, seed)?;
        self.progress("training lists", 0, 0);
        let lengths = Lengths::of(&sample, self.dim);
        let norm_weight = lengths.norm_weight(self.metric);
        let center = center(&sample, self.dim, norm_weight);
        shift(&mut sample, &center);
        source.center.clone_from(&center);
        let sphere = lengths.unit().then_some(&center[..]);
        let how = Training { k: lists, iterations: ITERATIONS, sphere, seed };
        let parents = kmeans::train(&sample, self.dim, how);
        if parents.is_empty() {
            return Err(Error::invalid(
                "training",
                "the distances of all rows overflow; the index stays exact",
            ));
        }
        drop(sample);
        let routing = source.cells(&parents, cells, how)?;
        let (routing, router) = source.refine(routing, norm_weight, sphere)?;
        let (code, (m, dsub), codebook) = source.code(&router, seed)?;
        let small = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let record = ModelRecord {
            generation: snapshot.state.generation + 1,
            code,
            // Whole vectors are too large to be kept twice.
            spilled: code != CodeKind::Flat,
            m: small(m),
            dsub: small(dsub),
            norm_weight,
            squared: lengths.reach(norm_weight),
            lists: small(router.lists()),
            cells: small(router.cells()),
            trained_rows: snapshot.state.live,
            trained_next_id: snapshot.state.next_id,
        };
        let model = Model::new(record, self.metric, center, codebook, routing.clone());
        Ok((model.ok_or_else(misfit)?, routing))
    }

    /// Writes the lists of a new model and makes them durable. Runs in our threads.
    fn assemble(&self, snapshot: &Snapshot, model: Model) -> Result<Indexed> {
        let mut assembly = Assembly::new(self, snapshot, Arc::new(model));
        let total = snapshot.state.next_id;
        let scan = snapshot.rows.scan(&*self.options.disk, 0, total);
        scan.each(STEP, |batch| {
            self.go_on()?;
            assembly.add(&batch)?;
            let last = batch.rows.last().map_or(total, |row| row.id + 1);
            self.progress("filling lists", last, total);
            Ok(())
        })?;
        assembly.finish()
    }

    /// Commits a new model with its lists, and takes in the rows that came meanwhile.
    fn adopt(
        &self,
        snapshot: &Snapshot,
        indexed: Indexed,
        routing: Vec<ListRouting>,
    ) -> Result<()> {
        let old = snapshot.indexed.as_ref();
        let model = &indexed.model;
        let mut change = Change::default();
        put_model(&mut change, &indexed, routing);
        self.put_asked(&mut change);
        for list in indexed.lists.iter() {
            let key = u64::from(model.generation()) << 32 | u64::from(list.id().list);
            change.put(Table::Lists, key, list.entry().encode());
        }
        if let Some(old) = old {
            remove_model(&mut change, &old.model);
        }
        // Rows that came during the training are encoded before the writer is held, until few are left.
        let mut tail = Tail::new(indexed.lists.len());
        let mut drift = Drift::since(&indexed.settings);
        let built = snapshot.state.next_id;
        let mut done = built;
        for _ in 0..ROUNDS {
            let ahead = self.snapshot();
            if ahead.state.next_id - done <= FEW as u64 {
                break;
            }
            let rest = done..ahead.state.next_id;
            self.trainings
                .run(|| self.encode_tail(&ahead, model, rest, (&mut tail, &mut drift), STEP))?;
            done = ahead.state.next_id;
        }
        let mut writer = self.writer();
        writer.ready()?;
        let mut next = writer.working.clone();
        // In this thread, and few: whoever holds the writer waits for no others.
        let rest = done..next.state.next_id;
        self.encode_tail(&next, model, rest, (&mut tail, &mut drift), FEW)?;
        (next.indexed, next.tail, next.plain) = (Some(indexed.clone()), tail, 0..0);
        next.drift = drift;
        next.state.generation = indexed.model.generation();
        next.state.lists = indexed.model.record.lists;
        next.state.watermark = built;
        // A later rewrite must not take a name that one of these lists has.
        let used = indexed.lists.iter().map(|list| list.id().revision + 1).max().unwrap_or(0);
        next.state.next_revision = next.state.next_revision.max(used);
        writer.working = next;
        let before = self.snapshot();
        self.commit(&mut writer, change)?;
        drop(writer);
        self.let_go(before);
        if let Some(old) = old {
            let files: Vec<PathBuf> = old.lists.iter().map(|l| l.path().to_owned()).collect();
            self.unlink(&files);
            let folder = lists::generation(&self.dir, old.model.generation());
            lists::remove_folders(&*self.options.disk, &folder);
        }
        Ok(())
    }

    /// The rows kept out of training: the same for every call on one snapshot.
    pub(crate) fn held_out(&self, snapshot: &Snapshot) -> Vec<u64> {
        let live = snapshot.state.live;
        let wanted = (live / 6).clamp(1, 2000).min(live.saturating_sub(1)) as usize;
        drawn(snapshot, wanted, self.config.seed ^ 0x48_45_4C_44, &HashSet::new())
    }
}

/// Live rows at random, `wanted` if there are as many beside those left out.
fn drawn(snapshot: &Snapshot, wanted: usize, seed: u64, without: &HashSet<u64>) -> Vec<u64> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    // Rows that are there, removed ones among them: ids may have been given without end.
    let there = snapshot.rows.segments().map(|segment| segment.rows).sum::<u64>() as usize;
    let left = (snapshot.state.live as usize).saturating_sub(without.len()).max(1);
    // Removed rows are drawn too and dropped, so draw more where there are many.
    let draw = (wanted as f64 * there as f64 / left as f64 * 1.01) as usize + 16;
    let ranks = index::sample(&mut rng, there, draw.min(there)).into_iter();
    let ids = snapshot.rows.ids_of(ranks.map(|rank| rank as u64));
    let wanted_id = |id: &u64| !snapshot.dead.contains(*id) && !without.contains(id);
    ids.filter(wanted_id).take(wanted).collect()
}

impl Source<'_> {
    /// Calls `f` with batches of the rows to train on: ids, and vectors as searched.
    pub(crate) fn each(
        &self,
        stage: &'static str,
        mut f: impl FnMut(&[u64], &[f32]) -> Result<()> + Send,
    ) -> Result<()> {
        let (inner, snapshot) = (self.inner, self.snapshot);
        let total = snapshot.state.next_id;
        let scan = snapshot.rows.scan(&*inner.options.disk, 0, total);
        scan.each(STEP, |batch| {
            inner.go_on()?;
            let scales: Vec<f32> = batch.rows.iter().map(|row| row.scale).collect();
            let searched = self.searched(&batch.vectors, &scales);
            let wanted =
                |row: &Row| !snapshot.dead.contains(row.id) && !self.held.contains(&row.id);
            let (mut ids, mut vectors) = (Vec::new(), Vec::new());
            for (row, vector) in batch.rows.iter().zip(searched.chunks_exact(inner.dim)) {
                if wanted(row) && inner.in_bounds(vector) {
                    ids.push(row.id);
                    vectors.extend_from_slice(vector);
                }
            }
            f(&ids, &vectors)?;
            inner.progress(stage, batch.rows.last().map_or(total, |row| row.id + 1), total);
            Ok(())
        })
    }

    /// About `wanted` rows, as many as a quarter of the memory budget holds at most.
    fn sample(&self, wanted: usize, seed: u64) -> Result<Vec<f32>> {
        let dim = self.inner.dim;
        let n = wanted.min(self.inner.options.memory / 4 / (4 * dim)).max(1);
        let mut picks = drawn(self.snapshot, n, seed, &self.held);
        picks.sort_unstable();
        let mut sample = self.vectors(&picks)?;
        let rows = sample.len() / dim;
        let kept: Vec<usize> =
            (0..rows).filter(|at| self.inner.in_bounds(&sample[at * dim..][..dim])).collect();
        if kept.len() < rows {
            let row = |at: usize| sample[at * dim..][..dim].iter().copied();
            sample = kept.into_iter().flat_map(row).collect();
        }
        Ok(sample)
    }

    /// The vectors of some rows in ascending order, as searched.
    fn vectors(&self, ids: &[u64]) -> Result<Vec<f32>> {
        let (inner, mut batch) = (self.inner, RowBatch::default());
        self.snapshot.rows.fetch(&*inner.options.disk, ids, &mut batch)?;
        let scales: Vec<f32> = batch.rows.iter().map(|row| row.scale).collect();
        Ok(self.searched(&batch.vectors, &scales).into_owned())
    }

    /// The vectors as searched, less the center.
    fn searched<'v>(&self, vectors: &'v [f32], scales: &[f32]) -> Cow<'v, [f32]> {
        let mut searched = self.inner.searched(vectors, scales);
        if !self.center.is_empty() {
            shift(searched.to_mut(), &self.center);
        }
        searched
    }

    /// The second level: the rows nearest to each parent are split into cells of their own.
    fn cells(&self, parents: &[f32], cells: usize, how: Training<'_>) -> Result<Vec<ListRouting>> {
        let dim = self.inner.dim;
        let mut members: Vec<Vec<u64>> = vec![Vec::new(); parents.len() / dim];
        self.each("routing rows", |ids, vectors| {
            for (owner, id) in kmeans::nearest(vectors, dim, parents).into_iter().zip(ids) {
                members[owner as usize].push(*id);
            }
            Ok(())
        })?;
        let total: usize = members.iter().map(Vec::len).sum();
        let done = AtomicU64::new(0);
        let split = |(list, ids): (usize, &Vec<u64>)| -> Result<Vec<f32>> {
            self.inner.go_on()?;
            let parent = &parents[list * dim..(list + 1) * dim];
            let share = (cells * ids.len() + total / 2) / total.max(1);
            let how = Training { k: share.max(1), seed: how.seed ^ list as u64, ..how };
            let vectors = self.fetch(ids, how.k, how.seed)?;
            let done = done.fetch_add(1, Ordering::Relaxed) + 1;
            self.inner.progress("training cells", done, members.len() as u64);
            if vectors.is_empty() {
                return Ok(parent.to_vec());
            }
            Ok(kmeans::train(&vectors, dim, how))
        };
        let found: Result<Vec<Vec<f32>>> = members.par_iter().enumerate().map(split).collect();
        let mut first_cell = 0;
        let routing = found?.into_iter().zip(parents.chunks_exact(dim)).map(|(cells, parent)| {
            let list = ListRouting::quantize(first_cell, parent, &cells);
            first_cell += u32::try_from(cells.len() / dim).unwrap_or(u32::MAX);
            list
        });
        Ok(routing.collect())
    }

    /// Moves all cells to the mean of the rows that are nearest to them, across the bounds of lists.
    /// Skipped where the sums would take more than half of the memory budget.
    fn refine(
        &self,
        routing: Vec<ListRouting>,
        norm_weight: f32,
        sphere: Option<&[f32]>,
    ) -> Result<(Vec<ListRouting>, Router)> {
        let dim = self.inner.dim;
        let router = Router::new(dim, norm_weight, routing.clone()).ok_or_else(misfit)?;
        if Refinement::size(&router) > self.inner.options.memory / 2 {
            return Ok((routing, router));
        }
        let mut round = Refinement::new(&router, sphere);
        self.each("refining cells", |_, vectors| {
            round.add(self.inner.isa, vectors);
            Ok(())
        })?;
        let routing = round.finish();
        let router = Router::new(dim, norm_weight, routing.clone()).ok_or_else(misfit)?;
        Ok((routing, router))
    }

    /// The vectors of some rows, as searched; of many rows a sample that fits the budget.
    fn fetch(&self, ids: &[u64], cells: usize, seed: u64) -> Result<Vec<f32>> {
        let inner = self.inner;
        let most = (inner.options.memory / 32 / (4 * inner.dim)).max(64).min(cells * 256);
        let mut picks = Vec::new();
        if ids.len() > most {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            picks = index::sample(&mut rng, ids.len(), most).into_vec();
            picks.sort_unstable();
        }
        let chosen: Vec<u64> =
            if picks.is_empty() { ids.to_vec() } else { picks.iter().map(|i| ids[*i]).collect() };
        self.vectors(&chosen)
    }

    /// The kind of code, its sub-quantizers and their dimensions, and its codebook.
    fn code(&self, router: &Router, seed: u64) -> Result<(CodeKind, (usize, usize), Vec<f32>)> {
        let config = &self.inner.config;
        if config.kind == KindCode::IvfFlat {
            return Ok((CodeKind::Flat, (0, 0), Vec::new()));
        }
        let signs = config.m == 0 && self.inner.dim >= SIGNS_FROM;
        let (kind, bits) = match config.bits {
            1 => (CodeKind::RaBitQ, 1),
            0 if signs => (CodeKind::RaBitQ, 1),
            8 => (CodeKind::Pq8, 8),
            _ => (CodeKind::Pq4, 4),
        };
        if kind == CodeKind::RaBitQ {
            let rotation = Rotation::random(self.inner.dim, seed);
            return Ok((kind, rotation.shape(), rotation.signs().to_vec()));
        }
        let pq = self.codebook(router, bits, seed)?;
        Ok((kind, (pq.m, pq.dsub), pq.codebook))
    }

    /// Trains the product quantizer on residuals.
    fn codebook(&self, router: &Router, bits: u32, seed: u64) -> Result<Pq> {
        let inner = self.inner;
        let (m, _) = Pq::shape(inner.dim, bits, inner.config.m as usize);
        let mut sample = self.sample(PQ_ROWS, seed ^ 1)?;
        inner.progress("training codes", 0, 0);
        let cells = router.assign(inner.isa, &sample);
        let mut centroid = vec![0.0; inner.dim];
        for (vector, cell) in sample.chunks_exact_mut(inner.dim).zip(cells) {
            router.centroid(cell, &mut centroid);
            vector.iter_mut().zip(&centroid).for_each(|(x, c)| *x -= c);
        }
        let pq = Pq::train(&sample, inner.dim, m, bits, seed);
        Ok(pq)
    }
}

fn misfit() -> Error {
    Error::invalid("training", "the parts of the model do not fit together; this is a bug")
}

fn put_model(change: &mut Change, indexed: &Indexed, routing: Vec<ListRouting>) {
    let model = &*indexed.model;
    let base = u64::from(model.generation()) << 32;
    change.put(Table::Model, base, model.record.encode());
    change.put(Table::Model, base | 1, encode_floats(&[&model.center, model.codebook()].concat()));
    for (part, list) in (2..).zip(routing) {
        change.put(Table::Model, base | part, routing_record(list).encode());
    }
    change.put(Table::Settings, u64::from(model.generation()), indexed.settings.encode());
}

fn remove_model(change: &mut Change, model: &Model) {
    let base = u64::from(model.generation()) << 32;
    for part in 0..2 + u64::from(model.record.lists) {
        change.remove(Table::Model, base | part);
    }
    for list in 0..u64::from(model.record.lists) {
        change.remove(Table::Lists, base | list);
    }
    change.remove(Table::Settings, u64::from(model.generation()));
}
