//! redb by itself: on a simulated disk, and on bytes in memory that note how much of them is asked for.

use crate::layer::{Call, Layer};
use cellardb::DiskFile;
use redb::StorageBackend;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

/// redb on a file of a simulated disk.
#[derive(Debug)]
pub struct Backend(pub Box<dyn DiskFile>);

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read_at(out, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_at(data, offset)
    }
}

/// redb on bytes in memory. Clones are the same bytes.
#[derive(Debug, Clone, Default)]
pub struct Bytes(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    bytes: Vec<u8>,
    largest: usize,
    asked: usize,
}

impl Bytes {
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Arc::new(Mutex::new(State { bytes, ..State::default() })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// What the file holds now: an image of a killed process, unless the database was closed.
    pub fn image(&self) -> Vec<u8> {
        self.state().bytes.clone()
    }

    /// How many bytes redb has asked for.
    pub fn asked(&self) -> usize {
        self.state().asked
    }

    /// The largest buffer that redb brought to be filled: it allocates it before it asks.
    pub fn largest(&self) -> usize {
        self.state().largest
    }
}

impl StorageBackend for Bytes {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state().bytes.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let mut state = self.state();
        state.largest = state.largest.max(out.len());
        state.asked += out.len();
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let found = start.checked_add(out.len()).and_then(|end| state.bytes.get(start..end));
        out.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.state().bytes.resize(usize::try_from(len).map_err(io::Error::other)?, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let mut state = self.state();
        let end = start.checked_add(data.len()).ok_or(io::ErrorKind::InvalidInput)?;
        if state.bytes.len() < end {
            state.bytes.resize(end, 0);
        }
        state.bytes[start..end].copy_from_slice(data);
        Ok(())
    }
}

/// Notes the largest buffer that was brought to be filled.
#[derive(Debug, Clone, Default)]
pub struct Watching(pub Arc<AtomicUsize>);

impl Layer for Watching {
    fn around<T>(&self, call: Call<'_>, job: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        if let Call::Read { len } = call {
            self.0.fetch_max(len, Ordering::Relaxed);
        }
        job()
    }
}
