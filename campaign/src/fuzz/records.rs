//! The records of a catalog, taken out of redb without their seals and put into a fresh one with them.

use cellardb_format as format;
use redb::{Database, ReadableDatabase, StorageBackend, TableDefinition};
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

/// The tables of the catalog (SPEC.md, section 6).
pub(super) const TABLES: [&str; 7] =
    ["meta", "segments", "lists", "model", "settings", "dead", "asked"];

/// The records by table (its place in [`TABLES`]) and key, without their seals.
pub(super) type Records = BTreeMap<(usize, u64), Vec<u8>>;

/// The file of a database, in memory.
#[derive(Debug, Clone, Default)]
struct Memory(Arc<Mutex<Vec<u8>>>);

impl StorageBackend for Memory {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        out.copy_from_slice(&self.0.lock().unwrap()[offset as usize..][..out.len()]);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.lock().unwrap().resize(len as usize, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.lock().unwrap()[offset as usize..][..data.len()].copy_from_slice(data);
        Ok(())
    }
}

fn definition(table: &str) -> TableDefinition<'_, u64, &'static [u8]> {
    TableDefinition::new(table)
}

/// The uuid that a record is sealed with: the config, which brings it, uses zeros.
fn uuid_of(records: &Records, table: usize, key: u64) -> [u8; 16] {
    let config = records.get(&(0, 0)).filter(|_| (table, key) != (0, 0));
    config.and_then(|bytes| bytes.get(4..20)?.try_into().ok()).unwrap_or([0; 16])
}

/// The records of a catalog file that is whole.
pub(super) fn read(file: &[u8]) -> Records {
    let memory = Memory(Arc::new(Mutex::new(file.to_vec())));
    let db = Database::builder().create_with_backend(memory).unwrap();
    let transaction = db.begin_read().unwrap();
    let mut records = Records::new();
    for (number, table) in TABLES.iter().enumerate() {
        for row in transaction.open_table(definition(table)).unwrap().range::<u64>(..).unwrap() {
            let (key, value) = row.unwrap();
            let body = value.value().split_last_chunk::<4>().unwrap().0;
            records.insert((number, key.value()), body.to_vec());
        }
    }
    records
}

/// A catalog file of these records, each under its seal.
pub(super) fn write(records: &Records) -> Vec<u8> {
    let memory = Memory::default();
    let db = Database::builder().create_with_backend(memory.clone()).unwrap();
    let transaction = db.begin_write().unwrap();
    for (number, table) in TABLES.iter().enumerate() {
        let mut rows = transaction.open_table(definition(table)).unwrap();
        for ((_, key), value) in records.range((number, 0)..=(number, u64::MAX)) {
            let mut sealed = value.clone();
            format::seal(&uuid_of(records, number, *key), table, *key, &mut sealed);
            rows.insert(*key, sealed.as_slice()).unwrap();
        }
    }
    transaction.commit().unwrap();
    db.close().unwrap();
    std::mem::take(&mut *memory.0.lock().unwrap())
}
