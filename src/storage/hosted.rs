//! A disk of the host. Its code may hold a handle of the index that calls it; what it asks of any index from
//! within is refused instead of waiting for itself.

use super::disk::{Disk, DiskFile};
use super::map::{Hold, Map};
use crate::callback::{Callback, call};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A disk that is called as code of the host.
#[derive(Debug)]
pub(crate) struct Hosted(Arc<dyn Disk>);

/// A file of it.
#[derive(Debug)]
struct HostedFile(Option<Box<dyn DiskFile>>);

impl Hosted {
    pub(crate) fn new(disk: Arc<dyn Disk>) -> Self {
        Self(disk)
    }

    fn call<T>(&self, f: impl FnOnce(&dyn Disk) -> T) -> T {
        call(Callback::Disk, || f(&*self.0))
    }

    fn file(
        &self,
        open: impl FnOnce(&dyn Disk) -> io::Result<Box<dyn DiskFile>>,
    ) -> io::Result<Box<dyn DiskFile>> {
        self.call(open).map(|file| Box::new(HostedFile(Some(file))) as Box<dyn DiskFile>)
    }
}

impl Disk for Hosted {
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.file(|disk| disk.create(path))
    }

    fn open(&self, path: &Path, write: bool) -> io::Result<Box<dyn DiskFile>> {
        self.file(|disk| disk.open(path, write))
    }

    fn reader(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.file(|disk| disk.reader(path))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.call(|disk| disk.create_dir(path))
    }

    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        self.call(|disk| disk.list(path))
    }

    fn is_link(&self, path: &Path) -> io::Result<bool> {
        self.call(|disk| disk.is_link(path))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.call(|disk| disk.rename(from, to))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.call(|disk| disk.remove(path))
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.call(|disk| disk.remove_dir(path))
    }

    fn identity(&self, path: &Path) -> io::Result<Option<(u64, u64)>> {
        self.call(|disk| disk.identity(path))
    }

    fn forget(&self) {
        self.call(|disk| disk.forget());
    }

    fn queue(&self, dir: &Path) -> io::Result<Option<Box<dyn DiskFile>>> {
        let file = self.call(|disk| disk.queue(dir))?;
        Ok(file.map(|file| Box::new(HostedFile(Some(file))) as Box<dyn DiskFile>))
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.call(|disk| disk.sync_dir(path))
    }

    fn sync_all(&self, path: &Path) -> io::Result<()> {
        self.call(|disk| disk.sync_all(path))
    }
}

impl HostedFile {
    fn call<T>(&self, f: impl FnOnce(&dyn DiskFile) -> io::Result<T>) -> io::Result<T> {
        // There until it is dropped.
        let Some(file) = &self.0 else { return Err(io::ErrorKind::NotFound.into()) };
        call(Callback::Disk, || f(&**file))
    }
}

impl DiskFile for HostedFile {
    fn len(&self) -> io::Result<u64> {
        self.call(|file| file.len())
    }

    fn is_empty(&self) -> io::Result<bool> {
        self.call(|file| file.is_empty())
    }

    fn data(&self, from: u64) -> io::Result<Option<Range<u64>>> {
        self.call(|file| file.data(from))
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.call(|file| file.read_at(buf, offset))
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.call(|file| file.write_at(data, offset))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.call(|file| file.set_len(len))
    }

    fn reserve(&self, len: u64) -> io::Result<()> {
        self.call(|file| file.reserve(len))
    }

    fn sync(&self) -> io::Result<()> {
        self.call(|file| file.sync())
    }

    fn try_lock(&self, exclusive: bool) -> io::Result<bool> {
        self.call(|file| file.try_lock(exclusive))
    }

    fn hold(&self, path: &Path) -> io::Result<Option<Hold>> {
        self.call(|file| file.hold(path))
    }

    fn holders(&self) -> Vec<(u32, bool)> {
        let holders = |file: &dyn DiskFile| Ok(file.holders());
        self.call(holders).unwrap_or_default()
    }

    fn identity(&self) -> io::Result<(u64, u64)> {
        self.call(|file| file.identity())
    }

    fn is_at(&self, path: &Path) -> io::Result<bool> {
        self.call(|file| file.is_at(path))
    }

    fn map(&self, len: u64) -> io::Result<Option<Map>> {
        self.call(|file| file.map(len))
    }
}

impl Drop for HostedFile {
    fn drop(&mut self) {
        let file = self.0.take();
        call(Callback::Disk, || drop(file));
    }
}

#[cfg(test)]
mod tests {
    /// The names of the functions that a piece of code begins with `fn`.
    fn functions(code: &str) -> Vec<&str> {
        let names = code.lines().filter_map(|line| line.trim_start().strip_prefix("fn "));
        names.filter_map(|rest| rest.split(['(', '<']).next()).collect()
    }

    /// The body of what begins with `head`, up to the brace that closes it.
    fn body<'a>(code: &'a str, head: &str) -> &'a str {
        let from = code.find(head).unwrap();
        let len = code[from..].find("\n}").unwrap();
        &code[from..from + len]
    }

    #[test]
    fn every_call_of_a_disk_and_of_a_file_is_passed_on() {
        let (seam, ours) = (include_str!("disk.rs"), include_str!("hosted.rs"));
        for (declared, passed_on) in [
            ("pub trait Disk:", "impl Disk for Hosted "),
            ("pub trait DiskFile:", "impl DiskFile for HostedFile"),
        ] {
            let declared = functions(body(seam, declared));
            assert!(declared.len() > 8, "{declared:?}");
            // One that is missing would do what the trait does by default.
            assert_eq!(functions(body(ours, passed_on)), declared);
        }
    }
}
