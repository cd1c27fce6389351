//! Small indexes, and many of them in one process: what they take of the disk, of descriptors and of memory,
//! and how often they have it synced.

use cellardb::{Disk, Error, Index, Maintenance, Metric, Options};
use cellardb_campaign::change::Cut;
use cellardb_campaign::data::{self, Rng};
use cellardb_campaign::layer::{Call, Layer, Through};
use cellardb_campaign::node::Op;
use cellardb_campaign::sim::{Calls, Fault, Plan, SimDisk};
use cellardb_campaign::{HOME, SHAPES, stored};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

const DIM: usize = 64;

/// So many that most of them are at rest.
const MANY: usize = 40;

/// What a job has synced: files, and directories.
fn syncs<T>(disk: &SimDisk, job: impl FnOnce() -> T) -> ((usize, usize), T) {
    disk.record();
    let done = job();
    let ops = disk.recorded();
    let files = ops.iter().filter(|op| matches!(op, Op::Sync(_) | Op::SyncAll)).count();
    let dirs = ops.iter().filter(|op| matches!(op, Op::SyncDir(_))).count();
    ((files, dirs), done)
}

#[test]
fn nothing_is_synced_that_was_not_changed() {
    let disk = SimDisk::new();
    let options = || SHAPES[0].options(4, Metric::L2).segment_bytes(1 << 20);
    let create = || options().disk(Arc::new(disk.clone())).create(HOME).unwrap();
    let (found, index) = syncs(&disk, create);
    assert_eq!(
        found,
        (1, 3),
        "the catalog; the directory before its name and after it, and its parent"
    );
    let (found, _) = syncs(&disk, || index.insert(&[1.0; 4]).unwrap());
    assert_eq!(found, (2, 1), "rows and catalog; the name of the segment");
    let (found, _) = syncs(&disk, || index.insert(&[2.0; 4]).unwrap());
    assert_eq!(found, (2, 0), "rows and catalog");
    let (found, _) = syncs(&disk, || index.remove(0).unwrap());
    assert_eq!(found, (1, 0), "the catalog");
    let (found, ()) = syncs(&disk, || index.close().unwrap());
    assert_eq!(found, (1, 0), "the mark");
    let (found, index) = syncs(&disk, || stored(&disk).open(HOME).unwrap());
    assert_eq!(found, (0, 0), "a clean open");
    let (found, _) = syncs(&disk, || index.insert(&[3.0; 4]).unwrap());
    assert_eq!(found, (2, 0), "the first commit after it");
    let (found, ()) = syncs(&disk, || index.close().unwrap());
    assert_eq!(found, (1, 0), "the mark");
    let (found, index) = syncs(&disk, || stored(&disk).open_read_only(HOME).unwrap());
    assert_eq!((found, index.ids()), ((0, 0), vec![1, 2]));
}

#[test]
fn a_fold_syncs_a_directory_only_if_it_has_a_new_name() {
    let disk = SimDisk::new();
    let options = SHAPES[2].options(4, Metric::L2).nlist(4).disk(Arc::new(disk.clone()));
    let index = options.create(HOME).unwrap();
    let rows = data::vectors(&mut Rng::new(7), 2_000, 4, Metric::L2);
    index.insert_many(&rows).unwrap();
    index.train().unwrap();
    let (mut plain, mut named) = (0, 0);
    for row in rows.chunks(40).take(40) {
        index.insert_many(row).unwrap();
        disk.record();
        index.flush().unwrap();
        let ops = disk.recorded();
        let created = ops.iter().any(|op| matches!(op, Op::Create(..)));
        let dirs = ops.iter().filter(|op| matches!(op, Op::SyncDir(_))).count();
        assert_eq!(dirs, usize::from(created), "{ops:?}");
        plain += usize::from(!created);
        named += usize::from(created);
    }
    assert!(plain > 5 && named > 0, "{plain} folds without new names, {named} with");
    let left = stored(&disk.after_cut(Cut::Dropped)).open(HOME).unwrap();
    assert!(left.len() == index.len() && left.verify().unwrap().damage.is_empty());
}

fn path(n: usize) -> PathBuf {
    format!("/{n}/index").into()
}

#[test]
fn an_index_that_was_at_rest_goes_on_where_it_was() {
    let disk = SimDisk::new();
    let options = || Index::options(4).threads(1).maintenance(Maintenance::Manual);
    let make = |n| {
        disk.create_dir(path(n).parent().unwrap()).unwrap();
        disk.sync_dir(Path::new("/")).unwrap();
        options().disk(Arc::new(disk.clone())).create(path(n)).unwrap()
    };
    let all: Vec<Index> = (0..MANY).map(make).collect();
    for round in 0..5 {
        for (n, index) in all.iter().enumerate() {
            let row = [n as f32, round as f32, 0.0, 0.0];
            let (found, id) = syncs(&disk, || index.insert(&row).unwrap());
            assert_eq!(id, round);
            assert_eq!(found, (2, usize::from(round == 0)), "index {n}, round {round}");
        }
        assert!(all[0].verify().unwrap().damage.is_empty());
        for left in [disk.after_cut(Cut::Dropped), disk.after_cut(Cut::Random(round as u64))] {
            for n in 0..MANY {
                let index = stored(&left).open(path(n)).unwrap();
                assert_eq!(index.len(), round + 1, "index {n}, round {round}");
                assert_eq!(index.get(round).unwrap().unwrap()[0], n as f32);
            }
        }
    }
    for (n, index) in all.into_iter().enumerate() {
        index.remove(n % 5).unwrap();
        index.close().unwrap();
        assert_eq!(stored(&disk).open(path(n)).unwrap().len(), 4);
    }
}

#[test]
fn indexes_that_are_opened_and_written_at_the_same_time_do_not_put_each_other_to_rest() {
    std::thread::scope(|scope| {
        for n in 0..MANY {
            scope.spawn(move || {
                let disk = SimDisk::new();
                let options = Index::options(4).threads(1).maintenance(Maintenance::Manual);
                drop(options.disk(Arc::new(disk.clone())).create(HOME).unwrap());
                for round in 0..12 {
                    let index = stored(&disk).open(HOME).unwrap();
                    for at in 0..3 {
                        assert_eq!(index.insert(&[n as f32; 4]).unwrap(), 3 * round + at);
                    }
                    assert!(index.verify().unwrap().damage.is_empty());
                    index.close().unwrap();
                }
            });
        }
    });
}

#[test]
fn a_catalog_that_another_changed_while_it_was_at_rest_is_noticed() {
    let root = tempfile::tempdir().unwrap();
    let options = || Index::options(4).threads(1).maintenance(Maintenance::Manual);
    let make = |n: usize| options().create(root.path().join(n.to_string())).unwrap();
    let index = make(0);
    let catalog = root.path().join("0/catalog.redb");
    index.insert(&[1.0; 4]).unwrap();
    let older = std::fs::read(&catalog).unwrap();
    index.insert(&[2.0; 4]).unwrap();
    let others: Vec<Index> = (1..MANY).map(make).collect();
    // Whole, and in the same file.
    #[expect(clippy::disallowed_methods, reason = "another process writes to a real file")]
    std::fs::write(&catalog, older).unwrap();
    let refused = index.insert(&[3.0; 4]).unwrap_err();
    assert!(refused.to_string().contains("another than it was left"), "{refused}");
    assert!(matches!(index.insert(&[3.0; 4]), Err(Error::Poisoned { .. })));
    assert_eq!(index.search(&[2.0; 4], 1).unwrap(), [(1, 0.0)], "searches go on");
    others[0].insert(&[1.0; 4]).unwrap();
}

#[test]
fn a_segment_that_was_replaced_while_it_was_closed_takes_no_rows() {
    let root = tempfile::tempdir().unwrap();
    let options = Index::options(4).threads(1).maintenance(Maintenance::Manual);
    let index = options.create(root.path().join("index")).unwrap();
    index.insert(&[1.0; 4]).unwrap();
    let segment = root.path().join("index/rows/0000000000.rows");
    let bytes = std::fs::read(&segment).unwrap();
    std::fs::remove_file(&segment).unwrap();
    // The number of the old file must not be free for the new one.
    let _held = std::fs::File::create(root.path().join("other")).unwrap();
    #[expect(clippy::disallowed_methods, reason = "another process replaces a real file")]
    std::fs::write(&segment, &bytes).unwrap();
    let refused = index.insert(&[2.0; 4]).unwrap_err();
    assert!(refused.to_string().contains("took its place"), "{refused}");
    assert!(std::fs::read(&segment).unwrap() == bytes, "it was written to");
}

#[test]
fn a_bit_that_is_misread_after_a_rest_costs_no_commit() {
    let others = || {
        let options = Index::options(1).threads(1).maintenance(Maintenance::Manual);
        options.disk(Arc::new(SimDisk::new())).create(HOME).unwrap()
    };
    let others: Vec<Index> = (0..17).map(|_| others()).collect();
    let mut failed = 0;
    for (at, rows) in (0..10).flat_map(|at| (1..15).map(move |rows| (at, rows))) {
        let disk = SimDisk::new();
        let options = Index::options(4).threads(1).maintenance(Maintenance::Manual);
        let index = options.disk(Arc::new(disk.clone())).create(HOME).unwrap();
        (0..rows).for_each(|_| assert!(index.insert(&[1.0; 4]).is_ok()));
        others.iter().for_each(|other| assert!(other.insert(&[0.0]).is_ok()));
        disk.plan(Plan { calls: Calls::Reads, at, fault: Fault::Rot, for_ever: false });
        let next = index.insert(&[3.0; 4]);
        failed += usize::from(next.is_err());
        drop(index.close());
        disk.heal();
        let index = stored(&disk).open(HOME).unwrap_or_else(|e| panic!("read {at}: {e}"));
        assert!(index.len() >= rows + usize::from(next.is_ok()), "read {at}");
        assert!(index.verify().unwrap().damage.is_empty());
    }
    assert!(failed > 5, "only {failed} were noticed");
}

/// What is below a directory takes so much of the disk.
fn on_disk(path: &Path) -> u64 {
    let found = std::fs::symlink_metadata(path).unwrap();
    let within = if found.is_dir() {
        std::fs::read_dir(path).unwrap().map(|entry| on_disk(&entry.unwrap().path())).sum()
    } else {
        0
    };
    found.blocks() * 512 + within
}

#[test]
fn a_hundred_rows_take_a_quarter_of_a_megabyte() {
    let root = tempfile::tempdir().unwrap();
    for (name, batch) in [("at once", 100), ("one by one", 1)] {
        let path = root.path().join(name);
        let index = Index::options(DIM).create(&path).unwrap();
        for _ in 0..100 / batch {
            index.insert_many(&vec![0.5; batch * DIM]).unwrap();
        }
        assert!(on_disk(&path) <= 256 << 10, "{name}: {} bytes", on_disk(&path));
        (0..50).for_each(|id| assert!(index.remove(id).unwrap()));
        index.close().unwrap();
        assert!(on_disk(&path) <= 256 << 10, "{name}, closed: {} bytes", on_disk(&path));
    }
}

/// A disk without room: what is reserved may be used, nothing else.
#[derive(Debug, Clone, Default)]
struct Full {
    full: Arc<AtomicBool>,
    reserved: Arc<AtomicU64>,
}

impl Full {
    fn fits(&self, len: u64, end: u64) -> io::Result<()> {
        let known = end <= len.max(self.reserved.load(Relaxed));
        match known || !self.full.load(Relaxed) {
            true => Ok(()),
            false => Err(io::Error::from_raw_os_error(libc::ENOSPC)),
        }
    }
}

impl Layer for Full {
    fn around<T>(&self, call: Call<'_>, job: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        match call {
            Call::Write { file, data, offset } => {
                self.fits(file.len()?, offset + data.len() as u64)?;
            }
            Call::SetLen { file, len } => self.fits(file.len()?, len)?,
            // Only the catalog does so.
            Call::Reserve { len } => {
                self.fits(0, len)?;
                self.reserved.fetch_max(len, Relaxed);
            }
            Call::Create | Call::CreateDir(_) if self.full.load(Relaxed) => {
                self.fits(0, 1 << 60)?
            }
            _ => {}
        }
        job()
    }
}

#[test]
fn every_row_can_be_removed_when_the_disk_is_full_however_many_there_are() {
    for (rows, batch) in [(100, 1), (3_000, 50), (300_000, 5_000)] {
        let layer = Full::default();
        let through = Through { layer: layer.clone(), disk: SimDisk::new() };
        let options = Index::options(1).threads(1).maintenance(Maintenance::Manual);
        let index = options.disk(Arc::new(through.clone())).create(HOME).unwrap();
        index.insert_many(&(0..rows).map(|n| n as f32).collect::<Vec<_>>()).unwrap();
        layer.full.store(true, Relaxed);
        // Every second first, so that what says which are gone is as large as can be.
        let ids: Vec<usize> = (0..rows).step_by(2).chain((1..rows).step_by(2)).collect();
        for some in ids.chunks(batch) {
            let removed = index.remove_many(some);
            assert_eq!(removed.unwrap(), some.len(), "of {rows}, {} left", index.len());
        }
        index.close().unwrap();
        let index = Options::stored().disk(Arc::new(through)).open(HOME).unwrap();
        assert!(index.is_empty() && index.verify().unwrap().damage.is_empty());
    }
}

fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10
}

#[test]
fn an_idle_index_takes_no_descriptor_and_little_memory() {
    const PART: &str = "CELLARDB_SMALL_DIR";
    let Some(dir) = std::env::var_os(PART).map(PathBuf::from) else {
        let root = tempfile::tempdir().unwrap();
        let mut alone = Command::new(std::env::current_exe().unwrap());
        let name = "small::an_idle_index_takes_no_descriptor_and_little_memory";
        alone.args(["--exact", "--nocapture", "--test-threads=1", name]).env(PART, root.path());
        assert!(alone.status().unwrap().success());
        return;
    };
    let open = |n: usize| {
        let options = Index::options(DIM).threads(1).maintenance(Maintenance::Manual);
        let index = options.create(dir.join(n.to_string())).unwrap();
        index.insert_many(&vec![0.5; 100 * DIM]).unwrap();
        index
    };
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let mut all: Vec<Index> = (0..MANY).map(open).collect();
    let (files, memory) = (descriptors(), resident());
    let more = 200;
    all.extend((MANY..MANY + more).map(open));
    let (files, memory) = (descriptors() - files, resident().saturating_sub(memory) / more);
    println!("{files} descriptors, {memory} bytes each");
    assert!(files <= 2, "{files} descriptors of {more} idle indexes");
    assert!(memory <= 100 << 10, "{memory} bytes each");
    // Each is locked all the same, and works.
    for (n, index) in all.iter().enumerate().step_by(40) {
        let second = Options::stored().open(dir.join(n.to_string()));
        assert!(
            matches!(second, Err(Error::Locked { pid: Some(_), reader: false, .. })),
            "{second:?}"
        );
        assert_eq!(index.insert(&[0.25; DIM]).unwrap(), 100);
        assert_eq!(index.search(&[0.25; DIM], 1).unwrap(), [(100, 0.0)]);
    }
}
