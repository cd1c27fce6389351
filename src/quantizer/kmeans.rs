//! k-means (Lloyd 1982) by products of rounded numbers, kept roughly balanced: seats without rows, and
//! those with very few, go to where the rows are.

use crate::kernel::Isa;
use crate::quantizer::assign::write_mean;
use crate::quantizer::rounded::{Rounded, Seats};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use std::collections::BinaryHeap;

/// Rows that are compared with all centroids by one thread at a time.
const PART: usize = 1024;
/// Distances computed to choose the first centroids, about.
const SEEDING: usize = 1 << 22;
/// Rows, for each centroid, that the first ones are chosen from, at most.
const SEEDS: usize = 4;
/// A cluster of more than this many times the mean is split if a seat can be had.
const LARGE: usize = 3;
/// Rounds of the two-means that splits a cluster.
const SPLIT_ROUNDS: usize = 4;

/// The nearest centroid of each row.
pub(crate) fn nearest(data: &[f32], dim: usize, centroids: &[f32]) -> Vec<u32> {
    let isa = Isa::detect();
    let seats = Seats::new(centroids, dim);
    let parts = data.par_chunks(PART * dim);
    parts.flat_map_iter(|rows| seats.nearest(isa, &Rounded::new(rows, dim))).collect()
}

/// What to train.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Training<'a> {
    /// Centroids; fewer come back when there are fewer distinct rows.
    pub(crate) k: usize,
    /// Rounds of Lloyd's algorithm.
    pub(crate) iterations: usize,
    /// For rows that have unit length when this is added, centroids that have it too (spherical
    /// k-means, Dhillon and Modha 2001). Ranked by their distance, wide cells come earlier than by
    /// their means, as they should: some of their rows are nearer to the query than most.
    pub(crate) sphere: Option<&'a [f32]>,
    pub(crate) seed: u64,
}

/// Trains centroids, k x dim, on the rows of `data`, n x dim. Rows with numbers that are not finite
/// count for nothing.
pub(crate) fn train(data: &[f32], dim: usize, how: Training<'_>) -> Vec<f32> {
    let Training { k, iterations, sphere, seed } = how;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut centroids = choose_first(data, dim, k, &mut rng);
    if centroids.is_empty() {
        return centroids;
    }
    let parts: Vec<Rounded> = data.par_chunks(PART * dim).map(|d| Rounded::new(d, dim)).collect();
    let finite: Vec<bool> =
        data.chunks_exact(dim).map(|row| Isa::detect().dot(row, row).is_finite()).collect();
    let rows = Rows { data, dim, parts: &parts, finite: &finite };
    for _ in 0..iterations.max(1) {
        let mut clusters = Clusters::assign(rows, sphere, &centroids);
        clusters.means(&mut centroids);
        clusters.reseat(&mut centroids, &mut rng);
    }
    let clusters = Clusters::assign(rows, sphere, &centroids);
    let kept = centroids.chunks_exact(dim).zip(&clusters.rows).filter(|(_, rows)| !rows.is_empty());
    kept.flat_map(|(centroid, _)| centroid.iter().copied()).collect()
}

/// Finite rows of a sample, far ones more likely (k-means++, Arthur and Vassilvitskii 2007). Fewer
/// than `k` if there are fewer distinct ones in the sample.
fn choose_first(data: &[f32], dim: usize, k: usize, rng: &mut ChaCha8Rng) -> Vec<f32> {
    let isa = Isa::detect();
    let sample = sample(data, dim, (SEEDING / k.max(1)).clamp(k, SEEDS * k), rng);
    let mut far = vec![f32::INFINITY; sample.len()];
    let mut centroids = Vec::new();
    while centroids.len() < k * dim && !sample.is_empty() {
        let Some(chosen) = pick(&far, rng) else { break };
        let chosen = sample[chosen];
        centroids.extend_from_slice(chosen);
        far.par_iter_mut().zip(&sample).with_min_len(1024).for_each(|(far, row)| {
            *far = far.min(isa.l2(row, chosen));
        });
    }
    centroids
}

/// At most `n` finite rows at random.
fn sample<'a>(data: &'a [f32], dim: usize, n: usize, rng: &mut ChaCha8Rng) -> Vec<&'a [f32]> {
    let mut rows: Vec<u32> = (0..(data.len() / dim) as u32).collect();
    let mut sample = Vec::new();
    for at in 0..rows.len() {
        if sample.len() == n {
            break;
        }
        let other = rng.random_range(at..rows.len());
        rows.swap(at, other);
        let row = &data[rows[at] as usize * dim..][..dim];
        if row.iter().all(|value| value.is_finite()) {
            sample.push(row);
        }
    }
    sample
}

/// An index with probability proportional to its weight; any while all weights are infinite, and
/// none when all are zero.
pub(super) fn pick(weights: &[f32], rng: &mut ChaCha8Rng) -> Option<usize> {
    let weight = |at: usize| if weights[at].is_finite() { f64::from(weights[at]) } else { 1.0 };
    let total: f64 = (0..weights.len()).map(weight).sum();
    let mut left = rng.random_range(0.0..1.0) * total;
    (0..weights.len()).find(|at| {
        left -= weight(*at);
        left < 0.0
    })
}

/// Rows to train on: as they are, rounded, and which of them have finite lengths.
#[derive(Clone, Copy)]
struct Rows<'a> {
    data: &'a [f32],
    dim: usize,
    parts: &'a [Rounded],
    finite: &'a [bool],
}

/// The rows of each centroid.
struct Clusters<'a> {
    data: &'a [f32],
    dim: usize,
    sphere: Option<&'a [f32]>,
    rows: Vec<Vec<u32>>,
}

impl<'a> Clusters<'a> {
    fn assign(all: Rows<'a>, sphere: Option<&'a [f32]>, centroids: &[f32]) -> Clusters<'a> {
        let Rows { data, dim, parts, finite } = all;
        let isa = Isa::detect();
        let seats = Seats::new(centroids, dim);
        let found: Vec<Vec<u32>> = parts.par_iter().map(|rows| seats.nearest(isa, rows)).collect();
        let mut rows = vec![Vec::new(); centroids.len() / dim];
        for ((row, centroid), finite) in (0..).zip(found.iter().flatten()).zip(finite) {
            if *finite {
                rows[*centroid as usize].push(row);
            }
        }
        Clusters { data, dim, sphere, rows }
    }

    fn row(&self, row: u32) -> &'a [f32] {
        &self.data[row as usize * self.dim..][..self.dim]
    }

    /// Moves each centroid that has rows to their mean.
    fn means(&self, centroids: &mut [f32]) {
        let clusters = centroids.par_chunks_exact_mut(self.dim).zip(&self.rows);
        clusters.filter(|(_, rows)| !rows.is_empty()).for_each_init(Vec::new, |sums, pair| {
            let (centroid, rows) = pair;
            self.mean(rows, sums, centroid);
        });
    }

    fn mean(&self, rows: &[u32], sums: &mut Vec<f32>, centroid: &mut [f32]) {
        sums.clear();
        sums.resize(self.dim, 0.0);
        for row in rows {
            sums.iter_mut().zip(self.row(*row)).for_each(|(sum, value)| *sum += value);
        }
        write_mean(sums, rows.len(), self.sphere, centroid);
    }

    /// Gives the seats that have no rows to the largest clusters, then those of the smallest
    /// clusters to the ones that are too large.
    fn reseat(&mut self, centroids: &mut [f32], rng: &mut ChaCha8Rng) {
        let k = self.rows.len();
        let mean = self.rows.iter().map(Vec::len).sum::<usize>().div_ceil(k);
        let mut seats: Vec<usize> = (0..k).collect();
        seats.sort_by_key(|at| self.rows[*at].len());
        let mut seats = seats.into_iter().peekable();
        let mut large: BinaryHeap<(usize, usize)> =
            self.rows.iter().map(Vec::len).zip(0..k).collect();
        while let (Some(seat), Some((rows, at))) = (seats.peek().copied(), large.pop()) {
            let given = self.rows[seat].len();
            if rows < 2 || given > 0 && (rows <= LARGE * mean || rows <= 4 * given) {
                break;
            }
            if let Some(halves) = self.split(at, rng) {
                seats.next();
                let mut sums = Vec::new();
                for (at, rows) in [at, seat].into_iter().zip(halves) {
                    self.mean(&rows, &mut sums, &mut centroids[at * self.dim..][..self.dim]);
                    large.push((rows.len(), at));
                    self.rows[at] = rows;
                }
            }
        }
    }

    /// Splits the rows of a cluster by two-means; `None` if they are all alike.
    fn split(&self, at: usize, rng: &mut ChaCha8Rng) -> Option<[Vec<u32>; 2]> {
        let isa = Isa::detect();
        let rows = &self.rows[at];
        let first = self.row(rows[rng.random_range(0..rows.len())]);
        let far = |row: &&u32| isa.l2(first, self.row(**row));
        let second = rows.iter().max_by(|a, b| far(a).total_cmp(&far(b)))?;
        let mut centers = [first.to_vec(), self.row(*second).to_vec()];
        let mut sums = Vec::new();
        let mut halves = [Vec::new(), Vec::new()];
        for _ in 0..SPLIT_ROUNDS {
            halves.iter_mut().for_each(Vec::clear);
            for row in rows {
                let [a, b] = [0, 1].map(|side| isa.l2(&centers[side], self.row(*row)));
                halves[usize::from(b < a)].push(*row);
            }
            if halves.iter().any(Vec::is_empty) {
                return None;
            }
            for (center, half) in centers.iter_mut().zip(&halves) {
                self.mean(half, &mut sums, center);
            }
        }
        Some(halves)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::Training;
    use crate::kernel::Isa;
    use crate::quantizer::pq::tests::random;
    use std::collections::BTreeSet;

    /// Centroids that are means.
    pub(crate) fn train(
        data: &[f32],
        dim: usize,
        k: usize,
        iterations: usize,
        seed: u64,
    ) -> Vec<f32> {
        super::train(data, dim, Training { k, iterations, sphere: None, seed })
    }

    /// The nearest centroid of each row, and the squared distance to it, compared one by one.
    pub(crate) fn nearest(rows: &[f32], dim: usize, centroids: &[f32]) -> Vec<(u32, f32)> {
        let isa = Isa::detect();
        let of_row = |row: &[f32]| {
            let distances = centroids.chunks(dim).map(|c| isa.l2(row, c));
            (0..).zip(distances).min_by(|a, b| a.1.total_cmp(&b.1)).unwrap()
        };
        rows.chunks(dim).map(of_row).collect()
    }

    /// `blobs` centers, and rows near them.
    fn blobs(blobs: usize, rows: usize, dim: usize) -> (Vec<f32>, Vec<f32>) {
        let centers: Vec<f32> = random(1, blobs * dim).iter().map(|value| value * 20.0).collect();
        let noise = random(2, rows * dim);
        let row = |at: usize| &centers[at % blobs * dim..][..dim];
        let rows = noise.chunks_exact(dim).enumerate().flat_map(|(at, noise)| {
            row(at).iter().zip(noise).map(|(c, n)| c + 0.1 * n).collect::<Vec<_>>()
        });
        let rows = rows.collect();
        (centers, rows)
    }

    #[test]
    fn separated_blobs_are_found() {
        let (centers, rows) = blobs(12, 1_200, 5);
        let centroids = train(&rows, 5, 12, 12, 7);
        assert_eq!(centroids.len(), centers.len());
        assert!(nearest(&centers, 5, &centroids).iter().all(|(_, distance)| *distance < 0.1));
    }

    #[test]
    fn nearest_is_nearly_the_first_of_the_nearest() {
        let (rows, mut centroids) = (random(1, 3_000 * 7), random(2, 40 * 7));
        centroids.extend_from_within(..7);
        let found = super::nearest(&rows, 7, &centroids);
        let exact = nearest(&rows, 7, &centroids);
        assert!(found.iter().all(|centroid| *centroid < 40));
        let same = found.iter().zip(&exact).filter(|(found, exact)| **found == exact.0).count();
        assert!(same > 2_900, "{same} of 3000");
    }

    #[test]
    fn unit_centroids_have_unit_length() {
        let (_, mut rows) = blobs(12, 600, 5);
        for row in rows.chunks_mut(5) {
            let length = row.iter().map(|value| value * value).sum::<f32>().sqrt();
            row.iter_mut().for_each(|value| *value /= length);
        }
        // Wherever the sphere lies.
        for center in [[0.0; 5], [0.3, -0.2, 0.0, 0.9, 0.1]] {
            let moved: Vec<f32> = rows
                .chunks(5)
                .flat_map(|row| std::iter::zip(row, center).map(|(x, c)| x - c))
                .collect();
            let how = Training { k: 12, iterations: 6, sphere: Some(&center), seed: 7 };
            let centroids = super::train(&moved, 5, how);
            for centroid in centroids.chunks(5) {
                let norm: f32 =
                    std::iter::zip(centroid, center).map(|(x, c)| (x + c) * (x + c)).sum();
                assert!((norm - 1.0).abs() < 1e-5);
            }
            assert!(nearest(&moved, 5, &centroids).iter().all(|(_, distance)| *distance < 0.2));
        }
    }

    #[test]
    fn training_is_the_same_on_any_number_of_threads() {
        let rows = random(3, 4_000 * 9);
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| (train(&rows, 9, 50, 5, 1), super::nearest(&rows, 9, &rows[..9 * 80])))
        };
        assert_eq!(run(1), run(2));
        assert_ne!(run(1).0, train(&rows, 9, 50, 5, 2));
    }

    #[test]
    fn as_many_centroids_come_back_as_there_are_distinct_rows() {
        assert!(train(&[], 3, 5, 4, 1).is_empty());
        assert_eq!(train(&[1.0, 2.0], 2, 5, 4, 1), [1.0, 2.0]);
        assert_eq!(train(&[1.0, 2.0].repeat(100), 2, 5, 4, 1), [1.0, 2.0]);
        let three = [0.0, 0.0, 5.0, 5.0, 9.0, 9.0].repeat(50);
        let centroids = train(&three, 2, 8, 4, 1);
        let found: BTreeSet<_> = centroids.chunks(2).map(|c| c[0].round() as i32).collect();
        assert_eq!((centroids.len(), found), (6, BTreeSet::from([0, 5, 9])));
    }

    #[test]
    fn rows_that_are_not_finite_count_for_nothing() {
        let mut rows = random(1, 500 * 4);
        rows[400] = f32::NAN;
        rows[800] = f32::INFINITY;
        let centroids = train(&rows, 4, 20, 5, 1);
        assert_eq!(centroids.len(), 80);
        assert!(centroids.iter().all(|value| value.is_finite()));
        assert!(train(&[f32::NAN; 8], 4, 2, 3, 1).is_empty());
    }

    #[test]
    fn no_cluster_is_much_larger_than_the_mean() {
        // Half of the rows lie in one small blob.
        let mut rows = random(1, 8_000 * 6);
        rows[..4_000 * 6].iter_mut().for_each(|value| *value *= 0.01);
        let centroids = train(&rows, 6, 64, 8, 1);
        let mut counts = vec![0; 64];
        nearest(&rows, 6, &centroids).iter().for_each(|(at, _)| counts[*at as usize] += 1);
        assert!(counts.iter().all(|count| *count <= 4 * 8_000 / 64), "{counts:?}");
    }
}
