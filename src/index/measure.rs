//! What a recall takes, measured: queries whose true neighbours are known are the judges, and the cheapest
//! effort that reaches each recall is stored. The judges are queries that were asked or given, as soon as
//! there are enough; until then rows that were kept out of training.

use super::build::STEP;
use super::confirm::Validation;
use super::drift::Drift;
use super::model::shift;
use super::plan::{Prices, Work};
use super::snapshot::{Indexed, Snapshot};
use super::survey::Survey;
use super::truth::{Asker, Batch, Truth};
use super::{Index, Inner};
use crate::error::{Error, Result};
use crate::options::Metric;
use crate::storage::row_scan::RowBatch;
use crate::storage::{Change, Table};
use cellardb_format::{Judges, NEIGHBOURS, Row, Setting, Settings};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// The recalls that are measured.
pub(super) const RECALLS: [f32; 3] = [0.90, 0.95, 0.99];
/// Neighbours that recall is measured on.
pub(super) const K: usize = 10;
/// Rows as near as the last of these count too, as far as they are known: so many in all.
const KNOWN: usize = 32;
/// Neighbours that tell how effort grows with their number, and of how many judges they are known.
pub(super) const MANY: [usize; 3] = NEIGHBOURS;
const MANY_KNOWN: [usize; MANY.len()] = [200, 100, 50];
/// Distances that the truth may take, so that it costs seconds whatever the number of rows.
const DISTANCES: u64 = 1_800_000_000;
/// Copies of a row beyond which it is no judge.
const COPIES: usize = 4096;
/// Given queries beyond these tell nothing more.
const MOST_GIVEN: usize = 4000;

/// A query and its true neighbours.
pub(super) struct Judge {
    pub(super) vector: Vec<f32>,
    /// Ids that it does not find: itself and its copies, if it is a row. They ascend.
    pub(super) hidden: Vec<u64>,
    /// The nearest, nearest first, and those that are as near as the last of [`K`].
    pub(super) truth: Vec<u64>,
    /// The key of the last of [`K`].
    pub(super) last: f64,
    /// The key of the last of each of [`MANY`], of some.
    pub(super) many: [Option<f64>; MANY.len()],
    /// A row that came after the training. The recall is reached by these too, not on average only.
    pub(super) recent: bool,
    /// One of those that is farther from its cell than nearly all rows that were trained on.
    pub(super) elsewhere: bool,
}

impl Judge {
    /// Neighbours that there are to find.
    pub(super) fn wanted(&self) -> usize {
        self.truth.len().min(K)
    }
}

/// What recall is measured on.
pub(super) enum Asking<'a> {
    /// What the index knows: queries that were asked, else rows.
    Known,
    /// These, row-major.
    Given(&'a [f32]),
}

impl Index {
    /// Measures what each recall takes on these queries, row-major, now: for a host that has some. What is
    /// measured on rows holds for queries like the rows; questions and answers, texts and images lie
    /// apart. The queries become the sample of those that are asked, which later measurings are made on,
    /// unless [`crate::Options::learn_queries`] is off. A few hundred are enough, 4,000 are looked at. No
    /// search goes less far than what rows take, however easy these queries are.
    ///
    /// Nothing to do for an index that is not trained: its search is exact.
    ///
    /// # Errors
    ///
    /// [`Error::Dimension`] and [`Error::Vector`] for queries that cannot be compared, [`Error::Invalid`]
    /// without any, and as [`Index::flush`].
    pub fn calibrate(&self, queries: &[f32]) -> Result<()> {
        let inner = &*self.inner;
        inner.here()?;
        inner.scales(queries)?;
        if queries.is_empty() {
            return Err(Error::invalid("queries", "none are given"));
        }
        inner.asked.give(queries, inner.dim);
        let most = queries.len().min(MOST_GIVEN * inner.dim);
        let _upkeep = inner.hold_upkeep();
        inner.explained(inner.measure(&Asking::Given(&queries[..most])))
    }
}

impl Inner {
    /// Measures the recall settings again and stores them; the caller holds the upkeep.
    pub(super) fn measure(&self, asking: &Asking<'_>) -> Result<()> {
        self.writer().begin()?;
        self.catch_up(&self.trainings)?;
        let snapshot = self.snapshot();
        let Some(indexed) = &snapshot.indexed else { return Ok(()) };
        let mut trial = (*snapshot).clone();
        // What is measured is what a search does when this is done.
        trial.drift = Drift::default();
        let settings = Arc::new(self.trainings.run(|| self.tune(&trial, indexed, asking))?);
        let mut change = Change::default();
        let generation = u64::from(indexed.model.generation());
        change.put(Table::Settings, generation, settings.encode());
        self.put_asked(&mut change);
        let ahead = self.snapshot();
        let drift = self.drift(&ahead, indexed, &settings)?;
        let mut writer = self.writer();
        writer.ready()?;
        let mut next = writer.working.clone();
        // Nobody trained meanwhile: we hold the upkeep.
        if let Some(indexed) = &mut next.indexed {
            indexed.settings = settings;
        }
        next.drift = drift;
        writer.working = next;
        self.commit(&mut writer, change)
    }

    /// Measures the recall settings of the model and the lists of a snapshot. Runs in our threads.
    pub(super) fn tune(
        &self,
        trial: &Snapshot,
        indexed: &Indexed,
        asking: &Asking<'_>,
    ) -> Result<Settings> {
        let asked = self.asked.count();
        let rows = self.held_out_rows(trial)?;
        let (far, middle) = self.far(indexed, &rows);
        let mut judges = self.judges(trial, indexed, &rows.1, true)?;
        self.tell_apart(indexed, &mut judges);
        let mut each = self.settings((trial, indexed), &judges, &[])?;
        let (mut kind, mut queries) = (Judges::Rows, judges.len());
        drop(judges);
        let asked_or_given = match asking {
            Asking::Given(queries) => Some((queries.to_vec(), Judges::Given)),
            Asking::Known => Some((self.asked.queries(), Judges::Asked)),
        };
        let enough = |(queries, of): &(Vec<f32>, Judges)| {
            *of == Judges::Given || queries.len() >= self.asked.enough(self.dim) * self.dim
        };
        if let Some((vectors, of)) = asked_or_given.filter(enough) {
            let judges = self.judges(trial, indexed, &vectors, false)?;
            if !judges.is_empty() {
                // What the rows take is the least: queries change, and easy ones tell nothing of others.
                each = self.settings((trial, indexed), &judges, &each)?;
                (kind, queries) = (of, judges.len());
            }
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Ok(Settings {
            each,
            judges: kind,
            queries: u32::try_from(queries).unwrap_or(u32::MAX),
            time: now.map_or(0, |since| since.as_secs()),
            next_id: trial.state.next_id,
            live: trial.state.live,
            asked,
            far,
            middle,
        })
    }

    /// What each recall takes, as the judges find, and `least` at the least, which is what rows take if they are
    /// not the judges.
    fn settings(
        &self,
        (trial, indexed): (&Snapshot, &Indexed),
        all: &[Judge],
        least: &[Setting],
    ) -> Result<Vec<Setting>> {
        if all.is_empty() {
            return Ok(Vec::new());
        }
        let (prices, live) = (Prices::new(indexed), trial.state.live);
        let flat = indexed.model.pq.is_none();
        let cells = indexed.model.router.cells();
        let mut probes = (cells / 64).clamp(16, cells.max(16)).min(cells);
        // The cheapest of many efforts is one that its judges were lucky with: others confirm it.
        let (judges, others) = all.split_at(all.len().div_ceil(3));
        // Of queries that were asked there are few: all of them confirm.
        let others = if least.is_empty() && !others.is_empty() { others } else { all };
        // How far to go is found with a few of them.
        let mut few = &judges[..judges.len().div_ceil(4)];
        let survey = loop {
            self.progress("measuring recall", 0, 0);
            let survey = Survey::new(self, (trial, indexed), few, probes)?;
            // Some more than the highest recall leaves a choice of rerank depths; what costs more than an
            // exact search is of no use.
            let work = Work { codes: survey.codes(), cells: probes as f32, rows: 0.0 };
            let dear = !prices.pays(prices.of(0, work), live);
            if probes == cells || dear || survey.most() >= RECALLS[RECALLS.len() - 1] + 0.004 {
                if few.len() == judges.len() {
                    break survey;
                }
                few = judges;
                continue;
            }
            probes = (probes * 3).min(cells);
        };
        let efforts = survey.cheapest(&RECALLS, &prices, flat);
        drop(survey);
        let validation =
            Validation { inner: self, snapshot: trial, indexed, judges: others, prices };
        let mut settings: Vec<Setting> = Vec::new();
        for (recall, effort) in RECALLS.into_iter().zip(efforts) {
            // No part of it goes less far than for less recall; what is no use for less is none for more.
            let least = least.iter().filter(|least| least.recall == recall);
            let least: Vec<&Setting> = least.chain(settings.last()).collect();
            settings.push(validation.confirm(recall, effort, &least)?);
        }
        Ok(settings)
    }

    /// Rows to judge by: ids, and vectors as inserted. As many as their neighbours can be found for in time.
    fn held_out_rows(&self, snapshot: &Snapshot) -> Result<(Vec<u64>, Vec<f32>)> {
        let most = (DISTANCES / snapshot.state.live.max(1)).clamp(1000, 2000) as usize;
        let (mut ids, mut vectors) = (Vec::new(), Vec::new());
        for id in self.held_out(snapshot).into_iter().take(most) {
            if let Some(row) = snapshot.rows.get(id)? {
                ids.push(id);
                vectors.extend_from_slice(&row.vector());
            }
        }
        Ok((ids, vectors))
    }

    /// The squared distance to the centroid of its cell that one row in twenty has, or more, and one in two.
    fn far(&self, indexed: &Indexed, (_, vectors): &(Vec<u64>, Vec<f32>)) -> (f32, f32) {
        // A row that cannot be compared is no judge: only a forger stores such a one.
        let Ok(scales) = self.scales(vectors) else { return (0.0, 0.0) };
        let mut distances = indexed.model.distances(&self.searched(vectors, &scales));
        distances.sort_unstable_by(f32::total_cmp);
        let at = |part: usize| distances.get(distances.len() * part / 20).copied();
        let sound = |at: Option<f32>| at.filter(|far| far.is_finite()).unwrap_or(0.0);
        let far = sound(at(19));
        (far, sound(at(10)).min(far))
    }

    /// How unlike those that settings were measured with the rows are that came since, by a sample.
    pub(super) fn drift(
        &self,
        snapshot: &Snapshot,
        indexed: &Indexed,
        settings: &Settings,
    ) -> Result<Drift> {
        let (mut drift, mut batch) = (Drift::since(settings), RowBatch::default());
        let (from, to) = (settings.next_id, snapshot.state.next_id);
        let step = ((to - from.min(to)) / SAMPLE).max(1);
        let ids: Vec<u64> = (from..to).step_by(step as usize).collect();
        let there: Vec<u64> = ids.into_iter().filter(|id| snapshot.rows.holds(*id)).collect();
        snapshot.rows.fetch(&*self.options.disk, &there, &mut batch)?;
        let scales: Vec<f32> = batch.rows.iter().map(|row| row.scale).collect();
        let searched = self.searched(&batch.vectors, &scales);
        let distances = self.trainings.run(|| Ok(indexed.model.distances(&searched)))?;
        for distance in distances {
            drift.note(from, &vec![distance; step as usize]);
        }
        Ok(drift)
    }

    /// The exact neighbours of vectors, as they were given, in one pass over all rows.
    fn judges(
        &self,
        snapshot: &Snapshot,
        indexed: &Indexed,
        vectors: &[f32],
        rows: bool,
    ) -> Result<Vec<Judge>> {
        let (dim, center) = (self.dim, &indexed.model.center);
        let most = (DISTANCES / snapshot.state.live.max(1)).clamp(500, 4000) as usize;
        let mut askers = Vec::new();
        for vector in vectors.chunks_exact(dim).take(most) {
            let Ok(query) = self.prepare(vector) else { continue };
            if self.in_bounds(&query.vector) {
                let mut shifted = query.vector.to_vec();
                if self.metric == Metric::L2 {
                    shift(&mut shifted, center);
                }
                let along = 2.0 * self.isa.dot(&query.vector, center);
                askers.push(Asker { query, shifted, along, row: rows, k: KNOWN });
            }
        }
        // The last of them are not among those that choose.
        for (k, known) in MANY.into_iter().zip(MANY_KNOWN) {
            // Of fewer rows all are compared.
            if snapshot.state.live >= 4 * k as u64 {
                askers.iter_mut().rev().take(known).for_each(|asker| asker.k = k);
            }
        }
        let mut truth = Truth::new(self.isa, self.metric, dim, &askers);
        let total = snapshot.state.next_id;
        snapshot.rows.scan(&*self.options.disk, 0, total).each(STEP, |batch| {
            self.go_on()?;
            let live = self.live(snapshot, batch);
            let scales: Vec<f32> = live.rows.iter().map(|row| row.scale).collect();
            let ids: Vec<u64> = live.rows.iter().map(|row| row.id).collect();
            let mut shifted = self.searched(&live.vectors, &scales).into_owned();
            shift(&mut shifted, center);
            let (rows, scales) = (&live.vectors, &scales);
            truth.add(&Batch { ids: &ids, rows, scales, shifted: &shifted });
            let last = ids.last().map_or(total, |id| id + 1);
            self.progress("measuring recall", last, total);
            Ok(())
        })?;
        let found = truth.nearest().into_iter().zip(&askers);
        let judge = |(found, asker): (super::truth::Nearest, &Asker<'_>)| {
            let mut hidden = found.copies;
            hidden.sort_unstable();
            let top = found.top.into_sorted();
            let last = top.get(K - 1).or(top.last())?.key;
            let many = MANY.map(|k| top.get(k - 1).map(|row| row.key));
            let near = top.iter().take(KNOWN).take_while(|row| row.key <= last);
            let truth = near.map(|row| row.id).collect();
            let few = hidden.len() <= COPIES;
            let vector = asker.query.given().to_vec();
            let trained = indexed.model.record.trained_next_id;
            let recent = rows && hidden.iter().any(|id| *id >= trained);
            let elsewhere = false;
            few.then_some(Judge { vector, hidden, truth, last, many, recent, elsewhere })
        };
        Ok(found.filter_map(judge).collect())
    }

    /// Marks the rows from elsewhere among the recent ones: few of many, and yet what is asked about.
    fn tell_apart(&self, indexed: &Indexed, judges: &mut [Judge]) {
        let vectors: Vec<f32> =
            judges.iter().flat_map(|judge| judge.vector.iter().copied()).collect();
        let Ok(scales) = self.scales(&vectors) else { return };
        let distances = indexed.model.distances(&self.searched(&vectors, &scales));
        let trained = judges.iter().zip(&distances).filter(|(judge, _)| !judge.recent);
        let mut trained: Vec<f32> = trained.map(|(_, distance)| *distance).collect();
        trained.sort_unstable_by(f32::total_cmp);
        let Some(far) = trained.get(trained.len() * 19 / 20) else { return };
        for (judge, distance) in judges.iter_mut().zip(&distances) {
            judge.elsewhere = judge.recent && distance > far;
        }
    }

    /// The rows of a batch that live and whose distances do not overflow.
    fn live(&self, snapshot: &Snapshot, batch: RowBatch) -> RowBatch {
        let live = |row: &Row| !snapshot.dead.contains(row.id);
        if batch.rows.iter().all(live) {
            return batch;
        }
        let mut kept = RowBatch::default();
        for (row, vector) in batch.rows.into_iter().zip(batch.vectors.chunks_exact(self.dim)) {
            if live(&row) {
                kept.rows.push(row);
                kept.vectors.extend_from_slice(vector);
            }
        }
        kept
    }

    /// Stores the sample of what was asked, with a commit that is rare anyway.
    pub(super) fn put_asked(&self, change: &mut Change) {
        let record = self.asked.record();
        if !record.queries.is_empty() {
            change.put(Table::Asked, 0, record.encode());
        }
    }

    /// Removes a sample that an opening stored which was to learn.
    pub(super) fn forget_asked(&self) -> Result<()> {
        let mut change = Change::default();
        change.remove(Table::Asked, 0);
        let mut writer = self.writer();
        writer.ready()?;
        self.commit(&mut writer, change)
    }
}

/// Rows that tell how unlike those before them all are.
const SAMPLE: u64 = 256;
