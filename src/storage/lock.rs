//! `LOCK`: one writer or many readers, and the high-water mark of commits.

use super::disk::{Disk, DiskFile};
use crate::error::{Error, Result};
use cellardb_format::{HEADER_LEN, LockRecord};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often a lock that another holds is tried again, 5 ms apart.
const PATIENCE: usize = 20;

/// The lock on an index; it ends with this value, or with the process.
#[derive(Debug)]
pub(crate) struct Lock {
    file: Box<dyn DiskFile>,
    path: PathBuf,
    /// What the last writer left: absent if it was never written, or torn by a power cut.
    pub(crate) found: Option<LockRecord>,
}

impl Lock {
    /// Takes the lock, exclusive to write and shared to read.
    pub(crate) fn take(disk: &dyn Disk, dir: &Path, write: bool) -> Result<Self> {
        let path = dir.join("LOCK");
        let open = || match disk.open(&path, write) {
            // It went missing: no lock is held on it, and the mark in it is only a help.
            Err(e) if e.kind() == io::ErrorKind::NotFound => match disk.create(&path) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => disk.open(&path, write),
                other => other,
            },
            other => other,
        };
        let file = open().map_err(super::view::absent(&path))?;
        // A process that is just being forked from this one holds our locks until it becomes another.
        let mut taken = file.try_lock(write).map_err(Error::io("lock", &path))?;
        for _ in 0..PATIENCE {
            if !taken {
                std::thread::sleep(Duration::from_millis(5));
                taken = file.try_lock(write).map_err(Error::io("lock", &path))?;
            }
        }
        let mut bytes = [0; HEADER_LEN];
        let read = file.read_at(&mut bytes, 0).ok();
        let found = read.and_then(|()| LockRecord::parse(&bytes).ok());
        if !taken {
            let pid = found.map(|r| r.pid).filter(|pid| *pid != 0);
            return Err(Error::Locked { path: dir.to_owned(), pid });
        }
        Ok(Self { file, path, found })
    }

    /// Notes that a commit is durable. Not synced: a mark that is too old refuses nothing.
    pub(crate) fn mark(&self, uuid: [u8; 16], seq: u64) -> Result<()> {
        let record = LockRecord { uuid, seq, pid: std::process::id() };
        let done = self.file.write_at(&record.encode(), 0).map_err(Error::io("write", &self.path));
        if done.as_ref().is_err_and(Error::shortage) { Ok(()) } else { done }
    }
}
