//! Product quantization (Jegou, Douze and Schmid, "Product quantization for nearest neighbor search",
//! PAMI 2011): a vector is cut into sub-vectors, and each is replaced by the number of its nearest
//! codeword out of 16 or 256.

use crate::kernel::{Isa, LANES};
use crate::quantizer::kmeans::pick;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

/// Rounds of Lloyd's algorithm.
const ITERATIONS: usize = 12;
/// Parts that the training rows are cut into, whatever the number of threads.
const PARTS: usize = 16;
/// Rows, for each codeword, that the first codewords are chosen from.
const SEEDS: usize = 16;

/// A trained product quantizer. Vectors count as padded with zeros to `m * dsub` numbers.
#[derive(Clone, Debug)]
pub(crate) struct Pq {
    /// Dimensions of a vector.
    pub(crate) dim: usize,
    /// Sub-quantizers.
    pub(crate) m: usize,
    /// Bits of a code, 4 or 8.
    pub(crate) bits: u32,
    /// Dimensions of a sub-vector.
    pub(crate) dsub: usize,
    /// `f32` x (m x 2^bits x dsub).
    pub(crate) codebook: Vec<f32>,
    /// The same for encoding: groups of 16 sub-quantizers x codewords x dsub x 16.
    lanes: Vec<f32>,
    /// The same for tables: m x dsub x codewords.
    columns: Vec<f32>,
    isa: Isa,
}

impl Pq {
    /// The sub-quantizers and their dimensions for vectors of `dim` numbers: about `m`, or the default
    /// of 2 dimensions for 4 bits and 4 for 8 bits if `m` is 0. No sub-vector is all padding.
    pub(crate) fn shape(dim: usize, bits: u32, m: usize) -> (usize, usize) {
        let dim = dim.max(1);
        let dsub = match (m, bits) {
            (0, 4) => 2,
            (0, _) => 4,
            (m, _) => dim.div_ceil(m),
        };
        (dim.div_ceil(dsub), dsub)
    }

    /// Trains on residuals, n x dim. With fewer rows than codewords some codewords are equal.
    pub(crate) fn train(residuals: &[f32], dim: usize, m: usize, bits: u32, seed: u64) -> Pq {
        let (m, dsub) = Pq::shape(dim, bits, m);
        let codebook = vec![0.0; (m << bits) * dsub];
        let mut pq = Pq::with_codebook(dim, m, bits, dsub, codebook);
        let rows = residuals.len() / dim;
        if rows == 0 {
            return pq;
        }
        pq.choose_first(residuals, seed);
        for round in 0..ITERATIONS {
            let sums = pq.sums(residuals);
            pq.move_to_means(residuals, &sums, seed ^ (round as u64 + 1));
        }
        pq
    }

    /// From a stored codebook; `None` if its length, or the shape, cannot be.
    pub(crate) fn from_codebook(
        dim: usize,
        m: usize,
        bits: u32,
        dsub: usize,
        codebook: Vec<f32>,
    ) -> Option<Pq> {
        let fits = dim > 0
            && (bits == 4 || bits == 8)
            && dsub > 0
            && m == dim.div_ceil(dsub)
            && m.checked_mul(dsub << bits) == Some(codebook.len());
        fits.then(|| Pq::with_codebook(dim, m, bits, dsub, codebook))
    }

    pub(crate) fn with_codebook(
        dim: usize,
        m: usize,
        bits: u32,
        dsub: usize,
        codebook: Vec<f32>,
    ) -> Pq {
        let isa = Isa::detect();
        let mut pq =
            Pq { dim, m, bits, dsub, codebook, lanes: Vec::new(), columns: Vec::new(), isa };
        pq.arrange();
        pq
    }

    /// Codewords of a sub-quantizer.
    pub(crate) fn codewords(&self) -> usize {
        1 << self.bits
    }

    pub(crate) fn isa(&self) -> Isa {
        self.isa
    }

    /// Sub-quantizers that the kernel takes at once.
    pub(crate) fn group(&self) -> usize {
        if self.bits == 4 { 8 } else { 4 }
    }

    /// Writes the `m` codes of a residual of `dim` numbers.
    pub(crate) fn encode(&self, residual: &[f32], codes: &mut [u8]) {
        assert_eq!(codes.len(), self.m);
        let mut all = vec![0; self.m.next_multiple_of(LANES)];
        let mut x = vec![0.0; all.len() * self.dsub];
        self.encode_padded(residual, &mut x, &mut all);
        codes.copy_from_slice(&all[..self.m]);
    }

    /// Writes the vector that codes stand for, `dim` numbers. Bits above the code's are ignored.
    pub(crate) fn decode(&self, codes: &[u8], out: &mut [f32]) {
        assert!(codes.len() == self.m && out.len() == self.dim);
        let books = self.codebook.chunks_exact(self.dsub << self.bits);
        for ((out, code), book) in out.chunks_mut(self.dsub).zip(codes).zip(books) {
            let code = usize::from(*code) & (self.codewords() - 1);
            out.copy_from_slice(&book[code * self.dsub..][..out.len()]);
        }
    }

    /// `s * <q_m, codeword>`, m x codewords.
    pub(crate) fn inner_products(&self, query: &[f32], s: f32, out: &mut [f32]) {
        assert!(query.len() == self.dim && out.len() == self.m * self.codewords());
        let shape = (self.dsub, self.codewords());
        self.isa.codeword_products(&self.columns, (query, s), shape, out);
    }

    /// `x` is scratch of `codes.len() * dsub` numbers, zero where a vector has only padding.
    fn encode_padded(&self, residual: &[f32], x: &mut [f32], codes: &mut [u8]) {
        assert_eq!(residual.len(), self.dim);
        for (m, part) in residual.chunks(self.dsub).enumerate() {
            let at = m / LANES * self.dsub * LANES + m % LANES;
            for (d, value) in part.iter().enumerate() {
                x[at + d * LANES] = *value;
            }
        }
        self.isa.encode(x, &self.lanes, self.dsub, codes);
    }

    /// Brings the codebook into the orders in which it is read.
    fn arrange(&mut self) {
        let (codewords, dsub) = (self.codewords(), self.dsub);
        self.lanes.resize(self.m.next_multiple_of(LANES) * codewords * dsub, 0.0);
        self.columns.resize(self.codebook.len(), 0.0);
        for (at, value) in self.codebook.iter().enumerate() {
            let (m, code, d) = (at / (codewords * dsub), at / dsub % codewords, at % dsub);
            let (group, lane) = (m / LANES, m % LANES);
            self.lanes[((group * codewords + code) * dsub + d) * LANES + lane] = *value;
            self.columns[(m * dsub + d) * codewords + code] = *value;
        }
    }

    /// The `d`-th number of sub-vector `m` of a row.
    fn part<'a>(&self, residuals: &'a [f32], row: usize, m: usize) -> &'a [f32] {
        let row = &residuals[row * self.dim..(row + 1) * self.dim];
        &row[m * self.dsub..((m + 1) * self.dsub).min(self.dim)]
    }

    /// Chooses codewords among the rows, far ones more likely (k-means++, Arthur and Vassilvitskii
    /// 2007).
    fn choose_first(&mut self, residuals: &[f32], seed: u64) {
        let rows = residuals.len() / self.dim;
        let (codewords, dsub) = (self.codewords(), self.dsub);
        let mut codebook = std::mem::take(&mut self.codebook);
        codebook.par_chunks_exact_mut(codewords * dsub).enumerate().for_each(|(m, book)| {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            rng.set_stream(m as u64);
            let sample: Vec<usize> =
                (0..SEEDS * codewords).map(|_| rng.random_range(0..rows)).collect();
            let mut far = vec![f32::INFINITY; sample.len()];
            let mut chosen = sample[0];
            for codeword in book.chunks_exact_mut(dsub) {
                let part = self.part(residuals, chosen, m);
                codeword[..part.len()].copy_from_slice(part);
                for (far, row) in far.iter_mut().zip(&sample) {
                    let row = self.part(residuals, *row, m);
                    let distance: f32 = row.iter().zip(part).map(|(a, b)| (a - b) * (a - b)).sum();
                    *far = far.min(distance);
                }
                chosen = pick(&far, &mut rng).map_or(chosen, |at| sample[at]);
            }
        });
        self.codebook = codebook;
        self.arrange();
    }

    /// The sums and counts of the rows of each codeword.
    fn sums(&self, residuals: &[f32]) -> Sums {
        let rows = residuals.len() / self.dim;
        let part = rows.div_ceil(PARTS).max(1) * self.dim;
        let parts: Vec<Sums> =
            residuals.par_chunks(part).map(|residuals| self.sums_of_part(residuals)).collect();
        let mut total = Sums::new(self);
        for part in &parts {
            total.values.iter_mut().zip(&part.values).for_each(|(total, part)| *total += part);
            total.counts.iter_mut().zip(&part.counts).for_each(|(total, part)| *total += part);
        }
        total
    }

    fn sums_of_part(&self, residuals: &[f32]) -> Sums {
        let mut sums = Sums::new(self);
        let mut codes = vec![0; self.m.next_multiple_of(LANES)];
        let mut x = vec![0.0; codes.len() * self.dsub];
        for row in residuals.chunks_exact(self.dim) {
            self.encode_padded(row, &mut x, &mut codes);
            for (m, (part, code)) in row.chunks(self.dsub).zip(&codes).enumerate() {
                let codeword = m * self.codewords() + usize::from(*code);
                sums.counts[codeword] += 1;
                let sum = &mut sums.values[codeword * self.dsub..];
                sum.iter_mut().zip(part).for_each(|(sum, value)| *sum += value);
            }
        }
        sums
    }

    /// Moves codewords to the means of their rows; one without rows goes to a row at random.
    fn move_to_means(&mut self, residuals: &[f32], sums: &Sums, seed: u64) {
        let rows = residuals.len() / self.dim;
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut codebook = std::mem::take(&mut self.codebook);
        for (number, codeword) in codebook.chunks_exact_mut(self.dsub).enumerate() {
            let count = sums.counts[number];
            if count == 0 {
                let part = self.part(residuals, rng.random_range(0..rows), number >> self.bits);
                codeword[..part.len()].copy_from_slice(part);
                continue;
            }
            let sum = &sums.values[number * self.dsub..];
            for (value, sum) in codeword.iter_mut().zip(sum) {
                *value = sum / count as f32;
            }
        }
        self.codebook = codebook;
        self.arrange();
    }
}

struct Sums {
    values: Vec<f32>,
    counts: Vec<u32>,
}

impl Sums {
    fn new(pq: &Pq) -> Sums {
        Sums { values: vec![0.0; pq.codebook.len()], counts: vec![0; pq.m << pq.bits] }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::Pq;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    /// Numbers around 0, roughly normal.
    pub(crate) fn random(seed: u64, n: usize) -> Vec<f32> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        (0..n).map(|_| (0..4).map(|_| rng.random_range(-1.0..1.0)).sum()).collect()
    }

    fn error(pq: &Pq, rows: &[f32]) -> f32 {
        let (mut codes, mut out) = (vec![0; pq.m], vec![0.0; pq.dim]);
        let mut error = 0.0;
        for row in rows.chunks_exact(pq.dim) {
            pq.encode(row, &mut codes);
            pq.decode(&codes, &mut out);
            error += row.iter().zip(&out).map(|(a, b)| (a - b) * (a - b)).sum::<f32>();
        }
        error / rows.len() as f32
    }

    #[test]
    fn shapes_are_consistent_and_no_sub_vector_is_all_padding() {
        assert_eq!(Pq::shape(384, 4, 0), (192, 2));
        assert_eq!(Pq::shape(384, 8, 0), (96, 4));
        assert_eq!(Pq::shape(50, 8, 0), (13, 4));
        for dim in 1..70 {
            for m in 1..=dim {
                let (m, dsub) = Pq::shape(dim, 4, m);
                assert!(m * dsub >= dim && (m - 1) * dsub < dim);
                assert_eq!(Pq::shape(dim, 4, m), (m, dsub));
            }
        }
    }

    #[test]
    fn the_error_falls_with_more_sub_quantizers_and_more_bits() {
        let rows = random(1, 2_000 * 24);
        let of = |m, bits| error(&Pq::train(&rows, 24, m, bits, 3), &rows);
        let errors = [of(3, 4), of(6, 4), of(12, 4), of(24, 4)];
        assert!(errors.is_sorted_by(|a, b| a > b), "{errors:?}");
        assert!(of(6, 8) < errors[1] * 0.6);
    }

    #[test]
    fn codes_are_those_of_the_nearest_codewords() {
        let pq = Pq::train(&random(1, 500 * 21), 21, 7, 4, 3);
        let row = random(9, 21);
        let mut codes = vec![0; pq.m];
        pq.encode(&row, &mut codes);
        for (m, code) in codes.iter().enumerate() {
            let distance = |code: usize| -> f32 {
                let codeword = &pq.codebook[(m * 16 + code) * pq.dsub..][..pq.dsub];
                let part = &row[m * pq.dsub..(m + 1) * pq.dsub];
                part.iter().zip(codeword).map(|(a, b)| (a - b) * (a - b)).sum()
            };
            let least = (0..16).map(distance).fold(f32::INFINITY, f32::min);
            assert_eq!(distance(usize::from(*code)), least);
        }
    }

    #[test]
    fn training_is_the_same_on_any_number_of_threads() {
        let rows = random(1, 1_111 * 10);
        let train = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| Pq::train(&rows, 10, 5, 4, 3).codebook)
        };
        assert_eq!(train(1), train(2));
        assert_ne!(train(1), Pq::train(&rows, 10, 5, 4, 4).codebook);
    }

    #[test]
    fn few_or_equal_rows_train_without_numbers_that_are_not_finite() {
        for rows in [vec![], random(1, 3 * 6), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0].repeat(100)] {
            for bits in [4, 8] {
                let pq = Pq::train(&rows, 6, 3, bits, 1);
                assert!(pq.codebook.iter().all(|value| value.is_finite()));
                assert!(rows.is_empty() || error(&pq, &rows) < 1e-9);
            }
        }
    }

    #[test]
    fn a_codebook_of_another_length_is_refused() {
        let make = |dim, m, bits, dsub, len| Pq::from_codebook(dim, m, bits, dsub, vec![0.0; len]);
        assert!(make(10, 5, 4, 2, 160).is_some());
        assert!(make(10, 5, 4, 2, 161).is_none());
        assert!(make(10, 5, 5, 2, 320).is_none());
        assert!(make(10, 4, 4, 2, 128).is_none());
        assert!(make(10, 0, 4, 0, 0).is_none());
        assert!(make(0, 0, 4, 2, 0).is_none());
    }
}
