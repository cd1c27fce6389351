//! Readers beside a writer that inserts, removes, folds, trains and compacts: every answer is that
//! of some moment between its question and its arrival. `CELLARDB_SECONDS` makes it run longer.

use cellardb::{Durability, Index, Kind, Maintenance, Metric};
use cellardb_campaign::data::Rng;
use cellardb_campaign::patience::{HANGS, until};
use cellardb_campaign::sim::SimDisk;
use cellardb_campaign::{HOME, SHAPES, scale, stored};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Barrier, Mutex};
use std::time::{Duration, Instant};

const DIM: usize = 8;

/// Row `id` is known from its id alone, and differs from every other row.
fn row(id: usize) -> Vec<f32> {
    let mut rng = Rng::new(id as u64);
    let mut row: Vec<f32> = (0..DIM).map(|_| rng.below(64) as f32).collect();
    row[0] = (id % 4096) as f32;
    row[1] = (id / 4096) as f32;
    row
}

fn rows(from: usize, n: usize) -> Vec<f32> {
    (from..from + n).flat_map(row).collect()
}

/// What the writer has done so far. Rows leave in order: ids below `removed` are gone for certain,
/// ids from `removing` to `inserted` are there for certain.
#[derive(Default)]
struct Progress {
    inserted: AtomicUsize,
    inserting: AtomicUsize,
    removed: AtomicUsize,
    removing: AtomicUsize,
    stop: AtomicBool,
    answers: AtomicUsize,
}

/// Inserts, removes and maintains until the time is over and the readers have answers, or one has failed.
fn write(index: &Index, at: &Progress, maintain: bool, time: Duration) {
    let (start, mut rng) = (Instant::now(), Rng::new(1));
    for turn in 0.. {
        let answered = at.answers.load(SeqCst) > 20 || at.stop.load(SeqCst);
        if start.elapsed() > time && (answered || start.elapsed() > HANGS) {
            break;
        }
        let (from, n) = (at.inserted.load(SeqCst), 1 + rng.below(30));
        at.inserting.store(from + n, SeqCst);
        assert_eq!(index.insert_many(&rows(from, n)).unwrap(), from..from + n);
        at.inserted.store(from + n, SeqCst);
        let live = from + n - at.removed.load(SeqCst);
        if live > 600 {
            let gone = at.removed.load(SeqCst);
            at.removing.store(gone + 100, SeqCst);
            let ids: Vec<usize> = (gone..gone + 100).collect();
            assert_eq!(index.remove_many(&ids).unwrap(), 100);
            at.removed.store(gone + 100, SeqCst);
        }
        if maintain && turn % 10 == 9 {
            match turn / 10 % 5 {
                0..=2 => index.flush().unwrap(),
                3 => drop(index.compact().unwrap()),
                _ => index.train().unwrap(),
            }
        }
    }
    at.stop.store(true, SeqCst);
}

/// Searches until the writer is done, and checks each answer against what was certain meanwhile.
fn read(index: &Index, at: &Progress, seed: u64) {
    let mut rng = Rng::new(seed);
    while !at.stop.load(SeqCst) {
        let (gone, there) = (at.removed.load(SeqCst), at.inserted.load(SeqCst));
        if there == 0 {
            continue;
        }
        let first = at.removing.load(SeqCst);
        let target = first + rng.below(there - first);
        let query = row(target);
        let exact = rng.below(3) == 0;
        let hits = if exact {
            index.query(&query).k(5).exact().run().unwrap()
        } else {
            index.search(&query, 5).unwrap()
        };
        let (may_be_gone, begun) = (at.removing.load(SeqCst), at.inserting.load(SeqCst));
        for pair in hits.windows(2) {
            assert!((pair[0].1, pair[0].0) < (pair[1].1, pair[1].0), "out of order: {hits:?}");
        }
        for (id, distance) in &hits {
            assert!(*id < begun, "row {id} was never inserted, {begun} begun");
            assert!(*id >= gone, "row {id} was removed before the search, up to {gone}");
            let right: f32 = row(*id).iter().zip(&query).map(|(a, b)| (a - b) * (a - b)).sum();
            assert_eq!(*distance, right, "row {id} is not what was inserted");
        }
        if exact && target >= may_be_gone {
            assert_eq!(hits.first(), Some(&(target, 0.0)), "row {target} of {there} is missing");
        }
        let found = index.get(target).unwrap();
        if target >= at.removing.load(SeqCst) {
            assert_eq!(found.as_ref(), Some(&query), "get {target}");
        }
        at.answers.fetch_add(1, SeqCst);
    }
}

/// One writer and some readers on one index in a real directory.
fn contend(index: Index, path: &Path, readers: usize, maintain: bool) {
    let at = Progress::default();
    let time = Duration::from_millis(1500 * scale("CELLARDB_SECONDS", 1));
    std::thread::scope(|scope| {
        for seed in 0..readers {
            let (index, at) = (index.clone(), &at);
            scope.spawn(move || {
                let reader = std::panic::AssertUnwindSafe(|| read(&index, at, seed as u64));
                if let Err(panic) = std::panic::catch_unwind(reader) {
                    at.stop.store(true, SeqCst);
                    std::panic::resume_unwind(panic);
                }
            });
        }
        write(&index, &at, maintain, time);
    });
    assert!(at.answers.into_inner() > 20, "the readers starved");
    let live: Vec<usize> = (at.removed.into_inner()..at.inserted.into_inner()).collect();
    assert_eq!(index.ids(), live);
    assert_eq!(index.stats().maintenance_error, None);
    index.close().unwrap();
    let index = Index::open(path).unwrap();
    assert_eq!(index.ids(), live);
    assert!(index.verify().unwrap().damage.is_empty());
}

#[test]
fn readers_see_a_moment_while_a_caller_folds_trains_and_compacts() {
    for (shape, readers) in SHAPES.into_iter().zip([2, 8, 4, 2]) {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join(shape.name);
        let index = shape.options(DIM, Metric::L2).create(&path).unwrap();
        contend(index, &path, readers, true);
    }
}

#[test]
fn readers_see_a_moment_while_the_background_does_it() {
    for kind in [Kind::Auto, Kind::IvfFlat] {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("background");
        let options = Index::options(DIM).kind(kind).train_at(200).segment_bytes(1 << 14);
        let index = options.maintenance(Maintenance::Background).create(&path).unwrap();
        contend(index, &path, 4, false);
    }
}

#[test]
fn a_snapshot_outlives_the_files_that_a_compaction_removes() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("index");
    let index = SHAPES[2].options(DIM, Metric::L2).create(&path).unwrap();
    index.insert_many(&rows(0, 500)).unwrap();
    index.train().unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // A search of many queries holds its snapshot all the while.
            let queries = rows(400, 100);
            while !stop.load(SeqCst) {
                let all = index.query_many(&queries).k(1).exact().threads(1).run().unwrap();
                for (hits, id) in all.iter().zip(400..) {
                    assert_eq!(hits, &[(id, 0.0)]);
                }
            }
        });
        for round in 0..8 {
            let ids: Vec<usize> = (round * 50..round * 50 + 50).collect();
            assert_eq!(index.remove_many(&ids).unwrap(), 50);
            let before = index.stats();
            let compacted = index.compact().unwrap();
            assert_eq!(compacted.rows, 50);
            let after = index.stats();
            assert!(after.row_bytes < before.row_bytes, "no space was given back");
        }
        stop.store(true, SeqCst);
    });
}

#[test]
fn writers_from_many_threads_are_one_order_of_commits() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("index");
    let index = SHAPES[1].options(DIM, Metric::L2).create(&path).unwrap();
    let batches: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|t| {
                let index = &index;
                scope.spawn(move || {
                    let mut mine = Vec::new();
                    for n in 0..12 {
                        let size = 1 + (t + n) % 7;
                        let marked: Vec<f32> = vec![(t * 100 + n) as f32; size * DIM];
                        mine.push((index.insert_many(&marked).unwrap(), t * 100 + n));
                        if n % 4 == 3 {
                            let (ids, _) = mine.swap_remove(0);
                            let ids: Vec<usize> = ids.collect();
                            assert_eq!(index.remove_many(&ids).unwrap(), ids.len());
                        }
                    }
                    mine
                })
            })
            .collect();
        threads.into_iter().flat_map(|t| t.join().unwrap()).collect()
    });
    let live: usize = batches.iter().map(|(ids, _)| ids.len()).sum();
    assert_eq!(index.len(), live);
    for (ids, mark) in batches {
        for id in ids {
            assert_eq!(index.get(id).unwrap().unwrap(), [mark as f32; DIM], "row {id}");
        }
    }
}

#[test]
fn inserting_into_an_exact_index_waits_for_no_upkeep() {
    let (verifying, held) = (Arc::new(Barrier::new(2)), Arc::new(Mutex::new(())));
    let (at, until) = (Arc::clone(&verifying), Arc::clone(&held));
    let observer = move |progress: cellardb::Progress| {
        if progress.stage == "verifying rows" {
            at.wait();
            drop(until.lock().unwrap());
        }
    };
    let disk = SimDisk::new();
    let options = SHAPES[0].options(2, Metric::L2).segment_bytes(1 << 24);
    let index = options.disk(Arc::new(disk)).progress(observer).create(HOME).unwrap();
    index.insert_many(&[0.5; 2 * 20_000]).unwrap();
    let hold = held.lock().unwrap();
    std::thread::scope(|scope| {
        let verify = scope.spawn(|| index.verify().unwrap());
        verifying.wait();
        let insert = scope.spawn(|| index.insert(&[1.0, 2.0]).unwrap());
        let start = Instant::now();
        while !insert.is_finished() && start.elapsed() < HANGS {
            std::thread::sleep(Duration::from_millis(1));
        }
        let waited = !insert.is_finished();
        drop(hold);
        assert_eq!((insert.join().unwrap(), waited), (20_000, false));
        assert!(verify.join().unwrap().damage.is_empty());
    });
}

/// Runs a job on another thread; it is over in time, or the test fails.
fn ends(what: &str, job: impl FnOnce() + Send + 'static) {
    let (done, over) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        job();
        done.send(()).unwrap();
    });
    let over = over.recv_timeout(HANGS);
    assert!(over.is_ok(), "{what} does not end, or panicked");
}

#[test]
fn calls_from_the_rayon_pool_of_the_host_end_and_do_not_nest() {
    use rayon::prelude::*;
    let options = SHAPES[2].options(DIM, Metric::L2).segment_bytes(1 << 20).threads(2);
    let index = options.disk(Arc::new(SimDisk::new())).create(HOME).unwrap();
    index.insert_many(&rows(0, 500)).unwrap();
    index.train().unwrap();
    let pool = |n| rayon::ThreadPoolBuilder::new().num_threads(n).stack_size(256 << 10).build();
    let (host, several) = (Arc::new(pool(2).unwrap()), index.clone());
    let inside = Arc::clone(&host);
    ends("insert_many from a host's pool", move || {
        inside.install(|| {
            (0..700).into_par_iter().for_each(|n| {
                several.insert_many(&rows(500 + n, 2)).unwrap();
            });
        });
    });
    let (inside, several) = (Arc::clone(&host), index.clone());
    ends("search_many from a host's pool", move || {
        inside.install(|| {
            (0..700).into_par_iter().for_each(|n| {
                several.search_many(&rows(n, 40), 3).unwrap();
            });
        });
    });
    let several = index.clone();
    ends("flush from a host's pool", move || {
        host.install(|| {
            (0..64).into_par_iter().for_each(|n| {
                several.insert_many(&rows(9_000 + n, 1)).unwrap();
                several.flush().unwrap();
            });
        });
    });
    assert_eq!(index.len(), 500 + 1_400 + 64);
}

#[test]
fn relaxed_durability_waits_for_no_training() {
    let disk = SimDisk::new();
    let (begun, go_on) = (Arc::new(Barrier::new(2)), Arc::new(Barrier::new(2)));
    let (at, until, first) = (Arc::clone(&begun), Arc::clone(&go_on), AtomicBool::new(true));
    let options = SHAPES[1].options(DIM, Metric::L2).maintenance(Maintenance::Background);
    let options = options.durability(Durability::Interval(Duration::from_millis(20)));
    let options = options.progress(move |_| {
        if first.swap(false, SeqCst) {
            at.wait();
            until.wait();
        }
    });
    let index = options.disk(Arc::new(disk.clone())).create(HOME).unwrap();
    index.insert_many(&rows(0, 200)).unwrap();
    // A training is under way, and does not get on.
    begun.wait();
    let id = index.insert(&row(200)).unwrap();
    let start = Instant::now();
    // Not with the threads of the index that is held up.
    let reader = || stored(&disk.after_kill()).threads(2).open(HOME);
    let is_durable = || reader().is_ok_and(|index| index.get(id).is_ok_and(|row| row.is_some()));
    while !is_durable() && start.elapsed() < HANGS {
        std::thread::sleep(Duration::from_millis(20));
    }
    let durable = is_durable();
    // Before anything can fail: whoever waits for the training would wait for ever.
    go_on.wait();
    assert!(durable, "the row is not durable yet");
    assert_eq!(index.get(id).unwrap(), Some(row(200)));
}

#[test]
fn upkeep_outlives_a_panic_of_the_observer_and_reports_it() {
    let first = AtomicBool::new(true);
    let options = SHAPES[1].options(DIM, Metric::L2).maintenance(Maintenance::Background);
    let options = options.progress(move |_| {
        assert!(!first.swap(false, SeqCst), "a panic of the host, on purpose");
    });
    let index = options.disk(Arc::new(SimDisk::new())).create(HOME).unwrap();
    index.insert_many(&rows(0, 200)).unwrap();
    until("a training after the panic", || index.stats().lists > 0);
    let told = index.stats().maintenance_error;
    assert!(told.is_some_and(|told| told.contains("panicked")));
}

#[test]
fn what_was_closed_before_its_tail_was_encoded_answers_many_queries() {
    let disk = SimDisk::new();
    let options = SHAPES[1].options(DIM, Metric::L2).disk(Arc::new(disk.clone()));
    let index = options.create(HOME).unwrap();
    index.insert_many(&rows(0, 200)).unwrap();
    index.train().unwrap();
    index.insert_many(&rows(200, 50)).unwrap();
    drop(index);
    let index = stored(&disk).maintenance(Maintenance::Background).open(HOME).unwrap();
    let clone = index.clone();
    index.close().unwrap();
    let hits = clone.search_many(&rows(230, 2), 1).unwrap();
    assert_eq!(hits, [[(230, 0.0)], [(231, 0.0)]]);
}

#[test]
fn recall_is_measured_again_when_an_index_has_grown_by_a_quarter() {
    let seen = Arc::new(AtomicBool::new(false));
    let noted = Arc::clone(&seen);
    let options = SHAPES[1].options(DIM, Metric::L2).maintenance(Maintenance::Background);
    let options = options.progress(move |at| {
        noted.fetch_or(at.stage == "measuring recall", SeqCst);
    });
    let index = options.disk(Arc::new(SimDisk::new())).create(HOME).unwrap();
    let all = rows(0, 260);
    index.insert_many(&all[..200 * DIM]).unwrap();
    until("the training", || index.stats().lists > 0);
    seen.store(false, SeqCst);
    index.insert_many(&all[200 * DIM..249 * DIM]).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert!(!seen.load(SeqCst), "for 249 rows after 200");
    index.insert_many(&all[249 * DIM..]).unwrap();
    until("the measuring of 260 rows after 200", || seen.load(SeqCst));
}
