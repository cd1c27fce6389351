//! A sketch of the cells, a few bits for each dimension: finds the cells worth a closer look while
//! reading an eighth of what their centroids take.
//!
//! It is a product quantizer whose codebook needs no training: the residuals of cells from their
//! list are close to normal in each dimension, so a grid of the best levels for a normal variable
//! (Lloyd 1982; Max 1960), as wide as the residuals are, is nearly as good.

use crate::kernel::{Ahead, Aligned, FACTORS, Grid, Hit, Isa, LANES, Scan};
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
    blocks: Aligned<u8>,
    /// The first block of each list, and the number of blocks.
    first: Vec<usize>,
}

/// What is sketched: cells `c = p + r` around the parents `p` of their lists, to be ranked by
/// `weight * |c|^2 - 2 <q, c>`.
pub(super) trait Cells: Sync {
    fn weight(&self) -> f32;
    fn parent(&self, list: usize, out: &mut [f32]);
    fn residual(&self, list: usize, cell: u32, out: &mut [f32]);
}

impl Sketch {
    /// Sketches the cells of lists, given as ranges.
    pub(super) fn new(dim: usize, lists: &[Range<u32>], cells: &impl Cells) -> Sketch {
        let grid = Levels::new(dim, widths(dim, lists, cells));
        let pq = grid.quantizer();
        let block_bytes = pq.m.div_ceil(8) * 64 + FACTORS;
        let mut first = vec![0];
        for list in lists {
            first.push(first[first.len() - 1] + list.len().div_ceil(LANES));
        }
        let mut blocks = Aligned::new(first[lists.len()] * block_bytes);
        let of_block: Vec<(usize, Range<u32>)> =
            lists.iter().enumerate().flat_map(|(list, cells)| pieces(list, cells)).collect();
        let out = blocks.par_chunks_exact_mut(block_bytes);
        out.zip(of_block).for_each(|(block, (list, range))| grid.write(block, list, range, cells));
        Sketch { pq, block_bytes, blocks, first }
    }

    /// Cells to keep by the sketch so that nearly all of the `n` best are among them.
    pub(super) fn candidates(&self, n: usize) -> usize {
        16 + match self.pq.dsub {
            1 => n + n / 4,
            2 => n + n / 2,
            _ => 2 * n,
        }
    }

    /// Fills the table for a query: estimates are of `-2 * <query, residual>`.
    pub(super) fn build(&self, table: &mut Table, query: &[f32]) {
        table.build(&self.pq, query, -2.0);
    }

    /// Appends the cells of a list whose key is below the limit, `base` being the key of the parent;
    /// slots count from the first cell of the list. Those of the next lists come near meanwhile.
    pub(super) fn scan(
        &self,
        isa: Isa,
        (list, next, later): (usize, Option<usize>, Option<usize>),
        table: &Table,
        (base, limit): (f32, f32),
        hits: &mut Vec<Hit>,
    ) {
        let scan = Scan {
            table: &table.bytes,
            block_bytes: self.block_bytes,
            base,
            bias: table.bias,
            slope: table.slope,
            limit,
        };
        let coming = |list: Option<usize>| list.map_or(&[][..], |list| self.blocks_of(list));
        let ahead = Ahead { next: coming(next), later: coming(later) };
        isa.scan4(self.blocks_of(list), &scan, ahead, hits);
    }

    fn blocks_of(&self, list: usize) -> &[u8] {
        &self.blocks[self.first[list] * self.block_bytes..self.first[list + 1] * self.block_bytes]
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

/// Levels in each dimension, in units of its width.
struct Levels {
    levels: &'static [f32],
    /// Dimensions of a sub-quantizer: as many as sixteen codewords allow.
    dsub: usize,
    widths: Vec<f32>,
}

impl Levels {
    /// Fewer dimensions take more bits for each: what counts is the error of the sum.
    fn new(dim: usize, widths: Vec<f32>) -> Levels {
        let (levels, dsub): (&[f32], usize) = match dim {
            0..=64 => (&SIXTEEN, 1),
            65..=200 => (&FOUR, 2),
            _ => (&TWO, 4),
        };
        Levels { levels, dsub, widths }
    }

    /// The quantizer whose codewords are all combinations of the levels.
    fn quantizer(&self) -> Pq {
        let (dim, levels) = (self.widths.len(), self.levels);
        let m = dim.div_ceil(self.dsub);
        let mut codebook = Vec::with_capacity(m * 16 * self.dsub);
        for first in (0..m).map(|m| m * self.dsub) {
            for code in 0..16 {
                for d in 0..self.dsub {
                    let level = levels[code / levels.len().pow(d as u32) % levels.len()];
                    codebook.push(level * self.widths.get(first + d).copied().unwrap_or(0.0));
                }
            }
        }
        Pq::with_codebook(dim, m, 4, self.dsub, codebook)
    }

    /// Writes one block in the layout of the kernel.
    ///
    /// With weight 1 the key of a cell is that of its parent and `|r|^2 - 2 <q - p, r>`, where only
    /// the product is sketched: its error grows with the distance of the query from the parent, not
    /// with the length of the query.
    fn write(&self, block: &mut [u8], list: usize, range: Range<u32>, cells: &impl Cells) {
        let dim = self.widths.len();
        let (codes, rest) = block.split_at_mut(dim.div_ceil(self.dsub).div_ceil(8) * 64);
        let (add, scale) = rest.as_chunks_mut::<4>().0.split_at_mut(LANES);
        add.fill(f32::INFINITY.to_le_bytes());
        let isa = Isa::detect();
        let grid = Grid { levels: self.levels, widths: &self.widths };
        let [mut parent, mut residual, mut rounded] = [(); 3].map(|()| vec![0.0; dim]);
        // Whole groups of eight codes.
        let mut nearest = vec![0; dim.next_multiple_of(8 * self.dsub)];
        cells.parent(list, &mut parent);
        for (((lane, cell), add), scale) in range.enumerate().zip(add).zip(scale) {
            cells.residual(list, cell, &mut residual);
            isa.round(&grid, &residual, &mut nearest[..dim], &mut rounded);
            let length = isa.dot(&residual, &residual);
            // What makes the estimate right for a query that lies where the cell does.
            let along = isa.dot(&residual, &rounded);
            let stretch = if along > 0.0 { length / along } else { 0.0 };
            let own = length + 2.0 * stretch * isa.dot(&parent, &rounded);
            *add = (cells.weight() * own).to_le_bytes();
            *scale = stretch.to_le_bytes();
            match self.dsub {
                1 => pack::<1>(&nearest, lane, codes),
                2 => pack::<2>(&nearest, lane, codes),
                _ => pack::<4>(&nearest, lane, codes),
            }
        }
    }
}

/// Packs the levels of `D` dimensions into each code, and the codes into a lane of a block.
fn pack<const D: usize>(nearest: &[u8], lane: usize, codes: &mut [u8]) {
    let (groups, _) = nearest.as_chunks::<D>().0.as_chunks::<8>();
    for (group, out) in groups.iter().zip(codes.as_chunks_mut::<64>().0) {
        let code =
            |levels: &[u8; D]| levels.iter().rev().fold(0, |code, level| code << (4 / D) | level);
        for at in 0..4 {
            out[4 * lane + at] = code(&group[at]) | code(&group[at + 4]) << 4;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_of_the_grid_are_what_its_quantizer_gives() {
        for dim in [3, 50, 130, 500] {
            let value = |i: usize| ((i * 7919 % 1000) as f32 - 500.0) / 150.0;
            let grid = Levels::new(dim, (0..dim).map(|d| 0.5 + (d % 5) as f32).collect());
            let residual: Vec<f32> = (0..dim).map(|d| value(d) * grid.widths[d]).collect();
            let (pq, mut nearest) = (grid.quantizer(), vec![0; dim]);
            let mut expected = vec![0; pq.m];
            pq.encode(&residual, &mut expected);
            let mut rounded = vec![0.0; dim];
            let kernel_grid = Grid { levels: grid.levels, widths: &grid.widths };
            Isa::detect().round(&kernel_grid, &residual, &mut nearest, &mut rounded);
            let codes: Vec<u8> = nearest
                .chunks(grid.dsub)
                .map(|l| l.iter().rev().fold(0, |code, level| code << (4 / grid.dsub) | level))
                .collect();
            assert_eq!(codes, expected, "{dim} dimensions");
            let mut decoded = vec![0.0; dim];
            pq.decode(&codes, &mut decoded);
            assert_eq!(rounded, decoded, "{dim} dimensions");
        }
    }
}
