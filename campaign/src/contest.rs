//! One round of many threads on one small index over a disk that shakes their schedule: some insert,
//! remove, search and get, one folds, trains and compacts; in some rounds the power goes off or an
//! operation fails. What each did is judged against what it was told.

use crate::data::Rng;
use crate::layer::Through;
use crate::shaky::Dice;
use crate::sim::{Fault, SimDisk};
use crate::{HOME, SHAPES, Shape, change::Cut, stored};
use cellardb::{Index, Metric};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard};

const DIM: usize = 4;

/// A batch is known from each of its rows: who inserted it, its number there, the place in it.
type Mark = (usize, usize, usize);

fn row((caller, batch, place): Mark) -> Vec<f32> {
    vec![caller as f32 * 64.0, batch as f32, place as f32, ((caller + batch * 7) % 5) as f32]
}

fn mark(row: &[f32]) -> Mark {
    ((row[0] / 64.0) as usize, row[1] as usize, row[2] as usize)
}

/// What is known of a row that was acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fate {
    Live,
    /// A removal has begun; it may have failed.
    Removing,
    Removed,
}

/// What all threads were told so far.
#[derive(Debug, Default)]
struct Told {
    rows: BTreeMap<usize, (Mark, Fate)>,
    /// Batches that were answered with an error: their rows, and who.
    failed: Vec<(usize, usize, usize)>,
    /// Removals that were answered with an error.
    unremoved: Vec<Vec<usize>>,
}

/// What goes wrong in a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    None,
    PowerCut,
    /// An operation fails: what the disk holds is not known from then on.
    OneFailure,
    /// The disk is full for one operation.
    OnceFull,
}

#[derive(Debug)]
struct Round {
    index: Index,
    disk: SimDisk,
    told: Mutex<Told>,
    writing: AtomicUsize,
    trouble: Trouble,
}

/// What a round did.
#[derive(Debug, Default, Clone, Copy)]
pub struct Tally {
    pub inserts: usize,
    pub removals: usize,
    pub cut: bool,
    pub failed: bool,
}

/// Runs a round. Panics if anything is not as promised.
pub fn round(seed: u64) -> Tally {
    let mut rng = Rng::new(seed);
    let shape = SHAPES[rng.below(SHAPES.len())];
    let disk = SimDisk::new();
    let index = prepared(shape, &disk, &mut rng);
    let trouble =
        [Trouble::None, Trouble::PowerCut, Trouble::OneFailure, Trouble::OnceFull][rng.below(4)];
    let mut told = Told::default();
    for id in index.ids() {
        told.rows.insert(id, (mark(&index.get(id).unwrap().unwrap()), Fate::Live));
    }
    let writers = 1 + rng.below(3);
    match trouble {
        Trouble::None => {}
        Trouble::PowerCut => disk.cut_at(rng.below(writers * 150) as u64),
        Trouble::OneFailure => disk.fail(rng.below(writers * 150) as u64, Fault::Eio, false),
        Trouble::OnceFull => disk.fail(rng.below(writers * 150) as u64, Fault::Enospc, false),
    }
    let (told, writing) = (Mutex::new(told), AtomicUsize::new(writers));
    let round = Round { index, disk, told, writing, trouble };
    std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for caller in 1..=writers {
            let (round, rng) = (&round, Rng::new(rng.next_u64()));
            threads.push(scope.spawn(move || {
                let _done = Done(&round.writing);
                round.write(caller, rng);
            }));
        }
        for _ in 0..1 + rng.below(2) {
            let (round, rng) = (&round, Rng::new(rng.next_u64()));
            threads.push(scope.spawn(move || round.read(rng)));
        }
        for _ in 0..1 + rng.below(2) {
            let (round, rng) = (&round, Rng::new(rng.next_u64()));
            threads.push(scope.spawn(move || round.maintain(rng)));
        }
        let ended: Vec<_> = threads.into_iter().map(|thread| thread.join()).collect();
        for end in ended {
            end.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
    });
    round.judge(rng)
}

/// One writer fewer, however it ended.
struct Done<'a>(&'a AtomicUsize);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

/// An index with some rows, perhaps trained, perhaps with a tail that is not encoded yet.
fn prepared(shape: Shape, disk: &SimDisk, rng: &mut Rng) -> Index {
    let shaky = Through { layer: Dice::new(rng.next_u64()), disk: disk.clone() };
    let index = shape.options(DIM, Metric::L2).disk(Arc::new(shaky.clone())).create(HOME).unwrap();
    let batch = |batch: usize, n: usize| -> Vec<f32> {
        (0..n).flat_map(|place| row((0, batch, place))).collect()
    };
    index.insert_many(&batch(0, 20 + rng.below(80))).unwrap();
    if rng.below(2) == 0 {
        index.train().unwrap();
        index.insert_many(&batch(1, rng.below(40))).unwrap();
    }
    if rng.below(2) == 0 {
        return index;
    }
    index.close().unwrap();
    // As the library opens it by itself: a thread encodes the tail beside everything else.
    let options = stored(&shaky).maintenance(cellardb::Maintenance::Background);
    options.open(HOME).unwrap()
}

impl Round {
    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap()
    }

    /// An error is only right once something has gone wrong. `None` for the error.
    fn allow<T>(&self, what: &str, result: cellardb::Result<T>) -> Option<T> {
        let allowed = self.trouble != Trouble::None && self.disk.faults() > 0;
        match result {
            Ok(done) => Some(done),
            Err(_) if allowed => None,
            Err(e) => panic!("{what} failed without a cause: {e}"),
        }
    }

    fn write(&self, caller: usize, mut rng: Rng) {
        let mut mine: Vec<usize> = Vec::new();
        for batch in 0..4 + rng.below(12) {
            let size = 1 + rng.below(4);
            let rows: Vec<f32> = (0..size).flat_map(|place| row((caller, batch, place))).collect();
            let Some(ids) = self.allow("insert", self.index.insert_many(&rows)) else {
                self.told().failed.push((caller, batch, size));
                if self.trouble == Trouble::OnceFull { continue } else { break }
            };
            assert_eq!(ids.len(), size);
            for (place, id) in ids.clone().enumerate() {
                let before = self.told().rows.insert(id, ((caller, batch, place), Fate::Live));
                assert_eq!(before, None, "id {id} was given twice");
            }
            self.must_find(ids.start + rng.below(size), (caller, batch, 0), &ids);
            mine.extend(ids);
            if rng.below(3) == 0 && !self.remove(&mut mine, &mut rng) {
                break;
            }
        }
    }

    /// What was just inserted is there, by id and by search.
    fn must_find(&self, id: usize, (caller, batch, _): Mark, ids: &Range<usize>) {
        let vector = row((caller, batch, id - ids.start));
        if let Some(found) = self.allow("get", self.index.get(id)) {
            assert_eq!(found.as_ref(), Some(&vector), "get {id} after it was acknowledged");
        }
        let hits = self.index.query(&vector).k(3).exact().run();
        if let Some(hits) = self.allow("search", hits) {
            assert_eq!(hits.first(), Some(&(id, 0.0)), "search for {id} after it was acknowledged");
        }
    }

    /// Removes some of the caller's rows; `false` when that failed.
    fn remove(&self, mine: &mut Vec<usize>, rng: &mut Rng) -> bool {
        let n = 1 + rng.below(mine.len());
        let gone: Vec<usize> = (0..n).map(|_| mine.swap_remove(rng.below(mine.len()))).collect();
        self.told().mark(&gone, Fate::Removing);
        let Some(removed) = self.allow("remove", self.index.remove_many(&gone)) else {
            self.told().unremoved.push(gone);
            return false;
        };
        assert_eq!(removed, n, "removed of {gone:?}");
        self.told().mark(&gone, Fate::Removed);
        if let Some(found) = self.allow("get", self.index.get(gone[0])) {
            assert_eq!(found, None, "get {} after its removal was acknowledged", gone[0]);
        }
        true
    }

    fn read(&self, mut rng: Rng) {
        let mut last = (0, 0);
        while self.writing.load(SeqCst) > 0 {
            let before: Vec<(usize, (Mark, Fate))> =
                self.told().rows.iter().map(|(id, known)| (*id, *known)).collect();
            let (id, (wanted, _)) = before[rng.below(before.len())];
            let query = row(wanted);
            let twice = [&query[..], &query].concat();
            let all = self.index.query_many(&twice).k(before.len() + 200).exact().run();
            let Some(all) = self.allow("search", all) else { return };
            assert_eq!(all[0], all[1], "one snapshot, two answers");
            let found: BTreeSet<usize> = all[0].iter().map(|hit| hit.0).collect();
            assert_eq!(found.len(), all[0].len(), "an id twice in one answer");
            let after = self.told();
            for (id, (_, fate)) in &before {
                let there = found.contains(id);
                assert!(*fate != Fate::Removed || !there, "row {id} is back");
                let still = after.rows[id].1 == Fate::Live;
                assert!(there || !still, "row {id} is missing from a search");
            }
            drop(after);
            let ids = self.index.ids();
            assert!(ids.windows(2).all(|pair| pair[0] < pair[1]), "ids out of order");
            let now = self.index.stats();
            let now = (now.seq, now.next_id);
            assert!(now.0 >= last.0 && now.1 >= last.1, "{last:?}, and then {now:?}");
            last = now;
            if rng.below(4) == 0 {
                let hits = self.index.search(&query, 3);
                let Some(hits) = self.allow("search", hits) else { return };
                assert!(hits.len() <= 3 && hits.is_sorted_by(|a, b| a.1 <= b.1));
            }
            if let Some(Some(vector)) = self.allow("get", self.index.get(id)) {
                assert_eq!(vector, query, "row {id} is not what was inserted");
            }
        }
    }

    fn maintain(&self, mut rng: Rng) {
        while self.writing.load(SeqCst) > 0 {
            match rng.below(8) {
                0 => drop(self.allow("train", self.index.train())),
                1 | 2 => drop(self.allow("compact", self.index.compact())),
                3 => {
                    if let Some(report) = self.allow("verify", self.index.verify()) {
                        let sound = report.damage.is_empty() || self.disk.faults() > 0;
                        assert!(sound, "{:?}", report.damage);
                    }
                }
                _ => drop(self.allow("flush", self.index.flush())),
            }
            std::thread::yield_now();
        }
    }

    /// Judges the index when all threads are done, and what is found after a reopening.
    fn judge(self, mut rng: Rng) -> Tally {
        let Self { index, disk, told, trouble, .. } = self;
        let told = told.into_inner().unwrap();
        let faults = disk.faults() > 0;
        if trouble != Trouble::PowerCut {
            told.check(&index, false);
        }
        let dropped = [Cut::Dropped, Cut::Kept, Cut::Random(rng.next_u64())][rng.below(3)];
        let left = match trouble {
            Trouble::PowerCut => disk.after_cut(dropped),
            Trouble::OneFailure | Trouble::OnceFull if rng.below(2) == 0 => disk.after_cut(dropped),
            _ => disk.after_kill(),
        };
        drop(index);
        let index = stored(&left).open(HOME).unwrap();
        told.check(&index, faults);
        assert!(index.verify().unwrap().damage.is_empty());
        let next = index.insert(&row((60, 0, 0))).unwrap();
        assert!(told.rows.last_key_value().is_none_or(|(id, _)| next > *id), "{next} again");
        let ids = index.ids();
        index.close().unwrap();
        let index = stored(&left).open(HOME).unwrap();
        assert_eq!(index.ids(), ids, "a second opening finds another state");
        Tally {
            inserts: told.rows.len(),
            removals: told.rows.values().filter(|known| known.1 == Fate::Removed).count(),
            cut: trouble == Trouble::PowerCut && faults,
            failed: trouble != Trouble::PowerCut && faults,
        }
    }
}

impl Told {
    fn mark(&mut self, ids: &[usize], fate: Fate) {
        for id in ids {
            self.rows.get_mut(id).unwrap().1 = fate;
        }
    }

    /// The index holds what was acknowledged, and of the rest whole changes only, none before a gap.
    /// Without `maybe` it holds nothing that was not acknowledged.
    fn check(&self, index: &Index, maybe: bool) {
        let live: BTreeSet<usize> = index.ids().into_iter().collect();
        assert_eq!(index.len(), live.len());
        for (id, (mark, fate)) in &self.rows {
            match fate {
                Fate::Live => assert!(live.contains(id), "row {id} of {mark:?} is lost"),
                Fate::Removed => assert!(!live.contains(id), "row {id} of {mark:?} is back"),
                Fate::Removing => assert!(maybe || live.contains(id), "row {id}: half removed"),
            }
        }
        for gone in &self.unremoved {
            let there = gone.iter().filter(|id| live.contains(id)).count();
            assert!(there == 0 || there == gone.len(), "half a removal: {gone:?}");
        }
        let mut extra: BTreeMap<(usize, usize), Vec<usize>> = BTreeMap::new();
        for id in &live {
            let found = mark(&index.get(*id).unwrap().unwrap());
            match self.rows.get(id) {
                Some((mark, _)) => assert_eq!(found, *mark, "row {id} is another"),
                None => extra.entry((found.0, found.1)).or_default().push(found.2),
            }
        }
        assert!(maybe || extra.is_empty(), "not acknowledged, but there: {extra:?}");
        for ((caller, batch), places) in extra {
            let size = self.failed.iter().find(|f| (f.0, f.1) == (caller, batch));
            let size = size.unwrap_or_else(|| panic!("{caller}/{batch} was never inserted")).2;
            assert_eq!(places, (0..size).collect::<Vec<_>>(), "half a batch");
        }
        let end = live.last().map_or(0, |last| last + 1);
        let gap = (0..end).find(|id| !live.contains(id) && !self.rows.contains_key(id));
        assert_eq!(gap, None, "a row after it is there, this one was lost");
    }
}
