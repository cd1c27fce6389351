//! Vectors rounded to bytes, compared four at a time with others that lie side by side.

use crate::kernel::{Hit, Isa};
use crate::quantizer::rows::{Bytes, Four, RowTiles, Rows, round_query, round_row};

/// Rows as `scale * (byte - 128)`.
#[derive(Debug)]
pub(crate) struct Rounded {
    width: usize,
    bytes: Vec<u8>,
    scales: Vec<f32>,
}

impl Rounded {
    pub(crate) fn new(rows: &[f32], dim: usize) -> Rounded {
        let width = dim.next_multiple_of(4);
        let mut bytes = vec![0; rows.len() / dim * width];
        let rows = rows.chunks_exact(dim).zip(bytes.chunks_exact_mut(width));
        let scales = rows.map(|(row, bytes)| round_query(row, bytes)).collect();
        Rounded { width, bytes, scales }
    }

    pub(super) fn len(&self) -> usize {
        self.scales.len()
    }

    /// Lays out up to four rows for the kernel: the first again where there are fewer.
    pub(super) fn lay_out(&self, rows: &[u32], four: &mut Four) {
        let row = |at: usize| *rows.get(at).unwrap_or(&rows[0]) as usize;
        let bytes = |row: usize| &self.bytes[row * self.width..][..self.width];
        four.set(
            [0, 1, 2, 3].map(row).map(|row| Bytes { bytes: bytes(row), scale: self.scales[row] }),
        );
    }
}

/// Centroids side by side that rows are assigned to.
#[derive(Debug)]
pub(crate) struct Seats(RowTiles);

impl Seats {
    pub(crate) fn new(centroids: &[f32], dim: usize) -> Seats {
        Seats(side_by_side(centroids, dim, 1.0))
    }

    /// The nearest centroid of each row: of equally near ones the first.
    pub(crate) fn nearest(&self, isa: Isa, rows: &Rounded) -> Vec<u32> {
        let mut four = Four::default();
        let all: Vec<u32> = (0..rows.len() as u32).collect();
        let of_four = |four_rows: &[u32]| {
            rows.lay_out(four_rows, &mut four);
            self.0.four_least(isa, &four).into_iter().take(four_rows.len()).map(|hit| hit.slot)
        };
        all.chunks(4).flat_map(of_four).collect()
    }
}

/// Vectors as one group of tiles.
fn side_by_side(vectors: &[f32], dim: usize, weight: f32) -> RowTiles {
    let mut codes = Vec::with_capacity(vectors.len());
    let scales = vectors.chunks_exact(dim).map(|vector| round_row(vector, &mut codes)).collect();
    let rows = Rows::gather(dim, scales, &codes.chunks_exact(dim).collect::<Vec<_>>());
    RowTiles::new(&rows, std::iter::once(0..rows.len() as u32), weight)
}

/// Queries that rows are held against, to pass over those that are too far: with certainty, as
/// rounding in steps of `s` moves a vector by `s sqrt(dim) / 2` at most, and by as much times the
/// length of the other vector a product.
#[derive(Debug)]
pub(crate) struct Sieve {
    dim: usize,
    tiles: RowTiles,
    lengths: Vec<f32>,
    hits: [Vec<Hit>; 4],
}

impl Sieve {
    pub(crate) fn new(isa: Isa, queries: &[f32], dim: usize) -> Sieve {
        let lengths = queries.chunks_exact(dim).map(|query| isa.dot(query, query).sqrt());
        let (lengths, tiles) = (lengths.collect(), side_by_side(queries, dim, 0.0));
        Sieve { dim, tiles, lengths, hits: Default::default() }
    }

    /// Calls `found` with every query and row whose key, `weight * square - 2 <query, row>`, is below
    /// the limit of the query, and with some more.
    pub(crate) fn pass(
        &mut self,
        isa: Isa,
        (rows, squares): (&Rounded, &[f32]),
        (weight, limits): (f32, &[f32]),
        mut found: impl FnMut(usize, usize),
    ) {
        let greatest = |values: &[f32]| values.iter().fold(0.0_f32, |most, value| most.max(*value));
        let (step, length) = (greatest(&rows.scales), greatest(squares).sqrt());
        // A little more, for what is rounded here.
        let root = 1.01 * (self.dim as f32).sqrt();
        for (query, (own, limit)) in self.lengths.iter().zip(limits).enumerate() {
            let slack = root * (own * step + (length + root * step) * self.tiles.scale(query));
            self.tiles.set_norm(query, -limit - slack);
        }
        let all: Vec<u32> = (0..rows.len() as u32).collect();
        let mut four = Four::default();
        for (four_rows, squares) in all.chunks(4).zip(squares.chunks(4)) {
            rows.lay_out(four_rows, &mut four);
            let limit = |square: &f32| -weight * square;
            let limits = [0, 1, 2, 3].map(|at| squares.get(at).map_or(f32::NEG_INFINITY, limit));
            self.tiles.four_keys(isa, 0, &four, limits, &mut self.hits);
            for (row, hits) in four_rows.iter().zip(&mut self.hits) {
                hits.drain(..).for_each(|hit| found(hit.slot as usize, *row as usize));
            }
        }
    }
}
