//! A lock that outlives its descriptor.

use memmap2::{Advice, MmapOptions, MmapRaw};
use std::fs::{self, File};
use std::io;
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

/// Devices whose file systems were found to keep such locks, and whether they did.
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
    /// A hold on a locked file; `None` where the system does not let it.
    pub(crate) fn new(file: &File) -> io::Result<Option<Self>> {
        let numbers = identity(file)?;
        if known(numbers.0) == Some(false) {
            return Ok(None);
        }
        // No more than an address: the file may be empty, and is not read through it.
        let Ok(map) = MmapOptions::new().len(1).map_raw_read_only(file) else { return Ok(None) };
        if map.advise(Advice::DontFork).is_err() {
            return Ok(None);
        }
        Ok(Some(Self { _map: map, file: numbers }))
    }

    /// Whether a lock was found to be held on when a file of this device was closed.
    pub(crate) fn is_proven(&self) -> bool {
        known(self.file.0) == Some(true)
    }

    /// Notes that it was, or was not, when that was tried.
    pub(crate) fn proven(&self, held: bool) {
        let mut all = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|(device, _)| *device != self.file.0);
        all.push((self.file.0, held));
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

fn known(device: u64) -> Option<bool> {
    let all = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    all.iter().find(|(known, _)| *known == device).map(|(_, held)| *held)
}
