//! The exact nearest rows of some queries, in one pass over the rows.

use super::topk::{Near, TopK};
use crate::kernel::Isa;
use crate::quantizer::rounded::{Rounded, Sieve};
use rayon::prelude::*;

/// Queries of a part: their rounded numbers stay in cache.
const PART: usize = 128;
/// Rows between two looks at how near a row has to be.
const PIECE: usize = 256;

/// Queries and the nearest rows so far.
pub(super) struct Truth<'a> {
    isa: Isa,
    dim: usize,
    /// What squared lengths count for in the order of the rows.
    weight: f32,
    parts: Vec<Part<'a>>,
}

struct Part<'a> {
    queries: &'a [f32],
    sieve: Sieve,
    tops: Vec<TopK>,
}

impl<'a> Truth<'a> {
    pub(super) fn new(isa: Isa, queries: &'a [f32], dim: usize, (k, weight): (usize, f32)) -> Self {
        let part = |queries: &'a [f32]| Part {
            queries,
            sieve: Sieve::new(isa, queries, dim),
            tops: vec![TopK::new(k); queries.len() / dim],
        };
        Truth { isa, dim, weight, parts: queries.chunks(PART * dim).map(part).collect() }
    }

    /// Takes rows in, n x dim.
    pub(super) fn add(&mut self, ids: &[u64], rows: &[f32]) {
        let Truth { isa, dim, weight, .. } = *self;
        let pieces: Vec<(Rounded, Vec<f32>)> = rows
            .par_chunks(PIECE * dim)
            .map(|rows| {
                let squares = rows.chunks_exact(dim).map(|row| isa.dot(row, row)).collect();
                (Rounded::new(rows, dim), squares)
            })
            .collect();
        self.parts.par_iter_mut().for_each(|Part { queries, sieve, tops }| {
            let all = ids.chunks(PIECE).zip(rows.chunks(PIECE * dim)).zip(&pieces);
            for ((ids, rows), (rounded, squares)) in all {
                let limits: Vec<f32> = tops.iter().map(TopK::limit).collect();
                sieve.pass(isa, (rounded, squares), (weight, &limits), |query, row| {
                    let dot = isa.dot(&queries[query * dim..][..dim], &rows[row * dim..][..dim]);
                    let distance = weight * squares[row] - 2.0 * dot;
                    tops[query].push(Near { distance, probe: 0, id: ids[row] });
                });
            }
        });
    }

    /// The nearest rows of each query and their keys, nearest first.
    pub(super) fn nearest(self) -> impl Iterator<Item = Vec<(usize, f32)>> {
        self.parts.into_iter().flat_map(|part| part.tops).map(TopK::into_hits)
    }
}

#[cfg(test)]
mod tests {
    use super::Truth;
    use crate::kernel::Isa;
    use crate::quantizer::pq::tests::random;

    #[test]
    fn the_nearest_are_those_of_an_exact_search() {
        for (dim, weight, shift) in [(24, 1.0, 0.0), (50, 0.0, 0.0), (7, 1.0, 30.0)] {
            let shifted = |seed, n| random(seed, n * dim).into_iter().map(|x| x + shift).collect();
            let (queries, rows): (Vec<f32>, Vec<f32>) = (shifted(1, 150), shifted(2, 3_001));
            let ids: Vec<u64> = (0..3_001).map(|at| 5 * at + 1).collect();
            let isa = Isa::detect();
            let mut truth = Truth::new(isa, &queries, dim, (10, weight));
            for (ids, rows) in ids.chunks(1_234).zip(rows.chunks(1_234 * dim)) {
                truth.add(ids, rows);
            }
            for (query, found) in queries.chunks(dim).zip(truth.nearest()) {
                let key = |row: &[f32]| weight * isa.dot(row, row) - 2.0 * isa.dot(query, row);
                let mut exact: Vec<(f32, u64)> =
                    rows.chunks(dim).map(key).zip(ids.clone()).collect();
                exact.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
                let exact = exact.iter().take(10).map(|at| (at.1 as usize, at.0));
                assert!(exact.eq(found));
            }
        }
    }
}
