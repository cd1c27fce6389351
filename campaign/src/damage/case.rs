//! One damage to one file: what it is called, what it does, and what an index must make of it.

use super::ask::{Blame, Outcome};
use super::image::Image;
use super::{CATALOG, LOCK};
use crate::HOME;
use crate::data::Rng;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What happens to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Bit of byte.
    Flip(usize, u8),
    /// The byte at a place gets a value.
    Set(usize, u8),
    /// A byte is another in the bits of the mask.
    Xor(usize, u8),
    Truncate(usize),
    /// So many bytes of garbage behind the end.
    Extend(usize),
    /// From, length.
    Zero(usize, usize),
    /// Sectors of a size, by their numbers.
    Sectors(usize, usize, usize),
    Place(Special),
}

/// What comes in the place of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Special {
    /// The file of this number among those of the image, and the other way round.
    Exchange(usize),
    /// The file of another index.
    Foreign,
    /// The file as it was some commits earlier.
    Stale,
    Delete,
    Empty,
    Directory,
    /// A directory with something in it.
    FullDirectory,
    /// A file that may not be read.
    Denied,
    /// A link to the file itself, which is elsewhere now.
    Link,
    DanglingLink,
    LoopLink,
    DeviceLink,
    Fifo,
}

/// The words for what comes in the place of a file, without the number of another file.
pub const SPECIALS: [(Special, &str); 12] = [
    (Special::Foreign, "foreign"),
    (Special::Stale, "stale"),
    (Special::Delete, "delete"),
    (Special::Empty, "empty"),
    (Special::Directory, "directory"),
    (Special::FullDirectory, "full-directory"),
    (Special::Denied, "denied"),
    (Special::Link, "link"),
    (Special::DanglingLink, "dangling-link"),
    (Special::LoopLink, "loop-link"),
    (Special::DeviceLink, "device-link"),
    (Special::Fifo, "fifo"),
];

/// A damage to one file of an image.
#[derive(Debug, Clone, Copy)]
pub struct Case<'a> {
    pub path: &'a Path,
    pub change: Change,
}

impl fmt::Display for Case<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.strip_prefix(HOME).unwrap_or(self.path);
        write!(f, "{}:", path.display())?;
        match self.change {
            Change::Flip(at, bit) => write!(f, "flip:{at}:{bit}"),
            Change::Set(at, value) => write!(f, "set:{at}:{value}"),
            Change::Xor(at, mask) => write!(f, "xor:{at}:{mask}"),
            Change::Truncate(len) => write!(f, "truncate:{len}"),
            Change::Extend(n) => write!(f, "extend:{n}"),
            Change::Zero(at, len) => write!(f, "zero:{at}:{len}"),
            Change::Sectors(size, a, b) => write!(f, "sectors:{size}:{a}:{b}"),
            Change::Place(Special::Exchange(other)) => write!(f, "exchange:{other}"),
            Change::Place(special) => {
                let word = SPECIALS.iter().find(|(s, _)| *s == special);
                write!(f, "{}", word.map_or("", |(_, word)| *word))
            }
        }
    }
}

/// Reads what a case is called by: its file and what happens to it.
pub fn parse(text: &str) -> Option<(PathBuf, Change)> {
    let mut parts = text.split(':');
    let path = Path::new(HOME).join(parts.next()?);
    let word = parts.next()?;
    let numbers: Vec<usize> = parts.map(str::parse).collect::<Result<_, _>>().ok()?;
    let byte = |n: usize| u8::try_from(n).ok();
    let change = match (word, &numbers[..]) {
        ("flip", [at, bit @ 0..8]) => Change::Flip(*at, byte(*bit)?),
        ("set", [at, value]) => Change::Set(*at, byte(*value)?),
        ("xor", [at, mask]) => Change::Xor(*at, byte(*mask)?),
        ("truncate", [len]) => Change::Truncate(*len),
        ("extend", [n]) => Change::Extend(*n),
        ("zero", [at, len]) => Change::Zero(*at, *len),
        ("sectors", [size, a, b]) => Change::Sectors(*size, *a, *b),
        ("exchange", [other]) => Change::Place(Special::Exchange(*other)),
        (word, []) => Change::Place(SPECIALS.iter().find(|(_, w)| *w == word)?.0),
        _ => return None,
    };
    Some((path, change))
}

impl Change {
    /// The bytes after it; `None` where it is not a change of bytes.
    pub fn apply(self, bytes: &[u8]) -> Option<Vec<u8>> {
        let mut bytes = bytes.to_vec();
        match self {
            Self::Flip(at, bit) => bytes[at] ^= 1 << bit,
            Self::Set(at, value) => bytes[at] = value,
            Self::Xor(at, mask) => bytes[at] ^= mask,
            Self::Truncate(len) => bytes.truncate(len),
            Self::Extend(n) => {
                let mut rng = Rng::new(n as u64);
                bytes.extend((0..n).map(|_| rng.next_u64() as u8));
            }
            Self::Zero(at, len) => {
                let end = bytes.len().min(at + len);
                bytes[at..end].fill(0);
            }
            Self::Sectors(size, a, b) => {
                let (front, back) = bytes.split_at_mut(b * size);
                let back_len = back.len().min(size);
                front[a * size..][..back_len].swap_with_slice(&mut back[..back_len]);
            }
            Self::Place(_) => return None,
        }
        Some(bytes)
    }

    /// The one byte that it changes, and what that becomes: such a change is made in place.
    pub fn byte(self, bytes: &[u8]) -> Option<(usize, u8)> {
        match self {
            Self::Flip(at, bit) => Some((at, bytes[at] ^ 1 << bit)),
            Self::Set(at, value) => Some((at, value)),
            Self::Xor(at, mask) => Some((at, bytes[at] ^ mask)),
            _ => None,
        }
    }
}

impl Case<'_> {
    /// What an error may say of it.
    pub fn blame(&self, image: &Image) -> Blame {
        let mut blame = Blame::of(self.path);
        blame.denied = self.change == Change::Place(Special::Denied);
        match self.change {
            Change::Place(Special::Exchange(other)) => {
                blame.files.extend(image.files.keys().nth(other).cloned());
            }
            // Under another catalog every file is a stranger, and each may be the one named.
            Change::Place(Special::Foreign | Special::Stale) if self.path == Path::new(CATALOG) => {
                let all = image.files.keys().chain(image.stale.keys()).chain(image.foreign.keys());
                blame.files = all.cloned().collect();
            }
            // A file that is of no use any more is nothing to speak of.
            _ if !image.files.contains_key(self.path) => blame.files.clear(),
            _ => {}
        }
        blame
    }

    /// What must come of it, where only one outcome will do.
    pub fn expected(&self, image: &Image) -> Option<Outcome> {
        let bytes = image.files.get(self.path)?;
        let live = image.contents.committed.get(self.path).copied();
        let lock = self.path == Path::new(LOCK);
        match self.change {
            // The mark in it is only a help: what is no mark is none.
            Change::Flip(..) | Change::Set(..) | Change::Xor(..) if lock => Some(Outcome::Unharmed),
            Change::Truncate(_) | Change::Extend(_) | Change::Zero(..) if lock => {
                Some(Outcome::Unharmed)
            }
            Change::Place(Special::Delete | Special::Empty) if lock => Some(Outcome::Unharmed),
            Change::Place(Special::Stale) if lock => Some(Outcome::Unharmed),
            Change::Flip(at, _) | Change::Set(at, _) | Change::Xor(at, _) => {
                let (_, after) = self.change.byte(bytes)?;
                (after != bytes[at] && at < live?).then_some(Outcome::Named)
            }
            Change::Truncate(len) => live.map(|live| match len < live {
                true => Outcome::Named,
                false => Outcome::Unharmed,
            }),
            Change::Extend(_) => live.map(|_| Outcome::Unharmed),
            Change::Zero(at, len) => {
                let end = live?.min(at + len);
                let some = bytes.get(at..end).is_some_and(|lost| lost.iter().any(|b| *b != 0));
                some.then_some(Outcome::Named)
            }
            Change::Sectors(..) => {
                let live = live?;
                let same = self.change.apply(bytes)?[..live] == bytes[..live];
                Some(if same { Outcome::Unharmed } else { Outcome::Named })
            }
            // What is written in place must be a file of the directory itself.
            Change::Place(Special::Link) if lock || self.path == Path::new(CATALOG) => {
                Some(Outcome::Named)
            }
            Change::Place(Special::Link) => Some(Outcome::Unharmed),
            Change::Place(Special::Stale | Special::Exchange(_)) => None,
            Change::Place(_) => Some(Outcome::Named),
        }
    }

    /// The file that comes in the place of this one, where it is one of the same index or another.
    pub fn replacement(&self, image: &Image) -> Option<Arc<Vec<u8>>> {
        let found = match self.change {
            Change::Place(Special::Exchange(other)) => image.files.values().nth(other),
            Change::Place(Special::Foreign) => image.foreign.get(self.path),
            Change::Place(Special::Stale) => image.stale.get(self.path),
            Change::Place(Special::Empty) => return Some(Arc::default()),
            change => return change.apply(image.files.get(self.path)?).map(Arc::new),
        };
        found.cloned()
    }
}
