//! One change that was not synced, of a file or of a directory, and what a power cut makes of it.

use crate::data::Rng;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::sync::Arc;

/// What becomes of everything that was not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// All of it is lost.
    Dropped,
    /// All of it is there.
    Kept,
    /// Each change by itself is lost, kept, torn, or kept as length without data; of some files
    /// nearly all, of others nearly nothing. Of a rename also both names may be left.
    Random(u64),
}

/// What becomes of one change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Lost,
    Whole,
    /// Of a write the length without the data, of a rename both names.
    Half,
    /// This many bytes from the beginning.
    Torn(usize),
    /// Sectors of this size, each by itself as the bits say.
    Sectors(usize, u64),
}

/// A name leads to a file or a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Node {
    File(usize),
    Dir(usize),
}

impl Node {
    pub fn number(self) -> usize {
        let (Self::File(number) | Self::Dir(number)) = self;
        number
    }
}

#[derive(Debug, Clone)]
pub(crate) enum Change {
    Write(usize, Vec<u8>),
    SetLen(usize),
}

#[derive(Debug, Clone)]
pub(crate) enum Entry {
    Link(OsString, Node),
    Unlink(OsString, Node),
    Rename(OsString, OsString, Node),
}

pub(crate) type Names = BTreeMap<OsString, Node>;

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Write(at, data) => write!(f, "write of {} at {at}", data.len()),
            Self::SetLen(len) => write!(f, "length {len}"),
        }
    }
}

impl Change {
    pub(crate) fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Write(offset, data) => put(bytes, *offset, data),
            Self::SetLen(len) => bytes.resize(*len, 0),
        }
    }

    pub(crate) fn fate(&self, cut: Cut, keep: usize, rng: &mut Rng) -> Fate {
        match (cut, self) {
            (Cut::Dropped, _) => Fate::Lost,
            (Cut::Kept, _) => Fate::Whole,
            (Cut::Random(_), Self::SetLen(_)) => {
                if rng.below(8) < keep {
                    Fate::Whole
                } else {
                    Fate::Lost
                }
            }
            (Cut::Random(_), Self::Write(_, data)) => match (rng.below(4), rng.below(8)) {
                (0, 0..=1) => Fate::Half,
                (0, 2..=3) => Fate::Torn(rng.below(data.len() + 1)),
                (0, 4..=5) => Fate::Sectors(512, rng.next_u64()),
                (0, _) => Fate::Sectors(4096, rng.next_u64()),
                (_, n) if n < keep => Fate::Whole,
                _ => Fate::Lost,
            },
        }
    }

    pub(crate) fn apply_some(&self, bytes: &mut Arc<Vec<u8>>, fate: Fate) {
        if fate == Fate::Lost {
            return;
        }
        let bytes = Arc::make_mut(bytes);
        let (Self::Write(offset, data), true) = (self, fate != Fate::Whole) else {
            return self.apply(bytes);
        };
        match fate {
            Fate::Torn(end) => put(bytes, *offset, &data[..end]),
            Fate::Sectors(size, kept) => {
                let (mut at, mut bit) = (0, 0);
                while at < data.len() {
                    let end = ((offset + at) / size * size + size - offset).min(data.len());
                    if kept >> (bit % 64) & 1 == 1 {
                        put(bytes, offset + at, &data[at..end]);
                    }
                    (at, bit) = (end, bit + 1);
                }
            }
            _ => {
                let end = offset + data.len();
                bytes.resize(bytes.len().max(end), 0);
            }
        }
    }
}

impl Entry {
    pub(crate) fn fate(&self, cut: Cut, keep: usize, rng: &mut Rng) -> Fate {
        match (cut, rng.below(8), self) {
            (Cut::Dropped, ..) => Fate::Lost,
            (Cut::Kept, ..) => Fate::Whole,
            (Cut::Random(_), 7, Self::Rename(..)) => Fate::Half,
            (Cut::Random(_), n, _) if n < keep => Fate::Whole,
            _ => Fate::Lost,
        }
    }

    pub(crate) fn apply_some(&self, names: &mut Names, fate: Fate) {
        match (fate, self) {
            (Fate::Lost, _) => {}
            (Fate::Half, Self::Rename(_, to, node)) => {
                names.insert(to.clone(), *node);
            }
            _ => self.apply(names),
        }
    }

    pub(crate) fn apply(&self, names: &mut Names) {
        match self {
            Self::Link(name, node) => {
                names.insert(name.clone(), *node);
            }
            Self::Unlink(name, node) => {
                if names.get(name) == Some(node) {
                    names.remove(name);
                }
            }
            Self::Rename(from, to, node) => {
                if names.get(from) == Some(node) {
                    names.remove(from);
                }
                names.insert(to.clone(), *node);
            }
        }
    }
}

fn put(bytes: &mut Vec<u8>, offset: usize, data: &[u8]) {
    if data.is_empty() {
        return;
    }
    let end = offset + data.len();
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[offset..end].copy_from_slice(data);
}
