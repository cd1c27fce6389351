//! Creating and opening.

use super::asked::Asked;
use super::background::{Keeper, Signal};
use super::build::STEP;
use super::drift::Drift;
use super::model::{Model, list_routing};
use super::snapshot::{Indexed, Snapshot};
use super::tail::Tail;
use super::writer::{Queue, Writer, lost};
use super::{Index, Inner};
use crate::error::{Error, Given, Result};
use crate::kernel::Isa;
use crate::options::{Kind, Maintenance, Metric, Options};
use crate::planted::{self, Bug};
use crate::runtime::{Purpose, Runtime, Threads};
use crate::storage::directory::Directory;
use crate::storage::disk::Disk;
use crate::storage::files::Files;
use crate::storage::lists::List;
use crate::storage::lock::Patience;
use crate::storage::row_scan::RowBatch;
use crate::storage::{Image, ModelImage, Process, Store};
use crate::sync::lock;
use arc_swap::ArcSwap;
use cellardb_format::{BlockLayout, Config, KindCode, ListIdentity, MetricCode, NONE, Row};
use std::fmt::{self, Debug, Display};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The defaults of what is stored; that of the rest is its `Default`, or 0.
const TRAIN_AT: usize = 10_000;
const SEGMENT_BYTES: u64 = 128 << 20;

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
        Store::create(&self.disk, &path, &self.config()?, &self.patience())?;
        self.start(&path, true)
    }

    /// Opens an index for writing: one handle (and its clones) in one process at a time.
    ///
    /// # Errors
    ///
    /// As [`Index::open`]; [`Error::Dimension`] if the dimension, [`Error::Invalid`] if anything else that is
    /// stored and was given here is not what the index has.
    pub fn open(&self, path: impl AsRef<Path>) -> Result<Index> {
        self.start(&absolute(path.as_ref())?, true)
    }

    /// Opens the index, or makes it if there is none. Of an index that is there the dimension must be
    /// the one given here, and so must everything else that is stored, as far as it is given here (metric,
    /// kind, bits, sub-quantizers, lists, seed, `train_at`, `segment_bytes`). What is not stored (durability,
    /// memory, threads, maintenance, reads, guard) is taken from here.
    ///
    /// # Errors
    ///
    /// As [`Options::open`] and [`Options::create`].
    pub fn open_or_create(&self, path: impl AsRef<Path>) -> Result<Index> {
        match self.open(path.as_ref()) {
            Err(Error::NotFound { .. }) => match self.create(path.as_ref()) {
                // Another made it meanwhile.
                Err(Error::Exists { .. }) => self.open(path),
                other => other,
            },
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
            kind: match self.kind.unwrap_or_default() {
                Kind::Auto => KindCode::Auto,
                Kind::Exact => KindCode::Exact,
                Kind::IvfFlat => KindCode::IvfFlat,
                Kind::IvfPq => KindCode::IvfPq,
            },
            bits: self.bits.unwrap_or(0),
            m: small(self.subquantizers.unwrap_or(0)),
            nlist: small(self.nlist.unwrap_or(0)),
            seed: self.seed.unwrap_or(0),
            train_at: self.train_at.unwrap_or(TRAIN_AT) as u64,
            segment_bytes: self.segment_bytes.unwrap_or(SEGMENT_BYTES),
        })
    }

    /// What is stored holds. What was given and is something else is a mistake of the caller.
    pub(super) fn check_stored(&self, config: &Config) -> Result<()> {
        let expected = config.dim as usize;
        if let Some(found) = self.dim.filter(|dim| *dim != expected) {
            return Err(Error::Dimension { given: Given::Options, expected, found });
        }
        fn same<T: Display + PartialEq>(
            name: &'static str,
            asked: Option<T>,
            stored: T,
        ) -> Result<()> {
            match asked {
                Some(asked) if asked != stored => Err(Error::other(name, asked, stored)),
                _ => Ok(()),
            }
        }
        let wide = |asked: Option<usize>| asked.map(|n| n as u64);
        same("metric", self.metric.map(Named), Named(config.metric.into()))?;
        same("kind", self.kind.map(Named), Named(config.kind.into()))?;
        same("pq_bits", self.bits, config.bits)?;
        same("pq_subquantizers", wide(self.subquantizers), config.m.into())?;
        same("nlist", wide(self.nlist), config.nlist.into())?;
        same("seed", self.seed, config.seed)?;
        same("train_at", wide(self.train_at), config.train_at)?;
        same("segment_bytes", self.segment_bytes, config.segment_bytes)
    }

    fn start(&self, dir: &Path, write: bool) -> Result<Index> {
        self.check_opening()?;
        let disk = self.files();
        let (store, image) = Store::open(&disk, dir, write, &self.patience())?;
        self.assemble(dir, write, store, image)
    }

    /// How long to wait for the lock.
    pub(super) fn patience(&self) -> Patience {
        Patience::new(self.lock_wait)
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
        self.check_stored(&store.config)?;
        let mut options = self.clone();
        options.disk = Arc::clone(&store.disk);
        let background = write && options.maintenance == Maintenance::Background;
        let (dim, metric, isa) =
            (store.config.dim as usize, Metric::from(store.config.metric), Isa::detect());
        // Whoever only reads measures nothing, and whoever is not to learn forgets.
        let asked = Asked::new(write && options.learn_queries);
        let forget = write && !options.learn_queries && image.asked.is_some();
        if let Some(record) = &image.asked {
            asked.restore(record, dim);
        }
        let runtime = Runtime::current();
        let threads = |purpose| runtime.threads(purpose, options.threads);
        let calls = threads(Purpose::Calls);
        // Without a model there is nothing to share.
        let snapshot = match image.model.is_some() {
            true => calls.run(|| snapshot(&store, image, metric))?,
            false => snapshot(&store, image, metric)?,
        };
        let (config, home) = (store.config.clone(), store.home.clone());
        let writer = Writer::new(store, snapshot.clone(), !write);
        let inner = Inner {
            process: Process::current(),
            dir: dir.to_owned(),
            home,
            options: options.clone(),
            config,
            dim,
            metric,
            isa,
            current: ArcSwap::from_pointee(snapshot.clone()),
            queue: Queue::new(lost),
            told: writer.told(),
            writer: Mutex::new(writer),
            upkeep: Mutex::new(()),
            catching_up: Mutex::new(()),
            signal: Signal::default(),
            asked,
            calls,
            folds: threads(Purpose::Folds),
            trainings: threads(Purpose::Trainings),
        };
        let inner = Arc::new(inner);
        if forget {
            inner.forget_asked()?;
        }
        if options.maintenance == Maintenance::Manual {
            inner.catch_up(&inner.calls)?;
        }
        let keeper = Arc::new(Keeper::start(&inner, background)?);
        if background {
            inner.upkeep_if_due((Duration::ZERO, false));
        }
        Ok(Index { inner, _keeper: keeper })
    }
}

/// A metric or a kind in a message.
#[derive(PartialEq)]
struct Named<T>(T);

impl<T: Debug> Display for Named<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl From<MetricCode> for Metric {
    fn from(code: MetricCode) -> Self {
        match code {
            MetricCode::L2 => Self::L2,
            MetricCode::InnerProduct => Self::InnerProduct,
            MetricCode::Cosine => Self::Cosine,
        }
    }
}

impl From<KindCode> for Kind {
    fn from(code: KindCode) -> Self {
        match code {
            KindCode::Auto => Self::Auto,
            KindCode::Exact => Self::Exact,
            KindCode::IvfFlat => Self::IvfFlat,
            KindCode::IvfPq => Self::IvfPq,
        }
    }
}

/// A path that leads to the same place when the process has gone to another directory.
pub(super) fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(Error::io("find", path))
}

/// The snapshot that the catalog describes, before any of the tail is encoded.
fn snapshot(store: &Store, image: Image, metric: Metric) -> Result<Snapshot> {
    let Image { state, rows, dead, model, asked: _ } = image;
    let indexed = match model {
        Some(model) => Some(open_lists(store, model, metric)?),
        None => None,
    };
    let tail = Tail::new(indexed.as_ref().map_or(0, |i| i.lists.len()));
    let plain = if indexed.is_some() { state.watermark..state.next_id } else { 0..0 };
    let drift =
        indexed.as_ref().map_or_else(Drift::default, |i| Drift::stored(&i.settings, &state));
    Ok(Snapshot { state, rows, dead, indexed, tail, plain, drift })
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
    /// Encodes the rows that were left plain when the index was opened, in some threads. Needs no upkeep: once
    /// they are encoded there are none until it is opened again, and whoever holds the upkeep begins with this.
    pub(crate) fn catch_up(&self, threads: &Threads) -> Result<()> {
        if self.snapshot().plain.is_empty() {
            return Ok(());
        }
        let _catching_up = lock(&self.catching_up);
        let snapshot = self.snapshot();
        let Some(indexed) = &snapshot.indexed else { return Ok(()) };
        if snapshot.plain.is_empty() {
            return Ok(());
        }
        let model = &*indexed.model;
        let plain = snapshot.plain.clone();
        let end = (&model.layout, model.code_len(), plain.end);
        let mut tail = Tail::new(indexed.lists.len());
        let mut drift = Drift::default();
        threads.run(|| self.encode_tail(&snapshot, model, plain, (&mut tail, &mut drift), STEP))?;
        // Rows that came meanwhile were encoded when they came. Most of them are added before the writer is held.
        let ahead = self.snapshot();
        let ahead = threads.run(|| Ok(tail.with(&ahead.tail, end, None)))?;
        let mut writer = self.writer();
        let poisoned = writer.poisoned().is_some();
        // After a failure nobody knows what the working copy holds.
        let mut next = if poisoned { (*self.snapshot()).clone() } else { writer.working.clone() };
        if !planted::on(Bug::CatchUpForgets) {
            tail = tail.with(&next.tail, end, Some(ahead)).tail();
        }
        (next.tail, next.plain) = (tail, 0..0);

        if !poisoned {
            writer.working = next.clone();
        }
        self.publish(next);
        Ok(())
    }

    /// Encodes committed rows into a tail. The rows name their cells, as long as they were assigned
    /// under the present model. So many at a time; runs in our threads, unless these are few.
    pub(crate) fn encode_tail(
        &self,
        snapshot: &Snapshot,
        model: &Model,
        ids: Range<u64>,
        (tail, drift): (&mut Tail, &mut Drift),
        step: usize,
    ) -> Result<()> {
        let mut batch = RowBatch::default();
        let mut scan = snapshot.rows.scan(&*self.options.disk, ids.start, ids.end);
        while scan.next(step, &mut batch)? {
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
                model.encode(&batch.vectors, &scales, cells)
            } else {
                self.encoded(model, &batch.vectors, &scales)
            };
            let first = batch.rows.first().map_or(0, |row| row.id);
            drift.note(first, encoded.distances());
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
