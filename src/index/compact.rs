//! Giving back the space of removed rows: lists first, then row segments, then their tombstones.

use super::fold::Rewrite;
use super::merge::Merge;
use super::snapshot::Snapshot;
use super::{Index, Inner};
use crate::error::{Error, Result};
use crate::planted::{self, Bug};
use crate::storage::rows::{self, Segment};
use crate::storage::{Change, Table, Tombstones, put_segment, sparse};
use std::ops::Range;
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
    /// Drops removed rows from the lists and the row segments, brings small segments together, and gives
    /// their space back. Searches and inserts go on meanwhile.
    ///
    /// # Errors
    ///
    /// As [`Index::flush`]; [`crate::Error::Corrupt`] if a row that is to be kept is damaged.
    pub fn compact(&self) -> Result<Compacted> {
        self.inner.may_wait()?;
        self.inner.explained(self.inner.compact())
    }
}

/// Neighbouring segments that are written anew as one, and the number of that.
struct Job<'a> {
    segments: &'a [&'a Segment],
    number: u64,
}

impl Inner {
    pub(crate) fn compact(&self) -> Result<Compacted> {
        let _upkeep = self.hold_upkeep();
        self.compact_now(Merge::Asked)
    }

    /// Compacts; the caller holds the upkeep.
    pub(crate) fn compact_now(&self, merge: Merge) -> Result<Compacted> {
        let removed = {
            let mut writer = self.writer();
            writer.begin()?;
            writer.working.dead.clone()
        };
        // After this no list and no tail holds a row of `removed`.
        let freed = self.fold_now(Rewrite::Dead)?;
        let (snapshot, runs, first_number) = self.reserve(&removed, merge)?;
        let segments: Vec<&Segment> = snapshot.rows.segments().collect();
        let job = |(run, number)| Job {
            segments: segments.get::<Range<usize>>(run).unwrap_or(&[]),
            number,
        };
        let jobs: Vec<Job<'_>> = runs.into_iter().zip(first_number..).map(job).collect();
        let (mut done, total) = (Compacted { rows: 0, bytes: freed }, jobs.len() as u64);
        let most = self.config.segment_bytes;
        let mut rest = &jobs[..];
        while !rest.is_empty() {
            self.progress("compacting rows", total - rest.len() as u64, total);
            let some;
            (some, rest) = rest.split_at(together(rest, &removed, most));
            let fresh =
                || some.iter().map(|job| rows::path(&self.dir, job.number)).collect::<Vec<_>>();
            let Compacted { rows, bytes } =
                self.give_back(self.compact_rows(&removed, &snapshot, some), fresh)?;
            done.rows += rows;
            done.bytes += bytes;
        }
        Ok(done)
    }

    /// Does some jobs, and commits that.
    fn compact_rows(
        &self,
        removed: &Tombstones,
        snapshot: &Snapshot,
        jobs: &[Job<'_>],
    ) -> Result<Compacted> {
        let (mut gone, mut fresh, mut dropped) = (Vec::new(), Vec::new(), Vec::new());
        for Job { segments, number } in jobs {
            self.go_on()?;
            let disk = &*self.options.disk;
            let number = number - u64::from(planted::on(Bug::SegmentNumberReused));
            let kept = |id: u64| !planted::on(Bug::CompactedTooMuch) || id % 16 != 5;
            let alive = |id: u64| !removed.contains(id) && kept(id);
            let write = || sparse::write(disk, &self.dir, &snapshot.rows, segments, number, alive);
            fresh.extend(self.guard(self.trainings.run(write))?);
            for segment in *segments {
                segment.each_id(|id| dropped.extend(removed.contains(id).then_some(id)));
                gone.push((*segment).clone());
            }
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

    /// Decides which runs of segments are written anew, takes a number for each, and makes the writer leave
    /// the active segment if it is one of them. Returns the snapshot from then.
    fn reserve(
        &self,
        removed: &Tombstones,
        merge: Merge,
    ) -> Result<(Arc<Snapshot>, Vec<Range<usize>>, u64)> {
        let mut writer = self.writer();
        writer.ready()?;
        let writer = &mut *writer;
        let segments: Vec<&Segment> = writer.working.rows.segments().collect();
        let (runs, count) = (self.merges(&segments, removed, merge), segments.len());
        if runs.last().is_some_and(|run| run.end == count) {
            writer.store.abandon();
        }
        let first_number = writer.working.state.next_segment;
        writer.working.state.next_segment += runs.len() as u64;
        self.publish(writer.working.clone());
        Ok((self.snapshot(), runs, first_number))
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

/// How many jobs are done before the first of their segments are unlinked: so many bytes, one job at least.
/// A compaction is to give space back where there is hardly any left.
fn together(jobs: &[Job<'_>], removed: &Tombstones, most: u64) -> usize {
    let mut bytes = 0;
    let live = |s: &&Segment| {
        let dead = removed.count(s.file.first_id(), s.end_id);
        s.bytes().saturating_sub(dead * s.stride())
    };
    let fits = |job: &&Job<'_>| {
        bytes += job.segments.iter().map(live).sum::<u64>();
        bytes <= most
    };
    jobs.iter().take_while(fits).count().max(1)
}
