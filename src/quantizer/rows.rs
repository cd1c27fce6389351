//! Vectors as `scale * i8`: row by row, and 16 side by side for the kernel that ranks them.

use crate::kernel::{Aligned, Hit, Isa, LANES, Tiles};
use rayon::prelude::*;
use std::ops::Range;

/// Numbers of this size are whole.
const ROUND: f32 = (1 << 23) as f32;
/// What a zero is in the bytes of a query.
const ZERO: i32 = 128;

/// Rows of `scale * i8`.
#[derive(Debug)]
pub(super) struct Rows {
    dim: usize,
    /// Codes from one row to the next: whole cache lines.
    stride: usize,
    codes: Aligned<i8>,
    scales: Vec<f32>,
    norms: Vec<f32>,
}

impl Rows {
    /// Rows of `dim` codes each, in parallel: there are as many as scales.
    pub(super) fn gather(dim: usize, scales: Vec<f32>, codes: &[&[i8]]) -> Rows {
        assert_eq!(scales.len(), codes.len());
        let stride = dim.next_multiple_of(64);
        let mut all = Aligned::new(scales.len() * stride);
        let out = all.par_chunks_exact_mut(stride.max(1)).zip(&scales).zip(codes);
        let one = |((out, scale), codes): ((&mut [i8], &f32), &&[i8])| {
            out[..dim].copy_from_slice(codes);
            // Fits: a row is at most 65,536 codes.
            let squares: i32 = codes.iter().map(|code| i32::from(*code) * i32::from(*code)).sum();
            (f64::from(*scale) * f64::from(*scale) * f64::from(squares)) as f32
        };
        let norms = out.with_min_len(256).map(one).collect();
        Rows { dim, stride, codes: all, scales, norms }
    }

    pub(super) fn dim(&self) -> usize {
        self.dim
    }

    pub(super) fn len(&self) -> usize {
        self.scales.len()
    }

    /// The squared length of a row.
    pub(super) fn norm(&self, row: usize) -> f32 {
        self.norms[row]
    }

    fn codes(&self, row: usize) -> &[i8] {
        &self.codes[row * self.stride..][..self.dim]
    }

    pub(super) fn decode(&self, row: usize, out: &mut [f32]) {
        assert_eq!(out.len(), self.dim);
        let scale = self.scales[row];
        out.iter_mut().zip(self.codes(row)).for_each(|(out, code)| *out = scale * f32::from(*code));
    }

    pub(super) fn subtract(&self, row: usize, from: &mut [f32]) {
        let scale = self.scales[row];
        let pairs = from.iter_mut().zip(self.codes(row));
        pairs.for_each(|(value, code)| *value -= scale * f32::from(*code));
    }

    /// The inner product with a query of `dim` numbers.
    pub(super) fn dot(&self, isa: Isa, row: usize, query: &[f32]) -> f32 {
        self.scales[row] * isa.dot_i8(query, self.codes(row))
    }

    pub(super) fn prefetch(&self, isa: Isa, row: usize) {
        isa.prefetch(self.codes(row));
        isa.prefetch(&self.scales[row..=row]);
        isa.prefetch(&self.norms[row..=row]);
    }
}

/// Groups of rows, 16 side by side, to be ranked by `weight * norm - 2 * dot`.
#[derive(Debug)]
pub(super) struct RowTiles {
    width: usize,
    codes: Aligned<i8>,
    excess: Vec<i32>,
    scales: Vec<f32>,
    norms: Vec<f32>,
    /// The first slot of each group, and the number of slots.
    first: Vec<usize>,
}

impl RowTiles {
    pub(super) fn new(
        rows: &Rows,
        groups: impl ExactSizeIterator<Item = Range<u32>> + Clone,
        weight: f32,
    ) -> RowTiles {
        let width = rows.dim.next_multiple_of(4);
        let mut first = vec![0];
        for group in groups.clone() {
            first.push(first[first.len() - 1] + group.len().next_multiple_of(LANES));
        }
        let slots = first[groups.len()];
        let mut tiles = RowTiles {
            width,
            codes: Aligned::new(slots * width),
            excess: vec![0; slots],
            scales: vec![0.0; slots],
            norms: vec![f32::INFINITY; slots],
            first,
        };
        for (group, range) in groups.enumerate() {
            for (slot, row) in (tiles.first[group]..).zip(range) {
                let row = row as usize;
                tiles.excess[slot] =
                    ZERO * rows.codes(row).iter().map(|code| i32::from(*code)).sum::<i32>();
                tiles.scales[slot] = rows.scales[row];
                tiles.norms[slot] = weight * rows.norms[row];
                let tile = &mut tiles.codes[slot / LANES * LANES * width..][..LANES * width];
                for (at, four) in rows.codes(row).chunks(4).enumerate() {
                    let to = (at * LANES + slot % LANES) * 4;
                    tile[to..to + four.len()].copy_from_slice(four);
                }
            }
        }
        tiles
    }

    /// Appends the rows of a group whose keys are below the limit, as near as the bytes of the query
    /// are; slots count from the first row of the group.
    pub(super) fn keys(
        &self,
        isa: Isa,
        group: usize,
        query: Bytes<'_>,
        limit: f32,
        hits: &mut Vec<Hit>,
    ) {
        let tiles = self.group(group);
        isa.keys_i8(query.bytes, &tiles, (-2.0 * query.scale, limit), hits);
    }

    /// The same for four queries, their bytes laid out for the kernel.
    pub(super) fn four_keys(
        &self,
        isa: Isa,
        group: usize,
        queries: &Four,
        limits: [f32; 4],
        hits: &mut [Vec<Hit>; 4],
    ) {
        let limits = std::array::from_fn(|at| (-2.0 * queries.scales[at], limits[at]));
        isa.four_keys_i8(&queries.bytes, &self.group(group), limits, hits);
    }

    /// The row of the least key for each of four queries, of the first group: of equal keys the first.
    pub(super) fn four_least(&self, isa: Isa, queries: &Four) -> [Hit; 4] {
        isa.four_least_i8(&queries.bytes, &self.group(0), queries.scales.map(|scale| -2.0 * scale))
    }

    /// The scale of a row of the first group.
    pub(super) fn scale(&self, slot: usize) -> f32 {
        self.scales[slot]
    }

    /// Changes what is added for a row of the first group.
    pub(super) fn set_norm(&mut self, slot: usize, norm: f32) {
        self.norms[slot] = norm;
    }

    fn group(&self, group: usize) -> Tiles<'_> {
        let slots = self.first[group]..self.first[group + 1];
        Tiles {
            codes: &self.codes[slots.start * self.width..slots.end * self.width],
            excess: &self.excess[slots.clone()],
            scales: &self.scales[slots.clone()],
            norms: &self.norms[slots],
        }
    }

    /// The bytes that a query takes.
    pub(super) fn width(&self) -> usize {
        self.width
    }
}

/// A query as `scale * (byte - 128)`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bytes<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) scale: f32,
}

/// Four queries, four numbers of each, then the next four.
#[derive(Debug, Default)]
pub(super) struct Four {
    bytes: Vec<[[u8; 4]; 4]>,
    scales: [f32; 4],
}

impl Four {
    pub(super) fn set(&mut self, queries: [Bytes<'_>; 4]) {
        let queries_of = queries.map(|query| query.bytes.as_chunks::<4>().0);
        let [a, b, c, d] = queries_of.map(<[[u8; 4]]>::iter);
        self.bytes.clear();
        self.bytes.extend(a.zip(b).zip(c).zip(d).map(|(((a, b), c), d)| [*a, *b, *c, *d]));
        self.scales = queries.map(|query| query.scale);
    }
}

/// Rounds a query to bytes, padded to their length, and returns the scale.
pub(super) fn round_query(query: &[f32], bytes: &mut [u8]) -> f32 {
    let scale = largest(query) / 127.0;
    let inverse = if scale.is_normal() { 1.0 / scale } else { 0.0 };
    let (used, padding) = bytes.split_at_mut(query.len());
    for (byte, value) in used.iter_mut().zip(query) {
        // Rounds to the last bits of the sum, which takes many at a time.
        *byte = (value * inverse + (ROUND + ZERO as f32)).to_bits() as u8;
    }
    padding.fill(ZERO as u8);
    scale
}

/// Rounds a vector to `scale * i8`, appends the codes, and returns the scale.
pub(super) fn round_row(row: &[f32], codes: &mut Vec<i8>) -> f32 {
    let scale = largest(row) / 127.0;
    let inverse = if scale.is_normal() { 1.0 / scale } else { 0.0 };
    codes.extend(row.iter().map(|value| (value * inverse).round() as i8));
    if inverse == 0.0 { 0.0 } else { scale }
}

/// The greatest magnitude, by 16 lanes.
fn largest(values: &[f32]) -> f32 {
    let mut most = [0.0_f32; LANES];
    for part in values.chunks(LANES) {
        for (most, value) in most.iter_mut().zip(part) {
            *most = most.max(value.abs());
        }
    }
    most.into_iter().fold(0.0, f32::max)
}
