//! One query: walk through the cells, rerank the best estimates from the rows.

use super::Inner;
use super::exact;
use super::model::Model;
use super::snapshot::{Indexed, Snapshot};
use super::topk::{Near, TopK};
use super::tune::within;
use super::walk::{Room, Walk, alone};
use crate::error::{Error, Result};
use crate::kernel::Isa;
use crate::options::Metric;
use crate::storage::rows::{RowBytes, RowPlace};
use std::borrow::Cow;
use std::cell::RefCell;
use std::time::{Duration, Instant};

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
    /// Places of the lists, and rows, that were read from memory or from the disk.
    pub reads: usize,
    /// Bytes of those.
    pub bytes: usize,
}

/// A query brought to what is compared: normalised under cosine.
#[derive(Debug)]
pub(crate) struct Query<'a> {
    pub(crate) vector: Cow<'a, [f32]>,
    metric: Metric,
    pub(super) isa: Isa,
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
}

thread_local! {
    static ROOM: RefCell<Room> = RefCell::default();
}

/// Uses the room that this thread keeps for one search after another.
pub(super) fn in_room<T>(search: impl FnOnce(&mut Room) -> T) -> T {
    ROOM.with_borrow_mut(search)
}

impl Inner {
    /// Checks a query and prepares it.
    pub(crate) fn prepare<'a>(&self, vector: &'a [f32]) -> Result<Query<'a>> {
        if vector.len() != self.dim {
            return Err(Error::vector(self.dim, vector.len()));
        }
        let scale = self.scale(vector).map_err(|why| Error::Vector { position: 0, why })?;
        let vector = self.searched(vector, &[scale]);
        Ok(Query { vector, metric: self.metric, isa: self.isa })
    }

    pub(crate) fn answer(
        &self,
        snapshot: &Snapshot,
        vector: &[f32],
        (k, threads): (usize, usize),
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
                    return self.answer(&self.snapshot(), vector, (k, threads), plan);
                }
                compared => compared?,
            };
            let search = |room: &mut Room| {
                room.threads = threads;
                widen(snapshot, indexed, &query, (k, effort), &top, room)
            };
            // A thread that waits for others may begin another search, which needs room of its own.
            let found = if threads > 1 { search(&mut Room::default()) } else { in_room(search) }?;
            if let Some(mut answer) = found {
                answer.codes += compared;
                answer.reads += compared;
                answer.bytes += compared * snapshot.rows.shape().layout.stride();
                return Ok(answer);
            }
        }
        let mut answers = exact::answer(snapshot, &[query], k, threads)?;
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
    room: &mut Room,
) -> Result<Option<Answer>> {
    let wanted = k.min(usize::try_from(snapshot.state.live).unwrap_or(usize::MAX));
    let mut before = Answer::default();
    loop {
        let mut answer = probe(snapshot, indexed, query, (k, effort), plain, room)?;
        answer.codes += before.codes;
        answer.reranked += before.reranked;
        answer.reads += before.reads;
        answer.bytes += before.bytes;
        if answer.hits.len() >= wanted {
            return Ok(Some(answer));
        }
        if effort.most != Most::ANY {
            return Ok(Some(answer));
        }
        if effort.probes >= indexed.model.router.cells() {
            return Ok(None);
        }
        before = answer;
        effort = Effort { probes: effort.probes.saturating_mul(4), stop: 0.0, ..effort };
    }
}

fn probe(
    snapshot: &Snapshot,
    indexed: &Indexed,
    query: &Query<'_>,
    (k, effort): (usize, Effort),
    plain: &TopK,
    room: &mut Room,
) -> Result<Answer> {
    let effort = effort.at_least(indexed, k);
    alone(snapshot, indexed, query, effort, room, None)?;
    finish(snapshot, indexed, query, effort, plain.clone(), &mut room.walk)
}

impl Effort {
    /// Estimates enough for `k` rows: copies of a row are estimated apart. What is exact already is
    /// not compared again.
    pub(super) fn at_least(self, indexed: &Indexed, k: usize) -> Effort {
        let least = k.saturating_mul(indexed.model.copies());
        let rerank = if indexed.model.pq.is_none() { k } else { self.rerank.max(least) };
        Effort { rerank, ..self }
    }
}

/// The answer to a query whose walk has ended, added to what was found before.
pub(super) fn finish(
    snapshot: &Snapshot,
    indexed: &Indexed,
    query: &Query<'_>,
    effort: Effort,
    mut top: TopK,
    walk: &mut Walk,
) -> Result<Answer> {
    let mut answer = walk.answer();
    let Walk { survivors, asking, .. } = walk;
    let survivors = survivors.distinct();
    if indexed.model.pq.is_none() {
        survivors.iter().for_each(|near| top.push(*near));
    } else {
        let survivors = &survivors[..survivors.len().min(effort.most.rows)];
        answer.reranked =
            rerank_rows(snapshot, indexed, query, (survivors, effort.slack), &mut top, asking)?;
        answer.reads += answer.reranked;
        answer.bytes += answer.reranked * snapshot.rows.shape().layout.stride();
    }
    answer.hits = top.into_hits();
    Ok(answer)
}

/// Compares with rows in full, the best estimates first, until the next is too far from the last of the
/// best so far. So many at a time are looked up first, those that were never read are read ahead in one
/// go, and each is asked for some rows ahead of its turn: what takes time is that each lies elsewhere. Only
/// what is compared is verified.
///
/// What was read may have left memory since. To have the kernel look costs as much as to compare, so that
/// this is done only for a while after rows took longer than memory ever does: `asking` counts down.
fn rerank_rows(
    snapshot: &Snapshot,
    indexed: &Indexed,
    query: &Query<'_>,
    (survivors, slack): (&[Near], f32),
    top: &mut TopK,
    asking: &mut u32,
) -> Result<usize> {
    let own = query.isa.dot(&query.vector, &query.vector);
    let squared = |distance: f32| query.squared(&indexed.model, distance, own);
    let place = |near: &Near| snapshot.rows.place(near.id).ok_or_else(|| lost(indexed, near.id));
    let begin = |(place, row): (&RowPlace<'_>, &Option<RowBytes<'_>>)| match row {
        Some(row) => query.isa.prefetch(&row.bytes()[..ROW_START.min(row.bytes().len())]),
        // What was never read is read whole, to verify it, faster than the processor asks for the rest.
        None => query.isa.prefetch(place.mapped().unwrap_or_default()),
    };
    let (mut places, mut rows) = (Vec::with_capacity(RERANKED), Vec::with_capacity(RERANKED));
    let mut reranked = 0;
    for survivors in survivors.chunks(RERANKED) {
        let start = Instant::now();
        places.clear();
        for near in survivors {
            places.push(place(near)?);
        }
        let ask = |place: &&RowPlace<'_>| *asking > 0 || !place.is_asked();
        places.iter().filter(ask).for_each(RowPlace::will_need);
        rows.clear();
        for place in &places {
            rows.push(snapshot.rows.verified(place)?);
        }
        places.iter().zip(&rows).take(LATER).for_each(begin);
        let mut ended = false;
        for (at, near) in survivors.iter().enumerate() {
            if squared(near.distance) >= within(slack, squared(top.limit())) {
                ended = true;
                break;
            }
            places.iter().zip(&rows).skip(at + LATER).take(1).for_each(begin);
            let distance = match &rows[at] {
                Some(row) => query.distance_to(row),
                None => query.distance_to(&snapshot.rows.at(&places[at])?),
            };
            top.push(Near { distance, ..*near });
            reranked += 1;
        }
        let slow = start.elapsed() > FROM_DISK;
        *asking = if slow { ASKING } else { asking.saturating_sub(1) };
        if ended {
            break;
        }
    }
    Ok(reranked)
}

/// Rows to rerank that are looked up together.
const RERANKED: usize = 32;
/// Rows that are looked up together take longer than this when some come from the disk.
const FROM_DISK: Duration = Duration::from_micros(400);
/// How many times all of them are asked for after that.
const ASKING: u32 = 32;
/// Rows that come so much later are asked for.
const LATER: usize = 4;
/// Bytes of a row that are asked for ahead; the processor asks for the rest when these are read.
const ROW_START: usize = 256;

/// A list names a row that is not there: the list is at odds with the catalog.
fn lost(indexed: &Indexed, id: u64) -> Error {
    let path = indexed.lists.first().map(|l| l.path().to_owned()).unwrap_or_default();
    Error::corrupt(path, 0, format!("a list names row {id}, which is in no row segment"))
}
