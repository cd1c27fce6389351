//! A simulated disk on which every operation takes its time: before and after it the thread may give
//! way or sleep, as a seed says, so that the threads of an engine meet in ever new orders.

use crate::data::Rng;
use crate::sim::SimDisk;
use cellardb::{Disk, DiskFile};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Clones are the same disk.
#[derive(Debug, Clone)]
pub struct ShakyDisk {
    pub disk: SimDisk,
    dice: Dice,
}

#[derive(Debug, Clone)]
struct Dice {
    rolled: Arc<AtomicU64>,
    /// How many of 64 operations let others go first.
    polite: u64,
}

impl Dice {
    /// Gives way now and then, and seldom sleeps a moment.
    fn roll(&self) {
        let n = Rng::new(self.rolled.fetch_add(1, Ordering::Relaxed)).next_u64();
        match n % 64 {
            face if face >= self.polite => {}
            _ if n >> 32 & 31 == 0 => std::thread::sleep(Duration::from_micros(n >> 40 & 63)),
            _ => std::thread::yield_now(),
        }
    }

    fn around<T>(&self, job: impl FnOnce() -> T) -> T {
        self.roll();
        let done = job();
        self.roll();
        done
    }
}

impl ShakyDisk {
    pub fn new(disk: SimDisk, seed: u64) -> Self {
        let polite = [0, 1, 4, 16][(seed % 4) as usize];
        Self { disk, dice: Dice { rolled: Arc::new(AtomicU64::new(seed)), polite } }
    }

    fn file(&self, file: io::Result<Box<dyn DiskFile>>) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(ShakyFile { file: file?, dice: self.dice.clone() }))
    }
}

#[derive(Debug)]
struct ShakyFile {
    file: Box<dyn DiskFile>,
    dice: Dice,
}

impl Disk for ShakyDisk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.file(self.dice.around(|| self.disk.create(path)))
    }

    fn open(&self, path: &Path, write: bool) -> io::Result<Box<dyn DiskFile>> {
        self.file(self.dice.around(|| self.disk.open(path, write)))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.disk.create_dir(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        self.disk.list(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.dice.around(|| self.disk.rename(from, to))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.dice.around(|| self.disk.remove(path))
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.dice.around(|| self.disk.sync_dir(path))
    }

    fn sync_all(&self, path: &Path) -> io::Result<()> {
        self.dice.around(|| self.disk.sync_all(path))
    }
}

impl DiskFile for ShakyFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.dice.around(|| self.file.read_at(buf, offset))
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.dice.around(|| self.file.write_at(data, offset))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.dice.around(|| self.file.set_len(len))
    }

    fn sync(&self) -> io::Result<()> {
        self.dice.around(|| self.file.sync())
    }

    fn try_lock(&self, exclusive: bool) -> io::Result<bool> {
        self.file.try_lock(exclusive)
    }
}
