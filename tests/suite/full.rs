//! A full disk at every place of a workload: searches go on, nothing is poisoned, and the very call that
//! failed succeeds once there is room, without reopening.

use cellardb::{Disk, DiskFile, Error, Index, Metric};
use cellardb_campaign::change::Cut;
use cellardb_campaign::data::{self, Rng};
use cellardb_campaign::model::Model;
use cellardb_campaign::sim::SimDisk;
use cellardb_campaign::{HOME, SHAPES, Shape, parallel, scale, stored};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

const DIM: usize = 4;

/// A disk that is full after so many operations that take room. Where files are copied when they are
/// written (`copies`), an overwrite takes room too.
#[derive(Debug, Clone)]
struct Filling {
    disk: SimDisk,
    left: Arc<AtomicI64>,
    copies: bool,
    /// The error of a file system without room.
    code: i32,
}

#[derive(Debug)]
struct FillingFile(Box<dyn DiskFile>, Filling);

impl Filling {
    fn new(copies: bool, code: i32) -> Self {
        Self { disk: SimDisk::new(), left: Arc::new(AtomicI64::new(i64::MAX)), copies, code }
    }

    fn take(&self) -> io::Result<()> {
        match self.left.fetch_sub(1, Ordering::Relaxed) > 0 {
            true => Ok(()),
            false => Err(io::Error::from_raw_os_error(self.code)),
        }
    }

    fn room(&self, operations: i64) {
        self.left.store(operations, Ordering::Relaxed);
    }

    fn full(&self) -> bool {
        self.left.load(Ordering::Relaxed) < 0
    }

    fn files(&self) -> Vec<PathBuf> {
        self.disk.dump().into_keys().collect()
    }
}

impl Disk for Filling {
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.take()?;
        Ok(Box::new(FillingFile(self.disk.create(path)?, self.clone())))
    }
    fn open(&self, path: &Path, write: bool) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(FillingFile(self.disk.open(path, write)?, self.clone())))
    }
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        if self.disk.list(path)?.is_empty() {
            self.take()?;
        }
        self.disk.create_dir(path)
    }
    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        self.disk.list(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.disk.remove(path)
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.disk.sync_dir(path)
    }
    fn sync_all(&self, path: &Path) -> io::Result<()> {
        self.disk.sync_all(path)
    }
}

impl DiskFile for FillingFile {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_at(buf, offset)
    }
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        if self.1.copies || offset + data.len() as u64 > self.0.len()? {
            // A part is written, as it is where a disk fills up.
            self.1
                .take()
                .inspect_err(|_| drop(self.0.write_at(&data[..data.len() / 2], offset)))?;
        }
        self.0.write_at(data, offset)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        if len > self.0.len()? {
            self.1.take()?;
        }
        self.0.set_len(len)
    }
    fn sync(&self) -> io::Result<()> {
        self.0.sync()
    }
    fn try_lock(&self, exclusive: bool) -> io::Result<bool> {
        self.0.try_lock(exclusive)
    }
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Insert(usize),
    Remove(usize),
    Flush,
    Train,
    Compact,
}

const SCRIPT: [Step; 11] = [
    Step::Insert(40),
    Step::Insert(60),
    Step::Train,
    Step::Insert(1),
    Step::Remove(9),
    Step::Insert(20),
    Step::Flush,
    Step::Remove(5),
    Step::Compact,
    Step::Train,
    Step::Insert(5),
];

fn step(index: &Index, step: Step, model: &mut Model) -> Result<(), Error> {
    match step {
        Step::Insert(n) => {
            let rows = data::vectors(&mut Rng::new(model.next as u64), n, DIM, model.metric);
            let found = index.insert_many(&rows)?;
            assert_eq!(found, model.insert(&rows));
        }
        Step::Remove(every) => {
            let ids: Vec<usize> = model.ids().into_iter().step_by(every).collect();
            assert_eq!(index.remove_many(&ids)?, ids.len());
            model.remove(&ids);
        }
        Step::Flush => index.flush()?,
        Step::Train => index.train()?,
        Step::Compact => drop(index.compact()?),
    }
    Ok(())
}

/// Runs the workload on a disk that is full after `n` operations that take room; whether it was.
fn fill_at(shape: Shape, n: i64, copies: bool, code: i32) -> bool {
    let what = format!("{}, full at {n}, copies: {copies}, error {code}", shape.name);
    let disk = Filling::new(copies, code);
    let options = shape.options(DIM, Metric::L2).disk(Arc::new(disk.clone()));
    let index = options.create(HOME).unwrap();
    let mut model = Model::new(DIM, Metric::L2);
    disk.room(n);
    let mut met = false;
    for s in SCRIPT {
        let before = disk.files();
        let Err(e) = step(&index, s, &mut model) else { continue };
        assert!(disk.full() && matches!(e, Error::Io { .. }), "{what}: {s:?}: {e}");
        met = true;
        if matches!(s, Step::Insert(_) | Step::Train) {
            assert_eq!(disk.files(), before, "{what}: {s:?}: its files are in the way");
        }
        model.differs(&index, 1).unwrap_or_else(|e| panic!("{what}: {s:?}: a reader saw {e}"));
        // It stays full for a while: everything fails, and nothing breaks.
        let more = [s, Step::Insert(3), Step::Flush];
        for again in more.into_iter().filter(|_| n % 2 == 0) {
            match step(&index, again, &mut model) {
                Ok(()) | Err(Error::Io { .. }) => {}
                Err(e) => panic!("{what}: {again:?} on a full disk: {e}"),
            }
        }
        model.differs(&index, 2).unwrap_or_else(|e| panic!("{what}: {s:?}: a reader saw {e}"));
        disk.room(i64::MAX);
        // What failed has left no trace that another commit makes durable.
        step(&index, Step::Insert(2), &mut model).unwrap_or_else(|e| panic!("{what}: {e}"));
        finds_itself(&stored(&disk.disk.after_kill()).open(HOME).unwrap(), &model, &what);
        step(&index, s, &mut model).unwrap_or_else(|e| panic!("{what}: {s:?} with room: {e}"));
    }
    model.differs(&index, 3).unwrap_or_else(|e| panic!("{what}: at the end {e}"));
    assert_eq!(index.stats().poisoned, None, "{what}");
    index.close().unwrap();
    let files = disk.files();
    disk.room(i64::MAX);
    drop(stored(&disk).open(HOME).unwrap());
    assert_eq!(disk.files(), files, "{what}: files were left lying");
    let left = disk.disk.after_cut(Cut::Dropped);
    let index = stored(&left).open(HOME).unwrap_or_else(|e| panic!("{what}: {e}"));
    model.differs(&index, 4).unwrap_or_else(|e| panic!("{what}: after a cut {e}"));
    assert!(index.verify().unwrap().damage.is_empty(), "{what}");
    met
}

/// Nearly every row is what a search for it finds: none has fallen out of the lists.
fn finds_itself(index: &Index, model: &Model, what: &str) {
    let finds = |row: &&Vec<f32>| index.search(row, 1).unwrap().first().is_some_and(|h| h.1 == 0.0);
    let found = model.rows.values().filter(finds).count();
    assert!(found * 100 >= model.rows.len() * 97, "{what}: {found} of {}", model.rows.len());
}

#[test]
fn on_a_full_disk_searches_go_on_and_writes_resume_with_room() {
    let every = if scale("CELLARDB_CRASH_SEEDS", 1) > 1 { 1 } else { 5 };
    let mut cases = Vec::new();
    for shape in [SHAPES[0], SHAPES[1], SHAPES[2]] {
        for copies in [false, true] {
            // No room, a quota, a limit of the process, no descriptors.
            for (i, code) in [28, 122, 27, 24].into_iter().enumerate() {
                let last = if shape.name == "exact" { 60 } else { 160 };
                cases.extend((i as i64..last).step_by(4 * every).map(|n| (shape, n, copies, code)));
            }
        }
    }
    let met = AtomicI64::new(0);
    parallel(&cases, |(shape, n, copies, code)| {
        met.fetch_add(i64::from(fill_at(*shape, *n, *copies, *code)), Ordering::Relaxed);
    });
    assert!(met.into_inner() * 3 > cases.len() as i64, "hardly any disk was full");
}
