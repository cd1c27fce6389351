//! Read-only maps of committed bytes. Alone names `memmap2`; the only `unsafe` of this room.
#![expect(unsafe_code, reason = "mapping a file is unsafe by nature; the contract is below")]

use memmap2::{Advice, Mmap, MmapOptions};
use std::fs::File;
use std::io;

/// A read-only map of the first bytes of a file.
///
/// # Contract
///
/// The engine holds the lock of the index while a map lives, never truncates a file that a map may
/// cover, and never changes a byte below the committed length; it reads no byte above that. No
/// length, offset or index that an `unsafe` block rests on is read from a map: they come from the
/// sealed catalog and are compared with the length of the map. Another process that ignores the
/// lock and truncates the file can still raise SIGBUS; see SPEC.md, section 1.
#[derive(Debug)]
pub struct Map(Mmap);

impl Map {
    pub(crate) fn new(file: &File, len: u64) -> io::Result<Self> {
        if file.metadata()?.len() < len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let len = usize::try_from(len).map_err(io::Error::other)?;
        // SAFETY: the file is at least `len` bytes long, checked above. The contract of this type
        // keeps the mapped bytes that are read unchanged for as long as the map lives.
        let map = unsafe { MmapOptions::new().len(len).map(file) }?;
        Ok(Self(map))
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Tells the kernel not to read ahead. A hint: failure is of no consequence.
    pub(crate) fn random(&self) {
        let _ = self.0.advise(Advice::Random);
    }

    /// Tells the kernel that a range is wanted soon. A hint: failure is of no consequence.
    pub(crate) fn will_need(&self, offset: usize, len: usize) {
        let _ = self.0.advise_range(Advice::WillNeed, offset, len);
    }
}
