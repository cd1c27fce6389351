//! Operations that fail, at every place of a workload: the error is clean, readers go on, nothing
//! that was acknowledged is lost, and what is not poisoned goes on writing.

use crate::change::Cut;
use crate::cuts::caught;
use crate::data::{self, Rng};
use crate::node::FailedSync;
use crate::oracle;
use crate::sim::{Calls, Fault, Plan, SimDisk};
use crate::workload::{Run, Step, Workload};
use crate::{HOME, stored};
use cellardb::Error;
use std::fmt;

/// One operation that fails.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    pub plan: Plan,
    pub failed_sync: FailedSync,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Plan { calls, at, fault, for_ever } = self.plan;
        write!(f, "{fault:?} at {calls:?} {at}, for ever: {for_ever}, {:?}", self.failed_sync)
    }
}

/// How a workload took a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// It hit no step that failed.
    Unnoticed,
    /// The step failed, and the next change succeeded.
    Clean,
    /// The step failed, and the writer wants to be opened anew.
    Poisoned,
}

/// How many operations of each sort a workload takes, after the index was created.
pub fn operations(workload: &Workload) -> Result<[u64; 3], String> {
    let all = [Calls::Changes, Calls::Reads, Calls::Opens];
    let mut run = begin(workload)?;
    let before = all.map(|calls| run.disk.calls(calls));
    for step in &workload.steps {
        run.step(*step).map_err(|e| e.to_string())??;
    }
    let after = all.map(|calls| run.disk.calls(calls));
    Ok([0, 1, 2].map(|i| after[i] - before[i]))
}

fn begin(workload: &Workload) -> Result<Run<'_>, String> {
    Run::begin(workload, SimDisk::new()).map_err(|e| e.to_string())
}

/// The cases of one place.
pub fn cases(calls: Calls, at: u64) -> Vec<Case> {
    let faults: &[Fault] = match calls {
        Calls::Changes => &[Fault::Eio, Fault::Enospc, Fault::Short],
        Calls::Reads => &[Fault::Eio, Fault::Rot],
        Calls::Opens => &[Fault::Emfile, Fault::Eio],
    };
    let mut cases = Vec::new();
    for (i, fault) in faults.iter().enumerate() {
        for for_ever in [false, true] {
            // The three ways of a failed sync take turns.
            let ways = [FailedSync::Forgotten, FailedSync::Reverted, FailedSync::Retried];
            let failed_sync = ways[(at as usize + i + usize::from(for_ever)) % 3];
            cases.push(Case { plan: Plan { calls, at, fault: *fault, for_ever }, failed_sync });
        }
    }
    cases
}

/// Lets one operation fail and checks everything that was promised.
pub fn check(workload: &Workload, case: Case) -> Result<Taken, String> {
    caught(|| taken(workload, case)).map_err(|e| format!("{case}: {e}\n  of: {workload}"))
}

fn taken(workload: &Workload, case: Case) -> Result<Taken, String> {
    let mut run = begin(workload)?;
    run.disk.failed_sync(case.failed_sync);
    run.disk.plan(case.plan);
    let mut met = None;
    for step in &workload.steps {
        match run.step(*step) {
            Ok(kept) => kept?,
            Err(e) => {
                met = Some((*step, e));
                break;
            }
        }
    }
    let Some((step, error)) = met else { return unnoticed(&mut run) };
    let rot = case.plan.fault == Fault::Rot;
    if run.disk.faults() == 0 {
        return Err(format!("{step:?} failed without a fault: {error}"));
    }
    let clean = matches!(error, Error::Io { .. } | Error::Poisoned { .. })
        || (rot && matches!(error, Error::Corrupt { .. }));
    if !clean {
        return Err(format!("{step:?} ended with {error:?}"));
    }
    readers(&run, case, step)?;
    run.disk.heal();
    let outcome = match run.workload.relaxed && taken_back(case) {
        true => Taken::Poisoned,
        false => goes_on(&mut run, step, rot)?,
    };
    run.index = None;
    let history = &run.history;
    let n = case.plan.at;
    for left in [
        run.disk.after_kill(),
        run.disk.after_cut(Cut::Dropped),
        run.disk.after_cut(Cut::Random(n)),
    ] {
        let found = oracle::recover(&left, history, history.now(), &mut Rng::new(n));
        found.map_err(|e| format!("{step:?} failed, then: {e}"))?;
    }
    reopened(&run, n).map_err(|e| format!("{step:?} failed, was opened anew, cut: {e}"))?;
    Ok(outcome)
}

/// Opened anew before the power goes, when the system's cache may hold what no sync will write: what
/// is acknowledged from then on is there after a cut.
fn reopened(run: &Run<'_>, seed: u64) -> Result<(), String> {
    let (disk, history) = (run.disk.after_kill(), &run.history);
    let index = stored(&disk).open(HOME).map_err(|e| e.to_string())?;
    let stands = history.find(&index, history.now(), seed)?;
    let mut model = history.models[stands].clone();
    let rows = data::vectors(&mut Rng::new(seed), 2, model.dim, model.metric);
    model.next = index.insert_many(&rows).map_err(|e| e.to_string())?.start;
    model.insert(&rows);
    disk.cut_at(0);
    drop(index);
    for cut in [Cut::Dropped, Cut::Random(seed)] {
        let index = stored(&disk.after_cut(cut)).open(HOME).map_err(|e| format!("{cut:?}: {e}"))?;
        model.differs(&index, seed).map_err(|e| format!("{cut:?}: {e}"))?;
    }
    Ok(())
}

/// Nothing failed, so nothing may be missing.
fn unnoticed(run: &mut Run<'_>) -> Result<Taken, String> {
    if run.disk.faults() > 0 {
        run.disk.heal();
        run.index = None;
        let now = run.history.models.len() - 1;
        let found =
            oracle::recover(&run.disk.after_kill(), &run.history, now..=now, &mut Rng::new(1));
        found.map_err(|e| format!("no step failed, but then: {e}"))?;
    }
    Ok(Taken::Unnoticed)
}

/// Readers go on while the fault lasts, unless it is their own reads that fail; then they say so.
fn readers(run: &Run<'_>, case: Case, step: Step) -> Result<(), String> {
    let Some(index) = &run.index else { return Ok(()) };
    if case.plan.calls != Calls::Changes {
        if let Err(e) = index.get(0) {
            let named =
                ["rows", "list", "redb", "LOCK"].iter().any(|end| e.to_string().contains(end));
            if !named {
                return Err(format!("a reader's error names no file: {e}"));
            }
        }
        run.disk.heal();
    }
    // What is not durable is not shown, unless that was asked for.
    let acked = *run.history.now().start();
    let window = if run.workload.relaxed { run.history.now() } else { acked..=acked };
    let seen = run.history.find(index, window, 8);
    match seen {
        // What was never promised to be durable, and the system took back, cannot be read.
        Err(e) if run.workload.relaxed && taken_back(case) && e.contains(".rows is damaged") => {
            Ok(())
        }
        Err(e) => Err(format!("{step:?} failed, and a reader saw: {e}")),
        Ok(_) => Ok(()),
    }
}

/// Whether a failed sync makes the system show the bytes of before.
fn taken_back(case: Case) -> bool {
    case.plan.fault == Fault::Eio && case.failed_sync == FailedSync::Reverted
}

/// The next change succeeds once and for good, or the writer says that it must be opened anew.
fn goes_on(run: &mut Run<'_>, failed: Step, rot: bool) -> Result<Taken, String> {
    if run.index.is_none() {
        return Ok(Taken::Poisoned);
    }
    // What a failed change did is not known yet: the writer's own view says which state holds.
    let index = run.index.as_ref().unwrap();
    let stands = run.history.find(index, run.history.now(), 3)?;
    let model = run.history.models[stands].clone();
    let before = run.history.models.len();
    run.history.models.push(model);
    match run.step(Step::Insert(3)) {
        Ok(kept) => kept.map(|()| Taken::Clean),
        Err(Error::Poisoned { .. } | Error::Closed) => {
            // The attempt changed nothing.
            run.history.models.truncate(before);
            Ok(Taken::Poisoned)
        }
        Err(Error::Corrupt { .. } | Error::Io { .. }) if rot => Ok(Taken::Poisoned),
        Err(e) => {
            Err(format!("{failed:?} failed, the next insert is neither done nor poisoned: {e}"))
        }
    }
}
