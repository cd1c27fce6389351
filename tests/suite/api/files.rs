//! Files that are open at a time: an ordinary process may have 1,024.

use cellardb::{Index, Kind, Maintenance, Metric};
use cellardb_campaign::HOME;
use cellardb_campaign::data::{self, Rng};
use cellardb_campaign::layer::{Call, Layer, Through};
use cellardb_campaign::sim::SimDisk;
use std::io;
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
