//! A random rotation in O(d log d), after which the signs of a vector say most about its direction
//! (RaBitQ: Gao and Long, SIGMOD 2024).
//!
//! Each step flips signs at random, then takes the Hadamard transform of the first or of the last `2^k`
//! dimensions, `2^k` being the largest that fits, or turns the pairs of dimensions that are half of
//! all apart (the idea of Kac's walk). The signs between any two keep them from undoing each other.

use crate::kernel::{Isa, ROTATION_STEPS};
use crate::quantizer::pq::Pq;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Dimensions of a code.
const SUB: usize = 4;

/// A rotation of vectors, padded with zeros to a multiple of four dimensions.
#[derive(Clone, Debug)]
pub(crate) struct Rotation {
    dim: usize,
    /// +1 or -1: steps x dim.
    signs: Vec<f32>,
}

impl Rotation {
    pub(crate) fn random(dim: usize, seed: u64) -> Rotation {
        let dim = padded(dim);
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut sign = || if rng.random_bool(0.5) { 1.0 } else { -1.0 };
        Rotation { dim, signs: (0..ROTATION_STEPS * dim).map(|_| sign()).collect() }
    }

    /// From stored signs; `None` if there are more or fewer, or some are no signs.
    pub(crate) fn from_signs(dim: usize, signs: Vec<f32>) -> Option<Rotation> {
        let dim = padded(dim);
        let fits = signs.len() == ROTATION_STEPS * dim && signs.iter().all(|s| s.abs() == 1.0);
        fits.then_some(Rotation { dim, signs })
    }

    pub(crate) fn signs(&self) -> &[f32] {
        &self.signs
    }

    /// Rotates a vector in its place, padded.
    pub(crate) fn apply(&self, vector: &mut Vec<f32>) {
        vector.resize(self.dim, 0.0);
        Isa::detect().rotate(&self.signs, vector);
    }

    /// The quantizer of signs: 4-bit codes of four dimensions, bit `j` set where the `j`-th of them
    /// is positive.
    pub(crate) fn quantizer(&self) -> Pq {
        let sign = |code: usize, j: usize| if code >> j & 1 == 1 { 1.0 } else { -1.0 };
        let book = (0..16).flat_map(|code| (0..SUB).map(move |j| sign(code, j)));
        let codebook: Vec<f32> = book.collect();
        let (m, dsub) = self.shape();
        Pq::with_codebook(self.dim, m, 4, dsub, codebook.repeat(m))
    }

    /// Writes the codes of a rotated residual by that quantizer, and the signs that they stand for.
    pub(crate) fn encode(residual: &[f32], codes: &mut [u8], signs: &mut [f32]) {
        let parts = residual.as_chunks::<SUB>().0.iter().zip(signs.as_chunks_mut::<SUB>().0);
        for ((residual, signs), code) in parts.zip(codes) {
            *signs = residual.map(|x| if x > 0.0 { 1.0 } else { -1.0 });
            *code = residual.iter().rev().fold(0, |code, x| code << 1 | u8::from(*x > 0.0));
        }
    }

    /// Sub-quantizers of a code, and their dimensions.
    pub(crate) fn shape(&self) -> (usize, usize) {
        (self.dim / SUB, SUB)
    }
}

fn padded(dim: usize) -> usize {
    dim.max(1).next_multiple_of(SUB)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantizer::pq::tests::random;

    fn dot(a: &[f32], b: &[f32]) -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    }

    fn rotated(rotation: &Rotation, vector: &[f32]) -> Vec<f32> {
        let mut out = vector.to_vec();
        rotation.apply(&mut out);
        out
    }

    #[test]
    fn a_rotation_keeps_products() {
        for dim in [1, 3, 4, 31, 50, 96, 128, 384, 1000] {
            let rotation = Rotation::random(dim, 7);
            let (a, b) = (random(1, dim), random(2, dim));
            let (ra, rb) = (rotated(&rotation, &a), rotated(&rotation, &b));
            assert!((dot(&a, &b) - dot(&ra, &rb)).abs() < 1e-4 * dim as f64, "{dim}");
            assert!((dot(&a, &a) - dot(&ra, &ra)).abs() < 1e-4 * dim as f64, "{dim}");
        }
    }

    /// A row of `dim` numbers, all but some of them zero: `count` at random places, or side by side.
    fn sparse(rng: &mut ChaCha8Rng, dim: usize, count: usize, beside: bool) -> Vec<f32> {
        let mut row = vec![0.0; dim];
        let start = rng.random_range(0..=dim - count);
        for at in start..start + count {
            // The sum of four is near enough to a normal distribution.
            let value = (0..4).map(|_| rng.random_range(-1.0..1.0)).sum();
            row[if beside { at } else { rng.random_range(0..dim) }] = value;
        }
        row
    }

    /// `E[x^4] / E[x^2]^2` over the numbers of each row, the mean of the rows: 3 if they are normal.
    fn kurtosis(rotation: &Rotation, rows: &[Vec<f32>]) -> f64 {
        let of_row = |row: &Vec<f32>| {
            let out = rotated(rotation, row);
            let moment = |power| out.iter().map(|x| f64::from(*x).powi(power)).sum::<f64>();
            moment(4) * out.len() as f64 / moment(2).powi(2)
        };
        rows.iter().map(of_row).sum::<f64>() / rows.len() as f64
    }

    #[test]
    fn sparse_rows_are_spread_over_all_dimensions_whatever_their_number() {
        // About the powers of two, where two transforms overlap most and least, and between.
        let about = (6..=11).flat_map(|k| {
            let power = 1 << k;
            let beyond = [0, 4, 8, 12, 20, 44].map(|more| power + more);
            let before = [4, 8, 16].map(|less| 2 * power - less);
            let between = [5, 6, 7].map(|part| power * part / 4);
            [&beyond[..], &before, &between].concat()
        });
        for dim in about.chain([65, 99, 262, 4095, 4096]) {
            let (rotation, mut rng) = (Rotation::random(dim, 3), ChaCha8Rng::seed_from_u64(4));
            for (count, beside) in
                [(1, false), (2, false), (5, false), (10, false), (4, true), (16, true)]
            {
                let rows = [(); 50].map(|()| sparse(&mut rng, dim, count, beside));
                let found = kurtosis(&rotation, &rows);
                assert!((2.4..=3.3).contains(&found), "{dim}, {count} numbers: {found}");
            }
        }
    }

    #[test]
    fn stored_signs_give_the_same_rotation_and_others_are_refused() {
        let rotation = Rotation::random(50, 1);
        let stored = Rotation::from_signs(50, rotation.signs().to_vec()).unwrap();
        let vector = random(5, 50);
        assert_eq!(rotated(&rotation, &vector), rotated(&stored, &vector));
        let mut signs = rotation.signs().to_vec();
        assert!(Rotation::from_signs(60, signs.clone()).is_none());
        signs[3] = 0.5;
        assert!(Rotation::from_signs(50, signs).is_none());
    }

    #[test]
    fn codes_are_the_signs() {
        let rotation = Rotation::random(10, 1);
        let (pq, x) = (rotation.quantizer(), random(9, 12));
        let (mut codes, mut signs) = (vec![0; pq.m], vec![0.0; 12]);
        pq.encode(&x, &mut codes);
        pq.decode(&codes, &mut signs);
        assert!(x.iter().zip(&signs).all(|(x, sign)| x.signum() == *sign));
        let (mut at_once, mut stood_for) = (vec![0; pq.m], vec![0.0; 12]);
        Rotation::encode(&x, &mut at_once, &mut stood_for);
        assert_eq!((at_once, stood_for), (codes, signs));
    }
}
