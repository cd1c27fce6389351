//! Rows as a model has encoded them, on their way into a tail or a list.

use super::Inner;
use super::model::Model;
use crate::error::Result;
use crate::quantizer::FEW;
use crate::quantizer::assign::BATCH;
use crate::runtime::evenly;
use cellardb_format::{Factors, NONE};
use std::ops::Range;
use std::sync::Arc;

/// Rows brought into cells and codes: one copy of each, or two.
#[derive(Debug, Default, Clone)]
pub(crate) struct Encoded {
    /// The generation of the model that did it; 0 when there was none.
    pub(crate) generation: u32,
    /// Copies of a row.
    pub(super) copies: usize,
    /// Of each copy; [`NONE`] where there is no second.
    pub(super) cells: Vec<u32>,
    /// `code_len` bytes a copy.
    pub(super) codes: Vec<u8>,
    pub(super) factors: Vec<Factors>,
    /// The squared distance of each row to the centroid of its first cell.
    pub(super) distances: Vec<f32>,
}

/// One copy of a row.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Copy<'a> {
    pub(crate) cell: u32,
    pub(crate) code: &'a [u8],
    pub(crate) factors: Factors,
}

impl Encoded {
    /// These rows, and behind them others of the same model.
    pub(crate) fn and(mut self, others: Self) -> Self {
        self.cells.extend(others.cells);
        self.codes.extend(others.codes);
        self.factors.extend(others.factors);
        self.distances.extend(others.distances);
        self
    }

    /// The first and the second cell of each row, [`NONE`] without.
    pub(crate) fn cells(&self) -> impl Iterator<Item = (u32, u32)> {
        let rows = self.cells.chunks_exact(self.copies.max(1));
        rows.map(|cells| match cells {
            [first, second] => (*first, *second),
            [first, ..] => (*first, NONE),
            [] => (NONE, NONE),
        })
    }

    /// The squared distance of each row to the centroid of its first cell.
    pub(crate) fn distances(&self) -> &[f32] {
        &self.distances
    }

    /// The copies of each row that are in a cell.
    pub(crate) fn rows(&self) -> impl Iterator<Item = impl Iterator<Item = Copy<'_>>> {
        let copies = self.copies.max(1);
        let rows = self.cells.len() / copies;
        let code_len = self.codes.len() / self.cells.len().max(1);
        let copy = move |at: usize| Copy {
            cell: self.cells[at],
            code: &self.codes[at * code_len..(at + 1) * code_len],
            factors: self.factors[at],
        };
        let of_row = move |row: usize| (row * copies..(row + 1) * copies).map(copy);
        (0..rows).map(move |row| of_row(row).filter(|copy| copy.cell != NONE))
    }
}

impl Inner {
    /// Cells and codes of rows that a caller brings; nothing without a model. A few rows are not worth waking
    /// others, and so many as are not assigned in batches do not wait for threads that have other work.
    pub(crate) fn encode(
        self: &Arc<Self>,
        model: Option<&Arc<Model>>,
        vectors: &[f32],
        scales: &[f32],
    ) -> Result<Encoded> {
        let Some(model) = model else { return Ok(Encoded::default()) };
        let n = scales.len();
        if n >= BATCH || !model.router.is_ready() {
            return self.calls.run(|| Ok(self.encoded(model, vectors, scales)));
        }
        if n <= FEW {
            return Ok(self.encoded(model, vectors, scales));
        }
        let (own, model, dim) = (Arc::clone(self), Arc::clone(model), self.dim);
        let (vectors, scales) = (vectors.to_vec(), scales.to_vec());
        let threads = self.calls.count(0)?;
        let shares = evenly(n, n.div_ceil(FEW).next_multiple_of(threads).min(n)).collect();
        let parts = self.calls.share(threads, shares, move |Range { start, end }| {
            let vectors = &vectors[start * dim..end * dim];
            Ok(vec![own.encoded(&model, vectors, &scales[start..end])])
        })?;
        Ok(parts.into_iter().reduce(Encoded::and).unwrap_or_default())
    }

    /// Cells and codes of rows, in parallel unless there are few.
    pub(super) fn encoded(&self, model: &Model, vectors: &[f32], scales: &[f32]) -> Encoded {
        let cells = model.assign(self.isa, &self.searched(vectors, scales));
        model.encode(vectors, scales, cells)
    }
}
