//! The public interface: bad input is a typed error that says what to do and changes nothing; the
//! edge cases have their right answer; options, locks and group commit hold what they say.

mod files;
mod input;
mod plain;
mod reads;
mod stored;
mod threads;

use cellardb::{
    Durability, Error, Given, Index, IndexBackend, Kind, Maintenance, Metric, Options, Progress,
    Stats,
};
use cellardb_campaign::change::Cut;
use cellardb_campaign::data::{self, Rng};
use cellardb_campaign::model::Model;
use cellardb_campaign::patience::until;
use cellardb_campaign::sim::SimDisk;
use cellardb_campaign::{HOME, METRICS, SHAPES, Shape, stored};
use std::collections::HashSet;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Duration;

const DIM: usize = 4;

/// A fresh index on a simulated disk.
fn fresh(shape: Shape, metric: Metric) -> (SimDisk, Index) {
    let disk = SimDisk::new();
    let index = shape.options(DIM, metric).disk(Arc::new(disk.clone())).create(HOME).unwrap();
    (disk, index)
}

/// A directory that is removed at the end, and a path in it for an index.
fn home() -> (tempfile::TempDir, PathBuf) {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("memory.cellar");
    (root, path)
}

#[test]
fn a_vector_that_cannot_be_compared_is_refused_and_nothing_is_stored() {
    for shape in SHAPES {
        for metric in METRICS {
            let (disk, index) = fresh(shape, metric);
            index.insert(&[1.0, 0.0, 0.0, 0.0]).unwrap();
            let before = disk.ops();
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let row = [1.0, bad, 0.0, 0.0];
                let batch = [[2.0; 4], [3.0; 4], row].concat();
                assert!(matches!(index.insert(&row), Err(Error::Vector { position: 0, .. })));
                let refused = index.insert_many(&batch);
                assert!(matches!(refused, Err(Error::Vector { position: 2, .. })), "{refused:?}");
                assert!(index.search(&row, 1).is_err());
            }
            let zero = [[2.0; 4], [0.0; 4]].concat();
            if metric == Metric::Cosine {
                assert!(matches!(index.insert_many(&zero), Err(Error::Vector { position: 1, .. })));
                assert!(index.search(&zero[4..], 1).is_err());
            } else {
                assert!(index.search(&zero[4..], 1).is_ok());
            }
            assert_eq!(disk.ops(), before, "nothing was written");
            assert_eq!(index.ids(), [0]);
            assert_eq!(index.insert(&[1.0; 4]).unwrap(), 1, "no id was spent");
        }
    }
}

#[test]
fn sums_that_overflow_are_no_reason_to_refuse_finite_numbers() {
    let (_disk, index) = fresh(SHAPES[0], Metric::L2);
    assert_eq!(index.insert(&[f32::MAX, f32::MAX, 0.0, 0.0]).unwrap(), 0);
    assert_eq!(index.get(0).unwrap().unwrap()[1], f32::MAX);
}

#[test]
fn rows_come_back_bit_for_bit() {
    for metric in METRICS {
        let (disk, index) = fresh(SHAPES[0], metric);
        let row = [-0.0, f32::MIN_POSITIVE, 1.0e-40, 3.3];
        index.insert(&row).unwrap();
        drop(index);
        let found = stored(&disk).open(HOME).unwrap().get(0).unwrap().unwrap();
        assert_eq!(found.map_to_bits(), row.to_vec().map_to_bits());
    }
}

trait Bits {
    fn map_to_bits(&self) -> Vec<u32>;
}

impl Bits for Vec<f32> {
    fn map_to_bits(&self) -> Vec<u32> {
        self.iter().map(|x| x.to_bits()).collect()
    }
}

#[test]
fn a_wrong_dimension_is_refused_everywhere() {
    let (_disk, index) = fresh(SHAPES[1], Metric::L2);
    let wrong = |e: Error| {
        assert!(matches!(e, Error::Dimension { expected: 4, .. }), "{e:?}");
        assert!(e.to_string().contains('4'), "{e}");
    };
    for n in [0, 3, 5, 8] {
        wrong(index.insert(&vec![1.0; n]).unwrap_err());
        wrong(index.search(&vec![1.0; n], 1).unwrap_err());
    }
    wrong(index.insert_many(&[1.0; 7]).unwrap_err());
    wrong(index.search_many(&[1.0; 7], 1).unwrap_err());
    assert!(index.is_empty());
}

#[test]
fn the_edges_have_their_right_answers() {
    for shape in SHAPES {
        for metric in METRICS {
            let (_disk, index) = fresh(shape, metric);
            let query = [1.0, 0.0, 0.0, 0.0];
            assert_eq!(index.search(&query, 10).unwrap(), []);
            assert_eq!(index.query(&query).exact().run().unwrap(), []);
            assert_eq!(index.search_many(&[], 10).unwrap(), Vec::<Vec<(usize, f32)>>::new());
            assert_eq!(index.insert_many(&[]).unwrap(), 0..0);
            assert_eq!(index.remove_many(&[]).unwrap(), 0);
            assert!(!index.remove(0).unwrap() && !index.remove(usize::MAX).unwrap());
            assert_eq!(index.get(0).unwrap(), None);
            assert_eq!(index.get(usize::MAX).unwrap(), None);
            index.flush().unwrap();
            index.train().unwrap();
            assert_eq!(index.compact().unwrap().rows, 0);
            let mut model = Model::new(DIM, metric);
            let rows = data::vectors(&mut Rng::new(1), 80, DIM, metric);
            assert_eq!(index.insert_many(&rows).unwrap(), model.insert(&rows));
            index.train().unwrap();
            for k in [0, 1, 79, 80, 81, 10_000, usize::MAX] {
                assert_eq!(index.search(&query, k).unwrap().len(), k.min(80), "{} {k}", shape.name);
                assert_eq!(
                    index.query(&query).k(k).exact().run().unwrap(),
                    model.search(&query, k)
                );
            }
            assert_eq!(index.remove_many(&[3, 3, 900, 3]).unwrap(), 1, "one row is removed once");
            assert!(!index.remove(3).unwrap());
            let all: Vec<usize> = (0..80).collect();
            assert_eq!(index.remove_many(&all).unwrap(), 79);
            assert_eq!(index.search(&query, 5).unwrap(), []);
            index.compact().unwrap();
            assert_eq!(index.search(&query, 5).unwrap(), []);
            assert_eq!(index.insert(&query).unwrap(), 80, "ids are never used again");
            assert_eq!(index.search(&query, 5).unwrap().len(), 1);
        }
    }
}

#[test]
fn options_without_meaning_are_refused_before_anything_is_made() {
    let disk = SimDisk::new();
    let on = |options: Options| options.disk(Arc::new(disk.clone()));
    for options in [
        Index::options(0),
        Index::options(65_536),
        Index::options(8).pq_bits(5),
        Index::options(8).pq_subquantizers(9),
        Index::options(8).nlist(16_385),
        Index::options(8).segment_bytes(1),
        Options::stored(),
    ] {
        let Err(Error::Invalid { name, why }) = on(options).create(HOME) else {
            panic!("not refused")
        };
        assert!(!name.is_empty() && !why.is_empty());
    }
    assert!(disk.dump().is_empty());
    let (_disk, index) = fresh(SHAPES[1], Metric::L2);
    for recall in [0.0, -1.0, 1.5, f32::NAN] {
        assert!(matches!(index.query(&[0.0; 4]).recall(recall).run(), Err(Error::Invalid { .. })));
    }
}

#[test]
fn create_open_and_open_or_create_know_what_is_there() {
    let disk = SimDisk::new();
    let options = SHAPES[0].options(DIM, Metric::L2).disk(Arc::new(disk.clone()));
    let Err(missing) = stored(&disk).open(HOME) else { panic!("opened nothing") };
    assert!(matches!(missing, Error::NotFound { .. }), "{missing:?}");
    assert!(missing.to_string().contains(HOME) && missing.to_string().contains("create"));
    assert!(matches!(stored(&disk).open_read_only(HOME), Err(Error::NotFound { .. })));
    assert!(disk.dump().is_empty(), "opening made nothing");
    drop(options.create(HOME).unwrap());
    let Err(exists) = options.create(HOME) else { panic!("created twice") };
    assert!(matches!(exists, Error::Exists { .. }) && exists.to_string().contains(HOME));
    options.open_or_create(HOME).unwrap().insert(&[1.0; DIM]).unwrap();
    assert_eq!(options.open_or_create(HOME).unwrap().len(), 1);
    let other = SHAPES[0].options(DIM + 1, Metric::L2).disk(Arc::new(disk.clone()));
    assert!(matches!(other.open(HOME), Err(Error::Dimension { expected: DIM, .. })));
    let nested = "/index/deeper/still";
    options.create(nested).unwrap();
    assert!(stored(&disk).open(nested).unwrap().is_empty());
}

#[test]
fn options_are_stored_and_hold_at_the_next_opening() {
    for (shape, code) in SHAPES.into_iter().zip(["exact", "flat", "pq4", "pq8"]) {
        for metric in METRICS {
            let (disk, index) = fresh(shape, metric);
            let rows = data::vectors(&mut Rng::new(1), 100, DIM, metric);
            index.insert_many(&rows).unwrap();
            index.train().unwrap();
            index.close().unwrap();
            let index = stored(&disk).open(HOME).unwrap();
            let stats = index.stats();
            assert_eq!((index.dim(), index.metric(), stats.kind), (DIM, metric, shape.kind));
            assert_eq!((stats.code, stats.rows), (code, 100));
            if shape.kind == Kind::IvfPq {
                assert_eq!(stats.subquantizers, DIM / 2);
            }
            if shape.kind != Kind::Exact {
                assert_eq!((stats.generation, stats.tail, stats.trained_rows), (1, 0, 100));
                assert!(stats.lists > 0 && stats.list_bytes > 0 && stats.cells >= stats.lists);
                assert_eq!(stats.settings.len(), 3);
            }
            assert!(stats.segments > 1, "segments of 4 KiB");
        }
    }
}

#[test]
fn one_handle_writes_and_a_second_is_refused() {
    let (disk, index) = fresh(SHAPES[0], Metric::L2);
    let Err(locked) = stored(&disk).open(HOME) else { panic!("two writers") };
    assert!(matches!(locked, Error::Locked { .. }), "{locked:?}");
    assert!(locked.to_string().contains(HOME) && locked.to_string().contains("close it"));
    assert!(matches!(stored(&disk).open_read_only(HOME), Err(Error::Locked { .. })));
    let clone = index.clone();
    drop(index);
    assert!(stored(&disk).open(HOME).is_err(), "a clone is the same handle and still there");
    drop(clone);
    let (a, b) = (stored(&disk).open_read_only(HOME), stored(&disk).open_read_only(HOME));
    assert!(a.is_ok() && b.is_ok(), "readers share");
    assert!(matches!(stored(&disk).open(HOME), Err(Error::Locked { .. })));
    drop((a, b));
    stored(&disk).open(HOME).unwrap();
}

#[test]
fn a_closed_index_refuses_writes_and_its_last_handle_gives_up_the_lock() {
    let (disk, index) = fresh(SHAPES[0], Metric::L2);
    let clone = index.clone();
    index.insert(&[1.0; DIM]).unwrap();
    index.close().unwrap();
    let refused = clone.insert(&[1.0; DIM]);
    assert!(matches!(refused, Err(Error::Closed)), "{refused:?}");
    assert_eq!(clone.search(&[1.0; DIM], 1).unwrap().len(), 1, "searches still answer");
    drop(clone);
    assert_eq!(stored(&disk).open(HOME).unwrap().len(), 1);
}

/// The environment variable that makes a test of this binary the second process of another.
const CHILD: &str = "CELLARDB_TEST_CHILD";

/// Runs one test of this binary in a process of its own.
fn child(test: &str, path: &std::path::Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]).env(CHILD, path).stdout(Stdio::piped());
    command
}

#[test]
fn a_second_process_is_refused_and_told_who_holds_it() {
    if let Ok(path) = std::env::var(CHILD) {
        let Err(Error::Locked { pid, .. }) = Index::open(path) else { panic!("two writers") };
        println!("held by {}", pid.unwrap());
        return;
    }
    let (_root, path) = home();
    let _index = Index::options(DIM).create(&path).unwrap();
    let name = "api::a_second_process_is_refused_and_told_who_holds_it";
    let said = child(name, &path).output().unwrap();
    let text = String::from_utf8_lossy(&said.stdout);
    assert!(said.status.success(), "{text}");
    assert!(text.contains(&format!("held by {}", std::process::id())), "{text}");
}

#[test]
fn a_killed_process_leaves_every_acknowledged_row() {
    use std::io::{BufRead, BufReader};
    if let Ok(path) = std::env::var(CHILD) {
        let index = Index::options(DIM).train_at(64).open_or_create(path).unwrap();
        for n in 0.. {
            let id = index.insert(&[n as f32; DIM]).unwrap();
            println!("ack {id}");
        }
    }
    let (_root, path) = home();
    let mut acked = 0;
    for round in 0..3 {
        let name = "api::a_killed_process_leaves_every_acknowledged_row";
        let mut process = child(name, &path).stderr(Stdio::null()).spawn().unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let target = acked + 40 + 17 * round;
        while let Some(Ok(line)) = lines.next() {
            if let Some(id) = line.split("ack ").nth(1) {
                acked = id.trim().parse::<usize>().unwrap() + 1;
            }
            if acked >= target {
                process.kill().unwrap();
                break;
            }
        }
        process.wait().unwrap();
        let last = lines.map_while(Result::ok).filter_map(|l| l.split("ack ").nth(1)?.parse().ok());
        acked = last.last().map_or(acked, |id: usize| id + 1);
        let index = Index::open(&path).unwrap();
        assert!(index.len() >= acked, "{} rows of {acked} acknowledged", index.len());
        assert_eq!(index.ids(), (0..index.len()).collect::<Vec<_>>());
        assert!(index.verify().unwrap().damage.is_empty());
        index.close().unwrap();
    }
}

#[test]
fn a_reader_refuses_every_write() {
    let (disk, index) = fresh(SHAPES[1], Metric::L2);
    index.insert(&[1.0; DIM]).unwrap();
    drop(index);
    let index = stored(&disk).open_read_only(HOME).unwrap();
    let before = (disk.dump(), disk.ops());
    let refused = [
        index.insert(&[1.0; DIM]).map(drop),
        index.insert_many(&[1.0; DIM]).map(drop),
        index.remove(0).map(drop),
        index.remove_many(&[0]).map(drop),
        index.flush(),
        index.train(),
        index.compact().map(drop),
    ];
    for (i, refused) in refused.into_iter().enumerate() {
        let e = refused.unwrap_err();
        assert!(matches!(e, Error::ReadOnly) && e.to_string().contains("open it"), "{i}: {e:?}");
    }
    assert_eq!(index.search(&[1.0; DIM], 1).unwrap(), [(0, 0.0)]);
    assert!(index.verify().unwrap().damage.is_empty());
    index.close().unwrap();
    assert!(before == (disk.dump(), disk.ops()), "a reader wrote");
}

#[test]
fn threads_share_commits_and_each_gets_its_own_ids() {
    let (_root, path) = home();
    let index = SHAPES[0].options(DIM, Metric::L2).create(&path).unwrap();
    let barrier = Barrier::new(16);
    let ids: HashSet<usize> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..16)
            .map(|t| {
                let (index, barrier) = (index.clone(), &barrier);
                scope.spawn(move || {
                    barrier.wait();
                    let row = |n: usize| [t as f32, n as f32, 0.0, 0.0];
                    (0..25).map(|n| (index.insert(&row(n)).unwrap(), row(n))).collect::<Vec<_>>()
                })
            })
            .collect();
        let all: Vec<_> = threads.into_iter().flat_map(|t| t.join().unwrap()).collect();
        for (id, row) in &all {
            assert_eq!(index.get(*id).unwrap().unwrap(), row, "row {id}");
        }
        all.into_iter().map(|(id, _)| id).collect()
    });
    assert_eq!(ids, (0..400).collect());
    let commits = index.stats().seq;
    assert!(commits < 400, "{commits} commits for 400 inserts: none was shared");
    drop(index);
    assert_eq!(Index::open(&path).unwrap().len(), 400);
}

#[test]
fn one_bad_vector_in_a_group_harms_only_its_caller() {
    let (_disk, index) = fresh(SHAPES[0], Metric::L2);
    let (good, bad) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for t in 0..8 {
            let (index, good, bad) = (&index, &good, &bad);
            scope.spawn(move || {
                for n in 0..50 {
                    let x = if (t + n) % 5 == 0 { f32::NAN } else { 1.0 };
                    let counter = if index.insert(&[x; DIM]).is_ok() { good } else { bad };
                    counter.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!((good.into_inner(), bad.into_inner()), (320, 80));
    assert_eq!(index.len(), 320);
}

#[test]
fn under_relaxed_durability_a_flush_or_the_interval_makes_rows_safe() {
    let disk = SimDisk::new();
    let options = |interval| {
        let options = SHAPES[1].options(DIM, Metric::L2).disk(Arc::new(disk.clone()));
        options.durability(Durability::Interval(interval)).maintenance(Maintenance::Background)
    };
    let index = options(Duration::from_secs(3600)).create(HOME).unwrap();
    for n in 0..10 {
        assert_eq!(index.insert(&[n as f32; DIM]).unwrap(), n);
    }
    assert_eq!(index.search(&[3.0; DIM], 1).unwrap(), [(3, 0.0)], "visible at once");
    index.flush().unwrap();
    assert_eq!(stored(&disk.after_cut(Cut::Dropped)).open(HOME).unwrap().len(), 10);
    index.insert(&[11.0; DIM]).unwrap();
    index.close().unwrap();
    assert_eq!(stored(&disk.after_cut(Cut::Dropped)).open(HOME).unwrap().len(), 11);
    let index = options(Duration::from_millis(20)).open(HOME).unwrap();
    index.insert(&[12.0; DIM]).unwrap();
    until("the sync of the interval", || {
        let left = disk.after_cut(Cut::Dropped);
        stored(&left).open(HOME).unwrap().len() == 12
    });
}

#[test]
fn an_index_left_to_itself_trains_and_measures_again_when_it_has_doubled() {
    let (_root, path) = home();
    let stages = Arc::new(AtomicUsize::new(0));
    let seen = stages.clone();
    let index = Index::options(8)
        .train_at(300)
        .threads(1)
        .progress(move |p: Progress| {
            assert!(!p.stage.is_empty() && p.done <= p.total);
            seen.fetch_add(1, Ordering::Relaxed);
        })
        .create(&path)
        .unwrap();
    let rows = data::vectors(&mut Rng::new(1), 400, 8, Metric::L2);
    for row in rows.chunks(8 * 50) {
        index.insert_many(row).unwrap();
    }
    let wait = |done: &dyn Fn(&Stats) -> bool| {
        let mut stats = index.stats();
        until("upkeep", || {
            stats = index.stats();
            assert_eq!(stats.maintenance_error, None);
            done(&stats)
        });
        stats
    };
    let trained = wait(&|stats| stats.generation == 1);
    assert!(trained.code.starts_with("pq"), "auto becomes a PQ index");
    assert!(stages.load(Ordering::Relaxed) > 0, "nobody was told");
    // The same rows once more: every cell holds twice as many.
    index.insert_many(&rows).unwrap();
    index.insert_many(&rows[..8 * 50]).unwrap();
    let codes = |stats: &Stats| stats.settings.iter().map(|s| s.codes).sum::<f32>();
    let measured = wait(&|stats| codes(stats) != codes(&trained));
    assert_eq!(measured.generation, 1, "measured, not trained");
    index.close().unwrap();
    let index = Index::open(&path).unwrap();
    assert_eq!((index.len(), codes(&index.stats())), (850, codes(&measured)));
}

#[test]
fn a_backend_is_a_host_s_enum_over_the_same_index() {
    let (_root, path) = home();
    let options = Index::options(DIM).kind(Kind::IvfFlat);
    let backend = IndexBackend::open(&options, &path).unwrap();
    assert!(matches!(backend, IndexBackend::IvfFlat(_)));
    let id: usize = backend.insert(&[1.0; DIM]);
    let hits: Vec<(usize, f32)> = backend.search(&[1.0; DIM], 3);
    assert_eq!(hits, [(id, 0.0)]);
    assert!(backend.try_insert(&[1.0; DIM + 1]).is_err() && backend.try_search(&[], 1).is_err());
}

#[test]
fn an_explained_answer_says_what_it_took() {
    let (_disk, index) = fresh(SHAPES[2], Metric::L2);
    index.insert_many(&data::vectors(&mut Rng::new(2), 200, DIM, Metric::L2)).unwrap();
    index.train().unwrap();
    let answer = index.query(&[1.0; DIM]).k(5).probes(2).rerank(20).explain().unwrap();
    assert_eq!(answer.hits.len(), 5);
    assert!(answer.cells <= 2 && answer.lists <= 2 && answer.reranked <= 20, "{answer:?}");
    assert!(answer.codes < 400 && answer.codes > 0);
    let wide = index.query(&[1.0; DIM]).k(5).probes(1000).rerank(1000).explain().unwrap();
    assert_eq!(wide.codes, 400, "every row is in two cells");
    assert_eq!(wide.reranked, 200, "and is compared once");
}
