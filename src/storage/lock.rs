//! `LOCK`: one writer or many readers, and the high-water mark of commits.

use super::disk::{Disk, DiskFile};
use super::held::Held;
use crate::error::{Error, Result};
use crate::planted::{self, Bug};
use cellardb_format::{HEADER_LEN, LockRecord};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// For how long a lock is tried whatever the caller says: a process that is just being forked from this one
/// holds what is open here until it becomes another.
const LEAST: Duration = Duration::from_millis(100);
/// How often a lock is tried.
const STEP: Duration = Duration::from_millis(5);
/// How often one who waits in the queue tries to be the next, at first.
const QUEUED: Duration = Duration::from_millis(20);

/// What a `LOCK` that is not there any more answers.
const GONE: [io::ErrorKind; 4] = [
    io::ErrorKind::NotFound,
    io::ErrorKind::NotADirectory,
    io::ErrorKind::InvalidData,
    io::ErrorKind::PermissionDenied,
];

/// How long is waited for the locks of an index.
#[derive(Debug)]
pub(crate) struct Patience {
    since: Instant,
    wait: Duration,
}

impl Patience {
    pub(crate) fn new(wait: Duration) -> Self {
        Self { since: Instant::now(), wait }
    }

    /// No longer than a process takes to become another.
    pub(crate) fn none() -> Self {
        Self::new(Duration::ZERO)
    }

    /// Takes the lock of a file unless another holds it for too long.
    pub(super) fn take(&self, file: &dyn DiskFile, path: &Path, exclusive: bool) -> Result<bool> {
        let step = |_| STEP;
        self.poll(LEAST, step, || file.try_lock(exclusive)).map_err(Error::io("lock", path))
    }

    /// Waits to be the next to get the lock, so that nobody who waits is passed by others for ever. Whoever
    /// has waited long tries more often.
    fn queue(&self, disk: &dyn Disk, dir: &Path) -> Result<Option<Box<dyn DiskFile>>> {
        if self.wait.is_zero() {
            return Ok(None);
        }
        let Ok(Some(file)) = disk.queue(dir) else { return Ok(None) };
        let step = |waited: Duration| QUEUED / (1 + waited.as_secs().min(9) as u32);
        // Where a directory has no lock there is no queue.
        match self.poll(Duration::ZERO, step, || file.try_lock(true)) {
            Ok(true) => Ok(Some(file)),
            Ok(false) | Err(_) => Ok(None),
        }
    }

    fn poll(
        &self,
        least: Duration,
        step: impl Fn(Duration) -> Duration,
        mut take: impl FnMut() -> io::Result<bool>,
    ) -> io::Result<bool> {
        let begun = Instant::now();
        loop {
            if take()? {
                return Ok(true);
            }
            let left = self.wait.saturating_sub(self.since.elapsed());
            let left = left.max(least.saturating_sub(begun.elapsed()));
            if left.is_zero() {
                return Ok(false);
            }
            std::thread::sleep(step(self.since.elapsed()).min(left));
        }
    }
}

/// The error of one who did not get the lock of a file: who holds it now, as far as the system tells. The process
/// that `LOCK` names is the last that wrote, which may be long gone while another reads.
pub(super) fn locked(dir: &Path, file: &dyn DiskFile, write: bool) -> Error {
    let holders = file.holders();
    let writer = holders.iter().find(|(_, exclusive)| *exclusive);
    let reader = match holders.is_empty() {
        // One who can read beside them finds readers.
        true => write && file.try_lock(false).unwrap_or(false),
        false => writer.is_none(),
    };
    let named = |(pid, _): &&(u32, bool)| *pid != 0;
    let pid = writer.or_else(|| holders.iter().find(named)).map(|(pid, _)| *pid);
    Error::Locked { path: dir.to_owned(), pid: pid.filter(|pid| *pid != 0), reader }
}

/// Makes `LOCK` where it is missing; `false` where no name can be made.
fn provide(disk: &dyn Disk, path: &Path) -> bool {
    let missing = |e: io::Error| e.kind() == io::ErrorKind::NotFound;
    let refused = |e: io::Error| {
        matches!(e.kind(), io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied)
    };
    !disk.open(path, false).is_err_and(missing) || !disk.create(path).is_err_and(refused)
}

/// What the last writer left in `LOCK`, as far as it can be read.
pub(super) fn mark(disk: &dyn Disk, dir: &Path) -> Option<LockRecord> {
    disk.open(&dir.join("LOCK"), false).ok().and_then(|file| record(&*file))
}

fn record(file: &dyn DiskFile) -> Option<LockRecord> {
    let mut bytes = [0; HEADER_LEN];
    file.read_at(&mut bytes, 0).ok()?;
    LockRecord::parse(&bytes).ok()
}

/// The lock on an index; it ends with this value, or with the process.
#[derive(Debug)]
pub(crate) struct Lock {
    held: Held,
    /// What the last writer left: absent if it was never written, or torn by a power cut.
    pub(crate) found: Option<LockRecord>,
    /// Whether a mark was written that a power cut may take.
    unsettled: bool,
}

impl Lock {
    /// Takes the lock, exclusive to write and shared to read. If `LOCK` has to be made its name is durable, unless
    /// a whole index is being made.
    pub(crate) fn take(
        disk: &dyn Disk,
        dir: &Path,
        write: bool,
        patience: &Patience,
        creating: bool,
    ) -> Result<Self> {
        let mut path = dir.join("LOCK");
        super::view::no_link(disk, &path)?;
        if !write && !provide(disk, &path) {
            // Where no name can be made, the catalog does: whoever writes elsewhere wants it alone.
            path = dir.join(super::CATALOG);
        }
        let open = || match disk.open(&path, write) {
            // It went missing: no lock is held on it, and the mark in it is only a help. A writer that is
            // still at work holds the catalog too.
            Err(e) if e.kind() == io::ErrorKind::NotFound => match disk.create(&path) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => disk.open(&path, write),
                // Its name is to last as long as the marks in it.
                Ok(file) if write && !creating => disk.sync_dir(dir).map(|()| file),
                other => other,
            },
            other => other,
        };
        let _next = patience.queue(disk, dir)?;
        let mut file = open().map_err(super::view::absent(&path))?;
        let mut taken = false;
        for _ in 0..20 {
            taken = patience.take(&*file, &path, write)?;
            // Another may have taken its place since it was opened.
            if !taken || file.is_at(&path).map_err(Error::io("look for", &path))? {
                break;
            }
            taken = false;
            file = open().map_err(super::view::absent(&path))?;
        }
        if !taken && !planted::on(Bug::LockIgnored) {
            return Err(locked(dir, &*file, write));
        }
        let found = record(&*file);
        let mut held = Held::new(Arc::from(file), &path);
        if write && taken {
            held.let_go().map_err(Error::io("lock", &path))?;
        }
        Ok(Self { held, found, unsettled: false })
    }

    /// A record of another index is damage. One that cannot be read is none: a power cut tears it, and
    /// the next writer writes it anew.
    pub(crate) fn verify(&mut self, disk: &dyn Disk, uuid: &[u8; 16]) -> Result<()> {
        let found = self.open(disk)?.and_then(|file| record(&*file));
        self.rest();
        match found {
            Some(record) if record.uuid != *uuid => {
                Err(Error::corrupt(self.held.path(), 8, "this is the lock of another index"))
            }
            _ => Ok(()),
        }
    }

    /// The file, unless there is none any more, or no descriptor for it: a mark that is too old refuses
    /// nothing.
    fn open(&mut self, disk: &dyn Disk) -> Result<Option<Arc<dyn DiskFile>>> {
        match self.held.open(disk) {
            Ok(file) => Ok(Some(file)),
            Err(e) if GONE.contains(&e.kind()) => Ok(None),
            Err(e) => match super::view::absent(self.held.path())(e) {
                short if short.shortage() => Ok(None),
                e => Err(e),
            },
        }
    }

    /// Notes that a commit is durable. Not synced: a mark that is too old refuses nothing.
    pub(crate) fn mark(&mut self, disk: &dyn Disk, uuid: [u8; 16], seq: u64) -> Result<()> {
        let record = LockRecord { uuid, seq, pid: std::process::id() };
        let Some(file) = self.open(disk)? else { return Ok(()) };
        match file.write_at(&record.encode(), 0).map_err(Error::io("write", self.held.path())) {
            Ok(()) => self.unsettled = true,
            // A mark that is too old refuses nothing.
            Err(e) if e.shortage() => {}
            Err(e) => return Err(e),
        }
        Ok(())
    }

    /// Makes the last mark durable. Until then a power cut may take it, and with it the proof that
    /// redb took back a commit whose pages have rotted.
    pub(crate) fn settle(&mut self, disk: &dyn Disk) -> Result<()> {
        if self.unsettled
            && !planted::on(Bug::MarkNotSettled)
            && let Some(file) = self.open(disk)?
        {
            file.sync().map_err(Error::io("sync", self.held.path()))?;
            self.unsettled = false;
        }
        Ok(())
    }

    /// Closes the file, if the lock stays.
    pub(crate) fn rest(&mut self) {
        self.held.rest();
    }
}
