//! Moving the tail into the list files: new frames behind the old ones, or a new revision where
//! the list has become fragmented. SPEC.md, section 7.

use super::Inner;
use super::frames::{add, cell_bytes, gather, write_cell};
use super::snapshot::{Indexed, Snapshot};
use super::tail::{Made, Tail, TailCell};
use crate::error::Result;
use crate::planted::{self, Bug};
use crate::storage::directory::Directory;
use crate::storage::lists::{self, List, Together, Written};
use crate::storage::{Change, Table};
use cellardb_format::{HEADER_LEN, ListIdentity};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

/// What happens to a list in a fold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Keep,
    Append,
    Rewrite { revision: u32 },
}

/// Rounds of work ahead of a commit, and what is little enough to be done while the writer is held.
pub(crate) const ROUNDS: usize = 8;
const FEW_LISTS: usize = 16;

/// What a fold has made of the lists.
struct Folded {
    indexed: Indexed,
    change: Change,
    replaced: Vec<PathBuf>,
    freed: u64,
}

/// Which lists are written anew although they need not be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rewrite {
    /// None: only fragmented ones.
    Fragmented,
    /// Those that hold removed rows, and fragmented ones.
    Dead,
}

impl Inner {
    /// Folds the tail into the lists.
    pub(crate) fn fold(&self) -> Result<()> {
        let _upkeep = self.hold_upkeep();
        self.fold_now(Rewrite::Fragmented).map(|_| ())
    }

    /// Folds; the caller holds the upkeep. Returns the bytes that rewriting gave back.
    pub(crate) fn fold_now(&self, rewrite: Rewrite) -> Result<u64> {
        self.writer().begin()?;
        self.catch_up(&self.folds)?;
        let snapshot = self.snapshot();
        let Some(indexed) = &snapshot.indexed else { return Ok(0) };
        let watermark = snapshot.state.next_id;
        let mut next = snapshot.state.next_revision;
        let fates = self.folds.run(|| {
            let lists = indexed.lists.iter().enumerate();
            let fate = |list: (usize, &Arc<List>)| {
                self.fate(&snapshot, indexed, (list.0, list.1), rewrite, &mut next)
            };
            lists.map(fate).collect::<Result<Vec<Fate>>>()
        })?;
        if snapshot.tail_rows() == 0 && fates.iter().all(|fate| *fate == Fate::Keep) {
            return Ok(0);
        }
        let changed = fates.iter().filter(|fate| **fate != Fate::Keep).count();
        let together = Together::new(&*self.options.disk, &self.dir, changed, false);
        let write = || -> Result<Vec<Written>> {
            let jobs = fates.par_iter().enumerate().filter(|(_, fate)| **fate != Fate::Keep);
            let write = |job: (usize, &Fate)| self.write_list(&snapshot, indexed, together, job);
            jobs.map(write).collect()
        };
        let done = self.guard(self.folds.run(write)).and_then(|written| {
            self.guard(self.folds.run(|| together.sync(&written)))?;
            self.commit_fold(indexed, &written, watermark, next)
        });
        self.give_back(done, || {
            let fresh = |(list, fate): (&Arc<List>, &Fate)| match fate {
                Fate::Rewrite { revision } => {
                    let id = ListIdentity { revision: *revision, ..*list.id() };
                    Some(lists::path(&self.dir, &id))
                }
                Fate::Append | Fate::Keep => None,
            };
            indexed.lists.iter().zip(&fates).filter_map(fresh).collect()
        })
    }

    fn fate(
        &self,
        snapshot: &Snapshot,
        indexed: &Indexed,
        (number, list): (usize, &List),
        rewrite: Rewrite,
        next: &mut u32,
    ) -> Result<Fate> {
        let layout = &indexed.model.layout;
        let tail = snapshot.tail.cells(number);
        let mut revise = || {
            *next += 1;
            if planted::on(Bug::RevisionReused) {
                return Ok(Fate::Rewrite { revision: list.entry().revision });
            }
            Ok(Fate::Rewrite { revision: *next - 1 })
        };
        if rewrite == Rewrite::Dead && holds_dead(snapshot, indexed, list)? {
            return revise();
        }
        if tail.is_empty() {
            return Ok(Fate::Keep);
        }
        let mut rows: BTreeMap<u32, usize> = BTreeMap::new();
        for frame in &list.entry().frames {
            *rows.entry(frame.cell).or_default() += frame.rows as usize;
        }
        let mut appended = list.entry().length;
        for cell in tail {
            appended += cell_bytes(layout, cell.rows);
            *rows.entry(cell.cell).or_default() += cell.rows;
        }
        let ideal: u64 = rows.values().map(|rows| cell_bytes(layout, *rows)).sum();
        // Half again as long as it need be: time to bring every cell together.
        if appended > HEADER_LEN as u64 + ideal + ideal / 2 { revise() } else { Ok(Fate::Append) }
    }

    fn write_list(
        &self,
        snapshot: &Snapshot,
        indexed: &Indexed,
        together: Together<'_>,
        (number, fate): (usize, &Fate),
    ) -> Result<Written> {
        let (model, list) = (&*indexed.model, &*indexed.lists[number]);
        let (layout, code_len) = (&model.layout, model.code_len());
        let (dead, watermark, seq) =
            (&snapshot.dead, snapshot.state.next_id, snapshot.state.seq + 1);
        match fate {
            Fate::Rewrite { revision } => {
                let id = ListIdentity { revision: *revision, ..*list.id() };
                let mut writer = together.create(id, (self.dim, *layout), seq)?;
                for cell in model.router.cells_of(number as u32) {
                    let tail = snapshot.tail.cell(number as u32, cell);
                    let rows =
                        gather(&indexed.lists, tail, layout, (cell, code_len), dead, watermark)?;
                    write_cell(&mut writer, layout, &rows)?;
                }
                writer.finish()
            }
            Fate::Append | Fate::Keep => {
                let mut writer = together.extend(list, seq);
                let skipped = usize::from(planted::on(Bug::TailNotFolded));
                for tail in snapshot.tail.cells(number).iter().skip(skipped) {
                    let mut rows = TailCell::new(tail.cell);
                    add(&mut rows, tail, layout, code_len, dead, watermark);
                    write_cell(&mut writer, layout, &rows)?;
                }
                writer.finish()
            }
        }
    }

    fn commit_fold(
        &self,
        indexed: &Indexed,
        written: &[Written],
        watermark: u64,
        next_revision: u32,
    ) -> Result<u64> {
        let fresh = self.folds.run(|| self.folded(indexed, written))?;
        if planted::on(Bug::UnlinkBeforeCommit) {
            self.unlink(&fresh.replaced);
        }
        let (layout, code_len) = (&indexed.model.layout, indexed.model.code_len());
        let empty = Tail::new(indexed.lists.len());
        let mut left = None;
        // Until little is left to do while callers wait. They may bring more than that every time.
        for _ in 0..ROUNDS {
            let ahead = self.snapshot();
            let changed = left.as_ref().map_or(usize::MAX, |left: &Made| left.changed(&ahead.tail));
            if changed <= FEW_LISTS {
                break;
            }
            let with = || Ok(empty.with(&ahead.tail, (layout, code_len, watermark), left.take()));
            left = Some(self.folds.run(with)?);
        }
        let mut writer = self.writer();
        writer.ready()?;
        let watermark = match writer.working.state.watermark {
            _ if planted::on(Bug::WatermarkTooHigh) => writer.working.state.next_id,
            same if planted::on(Bug::WatermarkLost) => same,
            _ => watermark,
        };
        writer.working.state.watermark = watermark;
        writer.working.state.next_revision = next_revision;
        let left = empty.with(&writer.working.tail, (layout, code_len, watermark), left);
        writer.working.tail = left.tail();
        writer.working.indexed = Some(fresh.indexed);
        let before = self.snapshot();
        self.commit(&mut writer, fresh.change)?;
        drop(writer);
        self.let_go(before);
        self.unlink(&fresh.replaced);
        Ok(fresh.freed)
    }

    /// The lists as they are after a fold, and what the catalog is to be told of them.
    fn folded(&self, indexed: &Indexed, written: &[Written]) -> Result<Folded> {
        let (model, settings) = (Arc::clone(&indexed.model), Arc::clone(&indexed.settings));
        let mut lists: Vec<Arc<List>> = indexed.lists.to_vec();
        let mut change = Change::default();
        let mut replaced: Vec<PathBuf> = Vec::new();
        let mut freed = 0;
        for fresh in written {
            let number = fresh.id.list;
            let cells = model.router.cells_of(number);
            let (id, entry) = (fresh.id, fresh.entry.clone());
            let key = u64::from(id.generation) << 32 | u64::from(number);
            change.put(Table::Lists, key, entry.encode());
            let shape = (self.dim, model.layout);
            let list = List::open(&*self.options.disk, &self.dir, id, shape, cells, entry)?;
            let old = &lists[number as usize];
            if old.path() != list.path() {
                replaced.push(old.path().to_owned());
                freed += old.entry().length.saturating_sub(list.entry().length);
            }
            lists[number as usize] = Arc::new(list);
        }
        let indexed = Indexed { model, lists: Arc::new(Directory::new(lists)), settings };
        Ok(Folded { indexed, change, replaced, freed })
    }

    /// Removes files that no record names any more. Readers of older snapshots have them open, and
    /// what cannot be removed now is removed at the next open.
    pub(crate) fn unlink(&self, files: &[PathBuf]) {
        for path in files {
            let _ = self.options.disk.remove(path);
        }
    }
}

/// Whether a list has a row that was removed.
fn holds_dead(snapshot: &Snapshot, indexed: &Indexed, list: &List) -> Result<bool> {
    if snapshot.dead.len() == 0 {
        return Ok(false);
    }
    let layout = &indexed.model.layout;
    for place in list.cells().flat_map(|cell| indexed.lists.places(cell)) {
        let blocks = list.copy(place)?;
        for block in blocks.chunks_exact(layout.block_bytes()) {
            if (0..16).any(|lane| snapshot.dead.contains(layout.id(block, lane))) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}
