//! The catalog: sealed records in one redb database, the single commit point. Alone names `redb`.

use super::catalog_file;
use super::disk::{Disk, DiskFile};
use crate::error::{Error, Result};
use crate::planted::{self, Bug};
use cellardb_format::{FormatError, seal, unseal};
use redb::{Database, Durability, ReadableDatabase, StorageBackend, TableDefinition};
use std::collections::BTreeMap;
use std::io;
use std::ops::RangeInclusive;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// The tables of the catalog; see SPEC.md, section 6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Table {
    Meta,
    Segments,
    Lists,
    Model,
    Settings,
    Dead,
    Asked,
}

impl Table {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Meta => "meta",
            Self::Segments => "segments",
            Self::Lists => "lists",
            Self::Model => "model",
            Self::Settings => "settings",
            Self::Dead => "dead",
            Self::Asked => "asked",
        }
    }

    const fn definition(self) -> TableDefinition<'static, u64, &'static [u8]> {
        TableDefinition::new(self.name())
    }
}

/// The key of the config in `meta`.
pub(super) const CONFIG: u64 = 0;
pub(super) const NO_UUID: [u8; 16] = [0; 16];

const TABLES: [Table; 7] = [
    Table::Meta,
    Table::Segments,
    Table::Lists,
    Table::Model,
    Table::Settings,
    Table::Dead,
    Table::Asked,
];

/// What one transaction changes.
#[derive(Debug, Default)]
pub(crate) struct Change {
    puts: Vec<(Table, u64, Vec<u8>)>,
    removes: Vec<(Table, u64)>,
}

impl Change {
    pub(crate) fn put(&mut self, table: Table, key: u64, value: Vec<u8>) {
        self.puts.push((table, key, value));
    }

    pub(crate) fn remove(&mut self, table: Table, key: u64) {
        self.removes.push((table, key));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.puts.is_empty() && self.removes.is_empty()
    }
}

#[derive(Debug)]
pub(crate) struct Catalog {
    db: Database,
    file: Arc<dyn DiskFile>,
    path: PathBuf,
}

/// redb keeps this much of the catalog in memory; queries read the snapshot, never redb.
const CACHE: usize = 32 << 20;

impl Catalog {
    /// Opens the catalog, or makes an empty one in an empty file. Every page is verified. With
    /// `overlay` the file is not written: what redb writes, its repair included, stays in memory.
    pub(crate) fn open(disk: &dyn Disk, path: &Path, overlay: bool) -> Result<Self> {
        super::view::no_link(disk, path)?;
        let file = disk.open(path, !overlay).map_err(super::view::absent(path))?;
        // `LOCK` may have been removed or replaced under the one who holds it.
        let taken = super::lock::patiently(&*file, path, !overlay)?;
        if !taken && !planted::on(Bug::LockIgnored) {
            let path = path.parent().unwrap_or(path).to_owned();
            return Err(Error::Locked { path, pid: None });
        }
        let file: Arc<dyn DiskFile> = Arc::from(file);
        let found = file.len().map_err(Error::io("read the length of", path))?;
        let (head, len) = catalog_file::measure(&*file, found).map_err(Error::io("read", path))?;
        if !overlay && len < found {
            file.set_len(len).map_err(Error::io("set the length of", path))?;
        }
        if !overlay && head.unclean && !planted::on(Bug::NotWrittenAgain) {
            catalog_file::write_again(&*file, len, head.len).map_err(Error::io("write", path))?;
        }
        let mut builder = Database::builder();
        builder.set_cache_size(CACHE).set_check_integrity_on_open(len > 0);
        let open = || {
            if overlay {
                builder.create_with_backend(Overlay::new(Arc::clone(&file), len))
            } else {
                builder.create_with_backend(Backend::new(Arc::clone(&file), len))
            }
        };
        // redb promises no panic with the integrity check on; should it break that promise over a
        // damaged file, the process of our host must not pay for it.
        match catch_unwind(AssertUnwindSafe(open)) {
            Ok(Ok(db)) => Ok(Self { db, file, path: path.to_owned() }),
            Ok(Err(e)) => Err(translate(path, "open", e.into())),
            Err(_) => Err(Error::corrupt(path, 0, "the catalog cannot be read")),
        }
    }

    /// All records of a table, unsealed, in the order of their keys.
    pub(crate) fn load(&self, uuid: &[u8; 16], table: Table) -> Result<Vec<(u64, Vec<u8>)>> {
        let mut records = self.read(table, 0..=u64::MAX)?;
        for (key, value) in &mut records {
            self.unseal(uuid, table, *key, value)?;
        }
        Ok(records)
    }

    /// The records of a table that can be read and pass their seals, and whether these are all.
    pub(super) fn salvage(&self, uuid: &[u8; 16], table: Table) -> (Vec<(u64, Vec<u8>)>, bool) {
        let Ok(mut records) = self.read(table, 0..=u64::MAX) else { return (Vec::new(), false) };
        let found = records.len();
        records.retain_mut(|(key, value)| self.unseal(uuid, table, *key, value).is_ok());
        let all = records.len() == found;
        (records, all)
    }

    /// Whether every record can be read and passes its seal.
    pub(crate) fn verify(&self, uuid: &[u8; 16]) -> Result<()> {
        TABLES.into_iter().try_for_each(|table| self.load(uuid, table).map(|_| ()))
    }

    /// The config, which is sealed without the uuid that it brings.
    pub(crate) fn load_config(&self) -> Result<Option<Vec<u8>>> {
        let Some((key, mut value)) = self.read(Table::Meta, CONFIG..=CONFIG)?.pop() else {
            return Ok(None);
        };
        self.unseal(&NO_UUID, Table::Meta, key, &mut value)?;
        Ok(Some(value))
    }

    fn read(&self, table: Table, keys: RangeInclusive<u64>) -> Result<Vec<(u64, Vec<u8>)>> {
        let read = || -> Result<Vec<(u64, Vec<u8>)>, redb::Error> {
            let transaction = self.db.begin_read()?;
            let rows = transaction.open_table(table.definition())?;
            let mut out = Vec::new();
            for row in rows.range(keys)? {
                let (key, value) = row?;
                out.push((key.value(), value.value().to_vec()));
            }
            Ok(out)
        };
        match catch_unwind(AssertUnwindSafe(read)) {
            Ok(rows) => rows.map_err(|e| translate(&self.path, "read", e)),
            Err(_) => Err(Error::corrupt(&self.path, 0, "the catalog cannot be read")),
        }
    }

    fn unseal(&self, uuid: &[u8; 16], table: Table, key: u64, value: &mut Vec<u8>) -> Result<()> {
        if planted::on(Bug::SealIgnored) {
            value.truncate(value.len().saturating_sub(4));
            return Ok(());
        }
        let uuid = sealing(uuid, table, key);
        let body = unseal(uuid, table.name(), key, value)
            .map_err(|e| damaged_value(&self.path, table, key, e))?;
        let len = body.len();
        value.truncate(len);
        Ok(())
    }

    /// Makes a change durable, whole or not at all. After an error nothing is known of its outcome
    /// until the catalog is opened anew.
    pub(crate) fn commit(&mut self, uuid: &[u8; 16], change: Change) -> Result<()> {
        let write = || -> Result<(), redb::Error> {
            let mut transaction = self.db.begin_write()?;
            transaction.set_durability(Durability::Immediate)?;
            for table in TABLES {
                let puts = change.puts.iter().filter(|(t, ..)| *t == table);
                let removes = change.removes.iter().filter(|(t, _)| *t == table);
                if puts.clone().next().is_none() && removes.clone().next().is_none() {
                    continue;
                }
                let mut rows = transaction.open_table(table.definition())?;
                for (_, key) in removes {
                    rows.remove(key)?;
                }
                for (_, key, value) in puts {
                    let mut sealed = value.clone();
                    seal(sealing(uuid, table, *key), table.name(), *key, &mut sealed);
                    rows.insert(key, sealed.as_slice())?;
                }
            }
            Ok(transaction.commit()?)
        };
        match catch_unwind(AssertUnwindSafe(write)) {
            Ok(done) => done.map_err(|e| translate(&self.path, "commit to", e)),
            Err(_) => Err(Error::corrupt(&self.path, 0, "the catalog cannot be written")),
        }
    }

    /// Whether what was committed went into the file that the next one to open the index will find.
    pub(crate) fn is_in_place(&self) -> Result<()> {
        match self.file.is_at(&self.path).map_err(Error::io("look for", &self.path))? {
            true => Ok(()),
            false => {
                let what = "another file took its place while the index was open for writing";
                Err(Error::corrupt(&self.path, 0, what))
            }
        }
    }

    /// Makes every table, so that a missing one is damage from then on.
    pub(crate) fn create_tables(&mut self) -> Result<()> {
        let write = || -> Result<(), redb::Error> {
            let transaction = self.db.begin_write()?;
            for table in TABLES {
                transaction.open_table(table.definition())?;
            }
            Ok(transaction.commit()?)
        };
        write().map_err(|e| translate(&self.path, "write", e))
    }

    /// Drops the database after a failure, when it writes nothing more.
    pub(crate) fn give_up(self) {
        let _ = catch_unwind(AssertUnwindSafe(|| drop(self.db)));
    }

    /// Closes the database, reporting what a drop would swallow.
    pub(crate) fn close(self) -> Result<()> {
        let Self { db, path, .. } = self;
        match catch_unwind(AssertUnwindSafe(|| db.close())) {
            Ok(done) => done.map_err(|e| translate(&path, "close", e.into())),
            Err(_) => Err(Error::corrupt(&path, 0, "the catalog cannot be closed")),
        }
    }
}

/// The uuid that a record is sealed with: the config brings it, so it cannot need it.
fn sealing(uuid: &[u8; 16], table: Table, key: u64) -> &[u8; 16] {
    if (table, key) == (Table::Meta, CONFIG) { &NO_UUID } else { uuid }
}

/// A value lies somewhere in the pages of redb, so its bytes have no offset in the file.
pub(crate) fn damaged_value(path: &Path, table: Table, key: u64, e: FormatError) -> Error {
    let FormatError { offset, kind, .. } = e;
    Error::corrupt(path, 0, format!("byte {offset} of value {key} of {}: {kind}", table.name()))
}

fn translate(path: &Path, op: &'static str, e: redb::Error) -> Error {
    match e {
        redb::Error::Io(source) if source.kind() == io::ErrorKind::UnexpectedEof => {
            Error::corrupt(path, 0, "the catalog ends early")
        }
        // So redb says that its magic number is not there.
        redb::Error::Io(source) if source.kind() == io::ErrorKind::InvalidData => {
            Error::corrupt(path, 0, "it does not begin as a catalog does")
        }
        redb::Error::Io(source) => Error::Io { op, path: path.to_owned(), source },
        redb::Error::DatabaseAlreadyOpen => Error::Locked { path: path.to_owned(), pid: None },
        redb::Error::PreviousIo | redb::Error::DatabaseClosed => {
            let what =
                "an earlier operation on the catalog failed; close the index and open it anew";
            let source = io::Error::other(what);
            Error::Io { op, path: path.to_owned(), source }
        }
        redb::Error::TableDoesNotExist(name) => {
            Error::corrupt(path, 0, format!("its table {name:?} is missing"))
        }
        redb::Error::UpgradeRequired(version) => {
            let what = format!("its header has version {version}, which no catalog has");
            Error::corrupt(path, 0, what)
        }
        // In our words: those of redb advise what cannot be done here.
        _ => Error::corrupt(path, 0, "its pages are not what was written to them"),
    }
}

/// redb on a file of the disk. Locking is ours (`LOCK`), so redb's is left unsupported.
///
/// The file has the room for its next growth behind its end, so that a change that takes no room
/// elsewhere, a removal, goes on when the disk is full.
#[derive(Debug)]
struct Backend {
    file: Arc<dyn DiskFile>,
    /// There was no room for that.
    short: AtomicBool,
}

impl Backend {
    fn new(file: Arc<dyn DiskFile>, len: u64) -> Self {
        let backend = Self { file, short: AtomicBool::new(false) };
        if len > 0 {
            backend.reserve_ahead(len);
        }
        backend
    }

    /// redb doubles the file at most, but a small one again and again.
    fn reserve_ahead(&self, len: u64) {
        let mut ahead = len.max(LEAST_ROOM.saturating_sub(len));
        let mut short = false;
        // Where there is not enough for all of it, as much as there is.
        while ahead >= PAGE && self.file.reserve(len.saturating_add(ahead)).is_err() {
            (short, ahead) = (true, ahead / 2);
        }
        self.short.store(short, Ordering::Relaxed);
    }
}

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_at(out, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.reserve(len)?;
        self.file.set_len(len)?;
        self.reserve_ahead(len);
        // What a shorter file gives back is there to be taken again once that is durable.
        if self.short.load(Ordering::Relaxed) { self.sync_data() } else { Ok(()) }
    }

    fn sync_data(&self) -> io::Result<()> {
        if planted::on(Bug::CatalogNotSynced) {
            return Ok(());
        }
        // Whatever the reason, a failed sync must not pass for a full disk, after which one goes on.
        self.file.sync().map_err(|e| io::Error::other(format!("a sync failed: {e}")))?;
        if self.short.load(Ordering::Relaxed) {
            self.reserve_ahead(self.file.len()?);
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_at(data, offset)
    }
}

/// redb on a file that is only read: writes go to pages in memory.
#[derive(Debug)]
struct Overlay {
    file: Arc<dyn DiskFile>,
    state: Mutex<OverlayState>,
}

#[derive(Debug)]
struct OverlayState {
    len: u64,
    /// Bytes of the file below this are still valid: a cut and a growth after it read as zeros.
    base: u64,
    pages: BTreeMap<u64, Vec<u8>>,
}

const PAGE: u64 = 4096;

/// The room that a catalog has at least.
const LEAST_ROOM: u64 = 1 << 20;

impl Overlay {
    fn new(file: Arc<dyn DiskFile>, len: u64) -> Self {
        Self { file, state: Mutex::new(OverlayState { len, base: len, pages: BTreeMap::new() }) }
    }

    fn page(&self, state: &OverlayState, number: u64) -> io::Result<Vec<u8>> {
        if let Some(page) = state.pages.get(&number) {
            return Ok(page.clone());
        }
        let mut page = vec![0; PAGE as usize];
        let start = number * PAGE;
        if start < state.base {
            let n = (state.base - start).min(PAGE) as usize;
            let (head, _) = page.split_at_mut(n);
            self.file.read_at(head, start)?;
        }
        Ok(page)
    }

    fn state(&self) -> std::sync::MutexGuard<'_, OverlayState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StorageBackend for Overlay {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state().len)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.state();
        if offset.saturating_add(out.len() as u64) > state.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if state.pages.is_empty() && offset + out.len() as u64 <= state.base {
            return self.file.read_at(out, offset);
        }
        let (mut at, mut rest) = (offset, out);
        while !rest.is_empty() {
            let page = self.page(&state, at / PAGE)?;
            let from = (at % PAGE) as usize;
            let n = rest.len().min(page.len() - from);
            let (head, tail) = rest.split_at_mut(n);
            head.copy_from_slice(&page[from..from + n]);
            (at, rest) = (at + n as u64, tail);
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.state();
        if len < state.len {
            let last = len / PAGE;
            if !len.is_multiple_of(PAGE) {
                let mut page = self.page(&state, last)?;
                page[(len % PAGE) as usize..].fill(0);
                state.pages.insert(last, page);
            }
            state.base = state.base.min(len);
            state.pages.retain(|number, _| number * PAGE < len);
        }
        state.len = len;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        let (mut at, mut rest) = (offset, data);
        while !rest.is_empty() {
            let mut page = self.page(&state, at / PAGE)?;
            let from = (at % PAGE) as usize;
            let n = rest.len().min(page.len() - from);
            let (head, tail) = rest.split_at(n);
            page[from..from + n].copy_from_slice(head);
            state.pages.insert(at / PAGE, page);
            (at, rest) = (at + n as u64, tail);
        }
        Ok(())
    }
}
