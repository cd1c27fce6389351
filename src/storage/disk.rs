//! The seam between the engine and the operating system: every byte that lasts goes through [`Disk`].

use super::holder;
use super::map::{Hold, Map, identity, identity_at};
use rustix::fs::{Dir, FallocateFlags, Mode, OFlags, SeekFrom};
use rustix::io::{Errno, retry_on_intr};
use std::ffi::OsStr;
use std::fmt::Debug;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// Where the files of an index live. The default is the file system; tests put a simulated disk in
/// its place, which loses and tears what was not synced. The catalog's redb runs on it too.
#[allow(clippy::missing_errors_doc, reason = "each is the error of the system")]
pub trait Disk: Send + Sync + Debug {
    /// Creates a new file for reading and writing; an existing one is an error.
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;
    /// Opens an existing file, for writing too if `write`. What is there but no regular file is an
    /// error of kind `InvalidData`, without waiting for it.
    fn open(&self, path: &Path, write: bool) -> io::Result<Box<dyn DiskFile>>;
    /// Opens an existing file that is only mapped, or read now and then: it may be closed in between.
    fn reader(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.open(path, false)
    }
    /// Creates a directory, and its missing parents with durable names. An existing one is no error.
    fn create_dir(&self, path: &Path) -> io::Result<()>;
    /// The names in a directory, files and directories alike; empty if there is no such directory.
    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>>;
    /// Whether a link lies there, wherever it leads. A disk that has none need not say so.
    fn is_link(&self, path: &Path) -> io::Result<bool> {
        let _ = path;
        Ok(false)
    }
    /// Gives a file another name in the same directory, replacing what has it.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file; one that is gone already is no error.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Removes an empty directory; one that is gone already is no error, one that holds something is. A
    /// disk on which an empty directory takes no room need not do so.
    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        let _ = path;
        Ok(())
    }
    /// Numbers that tell what lies at a path from what took its place, as device and inode; `None` where
    /// the disk has none.
    fn identity(&self, path: &Path) -> io::Result<Option<(u64, u64)>> {
        let _ = path;
        Ok(None)
    }
    /// Closes what is only kept open for later: another directory may be where it was opened.
    fn forget(&self) {}
    /// What those who wait for the lock of an index lock to be the next one; `None` where there is no such thing.
    fn queue(&self, dir: &Path) -> io::Result<Option<Box<dyn DiskFile>>> {
        let _ = dir;
        Ok(None)
    }
    /// Makes the names in a directory durable.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// Makes everything written so far below `path` durable, names included, in one call.
    fn sync_all(&self, path: &Path) -> io::Result<()>;
}

/// An open file of a [`Disk`]. All methods take `&self`; the engine never writes one range from two
/// threads.
#[allow(clippy::missing_errors_doc, reason = "each is the error of the system")]
pub trait DiskFile: Send + Sync + Debug {
    /// The length now.
    fn len(&self) -> io::Result<u64>;
    /// Whether the file is empty.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Where, from `from` on, the next bytes lie that were ever written; `None` if there are no more.
    /// What lies between reads as zeros. A disk that does not know answers with all that there is.
    fn data(&self, from: u64) -> io::Result<Option<Range<u64>>> {
        let len = self.len()?;
        Ok((from < len).then_some(from..len))
    }
    /// Fills `buf` from `offset`; fewer bytes are an error of kind `UnexpectedEof`.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes all of `data` at `offset`, growing the file if needed.
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()>;
    /// Sets the length; new bytes are zero.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Takes room for the first `len` bytes while the length stays as it is, so that neither growing
    /// to there nor writing meets a full disk. Nothing is promised where a disk cannot do that.
    fn reserve(&self, len: u64) -> io::Result<()> {
        let _ = len;
        Ok(())
    }
    /// Makes the contents and the length durable.
    fn sync(&self) -> io::Result<()>;
    /// Takes an advisory lock, exclusive or shared, without waiting; `false` if another holds it. It
    /// ends when the file is dropped or the process dies.
    fn try_lock(&self, exclusive: bool) -> io::Result<bool>;
    /// What holds the exclusive lock that was taken on this file when it is closed; `None` where nothing does,
    /// and the file, which is at this path, stays open.
    fn hold(&self, path: &Path) -> io::Result<Option<Hold>> {
        let _ = path;
        Ok(None)
    }
    /// Who holds a lock on this file now, as far as the system tells: processes, 0 where the one that took it is
    /// gone, and whether exclusively.
    fn holders(&self) -> Vec<(u32, bool)> {
        Vec::new()
    }
    /// Numbers that tell this file from all others that there are. A disk that has none says the same of all.
    fn identity(&self) -> io::Result<(u64, u64)> {
        Ok((0, 0))
    }
    /// Whether the path leads to this file now, and not to another that took its place.
    fn is_at(&self, path: &Path) -> io::Result<bool> {
        let _ = path;
        Ok(true)
    }
    /// Maps the first `len` bytes for reading; `None` where the disk has no maps, and the engine
    /// reads with [`DiskFile::read_at`] instead.
    fn map(&self, len: u64) -> io::Result<Option<Map>> {
        let _ = len;
        Ok(None)
    }
}

/// All pieces of a file that were ever written.
pub(super) fn extents(file: &dyn DiskFile) -> io::Result<Vec<Range<u64>>> {
    let (mut found, mut from) = (Vec::new(), 0);
    while let Some(piece) = file.data(from)?.filter(|piece| piece.end > from) {
        from = piece.end;
        found.push(piece);
    }
    Ok(found)
}

/// The pages of a file that were ever written, each with its place. One that cannot be read is zeros.
pub(super) fn pages(file: &dyn DiskFile) -> io::Result<impl Iterator<Item = (u64, Vec<u8>)> + '_> {
    const PAGE: u64 = 4096;
    let places = extents(file)?.into_iter().flat_map(|Range { start, end }| {
        let places = (start..end).step_by(PAGE as usize);
        places.map(move |at| (at, (end - at).min(PAGE) as usize))
    });
    Ok(places.map(|(at, len)| {
        let mut page = vec![0; len];
        if file.read_at(&mut page, at).is_err() {
            page.fill(0);
        }
        (at, page)
    }))
}

/// The file system.
#[derive(Debug, Clone, Copy, Default)]
pub struct FileSystem;

#[derive(Debug)]
struct RealFile {
    file: File,
    locked: AtomicBool,
}

impl RealFile {
    fn new(file: File) -> Self {
        Self { file, locked: AtomicBool::new(false) }
    }
}

impl Drop for RealFile {
    fn drop(&mut self) {
        // A child that was forked from us has the same open file, and with it would hold the lock on.
        if *self.locked.get_mut() {
            let _ = self.file.unlock();
        }
    }
}

/// Calls again what a signal has interrupted: some file systems let it.
fn patiently<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// The names in a directory. Not by `fs::read_dir`, which panics where closing fails.
fn names(path: &Path) -> io::Result<Vec<PathBuf>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut names = Vec::new();
    for entry in Dir::new(rustix::fs::open(path, flags, Mode::empty())?)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(path.join(OsStr::from_bytes(name)));
        }
    }
    Ok(names)
}

impl Disk for FileSystem {
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
        Ok(Box::new(RealFile::new(file)))
    }

    fn open(&self, path: &Path, write: bool) -> io::Result<Box<dyn DiskFile>> {
        let special = || io::Error::new(io::ErrorKind::InvalidData, "not a regular file");
        // A FIFO would keep us waiting for its other end.
        let at_once = OFlags::NONBLOCK.bits().cast_signed();
        let file = OpenOptions::new().read(true).write(write).custom_flags(at_once).open(path);
        match file {
            Ok(file) if patiently(|| file.metadata())?.is_file() => {
                Ok(Box::new(RealFile::new(file)))
            }
            // A directory, or a link that leads to itself.
            Err(e) => match Errno::from_io_error(&e) {
                Some(Errno::ISDIR | Errno::LOOP) => Err(special()),
                _ => Err(e),
            },
            Ok(_) => Err(special()),
        }
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        match patiently(|| fs::create_dir(path)) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => match path.is_dir() {
                true => Ok(()),
                false => Err(io::ErrorKind::NotADirectory.into()),
            },
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let Some(parent) = path.parent().filter(|p| *p != Path::new("")) else {
                    return Err(e);
                };
                self.create_dir(parent)?;
                let above = parent.parent().filter(|p| *p != Path::new(""));
                self.sync_dir(above.unwrap_or(Path::new(".")))?;
                patiently(|| fs::create_dir(path))
            }
            other => other,
        }
    }

    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        match patiently(|| names(path)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            other => other,
        }
    }

    fn is_link(&self, path: &Path) -> io::Result<bool> {
        match patiently(|| fs::symlink_metadata(path)) {
            Ok(there) => Ok(there.is_symlink()),
            Err(e)
                if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
            {
                Ok(false)
            }
            Err(e) => Err(e),
        }
    }

    #[expect(clippy::disallowed_methods, reason = "this is the seam that the others go through")]
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        patiently(|| fs::rename(from, to))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        match patiently(|| fs::remove_file(path)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        match patiently(|| fs::remove_dir(path)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    fn identity(&self, path: &Path) -> io::Result<Option<(u64, u64)>> {
        let there = patiently(|| fs::metadata(path))?;
        Ok(Some((there.dev(), there.ino())))
    }

    fn queue(&self, dir: &Path) -> io::Result<Option<Box<dyn DiskFile>>> {
        Ok(Some(Box::new(RealFile::new(File::open(dir)?))))
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn sync_all(&self, path: &Path) -> io::Result<()> {
        let dir = File::open(path)?;
        Ok(retry_on_intr(|| rustix::fs::syncfs(&dir))?)
    }
}

impl DiskFile for RealFile {
    fn len(&self) -> io::Result<u64> {
        Ok(patiently(|| self.file.metadata())?.len())
    }

    fn data(&self, from: u64) -> io::Result<Option<Range<u64>>> {
        let len = self.len()?;
        let seek = |to| rustix::fs::seek(&self.file, to);
        let start = match seek(SeekFrom::Data(from)) {
            Ok(start) => start,
            Err(Errno::NXIO) => return Ok(None),
            // This file system does not know.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok((from < len).then_some(from..len)),
            Err(e) => return Err(e.into()),
        };
        match seek(SeekFrom::Hole(start)) {
            Ok(end) => Ok((start < end).then_some(start..end)),
            // It was cut in between.
            Err(Errno::NXIO) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(data, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn reserve(&self, len: u64) -> io::Result<()> {
        // XFS wants room even to find that there is enough.
        if patiently(|| self.file.metadata())?.blocks() >= len.div_ceil(512) {
            return Ok(());
        }
        let keep = FallocateFlags::KEEP_SIZE;
        match retry_on_intr(|| rustix::fs::fallocate(&self.file, keep, 0, len)) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
            other => Ok(other?),
        }
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn try_lock(&self, exclusive: bool) -> io::Result<bool> {
        let file = &self.file;
        patiently(|| match if exclusive { file.try_lock() } else { file.try_lock_shared() } {
            Ok(()) => {
                self.locked.store(true, Ordering::Relaxed);
                Ok(true)
            }
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(e)) => Err(e),
        })
    }

    fn hold(&self, path: &Path) -> io::Result<Option<Hold>> {
        let hold = patiently(|| Hold::new(&self.file, path))?;
        if hold.is_some() {
            // Closing the file is not to end the lock from now on.
            self.locked.store(false, Ordering::Relaxed);
        }
        Ok(hold)
    }

    fn holders(&self) -> Vec<(u32, bool)> {
        let Ok(found) = self.file.metadata() else { return Vec::new() };
        // A process of another pid namespace is not listed.
        let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
        let mut holders = holder::parse(&locks, found.dev(), found.ino());
        for (pid, _) in &mut holders {
            // A child may hold it on.
            *pid = if Path::new(&format!("/proc/{pid}")).exists() { *pid } else { 0 };
        }
        holders
    }

    fn identity(&self) -> io::Result<(u64, u64)> {
        patiently(|| identity(&self.file))
    }

    fn is_at(&self, path: &Path) -> io::Result<bool> {
        let ours = self.identity()?;
        Ok(patiently(|| identity_at(path))? == Some(ours))
    }

    fn map(&self, len: u64) -> io::Result<Option<Map>> {
        Map::new(&self.file, len).map(Some)
    }
}
