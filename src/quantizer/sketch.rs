//! A sketch of the cells, a few bits for each dimension: finds the cells worth a closer look while
//! reading an eighth of what their centroids take.
//!
//! It is a product quantizer whose codebook needs no training: the residuals of cells from their
//! list are close to normal in each dimension, so a grid of the best levels for a normal variable
//! (Lloyd 1982; Max 1960), as wide as the residuals are, is nearly as good.

use crate::kernel::{BLOCK_TAIL, Hit, Isa, LANES, Scan};
use crate::quantizer::pq::Pq;
use crate::quantizer::table::Table;
use rayon::prelude::*;
use std::ops::Range;

/// The best two, four and sixteen levels for a normal variable.
const TWO: [f32; 2] = [-0.797_9, 0.797_9];
const FOUR: [f32; 4] = [-1.510_4, -0.452_8, 0.452_8, 1.510_4];
const SIXTEEN: [f32; 16] = [
    -2.732_6, -2.069, -1.618_1, -1.256_2, -0.942_4, -0.656_8, -0.388_1, -0.128_4, //
    0.128_4, 0.388_1, 0.656_8, 0.942_4, 1.256_2, 1.618_1, 2.069, 2.732_6,
];

#[derive(Debug)]
pub(super) struct Sketch {
    pq: Pq,
    block_bytes: usize,
    blocks: Vec<u8>,
    /// The blocks begin here, so that they are aligned to cache lines.
    start: usize,
    /// The first block of each list, and the number of blocks.
    first: Vec<usize>,
}

/// A cell to sketch: its residual from the list is written to the buffer, and the part of its key
/// that does not depend on the query comes back.
pub(super) trait Cells: Sync {
    fn residual(&self, list: usize, cell: u32, out: &mut [f32]) -> f32;
}

impl Sketch {
    /// Sketches the cells of lists, given as ranges.
    pub(super) fn new(dim: usize, lists: &[Range<u32>], cells: &impl Cells) -> Sketch {
        let pq = grid(dim, &widths(dim, lists, cells));
        let block_bytes = pq.m.div_ceil(8) * 64 + BLOCK_TAIL;
        let mut first = vec![0];
        for list in lists {
            first.push(first[first.len() - 1] + list.len().div_ceil(LANES));
        }
        let bytes = first[lists.len()] * block_bytes;
        let mut blocks = vec![0; bytes + 63];
        let start = blocks.as_ptr().align_offset(64).min(63);
        let of_block: Vec<(usize, Range<u32>)> =
            lists.iter().enumerate().flat_map(|(list, cells)| pieces(list, cells)).collect();
        let out = blocks[start..start + bytes].par_chunks_exact_mut(block_bytes);
        out.zip(of_block).for_each(|(block, (list, range))| write(&pq, block, list, range, cells));
        Sketch { pq, block_bytes, blocks, start, first }
    }

    /// Fills the table for a query: estimates are of `-2 * <query, residual>`.
    pub(super) fn build(&self, table: &mut Table, query: &[f32]) {
        table.build(&self.pq, query, -2.0);
    }

    /// Appends the cells of a list whose key, `base` plus their own part, is below the limit; slots
    /// count from the first cell of the list.
    pub(super) fn scan(
        &self,
        isa: Isa,
        list: usize,
        table: &Table,
        (base, limit): (f32, f32),
        hits: &mut Vec<Hit>,
    ) {
        let scan = Scan {
            table: &table.bytes,
            block_bytes: self.block_bytes,
            base: base + table.bias,
            slope: table.slope,
            limit,
        };
        isa.scan4(self.blocks_of(list), &scan, hits);
    }

    /// Asks for the sketch of a list to be brought near.
    pub(super) fn prefetch(&self, isa: Isa, list: usize) {
        isa.prefetch(self.blocks_of(list));
    }

    fn blocks_of(&self, list: usize) -> &[u8] {
        let from = self.start + self.first[list] * self.block_bytes;
        let to = self.start + self.first[list + 1] * self.block_bytes;
        &self.blocks[from..to]
    }
}

/// The cells of each block of a list.
fn pieces(list: usize, cells: &Range<u32>) -> impl Iterator<Item = (usize, Range<u32>)> {
    let end = cells.end;
    cells.clone().step_by(LANES).map(move |at| (list, at..end.min(at + LANES as u32)))
}

/// The root of the mean square of the residuals in each dimension.
fn widths(dim: usize, lists: &[Range<u32>], cells: &impl Cells) -> Vec<f32> {
    let mut squares = vec![0.0_f64; dim];
    let mut residual = vec![0.0; dim];
    let mut seen = 0;
    for (list, range) in lists.iter().enumerate() {
        // A few of each list will do.
        for cell in range.clone().step_by(range.len() / 8 + 1) {
            cells.residual(list, cell, &mut residual);
            seen += 1;
            for (sum, value) in squares.iter_mut().zip(&residual) {
                *sum += f64::from(value * value);
            }
        }
    }
    squares.iter().map(|sum| (sum / f64::from(seen.max(1))).sqrt() as f32).collect()
}

/// The quantizer whose codewords are all combinations of the levels.
fn grid(dim: usize, widths: &[f32]) -> Pq {
    // Fewer dimensions take more bits for each: what counts is the error of the sum.
    let (levels, dsub): (&[f32], usize) = match dim {
        0..=64 => (&SIXTEEN, 1),
        65..=400 => (&FOUR, 2),
        _ => (&TWO, 4),
    };
    let m = dim.div_ceil(dsub);
    let mut codebook = Vec::with_capacity(m * 16 * dsub);
    for first in (0..m).map(|m| m * dsub) {
        for code in 0..16 {
            for d in 0..dsub {
                let level = levels[code / levels.len().pow(d as u32) % levels.len()];
                codebook.push(level * widths.get(first + d).copied().unwrap_or(0.0));
            }
        }
    }
    Pq::with_codebook(dim, m, 4, dsub, codebook)
}

/// Writes one block in the layout of the kernel.
fn write(pq: &Pq, block: &mut [u8], list: usize, range: Range<u32>, cells: &impl Cells) {
    let (codes, rest) = block.split_at_mut(pq.m.div_ceil(8) * 64);
    let (factors, _) = rest.as_chunks_mut::<4>();
    factors.iter_mut().take(LANES).for_each(|factor| *factor = f32::INFINITY.to_le_bytes());
    let (mut residual, mut row) = (vec![0.0; pq.dim], vec![0; pq.m]);
    for ((lane, cell), factor) in range.enumerate().zip(factors) {
        *factor = cells.residual(list, cell, &mut residual).to_le_bytes();
        pq.encode(&residual, &mut row);
        for (m, code) in row.iter().enumerate() {
            codes[m / 8 * 64 + 4 * lane + m % 4] |= if m % 8 < 4 { *code } else { code << 4 };
        }
    }
}
