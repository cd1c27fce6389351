//! Files that are open at a time: an ordinary process may have 1,024. And directories that are left behind.

use cellardb::{Disk, Index, Kind, Maintenance, Metric, Options};
use cellardb_campaign::change::Cut;
use cellardb_campaign::data::{self, Rng};
use cellardb_campaign::layer::{Call, Layer, Through};
use cellardb_campaign::sim::{SimDisk, cuts};
use cellardb_campaign::{HOME, stored};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Counts the files that are open for writing.
#[derive(Debug, Clone, Default)]
struct Counting {
    open: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

impl Layer for Counting {
    fn around<T>(&self, call: Call<'_>, job: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let done = job()?;
        if let Call::Create | Call::Open { write: true } = call {
            self.most.fetch_max(self.open.fetch_add(1, Relaxed) + 1, Relaxed);
        }
        Ok(done)
    }

    fn closed(&self, write: bool) {
        self.open.fetch_sub(usize::from(write), Relaxed);
    }
}

#[test]
fn the_number_of_lists_is_no_number_of_open_files() {
    let files = Counting::default();
    let disk = Through { layer: files.clone(), disk: SimDisk::new() };
    let options = Index::options(4).kind(Kind::IvfPq).nlist(300).train_at(1_000).memory(256 << 10);
    let options = options.maintenance(Maintenance::Manual).threads(1);
    let index = options.disk(Arc::new(disk)).create(HOME).unwrap();
    let rows = data::vectors(&mut Rng::new(8), 4_000, 4, Metric::L2);
    index.insert_many(&rows[..3_000 * 4]).unwrap();
    index.train().unwrap();
    assert_eq!(index.stats().lists, 300);
    index.insert_many(&rows[3_000 * 4..]).unwrap();
    index.flush().unwrap();
    index.remove_many(&(0..4_000).step_by(2).collect::<Vec<_>>()).unwrap();
    index.compact().unwrap();
    assert!(index.verify().unwrap().damage.is_empty());
    let (most, open) = (files.most.load(Relaxed), files.open.load(Relaxed));
    assert!(most <= 20 && open <= 5, "{most} at a time, {open} at the end");
}

/// The directories below a path, the deepest first.
fn directories(disk: &dyn Disk, path: &Path) -> Vec<PathBuf> {
    let is_dir = |path: &PathBuf| disk.open(path, false).is_err();
    let below: Vec<PathBuf> = disk.list(path).unwrap().into_iter().filter(is_dir).collect();
    below.into_iter().flat_map(|dir| [directories(disk, &dir), vec![dir]].concat()).collect()
}

fn trained(disk: Arc<dyn Disk>, path: &Path, trainings: usize) -> Index {
    let options = Index::options(4).nlist(70).train_at(100).maintenance(Maintenance::Manual);
    let index = options.threads(1).disk(disk).create(path).unwrap();
    index.insert_many(&data::vectors(&mut Rng::new(8), 400, 4, Metric::L2)).unwrap();
    (0..trainings).for_each(|_| index.train().unwrap());
    index
}

/// `rows`, `lists`, and in it the generation that is current with the folders of its 70 lists.
fn only_current(disk: &dyn Disk, path: &Path, generation: usize) {
    let lists = path.join("lists");
    let current = lists.join(format!("g{generation:04}"));
    let mut expected =
        vec![current.join("000"), current.join("001"), current, lists, path.join("rows")];
    let mut found = directories(disk, path);
    expected.sort();
    found.sort();
    assert_eq!(found, expected);
}

#[test]
fn a_training_leaves_no_directory_of_the_one_before() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("index");
    let index = trained(Arc::new(cellardb::FileSystem), &path, 5);
    only_current(&cellardb::FileSystem, &path, 5);
    index.close().unwrap();
    drop(Index::open(&path).unwrap());
    only_current(&cellardb::FileSystem, &path, 5);
    let disk = SimDisk::new();
    let _index = trained(Arc::new(disk.clone()), Path::new(HOME), 3);
    only_current(&disk, Path::new(HOME), 3);
}

#[test]
fn directories_that_a_crash_has_left_go_at_the_next_open_and_those_of_others_stay() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("index");
    trained(Arc::new(cellardb::FileSystem), &path, 2).close().unwrap();
    let lists = path.join("lists");
    for name in ["g0001/000", "g0001/001", "g0003/000", "g0007", "notes/000", "g0009/mine", "gone"]
    {
        std::fs::create_dir_all(lists.join(name)).unwrap();
    }
    std::fs::copy(
        lists.join("g0002/000/00003.000000.list"),
        lists.join("g0003/000/00003.000000.list"),
    )
    .unwrap();
    std::fs::File::create_new(lists.join("g0001/001/README")).unwrap();
    Options::stored().open_read_only(&path).unwrap().close().unwrap();
    assert!(lists.join("g0007").exists(), "who reads removes nothing");
    Index::open(&path).unwrap().close().unwrap();
    let left = directories(&cellardb::FileSystem, &lists);
    let mut left: Vec<&str> =
        left.iter().map(|p| p.strip_prefix(&lists).unwrap().to_str().unwrap()).collect();
    left.sort_unstable();
    let expected = [
        "g0001",
        "g0001/001",
        "g0002",
        "g0002/000",
        "g0002/001",
        "g0009",
        "g0009/mine",
        "gone",
        "notes",
        "notes/000",
    ];
    assert_eq!(left, expected);
}

#[test]
fn a_power_cut_at_any_time_of_a_training_leaves_no_directory_after_the_next_open() {
    let disk = SimDisk::new();
    let index = trained(Arc::new(disk.clone()), Path::new(HOME), 1);
    disk.record();
    let walker = disk.after_cut(Cut::Kept);
    index.train().unwrap();
    let mut seen = [0; 2];
    for (n, op) in disk.recorded().iter().enumerate() {
        walker.replay(op);
        for cut in cuts(3, n as u64) {
            let left = walker.after_cut(cut);
            let index = stored(&left).open(HOME).unwrap();
            let folders = left.list(&Path::new(HOME).join("lists")).unwrap();
            let Some(generation @ 1..=2) = folders
                .first()
                .and_then(|p| p.file_name()?.to_str()?.strip_prefix('g')?.parse::<usize>().ok())
            else {
                panic!("{folders:?}")
            };
            only_current(&left, Path::new(HOME), generation);
            seen[generation - 1] += 1;
            assert!(index.verify().unwrap().damage.is_empty());
        }
    }
    assert!(seen.iter().all(|n| *n > 10), "{seen:?}");
}
