//! The exact distance of a query to a row: what searches rank by, and what recall is measured against.
//!
//! Rows are ranked by a key in double precision, so that no order is lost where single precision
//! rounds: `1 - <q, v>` of small products, the cosine of near copies, squares that underflow or overflow.

use super::Inner;
use super::model::Model;
use super::topk::{Ranked, TopK};
use crate::error::{Error, Result};
use crate::kernel::Isa;
use crate::options::Metric;
use crate::storage::rows::RowBytes;
use std::borrow::Cow;

/// Squared distances and products outside of this are taken again in double precision.
const SOUND: std::ops::Range<f32> = 1e-30..f32::MAX / 64.0;
/// Above this cosine `1 - cosine` has too few digits left to tell rows apart.
const NEAR_COPY: f32 = 0.99;

/// A query that was checked.
#[derive(Debug)]
pub(crate) struct Query<'a> {
    /// As inserted rows are: not normalised.
    given: &'a [f32],
    /// As searched: normalised under cosine.
    pub(crate) vector: Cow<'a, [f32]>,
    /// `vector` times a power of two that keeps products with tiny numbers from underflowing, and the
    /// inverse of that power. Of no use to L2.
    lifted: Vec<f32>,
    lowered: f64,
    /// Ids that it does not find, as if they had been removed; they ascend.
    pub(super) hidden: &'a [u64],
    pub(super) metric: Metric,
    pub(super) isa: Isa,
}

impl<'a> Query<'a> {
    pub(super) fn new(
        given: &'a [f32],
        vector: Cow<'a, [f32]>,
        metric: Metric,
        isa: Isa,
    ) -> Query<'a> {
        let (mut lifted, mut lowered) = (Vec::new(), 1.0);
        if metric != Metric::L2 {
            let most = vector.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
            // Any row of normal numbers then gives products far from both ends of single precision.
            let lift = if most > 0.0 { (30 - exponent(most)).clamp(-120, 120) } else { 0 };
            let factor = 2.0_f32.powi(lift);
            lifted.extend(vector.iter().map(|x| x * factor));
            lowered = 2.0_f64.powi(-lift);
        }
        Query { given, vector, lifted, lowered, hidden: &[], metric, isa }
    }

    /// As it was given.
    pub(super) fn given(&self) -> &'a [f32] {
        self.given
    }

    /// The same query that finds none of these ids, which ascend.
    pub(crate) fn without(self, hidden: &'a [u64]) -> Query<'a> {
        Query { hidden, ..self }
    }

    /// The key of a stored row: smaller is nearer. L2: the squared distance. Cosine: `1 - cosine`. Inner
    /// product: the negative product.
    pub(crate) fn key_of(&self, row: &RowBytes<'_>) -> f64 {
        // The factor lies behind the vector: another cache miss, where it is not needed.
        let scale = if self.metric == Metric::Cosine { row.scale() } else { 1.0 };
        self.key(&row.vector(), scale)
    }

    /// The key of a row as inserted; `scale` normalises it under cosine.
    pub(super) fn key(&self, row: &[f32], scale: f32) -> f64 {
        match self.metric {
            Metric::L2 => {
                let squared = self.isa.l2(&self.vector, row);
                if SOUND.contains(&squared) { f64::from(squared) } else { l2(&self.vector, row) }
            }
            // Not `-x`: zeros of both signs are one key.
            Metric::InnerProduct => 0.0 - self.product(row),
            Metric::Cosine => {
                let cosine = self.product(row) * f64::from(scale);
                if cosine > f64::from(NEAR_COPY) { apart(self.given, row) } else { 1.0 - cosine }
            }
        }
    }

    fn product(&self, row: &[f32]) -> f64 {
        let lifted = self.isa.dot(&self.lifted, row);
        if lifted.is_finite() {
            return f64::from(lifted) * self.lowered;
        }
        dot(&self.vector, row)
    }

    /// The distance that a key stands for, as it is told to callers.
    pub(crate) fn distance(&self, key: f64) -> f32 {
        match self.metric {
            Metric::L2 | Metric::Cosine => key as f32,
            Metric::InnerProduct => (1.0 + key) as f32,
        }
    }

    /// What a search found, as it is told to callers.
    pub(super) fn hits(&self, found: TopK) -> Vec<(usize, f32)> {
        let hit = |row: Ranked| (row.id as usize, self.distance(row.key));
        found.into_sorted().into_iter().map(hit).collect()
    }

    /// What brings the query to the length that estimates are made at: under inner product the order of
    /// rows does not depend on it, but bounds and settings do.
    pub(crate) fn stretch(&self, model: &Model) -> f32 {
        if self.metric != Metric::InnerProduct {
            return 1.0;
        }
        let length = dot(&self.vector, &self.vector).sqrt();
        let stretch = (f64::from(model.record.squared).sqrt() / length) as f32;
        if stretch.is_finite() && stretch > 0.0 { stretch } else { 1.0 }
    }
}

/// The exponent of a positive number: `2^e <= x < 2^(e + 1)`.
fn exponent(x: f32) -> i32 {
    f64::from(x).log2().floor() as i32
}

fn l2(a: &[f32], b: &[f32]) -> f64 {
    let apart = |(a, b): (&f32, &f32)| f64::from(*a) - f64::from(*b);
    a.iter().zip(b).map(apart).map(|x| x * x).sum()
}

pub(super) fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// `1 - cosine` as half of the squared distance of unit vectors: never negative.
fn apart(a: &[f32], b: &[f32]) -> f64 {
    let [a_length, b_length] = [dot(a, a).sqrt(), dot(b, b).sqrt()];
    let difference = |(a, b): (&f32, &f32)| f64::from(*a) / a_length - f64::from(*b) / b_length;
    a.iter().zip(b).map(difference).map(|x| x * x).sum::<f64>() / 2.0
}

impl Inner {
    /// Checks a query and prepares it.
    pub(crate) fn prepare<'a>(&self, vector: &'a [f32]) -> Result<Query<'a>> {
        if vector.len() != self.dim {
            return Err(Error::vector(self.dim, vector.len()));
        }
        let scale = self.scale(vector).map_err(|why| Error::Vector { position: 0, why })?;
        Ok(Query::new(vector, self.searched(vector, &[scale]), self.metric, self.isa))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantizer::pq::tests::random;

    fn query(metric: Metric, vector: &[f32]) -> Query<'_> {
        let length = dot(vector, vector).sqrt();
        let unit = || vector.iter().map(|x| (f64::from(*x) / length) as f32).collect();
        let searched =
            if metric == Metric::Cosine { Cow::Owned(unit()) } else { Cow::Borrowed(vector) };
        Query::new(vector, searched, metric, Isa::detect())
    }

    /// Rows in the order of a distance, by their number.
    fn order(rows: &[f32], dim: usize, key: impl Fn(&[f32]) -> f64) -> Vec<usize> {
        let keys: Vec<f64> = rows.chunks(dim).map(key).collect();
        let mut order: Vec<usize> = (0..keys.len()).collect();
        order.sort_by(|a, b| keys[*a].total_cmp(&keys[*b]));
        order
    }

    #[test]
    fn the_order_by_products_is_that_of_double_precision_at_every_scale() {
        // Few numbers, so that the sums themselves are not rounded to ties.
        for dim in [1, 2, 7] {
            let (base, asked) = (random(1, 300 * dim), random(2, dim));
            for [of_query, of_rows] in
                [[1.0, 1.0], [1e-6, 1e-6], [1e-20, 1e-18], [1e-38, 1.0], [1e18, 1e19], [1e-9, 1e30]]
            {
                let rows: Vec<f32> = base.iter().map(|x| x * of_rows).collect();
                let asked: Vec<f32> = asked.iter().map(|x| x * of_query).collect();
                let query = query(Metric::InnerProduct, &asked);
                let found = order(&rows, dim, |row| query.key(row, 1.0));
                let keys: Vec<f64> = rows.chunks(dim).map(|row| -dot(&asked, row)).collect();
                for pair in found.windows(2) {
                    let (a, b) = (keys[pair[0]], keys[pair[1]]);
                    assert!(a <= b + 1e-6 * b.abs(), "{dim} {of_query} {of_rows}: {a} before {b}");
                }
            }
        }
    }

    #[test]
    fn l2_has_no_ties_where_squares_underflow() {
        for scale in [1.0, 1e-10, 1e-19, 1e-22, 1e-30, 1e-38] {
            let rows: Vec<f32> = random(3, 200 * 5).iter().map(|x| x * scale).collect();
            let asked: Vec<f32> = random(4, 5).iter().map(|x| x * scale).collect();
            let query = query(Metric::L2, &asked);
            let keys: Vec<f64> = rows.chunks(5).map(|row| query.key(row, 1.0)).collect();
            let exact: Vec<f64> = rows.chunks(5).map(|row| l2(&asked, row)).collect();
            assert!(keys.iter().zip(&exact).all(|(k, e)| (k - e).abs() <= 1e-5 * e), "{scale}");
        }
    }

    #[test]
    fn cosine_is_never_negative_and_tells_near_copies_apart() {
        let asked = random(5, 48);
        let query = query(Metric::Cosine, &asked);
        for (seed, step) in (0..).zip([0.0, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2]) {
            let noise = random(100 + seed, 48);
            let row: Vec<f32> =
                asked.iter().zip(noise).map(|(x, noise)| 7.3 * (x + step * noise)).collect();
            let scale = (1.0 / dot(&row, &row).sqrt()) as f32;
            let (key, exact) = (query.key(&row, scale), apart(&asked, &row));
            assert!(key >= 0.0 && query.distance(key) >= 0.0);
            assert!((key - exact).abs() <= 1e-4 * exact, "{step}: {key} {exact}");
        }
    }
}
