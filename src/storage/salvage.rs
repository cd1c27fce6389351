//! Reading rows by themselves, for a repair: which are whole, which are damaged, which were there. A row
//! names its index, segment and place under its own checksum, so it is known wherever it is found.

use super::disk::{Disk, DiskFile, extents};
use super::known::Known;
use super::row_files::open;
pub(crate) use super::row_files::{Files, unreadable};
use super::rows::{Rows, Segment, SegmentFile, Shape, header, path};
use super::spans::Spans;
use super::tombstones::Tombstones;
use super::view::absent;
use crate::error::{Error, Result};
use cellardb_format::{FileHeader, HEADER_LEN, MAX_ID, Row, Segment as Entry};
use roaring::RoaringBitmap;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Rows are read and written in pieces of about this many bytes.
const PIECE: usize = 1 << 20;

/// What could be saved.
#[derive(Debug)]
pub(crate) struct Salvaged {
    pub(crate) rows: Rows,
    /// Ids whose rows are gone.
    pub(crate) lost: Spans,
    /// Ids without a row of which it cannot be told whether they were removed or lost.
    pub(crate) unknown: Spans,
    /// Files that nothing is read from any more, to be set aside.
    pub(crate) aside: BTreeSet<PathBuf>,
    pub(crate) next_id: u64,
    pub(crate) next_segment: u64,
    /// Removed rows that were left out of what was written anew.
    dropped: u64,
}

/// Where a whole row lies.
#[derive(Debug, Clone, Copy)]
struct Found {
    id: u64,
    segment: u64,
    /// Which of the files that may hold rows of the segment.
    file: u32,
    index: u64,
}

/// A place in a segment that there is more in than zeros.
#[derive(Debug, Clone, Copy)]
enum Slot {
    /// The index of the place.
    Damaged(u64),
    Whole(Found),
}

impl Slot {
    fn index(&self) -> u64 {
        match self {
            Self::Damaged(index) | Self::Whole(Found { index, .. }) => *index,
        }
    }

    fn whole(&self) -> Option<Found> {
        if let Self::Whole(found) = self { Some(*found) } else { None }
    }
}

/// A segment as it was found.
#[derive(Debug)]
struct Survey {
    number: u64,
    /// From the least id to one more than the greatest.
    ids: Range<u64>,
    /// Its whole rows; none if the file can stay as it is.
    rows: Vec<Found>,
    /// The file as it is.
    whole: Option<Entry>,
    lost: Spans,
    unknown: Vec<Range<u64>>,
}

/// Reads rows of one index.
pub(crate) struct Salvage<'a> {
    pub(crate) disk: &'a dyn Disk,
    pub(crate) dir: &'a Path,
    pub(crate) shape: Shape,
    pub(crate) files: Files,
    pub(crate) progress: &'a dyn Fn(u64, u64),
}

impl Salvage<'_> {
    /// Finds the whole rows and brings them into segments that can be read: those that are whole stay,
    /// the others are written anew under new numbers, which are durable when this returns.
    pub(crate) fn run(&self, known: &mut Known) -> Result<Salvaged> {
        let entries = known.segments.take();
        let surveys = match &entries {
            Some(entries) => self.listed(entries)?,
            None => self.unlisted()?,
        };
        let listed = known.state.as_ref().map_or(0, |state| state.next_id);
        let next_id = surveys.iter().map(|s| s.ids.end).fold(listed, u64::max);
        let ids = surveys.iter().map(|survey| survey.ids.clone());
        known.carve_dead(ids.chain(std::iter::once(0..next_id)));
        let mut saved = Salvaged {
            rows: Rows::new(self.shape, Vec::new()),
            lost: Spans::default(),
            unknown: Spans::default(),
            aside: BTreeSet::new(),
            next_id,
            next_segment: self.files.next(known),
            dropped: 0,
        };
        for survey in &surveys {
            survey.lost.iter().for_each(|range| saved.lost.insert(range));
            survey.unknown.iter().for_each(|range| saved.unknown.insert(range.clone()));
        }
        let mut segments = self.segments(surveys, known, &mut saved)?;
        segments.sort_by_key(|segment| segment.file.first_id());
        if entries.is_none() {
            let ends = segments.iter().map(|segment| segment.end_id);
            let starts = segments.iter().map(|segment| segment.file.first_id());
            for (end, start) in std::iter::once(0).chain(ends).zip(starts.chain([next_id])) {
                saved.unknown.insert(end..start);
            }
        }
        saved.rows = Rows::new(self.shape, segments);
        for id in known.dead.iter() {
            saved.lost.remove(id..id + 1);
            saved.unknown.remove(id..id + 1);
        }
        saved.lost.iter().for_each(|range| saved.unknown.remove(range));
        let rows = |path: &Path| path.extension().is_some_and(|e| e == "rows");
        let counts = |number: &u64| entries.as_ref().is_none_or(|all| all.contains_key(number));
        let numbers = self.files.of.iter().filter(|(number, _)| counts(number));
        let files = numbers.flat_map(|(_, files)| files).filter(|file| rows(file));
        let kept: BTreeSet<&Path> = saved.rows.segments().map(|s| s.file.path()).collect();
        saved.aside = files.filter(|file| !kept.contains(file.as_path())).cloned().collect();
        // A tombstone goes with its row.
        let mut dead = Tombstones::default();
        for id in known.dead.iter().filter(|id| saved.rows.holds(*id)) {
            dead.insert(id);
        }
        known.found_dead(saved.dropped + dead.len());
        known.dead = dead;
        Ok(saved)
    }

    /// The segments that the catalog lists, each held against its entry.
    fn listed(&self, entries: &BTreeMap<u64, Entry>) -> Result<Vec<Survey>> {
        let mut surveys = Vec::new();
        for (done, (&number, entry)) in (0..).zip(entries) {
            (self.progress)(done, entries.len() as u64);
            let (mut rows, mut lost) = (Vec::new(), Spans::default());
            match &entry.ids {
                None => lost.insert(entry.first_id..entry.end_id),
                Some(ids) => {
                    ids.iter().map(|id| entry.first_id + u64::from(id)).for_each(|id| {
                        lost.insert(id..id + 1);
                    });
                }
            }
            let id_at = |index: u64| match &entry.ids {
                None => Some(entry.first_id + index),
                Some(ids) => {
                    let id = ids.select(u32::try_from(index).ok()?)?;
                    Some(entry.first_id + u64::from(id))
                }
            };
            for found in self.slots(number, Some(entry.rows))?.iter().filter_map(Slot::whole) {
                if id_at(found.index) == Some(found.id) {
                    lost.remove(found.id..found.id + 1);
                    rows.push(found);
                }
            }
            let ours = rows.iter().all(|found| found.file == 0) && self.named(number)?;
            let whole = (lost.is_empty() && ours).then(|| entry.clone());
            if whole.is_some() {
                rows.clear();
            }
            let ids = entry.first_id..entry.end_id;
            surveys.push(Survey { number, ids, rows, whole, lost, unknown: Vec::new() });
        }
        Ok(surveys)
    }

    /// All rows that there are: what to do without a catalog that says which count.
    fn unlisted(&self) -> Result<Vec<Survey>> {
        let mut surveys = Vec::new();
        for (done, &number) in (0..).zip(self.files.of.keys()) {
            (self.progress)(done, self.files.of.len() as u64);
            surveys.extend(self.survey(number, false)?);
        }
        surveys.sort_by_key(|survey| survey.ids.start);
        Ok(surveys)
    }

    /// What the rows of a segment say of each other; `None` if there are none. The rows of one that can
    /// stay are only kept when it is read `again`.
    fn survey(&self, number: u64, again: bool) -> Result<Option<Survey>> {
        let slots = self.slots(number, None)?;
        let rows: Vec<Found> = slots.iter().filter_map(Slot::whole).collect();
        let places = slots.last().map_or(0, |last| last.index() + 1);
        let (least, most) =
            (rows.iter().map(|row| row.id).min(), rows.iter().map(|row| row.id).max());
        let (Some(first), Some(least), Some(end)) = (rows.first(), least, most.map(|id| id + 1))
        else {
            return Ok(None);
        };
        let base = first.id.checked_sub(first.index);
        let dense = rows.iter().all(|row| row.id.checked_sub(row.index) == base);
        let (mut ids, mut lost, mut unknown) = (least..end, Spans::default(), Vec::new());
        if let Some(base) = base.filter(|_| dense) {
            ids = base..base.saturating_add(places).min(MAX_ID);
            lost.insert(ids.clone());
            rows.iter().for_each(|row| lost.remove(row.id..row.id + 1));
        } else {
            for pair in rows.windows(2) {
                let &[a, b] = pair else { continue };
                let (between, gone) = (a.id + 1..b.id, b.index - a.index - 1);
                match gone {
                    0 => {}
                    n if n == between.end.saturating_sub(between.start) => lost.insert(between),
                    _ => unknown.push(between),
                }
            }
        }
        let ascending = rows.windows(2).all(|pair| matches!(pair, [a, b] if a.id < b.id));
        let ours = rows.iter().all(|row| row.file == 0) && self.named(number)?;
        let mut entry = None;
        if rows.len() as u64 == places && ascending && ours && end - first.id <= u64::from(u32::MAX)
        {
            let relative = rows.iter().map(|row| (row.id - first.id) as u32);
            let set = if dense { None } else { Some(relative.collect::<RoaringBitmap>()) };
            let (first_id, rows) = (first.id, rows.len() as u64);
            entry = Some(Entry { first_id, end_id: end, rows, ids: set });
        }
        let rows = if entry.is_some() && !again { Vec::new() } else { rows };
        Ok(Some(Survey { number, ids, rows, whole: entry, lost, unknown }))
    }

    /// The segments of the surveys: ranges of ids that overlap become one.
    fn segments(
        &self,
        mut surveys: Vec<Survey>,
        known: &Known,
        saved: &mut Salvaged,
    ) -> Result<Vec<Segment>> {
        surveys.sort_by_key(|survey| survey.ids.start);
        let mut segments = Vec::new();
        let mut group: Vec<Survey> = Vec::new();
        let mut end = 0;
        for survey in surveys.into_iter().map(Some).chain([None]) {
            if survey.as_ref().is_none_or(|s| s.ids.start >= end) {
                segments.extend(self.close(std::mem::take(&mut group), known, saved)?);
            }
            let Some(survey) = survey else { continue };
            end = end.max(survey.ids.end);
            group.push(survey);
        }
        let folder = self.dir.join("rows");
        self.disk.sync_dir(&folder).map_err(Error::io("sync", folder))?;
        Ok(segments)
    }

    /// Brings a group of overlapping segments into one, or leaves a single one that is whole.
    fn close(
        &self,
        group: Vec<Survey>,
        known: &Known,
        saved: &mut Salvaged,
    ) -> Result<Vec<Segment>> {
        if let [Survey { number, whole: Some(entry), .. }] = &group[..] {
            let (len, entry) = (self.offset(entry.rows), entry.clone());
            let (first, ids) = (entry.first_id, entry.ids);
            let file =
                SegmentFile::open(self.disk, self.dir, &self.shape, *number, first, ids, len)?;
            let file = Arc::new(file);
            return Ok(vec![Segment { file, rows: entry.rows, end_id: entry.end_id }]);
        }
        let single = group.len() == 1;
        let range = group.first().map_or(0..0, |survey| survey.ids.clone());
        let mut rows = Vec::new();
        for survey in group {
            if survey.rows.is_empty() && survey.whole.is_some() {
                rows.extend(
                    self.survey(survey.number, true)?.map(|again| again.rows).unwrap_or_default(),
                );
            }
            rows.extend(survey.rows);
        }
        // Of two rows of one id the one in the later segment counts: it is a compacted copy, or it was
        // written after a commit that failed, whose rows nobody was told of.
        rows.sort_by_key(|row| (row.id, u64::MAX - row.segment));
        rows.dedup_by_key(|row| row.id);
        for row in &rows {
            saved.lost.remove(row.id..row.id + 1);
        }
        let found = rows.len();
        rows.retain(|row| !known.dead.contains(row.id));
        saved.dropped += (found - rows.len()) as u64;
        let (mut segments, mut rest) = (Vec::new(), &rows[..]);
        while let (Some(first), Some(last)) = (rest.first(), rest.last()) {
            let near = rest.partition_point(|row| row.id - first.id <= u64::from(u32::MAX));
            let (now, later) = rest.split_at(near);
            // As wide as it was, where that is known.
            let all = single && range.end - range.start <= u64::from(u32::MAX);
            let ids = if all { range.clone() } else { first.id..now.last().unwrap_or(last).id + 1 };
            segments.push(self.write(now, ids, saved.next_segment)?);
            saved.next_segment += 1;
            rest = later;
        }
        Ok(segments)
    }

    fn offset(&self, rows: u64) -> u64 {
        HEADER_LEN as u64 + rows * self.shape.layout.stride() as u64
    }

    /// Whether a segment has its file under its name and with its header.
    fn named(&self, number: u64) -> Result<bool> {
        let path = path(self.dir, number);
        if self.files.of.get(&number).and_then(|files| files.first()) != Some(&path) {
            return Ok(false);
        }
        let Some(file) = open(self.disk, &path)? else { return Ok(false) };
        let mut bytes = [0; HEADER_LEN];
        let read = file.read_at(&mut bytes, 0).is_ok();
        let expected = header(self.shape.uuid, number, self.shape.dim, &self.shape.layout);
        Ok(read && FileHeader::parse(&bytes).is_ok_and(|found| found.check(&expected).is_ok()))
    }

    /// The places of a segment, in every file that may hold it: a row that is whole in one is whole.
    fn slots(&self, number: u64, most: Option<u64>) -> Result<Vec<Slot>> {
        let mut slots: Vec<Slot> = Vec::new();
        for (file, path) in (0..).zip(self.files.of.get(&number).into_iter().flatten()) {
            self.each(path, most, &mut |index, bytes| match self.shape.layout.parse(
                bytes,
                &self.shape.uuid,
                number,
                index,
            ) {
                Ok(row) => {
                    slots.push(Slot::Whole(Found { id: row.id, segment: number, file, index }))
                }
                Err(_) if bytes.iter().all(|byte| *byte == 0) => {}
                Err(_) => slots.push(Slot::Damaged(index)),
            })?;
            // Of one place the row that is whole, and of these the first.
            slots.sort_by_key(|slot| (slot.index(), slot.whole().is_none()));
            slots.dedup_by_key(|slot| slot.index());
        }
        Ok(slots)
    }

    /// Calls `f` with the bytes of each place of a file that was ever written; bytes that cannot be read
    /// are all ones.
    fn each(&self, path: &Path, most: Option<u64>, f: &mut dyn FnMut(u64, &[u8])) -> Result<()> {
        let Some(file) = open(self.disk, path)? else { return Ok(()) };
        let len = file.len().map_err(Error::io("read the length of", path))?;
        let stride = self.shape.layout.stride();
        let place = |at: u64| at.saturating_sub(HEADER_LEN as u64) / stride as u64;
        let slots = most.map_or(place(len), |most| most.min(place(len)));
        let step = (PIECE / stride).max(1) as u64;
        let (mut buf, mut next) = (Vec::new(), 0);
        for piece in extents(&*file).map_err(Error::io("read", path))? {
            let end = place(piece.end.saturating_add(stride as u64 - 1)).min(slots);
            next = place(piece.start).max(next);
            while next < end {
                let n = step.min(end - next);
                buf.resize(usize::try_from(n).unwrap_or(0) * stride, 0);
                let whole = read(&*file, path, &mut buf, self.offset(next))?;
                for (bytes, index) in buf.chunks_exact_mut(stride).zip(next..) {
                    if !whole && !read(&*file, path, bytes, self.offset(index))? {
                        bytes.fill(0xFF);
                    }
                    f(index, bytes);
                }
                next += n;
            }
        }
        Ok(())
    }

    /// Writes rows as a segment of their own and syncs it.
    fn write(&self, rows: &[Found], ids: Range<u64>, number: u64) -> Result<Segment> {
        let (shape, path, stride) =
            (&self.shape, path(self.dir, number), self.shape.layout.stride());
        let file = self.disk.create(&path).map_err(Error::io("create", &path))?;
        let mut buf = header(shape.uuid, number, shape.dim, &shape.layout).encode().to_vec();
        let (mut set, mut at, mut bytes) = (RoaringBitmap::new(), 0, vec![0; stride]);
        let mut source: Option<(PathBuf, Box<dyn DiskFile>)> = None;
        for (found, index) in rows.iter().zip(0..) {
            let from = self.files.of.get(&found.segment).and_then(|f| f.get(found.file as usize));
            let Some(from) = from else { continue };
            let input = match source.take().filter(|(path, _)| path == from) {
                Some(same) => same,
                None => (from.clone(), self.disk.open(from, false).map_err(absent(from))?),
            };
            let offset = self.offset(found.index);
            input.1.read_at(&mut bytes, offset).map_err(Error::io("read", from))?;
            source = Some(input);
            let parsed = shape.layout.parse(&bytes, &shape.uuid, found.segment, found.index);
            let row: Row = parsed.map_err(|e| super::damage(from, offset, e))?;
            let vector = shape.layout.vector(&bytes).map_err(|e| super::damage(from, offset, e))?;
            set.insert(u32::try_from(found.id - ids.start).unwrap_or(u32::MAX));
            let end = buf.len();
            buf.resize(end + stride, 0);
            let out = buf.get_mut(end..).unwrap_or_default();
            shape.layout.encode(out, &vector, &row, &shape.uuid, number, index);
            if buf.len() >= PIECE {
                file.write_at(&buf, at).map_err(Error::io("write", &path))?;
                at += buf.len() as u64;
                buf.clear();
            }
        }
        file.write_at(&buf, at).map_err(Error::io("write", &path))?;
        file.sync().map_err(Error::io("sync", &path))?;
        let (n, len) = (rows.len() as u64, self.offset(rows.len() as u64));
        let file =
            SegmentFile::open(self.disk, self.dir, shape, number, ids.start, Some(set), len)?;
        Ok(Segment { file: Arc::new(file), rows: n, end_id: ids.end })
    }
}

/// Reads bytes; `false` if they are not there or the device cannot read them.
fn read(file: &dyn DiskFile, path: &Path, buf: &mut [u8], offset: u64) -> Result<bool> {
    match file.read_at(buf, offset) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(e) => {
            let e = Error::io("read", path)(e);
            if unreadable(&e) { Ok(false) } else { Err(e) }
        }
    }
}
