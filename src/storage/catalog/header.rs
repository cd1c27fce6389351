//! The header of redb, between redb and the file. redb writes it four times and syncs it as often before
//! the first commit, to make durable what the file says already: that the commit that is there is there.
//! Here these writes are put off until there is a commit to write.

use std::ops::Range;

/// The bytes of the header: 64 of flags and geometry, then two slots, a commit in each.
pub(super) const LEN: usize = 320;
const FLAGS: usize = 9;
/// Which slot is the primary.
const PRIMARY: u8 = 1;
/// The last writer did not close the file.
const UNCLEAN: u8 = 2;
/// Other processes may write, which they may not here.
const UNFLUSHED: u8 = 8;
const SLOT: usize = 128;
/// Where in a slot the number of its commit is.
const NUMBER: Range<usize> = 104..112;

/// What redb takes for the header, and what the file has.
///
/// When redb opens a file whose commit `n` is in slot `a`, it makes commit `n + 1`, of the same roots, in slot
/// `b`, so that the first commit of ours goes to `a` again: were these written together and torn, both
/// would be gone. So from then on the slots change places on their way: what redb puts in `a` goes to `b`, where
/// only older commits were, and `n` stays whole in `a` until that is durable.
#[derive(Debug)]
pub(super) struct Header {
    /// As redb last wrote it.
    ours: [u8; LEN],
    /// As the file has it.
    file: [u8; LEN],
    /// As it was when redb had opened the file.
    base: [u8; LEN],
    /// Nothing is written to the file yet.
    deferred: bool,
    /// Slots that redb has written since, in its own order.
    written: [bool; 2],
    exchanged: bool,
}

fn slot(header: &[u8; LEN], n: usize) -> &[u8] {
    header.get(64 + n * SLOT..64 + (n + 1) * SLOT).unwrap_or_default()
}

fn set_slot(header: &mut [u8; LEN], n: usize, from: &[u8; LEN], of: usize) {
    let to = header.get_mut(64 + n * SLOT..64 + (n + 1) * SLOT);
    to.into_iter().for_each(|to| to.copy_from_slice(slot(from, of)));
}

fn primary(header: &[u8; LEN]) -> usize {
    usize::from(header[FLAGS] & PRIMARY)
}

fn number(header: &[u8; LEN], n: usize) -> u64 {
    let bytes = slot(header, n).get(NUMBER).and_then(|bytes| bytes.first_chunk::<8>());
    bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// Whether the writes of an opening may be put off: what is beside the last commit is none that a crash cut
/// short, which redb has to overwrite before anything is built on it being gone.
pub(super) fn is_settled(header: &[u8; LEN]) -> bool {
    let (last, other) = (primary(header), 1 - primary(header));
    let magic = header.starts_with(b"redb") && header[FLAGS] & UNFLUSHED == 0;
    magic && number(header, other) <= number(header, last)
}

/// The header of a file that is closed: both slots hold the last commit, so that no bit that rots in one takes
/// it back; `None` if it is closed already. All that it says is durable, so it need not be synced.
pub(super) fn closed(header: &[u8; LEN]) -> Option<[u8; LEN]> {
    if header[FLAGS] & UNCLEAN == 0 {
        return None;
    }
    let (mut closed, last) = (*header, primary(header));
    closed[FLAGS] &= !UNCLEAN;
    set_slot(&mut closed, 1 - last, header, last);
    Some(closed)
}

impl Header {
    /// The header that a file has. If `deferred` what redb writes to open it is put off.
    pub(super) fn new(file: [u8; LEN], deferred: bool) -> Self {
        Self { ours: file, file, base: file, deferred, written: [false; 2], exchanged: false }
    }

    pub(super) fn bytes(&self) -> &[u8; LEN] {
        &self.ours
    }

    /// What the file has.
    pub(super) fn file(&self) -> [u8; LEN] {
        self.file
    }

    /// redb has opened the file. `false` if it did something else than it is known to do: then it has to
    /// open it anew, and write at once.
    pub(super) fn opened(&mut self) -> bool {
        let (ours, file) = (&self.ours, &self.file);
        let fresh = primary(ours);
        let same = |n| slot(ours, n) == slot(file, n);
        self.exchanged = self.deferred && !same(fresh);
        let known = !self.deferred || same(1 - fresh);
        (self.base, self.deferred) = (self.ours, false);
        known
    }

    /// Notes what redb writes; what the file is to have, if that is another than it has.
    pub(super) fn write(&mut self, at: usize, data: &[u8]) -> Option<[u8; LEN]> {
        let to = self.ours.get_mut(at..at + data.len());
        to.into_iter().for_each(|to| to.copy_from_slice(data));
        if self.deferred {
            return None;
        }
        let mut next = self.ours;
        if self.exchanged {
            next[FLAGS] ^= PRIMARY;
            for n in [0, 1] {
                self.written[n] |= slot(&self.ours, n) != slot(&self.base, n);
                let from = if self.written[n] { &self.ours } else { &self.file };
                let of = if self.written[n] { n } else { 1 - n };
                set_slot(&mut next, 1 - n, from, of);
            }
        }
        let changed = next != self.file;
        self.file = next;
        changed.then_some(next)
    }
}
