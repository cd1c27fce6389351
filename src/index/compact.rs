//! Giving back the space of removed rows: lists first, then row segments, then their tombstones.

use super::fold::Rewrite;
use super::snapshot::Snapshot;
use super::{Index, Inner};
use crate::error::{Error, Result};
use crate::planted::{self, Bug};
use crate::storage::rows::{self, Segment};
use crate::storage::{Change, Table, Tombstones, put_segment, sparse};
use std::path::PathBuf;
use std::sync::Arc;

/// What a compaction gave back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Compacted {
    /// Removed rows whose bytes are gone.
    pub rows: u64,
    /// Bytes that the files are shorter by.
    pub bytes: u64,
}

impl Index {
    /// Drops removed rows from the lists and the row segments and gives their space back. Searches
    /// and inserts go on meanwhile.
    ///
    /// # Errors
    ///
    /// As [`Index::flush`]; [`crate::Error::Corrupt`] if a row that is to be kept is damaged.
    pub fn compact(&self) -> Result<Compacted> {
        self.inner.may_wait()?;
        self.inner.compact()
    }
}

impl Inner {
    pub(crate) fn compact(&self) -> Result<Compacted> {
        let _upkeep = self.hold_upkeep();
        self.compact_now()
    }

    /// Compacts; the caller holds the upkeep.
    pub(crate) fn compact_now(&self) -> Result<Compacted> {
        let removed = {
            let mut writer = self.writer();
            writer.begin()?;
            writer.working.dead.clone()
        };
        // After this no list and no tail holds a row of `removed`.
        let freed = self.fold_now(Rewrite::Dead)?;
        let (snapshot, mut number) = self.reserve(&removed)?;
        let holds = |s: &&Segment| removed.count(s.file.first_id(), s.end_id) > 0;
        let segments: Vec<&Segment> = snapshot.rows.segments().filter(holds).collect();
        let (mut done, total) = (Compacted { rows: 0, bytes: freed }, segments.len() as u64);
        let most = self.config.segment_bytes;
        let mut rest = &segments[..];
        while !rest.is_empty() {
            self.progress("compacting rows", total - rest.len() as u64, total);
            let (some, others) = rest.split_at(together(rest, most));
            let (first, next) = (number, number + some.len() as u64);
            (rest, number) = (others, next);
            let Compacted { rows, bytes } = self
                .give_back(self.compact_rows(&removed, &snapshot, some, first), || {
                    (first..next).map(|number| rows::path(&self.dir, number)).collect()
                })?;
            done.rows += rows;
            done.bytes += bytes;
        }
        Ok(done)
    }

    /// Writes segments that hold removed rows anew, under numbers from `first_number` on, and commits that.
    fn compact_rows(
        &self,
        removed: &Tombstones,
        snapshot: &Snapshot,
        segments: &[&Segment],
        first_number: u64,
    ) -> Result<Compacted> {
        let (mut gone, mut fresh, mut dropped) = (Vec::new(), Vec::new(), Vec::new());
        let first_number = first_number - u64::from(planted::on(Bug::SegmentNumberReused));
        for (segment, number) in segments.iter().copied().zip(first_number..) {
            self.go_on()?;
            let disk = &*self.options.disk;
            let kept = |id: u64| !planted::on(Bug::CompactedTooMuch) || id % 16 != 5;
            let alive = |id: u64| !removed.contains(id) && kept(id);
            let write = || sparse::write(disk, &self.dir, &snapshot.rows, segment, number, alive);
            fresh.extend(self.guard(self.trainings.run(write))?);
            segment.each_id(|id| dropped.extend(removed.contains(id).then_some(id)));
            gone.push(segment.clone());
        }
        let dir = self.dir.join("rows");
        self.guard(self.options.disk.sync_dir(&dir).map_err(Error::io("sync", &dir)))?;
        let bytes = |segments: &[Segment]| segments.iter().map(Segment::bytes).sum::<u64>();
        let freed = bytes(&gone).saturating_sub(bytes(&fresh));
        let files: Vec<PathBuf> = gone.iter().map(|s| s.file.path().to_owned()).collect();
        if planted::on(Bug::SegmentUnlinkedEarly) {
            self.unlink(&files);
        }
        self.exchange(&gone, fresh, &dropped)?;
        self.unlink(&files);
        Ok(Compacted { rows: dropped.len() as u64, bytes: freed })
    }

    /// Takes a segment number for every segment that there is, and makes the writer leave the
    /// active segment if it is to be compacted. Returns the snapshot from then.
    fn reserve(&self, removed: &Tombstones) -> Result<(Arc<Snapshot>, u64)> {
        let mut writer = self.writer();
        writer.ready()?;
        let writer = &mut *writer;
        let last = writer.working.rows.segments().next_back();
        if last.is_some_and(|s| removed.count(s.file.first_id(), s.end_id) > 0) {
            writer.store.abandon();
        }
        let first_number = writer.working.state.next_segment;
        writer.working.state.next_segment += writer.working.rows.segments().count() as u64;
        self.publish(writer.working.clone());
        Ok((self.snapshot(), first_number))
    }

    fn exchange(&self, gone: &[Segment], fresh: Vec<Segment>, dropped: &[u64]) -> Result<()> {
        let mut change = Change::default();
        for segment in gone {
            change.remove(Table::Segments, segment.file.number());
        }
        for segment in &fresh {
            put_segment(&mut change, segment);
        }
        let mut writer = self.writer();
        writer.ready()?;
        let numbers: Vec<u64> = gone.iter().map(|s| s.file.number()).collect();
        let working = &mut writer.working;
        working.rows = working.rows.exchange(&numbers, fresh);
        for id in dropped {
            working.dead.remove(*id);
        }
        for id in dropped {
            writer.touch_dead(*id);
        }
        self.commit(&mut writer, change)
    }
}

/// How many segments are written anew before the first of them are unlinked: so many bytes, one segment at
/// least. A compaction is to give space back where there is hardly any left.
fn together(segments: &[&Segment], most: u64) -> usize {
    let mut bytes = 0;
    let fits = |s: &&&Segment| {
        bytes += s.bytes();
        bytes <= most
    };
    segments.iter().take_while(fits).count().max(1)
}
