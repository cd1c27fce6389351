//! An effort measured by itself, by what searches find with it: as much is added to it, or taken off, as the
//! recall takes.

use super::Inner;
use super::measure::{Judge, K, MANY};
use super::plan::{Effort, Most, Prices, Work, farther};
use super::snapshot::{Indexed, Snapshot};
use super::topk::Ranked;
use crate::error::Result;
use cellardb_format::Setting;
use rayon::prelude::*;

/// Queries that had no part in choosing the effort: the cheapest of many is one that those who chose it
/// were lucky with.
pub(super) struct Validation<'a> {
    pub(super) inner: &'a Inner,
    pub(super) snapshot: &'a Snapshot,
    pub(super) indexed: &'a Indexed,
    pub(super) judges: &'a [Judge],
    pub(super) prices: Prices,
}

/// The first step, of the bound: 2 % more of it is a tenth more codes. Each later one is longer.
const STEP: f32 = 0.004;
const LONGER: f32 = 1.5;
const LONGEST: f32 = 0.5;
/// Standard errors that a recall is measured beyond what was asked for.
const DOUBT: f32 = 0.5;
/// So many rows that came after the training tell what they take by themselves.
const RECENT: usize = 50;

impl Validation<'_> {
    /// The least effort, of those around this one, that reaches the recall and goes as far as `least`.
    /// Where none does that is worth its price, every row is compared.
    pub(super) fn confirm(
        &self,
        recall: f32,
        effort: Effort,
        least: Option<Effort>,
    ) -> Result<Setting> {
        let least = least.unwrap_or(LEAST);
        let first = self.measure(recall, effort.union(&least))?;
        let found = match first.reached {
            true => self.less(first, least)?,
            false => self.more(first)?,
        };
        Ok(if found.exact { found } else { Setting { wide: self.wide(&found)?, ..found } })
    }

    /// How much wider a search for fifty neighbours has to go than their number says.
    fn wide(&self, setting: &Setting) -> Result<f32> {
        let judges: Vec<&Judge> = self.judges.iter().filter(|j| j.last_of_many.is_some()).collect();
        let (cells, mut wide) = (self.indexed.model.router.cells(), 0.0);
        loop {
            self.inner.go_on()?;
            let effort = Effort::of(setting).for_neighbours(MANY, wide);
            let one = |judge: &&Judge| -> Result<usize> {
                let query = self.inner.prepare(&judge.vector)?.without(&judge.hidden);
                let found = self.inner.probe(self.snapshot, &query, (MANY, 1), effort)?;
                let Some((top, _)) = found else { return Ok(MANY) };
                let near = |row: &Ranked| judge.last_of_many.is_some_and(|last| row.key <= last);
                Ok(top.into_sorted().iter().filter(|row| near(row)).count().min(MANY))
            };
            let found: Vec<usize> = judges.par_iter().map(one).collect::<Result<_>>()?;
            let recall = found.iter().sum::<usize>() as f32 / (MANY * judges.len()).max(1) as f32;
            let all = effort.probes >= cells && effort.stop + effort.slack == 0.0;
            if judges.is_empty() || recall >= setting.recall || all {
                return Ok(wide);
            }
            wide = (wide * 1.5).max(0.05);
        }
    }

    /// Takes off as long as the recall is reached.
    fn less(&self, mut reached: Trial, least: Effort) -> Result<Setting> {
        let mut step = STEP;
        while step <= LONGEST && self.pays(&reached.setting) {
            let effort = Effort::of(&reached.setting);
            let probes = (effort.probes as f32 * (1.0 - 3.0 * step)).max(1.0) as usize;
            let less = Effort { probes, stop: effort.stop * (1.0 - step), ..effort }.union(&least);
            if less == effort {
                break;
            }
            let trial = self.measure(reached.setting.recall, less)?;
            if !trial.reached {
                break;
            }
            (reached, step) = (trial, step * LONGER);
        }
        Ok(self.or_exact(reached.setting))
    }

    /// Adds until the recall is reached: to the cells or to the rows that are compared, whichever
    /// brings more for its price. Both grow before there is nothing left of one of them, and nothing grows
    /// beyond the price of an exact search.
    fn more(&self, mut at: Trial) -> Result<Setting> {
        let mut step = STEP;
        while !at.reached {
            let Setting { recall, measured, .. } = at.setting;
            if !self.pays(&at.setting) {
                break;
            }
            step = (step * LONGER).min(LONGEST);
            let effort = Effort::of(&at.setting);
            let (scan, rank) = (self.wider(effort, step), self.deeper(effort, step));
            let tried = [scan, rank].into_iter().filter(|tried| *tried != effort);
            let tried: Vec<Trial> =
                tried.map(|tried| self.measure(recall, tried)).collect::<Result<_>>()?;
            let gain = |trial: &Trial| {
                let dearer = (self.price(&trial.setting) - self.price(&at.setting)).max(1.0);
                (trial.setting.measured - measured) / dearer
            };
            let best = tried.iter().max_by(|a, b| gain(a).total_cmp(&gain(b)));
            at = match best.copied() {
                Some(best) if best.setting.measured > measured => best,
                // Neither brings anything by itself.
                Some(_) => self.measure(recall, scan.union(&rank))?,
                None => return Ok(self.exact(at.setting)),
            };
        }
        Ok(self.or_exact(at.setting))
    }

    /// More cells.
    fn wider(&self, effort: Effort, step: f32) -> Effort {
        let cells = self.indexed.model.router.cells();
        let probes = (effort.probes as f32 * (1.0 + 3.0 * step)) as usize + 1;
        Effort { probes: probes.min(cells), stop: farther(effort.stop, step), ..effort }
    }

    /// More rows to compare.
    fn deeper(&self, effort: Effort, step: f32) -> Effort {
        if self.indexed.model.pq.is_none() {
            return effort;
        }
        let live = usize::try_from(self.snapshot.state.live).unwrap_or(usize::MAX);
        let all = live.saturating_mul(self.indexed.model.copies());
        let rerank = (effort.rerank as f32 * (1.0 + 3.0 * step)) as usize + 1;
        Effort { rerank: rerank.min(all), slack: farther(effort.slack, step), ..effort }
    }

    fn price(&self, setting: &Setting) -> f32 {
        self.prices.of(setting.probes as usize, Work::of(setting))
    }

    fn pays(&self, setting: &Setting) -> bool {
        self.prices.pays(self.price(setting), self.snapshot.state.live)
    }

    fn or_exact(&self, setting: Setting) -> Setting {
        if self.pays(&setting) { setting } else { self.exact(setting) }
    }

    /// The setting that compares with every row.
    fn exact(&self, at: Setting) -> Setting {
        Setting { exact: true, measured: 1.0, codes: self.snapshot.state.live as f32, ..at }
    }

    /// What searches with an effort find, and what they take: each is one like any other, but that a row
    /// which is asked for finds neither itself nor its copies.
    fn measure(&self, recall: f32, effort: Effort) -> Result<Trial> {
        let Validation { inner, snapshot, judges, .. } = *self;
        inner.progress("measuring recall", 0, 0);
        let one = |judge: &Judge| -> Result<(usize, Work)> {
            inner.go_on()?;
            let query = inner.prepare(&judge.vector)?.without(&judge.hidden);
            let found = inner.probe(snapshot, &query, (K, 1), effort)?;
            // Without an answer the search goes on to every row.
            let Some((top, answer)) = found else {
                let all = Work { codes: snapshot.state.live as f32, ..Work::default() };
                return Ok((judge.wanted(), all));
            };
            // Rows as near as the last of the true neighbours are as good.
            let near = |row: &Ranked| row.key <= judge.last;
            let found = top.into_sorted().iter().filter(|row| near(row)).count();
            let (codes, cells, rows) = (answer.codes, answer.cells, answer.reranked);
            let work = Work { codes: codes as f32, cells: cells as f32, rows: rows as f32 };
            Ok((found.min(judge.wanted()), work))
        };
        let each: Vec<(usize, Work)> = judges.par_iter().map(one).collect::<Result<_>>()?;
        let (all, recent) = (Recall::of(judges, &each, |_| true), |judge: &Judge| judge.recent);
        let recent = Recall::of(judges, &each, recent);
        let least =
            if recent.judges >= RECENT && recent.sure() < all.sure() { recent } else { all };
        let mean = |of: fn(&Work) -> f32| -> f32 {
            let sum: f64 = each.iter().map(|(_, work)| f64::from(of(work))).sum();
            (sum / judges.len().max(1) as f64) as f32
        };
        let small = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let setting = Setting {
            recall,
            exact: false,
            probes: small(effort.probes),
            rerank: small(effort.rerank),
            stop: effort.stop,
            slack: effort.slack,
            measured: least.mean,
            codes: mean(|work| work.codes),
            cells: mean(|work| work.cells),
            rows: mean(|work| work.rows),
            wide: 0.0,
        };
        Ok(Trial { setting, reached: least.sure() >= recall })
    }
}

/// An effort that was measured.
#[derive(Clone, Copy)]
struct Trial {
    setting: Setting,
    reached: bool,
}

/// What some judges found.
#[derive(Clone, Copy)]
struct Recall {
    judges: usize,
    mean: f32,
    /// The standard error of that.
    error: f32,
}

impl Recall {
    fn of(judges: &[Judge], found: &[(usize, Work)], which: impl Fn(&Judge) -> bool) -> Recall {
        let some = judges.iter().zip(found).filter(|(judge, _)| which(judge));
        let shares: Vec<f64> =
            some.map(|(judge, (found, _))| *found as f64 / judge.wanted().max(1) as f64).collect();
        let n = shares.len().max(1) as f64;
        let mean = shares.iter().sum::<f64>() / n;
        let spread = shares.iter().map(|share| (share - mean) * (share - mean)).sum::<f64>() / n;
        Recall { judges: shares.len(), mean: mean as f32, error: (spread / n).sqrt() as f32 }
    }

    /// What is reached more likely than not by others too: the judges are few.
    fn sure(&self) -> f32 {
        self.mean - DOUBT * self.error
    }
}

/// The least bounds: both end a search as soon as they may.
const LEAST: Effort = Effort {
    probes: 1,
    rerank: 1,
    stop: f32::MIN_POSITIVE,
    slack: f32::MIN_POSITIVE,
    most: Most::ANY,
};
