//! redb on a file of the disk.

use super::header::{self, Header};
use crate::planted::{self, Bug};
use crate::storage::disk::DiskFile;
use redb::StorageBackend;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// The least that is reserved.
const PAGE: u64 = 4096;

/// A file of the disk. Locking is ours (`LOCK`), so redb's is left unsupported.
///
/// The file has the room for its next growth behind its end, so that a change that takes no room
/// elsewhere, a removal, goes on when the disk is full.
#[derive(Debug)]
pub(super) struct Backend {
    file: Arc<dyn DiskFile>,
    header: Mutex<Header>,
    /// The least room ahead.
    room: AtomicU64,
    /// There was no room for that.
    short: AtomicBool,
    /// Whether something was written that is not synced.
    unsynced: AtomicBool,
    /// redb is being dropped, and what it has to say is not wanted: the file is as it should be.
    retired: AtomicBool,
}

/// What redb owns.
#[derive(Debug)]
pub(super) struct Shared(pub(super) Arc<Backend>);

impl Backend {
    /// A file of `len` bytes. If `deferred` nothing is written before redb has opened it.
    pub(super) fn new(
        file: Arc<dyn DiskFile>,
        len: u64,
        room: u64,
        deferred: bool,
    ) -> io::Result<Self> {
        let mut bytes = [0; header::LEN];
        if len >= header::LEN as u64 {
            file.read_at(&mut bytes, 0)?;
        }
        let deferred = deferred && header::is_settled(&bytes);
        let backend = Self {
            file,
            header: Mutex::new(Header::new(bytes, deferred)),
            room: AtomicU64::new(room),
            short: AtomicBool::new(false),
            unsynced: AtomicBool::new(false),
            retired: AtomicBool::new(false),
        };
        if len > 0 {
            backend.reserve_ahead(len);
        }
        Ok(backend)
    }

    /// redb has opened the file; see [`Header::opened`].
    pub(super) fn opened(&self) -> bool {
        self.header().opened()
    }

    /// Whether what redb has made of the header is understood.
    pub(super) fn recognise(&self) -> io::Result<()> {
        let len = self.file.len()?;
        super::measure::recognise(self.header().bytes(), len)
    }

    /// The header that the file has.
    pub(super) fn file_header(&self) -> [u8; header::LEN] {
        self.header().file()
    }

    /// From now on redb reaches the file no more.
    pub(super) fn retire(&self) {
        self.retired.store(true, Ordering::Relaxed);
    }

    /// Asks for so much room ahead from now on.
    pub(super) fn want(&self, room: u64) -> io::Result<()> {
        if self.room.fetch_max(room, Ordering::Relaxed) < room {
            self.reserve_ahead(self.file.len()?);
        }
        Ok(())
    }

    /// redb doubles the file at most, but a small one again and again.
    fn reserve_ahead(&self, len: u64) {
        let mut ahead = len.max(self.room.load(Ordering::Relaxed));
        let mut short = false;
        // Where there is not enough for all of it, as much as there is.
        while ahead >= PAGE && self.file.reserve(len.saturating_add(ahead)).is_err() {
            (short, ahead) = (true, ahead / 2);
        }
        self.short.store(short, Ordering::Relaxed);
    }

    fn header(&self) -> std::sync::MutexGuard<'_, Header> {
        self.header.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn active(&self) -> io::Result<()> {
        match self.retired.load(Ordering::Relaxed) {
            true => Err(io::Error::other("the catalog is at rest")),
            false => Ok(()),
        }
    }

    fn put(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.unsynced.store(true, Ordering::Relaxed);
        self.file.write_at(data, offset)
    }
}

/// How much of `len` bytes at `offset` lies in the header.
fn in_header(offset: u64, len: usize) -> usize {
    let left = (header::LEN as u64).saturating_sub(offset);
    usize::try_from(left).unwrap_or(0).min(len)
}

impl StorageBackend for Shared {
    fn len(&self) -> io::Result<u64> {
        self.0.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let n = in_header(offset, out.len());
        let (head, rest) = out.split_at_mut(n);
        if n > 0 {
            let at = usize::try_from(offset).unwrap_or(0);
            head.copy_from_slice(self.0.header().bytes().get(at..at + n).unwrap_or_default());
        }
        if rest.is_empty() { Ok(()) } else { self.0.file.read_at(rest, offset + n as u64) }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let backend = &*self.0;
        backend.active()?;
        backend.file.reserve(len)?;
        backend.unsynced.store(true, Ordering::Relaxed);
        backend.file.set_len(len)?;
        backend.reserve_ahead(len);
        // What a shorter file gives back is there to be taken again once that is durable.
        if backend.short.load(Ordering::Relaxed) { self.sync_data() } else { Ok(()) }
    }

    fn sync_data(&self) -> io::Result<()> {
        let backend = &*self.0;
        backend.active()?;
        if planted::on(Bug::CatalogNotSynced) || !backend.unsynced.load(Ordering::Relaxed) {
            return Ok(());
        }
        // Whatever the reason, a failed sync must not pass for a full disk, after which one goes on.
        backend.file.sync().map_err(|e| io::Error::other(format!("a sync failed: {e}")))?;
        backend.unsynced.store(false, Ordering::Relaxed);
        if backend.short.load(Ordering::Relaxed) {
            backend.reserve_ahead(backend.file.len()?);
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let backend = &*self.0;
        backend.active()?;
        let n = in_header(offset, data.len());
        let (head, rest) = data.split_at(n);
        if n > 0 {
            let at = usize::try_from(offset).unwrap_or(0);
            let next = backend.header().write(at, head);
            next.map_or(Ok(()), |header| backend.put(0, &header))?;
        }
        if rest.is_empty() { Ok(()) } else { backend.put(offset + n as u64, rest) }
    }
}
