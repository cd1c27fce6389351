//! A lock that outlives its descriptor.

use memmap2::{Advice, MmapOptions, MmapRaw};
use rustix::fs::{Mode, OFlags};
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// Holds the exclusive lock that was taken on a file when that is closed: a map of it, which nobody touches,
/// keeps the open file, to which the lock belongs, alive. A thousand idle indexes take no descriptor so. A
/// forked child does not have the map, and so not the lock.
#[derive(Debug)]
pub struct Hold {
    _map: MmapRaw,
    file: (u64, u64),
}

/// Devices whose file systems were found to let a map keep a lock, or not to.
static KNOWN: Mutex<Vec<(u64, bool)>> = Mutex::new(Vec::new());

/// The numbers that tell a file from all others.
pub(crate) fn identity(file: &File) -> io::Result<(u64, u64)> {
    let found = file.metadata()?;
    Ok((found.dev(), found.ino()))
}

/// The numbers of the file that a path leads to, if there is one.
pub(crate) fn identity_at(path: &Path) -> io::Result<Option<(u64, u64)>> {
    match fs::metadata(path) {
        Ok(there) => Ok(Some((there.dev(), there.ino()))),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

impl Hold {
    /// A hold on a locked file at a path; `None` where the system does not let it.
    pub(crate) fn new(file: &File, path: &Path) -> io::Result<Option<Self>> {
        let numbers = identity(file)?;
        let folder = path.parent().unwrap_or(Path::new("."));
        if !known(numbers.0).unwrap_or_else(|| tried(numbers.0, folder)) {
            return Ok(None);
        }
        Ok(keep(file).map(|map| Self { _map: map, file: numbers }))
    }

    /// The numbers of the file.
    pub(crate) fn identity(&self) -> (u64, u64) {
        self.file
    }

    /// Whether a path leads to the file.
    pub(crate) fn is_at(&self, path: &Path) -> io::Result<bool> {
        Ok(identity_at(path)? == Some(self.file))
    }
}

/// Keeps an open file alive.
fn keep(file: &File) -> Option<MmapRaw> {
    // No more than an address: the file may be empty, and is not read through it.
    let map = MmapOptions::new().len(1).map_raw_read_only(file).ok()?;
    map.advise(Advice::DontFork).ok().map(|()| map)
}

fn known(device: u64) -> Option<bool> {
    let all = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    all.iter().find(|(known, _)| *known == device).map(|(_, held)| *held)
}

/// Whether a lock is held on when its file is closed: no manual says so, and a file system that hands its maps to
/// another gives it up. Tried once for each device, on a file without a name, which nobody else can lock.
fn tried(device: u64, folder: &Path) -> bool {
    let Some(held) = try_it(folder) else { return false };
    let mut all = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    all.push((device, held));
    held
}

/// `None` if it cannot be tried now.
fn try_it(folder: &Path) -> Option<bool> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let first = File::from(rustix::fs::open(folder, flags, Mode::RUSR | Mode::WUSR).ok()?);
    let second = File::open(format!("/proc/self/fd/{}", first.as_raw_fd())).ok()?;
    if first.try_lock().is_err() || second.try_lock().is_ok() {
        return None;
    }
    let map = keep(&first)?;
    drop(first);
    let held = matches!(second.try_lock(), Err(TryLockError::WouldBlock));
    drop(map);
    Some(held)
}
