//! The verbs of an index, one file each, over an immutable snapshot and a single writer.

mod ask;
mod asked;
mod assemble;
mod background;
mod build;
mod compact;
mod confirm;
mod distance;
mod drift;
mod due;
mod exact;
mod failure;
mod fold;
mod frames;
mod insert;
mod maintain;
mod measure;
mod model;
mod open;
mod plan;
mod query;
mod queue;
mod repair;
mod search;
mod snapshot;
mod stats;
mod survey;
mod tail;
mod topk;
mod truth;
mod verify;
mod walk;
mod writer;

pub use compact::Compacted;
pub use query::{Query, QueryMany};
pub use repair::Repaired;
pub use search::Answer;
pub use stats::{Measured, MeasuredOn, Setting, Stats};
pub use verify::{Damage, Report};

use crate::callback::{Callback, call};
use crate::error::{Error, Given, Result};
use crate::kernel::Isa;
use crate::options::{Metric, Options, Progress};
use crate::runtime::Threads;
use crate::storage::Process;
use arc_swap::ArcSwap;
use cellardb_format::Config;
use snapshot::Snapshot;
use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use writer::{Queue, Writer};

/// A durable set of vectors and the means to find the nearest ones.
///
/// Cheap to clone; all clones are one index. Every method takes `&self` and may be called from any
/// thread: there is one writer inside, and readers never wait for it. A forked child has no use of it but
/// to drop it: all that can fail fails with [`Error::Forked`] there.
#[derive(Debug, Clone)]
pub struct Index {
    inner: Arc<Inner>,
    /// Ends what is done in the background with the last handle.
    _keeper: Arc<background::Keeper>,
}

/// What the handles and the background share.
#[derive(Debug)]
pub(crate) struct Inner {
    /// The process that opened the index.
    pub(crate) process: Process,
    pub(crate) dir: PathBuf,
    /// As it was opened; what is stored is in `config`.
    pub(crate) options: Options,
    pub(crate) config: Config,
    pub(crate) dim: usize,
    pub(crate) metric: Metric,
    pub(crate) isa: Isa,
    pub(crate) current: ArcSwap<Snapshot>,
    pub(crate) queue: Queue,
    pub(crate) writer: Mutex<Writer>,
    /// Held by whoever folds, trains or compacts.
    pub(crate) upkeep: Mutex<()>,
    /// Held by whoever encodes what an open left plain; never while the writer is.
    pub(crate) catching_up: Mutex<()>,
    pub(crate) signal: background::Signal,
    /// What is told of the writer without waiting for it.
    pub(crate) told: Arc<writer::Told>,
    /// A sample of what is asked.
    pub(crate) asked: asked::Asked,
    /// The threads that callers share.
    pub(crate) calls: Threads,
    /// Those of folds and other short upkeep.
    pub(crate) folds: Threads,
    /// Those of trainings and other long upkeep.
    pub(crate) trainings: Threads,
}

impl Inner {
    /// The vectors as they are compared: normalised under cosine, else as inserted.
    pub(crate) fn searched<'a>(&self, vectors: &'a [f32], scales: &[f32]) -> Cow<'a, [f32]> {
        if self.metric != Metric::Cosine {
            return Cow::Borrowed(vectors);
        }
        let rows = vectors.chunks_exact(self.dim).zip(scales);
        Cow::Owned(rows.flat_map(|(row, scale)| row.iter().map(move |x| x * scale)).collect())
    }

    /// Checks vectors, row-major; the factors that normalise them under cosine, else 1.
    pub(crate) fn scales(&self, vectors: &[f32]) -> Result<Vec<f32>> {
        if !vectors.len().is_multiple_of(self.dim) {
            let (given, expected, found) = (Given::Vectors, self.dim, vectors.len());
            return Err(Error::Dimension { given, expected, found });
        }
        let rows = vectors.chunks_exact(self.dim).enumerate();
        rows.map(|(position, row)| self.scale(row).map_err(|why| Error::Vector { position, why }))
            .collect()
    }

    /// Checks one vector of the right length.
    pub(crate) fn scale(&self, vector: &[f32]) -> Result<f32, &'static str> {
        // Without a way out of the loop, which keeps it wide.
        if !vector.iter().fold(true, |finite, x| finite & x.is_finite()) {
            return Err("holds NaN or infinity");
        }
        if self.metric != Metric::Cosine {
            return Ok(1.0);
        }
        let squared: f64 = vector.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
        let scale = (1.0 / squared.sqrt()) as f32;
        match scale.is_finite() && scale > 0.0 {
            true => Ok(scale),
            false if squared == 0.0 => Err("has length zero, which no angle is measured to"),
            false => Err("is too short to be normalised"),
        }
    }

    pub(crate) fn progress(&self, stage: &'static str, done: u64, total: u64) {
        if let Some(observer) = &self.options.observer {
            call(Callback::Observer, || observer(Progress { stage, done, total }));
        }
    }
}

impl Index {
    /// Options for an index of `dim` dimensions: `Index::options(384).create("memory.cellar")`.
    pub fn options(dim: usize) -> Options {
        Options::new(dim)
    }

    /// Opens an index as it is stored. Nothing is rebuilt, and no row is read: it takes milliseconds,
    /// some 40 for a million rows. Rows that were not in the lists yet when the process ended are
    /// compared in full at first, while a thread encodes them.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] without an index there, [`Error::Locked`] while another handle has it,
    /// [`Error::Corrupt`] naming what is damaged, [`Error::FormatTooNew`] and
    /// [`Error::FormatTooOld`], [`Error::Io`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Options::stored().open(path)
    }

    /// Opens an index for reading; nothing on disk is changed. Any number of processes can do so
    /// at a time, but none while one has it open for writing.
    ///
    /// # Errors
    ///
    /// As [`Index::open`].
    pub fn open_read_only(path: impl AsRef<Path>) -> Result<Self> {
        Options::stored().open_read_only(path)
    }

    /// The `k` nearest rows: ids and distances, ascending by distance, then by id. Fewer if the
    /// index has fewer. Searches as far as a recall of 0.95 takes; see [`Index::query`] for more.
    ///
    /// # Errors
    ///
    /// [`Error::Dimension`] or [`Error::Vector`] for a query that cannot be compared; [`Error::Corrupt`]
    /// when a row or a list that it needs is damaged, which harms no other search.
    pub fn search(&self, query: &[f32], k: usize) -> Result<Vec<(usize, f32)>> {
        self.query(query).k(k).run()
    }

    /// [`Index::search`] for many queries, row-major, on all processors.
    ///
    /// # Errors
    ///
    /// As [`Index::search`]; a query that cannot be compared is named by its place.
    pub fn search_many(&self, queries: &[f32], k: usize) -> Result<Vec<Vec<(usize, f32)>>> {
        self.query_many(queries).k(k).run()
    }

    /// A search with options.
    pub fn query<'a>(&'a self, query: &'a [f32]) -> Query<'a> {
        Query::new(&self.inner, query)
    }

    /// A search of many queries, row-major, with options.
    pub fn query_many<'a>(&'a self, queries: &'a [f32]) -> QueryMany<'a> {
        QueryMany::new(&self.inner, queries)
    }

    /// Rows that are stored and not removed.
    pub fn len(&self) -> usize {
        self.inner.snapshot().state.live as usize
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Dimensions of a vector.
    pub fn dim(&self) -> usize {
        self.inner.dim
    }

    /// The distance.
    pub fn metric(&self) -> Metric {
        self.inner.metric
    }

    /// Makes everything inserted and removed so far durable and folds it into the lists.
    ///
    /// # Errors
    ///
    /// [`Error::ReadOnly`], [`Error::Closed`], [`Error::Poisoned`] after a failed write, [`Error::Io`].
    pub fn flush(&self) -> Result<()> {
        self.inner.may_wait()?;
        // At once, however long the fold has to wait.
        self.inner.writer().begin()?;
        self.inner.fold()?;
        self.inner.writer().settle()
    }

    /// Does what is due and the background would do: trains if there are enough new rows, else folds; gives
    /// back the space of removed rows; measures recall. For [`crate::Maintenance::Manual`], at the end of
    /// a bulk load for example. Whether something is due depends on the rows that came and went, and on what
    /// was asked: SPEC.md, section 7, has the table.
    ///
    /// # Errors
    ///
    /// As [`Index::train`] and [`Index::compact`].
    pub fn maintain(&self) -> Result<()> {
        self.inner.here()?;
        self.inner.writer().begin()?;
        self.inner.maintain()
    }

    /// Trains anew on the present rows, rebuilds the lists and measures what each recall takes.
    /// Inserts and searches go on meanwhile. With fewer rows than [`Options::train_at`] an index that was
    /// trained before is measured, and one that was not stays exact; nothing to do for an exact index.
    ///
    /// # Errors
    ///
    /// As [`Index::flush`]; [`Error::Invalid`] if no row can be trained on. The old model then stays.
    pub fn train(&self) -> Result<()> {
        self.inner.may_wait()?;
        self.inner.train()
    }

    /// Commits what is pending, ends what is done in the background and closes the catalog. Later calls on
    /// clones of this handle fail to write with [`crate::Error::Closed`]; searches still answer, and
    /// the lock on the index ends with the last clone.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if what was pending could not be made durable.
    pub fn close(self) -> Result<()> {
        self.inner.may_wait()?;
        self.inner.signal.stop();
        let _upkeep = self.inner.hold_upkeep();
        self.inner.writer().close()
    }
}
