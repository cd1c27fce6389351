//! An effort measured by itself, by what searches find with it: as much is added to it, or taken off, as the
//! recall takes.

use super::Inner;
use super::measure::{Judge, K};
use super::plan::{Effort, Most, Prices, Work};
use super::snapshot::{Indexed, Snapshot};
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
/// A bound that is as far out as this bounds nothing.
const FARTHEST: f32 = 4.0;

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
        if first.measured >= recall { self.less(first, least) } else { self.more(first) }
    }

    /// Takes off as long as the recall is reached.
    fn less(&self, mut reached: Setting, least: Effort) -> Result<Setting> {
        let mut step = STEP;
        while step <= LONGEST && self.pays(&reached) {
            let effort = Effort::of(&reached);
            let probes = (effort.probes as f32 * (1.0 - 3.0 * step)).max(1.0) as usize;
            let less = Effort { probes, stop: effort.stop * (1.0 - step), ..effort }.union(&least);
            if less == effort {
                break;
            }
            let setting = self.measure(reached.recall, less)?;
            if setting.measured < reached.recall {
                break;
            }
            (reached, step) = (setting, step * LONGER);
        }
        Ok(if self.pays(&reached) { reached } else { self.exact(reached) })
    }

    /// Adds until the recall is reached: to the cells or to the rows that are compared, whichever
    /// brings more for its price. Both grow before there is nothing left of one of them, and nothing grows
    /// beyond the price of an exact search.
    fn more(&self, mut at: Setting) -> Result<Setting> {
        let mut step = STEP;
        while at.measured < at.recall {
            if !self.pays(&at) {
                return Ok(self.exact(at));
            }
            step = (step * LONGER).min(LONGEST);
            let effort = Effort::of(&at);
            let (scan, rank) = (self.wider(effort, step), self.deeper(effort, step));
            let tried = [scan, rank].into_iter().filter(|tried| *tried != effort);
            let tried: Vec<Setting> =
                tried.map(|tried| self.measure(at.recall, tried)).collect::<Result<_>>()?;
            let gain = |setting: &Setting| {
                let dearer = (self.price(setting) - self.price(&at)).max(1.0);
                (setting.measured - at.measured) / dearer
            };
            let best = tried.iter().max_by(|a, b| gain(a).total_cmp(&gain(b)));
            at = match best.copied() {
                Some(best) if best.measured > at.measured => best,
                // Neither brings anything by itself.
                Some(_) => self.measure(at.recall, scan.union(&rank))?,
                None => return Ok(self.exact(at)),
            };
        }
        Ok(if self.pays(&at) { at } else { self.exact(at) })
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

    /// The setting that compares with every row.
    fn exact(&self, at: Setting) -> Setting {
        Setting { exact: true, measured: 1.0, codes: self.snapshot.state.live as f32, ..at }
    }

    /// What searches with an effort find, and what they take: each is one like any other, but that a row
    /// which is asked for finds neither itself nor its copies.
    fn measure(&self, recall: f32, effort: Effort) -> Result<Setting> {
        let Validation { inner, snapshot, judges, .. } = *self;
        inner.progress("measuring recall", 0, 0);
        let one = |judge: &Judge| -> Result<(usize, Work)> {
            inner.go_on()?;
            let query = inner.prepare(&judge.vector)?.without(&judge.hidden);
            let found = inner.probe(snapshot, &query, (K, 1), effort)?;
            // Without an answer the search goes on to every row.
            let Some((top, answer)) = found else { return Ok((judge.wanted(), Work::default())) };
            // Rows as near as the last of the true neighbours are as good.
            let near = |row: &super::topk::Ranked| row.key <= judge.last;
            let found = top.into_sorted().iter().filter(|row| near(row)).count();
            let (codes, cells, rows) = (answer.codes, answer.cells, answer.reranked);
            let work = Work { codes: codes as f32, cells: cells as f32, rows: rows as f32 };
            Ok((found.min(judge.wanted()), work))
        };
        let each: Vec<(usize, Work)> = judges.par_iter().map(one).collect::<Result<_>>()?;
        let wanted: usize = judges.iter().map(Judge::wanted).sum();
        let found: usize = each.iter().map(|(found, _)| found).sum();
        let mean = |of: fn(&Work) -> f32| -> f32 {
            let sum: f64 = each.iter().map(|(_, work)| f64::from(of(work))).sum();
            (sum / judges.len().max(1) as f64) as f32
        };
        let small = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Ok(Setting {
            recall,
            exact: false,
            probes: small(effort.probes),
            rerank: small(effort.rerank),
            stop: effort.stop,
            slack: effort.slack,
            measured: (found as f64 / wanted.max(1) as f64) as f32,
            codes: mean(|work| work.codes),
            cells: mean(|work| work.cells),
            rows: mean(|work| work.rows),
        })
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

/// A bound that is farther out by a step; none in the end.
fn farther(bound: f32, step: f32) -> f32 {
    let next = bound * (1.0 + step);
    if next > FARTHEST { 0.0 } else { next }
}
