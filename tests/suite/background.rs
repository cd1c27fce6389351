//! Upkeep beside callers: it takes no thread and no lock that they need for long, and what it calls of the
//! host may call the index.

use cellardb::{Durability, Error, Index, Kind, Maintenance, Metric, Options};
use cellardb_campaign::data::{self, Rng};
use cellardb_campaign::layer::{Call, Layer, Through};
use cellardb_campaign::patience::{HANGS, until};
use cellardb_campaign::sim::SimDisk;
use cellardb_campaign::{HOME, SHAPES, stored};
use std::collections::BTreeSet;
use std::fmt::Debug;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

const DIM: usize = 4;

fn rows(seed: u64, n: usize) -> Vec<f32> {
    data::vectors(&mut Rng::new(seed), n, DIM, Metric::L2)
}

/// A tiny index on a disk of its own.
fn options(threads: usize) -> Options {
    let options = SHAPES[2].options(DIM, Metric::L2).nlist(8).segment_bytes(1 << 20);
    options.threads(threads).disk(Arc::new(SimDisk::new()))
}

/// Runs a job on another thread; it is over in time, or the test fails.
fn ends<T: Send + 'static>(what: &str, job: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, over) = std::sync::mpsc::channel();
    std::thread::spawn(move || done.send(job()));
    let over = over.recv_timeout(HANGS);
    over.unwrap_or_else(|_| panic!("{what} does not end, or panicked"))
}

/// Waits until something holds.
fn comes(what: &str, holds: impl Fn() -> bool) {
    until(what, holds);
}

/// Holds threads until it is opened.
#[derive(Debug, Clone, Default)]
struct Gate(Arc<(Mutex<(usize, bool)>, Condvar)>);

impl Gate {
    fn pass(&self) {
        let (state, told) = &*self.0;
        let mut state = state.lock().unwrap();
        state.0 += 1;
        while !state.1 {
            state = told.wait(state).unwrap();
        }
    }

    /// How many threads have come to it.
    fn came(&self) -> usize {
        self.0.0.lock().unwrap().0
    }

    fn open(&self) {
        self.0.0.lock().unwrap().1 = true;
        self.0.1.notify_all();
    }
}

/// Opens a gate at the end of a test, however it ends.
struct Opened(Gate);

impl Drop for Opened {
    fn drop(&mut self) {
        self.0.open();
    }
}

/// An index whose training is held with all threads that it has. Each test has another number of them: tests
/// that run at a time would hold threads of each other.
fn training(threads: usize, maintenance: Maintenance) -> (Index, Gate, Opened) {
    let gate = Gate::default();
    let held = gate.clone();
    let index = options(threads).maintenance(maintenance).progress(move |at| {
        if at.stage == "training cells" {
            held.pass();
        }
    });
    let index = index.create(HOME).unwrap();
    index.insert_many(&rows(1, 2_000)).unwrap();
    if maintenance == Maintenance::Manual {
        let own = index.clone();
        std::thread::spawn(move || own.train());
    }
    let opened = Opened(gate.clone());
    comes("no training on so many threads", || gate.came() == threads);
    (index, gate, opened)
}

#[test]
fn no_call_waits_for_a_training_of_any_index() {
    let (a, gate, _opened) = training(5, Maintenance::Manual);
    let disk = SimDisk::new();
    // With another number of threads, as its own training must not wait for those that are held.
    let made = options(3).disk(Arc::new(disk.clone())).create(HOME).unwrap();
    made.insert_many(&rows(2, 500)).unwrap();
    made.train().unwrap();
    made.close().unwrap();
    let trained = ends("open", move || stored(&disk).threads(5).open(HOME).unwrap());
    for (index, name) in [(a.clone(), "the index that trains"), (trained, "another index")] {
        let own = index.clone();
        ends(&format!("insert into {name}"), move || own.insert(&[1.0; DIM]).unwrap());
        let own = index.clone();
        // More than upkeep would let the tail grow to.
        ends(&format!("insert_many into {name}"), move || {
            for seed in 0..5 {
                own.insert_many(&rows(seed, 4_096)).unwrap();
            }
        });
        for n in [1, 4, 16, 65] {
            let own = index.clone();
            let found = ends(&format!("search_many of {name}"), move || {
                own.search_many(&rows(3, n), 3).unwrap()
            });
            assert_eq!(found.len(), n);
        }
        let own = index.clone();
        ends(&format!("others of {name}"), move || {
            own.query(&[1.0; DIM]).exact().threads(2).run().unwrap();
            assert!(own.remove(3).unwrap() && own.get(4).unwrap().is_some());
            assert_eq!(own.stats().rows, own.len() as u64);
        });
    }
    gate.open();
    ends("flush", move || a.flush().unwrap());
}

#[test]
fn folds_and_commits_in_the_background_wait_for_no_training_of_another_index() {
    let (_a, _, _opened) = training(6, Maintenance::Background);
    // The scheduler has a thread left for a training of tests that run at the same time.
    let (_c, _, _opened) = training(7, Maintenance::Manual);
    let disk = SimDisk::new();
    let b = options(1).disk(Arc::new(disk.clone())).create(HOME).unwrap();
    b.insert_many(&rows(2, 20_000)).unwrap();
    b.train().unwrap();
    b.close().unwrap();
    let b = stored(&disk).threads(6).maintenance(Maintenance::Background);
    let b = b.durability(Durability::Interval(Duration::from_millis(5)));
    let b = ends("open", move || b.open(HOME).unwrap());
    let before = b.stats();
    b.insert_many(&rows(3, 4_200)).unwrap();
    comes("the tail is not folded", || b.stats().tail == 0);
    b.insert(&[1.0; DIM]).unwrap();
    comes("nothing is committed", || b.stats().seq >= before.seq + 3);
}

#[test]
fn dropping_an_index_waits_for_its_own_upkeep_only() {
    let (_a, _, _opened) = training(8, Maintenance::Background);
    for _ in 0..3 {
        let b = options(8)
            .maintenance(Maintenance::Background)
            .durability(Durability::Interval(Duration::from_millis(1)));
        let b = b.train_at(10_000).create(HOME).unwrap();
        b.insert_many(&rows(2, 100)).unwrap();
        ends("drop", move || drop(b));
    }
}

/// What an index that is in a callback of `what` answers to each call.
fn ask_everything(index: &Index, what: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut note = |call: &str, right: bool| {
        if !right {
            wrong.push(format!("{call} in {what}"));
        }
    };
    let waiting = [
        ("flush", index.flush()),
        ("train", index.train()),
        ("compact", index.compact().map(drop)),
        ("verify", index.verify().map(drop)),
        ("close", index.clone().close()),
    ];
    for (call, answer) in waiting {
        note(call, matches!(answer, Err(Error::InCallback)));
    }
    let query = [0.5; DIM];
    note("search", index.search(&query, 3).is_ok_and(|hits| hits.len() == 3));
    note("search_many", index.search_many(&rows(9, 40), 3).is_ok_and(|all| all.len() == 40));
    note("exact", index.query(&query).exact().threads(0).run().is_ok());
    let id = index.insert(&query);
    note("get", id.is_ok_and(|id| index.get(id).is_ok_and(|row| row == Some(query.to_vec()))));
    // Once more than makes an insert wait for a fold.
    let n = if what == "training cells" { 17_000 } else { 600 };
    note("insert_many", index.insert_many(&rows(8, n)).is_ok());
    note("remove", index.remove(index.ids()[0]).is_ok_and(|there| there));
    note("stats", index.stats().rows == index.len() as u64);
    wrong
}

type Stages = Arc<Mutex<BTreeSet<&'static str>>>;

#[test]
fn an_observer_may_call_the_index_and_is_refused_where_it_would_wait_for_itself() {
    for (threads, kind) in [(1, Kind::IvfPq), (2, Kind::IvfFlat), (3, Kind::IvfPq)] {
        let (slot, asked) = (Arc::new(Mutex::new(None::<[Index; 2]>)), Stages::default());
        let (seen, noted) = (Arc::clone(&slot), Arc::clone(&asked));
        let wrong = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&wrong);
        let observer = move |at: cellardb::Progress| {
            if noted.lock().unwrap().insert(at.stage) {
                let indexes = seen.lock().unwrap().clone();
                for index in indexes.into_iter().flatten() {
                    told.lock().unwrap().extend(ask_everything(&index, at.stage));
                }
            }
        };
        let index = options(threads).kind(kind).progress(observer).create(HOME).unwrap();
        let other = options(threads).create(HOME).unwrap();
        for index in [&index, &other] {
            index.insert_many(&rows(1, 2_000)).unwrap();
            index.train().unwrap();
        }
        asked.lock().unwrap().clear();
        *slot.lock().unwrap() = Some([index.clone(), other]);
        let own = index.clone();
        ends("upkeep whose observer calls the index", move || {
            own.train().unwrap();
            own.remove_many(&(50..1_000).collect::<Vec<_>>()).unwrap();
            own.compact().unwrap();
            assert!(own.verify().unwrap().damage.is_empty());
        });
        assert_eq!(*wrong.lock().unwrap(), Vec::<String>::new());
        let stages = asked.lock().unwrap().clone();
        assert!(stages.len() >= 8 && stages.contains("training cells"), "{stages:?}");
        slot.lock().unwrap().take();
    }
}

#[test]
fn an_observer_may_drop_the_last_handle() {
    let slot = Arc::new(Mutex::new(None::<Index>));
    let (seen, gate) = (Arc::clone(&slot), Gate::default());
    let (held, dropped) = (gate.clone(), Arc::new(AtomicBool::new(false)));
    let told = Arc::clone(&dropped);
    let disk = SimDisk::new();
    let options = options(2).disk(Arc::new(disk.clone())).maintenance(Maintenance::Background);
    let options = options.progress(move |at| {
        if at.stage == "training cells" {
            held.pass();
            let last = seen.lock().unwrap().take();
            if last.is_some() {
                drop(last);
                told.store(true, SeqCst);
            }
        }
    });
    let index = options.create(HOME).unwrap();
    *slot.lock().unwrap() = Some(index.clone());
    index.insert_many(&rows(1, 2_000)).unwrap();
    drop(index);
    comes("no training", || gate.came() > 0);
    gate.open();
    comes("drop does not end", || dropped.load(SeqCst));
    let again = || stored(&disk).open(HOME);
    comes("the lock is held on", || !matches!(again(), Err(Error::Locked { .. })));
    assert_eq!(again().unwrap().len(), 2_000);
}

/// A layer that does something before each sync.
#[derive(Clone)]
struct Syncing(Arc<dyn Fn() + Send + Sync>);

impl Debug for Syncing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Syncing")
    }
}

impl Layer for Syncing {
    fn around<T>(&self, call: Call<'_>, job: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        if let Call::Sync = call {
            (self.0)();
        }
        job()
    }
}

fn syncing(disk: &SimDisk, before: impl Fn() + Send + Sync + 'static) -> Arc<dyn cellardb::Disk> {
    Arc::new(Through { layer: Syncing(Arc::new(before)), disk: disk.clone() })
}

#[test]
fn a_disk_that_calls_the_index_is_refused_at_once() {
    let slot = Arc::new(Mutex::new(None::<Index>));
    let (seen, asked) = (Arc::clone(&slot), Arc::new(AtomicBool::new(false)));
    let told = Arc::clone(&asked);
    let disk = syncing(&SimDisk::new(), move || {
        let Some(index) = seen.lock().unwrap().take() else { return };
        let query = [0.5; DIM];
        let refused = [
            index.flush().err(),
            index.train().err(),
            index.verify().err(),
            index.compact().err(),
            index.insert(&query).err(),
            index.remove(1).err(),
            index.get(1).err(),
            index.search(&query, 1).err(),
            index.search_many(&query, 1).err(),
            index.clone().close().err(),
        ];
        let all = refused.iter().all(|e| matches!(e, Some(Error::InCallback)));
        told.store(all && index.stats().rows == 2_000 && index.len() == 2_000, SeqCst);
    });
    let index = options(2).disk(disk).create(HOME).unwrap();
    index.insert_many(&rows(1, 2_000)).unwrap();
    index.train().unwrap();
    *slot.lock().unwrap() = Some(index.clone());
    ends("insert", move || index.insert(&[1.0; DIM]).unwrap());
    assert!(asked.load(SeqCst));
}

#[test]
fn a_disk_may_drop_the_last_handle() {
    let slot = Arc::new(Mutex::new(None::<Index>));
    let (seen, dropped) = (Arc::clone(&slot), Arc::new(AtomicBool::new(false)));
    let (told, disk) = (Arc::clone(&dropped), SimDisk::new());
    let through = syncing(&disk, move || {
        let last = seen.lock().unwrap().take();
        if last.is_some() {
            drop(last);
            told.store(true, SeqCst);
        }
    });
    let options = options(1).durability(Durability::Interval(Duration::from_millis(300)));
    let index = options.disk(through).create(HOME).unwrap();
    index.insert(&[1.0; DIM]).unwrap();
    *slot.lock().unwrap() = Some(index.clone());
    drop(index);
    comes("drop does not end", || dropped.load(SeqCst));
    comes("it is not closed", || stored(&disk).open(HOME).is_ok());
    assert_eq!(stored(&disk).open(HOME).unwrap().len(), 1);
}

#[test]
fn stats_tell_what_is_durable_and_wait_for_no_commit() {
    let (gate, disk) = (Gate::default(), SimDisk::new());
    let (held, closed) = (gate.clone(), Arc::new(AtomicBool::new(false)));
    let (_opened, is_closed) = (Opened(gate.clone()), Arc::clone(&closed));
    let through = syncing(&disk, move || {
        if is_closed.load(SeqCst) {
            held.pass();
        }
    });
    let options = options(1).durability(Durability::Interval(Duration::from_millis(20)));
    let index = options.disk(through).create(HOME).unwrap();
    for round in 1..4 {
        index.insert(&[1.0; DIM]).unwrap();
        comes("a commit by interval is not told", || index.stats().seq == round);
        assert_eq!(stored(&disk.after_kill()).open(HOME).unwrap().len() as u64, round);
    }
    closed.store(true, SeqCst);
    index.insert(&[1.0; DIM]).unwrap();
    comes("no commit", || gate.came() > 0);
    let own = index.clone();
    let stats = ends("stats beside a commit", move || own.stats());
    assert_eq!((stats.seq, stats.rows, stats.poisoned), (3, 4, None));
    gate.open();
    comes("a commit by interval is not told", || index.stats().seq == 4);
}
