//! What must hold of a disk after a crash, however it came about: the index opens to exactly one of
//! the states that the history allows, everything is readable and agrees, a second opening finds the
//! same, work goes on, and a crash of the recovery changes nothing of that.

use crate::change::Cut;
use crate::data::{self, Rng};
use crate::model::Model;
use crate::sim::SimDisk;
use crate::workload::History;
use crate::{HOME, stored};
use cellardb::{Error, Index};
use std::collections::HashMap;
use std::ops::RangeInclusive;

/// How deep a recovery is cut, and the recovery from that, and so on.
const DEPTH: usize = 3;

/// Checks disks against a history. The same bytes are opened once; what they are is remembered.
#[derive(Debug)]
pub struct Oracle<'h> {
    history: &'h History,
    seen: HashMap<u64, usize>,
    /// Disks that were made by a cut.
    pub states: u64,
    /// Of these, different ones: opened, compared, verified.
    pub opened: u64,
    /// Of those, made by a cut of a recovery.
    pub recoveries: u64,
}

impl<'h> Oracle<'h> {
    pub fn new(history: &'h History) -> Self {
        Self { history, seen: HashMap::new(), states: 0, opened: 0, recoveries: 0 }
    }

    /// Checks what a cut after `ops` operations left; returns the state that it is in.
    pub fn check(&mut self, left: &SimDisk, ops: usize, seed: u64) -> Result<usize, String> {
        if ops < self.history.created && !there(left) {
            self.states += 1;
            return begins(left).map(|()| 0);
        }
        self.within(left, self.history.window(ops), seed)
    }

    fn within(
        &mut self,
        left: &SimDisk,
        window: RangeInclusive<usize>,
        seed: u64,
    ) -> Result<usize, String> {
        self.states += 1;
        let models = &self.history.models;
        let digest = left.digest();
        if let Some(found) = self.seen.get(&digest).copied() {
            let same = |n: &usize| models[*n].rows == models[found].rows;
            let again = window.clone().rev().find(same);
            return again.ok_or_else(|| format!("state {found} was found, {window:?} are allowed"));
        }
        self.opened += 1;
        let mut rng = Rng::new(seed);
        let found = recover(&left.after_kill(), self.history, window, &mut rng)?;
        self.seen.insert(digest, found);
        Ok(found)
    }

    /// Cuts the recovery of what a cut left, at a few places, and the recovery from that.
    pub fn recovery(&mut self, left: &SimDisk, ops: usize, seed: u64) -> Result<(), String> {
        if ops < self.history.created && !there(left) {
            return Ok(());
        }
        let mut rng = Rng::new(seed ^ 0x2EC0);
        let window = self.history.window(ops);
        self.deeper(left, &window, &mut rng, 1).map(drop)
    }

    fn deeper(
        &mut self,
        left: &SimDisk,
        window: &RangeInclusive<usize>,
        rng: &mut Rng,
        depth: usize,
    ) -> Result<(), String> {
        let probe = left.after_kill();
        probe.record();
        drop(open(&probe)?);
        let ops = probe.recorded();
        let mut places: Vec<usize> = (0..4).map(|_| rng.below(ops.len().max(1))).collect();
        places.sort_unstable();
        places.dedup();
        let walker = left.after_kill();
        for (n, op) in ops.iter().enumerate() {
            walker.replay(op);
            if !places.contains(&n) {
                continue;
            }
            for cut in [Cut::Dropped, Cut::Random(rng.next_u64())] {
                let again = walker.after_cut(cut);
                let seed = rng.next_u64();
                let what =
                    |e| format!("recovery cut after {n} ({op}), {cut:?}, depth {depth}: {e}");
                self.recoveries += 1;
                self.within(&again, window.clone(), seed).map_err(what)?;
                if depth < DEPTH && rng.below(6) == 0 {
                    self.deeper(&again, window, rng, depth + 1).map_err(what)?;
                }
            }
        }
        Ok(())
    }

    /// The process dies while nothing of the last operations is synced, another opens the index, and
    /// then the power goes: what the other has seen must be there.
    pub fn seen_stays(&mut self, killed: &SimDisk, ops: usize, seed: u64) -> Result<(), String> {
        if ops < self.history.created {
            return Ok(());
        }
        let disk = killed.after_kill();
        let index = open(&disk)?;
        let window = self.history.window(ops);
        let seen = self.history.find(&index, window.clone(), seed)?;
        disk.cut_at(0);
        drop(index);
        self.recoveries += 2;
        for cut in [Cut::Dropped, Cut::Random(seed)] {
            let what = |e| format!("killed, opened in state {seen}, cut ({cut:?}): {e}");
            self.within(&disk.after_cut(cut), seen..=*window.end(), seed).map_err(what)?;
        }
        Ok(())
    }
}

/// Whether there is an index.
fn there(disk: &SimDisk) -> bool {
    disk.dump().keys().any(|path| path.ends_with("catalog.redb"))
}

/// A cut before the index was created: creating it works.
fn begins(left: &SimDisk) -> Result<(), String> {
    let disk = left.after_kill();
    let text = |e: Error| format!("creating after a cut: {e}");
    match stored(&disk).open(HOME) {
        Err(Error::NotFound { .. }) => {}
        other => return Err(format!("there is no catalog, open says {other:?}")),
    }
    let options = crate::SHAPES[0].options(2, cellardb::Metric::L2);
    let index = options.disk(std::sync::Arc::new(disk)).create(HOME).map_err(text)?;
    index.insert(&[1.0, 2.0]).map_err(text).map(drop)
}

fn open(disk: &SimDisk) -> Result<Index, String> {
    stored(disk).open(HOME).map_err(|e| format!("open: {e}"))
}

/// Opens what was left and says in which state it is.
pub fn recover(
    disk: &SimDisk,
    history: &History,
    window: RangeInclusive<usize>,
    rng: &mut Rng,
) -> Result<usize, String> {
    let index = open(disk)?;
    let found = history.find(&index, window, rng.next_u64())?;
    let model = &history.models[found];
    let what = |e| format!("in state {found}: {e}");
    let report = index.verify().map_err(|e| what(format!("verify: {e}")))?;
    if !report.damage.is_empty() {
        return Err(what(format!("verify found {:?}", report.damage)));
    }
    searches(&index, model, rng).map_err(what)?;
    drop(index);
    if rng.below(5) == 0 {
        goes_on(disk, model, rng).map_err(what)?;
    }
    Ok(found)
}

/// What search finds by itself could be right, and finds neighbours; and through the lists, all cells of them and every row
/// reranked, it finds what a comparison with every row finds: each row is in the cell where it belongs.
fn searches(index: &Index, model: &Model, rng: &mut Rng) -> Result<(), String> {
    const ALL: usize = 1 << 20;
    const QUERIES: u32 = 8;
    let mut sum = 0.0;
    for _ in 0..QUERIES {
        let query = data::vector(rng, model.dim, model.metric);
        let hits = index.search(&query, 10).map_err(|e| format!("search: {e}"))?;
        model.plausible(&query, 10, &hits)?;
        sum += model.recall(&query, 10, &hits);
        let all = index.query(&query).k(10).probes(ALL).rerank(ALL).run();
        let all = all.map_err(|e| format!("search of all cells: {e}"))?;
        let right = model.search(&query, 10);
        if all != right {
            return Err(format!("all cells hold {all:?}, should be {right:?}"));
        }
    }
    let mean = sum / f64::from(QUERIES);
    if mean < 0.5 { Err(format!("recall fell to {mean}")) } else { Ok(()) }
}

/// A recovered index is the same when it is opened again, takes rows, folds them, compacts, and has
/// them at the next opening; what a crash left behind is gone.
fn goes_on(disk: &SimDisk, model: &Model, rng: &mut Rng) -> Result<(), String> {
    let mut model = model.clone();
    let text = |e: Error| format!("going on: {e}");
    let index = open(disk)?;
    model.differs(&index, rng.next_u64()).map_err(|e| format!("second open: {e}"))?;
    let rows = data::vectors(rng, 12, model.dim, model.metric);
    let next = index.stats().next_id as usize;
    if model.rows.keys().next_back().is_some_and(|last| next <= *last) {
        return Err(format!("the next id would be {next}, which was given"));
    }
    model.next = next;
    let (found, right) = (index.insert_many(&rows).map_err(text)?, model.insert(&rows));
    if found != right {
        return Err(format!("new rows got ids {found:?}, should be {right:?}"));
    }
    index.flush().map_err(text)?;
    let gone: Vec<usize> = model.ids().into_iter().step_by(6).collect();
    index.remove_many(&gone).map_err(text)?;
    model.remove(&gone);
    model.differs(&index, rng.next_u64()).map_err(|e| format!("going on: {e}"))?;
    index.compact().map_err(text)?;
    let (stats, lists) = (index.stats(), count(disk, "list"));
    index.close().map_err(text)?;
    if count(disk, "rows") as u64 != stats.segments || lists as u64 != stats.lists {
        return Err(format!("files that nobody names were left: {:?}", disk.paths()));
    }
    let index = open(disk)?;
    model.differs(&index, rng.next_u64()).map_err(|e| format!("opened after going on: {e}"))
}

fn count(disk: &SimDisk, extension: &str) -> usize {
    let paths = disk.paths();
    paths.iter().filter(|(path, _)| path.extension().is_some_and(|e| e == extension)).count()
}
