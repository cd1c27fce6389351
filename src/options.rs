//! How an index is made and opened.

use crate::error::{Error, Result};
use crate::storage::disk::{Disk, FileSystem};
use crate::storage::hosted::Hosted;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// How far apart two vectors are. Distances ascend: smaller is nearer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Metric {
    /// Squared Euclidean distance.
    #[default]
    L2,
    /// `1 - <q, v>`.
    InnerProduct,
    /// `1 - <q, v> / (|q| |v|)`; a vector of length zero is refused.
    Cosine,
}

/// How an index finds neighbours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Kind {
    /// Exact until there are enough rows to train on, then [`Kind::IvfPq`].
    #[default]
    Auto,
    /// Compares with every row.
    Exact,
    /// Inverted lists of whole vectors (Sivic and Zisserman 2003; FAISS `IVF,Flat`).
    IvfFlat,
    /// Inverted lists of product-quantized residuals (Jegou et al. 2011), reranked from the rows.
    IvfPq,
}

/// When a change is safe from a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Durability {
    /// When the call returns. Callers at the same time share one commit.
    #[default]
    Commit,
    /// At the next flush, and at the latest after this time, which is not zero. A crash loses the last
    /// changes, never a part of one.
    Interval(Duration),
}

/// Who folds, trains and compacts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Maintenance {
    /// Threads that all indexes of the process share, when it is due.
    #[default]
    Background,
    /// The caller, with `maintain`, or `flush`, `train` and `compact`. For bulk loads. Only an insert that makes the
    /// tail four times what it should be folds it, so that searches stay fast, unless there is upkeep already.
    Manual,
}

/// How the committed rows and lists are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Reads {
    /// Through maps of the files, each piece verified when it is read first. The quickest, where nobody
    /// but Cellar writes to the files.
    #[default]
    Map,
    /// Copied into memory, each piece verified every time. Slower; right in a directory that others
    /// write to, or on a file system of a network.
    Copy,
}

/// A step of long work, for a progress bar.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Progress {
    /// What is being done.
    pub stage: &'static str,
    /// How much of it is done.
    pub done: u64,
    /// How much there is to do; 0, as `done` is, while that is not known.
    pub total: u64,
}

/// Told of each step of long work.
pub(crate) type Observer = Arc<dyn Fn(Progress) + Send + Sync>;

/// How an index is made (stored in it) and how it is opened (not stored).
///
/// What is stored and was given here must be what the index has when one is opened: another value is
/// [`Error::Invalid`] (another dimension [`Error::Dimension`]). What was not given is taken as it is stored.
#[derive(Clone)]
pub struct Options {
    pub(crate) dim: Option<usize>,
    pub(crate) metric: Option<Metric>,
    pub(crate) kind: Option<Kind>,
    pub(crate) bits: Option<u8>,
    pub(crate) subquantizers: Option<usize>,
    pub(crate) nlist: Option<usize>,
    pub(crate) seed: Option<u64>,
    pub(crate) train_at: Option<usize>,
    pub(crate) segment_bytes: Option<u64>,
    pub(crate) durability: Durability,
    pub(crate) memory: usize,
    pub(crate) threads: usize,
    pub(crate) maintenance: Maintenance,
    pub(crate) reads: Reads,
    pub(crate) guard: bool,
    pub(crate) learn_queries: bool,
    pub(crate) lock_wait: Duration,
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) observer: Option<Observer>,
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("dim", &self.dim)
            .field("metric", &self.metric)
            .field("kind", &self.kind)
            .field("durability", &self.durability)
            .field("memory", &self.memory)
            .finish_non_exhaustive()
    }
}

impl Options {
    /// Options for an index of `dim` dimensions.
    pub fn new(dim: usize) -> Self {
        Self { dim: Some(dim), ..Self::stored() }
    }

    /// Options for opening an index as it is stored, whatever that is.
    pub fn stored() -> Self {
        Self {
            dim: None,
            metric: None,
            kind: None,
            bits: None,
            subquantizers: None,
            nlist: None,
            seed: None,
            train_at: None,
            segment_bytes: None,
            durability: Durability::Commit,
            memory: 512 << 20,
            threads: 0,
            maintenance: Maintenance::Background,
            reads: Reads::Map,
            guard: true,
            learn_queries: true,
            lock_wait: Duration::ZERO,
            disk: Arc::new(FileSystem),
            observer: None,
        }
    }

    /// The dimension, where it is not given already: for [`Options::repair`]. Stored.
    pub fn dim(mut self, dim: usize) -> Self {
        self.dim = Some(dim);
        self
    }

    /// The distance; [`Metric::L2`] by default. Stored.
    pub fn metric(mut self, metric: Metric) -> Self {
        self.metric = Some(metric);
        self
    }

    /// How neighbours are found; [`Kind::Auto`] by default. Stored.
    pub fn kind(mut self, kind: Kind) -> Self {
        self.kind = Some(kind);
        self
    }

    /// Bits of a code: 4 or 8 for each sub-quantizer of a product quantizer, 1 for each dimension
    /// (RaBitQ, Gao and Long 2024); 0 (the default) chooses. Stored.
    pub fn pq_bits(mut self, bits: u8) -> Self {
        self.bits = Some(bits);
        self
    }

    /// Sub-quantizers of the product quantizer, 1 to `dim`; 0 (the default) chooses. Stored.
    pub fn pq_subquantizers(mut self, m: usize) -> Self {
        self.subquantizers = Some(m);
        self
    }

    /// Inverted lists; 0 (the default) chooses by the number of rows. Stored.
    pub fn nlist(mut self, nlist: usize) -> Self {
        self.nlist = Some(nlist);
        self
    }

    /// Seed of training. The same rows and seed give the same index on any number of threads.
    /// Stored.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Rows from which on an inverted index trains itself; 10,000 by default. Stored.
    pub fn train_at(mut self, rows: usize) -> Self {
        self.train_at = Some(rows);
        self
    }

    /// Bytes at which a row segment is closed and the next begun; 128 MiB by default. Stored.
    pub fn segment_bytes(mut self, bytes: u64) -> Self {
        self.segment_bytes = Some(bytes);
        self
    }

    /// When a change is safe; [`Durability::Commit`] by default.
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// Bytes of memory that training, folding and compacting may use; 512 MiB by default. Files
    /// mapped for search are in the page cache, which the system takes back, and do not count.
    pub fn memory(mut self, bytes: usize) -> Self {
        self.memory = bytes;
        self
    }

    /// Threads for training and batches; 0 (the default) for all processors. Upkeep has as many of its own, of
    /// low priority, that no caller waits for. Indexes that ask for equally many share them.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self
    }

    /// Who folds, trains and compacts; [`Maintenance::Background`] by default.
    pub fn maintenance(mut self, maintenance: Maintenance) -> Self {
        self.maintenance = maintenance;
        self
    }

    /// How the files are read; [`Reads::Map`] by default.
    pub fn reads(mut self, reads: Reads) -> Self {
        self.reads = reads;
        self
    }

    /// Whether a map may outlive its file; `true` by default. The first map then installs a handler of
    /// SIGBUS for the whole process: a search whose file another process truncates, or whose disk cannot
    /// be read, ends in an error instead of the signal. Signals that have nothing to do with our maps go
    /// to the handler that was there before. A host that has a handler of its own for SIGBUS installs
    /// it first, or turns this off.
    pub fn guard(mut self, guard: bool) -> Self {
        self.guard = guard;
        self
    }

    /// Whether a sample of the queries that are asked is kept, 1,000 at most and 2 MiB, in memory and in the
    /// catalog; `true` by default. Recall is then measured on them once there are enough: rows are like
    /// rows, but questions need not be. With `false` nothing of a query is kept.
    pub fn learn_queries(mut self, learn: bool) -> Self {
        self.learn_queries = learn;
        self
    }

    /// How long to wait for the lock of an index that another handle has open, before [`Error::Locked`] is the
    /// answer; not at all by default. Holds for creating, opening and repairing. Those who wait are let in one
    /// after the other, and who waits for longest asks most often; one who does not wait may come between.
    pub fn lock_wait(mut self, wait: Duration) -> Self {
        self.lock_wait = wait;
        self
    }

    /// Where the files live; the file system by default. Calls to an index that a disk makes itself fail with
    /// [`Error::InCallback`].
    pub fn disk(mut self, disk: Arc<dyn Disk>) -> Self {
        self.disk = Arc::new(Hosted::new(disk));
        self
    }

    /// Is told of each step of long work. It is called from several threads and must be quick. It may search,
    /// insert, remove and drop handles; what would wait for the work that calls it (`flush`, `train`, `compact`,
    /// `verify`, `close`, of any index) fails with [`Error::InCallback`]. It must not wait for another thread
    /// that makes such a call.
    pub fn progress(mut self, observer: impl Fn(Progress) + Send + Sync + 'static) -> Self {
        self.observer = Some(Arc::new(observer));
        self
    }

    pub(crate) fn check(&self) -> Result<()> {
        let dim = self.dim.ok_or_else(|| Error::invalid("dim", "must be given to create"))?;
        if !(1..=65_535).contains(&dim) {
            return Err(Error::invalid("dim", format!("{dim} is not within 1 to 65,535")));
        }
        let (bits, subquantizers) = (self.bits.unwrap_or(0), self.subquantizers.unwrap_or(0));
        if ![0, 1, 4, 8].contains(&bits) {
            return Err(Error::invalid("pq_bits", format!("{bits} is not 1, 4 or 8")));
        }
        if bits == 1 && subquantizers > 0 {
            let why = "a bit for each dimension leaves nothing to choose";
            return Err(Error::invalid("pq_subquantizers", why));
        }
        if subquantizers > dim {
            let why = format!("{subquantizers} is more than the {dim} dimensions");
            return Err(Error::invalid("pq_subquantizers", why));
        }
        if let Some(nlist) = self.nlist.filter(|nlist| *nlist > 16_384) {
            return Err(Error::invalid("nlist", format!("{nlist} is more than 16,384")));
        }
        if self.segment_bytes.is_some_and(|bytes| !(1 << 12..=1 << 40).contains(&bytes)) {
            return Err(Error::invalid("segment_bytes", "is not within 4 KiB to 1 TiB"));
        }
        self.check_opening()
    }

    /// What is not stored, and therefore said at each opening.
    pub(crate) fn check_opening(&self) -> Result<()> {
        if self.durability == Durability::Interval(Duration::ZERO) {
            let why =
                "an interval of zero never rests; `Durability::Commit` makes each change safe";
            return Err(Error::invalid("durability", why));
        }
        Ok(())
    }
}
