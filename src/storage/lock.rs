//! `LOCK`: one writer or many readers, and the high-water mark of commits.

use super::disk::{Disk, DiskFile};
use crate::error::{Error, Result};
use crate::planted::{self, Bug};
use cellardb_format::{HEADER_LEN, LockRecord};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often a lock that another holds is tried again, 5 ms apart.
const PATIENCE: usize = 20;

/// Takes the lock of a file unless another holds it for longer than a process takes to become another:
/// one that is just being forked from this one holds our locks until then.
pub(super) fn patiently(file: &dyn DiskFile, path: &Path, exclusive: bool) -> Result<bool> {
    let mut taken = file.try_lock(exclusive).map_err(Error::io("lock", path))?;
    for _ in 0..PATIENCE {
        if taken {
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
        taken = file.try_lock(exclusive).map_err(Error::io("lock", path))?;
    }
    Ok(taken)
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
    file: Box<dyn DiskFile>,
    path: PathBuf,
    /// What the last writer left: absent if it was never written, or torn by a power cut.
    pub(crate) found: Option<LockRecord>,
    /// Whether a mark was written that a power cut may take.
    unsettled: bool,
}

impl Lock {
    /// Takes the lock, exclusive to write and shared to read.
    pub(crate) fn take(disk: &dyn Disk, dir: &Path, write: bool) -> Result<Self> {
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
                Ok(file) if write && !planted::on(Bug::CatalogNamedTooEarly) => {
                    disk.sync_dir(dir).map(|()| file)
                }
                other => other,
            },
            other => other,
        };
        let mut file = open().map_err(super::view::absent(&path))?;
        let mut taken = false;
        for _ in 0..PATIENCE {
            taken = patiently(&*file, &path, write)?;
            // Another may have taken its place since it was opened.
            if !taken || file.is_at(&path).map_err(Error::io("look for", &path))? {
                break;
            }
            taken = false;
            file = open().map_err(super::view::absent(&path))?;
        }
        let found = record(&*file);
        if !taken && !planted::on(Bug::LockIgnored) {
            let pid = found.map(|r| r.pid).filter(|pid| *pid != 0);
            return Err(Error::Locked { path: dir.to_owned(), pid });
        }
        Ok(Self { file, path, found, unsettled: false })
    }

    /// A record of another index is damage. One that cannot be read is none: a power cut tears it, and
    /// the next writer writes it anew.
    pub(crate) fn verify(&self, uuid: &[u8; 16]) -> Result<()> {
        match record(&*self.file) {
            Some(record) if record.uuid != *uuid => {
                Err(Error::corrupt(&self.path, 8, "this is the lock of another index"))
            }
            _ => Ok(()),
        }
    }

    /// Notes that a commit is durable. Not synced: a mark that is too old refuses nothing.
    pub(crate) fn mark(&mut self, uuid: [u8; 16], seq: u64) -> Result<()> {
        let record = LockRecord { uuid, seq, pid: std::process::id() };
        match self.file.write_at(&record.encode(), 0).map_err(Error::io("write", &self.path)) {
            Ok(()) => self.unsettled = true,
            // A mark that is too old refuses nothing.
            Err(e) if e.shortage() => {}
            Err(e) => return Err(e),
        }
        Ok(())
    }

    /// Makes the last mark durable. Until then a power cut may take it, and with it the proof that
    /// redb took back a commit whose pages have rotted.
    pub(crate) fn settle(&mut self) -> Result<()> {
        if self.unsettled && !planted::on(Bug::MarkNotSettled) {
            self.file.sync().map_err(Error::io("sync", &self.path))?;
            self.unsettled = false;
        }
        Ok(())
    }
}
