//! What the file of the catalog says of itself before redb opens it: whether it was closed, and how long it
//! is. A file may have been made longer by terabytes that nothing is in.

use crate::storage::disk::{DiskFile, extents};
use std::io;
use std::ops::Range;

/// The header of redb, as far as it is looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Head {
    /// The last writer did not close the file.
    pub(super) unclean: bool,
    /// The length of its regions. No checksum covers it, and a crash may tear it.
    pub(super) len: u64,
}

/// What redb takes for a page, unless it is told otherwise.
const PAGE: u64 = 4096;

/// redb grows a file by as much as it has at most, and a small one by more.
const LEAST: u64 = 8 << 20;

/// The header, and the length that counts: without the end if that was never written and is longer than redb
/// would have grown the file.
pub(super) fn measure(file: &dyn DiskFile, found: u64) -> io::Result<(Head, u64)> {
    let mut bytes = [0; 32];
    if found < bytes.len() as u64 {
        return Ok((Head::default(), found));
    }
    file.read_at(&mut bytes, 0)?;
    let head = Head::parse(&bytes);
    let most = |used: u64| used.max(LEAST).saturating_mul(2);
    if found <= most(head.len) {
        return Ok((head, found));
    }
    let written = extents(file)?.last().map_or(0, |last| last.end);
    let used = written.max(head.len.min(found)).next_multiple_of(4096);
    Ok((head, if found > most(used) { used } else { found }))
}

/// Looks whether the header that redb has given to a file of this length, which it has open for writing, says
/// what [`Head`] understands. A redb that says it elsewhere would have us leave out [`write_again`] after an
/// unclean end, and notice nothing.
pub(super) fn recognise(header: &[u8], len: u64) -> io::Result<()> {
    let head = header.first_chunk().map(Head::parse).unwrap_or_default();
    // A region takes a page and more, and the header one.
    if head.unclean && (2 * PAGE..=len).contains(&head.len) {
        return Ok(());
    }
    let why = "redb gave it a header that this cellardb does not know; build it with redb 4.6";
    Err(io::Error::new(io::ErrorKind::Unsupported, why))
}

impl Head {
    /// Behind the magic number, 9 bytes: flags u8, of which 2 says that it was not closed; zero 2; and as u32
    /// the size of a page, the pages of a region before its data, its data at most, full regions, and the
    /// pages of data in the last.
    fn parse(bytes: &[u8; 32]) -> Self {
        if !bytes.starts_with(b"redb") {
            return Self::default();
        }
        let word = |at: usize| {
            let word = bytes.get(at..).and_then(|rest| rest.first_chunk::<4>());
            u64::from(word.map_or(0, |word| u32::from_le_bytes(*word)))
        };
        let (page, before, data, full, last) = (word(12), word(16), word(20), word(24), word(28));
        let rest = if last > 0 { before + last } else { 0 };
        let pages = (before + data).saturating_mul(full).saturating_add(rest).saturating_add(1);
        Self { unclean: bytes[9] & 2 != 0, len: pages.saturating_mul(page) }
    }
}

/// Writes the same bytes once more and syncs them. After a sync that failed, the system may keep pages
/// in its cache that it counts as written; they look whole, so redb would build on them, no later sync
/// would write them, and a power cut would take all that was built. To redb a cut in the midst of
/// this is one before its last sync. Space that was never written, at the end, stays so; within `sure` it is
/// not left to the file system to say what was.
pub(super) fn write_again(file: &dyn DiskFile, len: u64, sure: u64) -> io::Result<()> {
    let mut chunk = vec![0; AGAIN];
    let mut empty = true;
    for piece in pieces(file, len, sure)?.into_iter().rev() {
        let mut to = piece.end;
        while to > piece.start {
            let from = ((to - 1) / AGAIN as u64 * AGAIN as u64).max(piece.start);
            let (head, _) = chunk.split_at_mut((to - from) as usize);
            file.read_at(head, from)?;
            let end = if empty { head.len() - trailing_zeros(head) } else { head.len() };
            if end > 0 {
                file.write_at(&head[..end], from)?;
                empty = false;
            }
            to = from;
        }
    }
    file.sync()
}

/// So much is written again at a time.
const AGAIN: usize = 1 << 20;

/// The first `sure` bytes, and what was written behind them.
fn pieces(file: &dyn DiskFile, len: u64, sure: u64) -> io::Result<Vec<Range<u64>>> {
    let sure = sure.min(len);
    let mut pieces: Vec<Range<u64>> = std::iter::once(0..sure).collect();
    for piece in extents(file)? {
        let piece = piece.start.max(sure)..piece.end.min(len);
        match pieces.last_mut() {
            Some(last) if last.end == piece.start => last.end = last.end.max(piece.end),
            _ if piece.start < piece.end => pieces.push(piece),
            _ => {}
        }
    }
    Ok(pieces)
}

fn trailing_zeros(bytes: &[u8]) -> usize {
    bytes.iter().rev().take_while(|byte| **byte == 0).count()
}

#[cfg(test)]
mod tests {
    use super::recognise;
    use redb::backends::InMemoryBackend;
    use redb::{Database, StorageBackend};
    use std::io;
    use std::sync::Arc;

    /// redb's own memory, which a test looks into.
    #[derive(Debug, Clone, Default)]
    struct Memory(Arc<InMemoryBackend>);

    impl StorageBackend for Memory {
        fn len(&self) -> io::Result<u64> {
            self.0.len()
        }

        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            self.0.read(offset, out)
        }

        fn set_len(&self, len: u64) -> io::Result<()> {
            self.0.set_len(len)
        }

        fn sync_data(&self) -> io::Result<()> {
            self.0.sync_data()
        }

        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            self.0.write(offset, data)
        }
    }

    #[test]
    fn the_header_of_this_redb_is_recognised_and_others_are_not() {
        let memory = Memory::default();
        let open = Database::builder().create_with_backend(memory.clone()).unwrap();
        let (len, mut header) = (memory.len().unwrap(), [0; 64]);
        memory.read(0, &mut header).unwrap();
        recognise(&header, len).unwrap();
        // A later one may mark a file that was not closed elsewhere, or keep its length there.
        for (place, bits) in [(9..10, !2), (24..32, 0), (12..16, 0), (0..4, 0)] {
            let mut other = header;
            other[place].iter_mut().for_each(|byte| *byte &= bits);
            let refused = recognise(&other, len).unwrap_err();
            assert!(refused.to_string().contains("header that this cellardb does not know"));
        }
        assert!(recognise(&header, 4096).is_err() && recognise(&header[..16], len).is_err());
        drop(open);
    }
}
