//! Row segments, for reading: vectors in insertion order, the truth that all else derives from.

use super::disk::Disk;
use super::seen::Seen;
use super::view::{Access, View};
use crate::error::{Error, Result};
use crate::planted::{self, Bug};
use cellardb_format::{FileHeader, FileKind, HEADER_LEN, Row, RowLayout};
use roaring::RoaringBitmap;
use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The file of a row segment.
pub(crate) fn path(dir: &Path, number: u64) -> PathBuf {
    dir.join("rows").join(format!("{number:010}.rows"))
}

/// The header that a row segment must have.
pub(crate) fn header(uuid: [u8; 16], number: u64, dim: usize, layout: &RowLayout) -> FileHeader {
    FileHeader {
        kind: FileKind::Rows,
        uuid,
        number,
        generation: 0,
        revision: 0,
        dim: u32::try_from(dim).unwrap_or(u32::MAX),
        unit: u32::try_from(layout.stride()).unwrap_or(u32::MAX),
    }
}

/// The file of a segment as far as a snapshot may read it.
#[derive(Debug)]
pub(crate) struct SegmentFile {
    number: u64,
    first_id: u64,
    /// The ids of a compacted segment, relative to `first_id`; none if the segment is dense.
    ids: Option<RoaringBitmap>,
    uuid: [u8; 16],
    pub(super) layout: RowLayout,
    view: View,
    seen: Seen,
    /// What was asked for ahead, whether it was read then or not.
    asked: Seen,
}

/// A segment with the number of its rows that are committed.
#[derive(Debug, Clone)]
pub(crate) struct Segment {
    pub(crate) file: Arc<SegmentFile>,
    pub(crate) rows: u64,
    pub(crate) end_id: u64,
}

impl SegmentFile {
    /// Opens a segment and checks its header. `rows` bounds what will be read through it.
    pub(crate) fn open(
        disk: &dyn Disk,
        dir: &Path,
        shape: &Shape,
        number: u64,
        first_id: u64,
        ids: Option<RoaringBitmap>,
        len: u64,
    ) -> Result<Self> {
        let path = path(dir, number);
        let header = header(shape.uuid, number, shape.dim, &shape.layout);
        let view = View::open(disk, &path, len, Access::Random, &header)?;
        let capacity = (len - HEADER_LEN as u64) / shape.layout.stride() as u64;
        let capacity = usize::try_from(capacity).unwrap_or(usize::MAX);
        let (seen, asked) = (Seen::new(capacity), Seen::new(capacity));
        let (uuid, layout) = (shape.uuid, shape.layout);
        Ok(Self { number, first_id, ids, uuid, layout, view, seen, asked })
    }

    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    pub(crate) fn first_id(&self) -> u64 {
        self.first_id
    }

    pub(crate) fn ids(&self) -> Option<&RoaringBitmap> {
        self.ids.as_ref()
    }

    pub(crate) fn path(&self) -> &Path {
        self.view.path()
    }

    pub(crate) fn mapped_len(&self) -> u64 {
        self.view.len()
    }

    pub(super) fn offset(&self, index: u64) -> u64 {
        HEADER_LEN as u64 + index * self.layout.stride() as u64
    }

    /// The id of the row at an index.
    pub(super) fn id_at(&self, index: u64) -> Option<u64> {
        match &self.ids {
            None => Some(self.first_id + index),
            Some(ids) => u32::try_from(index)
                .ok()
                .and_then(|n| ids.select(n))
                .map(|id| self.first_id + u64::from(id)),
        }
    }

    /// The bytes of a row, verified at the first touch of a map, and at every read otherwise.
    fn bytes(&self, index: u64, id: u64) -> Result<Cow<'_, [u8]>> {
        let bytes = self.view.bytes(self.offset(index), self.layout.stride())?;
        let bit = usize::try_from(index).unwrap_or(usize::MAX);
        let read = matches!(bytes, Cow::Owned(_));
        if planted::on(Bug::SeenTooEarly) && !self.seen.has(bit) {
            self.seen.set(bit);
            self.verify(&bytes, index, id)?;
        }
        let read = read && !planted::on(Bug::SeenTooEarly);
        self.seen.check(bit, read, || match planted::on(Bug::RowUnverified) {
            true => Ok(()),
            false => self.verify(&bytes, index, id).map(|_| ()),
        })?;
        Ok(bytes)
    }

    pub(super) fn verify(&self, bytes: &[u8], index: u64, id: u64) -> Result<Row> {
        let damage = |what: String| Error::corrupt(self.path(), self.offset(index), what);
        let row = self
            .layout
            .parse(bytes, &self.uuid, self.number, index)
            .map_err(|e| damage(format!("row {id}: {}", e.kind)))?;
        if row.id != id {
            return Err(damage(format!("row {} where row {id} belongs", row.id)));
        }
        Ok(row)
    }
}

impl Segment {
    /// Bytes of the committed rows, header included.
    pub(crate) fn bytes(&self) -> u64 {
        self.file.offset(self.rows)
    }

    /// How many of its rows come before an id.
    fn rank(&self, id: u64) -> u64 {
        let before = id.saturating_sub(self.file.first_id);
        match &self.file.ids {
            None => before.min(self.rows),
            Some(ids) => before
                .checked_sub(1)
                .map_or(0, |last| u32::try_from(last).map_or(self.rows, |last| ids.rank(last))),
        }
    }

    /// Calls `f` with each id of the segment, in order.
    pub(crate) fn each_id(&self, mut f: impl FnMut(u64)) {
        let first = self.file.first_id;
        match &self.file.ids {
            None => (first..first + self.rows).for_each(f),
            Some(ids) => ids.iter().for_each(|id| f(first + u64::from(id))),
        }
    }
}

/// What all row segments of an index share.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) uuid: [u8; 16],
    pub(crate) dim: usize,
    pub(crate) layout: RowLayout,
}

/// The rows of a snapshot.
#[derive(Debug, Clone)]
pub(crate) struct Rows {
    shape: Shape,
    closed: Arc<Vec<Segment>>,
    active: Option<Segment>,
}

/// Where a row lies.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RowPlace<'a> {
    segment: &'a Segment,
    index: u64,
    id: u64,
}

impl RowPlace<'_> {
    fn bit(&self) -> usize {
        usize::try_from(self.index).unwrap_or(usize::MAX)
    }

    /// Whether the row was asked for before.
    pub(crate) fn is_asked(&self) -> bool {
        self.segment.file.asked.has(self.bit())
    }

    /// Where the row is mapped: to ask for it ahead, not to believe it.
    pub(crate) fn mapped(&self) -> Option<&[u8]> {
        let file = &self.segment.file;
        file.view.mapped(file.offset(self.index), file.layout.stride())
    }

    /// Says that the row will be read soon.
    pub(crate) fn will_need(&self) {
        let file = &self.segment.file;
        file.asked.set(self.bit());
        file.view.will_need(file.offset(self.index), file.layout.stride());
    }
}

/// The bytes of one row.
#[derive(Debug)]
pub(crate) struct RowBytes<'a> {
    bytes: Cow<'a, [u8]>,
    layout: RowLayout,
}

impl RowBytes<'_> {
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(crate) fn vector(&self) -> Cow<'_, [f32]> {
        self.layout.vector(&self.bytes).unwrap_or_default()
    }

    /// The stored factor that brings the vector to length one under cosine.
    pub(crate) fn scale(&self) -> f32 {
        self.layout.trailer(&self.bytes).map_or(1.0, |row| row.scale)
    }
}

impl Rows {
    pub(crate) fn new(shape: Shape, segments: Vec<Segment>) -> Self {
        let mut rows = Self { shape, closed: Arc::default(), active: None };
        for segment in segments {
            rows.put(segment);
        }
        rows
    }

    pub(crate) fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Adds a segment after the others, or replaces the last one by a longer view of itself.
    pub(crate) fn put(&mut self, segment: Segment) {
        if let Some(last) = self.active.take()
            && last.file.number != segment.file.number
        {
            Arc::make_mut(&mut self.closed).push(last);
        }
        self.active = Some(segment);
    }

    /// Replaces the segments whose numbers are in `gone` by `fresh`, keeping the order of ids.
    pub(crate) fn exchange(&self, gone: &[u64], fresh: Vec<Segment>) -> Self {
        let mut all: Vec<Segment> =
            self.segments().filter(|s| !gone.contains(&s.file.number)).cloned().collect();
        all.extend(fresh);
        all.sort_by_key(|s| s.file.first_id);
        Self::new(self.shape, all)
    }

    pub(crate) fn segments(&self) -> impl DoubleEndedIterator<Item = &Segment> {
        self.closed.iter().chain(&self.active)
    }

    /// Bytes of all committed rows, headers included.
    pub(crate) fn bytes(&self) -> u64 {
        self.segments().map(Segment::bytes).sum()
    }

    pub(super) fn locate(&self, id: u64) -> Option<(&Segment, u64)> {
        let segment = match &self.active {
            Some(active) if id >= active.file.first_id => active,
            _ => self.closed.get(self.closed.partition_point(|s| s.end_id <= id))?,
        };
        if id >= segment.end_id {
            return None;
        }
        let relative = id.checked_sub(segment.file.first_id)?;
        let index = match &segment.file.ids {
            None => relative,
            Some(ids) => {
                let relative = u32::try_from(relative).ok()?;
                if !ids.contains(relative) {
                    return None;
                }
                ids.rank(relative) - 1
            }
        };
        (index < segment.rows).then_some((segment, index))
    }

    /// The ids of rows, each told by how many rows come before it.
    pub(crate) fn ids_of(&self, ranks: impl Iterator<Item = u64>) -> impl Iterator<Item = u64> {
        let mut before = 0;
        let start = |segment: &'_ Segment| {
            let start = before;
            before += segment.rows;
            start
        };
        let starts = self.segments().map(start);
        let segments: Vec<(u64, &Segment)> = starts.zip(self.segments()).collect();
        ranks.filter_map(move |rank| {
            let at = segments.partition_point(|(start, _)| *start <= rank).checked_sub(1)?;
            let (start, segment) = segments.get(at)?;
            segment.file.id_at(rank - start)
        })
    }

    /// How many rows have an id of `from` or above.
    pub(crate) fn count_from(&self, from: u64) -> u64 {
        let later = self.segments().rev().take_while(|segment| segment.end_id > from);
        later.map(|segment| segment.rows - segment.rank(from)).sum()
    }

    /// Whether the row of an id is there.
    pub(crate) fn holds(&self, id: u64) -> bool {
        self.locate(id).is_some()
    }

    /// Where the row of an id lies; `None` if it was never given or its row is gone.
    pub(crate) fn place(&self, id: u64) -> Option<RowPlace<'_>> {
        self.locate(id).map(|(segment, index)| RowPlace { segment, index, id })
    }

    /// The row at a place.
    pub(crate) fn at<'a>(&self, place: &RowPlace<'a>) -> Result<RowBytes<'a>> {
        let bytes = place.segment.file.bytes(place.index, place.id)?;
        Ok(RowBytes { bytes, layout: self.shape.layout })
    }

    /// The row at a place, if it lies in a map and was verified before.
    pub(crate) fn verified<'a>(&self, place: &RowPlace<'a>) -> Result<Option<RowBytes<'a>>> {
        match place.segment.file.seen.has(place.bit()) && place.mapped().is_some() {
            true => self.at(place).map(Some),
            false => Ok(None),
        }
    }

    /// The row of an id; `None` if it was never given or its row is gone.
    pub(crate) fn get(&self, id: u64) -> Result<Option<RowBytes<'_>>> {
        self.place(id).map(|place| self.at(&place)).transpose()
    }

    /// Calls `f` with the id and bytes of each row of one of `parts` equal parts, through the maps.
    pub(crate) fn each_of(
        &self,
        part: usize,
        parts: usize,
        mut f: impl FnMut(u64, RowBytes<'_>) -> Result<()>,
    ) -> Result<()> {
        let (stride, layout) = (self.shape.layout.stride(), self.shape.layout);
        let step = ((4 << 20) / stride).max(1) as u64;
        // Of all rows, not of each segment: many that are small would leave the most to one part.
        let total = self.segments().map(|segment| segment.rows).sum::<u64>();
        let bound = |part: usize| (u128::from(total) * part as u128 / parts as u128) as u64;
        let (own, mut before) = (bound(part)..bound(part + 1), 0);
        for segment in self.segments() {
            let file = &segment.file;
            let within = |row: u64| row.saturating_sub(before).min(segment.rows);
            let (from, to) = (within(own.start), within(own.end));
            before += segment.rows;
            if from == to {
                continue;
            }
            let mut ids: Box<dyn Iterator<Item = u64>> = match &file.ids {
                None => Box::new(file.first_id + from..file.first_id + to),
                Some(ids) => {
                    let ids = ids.iter().skip(usize::try_from(from).unwrap_or(usize::MAX));
                    Box::new(ids.map(|id| file.first_id + u64::from(id)))
                }
            };
            for index in from..to {
                let Some(id) = ids.next() else { break };
                // Read ahead by hand: the map is advised for random access.
                if (index - from) % step == 0 {
                    let n = usize::try_from(step.min(to - index)).unwrap_or(0);
                    file.view.will_need(file.offset(index), n * stride);
                }
                f(id, RowBytes { bytes: file.bytes(index, id)?, layout })?;
            }
        }
        Ok(())
    }
}
