//! Creating and opening.

use super::build::STEP;
use super::maintain::{Keeper, Signal, measured_with};
use super::model::{Model, list_routing};
use super::snapshot::{Indexed, Snapshot};
use super::tail::Tail;
use super::writer::{Queue, Writer, lost};
use super::{Index, Inner, run_in};
use crate::error::{Error, Result};
use crate::kernel::Isa;
use crate::options::{Kind, Maintenance, Metric, Options};
use crate::planted::{self, Bug};
use crate::storage::directory::Directory;
use crate::storage::disk::Disk;
use crate::storage::files::Files;
use crate::storage::lists::List;
use crate::storage::row_scan::RowBatch;
use crate::storage::{Image, ModelImage, Process, Store};
use crate::sync::lock;
use arc_swap::ArcSwap;
use cellardb_format::{BlockLayout, Config, KindCode, ListIdentity, MetricCode, NONE, Row};
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, Weak};

impl Options {
    /// Makes an index in a directory that has none, and opens it.
    ///
    /// # Errors
    ///
    /// [`Error::Exists`], [`Error::Invalid`] for options without meaning, [`Error::Io`];
    /// [`Error::Corrupt`] over the rows of an index that lost its catalog.
    pub fn create(&self, path: impl AsRef<Path>) -> Result<Index> {
        self.check()?;
        let path = absolute(path.as_ref())?;
        Store::create(&self.disk, &path, &self.config()?)?;
        self.start(&path, true)
    }

    /// Opens an index for writing: one handle (and its clones) in one process at a time.
    ///
    /// # Errors
    ///
    /// As [`Index::open`]; [`Error::Dimension`] and [`Error::Invalid`] if the dimension or the metric is
    /// not the stored one.
    pub fn open(&self, path: impl AsRef<Path>) -> Result<Index> {
        self.start(&absolute(path.as_ref())?, true)
    }

    /// Opens the index, or makes it if there is none. Of an index that is there the dimension must be
    /// the one given here, and the metric too if one is given. Everything else that is stored (kind, bits,
    /// sub-quantizers, lists, seed, `train_at`, `segment_bytes`) is that of the index, whatever is given here;
    /// [`Index::stats`] tells. What is not stored (durability, memory, threads, maintenance, reads, guard)
    /// is taken from here.
    ///
    /// # Errors
    ///
    /// As [`Options::open`] and [`Options::create`].
    pub fn open_or_create(&self, path: impl AsRef<Path>) -> Result<Index> {
        match self.open(path.as_ref()) {
            Err(Error::NotFound { .. }) => self.create(path),
            other => other,
        }
    }

    /// Opens an index for reading; see [`Index::open_read_only`].
    ///
    /// # Errors
    ///
    /// As [`Options::open`].
    pub fn open_read_only(&self, path: impl AsRef<Path>) -> Result<Index> {
        self.start(&absolute(path.as_ref())?, false)
    }

    pub(super) fn config(&self) -> Result<Config> {
        let mut uuid = [0; 16];
        rustix::rand::getrandom(&mut uuid, rustix::rand::GetRandomFlags::empty())
            .map_err(|e| Error::io("draw an identity for", "the index")(e.into()))?;
        let small = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Ok(Config {
            uuid,
            dim: small(self.dim.unwrap_or(0)),
            metric: match self.metric.unwrap_or_default() {
                Metric::L2 => MetricCode::L2,
                Metric::InnerProduct => MetricCode::InnerProduct,
                Metric::Cosine => MetricCode::Cosine,
            },
            kind: match self.kind {
                Kind::Auto => KindCode::Auto,
                Kind::Exact => KindCode::Exact,
                Kind::IvfFlat => KindCode::IvfFlat,
                Kind::IvfPq => KindCode::IvfPq,
            },
            bits: self.bits,
            m: small(self.subquantizers),
            nlist: small(self.nlist),
            seed: self.seed,
            train_at: self.train_at as u64,
            segment_bytes: self.segment_bytes,
        })
    }

    /// What is stored holds. Another dimension or metric than that is a mistake of the caller, the
    /// rest of what is stored is taken as it is.
    pub(super) fn with_stored(&self, config: &Config) -> Result<Self> {
        let dim = config.dim as usize;
        if self.dim.is_some_and(|wanted| wanted != dim) {
            let found = self.dim.unwrap_or(0);
            return Err(Error::Dimension { expected: dim, found });
        }
        let mut options = self.clone();
        options.dim = Some(dim);
        let metric = match config.metric {
            MetricCode::L2 => Metric::L2,
            MetricCode::InnerProduct => Metric::InnerProduct,
            MetricCode::Cosine => Metric::Cosine,
        };
        if self.metric.is_some_and(|wanted| wanted != metric) {
            let why = format!(
                "{:?} was asked for, the index has {metric:?}; `Options::stored` takes what is stored",
                self.metric.unwrap_or(metric)
            );
            return Err(Error::invalid("metric", why));
        }
        options.metric = Some(metric);
        options.kind = match config.kind {
            KindCode::Auto => Kind::Auto,
            KindCode::Exact => Kind::Exact,
            KindCode::IvfFlat => Kind::IvfFlat,
            KindCode::IvfPq => Kind::IvfPq,
        };
        (options.bits, options.subquantizers) = (config.bits, config.m as usize);
        (options.nlist, options.seed) = (config.nlist as usize, config.seed);
        options.train_at = usize::try_from(config.train_at).unwrap_or(usize::MAX);
        options.segment_bytes = config.segment_bytes;
        Ok(options)
    }

    fn start(&self, dir: &Path, write: bool) -> Result<Index> {
        self.check_opening()?;
        let disk = self.files();
        let (store, image) = Store::open(&disk, dir, write)?;
        self.assemble(dir, write, store, image)
    }

    /// The disk with what is between it and the engine: few descriptors, maps or none.
    pub(super) fn files(&self) -> Arc<dyn Disk> {
        Arc::new(Files::new(Arc::clone(&self.disk), self.reads, self.guard))
    }

    /// The index that a store describes.
    pub(super) fn assemble(
        &self,
        dir: &Path,
        write: bool,
        store: Store,
        image: Image,
    ) -> Result<Index> {
        let mut options = self.with_stored(&store.config)?;
        options.disk = Arc::clone(&store.disk);
        let background = write && options.maintenance == Maintenance::Background;
        let (dim, metric, isa) =
            (store.config.dim as usize, options.metric.unwrap_or_default(), Isa::detect());
        let pool = threads(options.threads)?;
        let snapshot = run_in(&pool, || snapshot(&store, image, metric))?;
        let inner = Inner {
            process: Process::current(),
            dir: dir.to_owned(),
            home: store.home.clone(),
            options: options.clone(),
            dim,
            metric,
            isa,
            current: ArcSwap::from_pointee(snapshot.clone()),
            queue: Queue::new(lost),
            writer: Mutex::new(Writer::new(store, snapshot.clone(), !write)),
            upkeep: Mutex::new(()),
            signal: Signal::default(),
            measured: AtomicU64::new(measured_with(&snapshot)),
            pool,
        };
        let inner = Arc::new(inner);
        if options.maintenance == Maintenance::Manual {
            inner.catch_up()?;
        }
        let keeper = Arc::new(Keeper::start(&inner, background)?);
        if background {
            inner.upkeep_if_due()?;
        }
        Ok(Index { inner, _keeper: keeper })
    }
}

/// A path that leads to the same place when the process has gone to another directory.
pub(super) fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(Error::io("find", path))
}

/// The threads of an index, which sleep until there is work for them. Indexes of a process that ask
/// for equally many share them.
fn threads(n: usize) -> Result<Arc<ThreadPool>> {
    static POOLS: Mutex<Vec<(Process, usize, Weak<ThreadPool>)>> = Mutex::new(Vec::new());
    let (mut pools, here) = (lock(&POOLS), Process::current());
    // The threads of a process that this one was forked from are not here.
    pools.retain(|(process, _, pool)| *process == here && pool.strong_count() > 0);
    let found = pools.iter().find(|(_, threads, _)| *threads == n);
    if let Some(pool) = found.and_then(|(.., pool)| pool.upgrade()) {
        return Ok(pool);
    }
    let builder = ThreadPoolBuilder::new().thread_name(|i| format!("cellar-{i}")).num_threads(n);
    let pool = Arc::new(builder.build().map_err(|e| {
        Error::io("start the threads of", "the index")(std::io::Error::other(e.to_string()))
    })?);
    pools.push((here, n, Arc::downgrade(&pool)));
    Ok(pool)
}

/// The snapshot that the catalog describes, before any of the tail is encoded.
fn snapshot(store: &Store, image: Image, metric: Metric) -> Result<Snapshot> {
    let Image { state, rows, dead, model } = image;
    let indexed = match model {
        Some(model) => Some(open_lists(store, model, metric)?),
        None => None,
    };
    let tail = Tail::new(indexed.as_ref().map_or(0, |i| i.lists.len()));
    let plain = if indexed.is_some() { state.watermark..state.next_id } else { 0..0 };
    Ok(Snapshot { state, rows, dead, indexed, tail, plain })
}

fn open_lists(store: &Store, image: ModelImage, metric: Metric) -> Result<Indexed> {
    let dim = store.config.dim as usize;
    let (generation, path) = (image.record.generation, store.dir.join("catalog.redb"));
    let cells: Vec<Range<u32>> = image
        .routing
        .iter()
        .map(|list| list.first_cell..list.first_cell.saturating_add(list.scales.len() as u32))
        .collect();
    let layout = BlockLayout::new(image.record.code, image.record.m as usize, dim);
    let open = || -> Result<Vec<Arc<List>>> {
        let lists = image.entries.into_iter().zip(cells).zip(0..);
        let lists = lists.map(|((entry, cells), list)| {
            let (uuid, revision) = (store.config.uuid, entry.revision);
            let id = ListIdentity { uuid, list, generation, revision };
            let list = List::open(&*store.disk, &store.dir, id, (dim, layout), cells, entry)?;
            Ok(Arc::new(list))
        });
        lists.collect()
    };
    let routing = image.routing.into_iter().map(list_routing).collect();
    let (model, lists) = rayon::join(
        || Model::new(image.record, metric, image.center, image.codebook, routing),
        open,
    );
    let model = model
        .ok_or_else(|| Error::corrupt(path, 0, "the parts of the model do not fit together"))?;
    let lists = lists?;
    let settings = Arc::new(image.settings);
    Ok(Indexed { model: Arc::new(model), lists: Arc::new(Directory::new(lists)), settings })
}

impl Inner {
    /// Encodes the rows of the tail that were left plain when the index was opened.
    pub(crate) fn catch_up(&self) -> Result<()> {
        let _upkeep = lock(&self.upkeep);
        self.catch_up_now()
    }

    /// Encodes the plain rows; the caller holds the upkeep.
    pub(crate) fn catch_up_now(&self) -> Result<()> {
        let snapshot = self.snapshot();
        let Some(indexed) = &snapshot.indexed else { return Ok(()) };
        if snapshot.plain.is_empty() {
            return Ok(());
        }
        let model = &*indexed.model;
        let mut tail = Tail::new(indexed.lists.len());
        self.encode_tail(&snapshot, model, snapshot.plain.clone(), &mut tail)?;
        let mut writer = self.writer();
        let poisoned = writer.poisoned().is_some();
        // After a failure nobody knows what the working copy holds.
        let mut next = if poisoned { (*self.snapshot()).clone() } else { writer.working.clone() };
        // Rows that came meanwhile were encoded when they came.
        if !planted::on(Bug::CatchUpForgets) {
            tail.add(&next.tail, &model.layout, model.code_len(), snapshot.plain.end);
        }
        (next.tail, next.plain) = (tail, 0..0);
        if !poisoned {
            writer.working = next.clone();
        }
        self.publish(next);
        Ok(())
    }

    /// Encodes committed rows into a tail. The rows name their cells, as long as they were assigned
    /// under the present model.
    pub(crate) fn encode_tail(
        &self,
        snapshot: &Snapshot,
        model: &Model,
        ids: Range<u64>,
        tail: &mut Tail,
    ) -> Result<()> {
        let mut batch = RowBatch::default();
        let mut scan = snapshot.rows.scan(&*self.options.disk, ids.start, ids.end);
        while scan.next(STEP, &mut batch)? {
            self.go_on()?;
            let scales: Vec<f32> = batch.rows.iter().map(|row| row.scale).collect();
            let cells = model.router.cells();
            let known = batch.rows.iter().all(|row| {
                let spill = row.spill == NONE || (row.spill as usize) < cells;
                row.generation == model.generation() && (row.cell as usize) < cells && spill
            });
            let encoded = if known {
                let cells = |row: &Row| [row.cell, row.spill].into_iter().take(model.copies());
                let cells = batch.rows.iter().flat_map(cells).collect();
                self.run(|| model.encode(&batch.vectors, &scales, cells))
            } else {
                self.encode(Some(model), &batch.vectors, &scales)?
            };
            for (row, copies) in batch.rows.iter().zip(encoded.rows()) {
                if !snapshot.dead.contains(row.id) {
                    copies.for_each(|copy| tail.push(model, copy, row.id));
                }
            }
            batch.clear();
        }
        Ok(())
    }
}
