//! Durability: bytes and ids, never vectors as points or distances between them. [`Store`] is where
//! the catalog and the files meet; the protocol is SPEC.md, section 7.

mod catalog;
pub(crate) mod directory;
pub(crate) mod disk;
pub(crate) mod lists;
mod load;
mod lock;
mod map;
pub(crate) mod row_scan;
mod row_writer;
pub(crate) mod rows;
mod seen;
pub(crate) mod sparse;
mod tombstones;
mod view;

pub(crate) use catalog::{Change, Table};
pub(crate) use load::{Image, ModelImage};
pub use map::Map;
pub(crate) use tombstones::{Tombstones, chunk};

use crate::error::{Error, Result};
use catalog::Catalog;
use cellardb_format::{
    Config, FORMAT_VERSION, FormatError, FormatErrorKind, Row, RowLayout, State,
};
use disk::Disk;
use lock::Lock;
use row_writer::RowWriter;
use rows::{Rows, Segment, Shape};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The state of an index that was just made.
const EMPTY: State = State {
    seq: 0,
    next_id: 0,
    live: 0,
    watermark: 0,
    next_segment: 0,
    next_revision: 0,
    generation: 0,
    segments: 0,
    lists: 0,
    dead_keys: 0,
    dead: 0,
};

const CATALOG: &str = "catalog.redb";

/// A format error with the file that it was found in.
pub(crate) fn damage(path: &Path, base: u64, e: FormatError) -> Error {
    match e.kind {
        FormatErrorKind::Version { found } => {
            let (path, supported) = (path.to_owned(), FORMAT_VERSION);
            match found > supported {
                true => Error::FormatTooNew { path, found, supported },
                false => Error::FormatTooOld { path, found, supported },
            }
        }
        _ => Error::corrupt(path, base.saturating_add(e.offset), e.kind),
    }
}

/// The writing side of an index: one per process, behind the writer's mutex.
#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) dir: PathBuf,
    pub(crate) config: Config,
    pub(crate) state: State,
    lock: Lock,
    /// Absent when the index is open for reading.
    catalog: Option<Catalog>,
    writer: RowWriter,
}

impl Store {
    /// Makes an empty index. It exists once the catalog has its name.
    pub(crate) fn create(disk: &Arc<dyn Disk>, dir: &Path, config: &Config) -> Result<()> {
        let exists = |e: Result<bool>| match e {
            Ok(true) => Err(Error::Exists { path: dir.to_owned() }),
            other => other.map(|_| ()),
        };
        exists(has_catalog(&**disk, dir))?;
        // The rows of an index that lost its catalog are worth more than a new index.
        if let damaged @ Error::Corrupt { .. } = not_found(&**disk, dir) {
            return Err(damaged);
        }
        for path in [dir.to_owned(), dir.join("rows"), dir.join("lists")] {
            disk.create_dir(&path).map_err(Error::io("create", &path))?;
        }
        let _lock = Lock::take(&**disk, dir, true)?;
        exists(has_catalog(&**disk, dir))?;
        let (fresh, path) = (dir.join("catalog.new"), dir.join(CATALOG));
        disk.remove(&fresh).map_err(Error::io("remove", &fresh))?;
        disk.create(&fresh).map_err(Error::io("create", &fresh))?;
        let mut catalog = Catalog::open(&**disk, &fresh, false)?;
        catalog.create_tables()?;
        let mut change = Change::default();
        change.put(Table::Meta, 0, config.encode());
        change.put(Table::Meta, 1, EMPTY.encode());
        catalog.commit(&config.uuid, change)?;
        catalog.close()?;
        disk.rename(&fresh, &path).map_err(Error::io("rename", &fresh))?;
        disk.sync_dir(dir).map_err(Error::io("sync", dir))?;
        let parent = match dir.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        disk.sync_dir(parent).map_err(Error::io("sync", parent))
    }

    /// Opens an index, for reading if `!write`: then nothing on disk is changed.
    pub(crate) fn open(disk: &Arc<dyn Disk>, dir: &Path, write: bool) -> Result<(Self, Image)> {
        if !has_catalog(&**disk, dir)? {
            return Err(not_found(&**disk, dir));
        }
        let lock = Lock::take(&**disk, dir, write)?;
        let path = dir.join(CATALOG);
        let catalog = Catalog::open(&**disk, &path, !write)?;
        let (config, image) = load::load(&catalog, &path, disk, dir)?;
        let mark = lock.found.filter(|mark| mark.uuid == config.uuid);
        if let Some(mark) = mark.filter(|mark| mark.seq > image.state.seq) {
            let what = format!(
                "the catalog ends with commit {}, commit {} was acknowledged: it was rolled back \
                 or replaced by an older copy",
                image.state.seq, mark.seq
            );
            return Err(Error::corrupt(path, 0, what));
        }
        let shape = shape(&config);
        let mut writer = RowWriter::new(Arc::clone(disk), dir, shape, config.segment_bytes);
        if write {
            load::sweep(&**disk, dir, &image)?;
            if let Some(last) = image.rows.segments().next_back() {
                writer.resume(last)?;
            }
        }
        let catalog = if write { Some(catalog) } else { None };
        let (disk, dir, state) = (Arc::clone(disk), dir.to_owned(), image.state.clone());
        let store = Self { disk, dir, config, state, lock, catalog, writer };
        if write {
            store.lock.mark(store.config.uuid, store.state.seq)?;
        }
        Ok((store, image))
    }

    /// Appends rows behind the others. They count once a [`Store::commit`] has succeeded.
    pub(crate) fn append<'a>(
        &mut self,
        input: impl Iterator<Item = (Row, &'a [f32])>,
        state: &mut State,
        rows: &mut Rows,
    ) -> Result<()> {
        self.writer.append(input, &mut state.next_segment, rows)
    }

    /// Forgets appended rows that were not committed.
    pub(crate) fn abandon(&mut self) {
        self.writer.abandon();
    }

    /// Makes the appended rows durable, then the change and the state: the commit point.
    pub(crate) fn commit(&mut self, mut change: Change, mut state: State) -> Result<()> {
        let catalog = self.catalog.as_mut().ok_or(Error::ReadOnly)?;
        self.writer.sync()?;
        state.seq += 1;
        change.put(Table::Meta, 1, state.encode());
        catalog.commit(&self.config.uuid, change)?;
        self.state = state;
        self.lock.mark(self.config.uuid, self.state.seq)
    }

    /// Reads every record of the catalog again. Read-only handles keep no catalog: theirs was
    /// verified whole when it was opened.
    pub(crate) fn verify(&self) -> Result<()> {
        self.catalog.as_ref().map_or(Ok(()), |catalog| catalog.verify(&self.config.uuid))
    }

    /// Closes the catalog, and with it the index.
    pub(crate) fn close(&mut self) -> Result<()> {
        self.catalog.take().map_or(Ok(()), Catalog::close)
    }

    /// The length of the catalog's file.
    pub(crate) fn catalog_bytes(&self) -> u64 {
        let file = self.disk.open(&self.dir.join(CATALOG), false);
        file.and_then(|f| f.len()).unwrap_or(0)
    }
}

/// The record of a segment as the catalog keeps it.
pub(crate) fn put_segment(change: &mut Change, segment: &Segment) {
    let record = cellardb_format::Segment {
        first_id: segment.file.first_id(),
        end_id: segment.end_id,
        rows: segment.rows,
        ids: segment.file.ids().cloned(),
    };
    change.put(Table::Segments, segment.file.number(), record.encode());
}

/// What the rows of an index look like.
pub(crate) fn shape(config: &Config) -> Shape {
    let dim = config.dim as usize;
    Shape { uuid: config.uuid, dim, layout: RowLayout::new(dim) }
}

fn has_catalog(disk: &dyn Disk, dir: &Path) -> Result<bool> {
    let path = dir.join(CATALOG);
    match disk.open(&path, false) {
        Ok(_) => Ok(true),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(false)
        }
        Err(e) => Err(view::absent(&path)(e)),
    }
}

/// There is no catalog: was there ever an index?
fn not_found(disk: &dyn Disk, dir: &Path) -> Error {
    let rows = disk.list(&dir.join("rows")).unwrap_or_default();
    if rows.is_empty() {
        return Error::NotFound { path: dir.to_owned() };
    }
    Error::corrupt(dir.join(CATALOG), 0, "the catalog is missing")
}
