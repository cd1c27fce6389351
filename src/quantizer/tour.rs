//! The order in which a query visits the cells, found only as far as it goes: most queries are done
//! long before the few that need the most cells.
//!
//! Each batch brings as many cells again as all before it, from as many parents and candidates as
//! that takes. Within a batch the nearest come first.

use crate::kernel::{Hit, Isa};
use crate::quantizer::router::{Level, Probe, Router, keep_least, pack, unpack};
use crate::quantizer::rows::{Bytes, round_query};
use crate::quantizer::table::Table;

/// Cells of the first batch.
const FIRST: usize = 32;
/// Parents are looked at up to this many times the squared distance of the last candidate so far.
const FARTHEST: f32 = 1.2;
/// Cells asked for ahead of the one being compared.
const AHEAD: usize = 4;
/// Parents whose cells will be compared so much later have their page looked up.
const LATER: usize = 4;

/// How far a query has come. Its buffers serve one query after another.
#[derive(Debug, Default)]
pub(crate) struct Tour {
    /// Cells to visit in all, and to the end of the present batch.
    probes: usize,
    target: usize,
    given: usize,
    /// Nearest first, and how many of them had their cells compared.
    parents: Vec<u64>,
    compared: usize,
    /// Cells by the sketch that are no candidates yet, none of them beyond the limit.
    pub(super) keys: Vec<u64>,
    limit: f32,
    /// Candidates, and by their centroids those that were not given yet.
    refined: Vec<Probe>,
    pool: Vec<u64>,
    batch: Vec<Probe>,
    bytes: Vec<u8>,
    hits: Vec<Hit>,
    table: Table,
}

impl Router {
    /// Begins to find `probes` cells; all of them, in one batch and exactly, from `cells()` on.
    pub(crate) fn begin(&self, isa: Isa, query: &[f32], probes: usize, tour: &mut Tour) {
        assert_eq!(query.len(), self.dim);
        (tour.probes, tour.target, tour.given) = (probes.min(self.cells()), 0, 0);
        tour.refined.clear();
        tour.pool.clear();
        if tour.probes < self.cells() {
            self.rank_parents(isa, query, &self.ranks, self.parents_for(probes), tour);
        }
    }

    /// The cells to visit next; empty when there are no more.
    pub(crate) fn more<'a>(&self, isa: Isa, query: &[f32], tour: &'a mut Tour) -> &'a [Probe] {
        tour.batch.clear();
        while tour.batch.is_empty() && tour.target < tour.probes {
            tour.target = (2 * tour.target).clamp(FIRST, tour.probes.max(FIRST)).min(tour.probes);
            let candidates = if tour.probes == self.cells() {
                tour.target = tour.probes;
                tour.keys.clear();
                tour.keys.extend(0..self.cells() as u64);
                tour.probes
            } else {
                let most = self.ranks.candidates(tour.probes) - tour.refined.len();
                let parents = self.parents_for(tour.target);
                self.compare_cells(isa, query, &self.ranks, (parents, most), tour);
                self.ranks.candidates(tour.target)
            };
            self.refine(isa, query, candidates, tour);
            self.give(tour);
        }
        &tour.batch
    }

    /// Compares the best cells by the sketch with the query itself, up to so many in all.
    fn refine(&self, isa: Isa, query: &[f32], candidates: usize, tour: &mut Tour) {
        let Tour { keys, refined, pool, .. } = tour;
        let count = candidates.saturating_sub(refined.len()).min(keys.len());
        if (1..keys.len()).contains(&count) {
            keys.select_nth_unstable(count - 1);
        }
        let mut cells = keys[..count].iter().map(|key| *key as u32);
        let mut ahead = cells.clone();
        ahead.by_ref().take(AHEAD).for_each(|cell| self.prefetch(isa, cell));
        pool.extend(cells.by_ref().map(|cell| {
            ahead.next().into_iter().for_each(|cell| self.prefetch(isa, cell));
            let probe = Probe { cell, dot: self.dot(isa, cell, query), norm: self.norm(cell) };
            refined.push(probe);
            let key = self.norm_weight * probe.norm - 2.0 * probe.dot;
            pack(key, refined.len() as u32 - 1)
        }));
        keys.drain(..count);
    }

    /// Fills the batch from the pool.
    fn give(&self, tour: &mut Tour) {
        let Tour { pool, refined, batch, .. } = tour;
        let count = (tour.target - tour.given).min(pool.len());
        if (1..pool.len()).contains(&count) {
            pool.select_nth_unstable(count - 1);
        }
        pool[..count].sort_unstable();
        batch.extend(pool.drain(..count).map(|packed| refined[packed as u32 as usize]));
        tour.given += count;
    }

    /// Leaves the best cells by the sketch, of the best parents, in the keys of the tour.
    pub(super) fn candidates(
        &self,
        isa: Isa,
        query: &[f32],
        level: &Level,
        (parents, wanted): (usize, usize),
        tour: &mut Tour,
    ) {
        self.rank_parents(isa, query, level, parents, tour);
        self.compare_cells(isa, query, level, (parents, wanted), tour);
        keep_least(&mut tour.keys, wanted);
    }

    /// Finds the nearest parents and makes the table of the sketch.
    fn rank_parents(&self, isa: Isa, query: &[f32], level: &Level, count: usize, tour: &mut Tour) {
        let Tour { bytes, hits, parents, .. } = tour;
        bytes.resize(level.parents.width(), 0);
        let scale = round_query(query, bytes);
        hits.clear();
        level.parents.keys(isa, 0, Bytes { bytes, scale }, f32::INFINITY, hits);
        parents.clear();
        parents.extend(hits.iter().map(|hit| pack(hit.estimate, hit.slot)));
        keep_least(parents, count);
        parents.sort_unstable();
        level.sketch.build(&mut tour.table, query);
        (tour.compared, tour.limit) = (0, f32::INFINITY);
        tour.keys.clear();
    }

    /// Compares the cells of further parents, up to so many, by the sketch; the `wanted` best of them
    /// and of those before are kept, and some more.
    fn compare_cells(
        &self,
        isa: Isa,
        query: &[f32],
        level: &Level,
        (until, wanted): (usize, usize),
        tour: &mut Tour,
    ) {
        let Tour { hits, parents, table, keys, limit, .. } = tour;
        let own = isa.dot(query, query);
        let near = &parents[..until.min(parents.len())];
        let list_at = |at: usize| near.get(at).map(|packed| *packed as u32 as usize);
        while let Some(list) = list_at(tour.compared) {
            let (at, base) = (tour.compared, unpack(near[tour.compared]));
            // Hardly any cell is nearer than its parent when those that were found are.
            if self.norm_weight == 1.0 && base + own > FARTHEST * (*limit + own) {
                tour.compared = parents.len();
                break;
            }
            hits.clear();
            let lists = (list, list_at(at + 1), list_at(at + LATER));
            level.sketch.scan(isa, lists, table, (base, *limit), hits);
            let first = self.first_cell(list as u32);
            keys.extend(hits.iter().map(|hit| pack(hit.estimate, first + hit.slot)));
            if keys.len() > 2 * wanted + 64 {
                keep_least(keys, wanted);
                *limit = keys.last().map_or(*limit, |key| unpack(*key));
            }
            tour.compared += 1;
        }
    }

    /// Parents whose cells are ranked for so many probes.
    fn parents_for(&self, probes: usize) -> usize {
        (6.0 * (probes as f32).sqrt()).max(16.0) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::{FIRST, Tour};
    use crate::kernel::Isa;
    use crate::quantizer::pq::tests::random;
    use crate::quantizer::router::{Router, tests::lists};
    use std::collections::HashSet;

    #[test]
    fn batches_double_and_bring_each_cell_once_nearest_first() {
        let router = Router::new(64, 1.0, lists(64, &[40; 16])).unwrap();
        let (query, mut tour) = (random(3, 64), Tour::default());
        // The buffers of one query serve the next.
        for probes in [0, 1, FIRST, FIRST + 1, 200, 639] {
            router.begin(Isa::detect(), &query, probes, &mut tour);
            let (mut seen, mut sizes) = (HashSet::new(), Vec::new());
            loop {
                let batch = router.more(Isa::detect(), &query, &mut tour);
                if batch.is_empty() {
                    break;
                }
                let keys: Vec<f32> = batch.iter().map(|cell| cell.norm - 2.0 * cell.dot).collect();
                assert!(keys.is_sorted(), "{probes}");
                assert!(batch.iter().all(|cell| seen.insert(cell.cell)), "{probes}");
                sizes.push(batch.len());
            }
            assert_eq!(seen.len(), probes);
            let before = |at: usize| sizes[..at].iter().sum::<usize>();
            let doubled = |at: usize| sizes[at] == before(at).max(FIRST);
            assert!((0..sizes.len().saturating_sub(1)).all(doubled), "{probes}: {sizes:?}");
        }
    }

    #[test]
    fn what_is_not_asked_for_is_not_compared() {
        let router = Router::new(64, 1.0, lists(64, &[40; 16])).unwrap();
        let (query, mut tour) = (random(4, 64), Tour::default());
        router.begin(Isa::detect(), &query, 400, &mut tour);
        router.more(Isa::detect(), &query, &mut tour);
        assert_eq!(tour.refined.len(), router.ranks.candidates(FIRST));
        assert!(tour.refined.len() < router.ranks.candidates(400));
    }
}
