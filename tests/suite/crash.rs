//! Power cuts and failing operations at every place of a small workload. After each the index must
//! open to the state after exactly S commits, not fewer than were acknowledged and not more than
//! were begun. `CELLARDB_CRASH_SEEDS` scales the campaign up.

use cellardb::{Disk, Durability, Error, Index, Metric};
use cellardb_campaign::change::Cut;
use cellardb_campaign::data::{self, Rng};
use cellardb_campaign::model::Model;
use cellardb_campaign::node::Op;
use cellardb_campaign::sim::{Fault, SimDisk, cuts};
use cellardb_campaign::{HOME, SHAPES, Shape, scale, stored};
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

const DIM: usize = 4;

/// One step of the workload.
#[derive(Debug, Clone, Copy)]
enum Step {
    Insert(usize),
    /// Removes live rows: the first, and every so-many-th after it.
    Remove(usize),
    Flush,
    Train,
    Compact,
}

/// Small, but with everything in it: the index trains, segments and lists fill up and are replaced,
/// rows are removed before and after a fold, and life goes on after a compaction.
const SCRIPT: [Step; 16] = [
    Step::Insert(1),
    Step::Insert(40),
    Step::Remove(9),
    Step::Insert(30),
    Step::Train,
    Step::Insert(1),
    Step::Insert(5),
    Step::Flush,
    Step::Insert(20),
    Step::Remove(7),
    Step::Flush,
    Step::Compact,
    Step::Insert(3),
    Step::Train,
    Step::Remove(5),
    Step::Compact,
];

/// What the workload said while it ran: `models[s]` is the state after `s` commits.
struct History {
    models: Vec<Model>,
    /// Operations of the disk after which so many commits were acknowledged (durable).
    acked: Vec<(u64, usize)>,
    /// Operations of the disk after which so many commits were begun.
    begun: Vec<(u64, usize)>,
}

impl History {
    fn new(metric: Metric) -> Self {
        Self { models: vec![Model::new(DIM, metric)], acked: Vec::new(), begun: Vec::new() }
    }

    fn last(&self) -> &Model {
        self.models.last().unwrap()
    }

    /// Begins a commit: notes where the disk is, and the state that it leads to.
    fn begin(&mut self, disk: &SimDisk, model: Model) {
        self.begun.push((disk.ops(), self.models.len()));
        self.models.push(model);
    }

    fn ack(&mut self, disk: &SimDisk) {
        self.acked.push((disk.ops(), self.models.len() - 1));
    }

    /// How many commits may be found at least and at most after so many operations.
    fn window(&self, ops: u64) -> (usize, usize) {
        let count = |marks: &[(u64, usize)], strict: bool| {
            let reached = |at: u64| if strict { at < ops } else { at <= ops };
            marks.iter().rev().find(|(at, _)| reached(*at)).map_or(0, |(_, n)| *n)
        };
        (count(&self.acked, false), count(&self.begun, true))
    }
}

/// Takes one step. Under `relaxed` durability only a flush, training or compaction acknowledges.
fn step(
    index: &Index,
    disk: &SimDisk,
    step: Step,
    history: &mut History,
    relaxed: bool,
) -> Result<(), Error> {
    let mut model = history.last().clone();
    match step {
        Step::Insert(n) => {
            let mut rng = Rng::new(model.next as u64);
            let rows = data::vectors(&mut rng, n, DIM, model.metric);
            let ids = model.insert(&rows);
            history.begin(disk, model);
            let found = if n == 1 {
                index.insert(&rows).map(|id| id..id + 1)?
            } else {
                index.insert_many(&rows)?
            };
            assert_eq!(found, ids);
        }
        Step::Remove(every) => {
            let ids: Vec<usize> = model.ids().into_iter().step_by(every).collect();
            model.remove(&ids);
            history.begin(disk, model);
            assert_eq!(index.remove_many(&ids)?, ids.len());
        }
        Step::Flush => index.flush()?,
        Step::Train => index.train()?,
        Step::Compact => drop(index.compact()?),
    }
    if !relaxed || !matches!(step, Step::Insert(_) | Step::Remove(_)) {
        history.ack(disk);
    }
    Ok(())
}

fn create(disk: &SimDisk, shape: Shape, metric: Metric, relaxed: bool) -> Result<Index, Error> {
    let mut options = shape.options(DIM, metric).disk(Arc::new(disk.clone()));
    if relaxed {
        options = options.durability(Durability::Interval(Duration::from_secs(3600)));
    }
    options.create(HOME)
}

/// Runs the whole workload, recording.
fn record(shape: Shape, metric: Metric, relaxed: bool) -> (Vec<Op>, History, u64) {
    let disk = SimDisk::new();
    disk.record();
    let index = create(&disk, shape, metric, relaxed).unwrap();
    let created = disk.ops();
    let mut history = History::new(metric);
    for s in SCRIPT {
        step(&index, &disk, s, &mut history, relaxed).unwrap();
    }
    history.last().differs(&index, 1).unwrap();
    index.close().unwrap();
    history.ack(&disk);
    (disk.recorded(), history, created)
}

/// Opens what was left and says after how many commits it stands. The checks that do not depend on
/// how it came about are all here: everything readable, exact, clean, the same when opened again.
fn recover(disk: &SimDisk, history: &History, deep: bool) -> Result<usize, String> {
    let index = stored(disk).open(HOME).map_err(|e| format!("open: {e}"))?;
    let ids = index.ids();
    let (found, model) = history
        .models
        .iter()
        .enumerate()
        .find(|(_, model)| model.ids() == ids)
        .ok_or_else(|| format!("{ids:?} is the state after no number of commits"))?;
    model.differs(&index, 2).map_err(|e| format!("after {found} commits: {e}"))?;
    let report = index.verify().map_err(|e| format!("verify: {e}"))?;
    if !report.damage.is_empty() {
        return Err(format!("verify found {:?}", report.damage));
    }
    recall(&index, model)?;
    drop(index);
    if deep {
        goes_on(disk, model)?;
    }
    Ok(found)
}

/// The approximate search of a recovered index still finds neighbours.
fn recall(index: &Index, model: &Model) -> Result<(), String> {
    if model.rows.is_empty() {
        return Ok(());
    }
    let mut rng = Rng::new(3);
    let mut sum = 0.0;
    for _ in 0..10 {
        let query = data::vector(&mut rng, DIM, model.metric);
        let hits = index.search(&query, 10).map_err(|e| format!("search: {e}"))?;
        sum += model.recall(&query, 10, &hits);
    }
    if sum < 7.0 { Err(format!("recall fell to {}", sum / 10.0)) } else { Ok(()) }
}

/// A recovered index takes rows, folds them, compacts, and has them at the next opening.
fn goes_on(disk: &SimDisk, model: &Model) -> Result<(), String> {
    let mut model = model.clone();
    let text = |e: Error| format!("going on: {e}");
    let index = stored(disk).open(HOME).map_err(text)?;
    model.differs(&index, 4).map_err(|e| format!("second open: {e}"))?;
    let rows = data::vectors(&mut Rng::new(5), 12, DIM, model.metric);
    let (found, right) = (index.insert_many(&rows).map_err(text)?, model.insert(&rows));
    if found != right {
        return Err(format!("new rows got ids {found:?}, should be {right:?}"));
    }
    index.flush().map_err(text)?;
    let gone: Vec<usize> = model.ids().into_iter().step_by(6).collect();
    index.remove_many(&gone).map_err(text)?;
    model.remove(&gone);
    model.differs(&index, 6).map_err(|e| format!("going on: {e}"))?;
    index.compact().map_err(text)?;
    index.close().map_err(text)?;
    let index = stored(disk).open(HOME).map_err(text)?;
    model.differs(&index, 7).map_err(|e| format!("opened after going on: {e}"))
}

fn hash(disk: &SimDisk) -> u64 {
    let mut hasher = DefaultHasher::new();
    disk.dump().hash(&mut hasher);
    hasher.finish()
}

/// Checks one found disk, unless the same bytes were checked before; then only the window.
struct Oracle<'a> {
    history: &'a History,
    seen: HashMap<u64, usize>,
    checked: u64,
}

impl Oracle<'_> {
    fn check(&mut self, left: &SimDisk, ops: u64, what: &str) {
        let (least, most) = self.history.window(ops);
        let key = hash(left);
        let found = match self.seen.get(&key) {
            Some(found) => *found,
            None => {
                self.checked += 1;
                let copy = left.after_kill();
                let found = recover(&copy, self.history, self.checked.is_multiple_of(5))
                    .unwrap_or_else(|e| panic!("{what}: {e}"));
                self.seen.insert(key, found);
                found
            }
        };
        assert!(
            (least..=most).contains(&found),
            "{what}: found the state after {found} commits, {least} were acknowledged, {most} begun"
        );
    }
}

/// Cuts the power after every operation of the workload.
fn cut_everywhere(shape: Shape, metric: Metric, relaxed: bool, every: usize) {
    let (ops, history, created) = record(shape, metric, relaxed);
    let mut oracle = Oracle { history: &history, seen: HashMap::new(), checked: 0 };
    let disk = SimDisk::new();
    let seeds = scale("CELLARDB_CRASH_SEEDS", 1);
    for (n, op) in ops.iter().enumerate() {
        disk.replay(op);
        let done = n as u64 + 1;
        if done < created || (seeds == 1 && n % every != 0) {
            continue;
        }
        for cut in cuts(seeds, done) {
            let what = format!(
                "{} {metric:?}, cut after operation {n} ({op}) of {}, {cut:?}",
                shape.name,
                ops.len()
            );
            oracle.check(&disk.after_cut(cut), done, &what);
            if n % 37 == 0 {
                cut_recovery(&disk.after_cut(cut), &mut oracle, done, &what);
            }
        }
    }
    println!("{}: {} operations, {} disks checked", shape.name, ops.len(), oracle.checked);
    assert!(ops.len() > 40 && oracle.checked > 20, "the campaign did not run");
}

/// Cuts the power again, at a few places of the recovery.
fn cut_recovery(left: &SimDisk, oracle: &mut Oracle<'_>, ops: u64, what: &str) {
    let probe = left.after_kill();
    probe.record();
    drop(stored(&probe).open(HOME).unwrap_or_else(|e| panic!("{what}: open: {e}")));
    let recovery = probe.recorded();
    let walker = left.after_kill();
    for (n, op) in recovery.iter().enumerate() {
        walker.replay(op);
        if n % (1 + recovery.len() / 6) == 0 {
            for cut in cuts(1, n as u64) {
                let what = format!("{what}, then recovery cut after operation {n} ({cut:?})");
                oracle.check(&walker.after_cut(cut), ops, &what);
            }
        }
    }
}

#[test]
fn an_exact_index_survives_a_cut_at_every_operation() {
    cut_everywhere(SHAPES[0], Metric::L2, false, 1);
}

#[test]
fn a_flat_index_survives_a_cut_at_every_operation() {
    cut_everywhere(SHAPES[1], Metric::InnerProduct, false, 1);
}

#[test]
fn a_pq4_index_survives_a_cut_at_every_operation() {
    cut_everywhere(SHAPES[2], Metric::L2, false, 1);
}

#[test]
fn a_pq8_index_survives_a_cut_at_every_operation() {
    cut_everywhere(SHAPES[3], Metric::Cosine, false, 1);
}

#[test]
fn under_relaxed_durability_a_cut_loses_a_suffix_of_commits() {
    cut_everywhere(SHAPES[2], Metric::L2, true, 2);
}

#[test]
fn a_cut_during_create_leaves_nothing_or_an_empty_index() {
    let disk = SimDisk::new();
    disk.record();
    drop(create(&disk, SHAPES[2], Metric::L2, false).unwrap());
    let walker = SimDisk::new();
    for (n, op) in disk.recorded().iter().enumerate() {
        walker.replay(op);
        for cut in cuts(2, n as u64) {
            let left = walker.after_cut(cut);
            let options = SHAPES[2].options(DIM, Metric::L2).disk(Arc::new(left.clone()));
            let index = options.open_or_create(HOME).unwrap_or_else(|e| {
                panic!("cut after operation {n} of create ({cut:?}): {e}");
            });
            assert!(index.is_empty());
            assert_eq!(index.insert(&[1.0; DIM]).unwrap(), 0);
            drop(index);
            let index = stored(&left.after_cut(Cut::Dropped)).open(HOME).unwrap();
            assert_eq!(index.ids(), [0]);
        }
    }
}

/// How a workload ended that met a fault.
struct Broken {
    index: Index,
    history: History,
    error: Error,
}

/// Runs until the first step that fails; `None` if the fault went unnoticed or hit `create`.
fn run_into(disk: &SimDisk, shape: Shape, n: u64, fault: Fault, for_ever: bool) -> Option<Broken> {
    let index = create(disk, shape, Metric::L2, false).unwrap();
    disk.fail(n, fault, for_ever);
    let mut history = History::new(Metric::L2);
    for s in SCRIPT {
        if let Err(error) = step(&index, disk, s, &mut history, false) {
            return Some(Broken { index, history, error });
        }
    }
    None
}

/// Lets the `n`-th operation fail and checks the error, the readers, and what is found afterwards.
fn fail_at(shape: Shape, n: u64, fault: Fault, for_ever: bool) {
    let what = format!("{}: {fault:?} at operation {n}, for ever: {for_ever}", shape.name);
    let disk = SimDisk::new();
    let Some(Broken { index, history, error }) = run_into(&disk, shape, n, fault, for_ever) else {
        return;
    };
    assert!(disk.faults() > 0, "{what}: failed without a fault: {error}");
    assert!(
        matches!(error, Error::Io { .. } | Error::Poisoned { .. }),
        "{what}: the error is {error:?}"
    );
    let (least, most) = (history.acked.last().map_or(0, |(_, n)| *n), history.models.len() - 1);
    let published = &history.models[least];
    published.differs(&index, 8).unwrap_or_else(|e| panic!("{what}: a reader saw {e}"));
    drop(index);
    disk.heal();
    for left in [disk.after_kill(), disk.after_cut(Cut::Dropped), disk.after_cut(Cut::Random(n))] {
        let found = recover(&left, &history, true).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert!((least..=most).contains(&found), "{what}: {found} commits, not {least}..={most}");
    }
}

/// How many operations the workload takes.
fn operations(shape: Shape) -> u64 {
    let (ops, _, created) = record(shape, Metric::L2, false);
    ops.len() as u64 - created
}

#[test]
fn a_failed_operation_is_a_clean_error_and_costs_no_acknowledged_row() {
    let seeds = scale("CELLARDB_CRASH_SEEDS", 1);
    let every = if seeds > 1 { 1 } else { 3 };
    let mut cases = Vec::new();
    for shape in [SHAPES[0], SHAPES[1], SHAPES[2]] {
        for n in (0..operations(shape)).step_by(every) {
            let modes = [
                (Fault::Eio, false),
                (Fault::Enospc, false),
                (Fault::Eio, true),
                (Fault::Enospc, true),
            ];
            for (i, (fault, for_ever)) in modes.into_iter().enumerate() {
                if seeds > 1 || (n / every as u64) % 4 == i as u64 {
                    cases.push((shape, n, fault, for_ever));
                }
            }
        }
    }
    cellardb_campaign::parallel(&cases, |(shape, n, fault, for_ever)| {
        fail_at(*shape, *n, *fault, *for_ever)
    });
}

#[test]
fn after_a_clean_error_the_same_call_succeeds_once() {
    let shape = SHAPES[2];
    for n in (0..operations(shape)).step_by(7) {
        let disk = SimDisk::new();
        let Some(broken) = run_into(&disk, shape, n, Fault::Enospc, false) else { continue };
        let Broken { index, mut history, .. } = broken;
        let least = history.acked.last().map_or(0, |(_, n)| *n);
        history.models.truncate(least + 1);
        let again = step(&index, &disk, Step::Insert(3), &mut history, false);
        let poisoned = match again {
            Ok(()) => false,
            Err(Error::Poisoned { .. }) => true,
            Err(e) => panic!("operation {n}: neither clean nor poisoned: {e}"),
        };
        drop(index);
        if !poisoned {
            let found = recover(&disk.after_kill(), &history, true).unwrap();
            assert_eq!(found, least + 1, "operation {n}: written once, and nothing else");
        }
    }
}

#[test]
fn the_oracle_notices_a_lost_commit_and_a_hole() {
    let (ops, history, _) = record(SHAPES[0], Metric::L2, false);
    let disk = SimDisk::new();
    ops.iter().for_each(|op| disk.replay(op));
    assert_eq!(history.window(disk.ops()).0, history.models.len() - 1);
    let index = stored(&disk).open(HOME).unwrap();
    let live = index.ids();
    index.remove(live[live.len() / 2]).unwrap();
    index.close().unwrap();
    assert!(recover(&disk, &history, false).unwrap_err().contains("no number of commits"));
    assert!(disk.list("/nowhere".as_ref()).unwrap().is_empty());
}
