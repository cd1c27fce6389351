//! The catalog: sealed records in one redb database, the single commit point. Alone names `redb`.

mod awake;
mod backend;
mod header;
mod measure;
mod overlay;

use super::disk::{Disk, DiskFile};
use super::held::Held;
use super::lock::Patience;
use crate::error::{Error, Result};
use crate::planted::{self, Bug};
use awake::{Awake, Slot};
use backend::{Backend, Shared};
use cellardb_format::{FormatError, seal, unseal};
use overlay::Overlay;
use redb::{Builder, Database, Durability, ReadableDatabase, TableDefinition, WriteTransaction};
use std::io;
use std::ops::RangeInclusive;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

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

/// The catalog of an index. Of an index that is open for writing redb is dropped when others are written to, and
/// opened again for the next commit.
#[derive(Debug)]
pub(crate) struct Catalog {
    path: PathBuf,
    held: Held,
    /// Whether the file is written.
    write: bool,
    slot: Arc<Slot>,
    /// Whether all that the file holds is known to be durable.
    settled: bool,
    /// The header that the file has then: what is read of it once more may be misread.
    header: [u8; header::LEN],
    /// The least room that is kept ahead.
    room: u64,
}

/// Why a catalog that was at rest is not used again.
pub(crate) const CHANGED: &str =
    "it is another than it was left, while the index was open for writing";

/// redb keeps this much of the catalog in memory; queries read the snapshot, never redb.
const CACHE: usize = 32 << 20;

fn builder() -> Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE);
    builder
}

impl Catalog {
    /// Opens the catalog; every page is verified. With `overlay` the file is not written: what redb
    /// writes, its repair included, stays in memory. Waits for the lock until `patience` ends.
    pub(crate) fn open(
        disk: &dyn Disk,
        path: &Path,
        overlay: bool,
        patience: &Patience,
    ) -> Result<Self> {
        super::view::no_link(disk, path)?;
        let file = disk.open(path, !overlay).map_err(super::view::absent(path))?;
        // `LOCK` may have been removed or replaced under the one who holds it.
        let taken = patience.take(&*file, path, !overlay)?;
        if !taken && !planted::on(Bug::LockIgnored) {
            let dir = path.parent().unwrap_or(path);
            return Err(super::lock::locked(dir, &*file, !overlay));
        }
        let mut held = Held::new(Arc::from(file), path);
        if !overlay && taken {
            held.let_go().map_err(Error::io("lock", path))?;
        }
        let (slot, path, write) = (Arc::default(), path.to_owned(), !overlay);
        let (settled, header, room) = (false, [0; header::LEN], 0);
        let mut catalog = Self { path, held, write, slot, settled, header, room };
        catalog.wake(disk)?;
        Ok(catalog)
    }

    /// Has redb open the file if it is at rest; whether it was. It stays open until [`Catalog::idle`].
    pub(crate) fn wake(&mut self, disk: &dyn Disk) -> Result<bool> {
        let slot = Arc::clone(&self.slot);
        slot.set_busy(true);
        let mut awake = slot.lock();
        if awake.is_some() {
            return Ok(false);
        }
        let opened = self.open_held(disk).and_then(|file| match self.write {
            true => self.open_file(file),
            false => self.read_only(file),
        });
        // What was misread, or changed by another, is not what a closing may write.
        let opened = opened.inspect_err(|_| self.settled = false)?;
        *awake = Some(opened);
        let header = awake.as_ref().and_then(Awake::header);
        drop(awake);
        self.note_settled(header);
        Ok(true)
    }

    /// redb in memory over the file.
    fn read_only(&self, file: Arc<dyn DiskFile>) -> Result<Awake> {
        let found = file.len().map_err(Error::io("read the length of", &self.path))?;
        let (_, len) = measure::measure(&*file, found).map_err(Error::io("read", &self.path))?;
        let overlay = Overlay::new(file, len);
        let open = || builder().set_check_integrity_on_open(len > 0).create_with_backend(overlay);
        self.caught("open", || open().map_err(Into::into)).map(|db| Awake::new(db, None))
    }

    /// redb on the file.
    fn open_file(&self, file: Arc<dyn DiskFile>) -> Result<Awake> {
        let path = &self.path;
        let found = file.len().map_err(Error::io("read the length of", path))?;
        let (head, len) = measure::measure(&*file, found).map_err(Error::io("read", path))?;
        if len < found {
            file.set_len(len).map_err(Error::io("set the length of", path))?;
        }
        let unclean = head.unclean && !self.settled;
        if unclean && !planted::on(Bug::NotWrittenAgain) {
            measure::write_again(&*file, len, head.len).map_err(Error::io("write", path))?;
        }
        for deferred in [!unclean && len == found, false] {
            let backend = Backend::new(Arc::clone(&file), len, self.room, deferred);
            let backend = Arc::new(backend.map_err(Error::io("read", path))?);
            if self.settled && backend.file_header() != self.header {
                return Err(Error::corrupt(path, 0, CHANGED));
            }
            let shared = Shared(Arc::clone(&backend));
            let open =
                || builder().set_check_integrity_on_open(len > 0).create_with_backend(shared);
            let db = self.caught("open", || open().map_err(Into::into))?;
            let known = backend.opened();
            let recognised = backend.recognise();
            let awake = Awake::new(db, Some(backend));
            if known {
                recognised.map_err(Error::io("use", path))?;
                return Ok(awake);
            }
        }
        Err(Error::corrupt(path, 0, "the catalog cannot be opened"))
    }

    /// redb promises no panic with the integrity check on; should it break that promise over a
    /// damaged file, the process of our host must not pay for it.
    fn caught<T>(
        &self,
        op: &'static str,
        job: impl FnOnce() -> Result<T, redb::Error>,
    ) -> Result<T> {
        match catch_unwind(AssertUnwindSafe(job)) {
            Ok(done) => done.map_err(|e| translate(&self.path, op, e)),
            Err(_) => Err(Error::corrupt(&self.path, 0, format!("redb panicked over the {op}"))),
        }
    }

    /// redb, which is awake.
    fn with<T>(
        &self,
        op: &'static str,
        job: impl FnOnce(&Awake) -> Result<T, redb::Error>,
    ) -> Result<T> {
        let awake = self.slot.lock();
        let Some(awake) = &*awake else {
            let source = io::Error::other("the catalog is at rest");
            return Err(Error::io(op, &self.path)(source));
        };
        self.caught(op, || job(awake))
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

    /// Whether every record can be read and passes its seal. Where redb is at rest the file is only read.
    pub(crate) fn verify(&mut self, disk: &dyn Disk, uuid: &[u8; 16]) -> Result<()> {
        self.slot.set_busy(true);
        let done = self.peek(disk).and_then(|other| match other {
            Some(other) => other.verify_all(uuid),
            None => self.verify_all(uuid),
        });
        self.idle();
        done
    }

    fn verify_all(&self, uuid: &[u8; 16]) -> Result<()> {
        TABLES.into_iter().try_for_each(|table| self.load(uuid, table).map(|_| ()))
    }

    /// What the file holds, read without a change; `None` if redb has it open.
    pub(crate) fn peek(&mut self, disk: &dyn Disk) -> Result<Option<Self>> {
        if self.slot.lock().is_some() {
            return Ok(None);
        }
        let (file, path) = (self.open_held(disk)?, self.path.clone());
        let held = Held::new(Arc::clone(&file), &path);
        let slot = Arc::new(Slot::default());
        *slot.lock() = Some(self.read_only(file)?);
        let (write, settled, header, room) = (false, false, [0; header::LEN], 0);
        Ok(Some(Self { path, held, write, slot, settled, header, room }))
    }

    fn open_held(&mut self, disk: &dyn Disk) -> Result<Arc<dyn DiskFile>> {
        let file = self.held.open(disk).map_err(super::view::absent(&self.path))?;
        self.held.rest();
        Ok(file)
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
        self.with("read", |awake| {
            let rows = awake.db().begin_read()?.open_table(table.definition())?;
            let mut out = Vec::new();
            for row in rows.range(keys)? {
                let (key, value) = row?;
                out.push((key.value(), value.value().to_vec()));
            }
            Ok(out)
        })
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
    pub(crate) fn commit(&mut self, uuid: &[u8; 16], change: &Change) -> Result<()> {
        self.settled = false;
        let header = self.with("commit to", |awake| {
            let mut transaction = awake.db().begin_write()?;
            transaction.set_durability(Durability::Immediate)?;
            for table in TABLES {
                change.apply(uuid, table, &transaction)?;
            }
            transaction.commit()?;
            Ok(awake.header())
        })?;
        self.note_settled(header);
        Ok(())
    }

    /// All that the file holds is durable, and this is its header, if it is written.
    fn note_settled(&mut self, header: Option<[u8; header::LEN]>) {
        let Some(header) = header else { return };
        (self.settled, self.header) = (true, header);
    }

    /// From now on redb may drop the file when other indexes are used.
    pub(crate) fn idle(&self) {
        self.slot.set_busy(false);
        if self.write {
            awake::used(&self.slot);
        }
    }

    /// Keeps at least so much room ahead from now on.
    pub(crate) fn want(&mut self, room: u64) -> Result<()> {
        self.room = self.room.max(room);
        match &*self.slot.lock() {
            Some(awake) => awake.want(self.room).map_err(Error::io("reserve room for", &self.path)),
            None => Ok(()),
        }
    }

    /// Writes a catalog into an empty file, in one go, and syncs it.
    pub(crate) fn write_new(
        file: Arc<dyn DiskFile>,
        path: &Path,
        uuid: &[u8; 16],
        change: &Change,
    ) -> Result<()> {
        let overlay = Overlay::new(Arc::clone(&file), 0);
        let pages = overlay.again();
        let write = || -> Result<(), redb::Error> {
            let db = builder().create_with_backend(overlay)?;
            let transaction = db.begin_write()?;
            for table in TABLES {
                // Every table is made, so that a missing one is damage from then on.
                transaction.open_table(table.definition())?;
                change.apply(uuid, table, &transaction)?;
            }
            transaction.commit()?;
            pages.freeze();
            Ok(())
        };
        write().map_err(|e| translate(path, "write", e))?;
        pages.write().map_err(Error::io("write", path))?;
        file.sync().map_err(Error::io("sync", path))
    }

    /// Whether what was committed went into the file that the next one to open the index will find.
    pub(crate) fn is_in_place(&self) -> Result<()> {
        match self.held.is_at(&self.path).map_err(Error::io("look for", &self.path))? {
            true => Ok(()),
            false => {
                let what = "another file took its place while the index was open for writing";
                Err(Error::corrupt(&self.path, 0, what))
            }
        }
    }

    /// Has redb leave the file as it is: after a failure.
    pub(crate) fn give_up(&mut self) {
        self.settled = false;
        awake::retire(self.slot.lock().take());
    }

    /// Makes what the file holds durable, whatever wrote it.
    pub(crate) fn sync(&mut self, disk: &dyn Disk) -> Result<()> {
        self.open_held(disk)?.sync().map_err(Error::io("sync", &self.path))
    }

    /// Ends with the catalog, and says in it that it was closed. That need not be durable.
    pub(crate) fn close(mut self, disk: &dyn Disk) -> Result<()> {
        awake::retire(self.slot.lock().take());
        let Some(closed) = header::closed(&self.header).filter(|_| self.settled) else {
            return Ok(());
        };
        let file = self.open_held(disk)?;
        file.write_at(&closed, 0).map_err(Error::io("write", &self.path))
    }
}

impl Change {
    /// What of the change is in one table.
    fn apply(
        &self,
        uuid: &[u8; 16],
        table: Table,
        transaction: &WriteTransaction,
    ) -> Result<(), redb::Error> {
        let puts = self.puts.iter().filter(|(t, ..)| *t == table);
        let removes = self.removes.iter().filter(|(t, _)| *t == table);
        if puts.clone().next().is_none() && removes.clone().next().is_none() {
            return Ok(());
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
        Ok(())
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
        redb::Error::DatabaseAlreadyOpen => {
            Error::Locked { path: path.to_owned(), pid: None, reader: false }
        }
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
