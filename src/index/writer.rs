//! The one writer: applies changes to a working copy of the snapshot, commits, publishes. Callers
//! that arrive while a commit is under way form the next group and share its syncs.

use super::Inner;
use super::encoded::Encoded;
use super::failure::again;
use super::queue;
use super::snapshot::{Indexed, Snapshot};
use crate::error::{Error, Result};
use crate::options::Durability;
use crate::planted::{self, Bug};
use crate::storage::{Change, Store, Table, chunk, put_segment};
use cellardb_format::{NONE, Row, Tombstones};
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, MutexGuard, OnceLock};
use std::time::Duration;

/// A change that a caller asks for.
#[derive(Debug)]
pub(crate) enum Op<'a> {
    Insert(Batch<'a>),
    Remove(Cow<'a, [u64]>),
}

/// Checked rows, and their codes under the model that was current when they came.
#[derive(Debug)]
pub(crate) struct Batch<'a> {
    pub(crate) vectors: Cow<'a, [f32]>,
    pub(crate) scales: Vec<f32>,
    pub(crate) encoded: Encoded,
}

/// What a change did.
#[derive(Debug, Clone)]
pub(crate) enum Done {
    Inserted(Range<u64>),
    Removed(u64),
    /// Nothing: a new model has come since the rows were encoded. To encode them again takes long, and others
    /// wait for the writer.
    Outdated,
}

/// Changes that wait for the writer.
pub(crate) type Queue = queue::Queue<Op<'static>, Result<Done>>;

/// What the others of a group get when the thread that committed for them panicked.
pub(crate) fn lost() -> Result<Done> {
    Err(Error::Poisoned { cause: PANICKED.into() })
}

pub(crate) const PANICKED: &str = "a thread panicked while it wrote";

/// The state behind the writer's mutex.
#[derive(Debug)]
pub(crate) struct Writer {
    pub(crate) store: Store,
    /// The state after all changes, durable or not.
    pub(crate) working: Snapshot,
    segments: BTreeSet<u64>,
    dead: BTreeSet<u64>,
    dirty: bool,
    told: Arc<Told>,
    closed: bool,
    read_only: bool,
    /// Whether to look where the directory is before a change: it was elsewhere at the last commit, or
    /// each change is committed at once, and costs more than that.
    look: bool,
}

/// What is told of the writer without waiting for it.
#[derive(Debug)]
pub(crate) struct Told {
    seq: AtomicU64,
    poison: OnceLock<String>,
}

impl Told {
    /// The number of the last commit.
    pub(crate) fn seq(&self) -> u64 {
        self.seq.load(Ordering::Relaxed)
    }

    /// Why nothing is written any more, if so.
    pub(crate) fn poison(&self) -> Option<&str> {
        self.poison.get().map(String::as_str)
    }
}

impl Writer {
    pub(crate) fn new(store: Store, working: Snapshot, read_only: bool) -> Self {
        let (segments, dead) = (BTreeSet::new(), BTreeSet::new());
        let told = Told { seq: AtomicU64::new(store.state.seq), poison: OnceLock::new() };
        let told = Arc::new(told);
        Self {
            store,
            working,
            segments,
            dead,
            dirty: false,
            told,
            closed: false,
            read_only,
            look: false,
        }
    }

    pub(crate) fn told(&self) -> Arc<Told> {
        Arc::clone(&self.told)
    }

    /// Whether a change may be made now.
    pub(crate) fn ready(&self) -> Result<()> {
        if self.read_only {
            return Err(Error::ReadOnly);
        }
        if self.closed {
            return Err(Error::Closed);
        }
        match self.poisoned() {
            Some(cause) => Err(Error::Poisoned { cause: cause.to_owned() }),
            None => Ok(()),
        }
    }

    /// Whether a change may be made now that whoever opens the index will find.
    fn admit(&mut self, durability: Durability) -> Result<()> {
        self.ready()?;
        if self.look || durability == Durability::Commit {
            self.store.in_place()?;
            self.look = false;
        }
        Ok(())
    }

    pub(crate) fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Before files are made for a long change: whether it may be made, with all that was applied durable.
    pub(crate) fn begin(&mut self) -> Result<()> {
        self.ready()?;
        self.store.in_place()?;
        self.commit_pending()
    }

    pub(crate) fn poisoned(&self) -> Option<&str> {
        self.told.poison()
    }

    /// After this no write is tried any more: what the disk holds is not known until reopening.
    pub(crate) fn poison(&mut self, e: &Error) {
        self.told.poison.get_or_init(|| e.to_string());
    }

    /// Ids whose tombstone has changed.
    pub(crate) fn touch_dead(&mut self, id: u64) {
        self.dead.insert(chunk(id).0);
    }

    /// Makes everything applied so far durable, together with `change`.
    pub(crate) fn commit(&mut self, mut change: Change) -> Result<()> {
        self.ready()?;
        // A fold, a training, a compaction: rare enough to make the mark of the commit durable too.
        let rare = !change.is_empty();
        let snapshot = &mut self.working;
        let mut left = self.segments.len();
        // They are the last ones, unless a compaction has replaced them.
        for segment in snapshot.rows.segments().rev() {
            if left == 0 {
                break;
            }
            if self.segments.contains(&segment.file.number()) {
                put_segment(&mut change, segment);
                left -= 1;
            }
        }
        for key in self.dead.iter().filter(|_| !planted::on(Bug::TombstonesNotStored)) {
            match snapshot.dead.get(*key) {
                Some(set) => change.put(Table::Dead, *key, Tombstones(set.clone()).encode()),
                None => change.remove(Table::Dead, *key),
            }
        }
        let state = &mut snapshot.state;
        state.segments = u32::try_from(snapshot.rows.segments().count()).unwrap_or(u32::MAX);
        state.dead = snapshot.dead.len();
        snapshot.drift.store(state);
        state.dead_keys = u32::try_from(snapshot.dead.keys()).unwrap_or(u32::MAX);
        let before = self.store.state.seq;
        let done = self.store.commit(change, state.clone());
        if let Err(e) = &done
            && !self.stored(before, e)
        {
            if !e.passes() && !planted::on(Bug::PoisonForgotten) {
                self.poison(e);
            }
            return done;
        }
        // From here on the change is durable, and no failure leaves things as they were.
        let settled = if rare { self.store.settle() } else { Ok(()) };
        self.store.rest();
        if let Err(e) = settled {
            self.poison(&e);
            return Err(e);
        }
        let state = &mut self.working.state;
        state.seq = self.store.state.seq;
        self.told.seq.store(state.seq, Ordering::Relaxed);
        self.segments.clear();
        self.dead.clear();
        self.dirty = false;
        self.look = done.is_err();
        done
    }

    /// Whether a commit that began after number `before` is durable although it ended with an error: in a
    /// directory that is elsewhere. It is not acknowledged, and what follows builds on it.
    pub(crate) fn stored(&self, before: u64, e: &Error) -> bool {
        self.store.state.seq > before && matches!(e, Error::Moved { .. })
    }

    /// Commits what relaxed durability has put off.
    pub(crate) fn commit_pending(&mut self) -> Result<()> {
        if self.dirty { self.commit(Change::default()) } else { Ok(()) }
    }

    /// Commits what was put off, and makes the mark of the last commit durable.
    pub(crate) fn settle(&mut self) -> Result<()> {
        self.commit_pending()?;
        let settled = self.store.settle().inspect_err(|e| self.poison(e));
        self.store.rest();
        settled
    }

    /// Closes the store. Later changes are refused.
    pub(crate) fn close(&mut self) -> Result<()> {
        if self.closed {
            return Ok(());
        }
        let pending = self.poisoned().is_none() && !planted::on(Bug::PendingNotClosed);
        let pending = if pending { self.settle() } else { Ok(()) };
        self.closed = true;
        pending.and(self.store.close())
    }

    /// The working copy is again what readers see.
    pub(crate) fn take_back(&mut self, published: &Snapshot) {
        self.working = published.clone();
        // What relaxed durability put off may have been committed since.
        self.working.state.seq = self.store.state.seq;
    }

    /// Whether a failure has left the index as it was, known to be so.
    pub(crate) fn unharmed(&self, e: &Error) -> bool {
        e.shortage() && self.poisoned().is_none()
    }

    fn apply(&mut self, inner: &Inner, op: &Op<'_>) -> Result<Done> {
        match op {
            Op::Insert(batch) => self.insert(inner, batch),
            Op::Remove(ids) => Ok(Done::Removed(self.remove(ids))),
        }
    }

    fn insert(&mut self, inner: &Inner, batch: &Batch<'_>) -> Result<Done> {
        let (snapshot, encoded) = (&mut self.working, &batch.encoded);
        let model = snapshot.indexed.as_ref().map(|i| Arc::clone(&i.model));
        let current = model.as_ref().map_or(0, |m| m.generation());
        if encoded.generation != current {
            return Ok(Done::Outdated);
        }
        let first = snapshot.state.next_id;
        let cells = encoded.cells().chain(std::iter::repeat((NONE, NONE)));
        let metas = batch.scales.iter().zip(cells).zip(first..);
        let metas = metas.map(|((scale, (cell, spill)), id)| Row {
            id,
            generation: if cell == NONE { 0 } else { current },
            cell,
            spill,
            scale: *scale,
        });
        let before = snapshot.rows.segments().next_back().map(|s| s.file.number());
        let input = metas.zip(batch.vectors.chunks_exact(inner.dim));
        self.store.append(input, &mut snapshot.state, &mut snapshot.rows)?;
        let end = first + batch.scales.len() as u64;
        snapshot.state.next_id = end;
        snapshot.state.live += end - first;
        for number in snapshot.rows.segments().rev().map(|s| s.file.number()) {
            self.segments.insert(number);
            if before == Some(number) {
                break;
            }
        }
        if let Some(model) = &model {
            for (copies, id) in encoded.rows().zip(first..) {
                copies.for_each(|copy| snapshot.tail.push(model, copy, id));
            }
        }
        snapshot.drift.note(first, encoded.distances());
        self.dirty = true;
        Ok(Done::Inserted(first..end))
    }

    fn remove(&mut self, ids: &[u64]) -> u64 {
        let mut removed = 0;
        for &id in ids {
            if self.working.rows.holds(id) && self.working.dead.insert(id) {
                self.dead.insert(chunk(id).0);
                removed += 1;
            }
        }
        self.working.state.live -= removed;
        self.dirty |= removed > 0;
        removed
    }
}

impl Inner {
    /// Applies a change, alone or in the group that happens to form.
    pub(crate) fn submit(&self, op: Op<'static>) -> Result<Done> {
        let commit = |mut writer: MutexGuard<'_, Writer>, ops: &[&Op<'static>]| {
            self.commit_group(&mut writer, ops)
        };
        self.queue.submit(op, || self.writer(), commit)
    }

    /// Applies one change that borrows from its caller.
    pub(crate) fn submit_alone(&self, op: &Op<'_>) -> Result<Done> {
        let mut writer = self.writer();
        let mut done = self.commit_group(&mut writer, &[op]);
        done.pop().unwrap_or(Err(Error::Closed))
    }

    fn commit_group(&self, writer: &mut Writer, ops: &[&Op<'_>]) -> Vec<Result<Done>> {
        let (mut done, dirty) = (Vec::with_capacity(ops.len()), writer.dirty);
        let before = writer.store.state.seq;
        let mut failed = writer.admit(self.options.durability).err();
        for (n, op) in ops.iter().enumerate() {
            let result = match failed.take() {
                None if n > 0 && planted::on(Bug::GroupHalved) => Ok(Done::Removed(0)),
                None => writer.apply(self, op).map_err(|e| self.home.explain_change(e)),
                Some(e) => Err(e),
            };
            if let Err(e) = &result {
                failed = Some(again(e));
            }
            done.push(result);
        }
        if planted::on(Bug::PublishBeforeCommit) {
            self.publish(writer.working.clone());
        }
        let later = planted::on(Bug::AckBeforeCommit) && writer.working.state.next_id % 4 == 1;
        let wanted = self.options.durability == Durability::Commit && !later;
        if failed.is_none() && writer.dirty && wanted {
            failed = writer.commit(Change::default()).err();
        }
        let Some(e) = failed.or_else(|| self.put_off(writer).err()) else {
            self.publish(writer.working.clone());
            return done;
        };
        // The group fails as one. A full disk leaves the index as it was; after most other failures
        // it is not known what the disk holds.
        if let Some(Err(first)) = done.iter().find(|d| d.is_err())
            && !first.passes()
            && writer.ready().is_ok()
        {
            writer.poison(first);
        }
        if writer.stored(before, &e) {
            self.publish(writer.working.clone());
        } else {
            writer.store.abandon();
            writer.take_back(&self.snapshot());
            writer.dirty = dirty;
            if writer.unharmed(&e) {
                writer.store.discard(writer.working.state.next_segment);
            }
        }
        let mut error = Some(e);
        done.into_iter()
            .map(|d| match d {
                Err(e) => Err(e),
                Ok(_) => {
                    let e = error.take().unwrap_or(Error::Closed);
                    error = Some(again(&e));
                    Err(e)
                }
            })
            .collect()
    }

    /// Sees to it that what relaxed durability puts off is committed in time.
    fn put_off(&self, writer: &mut Writer) -> Result<()> {
        match self.options.durability {
            Durability::Interval(time) if writer.dirty && !self.signal.commit_after(time) => {
                writer.commit_pending()
            }
            _ => Ok(()),
        }
    }

    /// The writer. If a thread panicked while it held it, nothing is known of its state: it writes
    /// no more.
    pub(crate) fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(|e| {
            let writer = e.into_inner();
            writer.told.poison.get_or_init(|| PANICKED.into());
            writer
        })
    }

    pub(crate) fn publish(&self, snapshot: Snapshot) {
        self.current.store(Arc::new(snapshot));
    }

    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Waits a while for searches that hold the lists of an older snapshot, which the work that replaced them holds
    /// too: whoever lets go of many maps last gives them back, and that is not to be a search.
    pub(crate) fn let_go(&self, old: Arc<Snapshot>) {
        let Some(Indexed { lists, .. }) = old.indexed.clone() else { return };
        drop(old);
        for _ in 0..20 {
            if Arc::strong_count(&lists) <= 2 {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::queue::{LONGEST_WAIT, Queue, Slot};
    use super::{Batch, Done, Encoded, Op};
    use crate::{Index, Kind, Maintenance};
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    fn slot() -> Arc<Slot<(), ()>> {
        Slot::new(())
    }

    #[test]
    fn rows_of_an_older_model_are_sent_back_and_not_encoded_while_others_wait() {
        let dir = tempfile::tempdir().unwrap();
        let options = Index::options(2).kind(Kind::IvfFlat).nlist(2).train_at(64).threads(1);
        let options = options.maintenance(Maintenance::Manual);
        let index = options.create(dir.path().join("index")).unwrap();
        let rows: Vec<f32> = (0..200).map(|x| (x % 23) as f32).collect();
        index.insert_many(&rows).unwrap();
        index.train().unwrap();
        let encoded = Encoded::default();
        let batch = Batch { vectors: vec![1.0, 2.0].into(), scales: vec![1.0], encoded };
        let done = index.inner.submit(Op::Insert(batch)).unwrap();
        assert!(matches!(done, Done::Outdated), "{done:?}");
        assert_eq!((index.len(), index.insert(&[1.0, 2.0]).unwrap()), (100, 100));
    }

    #[test]
    fn a_leader_waits_for_those_who_are_expected_and_not_for_long() {
        let queue = Queue::new(|| ());
        assert!(queue.enter(&slot()));
        // Nobody else is expected: no wait, however long a commit took.
        queue.served(0, Duration::from_secs(60));
        assert_eq!(queue.gather().len(), 1);
        // Two are expected, and the other does not come: what was waited is bounded.
        queue.enter(&slot());
        queue.served(1, Duration::from_secs(4 * 3600));
        let start = Instant::now();
        assert_eq!(queue.gather().len(), 1);
        let waited = start.elapsed();
        assert!(waited >= LONGEST_WAIT && waited < Duration::from_secs(20 * 60), "{waited:?}");
        // The other comes a moment later, and is taken along. A slow machine may need more turns.
        let together = (0..100).any(|_| {
            queue.enter(&slot());
            queue.served(1, Duration::from_secs(60));
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    std::thread::sleep(Duration::from_micros(100));
                    queue.enter(&slot());
                });
                queue.gather().len() == 2
            })
        });
        assert!(together);
    }
}
