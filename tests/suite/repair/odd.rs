//! What no writer of this index left behind: names and numbers at the end of what can be counted, files of
//! another index, values that were forged. A repair ends in an index that goes on, or changes nothing.

use super::*;
use cellardb::Disk;
use cellardb_campaign::alone::Backend;
use cellardb_campaign::layer::{Call, Layer, Through};
use cellardb_format::{Config, LockRecord, Row, RowLayout, State, seal};
use redb::{Database, ReadableDatabase, TableDefinition};
use std::io;

const META: TableDefinition<'_, u64, &'static [u8]> = TableDefinition::new("meta");

fn pq4() -> Image {
    image(SHAPES[2], Metric::L2, 1)
}

/// The files of one kind, in the order of their names.
fn of_kind(files: &Files, extension: &str) -> Vec<PathBuf> {
    files.keys().filter(|p| p.extension() == Some(extension.as_ref())).cloned().collect()
}

/// Damages a list, which costs no row and makes a repair write everything anew.
fn hurt_a_list(files: &mut Files) {
    let list = of_kind(files, "list").remove(0);
    files.get_mut(&list).unwrap()[100] ^= 1;
}

fn identity(files: &Files) -> [u8; 16] {
    LockRecord::parse(&files[Path::new(LOCK)]).unwrap().uuid
}

/// Another state in the catalog, with a seal that fits.
fn forge(files: &Files, change: impl FnOnce(&mut State)) -> Files {
    let disk = SimDisk::load(files);
    let file = disk.open(Path::new(CATALOG), true).unwrap();
    let db = Database::builder().create_with_backend(Backend(file)).unwrap();
    let value = |key: u64| {
        let read = db.begin_read().unwrap();
        let value = read.open_table(META).unwrap().get(key).unwrap().unwrap().value().to_vec();
        value[..value.len() - 4].to_vec()
    };
    let uuid = Config::parse(&value(0)).unwrap().uuid;
    let mut state = State::parse(&value(1)).unwrap();
    change(&mut state);
    let mut sealed = state.encode();
    seal(&uuid, "meta", 1, &mut sealed);
    let write = db.begin_write().unwrap();
    write.open_table(META).unwrap().insert(1, sealed.as_slice()).unwrap();
    write.commit().unwrap();
    drop(db);
    disk.dump()
}

/// Another id in a row, with a checksum that fits.
fn forge_id(files: &mut Files, path: &Path, index: u64, id: u64) {
    let (uuid, layout) = (identity(files), RowLayout::new(DIM));
    let number: u64 = path.file_stem().unwrap().to_str().unwrap().parse().unwrap();
    let at = 64 + index as usize * STRIDE;
    let bytes = &mut files.get_mut(path).unwrap()[at..at + STRIDE];
    let row = layout.parse(bytes, &uuid, number, index).unwrap();
    let vector = layout.vector(bytes).unwrap().into_owned();
    bytes.fill(0);
    layout.encode(bytes, &vector, &Row { id, ..row }, &uuid, number, index);
}

#[test]
fn a_name_at_the_end_of_numbers_costs_nothing() {
    let image = pq4();
    let end = u64::MAX;
    let mut names: Vec<String> =
        [end, end - 1, 1 << 63].iter().map(|n| format!("rows/{n}.rows")).collect();
    names.push(format!("rows/{end}.damaged-1"));
    names.extend([u32::MAX, u32::MAX - 1].map(|n| format!("lists/g{n}/000/00000.000001.list")));
    for name in names {
        let mut files = image.files.clone();
        hurt_a_list(&mut files);
        files.insert(Path::new(HOME).join(&name), Vec::new());
        let repaired = check(&image, &files, &name);
        assert!(repaired.lost.is_empty() && !repaired.catalog, "{name}: {repaired:?}");
    }
}

#[test]
fn a_mark_that_no_writer_could_leave_is_none_and_others_are_gone_on_from() {
    let image = pq4();
    for (seq, opens) in [(u64::MAX, true), (u64::MAX - 1, true), ((1 << 62) - 1, false)] {
        let mark = LockRecord { uuid: identity(&image.files), seq, pid: 1 };
        let mut files = image.files.clone();
        files.insert(LOCK.into(), mark.encode().to_vec());
        let opened = stored(&SimDisk::load(&files)).open(HOME);
        assert_eq!(opened.is_ok(), opens, "{seq}: {opened:?}");
        drop(opened);
        // Without a catalog that agrees with the mark, removed rows may come back.
        let cost = Cost { removals: !opens, ..Cost::default() };
        hurt_a_list(&mut files);
        let repaired = repair(&image, &SimDisk::load(&files), &cost);
        repaired.unwrap_or_else(|e| panic!("{seq}: {e}"));
    }
}

#[test]
fn a_catalog_that_no_open_would_take_never_takes_the_name_of_the_old_one() {
    let last: [fn(&mut State); 3] = [
        |state| state.seq = 1 << 63,
        |state| state.next_segment = 1 << 63,
        |state| state.generation = 1 << 31,
    ];
    let mut refused = 0;
    for image in [pq4(), image(SHAPES[0], Metric::L2, 1)] {
        for (case, change) in last.into_iter().enumerate() {
            let mut files = forge(&image.files, change);
            // A segment is written anew.
            let rows = of_kind(&files, "rows").remove(1);
            files.get_mut(&rows).unwrap()[70] ^= 1;
            let disk = SimDisk::load(&files);
            let repaired = image.options(&disk).repair(HOME);
            let left = disk.dump();
            if repaired.is_err() {
                refused += 1;
                let (before, after) = (&files[Path::new(CATALOG)], &left[Path::new(CATALOG)]);
                assert!(before == after && rows_are_there(&files, &left), "{case}: {repaired:?}");
            } else {
                stored(&disk).open(HOME).unwrap_or_else(|e| panic!("{case}: {e}"));
            }
        }
    }
    assert!(refused >= 2, "only {refused} were refused");
}

fn rows_are_there(before: &Files, after: &Files) -> bool {
    let kept = |bytes: &Vec<u8>| after.values().any(|left| left == bytes);
    of_kind(before, "rows").iter().all(|path| kept(&before[path]))
}

#[test]
fn a_state_at_the_end_of_numbers_is_an_error_and_no_panic() {
    let image = pq4();
    let ends: [fn(&mut State); 4] = [
        |state| state.seq = u64::MAX,
        |state| state.next_segment = u64::MAX,
        |state| state.generation = u32::MAX,
        |state| state.next_revision = u32::MAX,
    ];
    for (case, change) in ends.into_iter().enumerate() {
        let disk = SimDisk::load(&forge(&image.files, change));
        let opened = stored(&disk).open(HOME);
        assert!(matches!(opened, Err(Error::Corrupt { .. })), "{case}: {opened:?}");
    }
    let disk = SimDisk::load(&forge(&image.files, |state| state.seq = 1 << 63));
    let index = stored(&disk).open(HOME).unwrap();
    assert!(index.insert(&[0.5; DIM]).is_err());
    drop(index);
    assert_eq!(stored(&disk).open(HOME).unwrap().len(), image.model.rows.len());
}

#[test]
fn the_catalog_that_was_replaced_is_kept_even_if_it_was_whole() {
    let image = pq4();
    let mut files = image.files.clone();
    hurt_a_list(&mut files);
    let disk = SimDisk::load(&files);
    let repaired = image.options(&disk).repair(HOME).unwrap();
    let left = disk.dump();
    let old = &files[Path::new(CATALOG)];
    assert!(repaired.aside.iter().any(|path| left.get(path) == Some(old)), "{repaired:?}");
}

#[test]
fn segments_of_another_index_do_not_outvote_the_catalog() {
    let image = pq4();
    let other = self::image(SHAPES[0], Metric::L2, 2);
    let strangers: Vec<Vec<u8>> =
        of_kind(&other.files, "rows").iter().map(|p| other.files[p].clone()).collect();
    for lock in [true, false] {
        let mut files = image.files.clone();
        hurt_a_list(&mut files);
        for (n, bytes) in (1000..1040).zip(strangers.iter().cycle()) {
            files.insert(format!("{HOME}/rows/{n:010}.rows").into(), bytes.clone());
        }
        if !lock {
            files.remove(Path::new(LOCK));
        }
        let disk = SimDisk::load(&files);
        let (repaired, _) = repair(&image, &disk, &Cost::default()).unwrap();
        assert!(repaired.lost.is_empty() && !repaired.catalog, "lock {lock}: {repaired:?}");
        // They are nobody's to remove.
        let left = disk.dump();
        assert!(left.values().filter(|bytes| strangers.contains(bytes)).count() >= 40);
    }
}

#[test]
fn where_a_mark_says_that_there_was_an_index_none_is_made_over_it() {
    let image = pq4();
    let mut files = image.files.clone();
    files.retain(|path, _| path == Path::new(LOCK) || path.starts_with("/index/lists"));
    let disk = SimDisk::load(&files);
    let options = || image.options(&disk);
    let tried = [options().create(HOME), options().open_or_create(HOME), options().open(HOME)];
    for tried in tried {
        assert!(matches!(tried, Err(Error::Corrupt { .. })), "{tried:?}");
    }
    assert_eq!(disk.dump(), files);
    // One that never had a commit is none.
    let disk = SimDisk::load(&Files::from([(LOCK.into(), Vec::new())]));
    image.options(&disk).create(HOME).unwrap();
}

#[test]
fn a_row_under_a_forged_id_ends_in_an_answer() {
    let image = image(SHAPES[0], Metric::L2, 1);
    let paths = of_kind(&image.files, "rows");
    let last = paths.len() - 1;
    for path in [&paths[0], &paths[1], &paths[last]] {
        for id in [0, 1, 97, 1 << 33, 1 << 38, 1 << 50, (1 << 63) - 1, 1 << 63, u64::MAX] {
            for catalog in [true, false] {
                let mut files = image.files.clone();
                forge_id(&mut files, path, 2, id);
                if !catalog {
                    files.remove(Path::new(CATALOG));
                }
                let disk = SimDisk::load(&files);
                let what = format!("{path:?}, id {id}, catalog {catalog}");
                let repaired = image.options(&disk).repair(HOME);
                let repaired = repaired.unwrap_or_else(|e| panic!("{what}: {e}"));
                assert!(repaired.lost.len() + repaired.unknown.len() < 40, "{what}: {repaired:?}");
                let index = stored(&disk).open(HOME).unwrap_or_else(|e| panic!("{what}: {e}"));
                assert!(index.verify().unwrap().damage.is_empty(), "{what}");
                assert!(index.len() + 3 >= image.model.rows.len(), "{what}: {}", index.len());
            }
        }
    }
}

#[test]
fn ids_given_long_ago_cost_no_memory() {
    let image = pq4();
    // A segment that was compacted is not gone on with.
    let disk = SimDisk::load(&image.files);
    let index = stored(&disk).open(HOME).unwrap();
    index.remove(image.model.next - 2).unwrap();
    index.compact().unwrap();
    index.close().unwrap();
    let disk = SimDisk::load(&forge(&disk.dump(), |state| state.next_id = 1 << 40));
    let index = stored(&disk).open(HOME).unwrap();
    let rows = data::vectors(&mut Rng::new(3), 40, DIM, Metric::L2);
    assert_eq!(index.insert_many(&rows).unwrap(), (1 << 40)..(1 << 40) + 40);
    index.remove(1 << 40).unwrap();
    index.train().unwrap();
    index.flush().unwrap();
    assert!(index.verify().unwrap().damage.is_empty());
    let (live, query) = (index.len(), &rows[5 * DIM..6 * DIM]);
    assert_eq!(index.search(query, 1).unwrap()[0], ((1 << 40) + 5, 0.0));
    index.close().unwrap();
    // The same of a repair that has to look for what was removed.
    let mut files = disk.dump();
    files.remove(Path::new(CATALOG));
    let disk = SimDisk::load(&files);
    let repaired = image.options(&disk).repair(HOME).unwrap();
    assert!(repaired.rows as usize >= live && repaired.unknown.len() < 40, "{repaired:?}");
}

#[test]
fn the_tail_is_counted_in_rows() {
    let image = image(SHAPES[2], Metric::L2, 1);
    let mut files = image.files.clone();
    files.retain(|path, _| !path.starts_with("/index/rows"));
    let disk = SimDisk::load(&files);
    image.options(&disk).repair(HOME).unwrap();
    let index = stored(&disk).open(HOME).unwrap();
    assert_eq!((index.stats().rows, index.stats().tail), (0, 0));
    let rows = data::vectors(&mut Rng::new(3), 7, DIM, Metric::L2);
    index.insert_many(&rows).unwrap();
    assert_eq!((index.stats().rows, index.stats().tail), (7, 7));
    assert_eq!(index.stats().next_id, image.model.next as u64 + 7);
}

#[test]
fn what_is_in_the_way_of_a_new_catalog_is_moved_aside() {
    let image = pq4();
    let mut files = image.files.clone();
    hurt_a_list(&mut files);
    files.insert("/index/catalog.repair/child".into(), vec![1]);
    check(&image, &files, "a directory where the new catalog is written");
    let disk = SimDisk::load(&Files::from([("/index/catalog.new/child".into(), vec![1])]));
    image.options(&disk).create(HOME).unwrap();
    assert!(disk.dump().values().any(|bytes| *bytes == [1]), "nothing is removed");
}

/// A file system that takes no new names.
#[derive(Debug, Clone, Copy)]
struct NoNames;

impl Layer for NoNames {
    fn around<T>(&self, call: Call<'_>, job: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        match call {
            Call::Create => Err(io::ErrorKind::ReadOnlyFilesystem.into()),
            _ => job(),
        }
    }
}

#[test]
fn where_nothing_can_be_written_an_index_is_read_without_its_lock() {
    let image = pq4();
    let mut files = image.files.clone();
    files.remove(Path::new(LOCK));
    let disk = Through { layer: NoNames, disk: SimDisk::load(&files) };
    let index = stored(&disk).open_read_only(HOME).unwrap();
    image.model.differs(&index, 3).unwrap();
    assert!(matches!(stored(&disk).open(HOME), Err(Error::Io { .. })));
}

#[test]
fn a_repair_says_what_became_of_the_index_and_no_more() {
    let notes = |image: &Image, files: &Files| {
        image.options(&SimDisk::load(files)).repair(HOME).unwrap().notes.join("; ")
    };
    let image = pq4();
    // Of a damaged page that no removal is on, all removals are known.
    let (mut known, mut doubted) = (0, 0);
    for at in (0..image.files[Path::new(CATALOG)].len()).step_by(1531) {
        let mut files = image.files.clone();
        files.get_mut(Path::new(CATALOG)).unwrap()[at] ^= 0x41;
        let disk = SimDisk::load(&files);
        let repaired = image.options(&disk).repair(HOME).unwrap();
        if repaired.catalog {
            let said = repaired.notes.iter().any(|note| note.contains("not known for certain"));
            let back = repaired.rows > image.model.rows.len() as u64;
            assert!(said || !back, "byte {at}: {repaired:?}");
            *if said { &mut doubted } else { &mut known } += 1;
        }
    }
    assert!(known > doubted, "known {known}, doubted {doubted}");
    // Fewer rows than an index is trained on are compared one by one.
    let mut files = image.files.clone();
    let rows = of_kind(&files, "rows");
    rows.iter().skip(1).for_each(|path| drop(files.remove(path)));
    let said = notes(&image, &files);
    assert!(said.contains("exact") && said.contains("train_at"), "{said}");
}

#[test]
fn a_metric_that_must_be_said_is_asked_for_by_its_name() {
    let image = pq4();
    let mut files = image.files.clone();
    files.remove(Path::new(CATALOG));
    let refused = stored(&SimDisk::load(&files)).repair(HOME).unwrap_err().to_string();
    assert!(refused.contains("Options::metric") && refused.contains("--metric"), "{refused}");
    let named = image.options(&SimDisk::load(&files)).repair(HOME).unwrap();
    let warned = named.notes.iter().any(|note| note.contains("L2 and inner product"));
    assert!(warned, "{:?}", named.notes);
}
