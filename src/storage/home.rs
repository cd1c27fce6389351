//! The place of an index: whether its directory is still where it was when the index was opened.

use super::disk::Disk;
use super::view::MISSING;
use crate::error::{Error, Result};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where the directory of an index was when it was opened, and which one that was.
#[derive(Debug, Clone)]
pub(crate) struct Home {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    /// None where the disk does not tell directories apart: then it is always there.
    identity: Option<(u64, u64)>,
}

impl Home {
    pub(crate) fn new(disk: &Arc<dyn Disk>, dir: &Path) -> Self {
        let identity = disk.identity(dir).ok().flatten();
        Self { disk: Arc::clone(disk), dir: dir.to_owned(), identity }
    }

    /// Whether nothing is there any more, or another directory.
    fn is_away(&self) -> bool {
        let Some(known) = self.identity else { return false };
        match self.disk.identity(&self.dir) {
            Ok(found) => found.is_some_and(|found| found != known),
            Err(e) => is_missing(&e),
        }
    }

    /// Fails if the directory is elsewhere. That it cannot be looked for says nothing against it.
    pub(crate) fn check(&self) -> Result<()> {
        if self.is_away() { Err(Error::Moved { path: self.dir.clone() }) } else { Ok(()) }
    }

    /// What an error means: a file that is missing, or is another, is not damaged where the whole
    /// directory is elsewhere.
    pub(crate) fn explain(&self, e: Error) -> Error {
        self.explained(e, false)
    }

    /// What an error of a change means. A file that was missing and is there may be so because the directory is
    /// back: that says nothing against it, and if it is another it will be found to be.
    pub(crate) fn explain_change(&self, e: Error) -> Error {
        self.explained(e, true)
    }

    fn explained(&self, e: Error, change: bool) -> Error {
        let missed = match &e {
            Error::Corrupt { path, what, .. } if what == MISSING && change => Some(&**path),
            // A file that is made misses its directory.
            Error::Io { op: "create", path, source } if is_missing(source) => path.parent(),
            Error::Io { path, source, .. } if is_missing(source) => Some(&**path),
            Error::Corrupt { .. } => None,
            _ => return e,
        };
        // What is kept open may be of the other.
        self.disk.forget();
        let is_back = |missed| self.identity.is_some() && self.disk.identity(missed).is_ok();
        match self.is_away() || missed.is_some_and(is_back) {
            true => Error::Moved { path: self.dir.clone() },
            false => e,
        }
    }
}

fn is_missing(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}
