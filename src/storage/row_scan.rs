//! Reading many rows in order, by large positioned reads that leave no trace in the maps: what
//! training, folding and verifying do.

use super::disk::{Disk, DiskFile};
use super::rows::{Rows, Segment, header};
use super::view::{Access, View, absent, short};
use crate::error::{Error, Result};
use cellardb_format::Row;

impl Rows {
    /// Reads rows with `from <= id < to` in order, by large reads that leave no trace in the maps.
    pub(crate) fn scan<'a>(&'a self, disk: &'a dyn Disk, from: u64, to: u64) -> RowScan<'a> {
        let segments =
            self.segments().filter(|s| s.end_id > from && s.file.first_id() < to).collect();
        RowScan { disk, segments, at: 0, index: None, file: None, from, to, buf: Vec::new() }
    }

    /// Reads the header and every row of a segment anew and reports what is damaged; returns how
    /// many rows are whole.
    pub(crate) fn verify(
        &self,
        disk: &dyn Disk,
        segment: &Segment,
        found: &mut dyn FnMut(Error),
    ) -> u64 {
        let (file, shape, mut whole) = (&segment.file, self.shape(), 0);
        let stride = shape.layout.stride();
        let expected = header(shape.uuid, file.number(), shape.dim, &shape.layout);
        let view = match View::open(disk, file.path(), segment.bytes(), Access::Runs, &expected) {
            Ok(view) => view,
            Err(e) => {
                found(e);
                return 0;
            }
        };
        for index in 0..segment.rows {
            let id = file.id_at(index).unwrap_or(u64::MAX);
            let row = view.bytes(file.offset(index), stride);
            match row.and_then(|bytes| file.verify(&bytes, index, id)) {
                Ok(_) => whole += 1,
                Err(e) => found(e),
            }
        }
        whole
    }

    /// Appends the rows of some ids, ascending, to `batch`; ids without a row are passed over.
    pub(crate) fn fetch(&self, disk: &dyn Disk, ids: &[u64], batch: &mut RowBatch) -> Result<()> {
        let mut open: Option<(u64, Box<dyn DiskFile>)> = None;
        let mut buf = vec![0; self.shape().layout.stride()];
        for &id in ids {
            let Some((segment, index)) = self.locate(id) else { continue };
            let (file, path) = (&segment.file, segment.file.path());
            let reader = match open.take().filter(|(number, _)| *number == file.number()) {
                Some(same) => same,
                None => (file.number(), disk.open(path, false).map_err(absent(path))?),
            };
            let offset = file.offset(index);
            reader.1.read_at(&mut buf, offset).map_err(|e| short(path, offset, e))?;
            open = Some(reader);
            batch.push(segment, &buf, (index, id))?;
        }
        Ok(())
    }
}

/// A batch of rows in insertion order.
#[derive(Debug, Default)]
pub(crate) struct RowBatch {
    pub(crate) rows: Vec<Row>,
    /// Row-major, as inserted.
    pub(crate) vectors: Vec<f32>,
}

impl RowBatch {
    /// Empties the batch and keeps its room.
    pub(crate) fn clear(&mut self) {
        self.rows.clear();
        self.vectors.clear();
    }

    fn push(&mut self, segment: &Segment, bytes: &[u8], (index, id): (u64, u64)) -> Result<()> {
        let file = &segment.file;
        let row = file.verify(bytes, index, id)?;
        let vector = file.layout.vector(bytes);
        let vector = vector.map_err(|e| super::damage(file.path(), file.offset(index), e))?;
        self.vectors.extend_from_slice(&vector);
        self.rows.push(row);
        Ok(())
    }
}

/// A sequential reader of rows; see [`Rows::scan`].
#[derive(Debug)]
pub(crate) struct RowScan<'a> {
    disk: &'a dyn Disk,
    segments: Vec<&'a Segment>,
    at: usize,
    index: Option<u64>,
    file: Option<Box<dyn DiskFile>>,
    from: u64,
    to: u64,
    buf: Vec<u8>,
}

impl RowScan<'_> {
    /// Calls `f` with batches of about `max` rows; while it works, the next batch is read.
    pub(crate) fn each(
        mut self,
        max: usize,
        mut f: impl FnMut(RowBatch) -> Result<()> + Send,
    ) -> Result<()> {
        let mut read = || -> Result<Option<RowBatch>> {
            let mut batch = RowBatch::default();
            Ok(self.next(max, &mut batch)?.then_some(batch))
        };
        let mut ready = read()?;
        while let Some(batch) = ready {
            let (next, done) = rayon::join(&mut read, || f(batch));
            done?;
            ready = next?;
        }
        Ok(())
    }

    /// Appends up to about `max` rows to `batch`; `false` when there are no more. Verifies each.
    pub(crate) fn next(&mut self, max: usize, batch: &mut RowBatch) -> Result<bool> {
        while let Some(segment) = self.segments.get(self.at) {
            let file = &segment.file;
            let start = match (self.index, file.ids()) {
                (Some(index), _) => index,
                (None, None) => self.from.saturating_sub(file.first_id()),
                (None, Some(ids)) => {
                    match u32::try_from(self.from.saturating_sub(file.first_id())) {
                        Ok(0) => 0,
                        Ok(n) => ids.rank(n - 1),
                        Err(_) => segment.rows,
                    }
                }
            };
            let past = file.id_at(start).is_none_or(|id| id >= self.to);
            if start >= segment.rows || past {
                (self.at, self.index, self.file) = (self.at + 1, None, None);
                continue;
            }
            self.read(start, max, batch)?;
            return Ok(true);
        }
        Ok(false)
    }

    fn read(&mut self, start: u64, max: usize, batch: &mut RowBatch) -> Result<()> {
        let Some(segment) = self.segments.get(self.at) else { return Ok(()) };
        let file = &segment.file;
        let stride = file.layout.stride();
        let n = (segment.rows - start).min(max as u64).min((1 + (16 << 20) / stride) as u64);
        let len = usize::try_from(n).unwrap_or(0) * stride;
        self.buf.resize(len, 0);
        let reader = match &mut self.file {
            Some(reader) => reader,
            none => none.insert(self.disk.open(file.path(), false).map_err(absent(file.path()))?),
        };
        let offset = file.offset(start);
        reader.read_at(&mut self.buf, offset).map_err(|e| short(file.path(), offset, e))?;
        self.index = Some(start + n);
        for (i, bytes) in self.buf.chunks_exact(stride).enumerate() {
            let index = start + i as u64;
            let Some(id) = file.id_at(index).filter(|id| *id < self.to) else { break };
            batch.push(segment, bytes, (index, id))?;
        }
        Ok(())
    }
}
