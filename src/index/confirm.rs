//! An effort measured by itself, by what searches find with it: as much is added to it, or taken off, as the
//! recall takes.

use super::Inner;
use super::measure::{Judge, K, MANY};
use super::plan::{Effort, Most, Prices, Work, farther};
use super::snapshot::{Indexed, Snapshot};
use super::topk::Ranked;
use crate::error::Result;
use cellardb_format::{Many, Setting};
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
/// So many rows that came after the training, or from elsewhere, tell what they take by themselves.
const RECENT: usize = 50;

impl Validation<'_> {
    /// The least effort, of those around this one, that reaches the recall and goes as far as each of
    /// `least`. Where none does that is worth its price, every row is compared.
    pub(super) fn confirm(
        &self,
        recall: f32,
        effort: Effort,
        least: &[&Setting],
    ) -> Result<Setting> {
        if let Some(exact) = least.iter().find(|setting| setting.exact) {
            return Ok(Setting { recall, ..**exact });
        }
        let efforts = least.iter().map(|setting| Effort::of(setting));
        let far = efforts.fold(LEAST, |far, effort| far.union(&effort));
        let first = self.measure(recall, effort.union(&far))?;
        let mut found = match first.reached {
            true => self.less(first, far)?,
            false => self.more(first)?,
        };
        for at in 0..MANY.len() {
            if found.exact {
                break;
            }
            let wide = least.iter().map(|setting| setting.many[at].wide).fold(0.0, f32::max);
            found.many[at] = self.many(&found, at, wide)?;
        }
        Ok(found)
    }

    /// What a search for many neighbours takes, which goes wider by `wide` at least.
    fn many(&self, setting: &Setting, at: usize, mut wide: f32) -> Result<Many> {
        let (k, price) = (MANY[at], self.price(setting).max(1.0));
        let judges: Vec<&Judge> = self.judges.iter().filter(|j| j.many[at].is_some()).collect();
        let cells = self.indexed.model.router.cells();
        if judges.is_empty() {
            // As much more as fewer neighbours take.
            let before = if at == 0 { Many::default() } else { setting.many[at - 1] };
            let ratio = k as f32 / if at == 0 { K } else { MANY[at - 1] } as f32;
            return Ok(Many { wide: wide.max(before.wide), dear: before.dear.max(1.0) * ratio });
        }
        loop {
            self.inner.go_on()?;
            let effort = Effort::of(setting).for_neighbours(k, wide);
            let one = |judge: &&Judge| -> Result<(usize, Work)> {
                let query = self.inner.prepare(&judge.vector)?.without(&judge.hidden);
                let found = self.inner.probe(self.snapshot, &query, (k, 1), effort)?;
                let Some((top, answer)) = found else { return Ok((k, self.all())) };
                let near = |row: &Ranked| judge.many[at].is_some_and(|last| row.key <= last);
                let found = top.into_sorted().iter().filter(|row| near(row)).count();
                Ok((found.min(k), Work::done(&answer)))
            };
            let each: Vec<(usize, Work)> = judges.par_iter().map(one).collect::<Result<_>>()?;
            let found: usize = each.iter().map(|(found, _)| found).sum();
            let recall = found as f32 / (k * judges.len()) as f32;
            let takes =
                self.prices.of(effort.probes, Work::mean(each.iter().map(|(_, work)| work)));
            let all = effort.probes >= cells && effort.stop + effort.slack == 0.0;
            let all = all && effort.rerank as u64 >= self.snapshot.state.live;
            let pays = self.prices.pays(takes, self.snapshot.state.live);
            if recall >= setting.recall || all || !pays {
                return Ok(Many { wide, dear: takes / price });
            }
            wide = (wide * 1.5).max(0.05);
        }
    }

    /// The work of comparing with every row.
    fn all(&self) -> Work {
        Work { codes: self.snapshot.state.live as f32, ..Work::default() }
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
            // Rows in cells that are far from all of them lie beyond any bound, if in few cells.
            let open = Effort { stop: 0.0, ..scan };
            let tried = [Some(scan), Some(rank), (open != scan).then_some(open)];
            let tried = tried.into_iter().flatten().filter(|tried| *tried != effort);
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
            let Some((top, answer)) = found else { return Ok((judge.wanted(), self.all())) };
            // Rows as near as the last of the true neighbours are as good.
            let near = |row: &Ranked| row.key <= judge.last;
            let found = top.into_sorted().iter().filter(|row| near(row)).count();
            Ok((found.min(judge.wanted()), Work::done(&answer)))
        };
        let each: Vec<(usize, Work)> = judges.par_iter().map(one).collect::<Result<_>>()?;
        let groups = [|judge: &Judge| judge.recent, |judge: &Judge| judge.elsewhere];
        let groups = groups.map(|group| Recall::of(judges, &each, group));
        let mut least = Recall::of(judges, &each, |_| true);
        for group in groups.into_iter().filter(|group| group.judges >= RECENT) {
            least = if group.sure() < least.sure() { group } else { least };
        }
        let work = Work::mean(each.iter().map(|(_, work)| work));
        let small = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let setting = Setting {
            recall,
            exact: false,
            probes: small(effort.probes),
            rerank: small(effort.rerank),
            stop: effort.stop,
            slack: effort.slack,
            measured: least.mean,
            codes: work.codes,
            cells: work.cells,
            rows: work.rows,
            many: [Many::default(); MANY.len()],
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
