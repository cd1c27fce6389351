//! What can go wrong, in the words of the caller: what, which file, which offset, what to do next.

use rustix::io::Errno;
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
        "{}: {}; close it there, or wait for it to end",
        path.display(),
        holder(*pid)
    )]
    Locked {
        /// The index.
        path: PathBuf,
        /// The process that holds it, where it is known.
        pid: Option<u32>,
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
    /// A vector has the wrong length.
    #[error(
        "vectors of this index have {expected} dimensions, {found} were given; several vectors in one slice \
         take a multiple of {expected} values"
    )]
    Dimension {
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
    /// The directory of an open index is not at its path any more, or another is there. Nothing that was
    /// acknowledged is lost: it is in the directory, wherever that is. Searches go on as far as they need
    /// no file that has to be opened, and everything does once the directory is back. A change that ends
    /// with this error is not acknowledged, and is stored or not.
    #[error(
        "{}: the directory of this index is no longer at its place: it was moved or removed while the index \
         was open; move it back, and the index goes on",
        path.display()
    )]
    Moved {
        /// Where it was.
        path: PathBuf,
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
    /// The index was closed while this call waited.
    #[error("the index is closed; open it again")]
    Closed,
}

fn holder(pid: Option<u32>) -> String {
    match pid {
        Some(pid) if pid == std::process::id() => "open in this process, by another handle".into(),
        Some(pid) => format!("open in another process (pid {pid})"),
        None => "open in another process".into(),
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

    /// Whether an error leaves things as they were, known to be so: a shortage, or a directory that is
    /// elsewhere for the time being.
    pub(crate) fn passes(&self) -> bool {
        self.shortage() || matches!(self, Self::Moved { .. })
    }

    pub(crate) fn corrupt(path: impl Into<PathBuf>, offset: u64, what: impl ToString) -> Self {
        Self::Corrupt { path: path.into(), offset, what: what.to_string() }
    }

    pub(crate) fn invalid(name: &'static str, why: impl ToString) -> Self {
        Self::Invalid { name, why: why.to_string() }
    }
}
