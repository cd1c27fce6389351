//! Durability: bytes and ids, never vectors as points or distances between them. [`Store`] is where
//! the catalog and the files meet; the protocol is SPEC.md, section 7.

pub(crate) mod aside;
mod catalog;
pub(crate) mod directory;
pub(crate) mod disk;
pub(crate) mod files;
mod held;
mod holder;
mod home;
pub(crate) mod hosted;
mod known;
pub(crate) mod lists;
mod load;
pub(crate) mod lock;
mod map;
mod orphan;
mod row_files;
pub(crate) mod row_scan;
mod row_writer;
pub(crate) mod rows;
pub(crate) mod salvage;
mod seen;
pub(crate) mod spans;
pub(crate) mod sparse;
mod tombstones;
mod view;

pub(crate) use catalog::{Change, Table};
pub(crate) use home::Home;
pub(crate) use known::Known;
pub(crate) use load::{Image, ModelImage, folders};
pub use map::{Hold, Map};
pub(crate) use map::{Process, lost_maps};
pub(crate) use tombstones::{Tombstones, chunk};
pub(crate) use view::no_link;

use crate::error::{Error, Result};
use crate::planted::{self, Bug};
use catalog::Catalog;
use cellardb_format::{
    Config, FORMAT_VERSION, FormatError, FormatErrorKind, LockRecord, Row, RowLayout, State,
};
use disk::Disk;
use lock::{Lock, Patience};
use row_writer::RowWriter;
use rows::{Rows, Segment, Shape};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The state of an index that was just made.
pub(crate) const EMPTY: State = State {
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
    since_measured: 0,
    since_beyond: 0,
    since_far: 0,
};

pub(crate) const CATALOG: &str = "catalog.redb";

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
    pub(crate) home: Home,
    /// The file of the catalog.
    path: PathBuf,
    pub(crate) config: Config,
    pub(crate) state: State,
    /// Absent while a repair, which holds it, builds the index: nothing is marked before it stands.
    lock: Option<Lock>,
    /// Absent when the index is open for reading, or closed.
    catalog: Option<Catalog>,
    writer: RowWriter,
}

impl Store {
    /// Makes an empty index. It exists once the catalog has its name.
    pub(crate) fn create(
        disk: &Arc<dyn Disk>,
        dir: &Path,
        config: &Config,
        patience: &Patience,
    ) -> Result<()> {
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
            if path != dir {
                view::no_link(&**disk, &path)?;
            }
            disk.create_dir(&path).map_err(Error::io("create", &path))?;
        }
        let _lock = Lock::take(&**disk, dir, true, patience, true)?;
        exists(has_catalog(&**disk, dir))?;
        let (fresh, path) = (dir.join("catalog.new"), dir.join(CATALOG));
        aside::clear(&**disk, &fresh)?;
        write_catalog(&**disk, &fresh, config, &EMPTY, Change::default())?;
        // The name of the catalog must not last longer than those of the directories.
        if !planted::on(Bug::CatalogNamedTooEarly) {
            disk.sync_dir(dir).map_err(Error::io("sync", dir))?;
        }
        disk.rename(&fresh, &path).map_err(Error::io("rename", &fresh))?;
        if !planted::on(Bug::CatalogNameNotSynced) {
            disk.sync_dir(dir).map_err(Error::io("sync", dir))?;
        }
        let parent = match dir.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        disk.sync_dir(parent).map_err(Error::io("sync", parent))
    }

    /// Opens an index, for reading if `!write`: then nothing on disk is changed.
    pub(crate) fn open(
        disk: &Arc<dyn Disk>,
        dir: &Path,
        write: bool,
        patience: &Patience,
    ) -> Result<(Self, Image)> {
        if !has_catalog(&**disk, dir)? {
            return Err(not_found(&**disk, dir));
        }
        let lock = Lock::take(&**disk, dir, write, patience, false)?;
        Self::admit(disk, dir, write, lock, patience)
    }

    /// Opens an index whose lock is held.
    pub(crate) fn admit(
        disk: &Arc<dyn Disk>,
        dir: &Path,
        write: bool,
        mut lock: Lock,
        patience: &Patience,
    ) -> Result<(Self, Image)> {
        let (mut store, image) = Self::load(disk, dir, CATALOG, write, lock.found, patience)?;
        if write {
            load::sweep(&**disk, dir, &image)?;
            lock.mark(&**disk, store.config.uuid, store.state.seq)?;
            lock.rest();
        }
        store.lock = Some(lock);
        Ok((store, image))
    }

    /// Opens what a catalog describes, without a lock and without sweeping; one that ends before the
    /// commit of `mark` is refused.
    pub(crate) fn load(
        disk: &Arc<dyn Disk>,
        dir: &Path,
        catalog: &str,
        write: bool,
        mark: Option<LockRecord>,
        patience: &Patience,
    ) -> Result<(Self, Image)> {
        let path = dir.join(catalog);
        let catalog = Catalog::open(&**disk, &path, !write, patience)?;
        let (config, image) = load::load(&catalog, &path, disk, dir, mark)?;
        catalog.idle();
        let shape = shape(&config);
        let mut writer = RowWriter::new(Arc::clone(disk), dir, shape, config.segment_bytes);
        if let Some(last) = image.rows.segments().next_back().filter(|_| write) {
            writer.resume(last)?;
        }
        let catalog = if write { Some(catalog) } else { None };
        let (home, state) = (Home::new(disk, dir), image.state.clone());
        let (disk, dir) = (Arc::clone(disk), dir.to_owned());
        Ok((Self { disk, dir, home, path, config, state, lock: None, catalog, writer }, image))
    }

    /// Appends rows behind the others. They count once a [`Store::commit`] has succeeded.
    pub(crate) fn append<'a>(
        &mut self,
        input: impl Iterator<Item = (Row, &'a [f32])>,
        state: &mut State,
        rows: &mut Rows,
    ) -> Result<()> {
        let Self { writer, catalog, home, .. } = self;
        writer.append(input, &mut state.next_segment, rows, || in_place(catalog.as_ref(), home))
    }

    /// Whether the directory is still that of this index: before files are made in it.
    pub(crate) fn in_place(&self) -> Result<()> {
        in_place(self.catalog.as_ref(), &self.home)
    }

    /// Forgets appended rows that were not committed.
    pub(crate) fn abandon(&mut self) {
        self.writer.abandon();
    }

    /// Removes the segments from number `next` on, which are not and will not be committed.
    pub(crate) fn discard(&mut self, next: u64) {
        self.writer.discard(next);
    }

    /// Makes the appended rows durable, then the change and the state: the commit point. Of a directory
    /// that was moved meanwhile it is durable there, and [`Error::Moved`]: the state tells.
    pub(crate) fn commit(&mut self, change: Change, state: State) -> Result<()> {
        let done = self.commit_awake(change, state);
        self.catalog.iter().for_each(Catalog::idle);
        done
    }

    fn commit_awake(&mut self, mut change: Change, mut state: State) -> Result<()> {
        if !planted::on(Bug::CommitBeforeRows) {
            self.writer.sync().map_err(|e| self.home.explain_change(e))?;
        }
        self.wake().map_err(|e| self.home.explain_change(e))?;
        let Some(catalog) = &mut self.catalog else { return Err(Error::ReadOnly) };
        state.seq = state.seq.saturating_add(1);
        let value = state.encode();
        if let Err(e) = State::parse(&value) {
            let why = format!("{e}: the index has come to the end of its numbers");
            return Err(Error::invalid("commit", why));
        }
        change.put(Table::Meta, 1, value);
        catalog.want(room(&state))?;
        let mut found = Ok(());
        match catalog.commit(&self.config.uuid, &change) {
            Ok(()) => {
                // What went into a file that nobody finds any more is not acknowledged.
                found = in_place(Some(catalog), &self.home);
                if found.as_ref().is_err_and(|e| !e.passes()) {
                    return found;
                }
            }
            Err(e) if e.shortage() => {
                catalog.give_up();
                if self.outcome()? != state {
                    return Err(e);
                }
            }
            Err(e) => return Err(e),
        }
        if planted::on(Bug::CommitBeforeRows) {
            self.writer.sync()?;
        }
        self.state = state;
        let (disk, uuid, seq) = (&*self.disk, self.config.uuid, self.state.seq);
        self.lock.as_mut().map_or(Ok(()), |lock| lock.mark(disk, uuid, seq))?;
        found
    }

    /// Has the catalog opened for a commit. While it was not, nobody may have changed it.
    fn wake(&mut self) -> Result<()> {
        let Some(catalog) = &mut self.catalog else { return Err(Error::ReadOnly) };
        if catalog.wake(&*self.disk)?
            && load::load_state(catalog, &self.path, &self.config.uuid)? != self.state
        {
            catalog.give_up();
            return Err(Error::corrupt(&self.path, 0, catalog::CHANGED));
        }
        Ok(())
    }

    /// Makes the mark of the last commit durable, where that is rare enough to wait for.
    pub(crate) fn settle(&mut self) -> Result<()> {
        let disk = &*self.disk;
        self.lock.as_mut().map_or(Ok(()), |lock| lock.settle(disk))
    }

    /// Closes what a commit has opened. The locks stay.
    pub(crate) fn rest(&mut self) {
        self.writer.rest();
        self.lock.iter_mut().for_each(Lock::rest);
    }

    /// The state that the catalog holds, durably. After a shortage redb gives up its handle, and it may
    /// have come before the commit or after it. Reading takes no room.
    fn outcome(&mut self) -> Result<State> {
        let (disk, path, uuid) = (&*self.disk, &self.path, &self.config.uuid);
        let Some(catalog) = &mut self.catalog else { return Err(Error::ReadOnly) };
        catalog.sync(disk)?;
        let found = catalog.peek(disk).and_then(|found| match found {
            Some(found) => load::load_state(&found, path, uuid),
            None => load::load_state(catalog, path, uuid),
        });
        // Not knowing is no shortage, which nothing would be lost by.
        found.map_err(|e| Error::io("sync", path)(io::Error::other(e)))
    }

    /// Reads every record of the catalog again. Read-only handles keep no catalog: theirs was
    /// verified whole when it was opened.
    pub(crate) fn verify(&mut self) -> Result<()> {
        let (disk, uuid) = (&*self.disk, &self.config.uuid);
        self.catalog.as_mut().map_or(Ok(()), |catalog| catalog.verify(disk, uuid))
    }

    /// Whether the directories are such, and `LOCK` is of this index as far as it can be read.
    pub(crate) fn verify_names(&mut self) -> Result<()> {
        for dir in ["rows", "lists"].map(|name| self.dir.join(name)) {
            self.disk.list(&dir).map_err(view::absent(&dir))?;
        }
        let (disk, uuid) = (&*self.disk, &self.config.uuid);
        self.lock.as_mut().map_or(Ok(()), |lock| lock.verify(disk, uuid))
    }

    /// Closes the catalog, and with it the index. What redb writes then only makes the next opening
    /// quicker, so a full disk is no failure, nor is a directory that is elsewhere.
    pub(crate) fn close(&mut self) -> Result<()> {
        self.rest();
        let disk = &*self.disk;
        let done = self.catalog.take().map_or(Ok(()), |catalog| catalog.close(disk));
        let done = done.map_err(|e| self.home.explain(e));
        if done.as_ref().is_err_and(Error::passes) { Ok(()) } else { done }
    }

    /// The length of the catalog's file.
    pub(crate) fn catalog_bytes(&self) -> u64 {
        let file = self.disk.open(&self.path, false);
        file.and_then(|f| f.len()).unwrap_or(0)
    }
}

/// Whether the catalog is the one that its path leads to. That it cannot be looked for says nothing
/// against it.
fn in_place(catalog: Option<&Catalog>, home: &Home) -> Result<()> {
    let look = || match catalog.map_or_else(|| home.check(), Catalog::is_in_place) {
        Err(Error::Io { .. }) => Ok(()),
        found => found,
    };
    // A directory that was moved may come back just when its catalog was missed.
    for _ in 0..2 {
        if look().is_ok() {
            return Ok(());
        }
        home.check()?;
    }
    look()
}

/// Writes a catalog of its own, durable under a name that is not yet.
pub(crate) fn write_catalog(
    disk: &dyn Disk,
    path: &Path,
    config: &Config,
    state: &State,
    mut change: Change,
) -> Result<()> {
    disk.remove(path).map_err(Error::io("remove", path))?;
    let file = disk.create(path).map_err(Error::io("create", path))?;
    change.put(Table::Meta, 0, config.encode());
    change.put(Table::Meta, 1, state.encode());
    Catalog::write_new(Arc::from(file), path, &config.uuid, &change)
}

/// The room that removals may come to need when the disk is full: of every 65,536 ids a bitmap of 8 KiB, in a
/// page of twice that, and as much again while it is copied. It is rounded, so as to be asked for seldom.
fn room(state: &State) -> u64 {
    (state.next_id / 2).min(MOST_ROOM).next_power_of_two()
}

/// More than this is not kept for removals; a large catalog keeps as much as it is long.
const MOST_ROOM: u64 = 1 << 20;

/// The record of a segment as the catalog keeps it.
pub(crate) fn put_segment(change: &mut Change, segment: &Segment) {
    let record = cellardb_format::Segment {
        first_id: segment.file.first_id(),
        end_id: segment.end_id,
        rows: segment.rows - u64::from(planted::on(Bug::RowCountTooLow) && segment.rows > 20),
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
pub(crate) fn not_found(disk: &dyn Disk, dir: &Path) -> Error {
    let rows = disk.list(&dir.join("rows")).unwrap_or_default();
    if !rows.is_empty() {
        return Error::corrupt(dir.join(CATALOG), 0, "the catalog is missing");
    }
    match lock::mark(disk, dir) {
        Some(LockRecord { seq, .. }) if seq > 0 => {
            let what = format!(
                "the catalog and all rows are gone, though LOCK tells of commit {seq}: nothing is left to \
                 repair; bring back a copy, or remove the directory to begin anew"
            );
            Error::corrupt(dir.join(CATALOG), 0, what)
        }
        _ => Error::NotFound { path: dir.to_owned() },
    }
}
