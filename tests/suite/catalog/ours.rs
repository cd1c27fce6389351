//! Cellar over damage that redb alone takes for data, for an older commit, or for a reason to panic.

use super::{FLAGS, HEADER, PAGE, children, fresh_pages};
use cellardb::{Error, Index, Metric};
use cellardb_campaign::alone::Watching;
use cellardb_campaign::change::Cut;
use cellardb_campaign::data::{self, Rng};
use cellardb_campaign::layer::Through;
use cellardb_campaign::model::Model;
use cellardb_campaign::node::Op;
use cellardb_campaign::sim::{Calls, Fault, Plan, SimDisk, cuts};
use cellardb_campaign::{HOME, SHAPES, parallel, stored};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

type Files = BTreeMap<PathBuf, Vec<u8>>;

const DIM: usize = 4;
const CATALOG: &str = "/index/catalog.redb";
const LOCK: &str = "/index/LOCK";

/// What an index answered over damage; anything else than these fails the test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Last,
    /// The state before the last commit, whole.
    Older,
    /// An error that says that the catalog is damaged.
    Refused,
}

/// An index before and after its last commit.
struct Life {
    disk: SimDisk,
    index: Option<Index>,
    rng: Rng,
    older: Model,
    last: Model,
    before: Files,
}

impl Life {
    /// An index with some commits behind it, the last one an insert.
    fn new() -> Self {
        let disk = SimDisk::new();
        let options = SHAPES[1].options(DIM, Metric::L2).disk(Arc::new(disk.clone()));
        let index = Some(options.create(HOME).unwrap());
        let model = Model::new(DIM, Metric::L2);
        let (rng, before) = (Rng::new(3), Files::new());
        let mut life = Self { disk, index, rng, older: model.clone(), last: model, before };
        (0..6).for_each(|_| life.insert(20));
        life.index().train().unwrap();
        (0..3).for_each(|_| life.insert(1));
        life
    }

    fn index(&self) -> &Index {
        self.index.as_ref().unwrap()
    }

    /// One more commit.
    fn insert(&mut self, rows: usize) {
        let rows = data::vectors(&mut self.rng, rows, DIM, Metric::L2);
        (self.before, self.older) = (self.disk.dump(), self.last.clone());
        assert_eq!(self.index().insert_many(&rows).unwrap(), self.last.insert(&rows));
    }

    fn close(mut self) -> Self {
        self.index.take().unwrap().close().unwrap();
        self
    }

    /// Opens files to write and to read, which must agree.
    fn found(&self, files: &Files, what: &str) -> Found {
        let [write, read] = [true, false].map(|write| {
            let options = stored(&SimDisk::load(files));
            let opened = if write { options.open(HOME) } else { options.open_read_only(HOME) };
            match opened {
                Ok(index) if self.last.differs(&index, 1).is_ok() => Found::Last,
                Ok(index) if self.older.differs(&index, 1).is_ok() => Found::Older,
                Ok(_) => panic!("{what}: silently another index"),
                Err(Error::Corrupt { path, .. }) if path == Path::new(CATALOG) => Found::Refused,
                Err(e) => panic!("{what}: {e}"),
            }
        });
        assert_eq!(write, read, "{what}: to write and to read");
        write
    }

    /// What damage of the catalog at these places leads to.
    fn sweep(&self, files: &Files, places: &[(usize, u8)]) -> Vec<Found> {
        let found = std::sync::Mutex::new(Vec::new());
        parallel(places, |(at, mask)| {
            let mut files = files.clone();
            files.get_mut(Path::new(CATALOG)).unwrap()[*at] ^= mask;
            let what = format!("byte {at} xor {mask:#04x}");
            found.lock().unwrap().push(self.found(&files, &what));
        });
        found.into_inner().unwrap()
    }

    /// Rots every page that only the last commit wrote, each in turn.
    fn rot(&self, files: &Files) -> Vec<Found> {
        let catalog = |files: &Files| files[Path::new(CATALOG)].clone();
        let pages = fresh_pages(&catalog(&self.before), &catalog(files));
        assert!(!pages.is_empty());
        let places: Vec<(usize, u8)> = pages.iter().map(|at| (at + 8, 1)).collect();
        self.sweep(files, &places)
    }
}

fn without(files: &Files, path: &str) -> Files {
    let mut files = files.clone();
    files.remove(Path::new(path)).unwrap();
    files
}

fn every_bit() -> Vec<(usize, u8)> {
    (0..HEADER).flat_map(|at| (0..8).map(move |bit| (at, 1 << bit))).collect()
}

/// Every bit of redb's header, and every value of its byte of flags.
#[test]
fn no_bit_of_the_header_of_redb_takes_a_commit_back() {
    let killed = Life::new();
    let files = killed.disk.dump();
    let mut places = every_bit();
    let flags: Vec<(usize, u8)> = (1..=255).map(|mask| (FLAGS, mask)).collect();
    places.extend(&flags);
    let all = killed.sweep(&files, &places);
    assert!(!all.contains(&Found::Older));
    assert!(all.contains(&Found::Refused) && all.contains(&Found::Last));
    // It is the mark that refuses.
    let all = killed.sweep(&without(&files, LOCK), &flags);
    assert!(all.contains(&Found::Older));
    // A closed index needs no mark: redb's two slots hold the same.
    let closed = Life::new().close();
    let all = closed.sweep(&without(&closed.disk.dump(), LOCK), &places);
    assert!(!all.contains(&Found::Older) && all.contains(&Found::Last));
}

#[test]
fn a_commit_that_rotted_is_refused_and_not_rolled_back() {
    let killed = Life::new();
    let files = killed.disk.dump();
    let all = killed.rot(&files);
    assert!(all.contains(&Found::Refused) && !all.contains(&Found::Older), "{all:?}");
    assert!(killed.rot(&without(&files, LOCK)).contains(&Found::Older), "the mark refuses");
}

/// After a power cut the newest mark may be lost, and with it what refuses. Whatever is rare makes it
/// durable: no insert waits for that.
#[test]
fn the_mark_of_a_flush_a_training_a_compaction_and_a_close_outlives_a_power_cut() {
    type Act = fn(&Index) -> cellardb::Result<()>;
    let acts: [(&str, Act); 5] = [
        ("insert", |_| Ok(())),
        ("flush", Index::flush),
        ("train", Index::train),
        ("compact", |index| index.compact().map(drop)),
        ("close", |index| index.clone().close()),
    ];
    for (what, act) in acts {
        let mut life = Life::new();
        life.index().remove(3).unwrap();
        life.last.remove(&[3]);
        // The newest insert only, or all since.
        let stale = match what {
            "insert" | "close" => life.before[Path::new(CATALOG)].clone(),
            _ => life.disk.dump()[Path::new(CATALOG)].clone(),
        };
        act(life.index()).unwrap();
        for cut in [Cut::Dropped, Cut::Kept, Cut::Random(1), Cut::Random(2)] {
            let mut files = life.disk.after_cut(cut).dump();
            let what = format!("{what}, {cut:?}");
            assert_eq!(life.found(&files, &what), Found::Last);
            files.insert(CATALOG.into(), stale.clone());
            let refused = match stored(&SimDisk::load(&files)).open(HOME) {
                Err(Error::Corrupt { what: why, .. }) => why.contains("rolled back"),
                _ => false,
            };
            // Of an insert the cut may take the mark, or not.
            let lost = what == "insert, Dropped";
            assert!(refused != lost || what.starts_with("insert, R"), "{what}: refused {refused}");
        }
    }
}

#[test]
fn a_mark_in_a_new_lock_outlives_a_power_cut_too() {
    let mut life = Life::new().close();
    let disk = SimDisk::load(&without(&life.disk.dump(), LOCK));
    (life.index, life.disk) = (Some(stored(&disk).open(HOME).unwrap()), disk);
    life.insert(1);
    life.index().flush().unwrap();
    assert!(life.disk.after_cut(Cut::Dropped).dump().contains_key(Path::new(LOCK)));
}

/// A write of the header that is torn at any byte, with the pages of the commit and without them: of the first
/// commits after an opening, of a closed index and of one that was killed.
#[test]
fn a_commit_whose_header_is_torn_anywhere_is_there_or_is_not() {
    for closed in [true, false] {
        let mut life = if closed { Life::new().close() } else { Life::new() };
        life.index = None;
        let disk = SimDisk::load(&life.disk.dump());
        (life.index, life.disk) = (Some(stored(&disk).open(HOME).unwrap()), disk);
        for turn in 0..3 {
            life.insert(1);
            let after = life.disk.dump();
            let catalog = |files: &Files| files[Path::new(CATALOG)].clone();
            let (old, new) = (catalog(&life.before), catalog(&after));
            let cuts: Vec<usize> = (0..=HEADER).collect();
            let (older, last) = (AtomicU64::new(0), AtomicU64::new(0));
            parallel(&cuts, |&cut| {
                for (pages, first, then) in
                    [(&old, &old, &new), (&old, &new, &old), (&new, &old, &new), (&new, &new, &old)]
                {
                    let header = [&first[..cut], &then[cut..HEADER]].concat();
                    let mut files = after.clone();
                    files.insert(LOCK.into(), life.before[Path::new(LOCK)].clone());
                    files.insert(CATALOG.into(), [&header, &pages[HEADER..]].concat());
                    let what = format!("closed: {closed}, commit {turn}, torn at {cut}");
                    match life.found(&files, &what) {
                        Found::Last => last.fetch_add(1, Relaxed),
                        Found::Older => older.fetch_add(1, Relaxed),
                        Found::Refused => panic!("{what}: neither"),
                    };
                }
            });
            let (older, last) = (older.into_inner(), last.into_inner());
            assert!(older > 150 && last > 150, "{older} older, {last} last");
        }
    }
}

/// Of the first commit after a close a power cut left the slot and not the pages: what an opening has shown to be
/// rolled back is gone before anything is built on that.
#[test]
fn a_commit_that_a_power_cut_took_in_part_does_not_come_back() {
    let mut life = Life::new().close();
    life.index = Some(stored(&life.disk).open(HOME).unwrap());
    life.insert(1);
    let catalog = |files: &Files| files[Path::new(CATALOG)].clone();
    let (old, new) = (catalog(&life.before), catalog(&life.disk.dump()));
    let fresh = 64 + 128 * usize::from(new[FLAGS] & 1);
    let mut left = old;
    left[fresh..fresh + 128].copy_from_slice(&new[fresh..fresh + 128]);
    let mut files = life.before.clone();
    files.insert(CATALOG.into(), left);
    assert_eq!(life.found(&files, "the slot alone"), Found::Older);
    let disk = SimDisk::load(&files);
    let index = stored(&disk).open(HOME).unwrap();
    let after = catalog(&disk.after_cut(Cut::Dropped).dump());
    assert!(after[fresh..fresh + 128] != new[fresh..fresh + 128], "its slot is still there");
    life.older.differs(&index, 1).unwrap();
}

/// Closing writes the last slot over the other, but not as it was read.
#[test]
fn a_bit_that_is_misread_by_the_closing_costs_nothing() {
    for at in 0..4 {
        let mut life = Life::new();
        life.disk.plan(Plan { calls: Calls::Reads, at, fault: Fault::Rot, for_ever: true });
        let closed = life.index.take().unwrap().close();
        life.disk.heal();
        closed.unwrap();
        assert_eq!(life.found(&life.disk.dump(), "closed"), Found::Last);
    }
}

#[test]
fn an_insert_costs_two_syncs() {
    let mut life = Life::new();
    for _ in 0..5 {
        life.disk.record();
        life.insert(1);
        let ops = life.disk.recorded();
        let synced = |op: &&Op| matches!(op, Op::Sync(_) | Op::SyncDir(_) | Op::SyncAll);
        let growth = ops.iter().filter(|op| matches!(op, Op::SetLen(..) | Op::Create(..))).count();
        let syncs = ops.iter().filter(synced).count();
        assert!(syncs == 2 || growth > 0, "{syncs} syncs: {ops:?}");
    }
}

/// After a kill redb repairs, and checks every page for it; after a close only because it is told to.
#[test]
fn no_byte_of_any_page_of_the_catalog_changes_an_answer() {
    for life in [Life::new(), Life::new().close()] {
        let files = life.disk.dump();
        let len = files[Path::new(CATALOG)].len();
        let places: Vec<(usize, u8)> = (PAGE..len).step_by(499).map(|at| (at, 0xFF)).collect();
        let all = life.sweep(&files, &places);
        assert!(all.contains(&Found::Refused) && !all.contains(&Found::Older), "{all:?}");
    }
}

#[test]
fn after_a_crash_a_reader_answers_and_writes_nothing() {
    let life = Life::new();
    let disk = SimDisk::load(&life.disk.dump());
    let (before, ops) = (disk.dump(), disk.ops());
    let index = stored(&disk).open_read_only(HOME).unwrap();
    life.last.differs(&index, 1).unwrap();
    assert!(index.verify().unwrap().damage.is_empty());
    index.close().unwrap();
    assert_eq!(disk.ops(), ops);
    assert!(disk.dump() == before);
}

/// Every page number in the catalog, changed to say that its page is the largest that there is.
#[test]
fn no_damaged_page_number_makes_an_open_allocate_more_than_the_catalog_holds() {
    let disk = SimDisk::new();
    let options = SHAPES[0].options(DIM, Metric::L2).disk(Arc::new(disk.clone()));
    let index = options.create(HOME).unwrap();
    // So many segments that their records take more than one page.
    index.insert_many(&data::vectors(&mut Rng::new(5), 12_000, DIM, Metric::L2)).unwrap();
    index.close().unwrap();
    let files = disk.dump();
    let catalog = &files[Path::new(CATALOG)];
    let places = children(catalog);
    assert!(!places.is_empty());
    let mut refused = 0;
    for at in places {
        let mut files = files.clone();
        files.get_mut(Path::new(CATALOG)).unwrap()[at] ^= 20 << 3;
        let layer = Watching::default();
        let watched = Through { layer, disk: SimDisk::load(&files) };
        for read_only in [true, false] {
            let options = stored(&watched);
            let opened = if read_only { options.open_read_only(HOME) } else { options.open(HOME) };
            let named =
                matches!(&opened, Err(Error::Corrupt { path, .. }) if path == Path::new(CATALOG));
            assert!(named || opened.is_ok_and(|index| index.len() == 12_000), "byte {at}");
            refused += u64::from(named);
        }
        assert!(watched.layer.0.load(Relaxed) <= catalog.len(), "byte {at}");
    }
    assert!(refused > 0);
}

/// A sync fails once and the index is opened again before a reboot: no commit from then on is built on
/// what the failed sync left in the system's cache only.
#[test]
fn what_is_committed_after_a_failed_sync_outlives_a_power_cut() {
    let mut failures = 0;
    for n in 0..30 {
        let mut life = Life::new();
        life.disk.fail(n, Fault::Eio, false);
        failures += u64::from(life.index().flush().is_err());
        life.index = None;
        life.disk.heal();
        life.index = Some(stored(&life.disk).open(HOME).unwrap());
        life.insert(1);
        for cut in cuts(2, n) {
            let what = format!("operation {n} failed, {cut:?}");
            assert_eq!(life.found(&life.disk.after_cut(cut).dump(), &what), Found::Last, "{what}");
        }
    }
    assert!(failures > 10, "only {failures} operations failed");
}
