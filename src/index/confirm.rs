//! An effort measured by itself: as much is added to it, or taken off, as the recall takes.

use super::Inner;
use super::search::Effort;
use super::snapshot::{Indexed, Snapshot};
use super::tune::{Probe, within};
use super::walk::trace;
use crate::error::Result;
use cellardb_format::Setting;
use rayon::prelude::*;
use std::collections::HashSet;

/// Queries that had no part in choosing the effort: the cheapest of many is one that its own judges
/// were lucky with.
pub(super) struct Judges<'a> {
    pub(super) inner: &'a Inner,
    pub(super) snapshot: &'a Snapshot,
    pub(super) indexed: &'a Indexed,
    pub(super) queries: &'a [Probe],
}

/// The first step, of the bound: 2 % more of it is a tenth more codes. Each later one is longer.
const STEP: f32 = 0.004;
const LONGER: f32 = 1.5;
/// A bound that is as far out as this is none.
const FARTHEST: f32 = 4.0;

impl Judges<'_> {
    /// The least effort, of those that differ from this in cells and bound, that reaches the recall.
    /// Where none does more rows are compared, in the end all: codes may tell nothing.
    pub(super) fn confirm(&self, recall: f32, effort: Effort) -> Result<Setting> {
        let (mut effort, mut step) = (effort, STEP);
        let mut reached = None;
        let mut grown = false;
        loop {
            let setting = self.measure(recall, effort)?;
            let enough = setting.measured >= recall || self.is_all(effort);
            match (enough, reached) {
                (true, _) if grown => return Ok(setting),
                (false, Some(reached)) => return Ok(reached),
                (true, _) => {
                    reached = Some(setting);
                    let probes = effort.probes as f32 * (1.0 - 3.0 * step);
                    let less = Effort {
                        probes: (probes as usize).max(1),
                        stop: effort.stop * (1.0 - step),
                        ..effort
                    };
                    if less == effort || step > 0.3 {
                        return Ok(setting);
                    }
                    effort = less;
                }
                (false, None) => {
                    effort = self.more(effort, step);
                    grown = true;
                }
            }
            step *= LONGER;
        }
    }

    fn more(&self, effort: Effort, step: f32) -> Effort {
        let cells = self.indexed.model.router.cells();
        if effort.probes >= cells || effort.stop > FARTHEST {
            let bounded = effort.stop + effort.slack > 0.0;
            let rerank = effort.rerank.saturating_mul(if bounded { 1 } else { 2 });
            return Effort { probes: cells, rerank, stop: 0.0, slack: 0.0, ..effort };
        }
        let probes = (effort.probes as f32 * (1.0 + 3.0 * step)) as usize + 1;
        Effort { probes: probes.min(cells), stop: effort.stop * (1.0 + step), ..effort }
    }

    /// Whether there is no greater effort.
    fn is_all(&self, effort: Effort) -> bool {
        let model = &self.indexed.model;
        let live = usize::try_from(self.snapshot.state.live).unwrap_or(usize::MAX);
        let rows = live.saturating_mul(model.copies());
        let unbounded = effort.stop + effort.slack == 0.0;
        let all_rows = model.pq.is_none() || effort.rerank >= rows;
        effort.probes >= model.router.cells() && unbounded && all_rows
    }

    /// What an effort reaches, and what it takes. Routing looks at fewer cells for fewer probes, so that
    /// the first cells of a wide survey are better than those of a query.
    fn measure(&self, recall: f32, effort: Effort) -> Result<Setting> {
        let Judges { inner, snapshot, indexed, queries } = *self;
        inner.progress("measuring recall", 0, 0);
        let one = |query: &Probe| -> Result<(usize, u32)> {
            inner.go_on()?;
            // The query is a row itself, and takes the place of its copies.
            let rerank = effort.rerank + indexed.model.copies();
            let searched = inner.prepare(&query.vector)?;
            let trace = trace(snapshot, indexed, &searched, Effort { rerank, ..effort })?;
            let most = within(effort.slack, query.last + inner.apart(indexed));
            let compared = trace.near.iter().filter(|near| near.distance < most);
            let met: HashSet<u64> = compared.map(|near| near.id).collect();
            let found = query.truth.iter().filter(|id| met.contains(id)).count();
            Ok((found, trace.codes.last().copied().unwrap_or(0)))
        };
        let found: Vec<(usize, u32)> = queries.par_iter().map(one).collect::<Result<_>>()?;
        let wanted: usize = queries.iter().map(|query| query.truth.len()).sum();
        let met: usize = found.iter().map(|(found, _)| found).sum();
        let codes: f64 = found.iter().map(|(_, codes)| f64::from(*codes)).sum();
        let small = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Ok(Setting {
            recall,
            probes: small(effort.probes),
            rerank: small(effort.rerank),
            stop: effort.stop,
            slack: effort.slack,
            measured: met as f32 / wanted.max(1) as f32,
            codes: (codes / queries.len().max(1) as f64) as f32,
        })
    }
}
