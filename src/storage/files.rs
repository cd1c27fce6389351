//! The files that an index reads, of which few are open at a time: a map needs none, and what has no map
//! is opened when it is read. What is at a path may be another file by then; every read without a map is
//! verified by checksums that cover which bytes of which file they are (SPEC.md, section 3).

use super::disk::{Disk, DiskFile};
use super::map::{self, Map};
use crate::options::Reads;
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A disk whose readers share a few open files.
#[derive(Debug, Clone)]
pub(crate) struct Files(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    disk: Arc<dyn Disk>,
    reads: Reads,
    guard: bool,
    /// Files that are open, the one that was read last at the end.
    open: Mutex<Vec<(u64, Arc<dyn DiskFile>)>>,
    most: usize,
    numbers: AtomicU64,
}

/// A file that is read now and then.
#[derive(Debug)]
struct Reader {
    shared: Arc<Shared>,
    number: u64,
    path: PathBuf,
}

impl Files {
    pub(crate) fn new(disk: Arc<dyn Disk>, reads: Reads, guard: bool) -> Self {
        // A part of what the process may open.
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(1024);
        let most = usize::try_from(limit / 8).unwrap_or(usize::MAX).clamp(4, 256);
        let (open, numbers) = (Mutex::default(), AtomicU64::new(0));
        Self(Arc::new(Shared { disk, reads, guard, open, most, numbers }))
    }
}

impl Shared {
    fn open(&self) -> MutexGuard<'_, Vec<(u64, Arc<dyn DiskFile>)>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a file; if too many are open those that are only kept for later are closed first.
    fn with_room<T>(&self, open: impl Fn() -> io::Result<T>) -> io::Result<T> {
        match open() {
            Err(e) if Errno::from_io_error(&e) == Some(Errno::MFILE) && !self.open().is_empty() => {
                self.open().clear();
                open()
            }
            other => other,
        }
    }

    /// The open file of a reader.
    fn file(&self, number: u64, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let known = self.forget(number);
        let file = match known {
            Some(file) => file,
            None => Arc::from(self.with_room(|| self.disk.open(path, false))?),
        };
        let mut open = self.open();
        open.push((number, Arc::clone(&file)));
        if open.len() > self.most {
            open.remove(0);
        }
        Ok(file)
    }

    fn forget(&self, number: u64) -> Option<Arc<dyn DiskFile>> {
        let mut open = self.open();
        let at = open.iter().rposition(|(of, _)| *of == number)?;
        Some(open.remove(at).1)
    }
}

impl Disk for Files {
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.0.with_room(|| self.0.disk.create(path))
    }

    fn open(&self, path: &Path, write: bool) -> io::Result<Box<dyn DiskFile>> {
        self.0.with_room(|| self.0.disk.open(path, write))
    }

    fn reader(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let (shared, path) = (Arc::clone(&self.0), path.to_owned());
        let number = shared.numbers.fetch_add(1, Ordering::Relaxed);
        shared.file(number, &path)?;
        Ok(Box::new(Reader { shared, number, path }))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.0.disk.create_dir(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        self.0.with_room(|| self.0.disk.list(path))
    }

    fn is_link(&self, path: &Path) -> io::Result<bool> {
        self.0.disk.is_link(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.disk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.0.disk.remove(path)
    }

    fn queue(&self, dir: &Path) -> io::Result<Option<Box<dyn DiskFile>>> {
        self.0.with_room(|| self.0.disk.queue(dir))
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.0.with_room(|| self.0.disk.sync_dir(path))
    }

    fn sync_all(&self, path: &Path) -> io::Result<()> {
        self.0.with_room(|| self.0.disk.sync_all(path))
    }
}

impl Reader {
    fn file(&self) -> io::Result<Arc<dyn DiskFile>> {
        self.shared.file(self.number, &self.path)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.shared.forget(self.number);
    }
}

impl DiskFile for Reader {
    fn len(&self) -> io::Result<u64> {
        self.file()?.len()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        match self.file()?.read_at(buf, offset) {
            // Another file may have taken its place since it was opened.
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                self.shared.forget(self.number);
                self.file()?.read_at(buf, offset)
            }
            other => other,
        }
    }

    fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn set_len(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn sync(&self) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn try_lock(&self, _: bool) -> io::Result<bool> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn map(&self, len: u64) -> io::Result<Option<Map>> {
        if self.shared.reads == Reads::Copy {
            return Ok(None);
        }
        let map = self.file()?.map(len)?;
        if map.is_some() {
            if self.shared.guard {
                map::install();
            }
            self.shared.forget(self.number);
        }
        Ok(map)
    }
}
