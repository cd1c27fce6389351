//! A full disk at every place of a workload: searches go on, nothing is poisoned, and the very call that
//! failed succeeds once there is room, without reopening.

use cellardb::{Disk, Error, Index, Kind, Metric};
use cellardb_campaign::change::Cut;
use cellardb_campaign::data::{self, Rng};
use cellardb_campaign::layer::{Call, Layer, Through};
use cellardb_campaign::model::Model;
use cellardb_campaign::patience::until;
use cellardb_campaign::sim::SimDisk;
use cellardb_campaign::suites;
use cellardb_campaign::{HOME, SHAPES, Shape, parallel, scale, stored};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

const DIM: usize = 4;

/// Makes a disk full after so many operations that take room. Where files are copied when they are
/// written (`copies`), an overwrite takes room too.
#[derive(Debug, Clone)]
struct Filling {
    left: Arc<AtomicI64>,
    copies: bool,
    /// The error of a file system without room.
    code: i32,
    /// To see which directories are there.
    disk: SimDisk,
}

impl Filling {
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

impl Layer for Filling {
    fn around<T>(&self, call: Call<'_>, job: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        match call {
            Call::Create => self.take()?,
            Call::CreateDir(path) if self.disk.list(path)?.is_empty() => self.take()?,
            Call::Write { file, data, offset }
                if self.copies || offset + data.len() as u64 > file.len()? =>
            {
                // A part is written, as it is where a disk fills up.
                let part = || drop(file.write_at(&data[..data.len() / 2], offset));
                self.take().inspect_err(|_| part())?;
            }
            Call::SetLen { file, len } if len > file.len()? => self.take()?,
            _ => {}
        }
        job()
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
    let left = Arc::new(AtomicI64::new(i64::MAX));
    let layer = Filling { left, copies, code, disk: SimDisk::new() };
    let through = Through { layer: layer.clone(), disk: layer.disk.clone() };
    let options = shape.options(DIM, Metric::L2).disk(Arc::new(through.clone()));
    let index = options.create(HOME).unwrap();
    let mut model = Model::new(DIM, Metric::L2);
    layer.room(n);
    let mut met = false;
    for s in SCRIPT {
        let before = layer.files();
        let Err(e) = step(&index, s, &mut model) else { continue };
        assert!(layer.full() && matches!(e, Error::Io { .. }), "{what}: {s:?}: {e}");
        met = true;
        if matches!(s, Step::Insert(_) | Step::Train) {
            assert_eq!(layer.files(), before, "{what}: {s:?}: its files are in the way");
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
        layer.room(i64::MAX);
        // What failed has left no trace that another commit makes durable.
        step(&index, Step::Insert(2), &mut model).unwrap_or_else(|e| panic!("{what}: {e}"));
        finds_itself(&stored(&layer.disk.after_kill()).open(HOME).unwrap(), &model, &what);
        step(&index, s, &mut model).unwrap_or_else(|e| panic!("{what}: {s:?} with room: {e}"));
    }
    model.differs(&index, 3).unwrap_or_else(|e| panic!("{what}: at the end {e}"));
    assert_eq!(index.stats().poisoned, None, "{what}");
    index.close().unwrap();
    let files = layer.files();
    layer.room(i64::MAX);
    drop(stored(&through).open(HOME).unwrap());
    assert_eq!(layer.files(), files, "{what}: files were left lying");
    let left = layer.disk.after_cut(Cut::Dropped);
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
fn rows_that_come_after_a_gap_are_found_under_their_ids() {
    let gaps = suites::ALL.iter().find(|suite| suite.name == "gaps").unwrap();
    (0..20).for_each(|seed| gaps.round(seed).unwrap_or_else(|e| panic!("seed {seed}: {e}")));
}

/// Counts the files that are made while the disk is full.
#[derive(Debug, Clone, Default)]
struct Made {
    full: Arc<AtomicBool>,
    tried: Arc<AtomicI64>,
}

impl Layer for Made {
    fn around<T>(&self, call: Call<'_>, job: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        if let (Call::Create, true) = (call, self.full.load(Ordering::Relaxed)) {
            self.tried.fetch_add(1, Ordering::Relaxed);
            return Err(io::Error::from_raw_os_error(28));
        }
        job()
    }
}

/// Counts how many row segments there are at most.
#[derive(Debug, Clone)]
struct Most(SimDisk, Arc<AtomicI64>);

impl Layer for Most {
    fn around<T>(&self, call: Call<'_>, job: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let done = job();
        if let Call::Create = call {
            let rows = |path: &&PathBuf| path.extension().is_some_and(|e| e == "rows");
            let there = self.0.dump().keys().filter(rows).count();
            self.1.fetch_max(there as i64, Ordering::Relaxed);
        }
        done
    }
}

#[test]
fn a_compaction_gives_back_a_segment_before_it_writes_many() {
    let layer = Most(SimDisk::new(), Arc::default());
    let disk = Through { layer: layer.clone(), disk: layer.0.clone() };
    let options = SHAPES[0].options(DIM, Metric::L2).disk(Arc::new(disk));
    let index = options.create(HOME).unwrap();
    let (mut model, mut rng) = (Model::new(DIM, Metric::L2), Rng::new(3));
    let rows = data::vectors(&mut rng, 3_000, DIM, Metric::L2);
    assert_eq!(index.insert_many(&rows).unwrap(), model.insert(&rows));
    let gone: Vec<usize> = (0..3_000).step_by(2).collect();
    index.remove_many(&gone).unwrap();
    model.remove(&gone);
    let before = index.stats().segments as i64;
    assert!(before > 20, "{before} segments");
    assert_eq!(index.compact().unwrap().rows, 1_500);
    let most = layer.1.load(Ordering::Relaxed);
    assert!(most <= before + 2, "{before} segments became {most} on the way");
    model.differs(&index, 1).unwrap();
}

#[test]
fn upkeep_that_meets_a_full_disk_rests_before_it_tries_again() {
    let layer = Made::default();
    let disk = Through { layer: layer.clone(), disk: SimDisk::new() };
    let options = Index::options(DIM).kind(Kind::Exact).threads(1).disk(Arc::new(disk));
    let index = options.create(HOME).unwrap();
    index.insert_many(&data::vectors(&mut Rng::new(3), 4_000, DIM, Metric::L2)).unwrap();
    layer.full.store(true, Ordering::Relaxed);
    // From the 1,024th on each removal finds that a compaction is due.
    index.remove_many(&(0..1_200).collect::<Vec<_>>()).unwrap();
    for id in 1_200..1_700 {
        assert!(index.remove(id).unwrap());
    }
    let failed = || index.stats().maintenance_error.is_some();
    until("a compaction that fails", failed);
    let tried = layer.tried.load(Ordering::Relaxed);
    assert!(tried <= 3, "{tried} files were begun on a full disk");
    // It comes round by itself.
    layer.full.store(false, Ordering::Relaxed);
    until("a compaction where there is room", || index.stats().removed == 0);
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

#[test]
fn on_a_full_disk_removals_go_on_and_what_needs_room_says_so() {
    for code in [libc::ENOSPC, libc::EDQUOT] {
        let left = Arc::new(AtomicI64::new(i64::MAX));
        let layer = Filling { left, copies: false, code, disk: SimDisk::new() };
        let through = Through { layer: layer.clone(), disk: layer.disk.clone() };
        let options = SHAPES[1].options(DIM, Metric::L2).disk(Arc::new(through));
        let index = options.create(HOME).unwrap();
        let mut model = Model::new(DIM, Metric::L2);
        for s in [Step::Insert(100), Step::Train] {
            step(&index, s, &mut model).unwrap();
        }
        layer.room(0);
        step(&index, Step::Remove(5), &mut model).unwrap();
        for s in [Step::Insert(90), Step::Train, Step::Compact] {
            let text = step(&index, s, &mut model).unwrap_err().to_string();
            let said = text.contains("when there is room") && text.contains("`compact` does");
            assert!(said, "{s:?}: {text}");
        }
        layer.room(i64::MAX);
        step(&index, Step::Compact, &mut model).unwrap();
        model.differs(&index, 1).unwrap();
    }
}

/// A disk that is full, and says so only when it is synced.
#[derive(Debug, Clone)]
struct Late(Arc<AtomicBool>);

impl Layer for Late {
    fn around<T>(&self, call: Call<'_>, job: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        match call {
            Call::Sync if self.0.load(Ordering::Relaxed) => {
                Err(io::Error::from_raw_os_error(libc::ENOSPC))
            }
            _ => job(),
        }
    }
}

#[test]
fn a_sync_that_fails_for_want_of_room_promises_nothing() {
    let layer = Late(Arc::default());
    let through = Through { layer: layer.clone(), disk: SimDisk::new() };
    let options = SHAPES[0].options(DIM, Metric::L2).disk(Arc::new(through));
    let index = options.create(HOME).unwrap();
    layer.0.store(true, Ordering::Relaxed);
    let failed = index.insert(&[1.0; DIM]).unwrap_err();
    assert!(matches!(&failed, Error::Io { op, .. } if op.starts_with("sync")), "{failed}");
    assert!(!failed.to_string().contains("nothing was stored"), "{failed}");
    assert!(matches!(index.insert(&[1.0; DIM]), Err(Error::Poisoned { .. })));
}
