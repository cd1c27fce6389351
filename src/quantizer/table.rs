//! The lookup table of a query: inner products with all codewords, rounded to one byte each.

use crate::kernel::Aligned;
use crate::quantizer::pq::Pq;

/// `s * sum over m of <q_m, codeword>` is near `bias + slope * sum of bytes`, within half a step
/// (`slope / 2`) for each sub-quantizer.
///
/// One step holds for all sub-quantizers, so the bytes add up; what differs is the minimum of each,
/// and the sum of those is the bias.
#[derive(Debug, Default)]
pub(crate) struct Table {
    /// Entries of the sub-quantizers in order, in the kernel's layout: padded with tables of zeros to
    /// a multiple of 8 of 16 entries, or of 4 of 256. Each is read in one piece: none crosses a line.
    pub(crate) bytes: Aligned<u8>,
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
        self.minima.resize(pq.m, 0.0);
        let len = pq.m.next_multiple_of(pq.group()) * codewords;
        if self.bytes.len() != len {
            self.bytes = Aligned::new(len);
        }
        let bytes = &mut self.bytes[..pq.m * codewords];
        self.slope = pq.isa().round_tables(&self.values, codewords, &mut self.minima, bytes);
        self.bias = self.minima.iter().sum();
        self.bytes[pq.m * codewords..].fill(0);
    }
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
