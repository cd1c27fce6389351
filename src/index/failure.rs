//! After a failed write: what is still known, and what is given back.

use super::Inner;
use super::writer::Writer;
use crate::error::{Error, Result};
use crate::storage::Change;
use std::path::PathBuf;

impl Inner {
    /// Commits what `working` has become together with `change`, and shows it to readers. If that fails,
    /// it is again what they see.
    pub(crate) fn commit(&self, writer: &mut Writer, change: Change) -> Result<()> {
        let before = writer.store.state.seq;
        let done = writer.commit(change);
        match &done {
            Ok(()) => self.publish(writer.working.clone()),
            Err(e) if writer.stored(before, e) => self.publish(writer.working.clone()),
            Err(_) => writer.take_back(&self.snapshot()),
        }
        done
    }

    /// Removes the files of work that a shortage has ended, so that nothing but a lack of room ends it
    /// the next time.
    pub(crate) fn give_back<T>(
        &self,
        done: Result<T>,
        files: impl FnOnce() -> Vec<PathBuf>,
    ) -> Result<T> {
        if let Err(e) = &done
            && self.writer().unharmed(e)
        {
            self.unlink(&files());
        }
        done
    }

    /// An error as what it means where the directory was moved.
    pub(crate) fn explained<T>(&self, result: Result<T>) -> Result<T> {
        result.map_err(|e| self.home.explain(e))
    }

    /// A failed write or sync means that it is not known what the disk holds; after a
    /// shortage it is.
    pub(crate) fn guard<T>(&self, result: Result<T>) -> Result<T> {
        let result = self.explained(result);
        if let Err(e @ Error::Io { .. }) = &result
            && !e.shortage()
        {
            self.writer().poison(e);
        }
        result
    }
}

/// The error for the others of a group.
pub(crate) fn again(e: &Error) -> Error {
    match e {
        Error::ReadOnly => Error::ReadOnly,
        Error::Closed => Error::Closed,
        Error::Moved { path } => Error::Moved { path: path.clone() },
        Error::Poisoned { cause } => Error::Poisoned { cause: cause.clone() },
        Error::Io { op, path, source } => {
            let source = match source.raw_os_error() {
                Some(code) => std::io::Error::from_raw_os_error(code),
                None => std::io::Error::new(source.kind(), source.to_string()),
            };
            Error::Io { op, path: path.clone(), source }
        }
        other => Error::Poisoned { cause: other.to_string() },
    }
}
