//! A layer between the engine and a disk: it sees every operation before the disk does, and all that
//! it does not change is passed on.

use cellardb::{Disk, DiskFile, Hold, Map};
use std::fmt::Debug;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// What is asked of a disk or of one of its files. Reading lengths and listing names is not here.
#[derive(Debug, Clone, Copy)]
pub enum Call<'a> {
    Create,
    Open { write: bool },
    CreateDir(&'a Path),
    Rename,
    Remove,
    SyncDir,
    SyncAll,
    Read { len: usize },
    Write { file: &'a dyn DiskFile, data: &'a [u8], offset: u64 },
    SetLen { file: &'a dyn DiskFile, len: u64 },
    Reserve { len: u64 },
    Sync,
    Lock,
    Map { len: u64 },
}

/// What a layer does with the calls that come through it.
pub trait Layer: Debug + Clone + Send + Sync + 'static {
    /// Does `job`, which is the call itself, or does not.
    fn around<T>(&self, call: Call<'_>, job: impl FnOnce() -> io::Result<T>) -> io::Result<T>;

    /// A file was closed that had been opened for writing, or not.
    fn closed(&self, write: bool) {
        let _ = write;
    }
}

/// A disk seen through a layer. Clones are the same disk.
#[derive(Debug, Clone)]
pub struct Through<L, D> {
    pub layer: L,
    pub disk: D,
}

#[derive(Debug)]
struct File<L: Layer> {
    layer: L,
    file: Box<dyn DiskFile>,
    write: bool,
}

impl<L: Layer, D> Through<L, D> {
    fn file(&self, file: Box<dyn DiskFile>, write: bool) -> Box<dyn DiskFile> {
        Box::new(File { layer: self.layer.clone(), file, write })
    }
}

impl<L: Layer, D: Disk> Disk for Through<L, D> {
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let file = self.layer.around(Call::Create, || self.disk.create(path))?;
        Ok(self.file(file, true))
    }

    fn open(&self, path: &Path, write: bool) -> io::Result<Box<dyn DiskFile>> {
        let file = self.layer.around(Call::Open { write }, || self.disk.open(path, write))?;
        Ok(self.file(file, write))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.layer.around(Call::CreateDir(path), || self.disk.create_dir(path))
    }

    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        self.disk.list(path)
    }

    fn is_link(&self, path: &Path) -> io::Result<bool> {
        self.disk.is_link(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.layer.around(Call::Rename, || self.disk.rename(from, to))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.layer.around(Call::Remove, || self.disk.remove(path))
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.layer.around(Call::Remove, || self.disk.remove_dir(path))
    }

    fn identity(&self, path: &Path) -> io::Result<Option<(u64, u64)>> {
        self.disk.identity(path)
    }

    fn forget(&self) {
        self.disk.forget();
    }

    fn queue(&self, dir: &Path) -> io::Result<Option<Box<dyn DiskFile>>> {
        let file = self.layer.around(Call::Open { write: false }, || self.disk.queue(dir))?;
        Ok(file.map(|file| self.file(file, false)))
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.layer.around(Call::SyncDir, || self.disk.sync_dir(path))
    }

    fn sync_all(&self, path: &Path) -> io::Result<()> {
        self.layer.around(Call::SyncAll, || self.disk.sync_all(path))
    }
}

impl<L: Layer> DiskFile for File<L> {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn data(&self, from: u64) -> io::Result<Option<Range<u64>>> {
        self.file.data(from)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.layer.around(Call::Read { len: buf.len() }, || self.file.read_at(buf, offset))
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let call = Call::Write { file: &*self.file, data, offset };
        self.layer.around(call, || self.file.write_at(data, offset))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let call = Call::SetLen { file: &*self.file, len };
        self.layer.around(call, || self.file.set_len(len))
    }

    fn reserve(&self, len: u64) -> io::Result<()> {
        self.layer.around(Call::Reserve { len }, || self.file.reserve(len))
    }

    fn sync(&self) -> io::Result<()> {
        self.layer.around(Call::Sync, || self.file.sync())
    }

    fn try_lock(&self, exclusive: bool) -> io::Result<bool> {
        self.layer.around(Call::Lock, || self.file.try_lock(exclusive))
    }

    fn hold(&self, path: &Path) -> io::Result<Option<Hold>> {
        self.file.hold(path)
    }

    fn holders(&self) -> Vec<(u32, bool)> {
        self.file.holders()
    }

    fn identity(&self) -> io::Result<(u64, u64)> {
        self.file.identity()
    }

    fn is_at(&self, path: &Path) -> io::Result<bool> {
        self.file.is_at(path)
    }

    fn map(&self, len: u64) -> io::Result<Option<Map>> {
        self.layer.around(Call::Map { len }, || self.file.map(len))
    }
}

impl<L: Layer> Drop for File<L> {
    fn drop(&mut self) {
        self.layer.closed(self.write);
    }
}
