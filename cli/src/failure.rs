//! Why a verb did not succeed, and the exit code that says so.

use cellardb::{Error, Given};
use std::io;
use std::path::Path;

/// Why a verb did not succeed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The engine refused or failed.
    Engine(Error),
    /// A file that was given, or is to be written, is not usable.
    File(String),
    /// Arguments that contradict each other or the index.
    Usage(String),
    /// `verify` found this many damaged places.
    Damage(usize),
    /// The user asked to stop.
    Interrupted(String),
    /// Who reads our standard output went away.
    ReaderGone,
}

impl Failure {
    /// A complaint about one file.
    pub(crate) fn file(path: &Path, what: impl std::fmt::Display) -> Self {
        Self::File(format!("{}: {what}", path.display()))
    }

    /// For `map_err` on the results of reading and writing one file.
    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |error| match error.kind() {
            io::ErrorKind::NotFound => Self::file(path, "there is no such file; is that the path?"),
            _ => Self::file(path, error),
        }
    }

    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Engine(Error::Corrupt { .. }) | Self::Damage(_) => 3,
            Self::Engine(Error::Locked { .. }) => 4,
            Self::Engine(Error::FormatTooNew { .. } | Error::FormatTooOld { .. }) => 5,
            Self::Engine(
                Error::Invalid { .. } | Error::Dimension { given: Given::Options, .. },
            )
            | Self::Usage(_) => 2,
            Self::Interrupted(_) => 130,
            Self::Engine(_) | Self::File(_) | Self::ReaderGone => 1,
        }
    }
}

/// What the engine says to those who call it.
const IN_THE_LIBRARY: &str = " (`Options::stored`)";

/// The flag that sets an option.
fn flag(option: &'static str) -> &'static str {
    match option {
        "dim" => "--dim",
        "metric" => "--metric",
        "kind" => "--kind",
        "pq_bits" => "--bits",
        "pq_subquantizers" => "--subquantizers",
        "nlist" => "--nlist",
        "seed" => "--seed",
        "train_at" => "--train-at",
        other => other,
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Engine(Error::NotFound { path }) => {
                write!(
                    f,
                    "{}: no index here; is that the path? `cellardb create` makes one",
                    path.display()
                )
            }
            Self::Engine(Error::Exists { path }) => {
                let what = "an index exists here; add to it with `cellardb import`";
                write!(f, "{}: {what}, or remove the directory first", path.display())
            }
            Self::Engine(Error::Invalid { name, why }) => {
                let why = why.replace(IN_THE_LIBRARY, "");
                write!(f, "{}: {why}", flag(name))
            }
            Self::Engine(error) => f.write_str(&error.to_string().replace(IN_THE_LIBRARY, "")),
            Self::File(what) | Self::Usage(what) | Self::Interrupted(what) => f.write_str(what),
            Self::Damage(1) => f.write_str(
                "one damaged place; `cellardb repair` brings back all but the damaged part",
            ),
            Self::Damage(n) => write!(
                f,
                "{n} damaged places; `cellardb repair` brings back all but the damaged part"
            ),
            Self::ReaderGone => f.write_str("standard output was closed"),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Engine(error)
    }
}
