//! The nearest rows of queries by brute force in f64, and how many of them a search found. Nothing of
//! the engine is used: it is what is judged.

use cellardb::Metric;

/// What a distance in f32 may be off by, in units of what is added up: of the distance itself under L2, of
/// the two lengths' product under the others. Rows that are no further apart than this count as
/// equally near.
fn rounding(dim: usize) -> f64 {
    f64::from(f32::EPSILON) * (dim as f64).sqrt()
}

/// The rows that are there, each at the place of its id.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    pub dim: usize,
    pub metric: Metric,
    pub rows: &'a [f32],
    pub gone: &'a [bool],
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    sum(a, b, |x, y| x * y)
}

/// The sum of `of` each pair, in eight lanes.
fn sum(a: &[f32], b: &[f32], of: impl Fn(f64, f64) -> f64) -> f64 {
    let mut lanes = [0.0; 8];
    let (left, right) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest = left.remainder().iter().zip(right.remainder());
    let rest: f64 = rest.map(|(x, y)| of(f64::from(*x), f64::from(*y))).sum();
    for (x, y) in left.zip(right) {
        for lane in 0..8 {
            lanes[lane] += of(f64::from(x[lane]), f64::from(y[lane]));
        }
    }
    lanes.iter().sum::<f64>() + rest
}

impl Rows<'_> {
    fn row(&self, id: usize) -> &[f32] {
        &self.rows[id * self.dim..][..self.dim]
    }

    /// The distance, and how much of it may be rounding.
    fn distance(&self, query: &[f32], id: usize) -> (f64, f64) {
        let row = self.row(id);
        if self.metric == Metric::L2 {
            let squared = sum(query, row, |x, y| (x - y) * (x - y));
            return (squared, rounding(self.dim) * squared);
        }
        let lengths = (dot(query, query) * dot(row, row)).sqrt();
        let product = dot(query, row);
        if self.metric == Metric::Cosine {
            return (1.0 - product / lengths, rounding(self.dim));
        }
        (-product, rounding(self.dim) * lengths)
    }

    /// The distances of the `k` nearest rows of each query, nearest first; of all if there are fewer.
    pub fn nearest(&self, queries: &[f32], k: usize) -> Vec<Vec<f64>> {
        let queries: Vec<&[f32]> = queries.chunks_exact(self.dim).collect();
        let part = queries.len().div_ceil(2).max(1);
        let of = |queries: &[&[f32]]| -> Vec<Vec<f64>> {
            queries.iter().map(|query| self.nearest_of(query, k)).collect()
        };
        std::thread::scope(|scope| {
            let parts: Vec<_> =
                queries.chunks(part).map(|part| scope.spawn(move || of(part))).collect();
            parts.into_iter().flat_map(|part| part.join().unwrap()).collect()
        })
    }

    fn nearest_of(&self, query: &[f32], k: usize) -> Vec<f64> {
        let own = dot(query, query).sqrt();
        let distance = |row: &[f32]| match self.metric {
            Metric::L2 => sum(query, row, |x, y| (x - y) * (x - y)),
            Metric::InnerProduct => -dot(query, row),
            _ => 1.0 - dot(query, row) / (own * dot(row, row).sqrt()),
        };
        let mut nearest: Vec<f64> = Vec::with_capacity(k + 1);
        for (row, gone) in self.rows.chunks_exact(self.dim).zip(self.gone) {
            let distance = if *gone { continue } else { distance(row) };
            if nearest.len() == k && distance >= nearest[k - 1] {
                continue;
            }
            nearest.insert(nearest.partition_point(|near| *near <= distance), distance);
            nearest.truncate(k);
        }
        nearest
    }

    /// The share of its `k` true neighbours that each query found. A row as near as the last of them
    /// counts as one of them; a row that is not there, or is named twice, does not.
    pub fn found(
        &self,
        queries: &[f32],
        (nearest, k): (&[Vec<f64>], usize),
        hits: &[Vec<(usize, f32)>],
    ) -> Vec<f64> {
        let each = queries.chunks_exact(self.dim).zip(nearest).zip(hits);
        each.map(|((query, nearest), hits)| {
            let wanted = nearest.len().min(k);
            let Some(last) = wanted.checked_sub(1).map(|at| nearest[at]) else {
                return f64::from(u8::from(hits.is_empty()));
            };
            let mut ids: Vec<usize> = hits.iter().map(|hit| hit.0).take(wanted).collect();
            ids.sort_unstable();
            ids.dedup();
            ids.retain(|id| self.gone.get(*id) == Some(&false));
            let near = ids.iter().filter(|id| {
                let (distance, rounding) = self.distance(query, **id);
                distance <= last + rounding
            });
            near.count() as f64 / wanted as f64
        })
        .collect()
    }
}

/// The mean, and its standard error.
pub fn mean(values: &[f64]) -> (f64, f64) {
    let n = values.len().max(1) as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|v| (v - mean) * (v - mean)).sum();
    (mean, (squares / n / (n - 1.0).max(1.0)).sqrt())
}

#[cfg(test)]
mod tests {
    use super::{Rows, mean};
    use cellardb::Metric;

    #[test]
    fn a_neighbour_counts_once_and_only_if_it_is_there() {
        let rows: Vec<f32> = (0..20).map(|x| x as f32).collect();
        let mut gone = vec![false; 20];
        gone[3] = true;
        let all = Rows { dim: 1, metric: Metric::L2, rows: &rows, gone: &gone };
        let nearest = all.nearest(&[0.0], 6);
        let found = |ids: &[usize]| {
            all.found(&[0.0], (&nearest, 4), &[ids.iter().map(|id| (*id, 0.0)).collect()])[0]
        };
        assert_eq!(found(&[0, 1, 2, 4]), 1.0);
        assert_eq!(found(&[0, 1, 2, 3]), 0.75, "a removed row");
        assert_eq!(found(&[0, 0, 0, 0]), 0.25, "one row four times");
        assert_eq!(found(&[99, 7, 8, 4]), 0.25, "rows too far, and one that never was");
        assert_eq!(found(&[7, 8, 9, 10, 0, 1, 2, 4]), 0.0, "more rows than were asked for");
        assert_eq!(found(&[]), 0.0);
    }

    #[test]
    fn equally_near_rows_are_as_good_as_each_other_under_every_metric() {
        let rows = [1.0, 0.0, 0.0, 1.0, -1.0, 0.0, 0.0, -1.0];
        for metric in crate::METRICS {
            let all = Rows { dim: 2, metric, rows: &rows, gone: &[false; 4] };
            let nearest = all.nearest(&[1.0, 1.0], 1);
            let found = |id| all.found(&[1.0, 1.0], (&nearest, 1), &[vec![(id, 0.0)]])[0];
            assert_eq!([found(0), found(1), found(2), found(3)], [1.0, 1.0, 0.0, 0.0]);
        }
    }

    #[test]
    fn the_mean_says_how_sure_it_is() {
        let (middle, error) = mean(&[0.0, 1.0, 0.0, 1.0]);
        assert_eq!(middle, 0.5);
        assert!((error - (0.25_f64 / 3.0).sqrt()).abs() < 1e-12, "{error}");
    }
}
