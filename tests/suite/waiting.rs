//! Who may have an index open while another has it: who is told, who waits, and who comes next.

use cellardb::{Disk, Error, FileSystem, Index, Maintenance, Options};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

const DIM: usize = 4;
/// Longer than any test takes.
const LONG: Duration = Duration::from_secs(120);
/// Longer than a lock is tried by one who does not wait.
const MOMENT: Duration = Duration::from_millis(400);

fn home() -> (tempfile::TempDir, PathBuf) {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("index");
    let index = Index::options(DIM).maintenance(Maintenance::Manual).create(&path).unwrap();
    index.insert(&[1.0; DIM]).unwrap();
    index.close().unwrap();
    (root, path)
}

fn waiting() -> Options {
    Options::stored().threads(1).maintenance(Maintenance::Manual).lock_wait(LONG)
}

fn write(path: &Path) -> cellardb::Result<Index> {
    waiting().lock_wait(Duration::ZERO).open(path)
}

fn read(path: &Path) -> cellardb::Result<Index> {
    waiting().lock_wait(Duration::ZERO).open_read_only(path)
}

#[test]
fn who_is_refused_is_told_who_holds_the_index_and_how() {
    let (_root, path) = home();
    let ours = Some(std::process::id());
    let index = write(&path).unwrap();
    for refused in [write(&path), read(&path)] {
        let Err(e @ Error::Locked { pid, reader: false, .. }) = refused else {
            panic!("{refused:?}")
        };
        assert_eq!(pid, ours);
        assert!(e.to_string().contains("for writing in this process"), "{e}");
    }
    index.insert(&[2.0; DIM]).unwrap();
    drop(index);
    // The last writer is gone: the pid that it left in LOCK says nothing.
    let mark = std::fs::read(path.join("LOCK")).unwrap();
    let foreign = cellardb_format::LockRecord {
        pid: 1,
        ..cellardb_format::LockRecord::parse(&mark).unwrap()
    };
    #[expect(clippy::disallowed_methods, reason = "as an older process left it")]
    std::fs::write(path.join("LOCK"), foreign.encode()).unwrap();
    let reader = read(&path).unwrap();
    let refused = write(&path);
    let Err(e @ Error::Locked { pid, reader: true, .. }) = refused else { panic!("{refused:?}") };
    assert_eq!(pid, ours);
    assert!(e.to_string().contains("for reading in this process"), "{e}");
    let other = read(&path).unwrap();
    drop((reader, other));
    drop(write(&path).unwrap());
}

#[test]
fn one_who_waits_gets_the_index_when_it_is_free() {
    let (_root, path) = home();
    type Open = fn(&Path) -> cellardb::Result<Index>;
    let holders: [(&str, Open, Open); 3] = [
        ("a writer for a writer", write, |path| waiting().open(path)),
        ("a writer for a reader", read, |path| waiting().open(path)),
        ("a reader for a writer", write, |path| waiting().open_read_only(path)),
    ];
    for (what, hold, open) in holders {
        let held = hold(&path).unwrap();
        let got = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| open(&path).inspect(|_| got.store(true, Relaxed)));
            std::thread::sleep(MOMENT);
            assert!(!got.load(Relaxed), "{what}");
            drop(held);
            let index = waiter.join().unwrap().unwrap_or_else(|e| panic!("{what}: {e}"));
            assert_eq!(index.len(), 1);
        });
    }
    // And no longer than it was told to.
    let _held = write(&path).unwrap();
    for wait in [Duration::ZERO, MOMENT] {
        let begun = std::time::Instant::now();
        assert!(matches!(waiting().lock_wait(wait).open(&path), Err(Error::Locked { .. })));
        assert!(begun.elapsed() >= wait);
    }
}

#[test]
fn one_who_creates_or_repairs_waits_too() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("index");
    std::fs::create_dir(&path).unwrap();
    let lock = FileSystem.create(&path.join("LOCK")).unwrap();
    assert!(lock.try_lock(true).unwrap());
    let refused = Index::options(DIM).create(&path);
    assert!(matches!(refused, Err(Error::Locked { .. })), "{refused:?}");
    std::thread::scope(|scope| {
        let maker = scope.spawn(|| waiting().dim(DIM).create(&path));
        std::thread::sleep(MOMENT);
        assert!(!path.join("catalog.redb").exists());
        drop(lock);
        maker.join().unwrap().unwrap().close().unwrap();
    });
    let held = write(&path).unwrap();
    std::thread::scope(|scope| {
        let repair = scope.spawn(|| waiting().repair(&path));
        std::thread::sleep(MOMENT);
        assert!(!repair.is_finished());
        drop(held);
        assert!(repair.join().unwrap().unwrap().damage.is_empty());
    });
    // Of those who make an index at the same time one makes it, and all have it.
    let path = root.path().join("other");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let path = &path;
            scope.spawn(move || {
                let index = waiting().dim(DIM).open_or_create(path).unwrap();
                index.insert(&[1.0; DIM]).unwrap();
                index.close().unwrap();
            });
        }
    });
    assert_eq!(write(&path).unwrap().len(), 4);
}

#[test]
fn none_of_those_who_wait_is_passed_by_for_ever() {
    let (_root, path) = home();
    // Readers that overlap, so that the lock is never free by itself.
    let (wrote, readings) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for n in 0..6 {
            let (path, wrote, readings) = (&path, &wrote, &readings);
            scope.spawn(move || {
                std::thread::sleep(Duration::from_millis(10 * n));
                while !wrote.load(Relaxed) {
                    let index = waiting().open_read_only(path).unwrap();
                    readings.fetch_add(1, Relaxed);
                    std::thread::sleep(Duration::from_millis(60));
                    drop(index);
                }
            });
        }
        while readings.load(Relaxed) < 6 {
            std::thread::yield_now();
        }
        let index = waiting().lock_wait(Duration::from_secs(20 * 60)).open(&path);
        wrote.store(true, Relaxed);
        assert!(index.unwrap().insert(&[2.0; DIM]).is_ok());
    });
    // Writers that each want it again and again.
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                for _ in 0..5 {
                    let index = waiting().open(&path).unwrap();
                    index.insert(&[3.0; DIM]).unwrap();
                }
            });
        }
    });
    assert_eq!(write(&path).unwrap().len(), 32);
}
