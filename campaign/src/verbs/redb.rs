//! redb alone on the simulated disk: generated transactions, power cuts at every operation, and
//! recoveries that are cut again.

use crate::alone::Backend;
use crate::change::Cut;
use crate::data::Rng;
use crate::node::Op;
use crate::sim::{SimDisk, cuts};
use cellardb::{Disk, FileSystem};
use clap::{Args, ValueEnum};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// redb alone on the simulated disk: random transactions, a power cut at every operation, and cuts of
/// the recovery. No acknowledged commit may be lost, and what opens must be a commit, whole.
#[derive(Debug, Args)]
pub struct Redb {
    /// The first seed; each seed is a workload.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How long to go on.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// How many workloads at most.
    #[arg(long, default_value_t = u64::MAX)]
    count: u64,
    /// How redb commits; by the seed if not given.
    #[arg(long)]
    commits: Option<Commits>,
    /// Measures instead what checking a catalog at open costs.
    #[arg(long)]
    cost: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Commits {
    OnePhase,
    TwoPhase,
    QuickRepair,
    /// Each commit in one of these ways. Not chosen by the seed: a commit that was rolled back can come
    /// back there, see tests/suite/catalog.rs.
    Mixed,
}

/// What was tried.
#[derive(Debug, Default)]
struct Tally {
    workloads: u64,
    commits: u64,
    cuts: u64,
    /// States that were recovered from, those of recoveries included.
    states: u64,
}

type Content = BTreeMap<(usize, u64), Arc<[u8]>>;

const EACH: [Commits; 3] = [Commits::OnePhase, Commits::TwoPhase, Commits::QuickRepair];
const PATH: &str = "/db";
const TABLES: [&str; 3] = ["a", "b", "c"];

fn table(number: usize) -> TableDefinition<'static, u64, &'static [u8]> {
    TableDefinition::new(TABLES[number])
}

impl Redb {
    pub fn run(&self) -> Result<String, String> {
        if self.cost {
            for mib in [1, 10, 100] {
                for value in [40, 24 << 10] {
                    cost(mib, value);
                }
            }
            return Ok("least of five each".into());
        }
        let (start, mut tally) = (Instant::now(), Tally::default());
        for seed in self.seed..self.seed.saturating_add(self.count) {
            if start.elapsed() >= Duration::from_secs(self.seconds) {
                break;
            }
            let tried = catch_unwind(AssertUnwindSafe(|| {
                Workload::run(seed, self.commits).cut(&mut tally)
            }));
            if !matches!(tried, Ok(Ok(()))) {
                let why = match tried {
                    Ok(Err(why)) => why,
                    _ => "redb panicked".to_owned(),
                };
                let by = self.commits.and_then(|c| c.to_possible_value());
                let by = by.map_or(String::new(), |c| format!(" --commits {}", c.get_name()));
                let again = format!("campaign redb --seed {seed} --count 1{by}");
                return Err(format!(
                    "{why}
  repeat it with: {again}"
                ));
            }
            if tally.workloads % 10 == 0 {
                eprintln!("seed {seed}: {} states", tally.states);
            }
        }
        let rate = tally.states as f64 / start.elapsed().as_secs_f64();
        Ok(format!(
            "redb: {} workloads, {} commits, {} cuts, {} states recovered, {rate:.0} a second, nothing lost",
            tally.workloads, tally.commits, tally.cuts, tally.states
        ))
    }
}

/// A recorded run: what it did to the disk, and what was committed when.
struct Workload {
    seed: u64,
    by: Commits,
    ops: Vec<Op>,
    /// What each commit left, from the empty database on, and after how many operations it was
    /// acknowledged.
    commits: Vec<(u64, Content)>,
}

fn open(disk: &SimDisk, check: bool) -> Result<Database, String> {
    let file = disk.open(Path::new(PATH), true).map_err(|e| e.to_string())?;
    let mut builder = Database::builder();
    builder.set_cache_size(1 << 20).set_check_integrity_on_open(check);
    builder.create_with_backend(Backend(file)).map_err(|e| format!("does not open: {e}"))
}

fn content(db: &Database) -> Result<Content, String> {
    let read = || -> Result<Content, redb::Error> {
        let (transaction, mut found) = (db.begin_read()?, Content::new());
        for number in 0..TABLES.len() {
            let rows = match transaction.open_table(table(number)) {
                Err(redb::TableError::TableDoesNotExist(_)) => continue,
                other => other?,
            };
            for row in rows.iter()? {
                let (key, value) = row?;
                found.insert((number, key.value()), value.value().into());
            }
        }
        Ok(found)
    };
    read().map_err(|e| format!("cannot be read: {e}"))
}

/// One transaction on the database and on what it should hold.
fn transact(db: &Database, by: Commits, rng: &mut Rng, now: &mut Content, largest: usize) -> bool {
    let mut next = now.clone();
    let mut transaction = db.begin_write().unwrap();
    let by = if by == Commits::Mixed { EACH[rng.below(3)] } else { by };
    transaction.set_two_phase_commit(by == Commits::TwoPhase);
    transaction.set_quick_repair(by == Commits::QuickRepair);
    for _ in 0..=rng.below(8) {
        let number = rng.below(TABLES.len());
        let mut rows = transaction.open_table(table(number)).unwrap();
        match rng.below(8) {
            0..=1 => {
                let keys: Vec<u64> = next.keys().filter(|k| k.0 == number).map(|k| k.1).collect();
                if let Some(key) = keys.get(rng.below(keys.len())) {
                    rows.remove(key).unwrap();
                    next.remove(&(number, *key));
                }
            }
            // Many at once, so that pages split.
            2 => {
                let first = rng.next_u64() % 1000;
                for key in first..first + 40 {
                    let value: Arc<[u8]> = vec![rng.next_u64() as u8; 10 + rng.below(40)].into();
                    rows.insert(key, &*value).unwrap();
                    next.insert((number, key), value);
                }
            }
            _ => {
                let (key, len) = (rng.next_u64() % 40, 10 + rng.below(largest));
                let value: Arc<[u8]> = vec![rng.next_u64() as u8; len].into();
                rows.insert(key, &*value).unwrap();
                next.insert((number, key), value);
            }
        }
    }
    if rng.below(10) == 0 {
        transaction.abort().unwrap();
        return false;
    }
    transaction.commit().unwrap();
    *now = next;
    true
}

impl Workload {
    fn run(seed: u64, commits: Option<Commits>) -> Self {
        let mut rng = Rng::new(seed);
        let by = EACH[rng.below(3)];
        let by = commits.unwrap_or(by);
        let largest = [300, 4000, 65_526][rng.below(3)];
        let disk = SimDisk::new();
        disk.record();
        disk.create(Path::new(PATH)).unwrap();
        disk.sync_dir(Path::new("/")).unwrap();
        let mut db = open(&disk, false).unwrap();
        let mut now = Content::new();
        let mut commits = vec![(disk.ops(), now.clone())];
        let mut reader = None;
        for _ in 0..6 + rng.below(14) {
            match rng.below(12) {
                0 => {
                    drop(reader.take());
                    db.close().unwrap();
                    db = open(&disk, rng.below(2) == 0).unwrap();
                }
                // A reader keeps pages from being used again, until the next one.
                1 => reader = Some(db.begin_read().unwrap()),
                _ => {}
            }
            if transact(&db, by, &mut rng, &mut now, largest) {
                commits.push((disk.ops(), now.clone()));
            }
        }
        drop(reader);
        db.close().unwrap();
        Self { seed, by, ops: disk.recorded(), commits }
    }

    /// Cuts the power after every operation, in every way.
    fn cut(&self, tally: &mut Tally) -> Result<(), String> {
        tally.workloads += 1;
        tally.commits += self.commits.len() as u64 - 1;
        let mut rng = Rng::new(self.seed ^ 0x5EED);
        let walker = SimDisk::new();
        for (n, op) in self.ops.iter().enumerate() {
            walker.replay(op);
            let done = n as u64 + 1;
            let acked = self.commits.iter().rposition(|(at, _)| *at <= done);
            // Before it was made there is nothing to lose.
            let Some(acked) = acked else { continue };
            let allowed = &self.commits[acked..self.commits.len().min(acked + 2)];
            for cut in cuts(2, rng.next_u64()) {
                tally.cuts += 1;
                let left = walker.after_cut(cut);
                let deeper = rng.below(30) == 0;
                let by = deeper.then_some(self.by);
                recover(&left, allowed, by, &mut rng, tally)
                    .map_err(|e| format!("after operation {n} ({op}), {cut:?}: {e}"))?;
            }
        }
        Ok(())
    }
}

/// Opens what a cut left: it must hold one of the allowed contents. If `deeper`, the recovery and one more
/// commit are cut
/// at every operation too, and the recovery of that must hold one of them again; what a completed
/// open has shown is there from then on.
fn recover(
    left: &SimDisk,
    allowed: &[(u64, Content)],
    deeper: Option<Commits>,
    rng: &mut Rng,
    tally: &mut Tally,
) -> Result<(), String> {
    tally.states += 1;
    let before = left.after_cut(Cut::Kept);
    if deeper.is_some() {
        left.record();
    }
    let db = open(left, rng.below(2) == 0)?;
    let found = content(&db)?;
    let Some(held) = allowed.iter().find(|(_, c)| *c == found) else {
        return Err(format!("{} records, which no commit left", found.len()));
    };
    let Some(by) = deeper else { return Ok(()) };
    let shown = left.ops();
    // Work goes on.
    let mut later = found.clone();
    if !transact(&db, by, rng, &mut later, 300) {
        later.clone_from(&found);
    }
    drop(db);
    let walker = before;
    let ops = left.recorded();
    for (n, op) in ops.iter().enumerate() {
        walker.replay(op);
        let mut allowed = allowed.to_vec();
        if n as u64 + 1 >= shown {
            allowed = vec![held.clone()];
        }
        allowed.push((0, later.clone()));
        for cut in cuts(1, rng.next_u64()) {
            let again = walker.after_cut(cut);
            recover(&again, &allowed, None, rng, tally)
                .map_err(|e| format!("operation {n} of the recovery ({op}), {cut:?}: {e}"))?;
        }
    }
    Ok(())
}

/// Opens a file of so many MiB of values of one size, with and without the check; the least of five.
fn cost(mib: usize, value: usize) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("catalog.redb");
    let open = |check| {
        let file = FileSystem.open(&path, true).unwrap();
        let mut builder = Database::builder();
        builder.set_cache_size(32 << 20).set_check_integrity_on_open(check);
        builder.create_with_backend(Backend(file)).unwrap()
    };
    FileSystem.create(&path).unwrap();
    let db = open(false);
    let transaction = db.begin_write().unwrap();
    {
        let mut rows = transaction.open_table(table(0)).unwrap();
        for key in 0..(mib << 20) / value {
            rows.insert(key as u64, vec![key as u8; value].as_slice()).unwrap();
        }
    }
    transaction.commit().unwrap();
    db.close().unwrap();
    let len = FileSystem.open(&path, false).unwrap().len().unwrap();
    let least = |check| {
        let times = (0..5).map(|_| {
            let start = Instant::now();
            let db = open(check);
            let took = start.elapsed();
            db.close().unwrap();
            took
        });
        times.min().unwrap_or_default()
    };
    let (plain, checked) = (least(false), least(true));
    let each = checked.as_secs_f64() * 1e3 / (len as f64 / f64::from(1 << 20));
    println!(
        "{mib} MiB of values of {value} bytes, a file of {} MiB: {plain:.1?} unchecked, {checked:.1?} \
         checked, {each:.2} ms a MiB of the file",
        len >> 20
    );
}
