//! The exact nearest rows of some queries, in one pass over the rows: those that an exact search finds, to
//! the id.

use super::distance::Query;
use super::topk::{Ranked, TopK};
use crate::kernel::Isa;
use crate::options::Metric;
use crate::quantizer::rounded::{Rounded, Sieve};
use rayon::prelude::*;

/// Queries of a part: their rounded numbers stay in cache.
const PART: usize = 128;
/// Rows between two looks at how near a row has to be.
const PIECE: usize = 256;
/// Of two vectors whose squared distance is this share of their squared lengths one is a copy of the other.
const COPY: f64 = 1e-12;
/// What single precision may be off by in what the sieve is told.
const ROUNDING: f32 = 1e-5;

/// Queries and the nearest rows so far.
pub(super) struct Truth<'a> {
    isa: Isa,
    metric: Metric,
    dim: usize,
    parts: Vec<Part<'a>>,
}

/// Some queries, and what they were shifted to: rounded numbers tell more of differences.
struct Part<'a> {
    queries: &'a [Asker<'a>],
    sieve: Sieve,
    nearest: Vec<Nearest>,
}

/// A query that the truth is sought for.
pub(super) struct Asker<'a> {
    pub(super) query: Query<'a>,
    /// What is held against rows less the center of the model: under L2 the query less the center too, else
    /// the query.
    pub(super) shifted: Vec<f32>,
    /// Twice the inner product of the query with the center.
    pub(super) along: f32,
    /// Whether it is a row itself: then it is not found, and neither are its copies.
    pub(super) row: bool,
}

/// What was found for one query.
#[derive(Clone)]
pub(super) struct Nearest {
    pub(super) top: TopK,
    /// The row itself and its copies.
    pub(super) copies: Vec<u64>,
}

/// Rows of a batch.
pub(super) struct Batch<'a> {
    pub(super) ids: &'a [u64],
    /// As inserted, with the factors that normalise them.
    pub(super) rows: &'a [f32],
    pub(super) scales: &'a [f32],
    /// As searched, less the center.
    pub(super) shifted: &'a [f32],
}

impl<'a> Truth<'a> {
    /// Queries of which the `k` nearest are sought.
    pub(super) fn new(
        isa: Isa,
        metric: Metric,
        dim: usize,
        queries: &'a [Asker<'a>],
        k: usize,
    ) -> Self {
        let part = |queries: &'a [Asker<'a>]| {
            let shifted: Vec<f32> = queries.iter().flat_map(|q| &q.shifted).copied().collect();
            let nearest = Nearest { top: TopK::new(k), copies: Vec::new() };
            Part {
                queries,
                sieve: Sieve::new(isa, &shifted, dim),
                nearest: vec![nearest; queries.len()],
            }
        };
        Truth { isa, metric, dim, parts: queries.chunks(PART).map(part).collect() }
    }

    /// Takes rows in.
    pub(super) fn add(&mut self, batch: &Batch<'_>) {
        let Truth { isa, metric, dim, .. } = *self;
        let pieces: Vec<(Rounded, Vec<f32>)> = batch
            .shifted
            .par_chunks(PIECE * dim)
            .map(|rows| {
                let squares = rows.chunks_exact(dim).map(|row| isa.dot(row, row)).collect();
                (Rounded::new(rows, dim), squares)
            })
            .collect();
        let weight = if metric == Metric::L2 { 1.0 } else { 0.0 };
        self.parts.par_iter_mut().for_each(|Part { queries, sieve, nearest }| {
            for (number, (rounded, squares)) in pieces.iter().enumerate() {
                let limits: Vec<f32> = std::iter::zip(*queries, &*nearest)
                    .map(|(asker, nearest)| asker.limit(isa, nearest.top.limit(), squares))
                    .collect();
                sieve.pass(isa, (rounded, squares), (weight, &limits), |query, row| {
                    let at = number * PIECE + row;
                    let vector = &batch.rows[at * dim..][..dim];
                    let (asker, nearest) = (&queries[query], &mut nearest[query]);
                    let key = asker.query.key(vector, batch.scales[at]);
                    if asker.row && asker.query.is_copy(key, vector) {
                        nearest.copies.push(batch.ids[at]);
                    } else {
                        nearest.top.push(Ranked { key, id: batch.ids[at] });
                    }
                });
            }
        });
    }

    /// The nearest rows of each query.
    pub(super) fn nearest(self) -> Vec<Nearest> {
        self.parts.into_iter().flat_map(|part| part.nearest).collect()
    }
}

impl Asker<'_> {
    /// What a key is to the sieve, which ranks by `|v|^2 - 2 <q, v>`, or by the product alone; a little more, for what is rounded on the way.
    fn limit(&self, isa: Isa, key: f64, squares: &[f32]) -> f32 {
        let own = isa.dot(&self.shifted, &self.shifted);
        let most = squares.iter().fold(0.0_f32, |most, square| most.max(*square));
        let limit = match self.query.metric {
            Metric::L2 => key - f64::from(own),
            Metric::Cosine => 2.0 * key - 2.0 + f64::from(self.along),
            Metric::InnerProduct => 2.0 * key + f64::from(self.along),
        };
        limit as f32 + ROUNDING * (own + most + self.along.abs())
    }
}

impl Query<'_> {
    /// Whether a row with this key is the vector of the query once more.
    fn is_copy(&self, key: f64, row: &[f32]) -> bool {
        match self.metric {
            Metric::Cosine => key <= COPY,
            // What tells nothing of the distance is looked at again.
            Metric::InnerProduct => {
                let own = self.isa.dot(&self.vector, &self.vector);
                let near = key <= f64::from(own) * -0.99;
                near && f64::from(self.isa.l2(&self.vector, row)) <= COPY * f64::from(own)
            }
            Metric::L2 => key <= COPY * f64::from(self.isa.dot(&self.vector, &self.vector)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantizer::pq::tests::random;
    use std::borrow::Cow;

    /// The nearest rows by the truth and by comparing with each: (found, expected, copies).
    fn both(
        metric: Metric,
        dim: usize,
        (queries, rows): (&[f32], &[f32]),
        (center, row): (f32, bool),
    ) -> Vec<(Vec<Ranked>, Vec<Ranked>, Vec<u64>)> {
        let isa = Isa::detect();
        let unit = |v: &[f32]| super::super::distance::dot(v, v).sqrt().recip() as f32;
        let scale = |v: &[f32]| if metric == Metric::Cosine { unit(v) } else { 1.0 };
        let less = |v: &[f32]| -> Vec<f32> { v.iter().map(|x| x * scale(v) - center).collect() };
        let asker = |vector| {
            let searched: Vec<f32> = less(vector).iter().map(|x| x + center).collect();
            let along = searched.iter().sum::<f32>() * 2.0 * center;
            let query = Query::new(vector, Cow::Owned(searched), metric, isa);
            let shifted = if metric == Metric::L2 { less(vector) } else { query.vector.to_vec() };
            Asker { query, shifted, along, row }
        };
        let askers: Vec<Asker<'_>> = queries.chunks(dim).map(asker).collect();
        let ids: Vec<u64> = (0..(rows.len() / dim) as u64).map(|at| 5 * at + 1).collect();
        let scales: Vec<f32> = rows.chunks(dim).map(scale).collect();
        let shifted: Vec<f32> = rows.chunks(dim).flat_map(less).collect();
        let mut truth = Truth::new(isa, metric, dim, &askers, 10);
        for from in (0..ids.len()).step_by(1_234) {
            let to = ids.len().min(from + 1_234);
            truth.add(&Batch {
                ids: &ids[from..to],
                rows: &rows[from * dim..to * dim],
                scales: &scales[from..to],
                shifted: &shifted[from * dim..to * dim],
            });
        }
        let exact = |asker: &Asker<'_>| -> Vec<Ranked> {
            let rows = rows.chunks(dim).zip(&ids).zip(&scales);
            let keys = rows.map(|((v, id), s)| Ranked { key: asker.query.key(v, *s), id: *id });
            let mut all: Vec<Ranked> = keys.collect();
            all.sort();
            all.truncate(40);
            all
        };
        let found = truth.nearest().into_iter().zip(&askers);
        found.map(|(found, asker)| (found.top.into_sorted(), exact(asker), found.copies)).collect()
    }

    #[test]
    fn the_nearest_are_those_of_an_exact_search() {
        for metric in [Metric::L2, Metric::InnerProduct, Metric::Cosine] {
            for (dim, shift, center, size) in [
                (24, 0.0, 0.0, 1.0),
                (50, 0.1, 0.05, 1e-6),
                (7, 30.0, 29.5, 1.0),
                (1, 0.0, 0.0, 1e6),
            ] {
                let moved = |seed, n| -> Vec<f32> {
                    random(seed, n * dim).into_iter().map(|x| (x + shift) * size).collect()
                };
                let (queries, rows) = (moved(1, 150), moved(2, 3_001));
                let center = if metric == Metric::Cosine { center / 40.0 } else { center * size };
                for (found, exact, _) in both(metric, dim, (&queries, &rows), (center, false)) {
                    assert_eq!(found, exact[..10], "{metric:?} {dim}");
                }
            }
        }
    }

    #[test]
    fn near_copies_far_from_the_origin_are_told_apart() {
        let dim = 48;
        let places = random(7, 30 * dim);
        let near = |seed, n: usize| -> Vec<f32> {
            let noise = random(seed, n * dim);
            (0..n * dim).map(|at| 5.0 + places[at % places.len()] + 1e-4 * noise[at]).collect()
        };
        let (queries, rows) = (near(1, 60), near(2, 3_000));
        for metric in [Metric::L2, Metric::Cosine] {
            for (found, exact, _) in both(metric, dim, (&queries, &rows), (0.0, false)) {
                assert_eq!(found, exact[..10], "{metric:?}");
            }
        }
    }

    #[test]
    fn a_row_does_not_find_itself_nor_its_copies() {
        for metric in [Metric::L2, Metric::InnerProduct, Metric::Cosine] {
            let mut rows = random(3, 500 * 16);
            rows.extend_from_within(..100 * 16);
            rows.extend_from_within(..50 * 16);
            let queries = rows[..60 * 16].to_vec();
            let unit = |v: &[f32]| super::super::distance::dot(v, v).sqrt().recip() as f32;
            // Of inner products with longer rows a copy need not be near.
            let unit_rows = rows.chunks(16).flat_map(|v| v.iter().map(|x| x * unit(v)));
            let (queries, rows) = match metric {
                Metric::InnerProduct => {
                    let rows: Vec<f32> = unit_rows.collect();
                    (rows[..60 * 16].to_vec(), rows)
                }
                _ => (queries, rows),
            };
            let found = both(metric, 16, (&queries, &rows), (0.0, true));
            for (at, (found, exact, mut copies)) in (0_u64..).zip(found) {
                let mut expected = vec![5 * at + 1, 5 * (500 + at) + 1];
                expected.extend((at < 50).then_some(5 * (600 + at) + 1));
                copies.sort_unstable();
                assert_eq!(copies, expected, "{metric:?}");
                let others: Vec<Ranked> =
                    exact.into_iter().filter(|row| !expected.contains(&row.id)).take(10).collect();
                assert_eq!(found, others, "{metric:?}");
            }
        }
    }
}
