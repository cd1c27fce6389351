//! One query: walk through the cells, rerank the best estimates from the rows.

use super::Inner;
use super::distance::Query;
use super::exact;
use super::plan::{Effort, Most, Plan, within};
use super::snapshot::{Indexed, Snapshot};
use super::stats::Measured;
use super::topk::{Near, Ranked, TopK};
use super::walk::{Room, Scale, Walk, alone};
use crate::error::{Error, Result};
use crate::storage::rows::{RowBytes, RowPlace};
use std::cell::RefCell;
use std::time::{Duration, Instant};

/// What a search found, and what it took.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct Answer {
    /// Ids and distances, ascending by distance, then by id.
    pub hits: Vec<(usize, f32)>,
    /// Every row was compared: asked for, or cheaper than cells would have been.
    pub exact: bool,
    /// How the recall that was aimed at was measured, if cells were scanned for one.
    pub measured: Option<Measured>,
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

thread_local! {
    static ROOM: RefCell<Room> = RefCell::default();
}

/// Uses the room that this thread keeps for one search after another.
pub(super) fn in_room<T>(search: impl FnOnce(&mut Room) -> T) -> T {
    ROOM.with_borrow_mut(search)
}

impl Inner {
    pub(crate) fn answer(
        &self,
        snapshot: &Snapshot,
        vector: &[f32],
        (k, threads): (usize, usize),
        plan: Plan,
    ) -> Result<Answer> {
        let query = self.prepare(vector)?;
        let done = match plan {
            Plan::Probe(effort) => self.probe(snapshot, &query, (k, threads), effort),
            Plan::Exact => Ok(None),
        };
        let found = match done {
            // They have their codes by now, and their file may have been compacted away.
            Err(_) if self.snapshot().plain.is_empty() && !snapshot.plain.is_empty() => {
                return self.answer(&self.snapshot(), vector, (k, threads), plan);
            }
            done => done?,
        };
        if let Some((top, answer)) = found {
            return Ok(Answer { hits: query.hits(top), ..answer });
        }
        let mut answers = exact::answer(snapshot, &[query], k, threads)?;
        Ok(answers.pop().unwrap_or_default())
    }

    /// Searches by cells, and compares with the rows beside them; `None` where that is no way to find as
    /// many rows as there are.
    pub(super) fn probe(
        &self,
        snapshot: &Snapshot,
        query: &Query<'_>,
        (k, threads): (usize, usize),
        effort: Effort,
    ) -> Result<Option<(TopK, Answer)>> {
        let Some(indexed) = &snapshot.indexed else { return Ok(None) };
        if k == 0 || !self.in_bounds(&query.vector) {
            return Ok(None);
        }
        let mut top = TopK::new(k);
        let compared = self.compare_in_full(snapshot, query, &mut top)?;
        let search = |room: &mut Room| {
            room.threads = threads;
            widen(snapshot, indexed, query, (k, effort), &top, room)
        };
        // A thread that waits for others may begin another search, which needs room of its own.
        let found = if threads > 1 { search(&mut Room::default()) } else { in_room(search) }?;
        Ok(found.map(|(top, mut answer)| {
            answer.codes += compared;
            answer.reads += compared;
            answer.bytes += compared * snapshot.rows.shape().layout.stride();
            (top, answer)
        }))
    }

    /// Whether no distance between such vectors overflows, nor a sum on the way. Rows beyond it are not
    /// trained on; queries beyond it are compared with every row.
    pub(crate) fn in_bounds(&self, vector: &[f32]) -> bool {
        self.isa.dot(vector, vector) < f32::MAX / 64.0
    }
}

/// Probes more and more cells until `k` rows are found, or all that live; `None` if the cells and
/// the nearest of the other rows do not hold as many, estimates that overflowed aside.
fn widen(
    snapshot: &Snapshot,
    indexed: &Indexed,
    query: &Query<'_>,
    (k, mut effort): (usize, Effort),
    others: &TopK,
    room: &mut Room,
) -> Result<Option<(TopK, Answer)>> {
    let live = usize::try_from(snapshot.state.live).unwrap_or(usize::MAX);
    let wanted = k.min(live.saturating_sub(query.hidden.len()));
    let mut before = Answer::default();
    loop {
        let effort_of_k = effort.at_least(indexed, k);
        alone(snapshot, indexed, query, effort_of_k, room, None)?;
        let mut top = others.clone();
        let mut answer = finish(snapshot, indexed, query, effort_of_k, &mut top, &mut room.walk)?;
        answer.codes += before.codes;
        answer.reranked += before.reranked;
        answer.reads += before.reads;
        answer.bytes += before.bytes;
        if top.len() >= wanted || effort.most != Most::ANY {
            return Ok(Some((top, answer)));
        }
        if effort.probes >= indexed.model.router.cells() {
            return Ok(None);
        }
        before = answer;
        effort = Effort { probes: effort.probes.saturating_mul(4), stop: 0.0, ..effort };
    }
}

/// What a walk that has ended found, added to what was found before.
fn finish(
    snapshot: &Snapshot,
    indexed: &Indexed,
    query: &Query<'_>,
    effort: Effort,
    top: &mut TopK,
    walk: &mut Walk,
) -> Result<Answer> {
    let mut answer = walk.answer();
    let Walk { survivors, nearest, asking, scale, .. } = walk;
    let survivors = survivors.distinct();
    if indexed.model.pq.is_none() {
        top.merge(std::mem::take(nearest));
    } else {
        let survivors = &survivors[..survivors.len().min(effort.most.rows)];
        answer.reranked = rerank_rows(
            snapshot,
            indexed,
            query,
            (survivors, effort.slack, *scale),
            (top, asking),
        )?;
        answer.reads += answer.reranked;
        answer.bytes += answer.reranked * snapshot.rows.shape().layout.stride();
    }
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
    (survivors, slack, scale): (&[Near], f32, Scale),
    (top, asking): (&mut TopK, &mut u32),
) -> Result<usize> {
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
            let estimate = scale.of_estimate(near.distance);
            if estimate >= within(slack, scale.of_key(top.limit())) {
                ended = true;
                break;
            }
            places.iter().zip(&rows).skip(at + LATER).take(1).for_each(begin);
            let key = match &rows[at] {
                Some(row) => query.key_of(row),
                None => query.key_of(&snapshot.rows.at(&places[at])?),
            };
            top.push(Ranked { key, id: near.id });
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
