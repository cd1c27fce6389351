//! What an image is made of, as its catalog says: how many bytes of each file count, and whether
//! every structure of the format is there. Reads the catalog by itself, not through the engine.

use super::{CATALOG, Files};
use crate::HOME;
use cellardb_format::{Config, ListEntry, Segment, Settings, State, Tombstones, unseal};
use redb::backends::InMemoryBackend;
use redb::{Database, ReadableDatabase, StorageBackend, TableDefinition};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What the catalog of an image says.
#[derive(Debug, Default)]
pub struct Contents {
    /// Of each file of rows and lists how many bytes count.
    pub committed: BTreeMap<PathBuf, usize>,
    pub segments: usize,
    /// Segments that compaction wrote.
    pub sparse: usize,
    /// The most frames in one list.
    pub frames: usize,
    /// Rows in no list.
    pub tail: u64,
    /// Removed rows that are still in a segment.
    pub dead: u64,
    pub settings: usize,
}

type Records = Vec<(u64, Vec<u8>)>;

fn records(db: &Database, uuid: &[u8; 16], table: &str) -> Records {
    let definition: TableDefinition<'_, u64, &[u8]> = TableDefinition::new(table);
    let rows = db.begin_read().unwrap().open_table(definition).unwrap();
    let unsealed = |(key, value): (redb::AccessGuard<'_, u64>, redb::AccessGuard<'_, &[u8]>)| {
        let uuid = if (table, key.value()) == ("meta", 0) { &[0; 16] } else { uuid };
        (key.value(), unseal(uuid, table, key.value(), value.value()).unwrap_or_default().to_vec())
    };
    rows.range(0u64..).unwrap().map(|row| unsealed(row.unwrap())).collect()
}

/// Reads the catalog of an image.
pub fn contents(files: &Files) -> Contents {
    let bytes = &files[Path::new(CATALOG)];
    let memory = InMemoryBackend::new();
    memory.set_len(bytes.len() as u64).unwrap();
    memory.write(0, bytes).unwrap();
    let db = Database::builder().create_with_backend(memory).unwrap();
    let config = Config::parse(&records(&db, &[0; 16], "meta")[0].1).unwrap();
    let of = |table| records(&db, &config.uuid, table);
    let state = State::parse(&of("meta")[1].1).unwrap();
    let mut found = Contents { tail: state.next_id - state.watermark, ..Contents::default() };
    let stride = cellardb_format::RowLayout::new(config.dim as usize).stride();
    for (number, value) in of("segments") {
        let segment = Segment::parse(&value).unwrap();
        let path = Path::new(HOME).join(format!("rows/{number:010}.rows"));
        found.committed.insert(path, 64 + segment.rows as usize * stride);
        found.segments += 1;
        found.sparse += usize::from(segment.ids.is_some());
    }
    for (key, value) in of("lists") {
        let (entry, list) = (ListEntry::parse(&value).unwrap(), key as u32);
        let folder = format!("lists/g{:04}/{:03}", key >> 32, list / 64);
        let name = format!("{folder}/{list:05}.{:06}.list", entry.revision);
        found.committed.insert(Path::new(HOME).join(name), entry.length as usize);
        found.frames = found.frames.max(entry.frames.len());
    }
    for (_, value) in of("settings") {
        found.settings += Settings::parse(&value).unwrap().each.len();
    }
    for (_, value) in of("dead") {
        found.dead += Tombstones::parse(&value).unwrap().0.len();
    }
    found
}
