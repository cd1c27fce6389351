//! A locked file that is open only while it is used.

use super::disk::{Disk, DiskFile};
use super::map::Hold;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A file on which a lock is held for as long as this value lives.
#[derive(Debug)]
pub(super) struct Held {
    path: PathBuf,
    /// The file, while it is open: the one that the lock belongs to, where that cannot be held otherwise.
    file: Option<Arc<dyn DiskFile>>,
    hold: Option<Hold>,
}

impl Held {
    /// Holds the lock that was taken on a file.
    pub(super) fn new(file: Arc<dyn DiskFile>, path: &Path) -> Self {
        Self { path: path.to_owned(), file: Some(file), hold: None }
    }

    /// Holds the lock, which is exclusive, without a descriptor from now on, if the system lets it. Nobody else has
    /// the file open.
    pub(super) fn let_go(&mut self) -> io::Result<()> {
        if let Some(file) = self.file.as_ref().filter(|_| self.hold.is_none())
            && let Some(hold) = file.hold(&self.path)?
        {
            (self.file, self.hold) = (None, Some(hold));
        }
        Ok(())
    }

    /// The file, opened if need be. Another that took its place is none.
    pub(super) fn open(&mut self, disk: &dyn Disk) -> io::Result<Arc<dyn DiskFile>> {
        if let Some(file) = &self.file {
            return Ok(Arc::clone(file));
        }
        let file: Arc<dyn DiskFile> = Arc::from(disk.open(&self.path, true)?);
        let ours = self.hold.as_ref().map(Hold::identity);
        if ours.is_some_and(|ours| file.identity().is_ok_and(|found| found != ours)) {
            return Err(io::ErrorKind::NotFound.into());
        }
        self.file = Some(Arc::clone(&file));
        Ok(file)
    }

    /// Closes the file, if the lock stays.
    pub(super) fn rest(&mut self) {
        if self.hold.is_some() {
            self.file = None;
        }
    }

    /// Whether the path leads to the file.
    pub(super) fn is_at(&self, path: &Path) -> io::Result<bool> {
        match (&self.hold, &self.file) {
            (Some(hold), _) => hold.is_at(path),
            (None, Some(file)) => file.is_at(path),
            (None, None) => Ok(false),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}
