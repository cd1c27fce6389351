//! A disk in memory that shares its files with the image that they come from until one is written:
//! to lay out an index takes a microsecond, so that every bit of it can be flipped.

use super::Files;
use cellardb::{Disk, DiskFile};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

/// What a name leads to.
#[derive(Debug, Clone)]
pub enum Node {
    File(Arc<Inode>),
    Dir,
    /// A file that the system does not let us open.
    Denied,
}

#[derive(Debug, Default)]
pub struct Inode {
    bytes: Mutex<Arc<Vec<u8>>>,
    /// How many hold it shared, or -1 for exclusive.
    locks: Mutex<i32>,
}

/// The disk. Clones are the same disk; nothing on it is ever lost.
#[derive(Debug, Clone, Default)]
pub struct Shelf(Arc<Mutex<BTreeMap<PathBuf, Node>>>);

#[derive(Debug)]
struct ShelfFile {
    inode: Arc<Inode>,
    write: bool,
    held: Mutex<i32>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

impl Shelf {
    /// A disk with these files.
    pub fn of(files: &Files) -> Self {
        let shelf = Self::default();
        for (path, bytes) in files {
            shelf.put(path, Arc::clone(bytes));
        }
        shelf
    }

    /// Puts a file in the place of what was there.
    pub fn put(&self, path: &Path, bytes: Arc<Vec<u8>>) {
        let inode = Inode { bytes: Mutex::new(bytes), locks: Mutex::new(0) };
        self.set(path, Node::File(Arc::new(inode)));
    }

    /// Puts anything in the place of what was there.
    pub fn set(&self, path: &Path, node: Node) {
        lock(&self.0).insert(path.to_owned(), node);
    }

    /// Removes what is there.
    pub fn take(&self, path: &Path) {
        lock(&self.0).remove(path);
    }

    /// All files, shared.
    pub fn dump(&self) -> Files {
        let nodes = lock(&self.0);
        let file = |(path, node): (&PathBuf, &Node)| match node {
            Node::File(inode) => Some((path.clone(), Arc::clone(&lock(&inode.bytes)))),
            Node::Dir | Node::Denied => None,
        };
        nodes.iter().filter_map(file).collect()
    }

    fn find(&self, path: &Path) -> Option<Node> {
        let nodes = lock(&self.0);
        let below = |path: &Path| nodes.range(path.to_owned()..).next().map(|(found, _)| found);
        match nodes.get(path) {
            Some(node) => Some(node.clone()),
            // A directory need not be told of if something lies in it.
            None if below(path).is_some_and(|found| found.starts_with(path)) => Some(Node::Dir),
            None => None,
        }
    }
}

/// Sets a length, and takes no more memory than that: it is measured.
fn grow(bytes: &mut Vec<u8>, len: usize) {
    bytes.reserve_exact(len.saturating_sub(bytes.len()));
    bytes.resize(len, 0);
}

fn open(inode: Arc<Inode>, write: bool) -> Box<dyn DiskFile> {
    Box::new(ShelfFile { inode, write, held: Mutex::new(0) })
}

impl Disk for Shelf {
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        if self.find(path).is_some() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let inode = Arc::new(Inode::default());
        self.set(path, Node::File(Arc::clone(&inode)));
        Ok(open(inode, true))
    }

    fn open(&self, path: &Path, write: bool) -> io::Result<Box<dyn DiskFile>> {
        match self.find(path) {
            Some(Node::File(inode)) => Ok(open(inode, write)),
            Some(Node::Dir) => Err(io::ErrorKind::InvalidData.into()),
            Some(Node::Denied) => Err(io::ErrorKind::PermissionDenied.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        match self.find(path) {
            Some(Node::Dir) => Ok(()),
            Some(_) => Err(io::ErrorKind::AlreadyExists.into()),
            None => {
                self.set(path, Node::Dir);
                Ok(())
            }
        }
    }

    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        match self.find(path) {
            Some(Node::Dir) => {}
            Some(_) => return Err(io::ErrorKind::NotADirectory.into()),
            None => return Ok(Vec::new()),
        }
        let nodes = lock(&self.0);
        let depth = path.components().count() + 1;
        let below = nodes.range(path.to_owned()..).map(|(found, _)| found);
        let below = below.take_while(|found| found.starts_with(path));
        let mut names: Vec<PathBuf> =
            below.map(|found| found.components().take(depth).collect()).collect();
        names.dedup();
        names.retain(|name| name != path);
        Ok(names)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut nodes = lock(&self.0);
        let node = nodes.remove(from).ok_or(io::ErrorKind::NotFound)?;
        nodes.insert(to.to_owned(), node);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        match self.find(path) {
            Some(Node::Dir) => Err(io::ErrorKind::IsADirectory.into()),
            Some(_) => {
                lock(&self.0).remove(path);
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        if !self.list(path)?.is_empty() {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        lock(&self.0).remove(path);
        Ok(())
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn sync_all(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }
}

impl ShelfFile {
    fn change(&self, change: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        if !self.write {
            return Err(io::Error::from_raw_os_error(9));
        }
        change(Arc::make_mut(&mut lock(&self.inode.bytes)));
        Ok(())
    }

    fn unlock(&self) {
        let held = std::mem::take(&mut *lock(&self.held));
        *lock(&self.inode.locks) -= held;
    }
}

impl DiskFile for ShelfFile {
    fn len(&self) -> io::Result<u64> {
        Ok(lock(&self.inode.bytes).len() as u64)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let bytes = lock(&self.inode.bytes);
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let found = start.checked_add(buf.len()).and_then(|end| bytes.get(start..end));
        buf.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        self.change(|bytes| {
            let end = start + data.len();
            if bytes.len() < end {
                grow(bytes, end);
            }
            bytes[start..end].copy_from_slice(data);
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let len = usize::try_from(len).map_err(io::Error::other)?;
        if len > 1 << 32 {
            return Err(io::Error::from_raw_os_error(28));
        }
        self.change(|bytes| grow(bytes, len))
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn try_lock(&self, exclusive: bool) -> io::Result<bool> {
        self.unlock();
        let mut locks = lock(&self.inode.locks);
        let free = if exclusive { *locks == 0 } else { *locks >= 0 };
        if free {
            let held = if exclusive { -1 } else { 1 };
            *locks += held;
            *lock(&self.held) = held;
        }
        Ok(free)
    }
}

impl Drop for ShelfFile {
    fn drop(&mut self) {
        self.unlock();
    }
}
