//! What a recall takes, measured: rows kept out of training are the queries, the exact answer is
//! the truth, and the cheapest probes and rerank depth that reach each recall are stored.

use super::Inner;
use super::search::Candidates;
use super::snapshot::{Indexed, Snapshot};
use super::tail::Tail;
use crate::error::Result;
use cellardb_format::Setting;
use rayon::prelude::*;
use std::collections::BTreeMap;

/// The recalls that are measured.
const RECALLS: [f32; 3] = [0.90, 0.95, 0.99];
/// Neighbours that recall is measured on.
const K: usize = 10;
/// Candidates that are looked at, and so the deepest rerank.
const DEEPEST: usize = 640;
/// Queries that share a pass over the rows.
const TILE: usize = 32;
/// Distances that the truth may take, so that it costs seconds whatever the number of rows.
const DISTANCES: u64 = 800_000_000;

/// A query and its true neighbours.
struct Probe {
    id: u64,
    vector: Vec<f32>,
    truth: Vec<u64>,
}

/// What a number of probes gives: how many true neighbours lie among the first candidates.
#[derive(Debug, Clone)]
struct Reach {
    /// By rank among the candidates: true neighbours found up to there, as a share.
    recall: Vec<f32>,
    codes: f32,
}

impl Inner {
    /// Measures the recall settings of a model whose lists are filled. Runs in our threads.
    pub(crate) fn tune(&self, snapshot: &Snapshot, indexed: &Indexed) -> Result<Vec<Setting>> {
        let mut trial = snapshot.clone();
        trial.tail = Tail::new(indexed.lists.len());
        trial.indexed = Some(indexed.clone());
        trial.state.watermark = trial.state.next_id;
        let queries = self.truths(&trial)?;
        if queries.is_empty() {
            return Ok(Vec::new());
        }
        let cells = indexed.model.router.cells();
        let mut measured: BTreeMap<usize, Reach> = BTreeMap::new();
        let mut reach = |probes: usize| -> Result<Reach> {
            if let Some(known) = measured.get(&probes) {
                return Ok(known.clone());
            }
            self.go_on()?;
            let found = self.reach(&trial, indexed, &queries, probes)?;
            measured.insert(probes, found.clone());
            Ok(found)
        };
        let mut settings: Vec<Setting> = Vec::new();
        for (i, recall) in (0..).zip(RECALLS) {
            self.progress("measuring recall", i, RECALLS.len() as u64);
            let from = settings.last().map_or(1, |s| s.probes as usize);
            settings.push(self.cheapest(recall, from, cells, indexed, &mut reach)?);
        }
        self.progress("measuring recall", RECALLS.len() as u64, RECALLS.len() as u64);
        Ok(settings)
    }

    /// Exact neighbours of the rows that were kept out of training.
    fn truths(&self, snapshot: &Snapshot) -> Result<Vec<Probe>> {
        let most = (DISTANCES / snapshot.state.live.max(1)).clamp(200, 1000) as usize;
        let mut queries = Vec::new();
        for id in self.held_out(snapshot).into_iter().take(most) {
            if let Some(row) = snapshot.rows.get(id)? {
                queries.push(Probe { id, vector: row.vector().into_owned(), truth: Vec::new() });
            }
        }
        let tile = |tile: &mut [Probe]| -> Result<()> {
            self.go_on()?;
            let prepared: Result<Vec<_>> = tile.iter().map(|q| self.prepare(&q.vector)).collect();
            let answers = super::exact::answer(snapshot, &prepared?, K + 1)?;
            for (query, answer) in tile.iter_mut().zip(answers) {
                let others = answer.hits.iter().map(|(id, _)| *id as u64).filter(|id| *id != query.id);
                query.truth = others.take(K).collect();
            }
            Ok(())
        };
        queries.par_chunks_mut(TILE).map(tile).collect::<Result<()>>()?;
        Ok(queries)
    }

    fn reach(
        &self,
        snapshot: &Snapshot,
        indexed: &Indexed,
        queries: &[Probe],
        probes: usize,
    ) -> Result<Reach> {
        let one = |query: &Probe| -> Result<(Vec<u32>, usize, usize)> {
            let prepared = self.prepare(&query.vector)?;
            let Candidates { near, codes } =
                super::search::candidates(snapshot, indexed, &prepared, probes, DEEPEST + 1)?;
            let others = near.iter().filter(|near| near.id != query.id);
            let ranks = (0_u32..).zip(others);
            let found = ranks.filter(|(_, near)| query.truth.contains(&near.id)).map(|(r, _)| r);
            Ok((found.collect(), query.truth.len(), codes))
        };
        let all: Vec<(Vec<u32>, usize, usize)> =
            queries.par_iter().map(one).collect::<Result<_>>()?;
        let mut found = vec![0_usize; DEEPEST + 1];
        for rank in all.iter().flat_map(|(ranks, ..)| ranks) {
            if let Some(slot) = found.get_mut(*rank as usize + 1) {
                *slot += 1;
            }
        }
        let wanted: usize = all.iter().map(|(_, n, _)| n).sum();
        let mut sum = 0;
        let recall = found.iter().map(|n| {
            sum += n;
            sum as f32 / wanted.max(1) as f32
        });
        let recall = recall.collect();
        let codes = all.iter().map(|(.., codes)| *codes as f32).sum::<f32>() / queries.len() as f32;
        Ok(Reach { recall, codes })
    }

    /// The cheapest setting that reaches a recall; the best there is where none does.
    fn cheapest(
        &self,
        recall: f32,
        from: usize,
        cells: usize,
        indexed: &Indexed,
        reach: &mut impl FnMut(usize) -> Result<Reach>,
    ) -> Result<Setting> {
        let layout = &indexed.model.layout;
        let flat = indexed.model.pq.is_none();
        // Nanoseconds: a code streams at some 16 GB/s, a row is a cache miss and then streams, a
        // cell is routed and begun.
        let code = layout.block_bytes() as f32 / 16.0 / 16.0;
        let row = if flat { 0.0 } else { 120.0 + 4.0 * self.dim as f32 / 10.0 };
        let cost = |probes: usize, rerank: usize, codes: f32| {
            codes * code + rerank as f32 * row + probes as f32 * 60.0
        };
        let depths: &[usize] = if flat { &[DEEPEST] } else { &[20, 40, 60, 80, 120, 160, 240, 320, 640] };
        let mut best: Option<(f32, Setting)> = None;
        for &rerank in depths {
            let at = |reach: &Reach| reach.recall.get(rerank).copied().unwrap_or(0.0);
            let Some(probes) = fewest(from, cells, |p| Ok(at(&reach(p)?) >= recall))? else {
                continue;
            };
            let found = reach(probes)?;
            let price = cost(probes, rerank, found.codes);
            if best.as_ref().is_none_or(|(least, _)| price < *least) {
                let small = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
                let (probes, rerank) = (small(probes), small(if flat { K } else { rerank }));
                let (measured, codes) = (at(&found), found.codes);
                best = Some((price, Setting { recall, probes, rerank, measured, codes }));
            }
        }
        if let Some((_, setting)) = best {
            return Ok(setting);
        }
        let all = reach(cells)?;
        let small = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let measured = all.recall.last().copied().unwrap_or(0.0);
        let (probes, rerank) = (small(cells), small(DEEPEST));
        Ok(Setting { recall, probes, rerank, measured, codes: all.codes })
    }
}

/// The fewest probes, to about two percent, that are enough; `None` if all cells are not.
fn fewest(
    from: usize,
    cells: usize,
    mut enough: impl FnMut(usize) -> Result<bool>,
) -> Result<Option<usize>> {
    let (mut low, mut high) = (0, from.clamp(1, cells));
    while !enough(high)? {
        if high == cells {
            return Ok(None);
        }
        (low, high) = (high, (high * 2).min(cells));
    }
    while high - low > 1 + high / 50 {
        let middle = low + (high - low) / 2;
        if enough(middle)? {
            high = middle;
        } else {
            low = middle;
        }
    }
    Ok(Some(high))
}
