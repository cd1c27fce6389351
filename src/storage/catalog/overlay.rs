//! redb in memory, over a file that is only read.

use super::header;
use crate::storage::disk::DiskFile;
use redb::StorageBackend;
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A file, and over it pages in memory, which is where writes go.
#[derive(Debug)]
pub(super) struct Overlay {
    file: Arc<dyn DiskFile>,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    len: u64,
    /// Bytes of the file below this are still valid: a cut and a growth after it read as zeros.
    base: u64,
    pages: BTreeMap<u64, Vec<u8>>,
    /// What comes from now on is not wanted.
    frozen: bool,
}

const PAGE: u64 = 4096;

impl Overlay {
    pub(super) fn new(file: Arc<dyn DiskFile>, len: u64) -> Self {
        let state = State { len, base: len, pages: BTreeMap::new(), frozen: false };
        Self { file, state: Arc::new(Mutex::new(state)) }
    }

    /// The same pages once more, to be read when redb, which owns the other, is done.
    pub(super) fn again(&self) -> Self {
        Self { file: Arc::clone(&self.file), state: Arc::clone(&self.state) }
    }

    /// Leaves the pages as they are: redb is about to close them.
    pub(super) fn freeze(&self) {
        self.state().frozen = true;
    }

    /// Writes the pages to the file, neighbours together, and makes the file as long as redb had it.
    pub(super) fn write(&self) -> io::Result<()> {
        let mut state = self.state();
        if let Some(mut first) = state.pages.remove(&0) {
            if let Some((head, _)) = first.split_first_chunk_mut::<{ header::LEN }>() {
                *head = header::closed(head).unwrap_or(*head);
            }
            state.pages.insert(0, first);
        }
        let mut run: (u64, Vec<u8>) = (0, Vec::new());
        for (number, page) in &state.pages {
            if run.0 + run.1.len() as u64 != number * PAGE {
                self.file.write_at(&run.1, run.0)?;
                run = (number * PAGE, Vec::new());
            }
            run.1.extend_from_slice(page);
        }
        self.file.write_at(&run.1, run.0)?;
        self.file.set_len(state.len)
    }

    fn page(&self, state: &State, number: u64) -> io::Result<Vec<u8>> {
        if let Some(page) = state.pages.get(&number) {
            return Ok(page.clone());
        }
        let mut page = vec![0; PAGE as usize];
        let start = number * PAGE;
        if start < state.base {
            let n = (state.base - start).min(PAGE) as usize;
            let (head, _) = page.split_at_mut(n);
            self.file.read_at(head, start)?;
        }
        Ok(page)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Overlay {
    fn active(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.state();
        match state.frozen {
            true => Err(io::Error::other("the catalog is finished")),
            false => Ok(state),
        }
    }
}

impl StorageBackend for Overlay {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state().len)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.state();
        if offset.saturating_add(out.len() as u64) > state.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if state.pages.is_empty() && offset + out.len() as u64 <= state.base {
            return self.file.read_at(out, offset);
        }
        let (mut at, mut rest) = (offset, out);
        while !rest.is_empty() {
            let page = self.page(&state, at / PAGE)?;
            let from = (at % PAGE) as usize;
            let n = rest.len().min(page.len() - from);
            let (head, tail) = rest.split_at_mut(n);
            head.copy_from_slice(&page[from..from + n]);
            (at, rest) = (at + n as u64, tail);
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.active()?;
        if len < state.len {
            let last = len / PAGE;
            if !len.is_multiple_of(PAGE) {
                let mut page = self.page(&state, last)?;
                page[(len % PAGE) as usize..].fill(0);
                state.pages.insert(last, page);
            }
            state.base = state.base.min(len);
            state.pages.retain(|number, _| number * PAGE < len);
        }
        state.len = len;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.active()?;
        let (mut at, mut rest) = (offset, data);
        while !rest.is_empty() {
            let mut page = self.page(&state, at / PAGE)?;
            let from = (at % PAGE) as usize;
            let n = rest.len().min(page.len() - from);
            let (head, tail) = rest.split_at(n);
            page[from..from + n].copy_from_slice(head);
            state.pages.insert(at / PAGE, page);
            (at, rest) = (at + n as u64, tail);
        }
        Ok(())
    }
}
