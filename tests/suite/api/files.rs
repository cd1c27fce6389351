//! Files that are open at a time: an ordinary process may have 1,024.

use cellardb::{Disk, DiskFile, Index, Kind, Maintenance, Metric};
use cellardb_campaign::HOME;
use cellardb_campaign::data::{self, Rng};
use cellardb_campaign::sim::SimDisk;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// A disk that counts the files that are open for writing.
#[derive(Debug, Clone)]
struct Counting {
    disk: SimDisk,
    open: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

#[derive(Debug)]
struct Counted(Box<dyn DiskFile>, Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.1.fetch_sub(1, Relaxed);
    }
}

impl Counting {
    fn counted(&self, file: Box<dyn DiskFile>) -> Box<dyn DiskFile> {
        self.most.fetch_max(self.open.fetch_add(1, Relaxed) + 1, Relaxed);
        Box::new(Counted(file, Arc::clone(&self.open)))
    }
}

impl Disk for Counting {
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.disk.create(path).map(|file| self.counted(file))
    }

    fn open(&self, path: &Path, write: bool) -> io::Result<Box<dyn DiskFile>> {
        let file = self.disk.open(path, write)?;
        Ok(if write { self.counted(file) } else { file })
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.disk.create_dir(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        self.disk.list(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.disk.remove(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.disk.sync_dir(path)
    }

    fn sync_all(&self, path: &Path) -> io::Result<()> {
        self.disk.sync_all(path)
    }
}

impl DiskFile for Counted {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_at(buf, offset)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_at(data, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync()
    }

    fn try_lock(&self, exclusive: bool) -> io::Result<bool> {
        self.0.try_lock(exclusive)
    }
}

#[test]
fn the_number_of_lists_is_no_number_of_open_files() {
    let disk = Counting { disk: SimDisk::new(), open: Arc::default(), most: Arc::default() };
    let options = Index::options(4).kind(Kind::IvfPq).nlist(300).train_at(1_000).memory(256 << 10);
    let options = options.maintenance(Maintenance::Manual).threads(1);
    let index = options.disk(Arc::new(disk.clone())).create(HOME).unwrap();
    let rows = data::vectors(&mut Rng::new(8), 4_000, 4, Metric::L2);
    index.insert_many(&rows[..3_000 * 4]).unwrap();
    index.train().unwrap();
    assert_eq!(index.stats().lists, 300);
    index.insert_many(&rows[3_000 * 4..]).unwrap();
    index.flush().unwrap();
    index.remove_many(&(0..4_000).step_by(2).collect::<Vec<_>>()).unwrap();
    index.compact().unwrap();
    assert!(index.verify().unwrap().damage.is_empty());
    let (most, open) = (disk.most.load(Relaxed), disk.open.load(Relaxed));
    assert!(most <= 20 && open <= 5, "{most} at a time, {open} at the end");
}
