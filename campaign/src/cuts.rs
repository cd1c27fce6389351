//! Power cuts at every operation of a workload, each case with a number that repeats it, and the
//! shrinking of workloads that fail.

use crate::change::Cut;
use crate::data::Rng;
use crate::node::Op;
use crate::oracle::Oracle;
use crate::sim::SimDisk;
use crate::workload::{History, Run, Step, Workload};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// One cut: its number holds the seed of the workload, the operation and the variant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Case {
    pub seed: u32,
    /// After so many operations.
    pub ops: usize,
    /// 0 loses all that was not synced, 1 keeps it, others are mixtures.
    pub variant: u8,
}

impl Case {
    pub fn number(self) -> u64 {
        u64::from(self.seed) << 32 | (self.ops as u64) << 8 | u64::from(self.variant)
    }

    pub fn of(number: u64) -> Self {
        let ops = (number >> 8 & 0xFF_FFFF) as usize;
        Self { seed: (number >> 32) as u32, ops, variant: number as u8 }
    }

    fn cut(self) -> Cut {
        match self.variant {
            0 => Cut::Dropped,
            1 => Cut::Kept,
            _ => Cut::Random(self.draw()),
        }
    }

    /// A number for whatever is drawn for this case.
    fn draw(self) -> u64 {
        Rng::new(self.number()).next_u64()
    }
}

/// What was tried.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tally {
    pub workloads: u64,
    /// Disks that a cut made.
    pub states: u64,
    /// Different ones among those of a workload: opened and compared.
    pub opened: u64,
    /// Of these and their repetitions, made by cutting a recovery.
    pub recoveries: u64,
}

impl Tally {
    pub fn add(&mut self, other: Self) {
        self.workloads += other.workloads;
        self.states += other.states;
        self.opened += other.opened;
        self.recoveries += other.recoveries;
    }
}

/// A cut after which a promise was broken.
#[derive(Debug, Clone)]
pub struct Broken {
    pub case: Case,
    pub workload: String,
    pub what: String,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { case, workload, what } = self;
        writeln!(f, "case {:#x}: {what}", case.number())?;
        writeln!(f, "  after operation {}, {:?}, of: {workload}", case.ops, case.cut())?;
        if Workload::random(u64::from(case.seed)).to_string() == *workload {
            return write!(f, "  repeat it with: campaign cuts --case {:#x}", case.number());
        }
        write!(f, "  repeat it with: campaign cuts --workload {workload:?}")
    }
}

/// Which cuts of a workload are made.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Variants of the cut at each operation.
    pub variants: u8,
    /// Every so-many-th operation.
    pub every: usize,
    /// Of so many cuts one recovery is cut too.
    pub recovery: usize,
}

impl Default for Plan {
    fn default() -> Self {
        Self { variants: 8, every: 1, recovery: 40 }
    }
}

/// A workload that was run once and can be cut anywhere.
#[derive(Debug)]
pub struct Recording {
    pub ops: Vec<Op>,
    pub history: History,
}

impl Recording {
    pub fn of(workload: &Workload) -> Result<Self, String> {
        let run = caught(|| Run::whole(workload))?;
        Ok(Self { ops: run.disk.recorded(), history: run.history })
    }
}

/// Runs, and makes a panic an error.
pub fn caught<T>(f: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("of no text");
        Err(format!("PANIC: {text}"))
    })
}

/// Cuts the power at every operation of a workload.
pub fn cut_everywhere(workload: &Workload, seed: u32, plan: Plan) -> Result<Tally, Box<Broken>> {
    let broken = |case: Case, what| Box::new(Broken { case, workload: workload.to_string(), what });
    let start = Case { seed, ops: 0, variant: 0 };
    let recording = Recording::of(workload).map_err(|e| broken(start, e))?;
    let mut oracle = Oracle::new(&recording.history);
    let disk = SimDisk::new();
    for (n, op) in recording.ops.iter().enumerate() {
        disk.replay(op);
        if !(n + seed as usize).is_multiple_of(plan.every) {
            continue;
        }
        // Creating takes few operations in which much can go wrong.
        let creating = n < recording.history.created;
        for variant in 0..plan.variants.saturating_mul(if creating { 8 } else { 1 }) {
            let case = Case { seed, ops: n + 1, variant };
            caught(|| check(&mut oracle, &disk, case, plan)).map_err(|e| broken(case, e))?;
        }
    }
    let Oracle { states, opened, recoveries, .. } = oracle;
    Ok(Tally { workloads: 1, states, opened, recoveries })
}

/// Checks one case on the disk as it was before the cut.
fn check(oracle: &mut Oracle<'_>, disk: &SimDisk, case: Case, plan: Plan) -> Result<(), String> {
    let left = disk.after_cut(case.cut());
    let draw = case.draw();
    oracle.check(&left, case.ops, draw)?;
    if draw.is_multiple_of(plan.recovery as u64) {
        oracle.recovery(&left, case.ops, draw)?;
        oracle.seen_stays(disk, case.ops, draw)?;
    }
    Ok(())
}

/// Repeats one case and tells what happened.
pub fn repeat(case: Case, plan: Plan) -> Result<(), Box<Broken>> {
    let workload = Workload::random(u64::from(case.seed));
    println!("workload {}: {workload}", case.seed);
    let broken = |what| Box::new(Broken { case, workload: workload.to_string(), what });
    let recording = Recording::of(&workload).map_err(broken)?;
    let disk = SimDisk::new();
    let shown = case.ops.saturating_sub(12);
    for (n, op) in recording.ops.iter().take(case.ops).enumerate() {
        disk.replay(op);
        if n >= shown {
            println!("  operation {}: {op}", n + 1);
        }
    }
    println!("allowed are the states {:?}", recording.history.window(case.ops));
    for (path, number) in disk.paths() {
        println!("  {number} is {}", path.display());
    }
    println!("the power goes, {:?}:", case.cut());
    disk.after_cut_told(case.cut(), &mut |line| println!("  {line}"));
    let mut oracle = Oracle::new(&recording.history);
    caught(|| check(&mut oracle, &disk, case, plan)).map_err(broken)
}

/// Leaves out steps of a workload that fails, for as long as it goes on failing.
pub fn shrink(workload: &Workload, time: Duration) -> (Workload, Option<Box<Broken>>) {
    let start = Instant::now();
    let plan = Plan { variants: 12, every: 1, recovery: 20 };
    let fails = |workload: &Workload| cut_everywhere(workload, 0, plan).err();
    let (mut best, mut why) = (workload.clone(), None);
    let mut chunk = (best.steps.len() / 2).max(1);
    loop {
        let mut smaller = false;
        let mut at = 0;
        while at < best.steps.len() && start.elapsed() < time {
            let mut tried = best.clone();
            tried.steps.drain(at..(at + chunk).min(best.steps.len()));
            match fails(&tried) {
                Some(broken) => (best, why, smaller) = (tried, Some(broken), true),
                None => at += chunk,
            }
        }
        for at in 0..best.steps.len() {
            let Step::Insert(n @ 2..) = best.steps[at] else { continue };
            let mut tried = best.clone();
            tried.steps[at] = Step::Insert(n / 2);
            if start.elapsed() < time
                && let Some(broken) = fails(&tried)
            {
                (best, why, smaller) = (tried, Some(broken), true);
            }
        }
        if start.elapsed() >= time || (!smaller && chunk == 1) {
            return (best, why);
        }
        chunk = (chunk / 2).max(1);
    }
}
