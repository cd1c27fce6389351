//! Inverted lists: append-only files of frames, read through maps, verified at first touch.

use super::directory::Place;
use super::disk::{Disk, DiskFile};
use super::orphan;
use super::seen::Seen;
use super::view::{Access, View};
use crate::error::{Error, Result};
use crate::planted::{self, Bug};
use cellardb_format::{
    BlockLayout, FileHeader, FileKind, FrameEntry, HEADER_LEN, ListEntry, ListIdentity,
    encode_frame, frame_len, parse_frame, payload_offset, verify_payload,
};
use std::borrow::Cow;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// The file of a revision of a list.
pub(crate) fn path(dir: &Path, id: &ListIdentity) -> PathBuf {
    folder(dir, id.generation, id.list).join(format!("{:05}.{:06}.list", id.list, id.revision))
}

/// The directory that the file lies in.
pub(crate) fn folder(dir: &Path, generation: u32, list: u32) -> PathBuf {
    dir.join("lists").join(format!("g{generation:04}")).join(format!("{:03}", list / 64))
}

/// All files of a generation that can be found.
pub(crate) fn files(disk: &dyn Disk, dir: &Path, generation: u32) -> Vec<PathBuf> {
    let folders = disk.list(&dir.join("lists").join(format!("g{generation:04}")));
    let files = |folder: PathBuf| disk.list(&folder).unwrap_or_default();
    folders.unwrap_or_default().into_iter().flat_map(files).collect()
}

fn header(id: &ListIdentity, dim: usize, layout: &BlockLayout) -> FileHeader {
    FileHeader {
        kind: FileKind::List,
        uuid: id.uuid,
        number: u64::from(id.list),
        generation: id.generation,
        revision: id.revision,
        dim: u32::try_from(dim).unwrap_or(u32::MAX),
        unit: u32::try_from(layout.block_bytes()).unwrap_or(u32::MAX),
    }
}

/// One inverted list as the catalog committed it.
#[derive(Debug)]
pub(crate) struct List {
    id: ListIdentity,
    layout: BlockLayout,
    header: FileHeader,
    entry: ListEntry,
    view: View,
    seen: Seen,
    /// Numbers of its cells.
    cells: Range<u32>,
}

impl List {
    /// Opens the list and checks the header and that every frame belongs to one of its cells,
    /// `cells`.
    pub(crate) fn open(
        disk: &dyn Disk,
        dir: &Path,
        id: ListIdentity,
        (dim, layout): (usize, BlockLayout),
        cells: Range<u32>,
        entry: ListEntry,
    ) -> Result<Self> {
        let path = path(dir, &id);
        entry.check(&layout).map_err(|e| super::damage(&path, 0, e))?;
        let header = header(&id, dim, &layout);
        let view = View::open(disk, &path, entry.length, Access::Runs, &header)?;
        if let Some(frame) = entry.frames.iter().find(|frame| !cells.contains(&frame.cell)) {
            let what = format!("cell {} is not of this list", frame.cell);
            return Err(Error::corrupt(&path, frame.offset, what));
        }
        let seen = Seen::new(entry.frames.len());
        Ok(Self { id, layout, header, entry, view, seen, cells })
    }

    pub(crate) fn entry(&self) -> &ListEntry {
        &self.entry
    }

    pub(crate) fn id(&self) -> &ListIdentity {
        &self.id
    }

    pub(crate) fn path(&self) -> &Path {
        self.view.path()
    }

    /// The numbers of its cells.
    pub(crate) fn cells(&self) -> Range<u32> {
        self.cells.clone()
    }

    /// The blocks of a frame, whole.
    pub(crate) fn blocks(&self, place: &Place) -> Result<Cow<'_, [u8]>> {
        let payload = place.payload as usize;
        let bytes = self.view.bytes(place.offset, frame_len(payload))?;
        let (frame, read) = (place.frame(), matches!(bytes, Cow::Owned(_)));
        self.seen.check(frame, read, || self.verify(&bytes, &self.entry.frames[frame]))?;
        let start = payload_offset(payload);
        Ok(match bytes {
            Cow::Borrowed(b) => Cow::Borrowed(b.get(start..start + payload).unwrap_or_default()),
            Cow::Owned(mut b) => {
                b.truncate(start + payload);
                Cow::Owned(b.split_off(start.min(b.len())))
            }
        })
    }

    /// A copy of the blocks of a frame, verified itself: what is written anew is what was committed,
    /// whatever happens to the file meanwhile.
    pub(crate) fn copy(&self, place: &Place) -> Result<Vec<u8>> {
        let payload = place.payload as usize;
        let mut bytes = self.view.bytes(place.offset, frame_len(payload))?.into_owned();
        self.verify(&bytes, &self.entry.frames[place.frame()])?;
        let start = payload_offset(payload);
        bytes.truncate(start + payload);
        Ok(bytes.split_off(start.min(bytes.len())))
    }

    pub(super) fn payload_len(&self, entry: &FrameEntry) -> usize {
        entry.payload_len(&self.layout)
    }

    fn verify(&self, bytes: &[u8], entry: &FrameEntry) -> Result<()> {
        let damage = |e| super::damage(self.path(), entry.offset, e);
        let frame = parse_frame(&self.id, entry.offset, bytes, &self.layout).map_err(damage)?;
        let crc = cellardb_format::frame_crc(bytes);
        if (frame.cell, frame.rows, crc) != (entry.cell, entry.rows, Some(entry.crc)) {
            let what = "the frame is not the one that the catalog committed";
            return Err(Error::corrupt(self.path(), entry.offset, what));
        }
        if planted::on(Bug::FrameUnverified) {
            return Ok(());
        }
        verify_payload(bytes, &frame).map_err(damage)
    }

    /// Verifies the header and every frame, whatever was seen before. Reads the file anew.
    pub(crate) fn verify_all(&self, disk: &dyn Disk, mut found: impl FnMut(Error)) -> Result<()> {
        let view =
            match View::open(disk, self.path(), self.entry.length, Access::Runs, &self.header) {
                Ok(view) => view,
                Err(e) => {
                    return {
                        found(e);
                        Ok(())
                    };
                }
            };
        for entry in &self.entry.frames {
            let bytes = view.bytes(entry.offset, frame_len(self.payload_len(entry)));
            if let Err(e) = bytes.and_then(|bytes| self.verify(&bytes, entry)) {
                found(e);
            }
        }
        Ok(())
    }

    /// Whether a frame was read before.
    pub(crate) fn is_seen(&self, place: &Place) -> bool {
        self.seen.has(place.frame())
    }

    /// Says that a frame will be scanned soon.
    pub(crate) fn will_need(&self, place: &Place) {
        self.view.will_need(place.offset, frame_len(place.payload as usize));
    }
}

/// Lists that are written together and then made durable: a few keep their files open and are synced
/// each, many have them open only while they are written and are made durable by one sync of the file
/// system. So neither files nor buffers grow with the number of lists.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Together<'d> {
    disk: &'d dyn Disk,
    dir: &'d Path,
    many: bool,
    /// Whether they are of a new generation, whose directories no commit has counted on.
    new: bool,
}

/// More files than this are made durable by one sync of the file system.
const SYNC_EACH: usize = 64;

/// Writes frames to a new revision of a list, or behind the length that it has.
#[derive(Debug)]
pub(crate) struct ListWriter<'d> {
    together: Together<'d>,
    seq: u64,
    list: Written,
    buf: Vec<u8>,
    flushed: u64,
}

/// A list that was written but not committed.
#[derive(Debug)]
pub(crate) struct Written {
    pub(crate) id: ListIdentity,
    pub(crate) entry: ListEntry,
    path: PathBuf,
    /// As long as it is kept open.
    file: Option<Box<dyn DiskFile>>,
    /// Whether its name is new.
    created: bool,
}

/// Frames are gathered up to this many bytes before they are written.
const BUFFER: usize = 1 << 20;

impl<'d> Together<'d> {
    pub(crate) fn new(disk: &'d dyn Disk, dir: &'d Path, lists: usize, new: bool) -> Self {
        Self { disk, dir, many: lists > SYNC_EACH, new }
    }

    /// Begins a new revision. Its directory must exist.
    pub(crate) fn create(
        self,
        id: ListIdentity,
        (dim, layout): (usize, BlockLayout),
        seq: u64,
    ) -> Result<ListWriter<'d>> {
        let path = path(self.dir, &id);
        orphan::remove(self.disk, &path, &id.uuid)?;
        let file = self.disk.create(&path).map_err(Error::io("create", &path))?;
        let buf = header(&id, dim, &layout).encode().to_vec();
        let entry =
            ListEntry { revision: id.revision, length: HEADER_LEN as u64, rows: 0, frames: vec![] };
        let list = Written { id, entry, path, file: Some(file), created: true };
        Ok(ListWriter { together: self, seq, list, buf, flushed: 0 })
    }

    /// Goes on behind the committed frames of a list.
    pub(crate) fn extend(self, list: &List, seq: u64) -> ListWriter<'d> {
        let (id, entry, path) = (list.id, list.entry.clone(), list.path().to_owned());
        self.resume(Written { id, entry, path, file: None, created: false }, seq)
    }

    /// Goes on behind what was written.
    pub(crate) fn resume(self, list: Written, seq: u64) -> ListWriter<'d> {
        let flushed = list.entry.length;
        ListWriter { together: self, seq, list, buf: Vec::new(), flushed }
    }

    /// Makes written lists durable, names included, by a bounded number of syncs.
    pub(crate) fn sync(self, written: &[Written]) -> Result<()> {
        if self.many {
            return self.disk.sync_all(self.dir).map_err(Error::io("sync", self.dir));
        }
        let mut folders: Vec<PathBuf> = Vec::new();
        for list in written {
            if let Some(file) = list.file.as_ref().filter(|_| !planted::on(Bug::ListsNotSynced)) {
                file.sync().map_err(Error::io("sync", &list.path))?;
            }
            let mut folder = list.path.parent().filter(|_| list.created);
            while let Some(path) = folder.filter(|p| *p != self.dir) {
                folders.push(path.to_owned());
                folder = path.parent().filter(|_| self.new);
            }
        }
        folders.sort();
        folders.dedup();
        // The deepest first, so that a name never lasts longer than the way to it.
        for folder in folders.iter().rev().filter(|_| !planted::on(Bug::ListNamesNotSynced)) {
            self.disk.sync_dir(folder).map_err(Error::io("sync", folder))?;
        }
        Ok(())
    }
}

impl ListWriter<'_> {
    /// Appends a frame of one cell.
    pub(crate) fn append(&mut self, cell: u32, rows: u32, payload: &[u8]) -> Result<()> {
        let Written { id, entry, .. } = &mut self.list;
        let (offset, at) = (entry.length, self.buf.len());
        let crc = encode_frame(id, offset, cell, rows, self.seq, payload, &mut self.buf);
        entry.length += (self.buf.len() - at) as u64;
        entry.rows += u64::from(rows);
        entry.frames.push(FrameEntry { cell, rows, offset, crc });
        if self.buf.len() >= BUFFER {
            self.write()?;
        }
        Ok(())
    }

    fn write(&mut self) -> Result<()> {
        let path = &self.list.path;
        let file = match self.list.file.take() {
            Some(file) => file,
            None => {
                self.together.disk.open(path, true).map_err(Error::io("open for writing", path))?
            }
        };
        let written = file.write_at(&self.buf, self.flushed);
        if !planted::on(Bug::ShortWriteIgnored) {
            written.map_err(Error::io("write", path))?;
        }
        self.list.file = Some(file);
        self.flushed += self.buf.len() as u64;
        self.buf.clear();
        Ok(())
    }

    /// Writes what is left. Nothing is durable before all that is written together is synced.
    pub(crate) fn finish(mut self) -> Result<Written> {
        self.write()?;
        if self.together.many {
            self.list.file = None;
        }
        Ok(self.list)
    }
}
