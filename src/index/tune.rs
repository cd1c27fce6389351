//! What a recall takes, measured: rows kept out of training are the queries, the exact answer is
//! the truth, and the cheapest probes and rerank depth that reach each recall are stored.

use super::Inner;
use super::build::Source;
use super::search::trace;
use super::snapshot::{Indexed, Snapshot};
use super::topk::{Near, TopK};
use super::writer::lock;
use crate::error::Result;
use crate::options::Metric;
use crate::quantizer::linalg::products;
use crate::storage::{Change, Table};
use cellardb_format::{Setting, Settings};
use rayon::prelude::*;
use std::collections::HashSet;
use std::sync::Arc;

/// The recalls that are measured.
const RECALLS: [f32; 3] = [0.90, 0.95, 0.99];
/// Neighbours that recall is measured on.
const K: usize = 10;
/// Rerank depths to choose from.
const DEPTHS: [usize; 9] = [20, 30, 40, 60, 80, 120, 160, 320, 640];
const DEEPEST: usize = DEPTHS[DEPTHS.len() - 1];
/// Queries of a product.
const TILE: usize = 64;
/// Distances that the truth may take, so that it costs seconds whatever the number of rows.
const DISTANCES: u64 = 800_000_000;

/// A query and its true neighbours.
struct Probe {
    id: u64,
    vector: Vec<f32>,
    truth: Vec<u64>,
}

/// A true neighbour that a scan met.
struct Met {
    /// The probe that its cell was.
    probe: u32,
    /// The probes of the candidates with better estimates, ascending.
    beaten_by: Vec<u32>,
}

/// The scans of all queries with some number of probes: enough to tell what any smaller number, with
/// any rerank depth, would have found.
struct Survey {
    probes: usize,
    met: Vec<Met>,
    wanted: usize,
    /// Mean number of codes by number of probes, less one.
    codes: Vec<f32>,
}

impl Survey {
    /// Recall by number of probes, less one, when `rerank` candidates are reranked.
    fn recall(&self, rerank: usize) -> Vec<f32> {
        let mut change = vec![0_i64; self.probes + 1];
        for met in &self.met {
            // Found from its own probe on, until too many better estimates have come.
            let until = met.beaten_by.get(rerank - 1).map_or(self.probes, |p| *p as usize);
            if until > met.probe as usize {
                change[met.probe as usize] += 1;
                change[until] -= 1;
            }
        }
        let mut found = 0;
        let share = |n: i64| {
            found += n;
            found as f32 / self.wanted.max(1) as f32
        };
        change.into_iter().take(self.probes).map(share).collect()
    }
}

impl Inner {
    /// Measures the recall settings again and stores them.
    pub(crate) fn measure(&self) -> Result<()> {
        let _upkeep = lock(&self.upkeep);
        let snapshot = self.snapshot();
        let Some(indexed) = &snapshot.indexed else { return Ok(()) };
        let settings = self.run(|| self.tune(&snapshot, indexed))?;
        let mut change = Change::default();
        let generation = u64::from(indexed.model.generation());
        change.put(Table::Settings, generation, Settings(settings.clone()).encode());
        let mut writer = self.writer();
        writer.ready()?;
        let mut next = writer.working.clone();
        // Nobody trained meanwhile: we hold the upkeep.
        if let Some(indexed) = &mut next.indexed {
            indexed.settings = Arc::new(settings);
        }
        writer.working = next;
        writer.commit(change)?;
        self.publish(writer.working.clone());
        Ok(())
    }

    /// Measures the recall settings of the model and the lists of a snapshot. Runs in our threads.
    pub(crate) fn tune(&self, trial: &Snapshot, indexed: &Indexed) -> Result<Vec<Setting>> {
        let queries = self.truths(trial)?;
        if queries.is_empty() {
            return Ok(Vec::new());
        }
        let cells = indexed.model.router.cells();
        let mut probes = (cells / 64).clamp(16, cells.max(16)).min(cells);
        loop {
            self.progress("measuring recall", probes as u64, cells as u64);
            let survey = self.survey(trial, indexed, &queries, probes)?;
            let most = survey.recall(DEEPEST).into_iter().fold(0.0, f32::max);
            // Some slack beyond the highest recall leaves a choice of rerank depths.
            if probes == cells || most >= RECALLS[RECALLS.len() - 1] + 0.004 {
                let settings = RECALLS.map(|r| self.cheapest(&survey, r, indexed));
                let confirm = |s| self.confirm(s, trial, indexed, &queries);
                return settings.into_iter().map(confirm).collect();
            }
            probes = (probes * 3).min(cells);
        }
    }

    /// Exact neighbours of the rows that were kept out of training, by products of matrices.
    fn truths(&self, snapshot: &Snapshot) -> Result<Vec<Probe>> {
        let most = (DISTANCES / snapshot.state.live.max(1)).clamp(200, 1000) as usize;
        let (mut queries, mut vectors) = (Vec::new(), Vec::new());
        for id in self.held_out(snapshot).into_iter().take(most) {
            if let Some(row) = snapshot.rows.get(id)? {
                let vector = row.vector().into_owned();
                let searched = self.prepare(&vector)?.vector;
                if self.in_bounds(&searched) {
                    vectors.extend_from_slice(&searched);
                    queries.push(Probe { id, vector: searched.into_owned(), truth: Vec::new() });
                }
            }
        }
        let weight = if self.metric == Metric::L2 { 1.0 } else { 0.0 };
        let mut tops: Vec<TopK> = queries.iter().map(|_| TopK::new(K + 1)).collect();
        let source = Source { inner: self, snapshot, held: HashSet::new() };
        source.each("measuring recall", |ids, rows| {
            let norm = |row: &[f32]| weight * self.isa.dot(row, row);
            let norms: Vec<f32> = rows.chunks_exact(self.dim).map(norm).collect();
            let tiles = vectors.par_chunks(TILE * self.dim).zip(tops.par_chunks_mut(TILE));
            tiles.for_each_init(Vec::new, |dots, (queries, tops)| {
                dots.resize(tops.len() * ids.len(), 0.0);
                products(queries, rows, self.dim, dots);
                for (top, dots) in tops.iter_mut().zip(dots.chunks_exact(ids.len().max(1))) {
                    for ((id, norm), dot) in ids.iter().zip(&norms).zip(dots) {
                        top.push(Near { distance: norm - 2.0 * dot, probe: 0, id: *id });
                    }
                }
            });
            Ok(())
        })?;
        for (query, top) in queries.iter_mut().zip(tops) {
            let ids = top.into_hits().into_iter().map(|(id, _)| id as u64);
            query.truth = ids.filter(|id| *id != query.id).take(K).collect();
        }
        Ok(queries)
    }

    fn survey(
        &self,
        snapshot: &Snapshot,
        indexed: &Indexed,
        queries: &[Probe],
        probes: usize,
    ) -> Result<Survey> {
        let one = |query: &Probe| -> Result<(Vec<Met>, Vec<u32>)> {
            self.go_on()?;
            let prepared = self.prepare(&query.vector)?;
            let mut trace = trace(snapshot, indexed, &prepared, probes, DEEPEST + 1)?;
            trace.near.retain(|near| near.id != query.id);
            let mut met = Vec::new();
            for (rank, near) in trace.near.iter().enumerate() {
                if query.truth.contains(&near.id) {
                    let better = trace.near.get(..rank).unwrap_or_default();
                    let mut beaten_by: Vec<u32> = better.iter().map(|near| near.probe).collect();
                    beaten_by.sort_unstable();
                    met.push(Met { probe: near.probe, beaten_by });
                }
            }
            Ok((met, trace.codes))
        };
        let found: Vec<(Vec<Met>, Vec<u32>)> =
            queries.par_iter().map(one).collect::<Result<_>>()?;
        let mut codes = vec![0.0; probes];
        for (sum, n) in found.iter().flat_map(|(_, c)| c.iter().enumerate()) {
            codes[sum] += *n as f32 / queries.len() as f32;
        }
        let wanted = queries.iter().map(|q| q.truth.len()).sum();
        let met = found.into_iter().flat_map(|(met, _)| met).collect();
        Ok(Survey { probes, met, wanted, codes })
    }

    /// Measures a setting by itself and probes more cells until it holds: routing looks at fewer cells
    /// for fewer probes, so that the first cells of a wide survey are better than those of a query.
    fn confirm(
        &self,
        mut setting: Setting,
        snapshot: &Snapshot,
        indexed: &Indexed,
        queries: &[Probe],
    ) -> Result<Setting> {
        let cells = indexed.model.router.cells();
        loop {
            let probes = setting.probes as usize;
            self.progress("measuring recall", probes as u64, cells as u64);
            let survey = self.survey(snapshot, indexed, queries, probes)?;
            let recall = survey.recall(setting.rerank as usize);
            setting.measured = recall.last().copied().unwrap_or_default();
            setting.codes = survey.codes.last().copied().unwrap_or_default();
            if setting.measured >= setting.recall || probes >= cells {
                return Ok(setting);
            }
            let more = (probes + probes / 16 + 1).min(cells);
            setting.probes = u32::try_from(more).unwrap_or(u32::MAX);
        }
    }

    /// The cheapest setting that reaches a recall; the best there is where none does.
    fn cheapest(&self, survey: &Survey, recall: f32, indexed: &Indexed) -> Setting {
        let flat = indexed.model.pq.is_none();
        // Nanoseconds: a code streams at some 16 GB/s, a row is a cache miss and then streams, a
        // cell is routed and begun.
        let code = indexed.model.layout.block_bytes() as f32 / 16.0 / 16.0;
        let row = if flat { 0.0 } else { 120.0 + 4.0 * self.dim as f32 / 10.0 };
        let small = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let mut best: Option<(f32, Setting)> = None;
        let mut highest = Setting { recall, probes: 1, rerank: 1, measured: -1.0, codes: 0.0 };
        for depth in DEPTHS {
            let rerank = small(if flat { K } else { depth });
            for ((measured, codes), probes) in
                survey.recall(depth).iter().zip(&survey.codes).zip(1..)
            {
                let setting =
                    Setting { recall, probes, rerank, measured: *measured, codes: *codes };
                if *measured > highest.measured {
                    highest = setting;
                }
                if *measured >= recall {
                    let price = codes * code + depth as f32 * row + probes as f32 * 60.0;
                    if best.as_ref().is_none_or(|(least, _)| price < *least) {
                        best = Some((price, setting));
                    }
                    break;
                }
            }
        }
        best.map_or(highest, |(_, setting)| setting)
    }
}
