//! One row of a row segment: the vector as inserted, and where it was assigned. Section 4.1.

use crate::bytes::{Reader, count_u32, len_u64};
use crate::checksum::crc;
use crate::error::{FormatError, FormatErrorKind};
use crate::{MAX_CELLS, MAX_ID, NONE};
use std::borrow::Cow;
use zerocopy::FromBytes;

/// Bytes after the vector.
const TRAILER: usize = 32;
/// Rows, and so their vectors, start at multiples of this many bytes.
const ROW_ALIGN: usize = 32;

/// What a row says beside its vector.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Row {
    /// Row id, below 2^63.
    pub id: u64,
    /// Model generation of the two cells, 0 when not assigned.
    pub generation: u32,
    /// First cell, or [`NONE`].
    pub cell: u32,
    /// Second cell, or [`NONE`].
    pub spill: u32,
    /// `1 / |vector|` under cosine, else 1.
    pub scale: f32,
}

/// Where the parts of a row lie.
///
/// # Invariants
///
/// `vector_bytes = 4 dim <= body`, `body` and `stride = body + 32` are multiples of 32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowLayout {
    dim: usize,
    body: usize,
    stride: usize,
}

impl RowLayout {
    /// The layout of rows of `dim` dimensions.
    pub const fn new(dim: usize) -> Self {
        let body = dim.saturating_mul(4).div_ceil(ROW_ALIGN).saturating_mul(ROW_ALIGN);
        Self { dim, body, stride: body.saturating_add(TRAILER) }
    }

    /// Bytes from one row to the next.
    pub const fn stride(&self) -> usize {
        self.stride
    }

    /// Bytes of the vector, at the start of the row.
    pub const fn vector_bytes(&self) -> usize {
        self.dim.saturating_mul(4)
    }

    /// Writes row `index` of segment `segment`.
    ///
    /// # Panics
    ///
    /// When `out` is not one stride, or `vector` not `dim` long.
    pub fn encode(
        &self,
        out: &mut [u8],
        vector: &[f32],
        row: &Row,
        uuid: &[u8; 16],
        segment: u64,
        index: u64,
    ) {
        assert_eq!(out.len(), self.stride, "a row is written into one stride");
        assert_eq!(vector.len(), self.dim, "a vector has the dimension of its index");
        let (body, trailer) = out.split_at_mut(self.body);
        let (values, zeros) = body.split_at_mut(self.vector_bytes());
        for (to, from) in values.as_chunks_mut().0.iter_mut().zip(vector) {
            *to = from.to_le_bytes();
        }
        zeros.fill(0);
        let id = row.id.to_le_bytes();
        let fields = [row.generation, row.cell, row.spill, row.scale.to_bits(), 0];
        let fields = fields.map(u32::to_le_bytes);
        for (to, from) in trailer.iter_mut().zip(id.iter().chain(fields.as_flattened())) {
            *to = *from;
        }
        if let Some((covered, sum)) = out.split_last_chunk_mut::<4>() {
            *sum = row_crc(uuid, segment, index, covered).to_le_bytes();
        }
    }

    /// Reads row `index` of segment `segment` at the start of `bytes`.
    ///
    /// # Errors
    ///
    /// `Truncated`; `Checksum` when the row is damaged or of another index, segment or index;
    /// `Value` when a field cannot be.
    pub fn parse(
        &self,
        bytes: &[u8],
        uuid: &[u8; 16],
        segment: u64,
        index: u64,
    ) -> Result<Row, FormatError> {
        let bytes = Reader::new(bytes).take(self.stride)?;
        match bytes.split_last_chunk::<4>() {
            Some((covered, sum))
                if row_crc(uuid, segment, index, covered) == u32::from_le_bytes(*sum) =>
            {
                self.trailer(bytes)
            }
            _ => {
                let offset = len_u64(self.stride).saturating_sub(4);
                Err(FormatError::new(offset, FormatErrorKind::Checksum))
            }
        }
    }

    /// What [`RowLayout::parse`] returns, without its checksum: for rows that were verified before.
    ///
    /// # Errors
    ///
    /// `Truncated`; `Value` when a field cannot be.
    pub fn trailer(&self, bytes: &[u8]) -> Result<Row, FormatError> {
        let mut reader = Reader::new(Reader::new(bytes).take(self.stride)?);
        reader.take(self.body)?;
        let id = reader.u64()?;
        reader.ensure(id < MAX_ID, "row id")?;
        let generation = reader.u32()?;
        let cell = reader.u32()?;
        reader.ensure(is_cell(cell), "cell of a row")?;
        let spill = reader.u32()?;
        reader.ensure(is_cell(spill), "second cell of a row")?;
        let scale = reader.f32()?;
        reader.ensure(scale.is_finite() && scale >= 0.0, "scale of a row")?;
        let reserved = reader.u32()?;
        reader.ensure(reserved == 0, "reserved field of a row")?;
        Ok(Row { id, generation, cell, spill, scale })
    }

    /// The vector of the row at the start of `bytes`; see [`floats`].
    ///
    /// # Errors
    ///
    /// `Truncated`.
    pub fn vector<'a>(&self, bytes: &'a [u8]) -> Result<Cow<'a, [f32]>, FormatError> {
        Reader::new(bytes).take(self.vector_bytes()).map(floats)
    }
}

/// Little-endian bytes as numbers: borrowed when aligned, else copied. Up to three bytes at the end
/// that make no number are left out.
pub fn floats(bytes: &[u8]) -> Cow<'_, [f32]> {
    let (values, _) = bytes.as_chunks::<4>();
    if cfg!(target_endian = "little")
        && let Ok(borrowed) = <[f32]>::ref_from_bytes(values.as_flattened())
    {
        return Cow::Borrowed(borrowed);
    }
    Cow::Owned(values.iter().map(|value| f32::from_le_bytes(*value)).collect())
}

fn is_cell(cell: u32) -> bool {
    cell == NONE || cell < count_u32(MAX_CELLS)
}

fn row_crc(uuid: &[u8; 16], segment: u64, index: u64, covered: &[u8]) -> u32 {
    crc(&[uuid, &segment.to_le_bytes(), &index.to_le_bytes(), covered])
}
