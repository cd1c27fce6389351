//! Read-only maps of committed bytes, and what a process that maps files must know of the system. Alone
//! names `memmap2` and `libc`; the only `unsafe` of this room.
#![expect(unsafe_code, reason = "mapping a file is unsafe by nature; the contract is below")]

mod fork;
mod guard;
mod hold;

pub(crate) use fork::Process;
pub(crate) use guard::{install, lost_maps};
pub use hold::Hold;
pub(crate) use hold::{identity, identity_at};

use guard::Watch;
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
/// sealed catalog and are compared with the length of the map.
///
/// Other processes may ignore the lock. Where one truncates the file, or the disk cannot be read, the
/// access to a page that is no longer there would kill the process: the guard puts zeros in its place,
/// and the map is *lost* from then on. Whoever reads through a map asks afterwards whether one was
/// lost meanwhile, and then believes nothing of what was read. Where another process overwrites
/// bytes that were verified already, nobody notices, but nothing worse than a wrong answer comes of it:
/// whoever shares a directory with such processes reads without maps (SPEC.md, section 1).
#[derive(Debug)]
pub struct Map {
    // Dropped before the pages are given back: the guard must not know them any more by then.
    watch: Watch,
    bytes: Mmap,
}

impl Map {
    pub(crate) fn new(file: &File, len: u64) -> io::Result<Self> {
        if file.metadata()?.len() < len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let len = usize::try_from(len).map_err(io::Error::other)?;
        // SAFETY: the file is at least `len` bytes long, checked above. The contract of this type
        // keeps the mapped bytes that are read unchanged for as long as the map lives; where another
        // process breaks it, no `unsafe` code relies on what the bytes are.
        let bytes = unsafe { MmapOptions::new().len(len).map(file) }?;
        let watch = Watch::new(&bytes)?;
        Ok(Self { watch, bytes })
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether pages of the map were replaced by zeros.
    pub(crate) fn is_lost(&self) -> bool {
        self.watch.is_lost()
    }

    /// Tells the kernel not to read ahead. A hint: failure is of no consequence.
    pub(crate) fn random(&self) {
        let _ = self.bytes.advise(Advice::Random);
    }

    /// Tells the kernel that a range is wanted soon. A hint: failure is of no consequence.
    pub(crate) fn will_need(&self, offset: usize, len: usize) {
        let _ = self.bytes.advise_range(Advice::WillNeed, offset, len);
    }
}
