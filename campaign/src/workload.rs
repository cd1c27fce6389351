//! Workloads: what is done to a small index, made from a seed or read from a line of text, and the
//! history of one run: which states there were, and which of them were acknowledged when.

use crate::data::{self, Rng};
use crate::model::Model;
use crate::sim::SimDisk;
use crate::{HOME, METRICS, SHAPES, Shape, stored};
use cellardb::{Durability, Error, Index, Kind, Maintenance, Metric, Options};
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// One step of a workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Insert(usize),
    /// Removes every so-many-th live row.
    Remove(usize),
    Flush,
    Train,
    Compact,
    /// Closes the index and opens it again.
    Reopen,
    /// The process dies, and another opens the index.
    Kill,
    /// So many other indexes of the process are written to that this one is put to rest.
    Rest,
}

/// An index and what is done to it.
#[derive(Debug, Clone, PartialEq)]
pub struct Workload {
    pub shape: Shape,
    pub metric: Metric,
    pub dim: usize,
    /// Changes are durable at the next flush only.
    pub relaxed: bool,
    pub segment_bytes: u64,
    pub train_at: usize,
    pub nlist: usize,
    pub steps: Vec<Step>,
}

impl Workload {
    /// The workload of a seed.
    pub fn random(seed: u64) -> Self {
        let mut rng = Rng::new(seed ^ 0x5EED);
        let shape = SHAPES[rng.below(SHAPES.len())];
        let exact = shape.kind == Kind::Exact;
        let mut steps = vec![Step::Insert(1 + rng.below(40))];
        // Lists of many rows are appended to, those of a few are always written anew.
        if !exact && rng.below(3) == 0 {
            steps =
                vec![Step::Insert(80 + rng.below(120)), Step::Train, Step::Insert(5), Step::Flush];
        }
        for _ in 0..6 + rng.below(18) {
            steps.push(match rng.below(22) {
                0..=5 => Step::Insert([1, 1, 2, 5, 17, 40][rng.below(6)]),
                6..=9 => Step::Remove(2 + rng.below(12)),
                10..=12 => Step::Flush,
                13 | 14 if !exact => Step::Train,
                13..=16 => Step::Compact,
                17 | 18 => Step::Reopen,
                19 => Step::Kill,
                _ => Step::Rest,
            });
        }
        Self {
            shape,
            metric: METRICS[rng.below(3)],
            dim: [2, 4, 4, 8][rng.below(4)],
            relaxed: rng.below(4) == 0,
            segment_bytes: [4096, 4096, 8192, 1 << 20][rng.below(4)],
            train_at: 8 + rng.below(60),
            nlist: if exact { 0 } else { 1 + rng.below(5) },
            steps,
        }
    }

    pub fn options(&self, disk: &SimDisk) -> Options {
        let options = self
            .shape
            .options(self.dim, self.metric)
            .segment_bytes(self.segment_bytes)
            .train_at(self.train_at)
            .nlist(self.nlist);
        self.relax(options).disk(Arc::new(disk.clone()))
    }

    /// Options that open what is stored, as durable as the workload wants it.
    pub fn reopening(&self, disk: &SimDisk) -> Options {
        self.relax(stored(disk))
    }

    fn relax(&self, options: Options) -> Options {
        match self.relaxed {
            true => options.durability(Durability::Interval(Duration::from_secs(3600))),
            false => options,
        }
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let metric = METRICS.iter().position(|m| *m == self.metric).unwrap_or(0);
        let durability = if self.relaxed { "relaxed" } else { "strict" };
        write!(
            f,
            "{} {} dim {} segment {} train {} nlist {} {durability}:",
            self.shape.name,
            ["l2", "ip", "cosine"][metric],
            self.dim,
            self.segment_bytes,
            self.train_at,
            self.nlist
        )?;
        for (i, step) in self.steps.iter().enumerate() {
            f.write_str(if i == 0 { " " } else { ", " })?;
            match step {
                Step::Insert(n) => write!(f, "insert {n}")?,
                Step::Remove(n) => write!(f, "remove {n}")?,
                Step::Flush => f.write_str("flush")?,
                Step::Train => f.write_str("train")?,
                Step::Compact => f.write_str("compact")?,
                Step::Reopen => f.write_str("reopen")?,
                Step::Kill => f.write_str("kill")?,
                Step::Rest => f.write_str("rest")?,
            }
        }
        Ok(())
    }
}

impl FromStr for Step {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut words = text.split_whitespace();
        let name = words.next().unwrap_or_default();
        let n = words.next().map_or(Ok(0), |n| n.parse().map_err(|e| format!("{text:?}: {e}")));
        Ok(match (name, n?) {
            ("insert", n @ 1..) => Self::Insert(n),
            ("remove", n @ 1..) => Self::Remove(n),
            ("flush", 0) => Self::Flush,
            ("train", 0) => Self::Train,
            ("compact", 0) => Self::Compact,
            ("reopen", 0) => Self::Reopen,
            ("kill", 0) => Self::Kill,
            ("rest", 0) => Self::Rest,
            _ => return Err(format!("{text:?} is no step")),
        })
    }
}

impl FromStr for Workload {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (head, steps) = text.split_once(':').ok_or("there is no colon before the steps")?;
        let words: Vec<&str> = head.split_whitespace().collect();
        let after = |name: &str| -> Result<usize, String> {
            let at = words.iter().position(|word| *word == name).ok_or(format!("no {name}"))?;
            let value = words.get(at + 1).ok_or(format!("no value of {name}"))?;
            value.parse().map_err(|e| format!("{name} {value}: {e}"))
        };
        let metric = ["l2", "ip", "cosine"].iter().position(|m| words.get(1) == Some(m));
        let steps = steps.split(',').map(str::trim).filter(|step| !step.is_empty());
        Ok(Self {
            shape: *SHAPES
                .iter()
                .find(|shape| words.first() == Some(&shape.name))
                .ok_or("the first word is no kind of index")?,
            metric: METRICS[metric.ok_or("the second word is no metric")?],
            dim: after("dim")?,
            relaxed: words.contains(&"relaxed"),
            segment_bytes: after("segment")? as u64,
            train_at: after("train")?,
            nlist: after("nlist")?,
            steps: steps.map(str::parse).collect::<Result<_, _>>()?,
        })
    }
}

/// What a run said while it went on. `models[s]` is state number `s`; most states are that after one
/// more commit, and after a kill the one that was found is noted anew.
#[derive(Debug)]
pub struct History {
    pub models: Vec<Model>,
    /// Operations of the disk after which a state was acknowledged (durable).
    acked: Vec<(usize, usize)>,
    /// Operations of the disk after which the commit that leads to a state was begun.
    begun: Vec<(usize, usize)>,
    /// Operations after which the index was there.
    pub created: usize,
}

impl History {
    fn new(workload: &Workload) -> Self {
        let models = vec![Model::new(workload.dim, workload.metric)];
        Self { models, acked: Vec::new(), begun: Vec::new(), created: 0 }
    }

    pub fn last(&self) -> &Model {
        self.models.last().unwrap()
    }

    fn begin(&mut self, disk: &SimDisk, model: Model) {
        self.begun.push((disk.recorded_len(), self.models.len()));
        self.models.push(model);
    }

    fn ack(&mut self, disk: &SimDisk) {
        self.acked.push((disk.recorded_len(), self.models.len() - 1));
    }

    /// The states that may be found after so many operations: not before the last that was
    /// acknowledged, and not past the last that was begun.
    pub fn window(&self, ops: usize) -> RangeInclusive<usize> {
        let last = |marks: &[(usize, usize)], reached: &dyn Fn(usize) -> bool| {
            marks.iter().rev().find(|(at, _)| reached(*at)).map_or(0, |(_, n)| *n)
        };
        let least = last(&self.acked, &|at| at <= ops);
        least..=last(&self.begun, &|at| at < ops).max(least)
    }

    /// The states that may be found now.
    pub fn now(&self) -> RangeInclusive<usize> {
        self.acked.last().map_or(0, |(_, n)| *n)..=self.models.len() - 1
    }

    /// Of the states of a window, the one that an index is in, compared to the last bit.
    pub fn find(
        &self,
        index: &Index,
        window: RangeInclusive<usize>,
        seed: u64,
    ) -> Result<usize, String> {
        let ids = index.ids();
        let mut why = None;
        for n in window.clone().rev() {
            if self.models[n].ids() == ids {
                match self.models[n].differs(index, seed) {
                    Ok(()) => return Ok(n),
                    Err(e) => why = why.or(Some(format!("in state {n}: {e}"))),
                }
            }
        }
        Err(why.unwrap_or_else(|| {
            let wanted = self.models[*window.start()].ids();
            format!("rows {ids:?} are none of the states {window:?}; the first has {wanted:?}")
        }))
    }
}

/// More indexes than the engine keeps open at a time, on a disk of their own.
const OTHERS: usize = 17;

/// Writes to other indexes.
fn use_others() -> Result<(), Error> {
    static ALL: Mutex<Vec<Index>> = Mutex::new(Vec::new());
    let mut all = ALL.lock().unwrap_or_else(|e| e.into_inner());
    while all.len() < OTHERS {
        let options = Index::options(1).threads(1).maintenance(Maintenance::Manual);
        all.push(options.disk(Arc::new(SimDisk::new())).create(HOME)?);
    }
    all.iter().try_for_each(|index| index.insert(&[0.0]).map(drop))
}

/// A workload under way on a disk.
#[derive(Debug)]
pub struct Run<'w> {
    pub workload: &'w Workload,
    pub disk: SimDisk,
    pub index: Option<Index>,
    pub history: History,
}

impl<'w> Run<'w> {
    /// Creates the index on an empty disk and records from then on.
    pub fn begin(workload: &'w Workload, disk: SimDisk) -> Result<Self, Error> {
        disk.record();
        let mut history = History::new(workload);
        let index = workload.options(&disk).create(HOME)?;
        history.created = disk.recorded_len();
        Ok(Self { workload, disk, index: Some(index), history })
    }

    /// All of it, to the closing.
    pub fn whole(workload: &'w Workload) -> Result<Self, String> {
        let mut run = Self::begin(workload, SimDisk::new()).map_err(|e| e.to_string())?;
        for (i, step) in workload.steps.iter().enumerate() {
            let done = run.step(*step).map_err(|e| e.to_string());
            done.and_then(|found| found).map_err(|e| format!("step {i}, {step:?}: {e}"))?;
        }
        let now = run.history.models.len() - 1;
        run.history.find(run.index.as_ref().unwrap(), now..=now, 1)?;
        run.index.take().unwrap().close().map_err(|e| e.to_string())?;
        run.history.ack(&run.disk);
        Ok(run)
    }

    /// Takes a step. The outer error is the engine's, the inner one a broken promise.
    pub fn step(&mut self, step: Step) -> Result<Result<(), String>, Error> {
        let mut model = self.history.last().clone();
        let Some(index) = &self.index else { return Ok(Err("there is no index".into())) };
        let mut kept = Ok(());
        match step {
            Step::Insert(n) => {
                let mut rng = Rng::new(model.next as u64 + 31 * n as u64);
                let rows = data::vectors(&mut rng, n, model.dim, model.metric);
                let ids = model.insert(&rows);
                self.history.begin(&self.disk, model);
                let found = if n == 1 {
                    index.insert(&rows).map(|id| id..id + 1)?
                } else {
                    index.insert_many(&rows)?
                };
                if found != ids {
                    kept = Err(format!("rows got ids {found:?}, should be {ids:?}"));
                }
            }
            Step::Remove(every) => {
                let ids: Vec<usize> = model.ids().into_iter().step_by(every).collect();
                model.remove(&ids);
                self.history.begin(&self.disk, model);
                let found = index.remove_many(&ids)?;
                if found != ids.len() {
                    kept = Err(format!("{found} rows removed, should be {}", ids.len()));
                }
            }
            Step::Flush => index.flush()?,
            Step::Train => index.train()?,
            Step::Compact => drop(index.compact()?),
            Step::Reopen => {
                if let Some(index) = self.index.take() {
                    index.close()?;
                }
                self.index = Some(self.workload.reopening(&self.disk).open(HOME)?);
            }
            Step::Kill => return self.kill(),
            Step::Rest => use_others()?,
        }
        if !self.workload.relaxed || !matches!(step, Step::Insert(_) | Step::Remove(_) | Step::Rest)
        {
            self.history.ack(&self.disk);
        }
        Ok(kept)
    }

    /// The process dies, another opens the index: it is in one of the states that it may be in.
    fn kill(&mut self) -> Result<Result<(), String>, Error> {
        self.disk.cut_at(0);
        self.index = None;
        self.disk.heal();
        self.disk.unlock_all();
        let index = self.workload.reopening(&self.disk).open(HOME)?;
        let found = self.history.find(&index, self.history.now(), 9);
        self.index = Some(index);
        Ok(found.map(|n| {
            self.history.begin(&self.disk, self.history.models[n].clone());
            self.history.ack(&self.disk);
        }))
    }
}
