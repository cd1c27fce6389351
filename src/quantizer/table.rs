//! The lookup table of a query: inner products with all codewords, rounded to one byte each.

use crate::quantizer::pq::Pq;

/// `s * sum over m of <q_m, codeword>` is near `bias + slope * sum of bytes`, within half a step
/// (`slope / 2`) for each sub-quantizer.
///
/// One step holds for all sub-quantizers, so the bytes add up; what differs is the minimum of each,
/// and the sum of those is the bias.
#[derive(Clone, Debug, Default)]
pub(crate) struct Table {
    /// Entries of the sub-quantizers in order, in the kernel's layout: padded with tables of zeros to
    /// a multiple of 8 of 16 entries, or of 4 of 256.
    pub(crate) bytes: Vec<u8>,
    /// The part that all rows share.
    pub(crate) bias: f32,
    /// One step of the bytes.
    pub(crate) slope: f32,
    values: Vec<f32>,
    minima: Vec<f32>,
}

impl Table {
    /// Fills the table for a query of `pq.dim` numbers. Allocates only when it grows.
    pub(crate) fn build(&mut self, pq: &Pq, query: &[f32], s: f32) {
        assert_eq!(query.len(), pq.dim);
        let codewords = pq.codewords();
        self.values.resize(pq.m * codewords, 0.0);
        pq.inner_products(query, s, &mut self.values);
        self.minima.clear();
        let mut widest = 0.0_f32;
        for values in self.values.chunks_exact(codewords) {
            let (low, high) = range(values);
            self.minima.push(low);
            widest = widest.max(high - low);
        }
        self.bias = self.minima.iter().sum();
        self.slope = widest / 255.0;
        let inverse = if self.slope.is_normal() { 1.0 / self.slope } else { 0.0 };
        self.bytes.resize(pq.m.next_multiple_of(pq.group()) * codewords, 0);
        let values = self.values.chunks_exact(codewords).zip(&self.minima);
        for (bytes, (values, low)) in self.bytes.chunks_exact_mut(codewords).zip(values) {
            for (byte, value) in bytes.iter_mut().zip(values) {
                *byte = nearest((value - low) * inverse);
            }
        }
        self.bytes[pq.m * codewords..].fill(0);
    }
}

/// The least and the greatest value, by 16 lanes.
fn range(values: &[f32]) -> (f32, f32) {
    let (mut low, mut high) = ([f32::INFINITY; 16], [f32::NEG_INFINITY; 16]);
    for part in values.as_chunks::<16>().0 {
        for lane in 0..16 {
            low[lane] = if part[lane] < low[lane] { part[lane] } else { low[lane] };
            high[lane] = if part[lane] > high[lane] { part[lane] } else { high[lane] };
        }
    }
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            low[i] = low[i].min(low[i + half]);
            high[i] = high[i].max(high[i + half]);
        }
    }
    (low[0], high[0])
}

/// The integer nearest to a number from 0 to 255: adding 1.5 * 2^23 rounds, and leaves the integer
/// in the low bits.
fn nearest(x: f32) -> u8 {
    (x + 12_582_912.0).to_bits() as u8
}

#[cfg(test)]
mod tests {
    use super::Table;
    use crate::quantizer::pq::{Pq, tests::random};

    #[test]
    fn sums_of_bytes_are_within_half_a_step_for_each_sub_quantizer() {
        for (dim, bits, m) in [(50, 4, 25), (64, 8, 16), (7, 4, 3), (30, 8, 15)] {
            let pq = Pq::train(&random(1, 600 * dim), dim, m, bits, 5);
            let query = random(2, dim);
            let mut table = Table::default();
            for s in [-2.0, -1.0] {
                table.build(&pq, &query, s);
                assert_eq!(table.bytes.len() % if bits == 4 { 128 } else { 1024 }, 0);
                for seed in 0..20 {
                    let mut codes = vec![0; pq.m];
                    pq.encode(&random(seed, dim), &mut codes);
                    let mut row = vec![0.0; dim];
                    pq.decode(&codes, &mut row);
                    let exact: f32 = row.iter().zip(&query).map(|(r, q)| s * r * q).sum();
                    let sum: u32 = codes
                        .iter()
                        .enumerate()
                        .map(|(m, code)| {
                            u32::from(table.bytes[m * pq.codewords() + usize::from(*code)])
                        })
                        .sum();
                    let estimate = table.bias + table.slope * sum as f32;
                    let bound = table.slope * pq.m as f32 / 2.0 + 1e-3;
                    assert!((estimate - exact).abs() <= bound, "{estimate} {exact} {bound}");
                }
            }
        }
    }

    #[test]
    fn a_query_of_zeros_gives_a_table_of_zeros() {
        let pq = Pq::train(&random(1, 600 * 8), 8, 4, 4, 5);
        let mut table = Table::default();
        table.build(&pq, &random(3, 8), -2.0);
        table.build(&pq, &[0.0; 8], -2.0);
        assert_eq!((table.bias, table.slope), (0.0, 0.0));
        assert!(table.bytes.iter().all(|byte| *byte == 0));
    }
}
