//! The simulated disk itself: it loses what it may lose, keeps what it must keep, and redb survives
//! on it.

use cellardb::{Disk, DiskFile};
use cellardb_campaign::alone::Backend;
use cellardb_campaign::change::Cut;
use cellardb_campaign::node::FailedSync;
use cellardb_campaign::sim::{Calls, Fault, Plan, SimDisk, cuts};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use std::collections::BTreeSet;
use std::io;
use std::path::Path;

fn read(disk: &SimDisk, path: &str) -> Option<Vec<u8>> {
    disk.dump().get(Path::new(path)).cloned()
}

/// A durable file `/d/f` of ten `a`.
fn disk_with_file() -> (SimDisk, Box<dyn DiskFile>) {
    let disk = SimDisk::new();
    disk.create_dir(Path::new("/d")).unwrap();
    let file = disk.create(Path::new("/d/f")).unwrap();
    file.write_at(&[b'a'; 10], 0).unwrap();
    file.sync().unwrap();
    disk.sync_dir(Path::new("/d")).unwrap();
    disk.sync_dir(Path::new("/")).unwrap();
    (disk, file)
}

#[test]
fn what_was_synced_survives_every_cut() {
    let (disk, _file) = disk_with_file();
    for cut in cuts(50, 1) {
        assert_eq!(read(&disk.after_cut(cut), "/d/f"), Some(vec![b'a'; 10]), "{cut:?}");
    }
}

#[test]
fn an_unsynced_write_is_lost_kept_torn_or_zero() {
    let (disk, file) = disk_with_file();
    file.write_at(&[b'b'; 10], 5).unwrap();
    assert_eq!(read(&disk, "/d/f").unwrap(), b"aaaaabbbbbbbbbb");
    assert_eq!(read(&disk.after_cut(Cut::Dropped), "/d/f").unwrap(), b"aaaaaaaaaa");
    assert_eq!(read(&disk.after_cut(Cut::Kept), "/d/f").unwrap(), b"aaaaabbbbbbbbbb");
    let found: BTreeSet<Vec<u8>> =
        cuts(2000, 2).into_iter().map(|cut| read(&disk.after_cut(cut), "/d/f").unwrap()).collect();
    assert!(found.contains(b"aaaaaaaaaa\0\0\0\0\0".as_slice()), "length without data");
    assert!(found.contains(b"aaaaabbbaa".as_slice()), "torn at a byte");
    assert!(found.iter().all(|f| f.starts_with(b"aaaaa")), "the rest is not touched");
}

#[test]
fn a_large_write_is_torn_at_sectors() {
    let (disk, file) = disk_with_file();
    file.write_at(&[b'b'; 3000], 100).unwrap();
    let at_sectors = (0..200).any(|seed| {
        let bytes = read(&disk.after_cut(Cut::Random(seed)), "/d/f").unwrap();
        bytes.len() == 3100 && bytes[600] != bytes[400] && bytes[512] != bytes[511]
    });
    assert!(at_sectors);
}

#[test]
fn writes_are_reordered() {
    let (disk, file) = disk_with_file();
    file.write_at(b"1", 0).unwrap();
    file.write_at(b"2", 1).unwrap();
    let second_alone = (0..200)
        .any(|seed| read(&disk.after_cut(Cut::Random(seed)), "/d/f").unwrap() == b"a2aaaaaaaa");
    assert!(second_alone);
}

#[test]
fn a_name_lasts_only_after_its_directory_was_synced() {
    let (disk, _file) = disk_with_file();
    disk.create(Path::new("/d/new")).unwrap().sync().unwrap();
    assert_eq!(read(&disk.after_cut(Cut::Dropped), "/d/new"), None);
    disk.sync_dir(Path::new("/d")).unwrap();
    assert_eq!(read(&disk.after_cut(Cut::Dropped), "/d/new"), Some(Vec::new()));
    disk.remove(Path::new("/d/new")).unwrap();
    assert_eq!(read(&disk.after_cut(Cut::Dropped), "/d/new"), Some(Vec::new()));
    assert_eq!(read(&disk.after_cut(Cut::Kept), "/d/new"), None);
    disk.create_dir(Path::new("/d/e")).unwrap();
    disk.create(Path::new("/d/e/f")).unwrap().sync().unwrap();
    disk.sync_dir(Path::new("/d/e")).unwrap();
    assert_eq!(read(&disk.after_cut(Cut::Dropped), "/d/e/f"), None, "/d was not synced");
    disk.sync_all(Path::new("/d")).unwrap();
    assert_eq!(read(&disk.after_cut(Cut::Dropped), "/d/e/f"), Some(Vec::new()));
}

#[test]
fn only_an_empty_directory_is_removed_and_its_name_goes_like_that_of_a_file() {
    let (disk, _file) = disk_with_file();
    let (dir, file) = (Path::new("/d"), Path::new("/d/f"));
    assert_eq!(disk.remove_dir(dir).unwrap_err().kind(), io::ErrorKind::DirectoryNotEmpty);
    assert_eq!(disk.remove_dir(file).unwrap_err().kind(), io::ErrorKind::NotADirectory);
    disk.remove(file).unwrap();
    disk.remove_dir(dir).unwrap();
    disk.remove_dir(dir).unwrap();
    assert!(disk.create(file).is_err() && disk.list(Path::new("/")).unwrap().is_empty());
    assert_eq!(read(&disk.after_cut(Cut::Dropped), "/d/f"), Some(vec![b'a'; 10]), "not synced");
    assert_eq!(read(&disk.after_cut(Cut::Kept), "/d/f"), None);
    disk.sync_dir(Path::new("/")).unwrap();
    assert_eq!(read(&disk.after_cut(Cut::Dropped), "/d/f"), None);
}

#[test]
fn a_rename_surfaces_with_the_old_name_the_new_one_or_both() {
    let (disk, _file) = disk_with_file();
    let other = disk.create(Path::new("/d/g")).unwrap();
    other.write_at(b"g", 0).unwrap();
    other.sync().unwrap();
    disk.sync_dir(Path::new("/d")).unwrap();
    disk.rename(Path::new("/d/g"), Path::new("/d/f")).unwrap();
    let mut found = BTreeSet::new();
    for cut in cuts(200, 3) {
        let left = disk.after_cut(cut);
        let (f, g) = (read(&left, "/d/f").unwrap(), read(&left, "/d/g"));
        let old = f == [b'a'; 10] && g.as_deref() == Some(b"g");
        let both = f == b"g" && g.as_deref() == Some(b"g");
        assert!(old || both || (f == b"g" && g.is_none()), "{cut:?}");
        found.insert((old, both));
    }
    assert_eq!(found.len(), 3, "all three");
}

#[test]
fn from_the_cut_on_nothing_works() {
    let (disk, file) = disk_with_file();
    disk.cut_at(1);
    file.write_at(b"x", 0).unwrap();
    assert!(file.sync().unwrap_err().to_string().contains("power is off"));
    assert!(file.read_at(&mut [0], 0).is_err());
    assert!(disk.create(Path::new("/d/h")).is_err());
    assert_eq!(read(&disk.after_cut(Cut::Dropped), "/d/f").unwrap(), [b'a'; 10]);
}

#[test]
fn a_planned_fault_comes_once_or_for_ever() {
    let (disk, file) = disk_with_file();
    disk.fail(0, Fault::Enospc, false);
    let full = file.write_at(b"x", 0).unwrap_err();
    assert_eq!(full.kind(), io::ErrorKind::StorageFull);
    file.write_at(b"x", 0).unwrap();
    disk.fail(0, Fault::Eio, true);
    assert!(file.write_at(b"y", 0).is_err() && file.write_at(b"y", 0).is_err());
    assert_eq!(disk.faults(), 3);
    disk.heal();
    file.write_at(b"y", 0).unwrap();
}

#[test]
fn a_failed_sync_forgets_reverts_or_retries_its_writes() {
    let cases = [
        (FailedSync::Forgotten, b"xy", b"ay"),
        (FailedSync::Reverted, b"ay", b"ay"),
        (FailedSync::Retried, b"xy", b"xy"),
    ];
    for (how, shown, durable) in cases {
        let (disk, file) = disk_with_file();
        disk.failed_sync(how);
        file.write_at(b"x", 0).unwrap();
        disk.fail(0, Fault::Eio, false);
        assert!(file.sync().is_err());
        file.write_at(b"y", 1).unwrap();
        file.sync().unwrap();
        assert_eq!(read(&disk, "/d/f").unwrap()[..2], *shown, "{how:?}");
        let left = read(&disk.after_cut(Cut::Dropped), "/d/f").unwrap();
        assert_eq!(left[..2], *durable, "{how:?}");
    }
}

#[test]
fn a_short_write_leaves_a_part() {
    for fault in [Fault::Short, Fault::Enospc] {
        let (disk, file) = disk_with_file();
        let mut left = BTreeSet::new();
        for _ in 0..60 {
            file.write_at(&[b'a'; 10], 0).unwrap();
            disk.fail(0, fault, false);
            assert!(file.write_at(&[b'b'; 10], 0).is_err());
            let bytes = read(&disk, "/d/f").unwrap();
            let n = bytes.iter().take_while(|b| **b == b'b').count();
            assert!(bytes[n..].iter().all(|b| *b == b'a'), "{bytes:?}");
            left.insert(n);
        }
        assert!(left.len() > 4 && left.contains(&0), "{fault:?}: {left:?}");
    }
}

#[test]
fn reads_and_openings_fail_or_rot_as_planned() {
    let (disk, file) = disk_with_file();
    let mut buf = [0; 10];
    disk.plan(Plan { calls: Calls::Reads, at: 1, fault: Fault::Rot, for_ever: false });
    file.read_at(&mut buf, 0).unwrap();
    assert_eq!(buf, [b'a'; 10]);
    file.read_at(&mut buf, 0).unwrap();
    let flipped: u32 = buf.iter().map(|b| (b ^ b'a').count_ones()).sum();
    assert_eq!(flipped, 1, "one bit");
    file.read_at(&mut buf, 0).unwrap();
    assert_eq!((buf, disk.faults()), ([b'a'; 10], 1));
    disk.plan(Plan { calls: Calls::Opens, at: 0, fault: Fault::Emfile, for_ever: false });
    let refused = disk.open(Path::new("/d/f"), false).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(24));
    assert!(disk.open(Path::new("/d/f"), false).is_ok());
    disk.plan(Plan { calls: Calls::Reads, at: 0, fault: Fault::Eio, for_ever: true });
    assert!(file.read_at(&mut buf, 0).is_err() && file.read_at(&mut buf, 0).is_err());
    file.write_at(b"b", 0).unwrap();
}

#[test]
fn a_told_cut_is_the_same_cut_and_names_every_change() {
    let (disk, file) = disk_with_file();
    file.write_at(b"x", 0).unwrap();
    file.set_len(3).unwrap();
    disk.create(Path::new("/d/g")).unwrap();
    for cut in cuts(20, 9) {
        let mut lines = Vec::new();
        let told = disk.after_cut_told(cut, &mut |line| lines.push(line));
        assert_eq!(told.dump(), disk.after_cut(cut).dump());
        assert_eq!(told.digest(), disk.after_cut(cut).digest());
        assert!(cut == Cut::Kept || lines.len() == 3, "{cut:?}: {lines:?}");
    }
}

#[test]
fn a_lock_ends_with_its_file() {
    let (disk, file) = disk_with_file();
    let again = || disk.open(Path::new("/d/f"), false).unwrap();
    assert!(file.try_lock(true).unwrap());
    assert!(!again().try_lock(false).unwrap());
    drop(file);
    let shared = again();
    assert!(shared.try_lock(false).unwrap() && again().try_lock(false).unwrap());
    assert!(!again().try_lock(true).unwrap());
    drop(shared);
    assert!(again().try_lock(true).unwrap());
}

#[test]
fn a_replayed_recording_is_the_same_disk() {
    let disk = SimDisk::new();
    disk.record();
    disk.create_dir(Path::new("/a/b")).unwrap();
    let file = disk.create(Path::new("/a/b/c")).unwrap();
    file.write_at(b"hello", 3).unwrap();
    file.set_len(6).unwrap();
    file.sync().unwrap();
    disk.rename(Path::new("/a/b/c"), Path::new("/a/b/d")).unwrap();
    let copy = SimDisk::new();
    disk.recorded().iter().for_each(|op| copy.replay(op));
    assert_eq!(copy.dump(), disk.dump());
    for cut in cuts(20, 4) {
        assert_eq!(copy.after_cut(cut).dump(), disk.after_cut(cut).dump());
    }
    assert_eq!(SimDisk::load(&disk.dump()).dump(), disk.dump());
}

const TABLE: TableDefinition<'_, u64, u64> = TableDefinition::new("t");

fn database(file: Box<dyn DiskFile>) -> Database {
    Database::builder().create_with_backend(Backend(file)).unwrap()
}

fn keys(db: &Database) -> Vec<u64> {
    let txn = db.begin_read().unwrap();
    let Ok(table) = txn.open_table(TABLE) else { return Vec::new() };
    table.iter().unwrap().map(|entry| entry.unwrap().0.value()).collect()
}

#[test]
fn redb_alone_survives_a_cut_at_every_operation() {
    let path = Path::new("/db");
    let disk = SimDisk::new();
    disk.record();
    let file = disk.create(path).unwrap();
    disk.sync_dir(Path::new("/")).unwrap();
    let db = database(file);
    let mut acked = vec![(0, 0)];
    for n in 0..12 {
        let txn = db.begin_write().unwrap();
        txn.open_table(TABLE).unwrap().insert(n, n * n).unwrap();
        txn.commit().unwrap();
        acked.push((disk.ops(), n + 1));
    }
    drop(db);
    let ops = disk.recorded();
    let walker = SimDisk::new();
    let mut states = 0;
    for (n, op) in ops.iter().enumerate() {
        walker.replay(op);
        if (n as u64) < acked[1].0 {
            continue;
        }
        let floor = acked.iter().rev().find(|(at, _)| *at <= n as u64).unwrap().1;
        for cut in cuts(2, n as u64) {
            let left = walker.after_cut(cut);
            let found = keys(&database(left.open(path, true).unwrap()));
            assert_eq!(found, (0..found.len() as u64).collect::<Vec<_>>());
            assert!(found.len() as u64 >= floor, "operation {n}, {cut:?}: lost a commit");
            assert!(found.len() as u64 <= floor + 1, "operation {n}, {cut:?}: not written yet");
            states += 1;
        }
    }
    assert!(states > 100, "only {states} states");
}
