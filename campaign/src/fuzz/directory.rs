//! A whole directory, its checksums mended: values of the catalog are changed behind their seals, lists
//! and rows behind their checksums, and files are cut, exchanged or removed.

use super::bytes::Bytes;
use super::frame;
use super::image::{Files, images, seal_file, survives};
use super::records::{self, Records, TABLES};
use crate::HOME;
use cellardb_format::{ListEntry, ListIdentity};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

const META: usize = 0;
const LISTS: usize = 2;
/// In [`State`](cellardb_format::State) the numbers of segments, lists and keys of tombstones.
const COUNTS: [(usize, usize); 3] = [(48, 1), (52, LISTS), (56, 5)];

/// The records of each image.
fn catalogs() -> &'static [Records] {
    static CATALOGS: OnceLock<Vec<Records>> = OnceLock::new();
    let path = Path::new(HOME).join("catalog.redb");
    CATALOGS.get_or_init(|| images().iter().map(|i| records::read(&i.files[&path])).collect())
}

pub(super) fn run(data: &[u8]) {
    let mut input = Bytes(data);
    let number = input.below(images().len());
    let flags = input.u8();
    let image = &images()[number];
    let (mut files, mut records) = (image.files.clone(), catalogs()[number].clone());
    files.remove(&Path::new(HOME).join("catalog.redb"));
    for _ in 0..=input.below(4) {
        if input.is_empty() {
            break;
        }
        match input.below(8) {
            0..=3 => change_record(&mut records, &mut input),
            4 => move_record(&mut records, &mut input),
            5..=6 => {
                let file = input.below(files.len());
                if let Some(bytes) = files.values_mut().nth(file) {
                    input.change(bytes);
                }
            }
            _ => move_file(&mut files, &mut input),
        }
    }
    if flags & 1 == 0 {
        files.values_mut().for_each(|bytes| seal_file(bytes));
        mend_lists(&mut files, &mut records);
    }
    if flags & 2 == 0 {
        mend_counts(&mut records);
    }
    files.insert(Path::new(HOME).join("catalog.redb"), records::write(&records));
    survives(&files, image.model.next, flags & 4 == 4);
}

/// Changes a value of the catalog. Small numbers choose the small tables, the others any record.
fn change_record(records: &mut Records, input: &mut Bytes<'_>) {
    let which = input.below(records.len());
    if let Some(value) = records.values_mut().nth(which) {
        input.change(value);
    }
}

/// Removes a record, or puts it under another key or into another table.
fn move_record(records: &mut Records, input: &mut Bytes<'_>) {
    let which = input.below(records.len());
    let Some((&(table, key), value)) = records.iter().nth(which) else { return };
    let value = value.clone();
    let way = input.u8();
    if way & 1 == 0 {
        records.remove(&(table, key));
    }
    match way >> 1 & 3 {
        0 => {}
        1 => drop(records.insert((table, key.wrapping_add(u64::from(input.u8()))), value)),
        2 => drop(records.insert((table, key ^ u64::from(input.u8()) << 32), value)),
        _ => drop(records.insert((input.below(TABLES.len()), key), value)),
    }
}

/// Removes a file, or puts it in the place of another.
fn move_file(files: &mut Files, input: &mut Bytes<'_>) {
    let names: Vec<PathBuf> = files.keys().cloned().collect();
    let Some(from) = names.get(input.below(names.len())) else { return };
    let to = &names[input.below(names.len())];
    let bytes = files[from].clone();
    if from == to {
        files.remove(to);
    } else {
        files.insert(to.clone(), bytes);
    }
}

/// Gives every frame that the catalog names the checksums of its bytes, in the file and the catalog.
fn mend_lists(files: &mut Files, records: &mut Records) {
    let uuid = records.get(&(META, 0)).and_then(|config| config.get(4..20)?.try_into().ok());
    let Some(uuid) = uuid else { return };
    for ((_, key), value) in records.range_mut((LISTS, 0)..=(LISTS, u64::MAX)) {
        let Ok(entry) = ListEntry::parse(value) else { continue };
        let (generation, list, revision) = ((*key >> 32) as u32, *key as u32, entry.revision);
        let name = format!("lists/g{generation:04}/{:03}/{list:05}.{revision:06}.list", list / 64);
        let Some(bytes) = files.get_mut(&Path::new(HOME).join(name)) else { continue };
        let identity = ListIdentity { uuid, list, generation, revision };
        for (i, found) in entry.frames.iter().enumerate() {
            let rest = usize::try_from(found.offset).ok().and_then(|at| bytes.get_mut(at..));
            let sum = rest.and_then(|bytes| frame::seal(bytes, &identity, found.offset));
            if let Some(sum) = sum {
                value[36 + 16 * i..][..4].copy_from_slice(&sum.to_le_bytes());
            }
        }
    }
}

/// Lets the state say how many records the tables have.
fn mend_counts(records: &mut Records) {
    let count = |table: usize| records.range((table, 0)..=(table, u64::MAX)).count() as u32;
    let counts = COUNTS.map(|(at, table)| (at, count(table)));
    let Some(state) = records.get_mut(&(META, 1)) else { return };
    for (at, count) in counts {
        if let Some(field) = state.get_mut(at..at + 4) {
            field.copy_from_slice(&count.to_le_bytes());
        }
    }
}
