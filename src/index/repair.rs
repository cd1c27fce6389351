//! Bringing back all but the damaged part. Everything new is written beside what is there: the rename of
//! the new catalog is the one commit point. SPEC.md, section 8.

use super::Index;
use super::open::absolute;
use super::verify::{Damage, Report};
use crate::error::{Error, Given, Result};
use crate::options::{Maintenance, Metric, Options};
use crate::storage::aside::{self, copy_aside, set_aside};
use crate::storage::disk::Disk;
use crate::storage::lock::{Lock, Patience};
use crate::storage::row_scan::RowBatch;
use crate::storage::salvage::{Files, Salvage, Salvaged, unreadable};
use crate::storage::spans::Spans;
use crate::storage::{
    CATALOG, Change, Known, Store, Table, folders, no_link, not_found, put_segment, shape,
    write_catalog,
};
use cellardb_format::{Config, FileHeader, KindCode, State, Tombstones};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// The new catalog, before it takes its name.
const FRESH: &str = "catalog.repair";

/// What [`Index::repair`] found and did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Repaired {
    /// What was damaged, as far as it was looked for; empty if nothing was, and then nothing was done.
    pub damage: Vec<Damage>,
    /// Rows that the index has now.
    pub rows: u64,
    /// Ids whose rows are lost. They are never given again.
    pub lost: Vec<Range<usize>>,
    /// Ids that have no row, and of which only the lost catalog told whether they were removed.
    pub unknown: Vec<Range<usize>>,
    /// Lists that were built anew from the rows.
    pub lists: u64,
    /// Whether the catalog did not say which rows count, so that all that are whole were taken.
    pub catalog: bool,
    /// What was damaged and is kept, under these names; nothing reads it but another repair.
    pub aside: Vec<PathBuf>,
    /// What was done, and what it may mean.
    pub notes: Vec<String>,
}

impl Index {
    /// Brings back all but the damaged part of an index: rows that are whole, under their ids; removals
    /// and settings, as far as they are known; lists, trained anew. Changes nothing if nothing is damaged.
    /// A crash at any point leaves an index that can be repaired again, and nothing more is lost.
    ///
    /// Without a catalog it must be told the metric, and the kind if it is not [`Kind::Auto`](crate::Kind::Auto):
    /// see [`Options::repair`].
    ///
    /// # Errors
    ///
    /// [`Error::Locked`] while another handle has it; [`Error::NotFound`]; [`Error::Invalid`] for what has
    /// to be said, or contradicts what is stored; [`Error::Io`].
    pub fn repair(path: impl AsRef<Path>) -> Result<Repaired> {
        Options::stored().repair(path)
    }
}

impl Options {
    /// [`Index::repair`] with options. Those that an index stores are taken from what is left of it; where
    /// that tells none, from here.
    ///
    /// # Errors
    ///
    /// As [`Index::repair`].
    pub fn repair(&self, path: impl AsRef<Path>) -> Result<Repaired> {
        let dir = &*absolute(path.as_ref())?;
        let disk = &*self.disk;
        let rows = disk.list(&dir.join("rows")).unwrap_or_default();
        let names = disk.list(dir).unwrap_or_default();
        if rows.is_empty() && !names.contains(&dir.join(CATALOG)) {
            return Err(not_found(disk, dir));
        }
        // What a link hides is neither lost nor ours to move.
        no_link(disk, &dir.join("rows"))?;
        let mut done = Repaired::default();
        let mut lock = take_lock(disk, dir, &self.patience(), &mut done)?;
        let mut options = self.clone();
        options.maintenance = Maintenance::Manual;
        (done.damage, done.rows) = options.diagnose(dir, &mut lock)?;
        if done.damage.is_empty() {
            return Ok(done);
        }
        let lists = done.damage.iter().any(|damage| damage.path != dir.join("LOCK"));
        if lists {
            options.rebuild(dir, &lock, &mut done)?;
        } else {
            done.notes.push("LOCK was another index's and is written anew".into());
        }
        done.rows = options.conclude(dir, lock)?;
        Ok(done)
    }

    /// What is wrong, and the rows that there are, found without a change.
    fn diagnose(&self, dir: &Path, lock: &mut Lock) -> Result<(Vec<Damage>, u64)> {
        let opened = Store::load(&self.files(), dir, CATALOG, false, lock.found, &self.patience());
        let verified = opened.and_then(|(store, image)| {
            let uuid = store.config.uuid;
            let index = self.assemble(dir, false, store, image)?;
            let mut report = index.verify()?;
            if let Err(e) = lock.verify(&*self.disk, &uuid) {
                report.note(e)?;
            }
            Ok((report.damage, index.len() as u64))
        });
        match verified {
            Err(Error::NotFound { .. }) => Err(Error::NotFound { path: dir.to_owned() }),
            Err(e) if matches!(e, Error::Corrupt { .. }) || unreadable(&e) => {
                let mut report = Report::default();
                report.note(e)?;
                Ok((report.damage, 0))
            }
            other => other,
        }
    }

    /// Makes a new catalog of all that is whole, with lists if there were any, and lets it take the
    /// place of the old one.
    fn rebuild(&self, dir: &Path, lock: &Lock, done: &mut Repaired) -> Result<()> {
        let disk = &*self.disk;
        for folder in [dir.join("rows"), dir.join("lists")] {
            if disk.open(&folder, false).is_ok() || is_linked(disk, dir, &folder)? {
                done.aside.push(set_aside(disk, &folder)?);
            }
            disk.create_dir(&folder).map_err(Error::io("create", &folder))?;
        }
        let files = Files::find(disk, dir)?;
        let mut known = Known::read(disk, dir, lock.found.as_ref(), &files.headers)?;
        let config = self.settle(&known, &files.headers)?;
        let had = known.segments.is_some();
        let progress = |n, of| {
            if let Some(observer) = &self.observer {
                observer(crate::Progress { stage: "reading rows", done: n, total: of });
            }
        };
        let salvage = Salvage { disk, dir, shape: shape(&config), files, progress: &progress };
        let saved = salvage.run(&mut known)?;
        self.check_metric(&config, &known, &saved)?;
        let last = known.state.as_ref().map_or(0, |state| state.generation);
        let floor = generations(disk, dir).max(last);
        let fresh = dir.join(FRESH);
        done.aside.extend(aside::clear(disk, &fresh)?);
        let state = state(&known, &saved);
        write_catalog(disk, &fresh, &config, &state, change(&known, &saved))?;
        let trained = if had { last > 0 } else { floor > 0 };
        if trained {
            done.lists = self.train_fresh(dir, floor, done)?;
        }
        // Nothing takes the name of the catalog that would not open.
        Store::load(&self.files(), dir, FRESH, false, None, &self.patience())?;
        done.catalog = !had;
        (done.lost, done.unknown) = (ranges(&saved.lost), ranges(&saved.unknown));
        notes(done, &known);
        self.switch(dir, &known, &saved, done)
    }

    /// The configuration: what the catalog has of it, else what the caller and the files say.
    fn settle(&self, known: &Known, headers: &[FileHeader]) -> Result<Config> {
        if let Some(config) = &known.config {
            self.check_stored(config)?;
            return Ok(config.clone());
        }
        if self.metric.is_none() {
            let why = "nothing is left of the catalog that tells it; say which it was by `Options::metric`, \
                       or by --metric of `cellardb repair` (and the kind, if it was not chosen by itself)";
            return Err(Error::invalid("metric", why));
        }
        let mut dims: Vec<u32> =
            headers.iter().filter(|h| h.uuid == known.uuid).map(|h| h.dim).collect();
        dims.sort_unstable();
        let found = dims.get(dims.len() / 2).map(|dim| *dim as usize);
        let mut options = self.clone();
        match (self.dim, found) {
            (Some(wanted), Some(found)) if wanted != found => {
                let (given, expected, found) = (Given::Options, found, wanted);
                return Err(Error::Dimension { given, expected, found });
            }
            (None, None) => {
                let why = "neither the catalog nor the header of a row segment is left to tell it";
                return Err(Error::invalid("dim", why));
            }
            (wanted, found) => options.dim = found.or(wanted),
        }
        options.check()?;
        Ok(Config { uuid: known.uuid, ..options.config()? })
    }

    /// Rows carry the factor that normalises them: whether the caller named the right metric.
    fn check_metric(&self, config: &Config, known: &Known, saved: &Salvaged) -> Result<()> {
        if known.config.is_some() {
            return Ok(());
        }
        let (mut scan, mut batch) =
            (saved.rows.scan(&*self.disk, 0, saved.next_id), RowBatch::default());
        let cosine = self.metric == Some(Metric::Cosine);
        while scan.next(1024, &mut batch)? {
            let vectors = batch.vectors.chunks_exact(config.dim as usize);
            for (row, vector) in batch.rows.iter().zip(vectors) {
                let squared: f64 = vector.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
                let normal = (1.0 / squared.sqrt()) as f32;
                if row.scale != if cosine { normal } else { 1.0 } {
                    let id = row.id;
                    let why = format!("row {id} was not inserted under it: cosine or not?");
                    return Err(Error::invalid("metric", why));
                }
            }
            batch.clear();
        }
        Ok(())
    }

    /// Trains the index of the new catalog, above every generation that has files. Returns its lists.
    fn train_fresh(&self, dir: &Path, floor: u32, done: &mut Repaired) -> Result<u64> {
        let (store, mut image) =
            Store::load(&self.files(), dir, FRESH, true, None, &self.patience())?;
        image.state.generation = floor;
        let mut options = self.clone();
        options.maintenance = Maintenance::Manual;
        if store.config.kind == KindCode::Exact {
            return Ok(0);
        }
        let index = options.assemble(dir, true, store, image)?;
        match index.train() {
            Err(e @ Error::Invalid { .. }) => done.notes.push(e.to_string()),
            other => other?,
        }
        let lists = index.stats().lists;
        let (live, least) = (index.stats().rows, index.stats().train_at);
        if lists == 0 && live < least {
            done.notes.push(format!(
                "the index is exact now: {live} rows are fewer than its train_at of {least}, from which on \
                 it trains itself"
            ));
        }
        index.close()?;
        Ok(lists)
    }

    /// Sets aside what is not read any more and gives the new catalog its name: the commit point.
    fn switch(
        &self,
        dir: &Path,
        known: &Known,
        saved: &Salvaged,
        done: &mut Repaired,
    ) -> Result<()> {
        let disk = &*self.disk;
        let sync = |path: &Path| disk.sync_dir(path).map_err(Error::io("sync", path));
        let (fresh, path) = (dir.join(FRESH), dir.join(CATALOG));
        if known.file {
            // Whole or not, it is kept, and under its name until the new one takes that: what it knows must
            // not be lost by a crash.
            done.aside.extend(copy_aside(disk, &path)?);
        } else if !known.file && disk.list(dir).unwrap_or_default().contains(&path) {
            done.aside.push(set_aside(disk, &path)?);
        }
        for file in &saved.aside {
            done.aside.push(set_aside(disk, file)?);
        }
        done.aside.extend(clear_lists(disk, dir)?);
        sync(&dir.join("rows"))?;
        sync(dir)?;
        disk.rename(&fresh, &path).map_err(Error::io("rename", &fresh))?;
        sync(dir)
    }

    /// Opens the index in earnest, which writes `LOCK` and sweeps, and verifies it.
    fn conclude(&self, dir: &Path, lock: Lock) -> Result<u64> {
        let (store, image) = Store::admit(&self.files(), dir, true, lock, &self.patience())?;
        let index = self.assemble(dir, true, store, image)?;
        let report = index.verify()?;
        let rows = index.len() as u64;
        index.close()?;
        match report.damage.into_iter().next() {
            None => Ok(rows),
            Some(Damage { path, offset, what }) => Err(Error::corrupt(path, offset, what)),
        }
    }
}

/// Takes the lock. What is in its place and no file is set aside.
fn take_lock(
    disk: &dyn Disk,
    dir: &Path,
    patience: &Patience,
    done: &mut Repaired,
) -> Result<Lock> {
    match Lock::take(disk, dir, true, patience, false) {
        Err(Error::Corrupt { path, .. }) => {
            done.aside.push(set_aside(disk, &path)?);
            done.notes.push("LOCK was no file; another is in its place".into());
            Lock::take(disk, dir, true, patience, false)
        }
        other => other,
    }
}

/// Whether a folder, or one in it, is a link.
fn is_linked(disk: &dyn Disk, dir: &Path, folder: &Path) -> Result<bool> {
    for path in folders(disk, dir).into_iter().filter(|path| path.starts_with(folder)) {
        if disk.is_link(&path).map_err(Error::io("look for", path))? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// No index is trained so often.
const MOST_TRAININGS: u32 = 1 << 30;

/// The greatest model generation that has a folder, as far as an index can come to it.
fn generations(disk: &dyn Disk, dir: &Path) -> u32 {
    let folders = disk.list(&dir.join("lists")).unwrap_or_default();
    let name = |path: &PathBuf| path.file_name()?.to_str()?.strip_prefix('g')?.parse().ok();
    folders.iter().filter_map(name).filter(|n| *n < MOST_TRAININGS).max().unwrap_or(0)
}

/// Sets aside what has the name of a list and cannot be swept: it is no file.
fn clear_lists(disk: &dyn Disk, dir: &Path) -> Result<Vec<PathBuf>> {
    let mut aside = Vec::new();
    for generation in disk.list(&dir.join("lists")).unwrap_or_default() {
        for folder in disk.list(&generation).unwrap_or_default() {
            let names = disk.list(&folder).unwrap_or_default();
            for path in names.iter().filter(|path| path.extension().is_some_and(|e| e == "list")) {
                let special = |e: std::io::Error| e.kind() == std::io::ErrorKind::InvalidData;
                if disk.open(path, false).is_err_and(special) {
                    aside.push(set_aside(disk, path)?);
                }
            }
        }
    }
    Ok(aside)
}

/// The state of the new catalog: no lists yet.
fn state(known: &Known, saved: &Salvaged) -> State {
    let rows: u64 = saved.rows.segments().map(|segment| segment.rows).sum();
    let small = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    State {
        seq: known.seq.saturating_add(1),
        next_id: saved.next_id,
        live: rows - known.dead.len(),
        watermark: 0,
        next_segment: saved.next_segment,
        next_revision: known.state.as_ref().map_or(0, |state| state.next_revision),
        generation: 0,
        segments: small(saved.rows.segments().count()),
        lists: 0,
        dead_keys: small(known.dead.keys()),
        dead: known.dead.len(),
        since_measured: 0,
        since_beyond: 0,
        since_far: 0,
    }
}

fn change(known: &Known, saved: &Salvaged) -> Change {
    let mut change = Change::default();
    for segment in saved.rows.segments() {
        put_segment(&mut change, segment);
    }
    for (key, set) in known.dead.chunks() {
        change.put(Table::Dead, key, Tombstones(set.clone()).encode());
    }
    change
}

fn notes(done: &mut Repaired, known: &Known) {
    let mut note = |text: &str| done.notes.push(text.to_owned());
    if done.catalog {
        note(
            "the catalog did not say which rows count: every row that is whole was taken, those of \
             inserts that a crash cut short before they were acknowledged among them",
        );
        if known.config.is_none() {
            note(
                "metric, kind and the other options are those given with this repair; rows do not \
                 tell L2 and inner product apart: with the wrong one every answer is wrong",
            );
        }
    }
    if !known.all_dead {
        note("which rows were removed is not known for certain: some may have come back");
    }
    if !done.unknown.is_empty() {
        note("some ids have no row, and it cannot be told whether they were removed or lost");
    }
    if done.lists > 0 {
        note("the lists were trained anew from the rows");
    }
}

/// Ids as the caller knows them.
fn ranges(spans: &Spans) -> Vec<Range<usize>> {
    spans.iter().map(|ids| ids.start as usize..ids.end as usize).collect()
}
