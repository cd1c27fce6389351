//! What can go wrong, in the words of the caller: what, which file, which offset, what to do next.

use rustix::io::Errno;
use std::fmt::Display;
use std::io;
use std::path::PathBuf;

/// The result of every operation of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused. After a write or a sync that failed it is unknown what the disk
    /// holds, unless the disk was full: see [`Error::Poisoned`].
    #[error("cannot {op} {}: {source}{}", path.display(), advice(op, source))]
    Io {
        /// What was attempted.
        op: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
    /// A file does not hold what was written to it.
    #[error(
        "{} is damaged at byte {offset}: {what}; `cellardb verify` lists all damage, `cellardb repair` \
         brings back all but the damaged part",
        path.display()
    )]
    Corrupt {
        /// The damaged file.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// What was found.
        what: String,
    },
    /// There is no index at the path.
    #[error("{}: no index here; create one with `Index::options(dim).create(path)`", path.display())]
    NotFound {
        /// The path that was opened.
        path: PathBuf,
    },
    /// There is an index at the path already.
    #[error("{}: an index exists here; open it, or remove the directory first", path.display())]
    Exists {
        /// The path that was to be created.
        path: PathBuf,
    },
    /// Another process, or another handle of this one, has the index open.
    #[error(
        "{}: {}; close it there, or wait for it to end (`Options::lock_wait`, --wait)",
        path.display(),
        holder(*pid, *reader)
    )]
    Locked {
        /// The index.
        path: PathBuf,
        /// The process that holds it now, where the system tells: not across containers, for instance.
        pid: Option<u32>,
        /// Whether it is open for reading there: then only a writer has to wait.
        reader: bool,
    },
    /// The index was written by a newer version of this library.
    #[error("{}: format version {found}, this build reads {supported}; upgrade cellardb", path.display())]
    FormatTooNew {
        /// The file that says so.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The newest that this build reads.
        supported: u32,
    },
    /// The index was written by an older version, whose files this one does not read.
    #[error(
        "{}: format version {found}, this build reads {supported}; export it with the cellardb that \
         wrote it and import the rows anew",
        path.display()
    )]
    FormatTooOld {
        /// The file that says so.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The one that this build reads.
        supported: u32,
    },
    /// A vector, or what was asked for when the index was opened, has other dimensions than the index.
    #[error("{}", misfit(*given, *expected, *found))]
    Dimension {
        /// What has them.
        given: Given,
        /// The dimensions of the index.
        expected: usize,
        /// The dimensions (or the number of values) that were given.
        found: usize,
    },
    /// A vector cannot be compared with others, so none of those given was stored or searched.
    #[error("vector {position} {why}; none of those given was stored or searched")]
    Vector {
        /// Its place among those given, 0 for a single one.
        position: usize,
        /// What is wrong with it.
        why: &'static str,
    },
    /// An option or argument has no meaning.
    #[error("{name}: {why}")]
    Invalid {
        /// The option or argument.
        name: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// A write was asked of an index that was opened for reading.
    #[error("the index was opened read-only; open it with `Index::open` to write")]
    ReadOnly,
    /// An earlier write or sync failed, so it is not known what the disk holds.
    #[error(
        "an earlier write failed ({cause}); searches go on, to write again close the index, \
         mend the cause and open it anew"
    )]
    Poisoned {
        /// The first failure.
        cause: String,
    },
    /// This process was forked from the one that opened the index. Its files and its lock are still those
    /// of that process.
    #[error(
        "this process was forked from the one that opened the index; start another program by exec, or open \
         the index anew here after it was closed there"
    )]
    Forked,
    /// The observer of [`crate::Options::progress`], or a [`crate::Disk`], made a call that would wait for the
    /// work that called it: `flush`, `train`, `compact`, `verify` or `close` from an observer, any call from
    /// a disk. From an observer searches, inserts and removals go through.
    #[error(
        "this call waits for the work that called the observer or the disk; make it from another thread, \
         which is not waited for, or when that work is done"
    )]
    InCallback,
    /// The index was closed while this call waited.
    #[error("the index is closed; open it again")]
    Closed,
}

/// What has other dimensions than the index: see [`Error::Dimension`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Given {
    /// The dimension in the options of an opening.
    Options,
    /// A single vector.
    Vector,
    /// Several vectors, one behind the other in a slice.
    Vectors,
}

fn misfit(given: Given, expected: usize, found: usize) -> String {
    match given {
        Given::Options => format!(
            "dim: {found} was asked for, the index has {expected} dimensions; leave it out \
             (`Options::stored`) to take what is stored"
        ),
        Given::Vector => {
            format!("a vector of {found} numbers was given, those of the index have {expected}")
        }
        Given::Vectors => format!(
            "{found} numbers were given, which are no whole vectors: those of the index have {expected}, so \
             a slice of several takes a multiple of {expected}"
        ),
    }
}

fn holder(pid: Option<u32>, reader: bool) -> String {
    let how = if reader { "open for reading" } else { "open for writing" };
    match pid {
        Some(pid) if pid == std::process::id() => {
            format!("{how} in this process, by another handle")
        }
        Some(pid) => format!("{how} in another process (pid {pid})"),
        None if reader => format!("{how} by a reader, pid unknown"),
        None => format!("{how} by a writer, pid unknown"),
    }
}

/// What to do about an error of the system, where it does not say itself.
fn advice(op: &str, e: &io::Error) -> &'static str {
    match Errno::from_io_error(e) {
        Some(Errno::MFILE) => "; raise the limit of open files of this process (ulimit -n)",
        Some(Errno::NFILE) => "; raise the limit of open files of this system (fs.file-max)",
        Some(Errno::NOMEM) => "; free memory, or raise its limit (ulimit -v, vm.max_map_count)",
        Some(Errno::NOSPC | Errno::DQUOT) if !op.starts_with("sync") => {
            "; nothing was stored, and writes go on by themselves when there is room; removals need none, \
             `compact` does"
        }
        Some(Errno::NOLCK | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) if op == "lock" => {
            "; this file system has no locks that work: move the index to a local one"
        }
        _ => "",
    }
}

impl Error {
    pub(crate) fn io(op: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { op, path, source }
    }

    /// Whether the system was short of something: room on the disk, descriptors, memory. Then it is
    /// known what the disk holds, and it may go better later. Not if a sync said so, which fails for
    /// good; but one that found no descriptor to be done with was not tried.
    pub(crate) fn shortage(&self) -> bool {
        use io::ErrorKind::{FileTooLarge, OutOfMemory, QuotaExceeded, StorageFull};
        let Self::Io { op, source, .. } = self else { return false };
        match Errno::from_io_error(source) {
            Some(Errno::MFILE | Errno::NFILE) => true,
            _ if op.starts_with("sync") => false,
            _ => matches!(source.kind(), StorageFull | QuotaExceeded | FileTooLarge | OutOfMemory),
        }
    }

    pub(crate) fn corrupt(path: impl Into<PathBuf>, offset: u64, what: impl ToString) -> Self {
        Self::Corrupt { path: path.into(), offset, what: what.to_string() }
    }

    pub(crate) fn vector(expected: usize, found: usize) -> Self {
        Self::Dimension { given: Given::Vector, expected, found }
    }

    /// An option that was given and is not the stored one.
    pub(crate) fn other(name: &'static str, asked: impl Display, stored: impl Display) -> Self {
        let why = format!(
            "{asked} was asked for, the index has {stored}; leave it out (`Options::stored`) to take what is \
             stored"
        );
        Self::Invalid { name, why }
    }

    pub(crate) fn invalid(name: &'static str, why: impl ToString) -> Self {
        Self::Invalid { name, why: why.to_string() }
    }
}
