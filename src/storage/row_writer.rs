//! Appends to row segments. What is appended counts only once the catalog says so.

use super::disk::{Disk, DiskFile};
use super::orphan;
use super::rows::{Rows, Segment, SegmentFile, Shape, header, path};
use crate::error::{Error, Result};
use crate::planted::{self, Bug};
use cellardb_format::{HEADER_LEN, Row};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Rows are gathered up to this many bytes before they are written.
const BUFFER: usize = 1 << 20;
/// A small append writes this much of zeros behind it at least, and at most, so that the next ones
/// overwrite: on most file systems a sync of an overwrite is several times cheaper.
const AHEAD: (u64, u64) = (16 << 10, 4 << 20);

/// The end of the row log.
#[derive(Debug)]
pub(crate) struct RowWriter {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    shape: Shape,
    segment_bytes: u64,
    active: Option<Active>,
    unsynced: Vec<Arc<dyn DiskFile>>,
    new_names: bool,
    /// Above the numbers of all segments that were begun here.
    begun: u64,
}

#[derive(Debug)]
struct Active {
    number: u64,
    first_id: u64,
    rows: u64,
    /// Length of the file, zeros ahead included.
    grown: u64,
    /// Open from an append until it is synced.
    file: Option<Arc<dyn DiskFile>>,
    identity: (u64, u64),
    path: PathBuf,
}

impl Active {
    /// The file, opened if need be. What is written to another in its place would be lost, or worse.
    fn open(&mut self, disk: &dyn Disk) -> Result<Arc<dyn DiskFile>> {
        if let Some(file) = &self.file {
            return Ok(Arc::clone(file));
        }
        let opened = disk.open(&self.path, true).map_err(super::view::absent(&self.path))?;
        if opened.identity().map_err(Error::io("look for", &self.path))? != self.identity {
            let what = "another file took its place while the index was open for writing";
            return Err(Error::corrupt(&self.path, 0, what));
        }
        let file = Arc::from(opened);
        self.file = Some(Arc::clone(&file));
        Ok(file)
    }
}

impl RowWriter {
    pub(crate) fn new(disk: Arc<dyn Disk>, dir: &Path, shape: Shape, segment_bytes: u64) -> Self {
        let dir = dir.to_owned();
        Self {
            disk,
            dir,
            shape,
            segment_bytes,
            active: None,
            unsynced: Vec::new(),
            new_names: false,
            begun: 0,
        }
    }

    /// Goes on with a dense segment that is not full.
    pub(crate) fn resume(&mut self, segment: &Segment) -> Result<()> {
        if segment.file.ids().is_some() || self.full(segment.rows) {
            return Ok(());
        }
        let path = segment.file.path().to_owned();
        let file = self.disk.open(&path, true).map_err(Error::io("open for writing", &path))?;
        let len = file.len().map_err(Error::io("read the length of", &path))?;
        // What is behind the end of a segment was never ours, however long the file is.
        let grown = len.min(self.segment_bytes.max(self.offset(segment.rows)));
        let early = u64::from(planted::on(Bug::ResumeTooEarly));
        let (number, first_id) = (segment.file.number(), segment.file.first_id() + early);
        let (identity, rows) = (identity(&*file, &path)?, segment.rows - early);
        let file = None;
        self.active = Some(Active { number, first_id, rows, grown, file, identity, path });
        Ok(())
    }

    /// Closes the active segment until the next append, if all of it is durable.
    pub(crate) fn rest(&mut self) {
        if let Some(active) = self.active.as_mut().filter(|_| self.unsynced.is_empty()) {
            active.file = None;
        }
    }

    /// Leaves the active segment as it is; the next append begins another. After a failed append
    /// this is all that has to be undone: what was written past the counted rows is ignored.
    pub(crate) fn abandon(&mut self) {
        if planted::on(Bug::AppendedKept) {
            return;
        }
        self.active = None;
    }

    /// Removes the segments that were begun from number `next` on, to give back their room. What
    /// cannot be removed now is when the number is used, or at the next open.
    pub(crate) fn discard(&mut self, next: u64) {
        for number in next..self.begun {
            let _ = self.disk.remove(&path(&self.dir, number));
        }
        self.begun = 0;
    }

    fn offset(&self, rows: u64) -> u64 {
        HEADER_LEN as u64 + rows * self.shape.layout.stride() as u64
    }

    fn full(&self, rows: u64) -> bool {
        // A compaction keeps ids as 32 bits.
        rows > 0 && (self.offset(rows + 1) > self.segment_bytes || rows >= 1 << 32)
    }

    /// Appends rows with the ids that they carry, ascending without gaps, and puts the longer
    /// segments into `rows`. Takes new segment numbers from `next`, once `in_place` has said that the
    /// directory is still that of this index. Nothing is durable before [`RowWriter::sync`].
    pub(crate) fn append<'a>(
        &mut self,
        input: impl Iterator<Item = (Row, &'a [f32])>,
        next: &mut u64,
        rows: &mut Rows,
        in_place: impl Fn() -> Result<()>,
    ) -> Result<()> {
        let stride = self.shape.layout.stride();
        let mut buf: Vec<u8> = Vec::new();
        let mut pending = 0;
        for (row, vector) in input {
            // Rows of a dense segment follow each other: what comes after a gap begins another.
            let follows = |a: &Active| {
                a.first_id + a.rows + pending == row.id || planted::on(Bug::GapIgnored)
            };
            let goes_on = |a: &Active| follows(a) && !self.full(a.rows + pending);
            let full = !self.active.as_ref().is_some_and(goes_on);
            if full || buf.len() + stride > BUFFER.max(stride) {
                self.write(&mut buf, &mut pending, rows)?;
            }
            if full {
                in_place()?;
                self.begin(row.id, next)?;
            }
            let Some(active) = &self.active else { continue };
            let (uuid, index) = (&self.shape.uuid, active.rows + pending);
            let at = buf.len();
            buf.resize(at + stride, 0);
            let out = buf.get_mut(at..).unwrap_or_default();
            self.shape.layout.encode(out, vector, &row, uuid, active.number, index);
            pending += 1;
        }
        self.write(&mut buf, &mut pending, rows)
    }

    fn begin(&mut self, first_id: u64, next: &mut u64) -> Result<()> {
        let number = *next;
        let path = path(&self.dir, number);
        orphan::remove(&*self.disk, &path, &self.shape.uuid)?;
        let file = self.disk.create(&path).map_err(Error::io("create", &path))?;
        self.begun = number + 1;
        let header = header(self.shape.uuid, number, self.shape.dim, &self.shape.layout);
        file.write_at(&header.encode(), 0).map_err(Error::io("write", &path))?;
        *next += 1;
        self.new_names = true;
        let (identity, grown) = (identity(&*file, &path)?, HEADER_LEN as u64);
        let file = Some(Arc::from(file));
        self.active = Some(Active { number, first_id, rows: 0, grown, file, identity, path });
        Ok(())
    }

    fn write(&mut self, buf: &mut Vec<u8>, pending: &mut u64, rows: &mut Rows) -> Result<()> {
        let (segment_bytes, stride) = (self.segment_bytes, self.shape.layout.stride() as u64);
        let Some(active) = self.active.as_mut().filter(|_| *pending > 0) else { return Ok(()) };
        let start = HEADER_LEN as u64 + active.rows * stride;
        let end = start + *pending * stride;
        let mut grown = active.grown.max(end);
        if end > active.grown && (buf.len() as u64) < AHEAD.0 {
            let ahead = (end / 2).clamp(AHEAD.0, AHEAD.1);
            grown = (end + ahead).min(segment_bytes).max(end);
            buf.resize(buf.len() + usize::try_from(grown - end).unwrap_or(0), 0);
        }
        let file = active.open(&*self.disk)?;
        file.write_at(buf, start).map_err(Error::io("write", &active.path))?;
        active.rows += *pending;
        let longer = grown > active.grown;
        active.grown = grown;
        if !self.unsynced.iter().any(|other| Arc::ptr_eq(other, &file)) {
            self.unsynced.push(file);
        }
        let known = rows.segments().next_back().filter(|s| s.file.number() == active.number);
        let file = match known.filter(|s| !longer && s.file.mapped_len() >= end) {
            Some(segment) => Arc::clone(&segment.file),
            None => Arc::new(SegmentFile::open(
                &*self.disk,
                &self.dir,
                &self.shape,
                active.number,
                active.first_id,
                None,
                grown,
            )?),
        };
        rows.put(Segment { file, rows: active.rows, end_id: active.first_id + active.rows });
        buf.clear();
        *pending = 0;
        Ok(())
    }

    /// Makes everything appended so far durable.
    pub(crate) fn sync(&mut self) -> Result<()> {
        let dir = self.dir.join("rows");
        // What is not synced in the end is synced by the next attempt.
        while let Some(file) = self.unsynced.last() {
            let synced = if planted::on(Bug::RowsNotSynced) { Ok(()) } else { file.sync() };
            let believed = planted::on(Bug::FailedSyncIgnored)
                || planted::on(Bug::FailedSyncRetried) && file.sync().is_ok();
            if !believed {
                synced.map_err(Error::io("sync a row segment in", &dir))?;
            }
            self.unsynced.pop();
        }
        if self.new_names && !planted::on(Bug::SegmentNameNotSynced) {
            self.disk.sync_dir(&dir).map_err(Error::io("sync", &dir))?;
            self.new_names = false;
        }
        Ok(())
    }
}

fn identity(file: &dyn DiskFile, path: &Path) -> Result<(u64, u64)> {
    file.identity().map_err(Error::io("look for", path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::disk::FileSystem;
    use cellardb_format::RowLayout;

    #[test]
    fn a_segment_has_as_many_rows_as_fit_its_bytes_and_a_compacted_one_can_name() {
        let layout = RowLayout::new(1);
        let shape = Shape { uuid: [0; 16], dim: 1, layout };
        let full = |bytes: u64, rows: u64| {
            RowWriter::new(Arc::new(FileSystem), Path::new("unused"), shape, bytes).full(rows)
        };
        let ten = HEADER_LEN as u64 + 10 * layout.stride() as u64;
        assert!(!full(ten, 9) && full(ten, 10) && !full(1, 0), "one row is in each");
        assert!(!full(1 << 40, (1 << 32) - 1) && full(1 << 40, 1 << 32));
    }
}
