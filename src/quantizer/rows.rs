//! Vectors as `scale * i8`, and the bytes of a query to go with them.

use crate::kernel::Isa;

/// What a zero is in the bytes of a query.
const ZERO: i32 = 128;

/// Rows of `scale * i8`, padded to the width of the kernel and aligned to cache lines.
#[derive(Clone, Debug)]
pub(super) struct Rows {
    dim: usize,
    width: usize,
    /// The rows begin at `start`.
    codes: Vec<i8>,
    start: usize,
    scales: Vec<f32>,
    norms: Vec<f32>,
    /// What the integer dot of a row is too large by: `ZERO` times the sum of its codes.
    excess: Vec<i32>,
}

impl Rows {
    pub(super) fn with_capacity(dim: usize, rows: usize) -> Rows {
        let width = dim.next_multiple_of(64);
        let codes = vec![0; rows * width + 63];
        let start = codes.as_ptr().align_offset(64).min(63);
        let (scales, norms) = (Vec::with_capacity(rows), Vec::with_capacity(rows));
        Rows { dim, width, codes, start, scales, norms, excess: Vec::with_capacity(rows) }
    }

    /// Appends a row of `dim` codes; there is room for as many as were asked for.
    pub(super) fn push(&mut self, scale: f32, codes: &[i8]) {
        let at = self.start + self.len() * self.width;
        self.codes[at..at + self.dim].copy_from_slice(codes);
        let squares: i64 = codes.iter().map(|code| i64::from(*code) * i64::from(*code)).sum();
        self.norms.push((f64::from(scale) * f64::from(scale) * squares as f64) as f32);
        self.excess.push(ZERO * codes.iter().map(|code| i32::from(*code)).sum::<i32>());
        self.scales.push(scale);
    }

    pub(super) fn len(&self) -> usize {
        self.scales.len()
    }

    pub(super) fn norm(&self, row: usize) -> f32 {
        self.norms[row]
    }

    fn codes(&self, row: usize) -> &[i8] {
        &self.codes[self.start + row * self.width..][..self.dim]
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

    pub(super) fn prefetch(&self, isa: Isa, row: usize) {
        isa.prefetch(self.codes(row));
    }

    /// The inner product with a query of `dim` numbers.
    pub(super) fn dot(&self, isa: Isa, row: usize, query: &[f32]) -> f32 {
        self.scales[row] * isa.dot_i8(query, self.codes(row))
    }

    /// Writes `weight * norm - 2 * dot` of the rows `first..first + out.len()`, as near as the bytes
    /// of the query are.
    pub(super) fn keys(
        &self,
        isa: Isa,
        query: Bytes<'_>,
        weight: f32,
        first: usize,
        (dots, out): (&mut Vec<i32>, &mut [f32]),
    ) {
        let end = first + out.len();
        dots.resize(out.len(), 0);
        let codes = &self.codes[self.start + first * self.width..self.start + end * self.width];
        isa.dots_i8(query.bytes, codes, dots);
        let step = -2.0 * query.scale;
        let rows = dots.iter().zip(&self.excess[first..end]);
        let rows = rows.zip(self.scales[first..end].iter().zip(&self.norms[first..end]));
        for (out, ((dot, excess), (scale, norm))) in out.iter_mut().zip(rows) {
            *out = weight * norm + step * scale * (dot - excess) as f32;
        }
    }

    /// The bytes a query of these rows takes.
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

/// Rounds a query to bytes, padded to their length, and returns the scale.
pub(super) fn round_query(query: &[f32], bytes: &mut [u8]) -> f32 {
    let scale = largest(query) / 127.0;
    let inverse = if scale.is_normal() { 1.0 / scale } else { 0.0 };
    let (used, padding) = bytes.split_at_mut(query.len());
    for (byte, value) in used.iter_mut().zip(query) {
        *byte = (value * inverse + (ZERO as f32 + 0.5)) as u8;
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

fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0_f32, |most, value| most.max(value.abs()))
}
