//! What the catalog's database does by itself with damage, crashes and hostile bytes, so that an upgrade
//! which changes it is noticed; in `ours`, what Cellar answers over the same. Each test here states a
//! weakness of redb 4.6 that something in Cellar stands against: should one fail after an upgrade,
//! that something may be needed no more.

mod ours;

use cellardb::Disk;
use cellardb_campaign::alone::{Backend, Bytes};
use cellardb_campaign::change::Cut;
use cellardb_campaign::node::Op;
use cellardb_campaign::sim::{Fault, SimDisk};
use redb::{
    Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction,
};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

const ROWS: u64 = 600;
const COMMITS: u64 = 4;
const PAGE: usize = 4096;
const HEADER: usize = 320;
/// Offset 9: which slot is the primary (1), recovery required (2), two-phase commit (4), unflushed (8).
const FLAGS: usize = 9;
const TABLE: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("t");
const BRANCH: u8 = 2;

/// What opening and reading an image gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Last,
    /// The commit before, whole.
    Older,
    /// Neither of the two, and no error.
    Wrong,
    Refused,
    Panicked,
}

/// The images of a database before and after its last commit, as a kill leaves them, and closed.
struct Images {
    before: Vec<u8>,
    killed: Vec<u8>,
    closed: Vec<u8>,
}

fn row(key: u64) -> Vec<u8> {
    format!("row {key:>10} ").into_bytes().repeat(8)
}

fn commit(db: &Database, n: u64, two_phase: bool) {
    let mut transaction = db.begin_write().unwrap();
    transaction.set_two_phase_commit(two_phase);
    put(transaction, n);
}

fn put(transaction: WriteTransaction, n: u64) {
    {
        let mut rows = transaction.open_table(TABLE).unwrap();
        for key in 0..if n == 0 { ROWS } else { 0 } {
            rows.insert(key, row(key).as_slice()).unwrap();
        }
        rows.insert(ROWS, n.to_le_bytes().as_slice()).unwrap();
    }
    transaction.commit().unwrap();
}

fn images(two_phase: bool) -> Images {
    let file = Bytes::default();
    let db = Database::builder().create_with_backend(file.clone()).unwrap();
    (0..COMMITS - 1).for_each(|n| commit(&db, n, two_phase));
    let before = file.image();
    commit(&db, COMMITS - 1, two_phase);
    let killed = file.image();
    db.close().unwrap();
    Images { before, killed, closed: file.image() }
}

fn open(file: &Bytes, check: bool) -> Result<Database, DatabaseError> {
    let mut builder = Database::builder();
    builder.set_check_integrity_on_open(check).set_cache_size(1 << 20);
    builder.create_with_backend(file.clone())
}

/// Which commit was found, if all rows are right.
fn read(db: &Database) -> Result<Found, redb::Error> {
    let (transaction, mut last) = (db.begin_read()?, None);
    let mut expected = 0..=ROWS;
    for entry in transaction.open_table(TABLE)?.iter()? {
        let (key, value) = entry?;
        let key = key.value();
        match value.value() {
            _ if expected.next() != Some(key) => return Ok(Found::Wrong),
            found if key == ROWS => last = found.try_into().ok().map(u64::from_le_bytes),
            found if found != row(key) => return Ok(Found::Wrong),
            _ => {}
        }
    }
    Ok(match last {
        Some(n) if n == COMMITS - 1 => Found::Last,
        Some(n) if n == COMMITS - 2 => Found::Older,
        _ => Found::Wrong,
    })
}

fn found(image: &[u8], check: bool) -> Found {
    let file = Bytes::new(image.to_vec());
    let tried = catch_unwind(AssertUnwindSafe(|| {
        open(&file, check).map_or(Found::Refused, |db| read(&db).unwrap_or(Found::Refused))
    }));
    let most = 4 * image.len().max(PAGE);
    assert!(file.asked() <= most, "{} bytes of {} were asked for", file.asked(), image.len());
    tried.unwrap_or(Found::Panicked)
}

fn changed(image: &[u8], at: usize, mask: u8) -> Vec<u8> {
    let mut image = image.to_vec();
    image[at] ^= mask;
    image
}

/// Pages of `after` that are not in `before`, the header left out.
fn fresh_pages(before: &[u8], after: &[u8]) -> Vec<usize> {
    let pages = (PAGE..after.len()).step_by(PAGE);
    pages.filter(|at| before.get(*at..at + PAGE) != Some(&after[*at..at + PAGE])).collect()
}

fn count(all: &[Found], which: Found) -> usize {
    all.iter().filter(|found| **found == which).count()
}

#[test]
fn redb_returns_a_damaged_value_as_if_it_were_whole() {
    let image = images(false).closed;
    let needle = row(ROWS / 2);
    let at = image.windows(needle.len()).position(|w| w == needle).unwrap();
    let image = changed(&image, at + 5, 1);
    assert_eq!(found(&image, false), Found::Wrong);
    assert_eq!(found(&image, true), Found::Refused, "unless the open checks");
}

#[test]
fn redb_panics_or_lies_over_damage_unless_the_open_checks() {
    let image = images(false).closed;
    let places: Vec<usize> = (PAGE..image.len()).step_by(59).collect();
    let sweep = |check| -> Vec<Found> {
        places.iter().map(|at| found(&changed(&image, *at, 0xFF), check)).collect()
    };
    let (plain, checked) = (sweep(false), sweep(true));
    for (how, all) in [("plain", &plain), ("checked", &checked)] {
        let of = |which| count(all, which);
        let (last, wrong) = (of(Found::Last), of(Found::Wrong));
        let (refused, panicked) = (of(Found::Refused), of(Found::Panicked));
        println!("{how}: {last} right, {wrong} wrong, {refused} refused, {panicked} panics");
    }
    assert!(count(&plain, Found::Wrong) > 0, "reads are verified now");
    assert!(count(&plain, Found::Panicked) > 0, "damage is no panic any more");
    for bad in [Found::Wrong, Found::Older, Found::Panicked] {
        assert_eq!(count(&checked, bad), 0, "{bad:?} though it was checked");
    }
}

/// The flags and the geometry have no checksum. What saves a commit of one phase is that both slots
/// are looked at; one of two phases is lost by a single bit.
#[test]
fn redb_opens_the_older_commit_if_a_bit_of_its_flags_flips() {
    for (two_phase, losing) in [(false, vec![]), (true, vec![0])] {
        let Images { killed, closed, .. } = images(two_phase);
        for check in [false, true] {
            let older = |image: &[u8]| -> Vec<u32> {
                let bits = (0..8).filter(|bit| {
                    let found = found(&changed(image, FLAGS, 1 << bit), check);
                    assert!(found != Found::Wrong && found != Found::Panicked, "bit {bit}");
                    found == Found::Older
                });
                bits.collect()
            };
            assert_eq!(older(&killed), losing, "two phases: {two_phase}, checked: {check}");
            assert!(older(&closed).is_empty(), "closing commits twice, so the older is the same");
        }
        let pair = changed(&killed, FLAGS, if two_phase { 1 } else { 1 | 4 });
        assert_eq!(found(&pair, true), Found::Older);
    }
}

/// Every bit of the header. In the slot of the last commit each one takes it back, as if it had been
/// torn; elsewhere none does.
#[test]
fn redb_takes_a_damaged_slot_for_a_torn_commit() {
    let Images { killed, closed, .. } = images(false);
    let primary = 64 + 128 * usize::from(killed[FLAGS] & 1);
    let mut refused = Vec::new();
    for at in 0..HEADER {
        for bit in 0..8 {
            let what = format!("bit {bit} of byte {at}");
            let slot = (primary..primary + 128).contains(&at);
            let after_kill = found(&changed(&killed, at, 1 << bit), true);
            let allowed = if slot { Found::Older } else { Found::Last };
            assert!([allowed, Found::Refused].contains(&after_kill), "{what}: {after_kill:?}");
            let after_close = found(&changed(&closed, at, 1 << bit), true);
            assert!(
                [Found::Last, Found::Refused].contains(&after_close),
                "{what}: {after_close:?}"
            );
            if after_kill == Found::Refused {
                refused.push(at);
            }
        }
    }
    refused.dedup();
    // Magic, page size, region sizes, and the version of either slot, which is read before the
    // checksum of the slot: one bit of the older slot closes a database whose last commit is whole.
    let older = 64 + 128 - (primary - 64);
    let mut expected: Vec<usize> = (0..9).chain(12..24).chain([64, 192]).collect();
    expected.sort_unstable();
    assert!(refused.contains(&older), "the version of a slot that is not needed refuses no more");
    assert!(refused.iter().all(|at| expected.contains(at)), "{refused:?}");
}

#[test]
fn redb_rolls_back_a_commit_of_one_phase_that_rots_before_a_repair() {
    for (two_phase, expected) in [(false, Found::Older), (true, Found::Refused)] {
        let Images { before, killed, .. } = images(two_phase);
        let pages = fresh_pages(&before, &killed);
        let all: Vec<Found> =
            pages.iter().map(|at| found(&changed(&killed, at + 8, 1), true)).collect();
        assert!(all.contains(&expected), "two phases: {two_phase}: {all:?}");
        assert!(!all.contains(&Found::Wrong) && !all.contains(&Found::Panicked), "{all:?}");
        assert!(two_phase || found(&changed(&killed, pages[0] + 8, 1), false) != Found::Wrong);
    }
}

/// A commit of two phases that was cut off leaves its slot behind, and a quick repair does not clear it.
/// The next commit, of one phase, swaps the slots in the same write that fills its own: torn between the
/// two, that write makes the commit current that an earlier open has shown to be rolled back. It takes a
/// disk that tears a sector, which the design of redb allows for, and an open without the check.
#[test]
fn redb_brings_back_a_commit_that_it_rolled_back_if_its_ways_to_commit_are_mixed() {
    let path = Path::new("/db");
    let disk = SimDisk::new();
    let quick = |db: &Database, n| {
        let mut transaction = db.begin_write().unwrap();
        transaction.set_quick_repair(true);
        put(transaction, n);
    };
    let on = |disk: &SimDisk, check| {
        let file = Backend(disk.open(path, true).unwrap());
        let mut builder = Database::builder();
        builder.set_check_integrity_on_open(check).create_with_backend(file).unwrap()
    };
    disk.create(path).unwrap();
    let db = on(&disk, false);
    // Three commits; the last is the one before the last of `read`.
    (0..COMMITS - 1).for_each(|n| quick(&db, n));
    let before = disk.after_kill();
    disk.record();
    quick(&db, COMMITS - 1);
    let ops = disk.recorded();
    for (check, expected) in [(false, true), (true, false)] {
        let brought_back = (0..ops.len()).any(|cut| {
            let left = before.after_kill();
            ops[..cut].iter().for_each(|op| left.replay(op));
            let db = on(&left, check);
            if read(&db).unwrap() != Found::Older {
                return false;
            }
            // It was rolled back. Another commit begins, and its first write of the header is torn.
            let torn = left.after_kill();
            left.record();
            commit(&db, 77, false);
            for op in left.recorded() {
                match op {
                    Op::Write(inode, 0, header) => {
                        torn.replay(&Op::Write(inode, 0, header[..64].to_vec()));
                        break;
                    }
                    op => torn.replay(&op),
                }
            }
            read(&on(&torn, check)).unwrap() == Found::Last
        });
        assert_eq!(brought_back, expected, "checked: {check}");
    }
}

/// A page number says how large its page is, and redb allocates that before it reads.
#[test]
fn redb_allocates_what_a_damaged_page_number_asks_for() {
    let image = images(false).closed;
    let order = 14;
    let asked = |check| -> usize {
        let tried = children(&image).into_iter().map(|at| {
            assert_eq!(image[at] >> 3, 0, "an ordinary page");
            let file = Bytes::new(changed(&image, at, order << 3));
            let _ = open(&file, check).map_err(redb::Error::from).and_then(|db| read(&db));
            file.largest()
        });
        tried.max().unwrap()
    };
    assert_eq!(asked(false), PAGE << order, "so 4 GiB for order 20");
    assert!(asked(true) < image.len());
}

/// Where the high byte of every page number in a branch is: its upper five bits are the order.
fn children(image: &[u8]) -> Vec<usize> {
    let pages = (PAGE..image.len()).step_by(PAGE).filter(|at| image[*at] == BRANCH);
    let children = pages.flat_map(|at| {
        let keys = usize::from(u16::from_le_bytes([image[at + 2], image[at + 3]]));
        // Behind eight bytes come the checksums of the children, sixteen bytes each, then their numbers.
        let numbers = at + 8 + 16 * (keys + 1);
        (0..=keys).map(move |child| numbers + 8 * child + 7)
    });
    children.collect()
}

#[test]
fn redb_opens_nothing_for_reading_after_a_crash() {
    let Images { killed, closed, .. } = images(false);
    let open = |image: Vec<u8>| {
        Database::builder().open_read_only_with_backend(Bytes::new(image)).map(drop)
    };
    assert!(matches!(open(killed), Err(DatabaseError::RepairAborted)));
    open(closed).unwrap();
}

/// What a failed sync did not write stays in the system's cache, looks whole, and no later sync writes it.
/// Opened again before a reboot, redb builds on it.
#[test]
fn redb_loses_all_to_a_power_cut_after_a_sync_that_failed_once() {
    let path = Path::new("/db");
    let lost = (0..20).filter(|n| {
        let disk = SimDisk::new();
        disk.create(path).unwrap();
        disk.sync_dir(Path::new("/")).unwrap();
        let open = |disk: &SimDisk| {
            let file = Backend(disk.open(path, true).unwrap());
            let mut builder = Database::builder();
            builder.set_check_integrity_on_open(true).create_with_backend(file)
        };
        let db = open(&disk).unwrap();
        (0..COMMITS - 1).for_each(|n| commit(&db, n, false));
        disk.fail(*n, Fault::Eio, false);
        let transaction = db.begin_write().unwrap();
        transaction.open_table(TABLE).unwrap().insert(0, row(0).as_slice()).unwrap();
        let failed = transaction.commit().is_err();
        drop(db);
        disk.heal();
        commit(&open(&disk).unwrap(), COMMITS - 1, false);
        failed && open(&disk.after_cut(Cut::Dropped)).is_err()
    });
    assert_eq!(lost.count(), 1, "the one sync of the commit");
}
