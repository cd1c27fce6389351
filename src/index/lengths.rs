//! How long vectors are, and what they have in common: what follows from it for cells and queries.

use crate::options::Metric;

/// Squared lengths of some vectors.
#[derive(Clone, Copy)]
pub(super) struct Lengths {
    least: f32,
    most: f32,
    mean: f32,
    /// One in a hundred is longer.
    long: f32,
}

impl Lengths {
    pub(super) fn of(sample: &[f32], dim: usize) -> Lengths {
        let norms = sample.chunks_exact(dim).map(|v| v.iter().map(|x| x * x).sum::<f32>());
        let mut norms: Vec<f32> = norms.collect();
        norms.sort_unstable_by(f32::total_cmp);
        let at = |share: usize| norms.get(norms.len() * share / 100).or(norms.last());
        let sum: f64 = norms.iter().map(|norm| f64::from(*norm)).sum();
        Lengths {
            least: norms.first().copied().unwrap_or(f32::MAX),
            most: norms.last().copied().unwrap_or(0.0),
            mean: (sum / norms.len().max(1) as f64) as f32,
            long: at(99).copied().unwrap_or(0.0),
        }
    }

    /// The squared length that queries are brought to under inner product: that of the rows. Where their
    /// lengths differ, one that hardly any row exceeds, so that what stands for the squared distance of
    /// a row is not below zero.
    pub(super) fn reach(self, norm_weight: f32) -> f32 {
        if norm_weight > 0.0 { self.mean } else { self.long }
    }

    pub(super) fn unit(self) -> bool {
        self.least > 0.99 && self.most < 1.01
    }

    /// Whether cells are visited by distance (1) or by inner product (0): by distance unless the
    /// metric is the inner product and the vectors differ in length.
    pub(super) fn norm_weight(self, metric: Metric) -> f32 {
        let alike = self.most <= self.least * 1.01;
        if metric != Metric::InnerProduct || alike { 1.0 } else { 0.0 }
    }
}

/// What all vectors have in common, which codes need not tell: the mean of the sample. None of it where
/// cells are ranked by the inner product, which is not the same after a shift.
pub(super) fn center(sample: &[f32], dim: usize, norm_weight: f32) -> Vec<f32> {
    let mut sums = vec![0.0; dim];
    if norm_weight > 0.0 {
        for row in sample.chunks_exact(dim) {
            sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x));
        }
    }
    let rows = (sample.len() / dim).max(1) as f64;
    sums.into_iter().map(|sum| (sum / rows) as f32).collect()
}
