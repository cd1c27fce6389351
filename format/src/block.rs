//! Sixteen codes in the order in which the scan kernels read them. Section 4.3.
//!
//! Product quantization is Jegou, Douze and Schmid 2011; the interleaving of 4-bit codes, for tables
//! held in registers, is after Andre, Kermarrec and Le Scouarnec 2015 ("quick ADC").

use crate::{BLOCK_ROWS, NO_ID};

/// Bytes of the factors of a block: sixteen to add, then sixteen to multiply by.
const FACTORS: usize = 128;
/// Bytes of the ids of a block.
const IDS: usize = 128;
/// Bytes of a group of eight 4-bit sub-quantizers.
const GROUP: usize = 64;

/// What the codes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CodeKind {
    /// The vector itself, in `f32`.
    Flat,
    /// A product quantizer of 4 bits a sub-quantizer.
    Pq4,
    /// A product quantizer of 8 bits a sub-quantizer.
    Pq8,
    /// The signs of the rotated vector (RaBitQ, Gao and Long 2024): 4-bit codes of four dimensions.
    RaBitQ,
}

impl CodeKind {
    /// As stored in the catalog.
    pub const fn code(self) -> u8 {
        match self {
            Self::Flat => 0,
            Self::Pq4 => 1,
            Self::Pq8 => 2,
            Self::RaBitQ => 3,
        }
    }

    /// The kind stored as `code`.
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Flat),
            1 => Some(Self::Pq4),
            2 => Some(Self::Pq8),
            3 => Some(Self::RaBitQ),
            _ => None,
        }
    }

    /// Codewords of a sub-quantizer; none for `Flat`.
    pub const fn codewords(self) -> usize {
        match self {
            Self::Flat => 0,
            Self::Pq4 | Self::RaBitQ => 16,
            Self::Pq8 => 256,
        }
    }
}

/// What an estimate needs of a row beside its code. Section 5.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Factors {
    /// Is added: `A`.
    pub add: f32,
    /// What the sum of the table is multiplied by: `R`.
    pub scale: f32,
}

/// Where the parts of a block lie: codes, then 16 factors of either kind, then 16 ids.
///
/// # Invariants
///
/// The three parts, and so the block, are whole multiples of 64 bytes. A lane is a row of the block,
/// below 16.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockLayout {
    kind: CodeKind,
    /// Bytes of one code outside a block.
    code_len: usize,
    /// Bytes of the sixteen codes in the block; the factors follow.
    code_bytes: usize,
}

impl BlockLayout {
    /// The layout of codes of `m` sub-quantizers, or (`Flat`) of vectors of `dim` dimensions.
    pub const fn new(kind: CodeKind, m: usize, dim: usize) -> Self {
        let (code_len, code_bytes) = match kind {
            CodeKind::Flat => (dim.saturating_mul(4), dim.saturating_mul(64)),
            CodeKind::Pq4 | CodeKind::RaBitQ => (m, m.div_ceil(8).saturating_mul(GROUP)),
            CodeKind::Pq8 => (m, m.div_ceil(4).saturating_mul(4 * BLOCK_ROWS)),
        };
        Self { kind, code_len, code_bytes }
    }

    /// What the codes are.
    pub const fn kind(&self) -> CodeKind {
        self.kind
    }

    /// Bytes of one code as [`BlockLayout::put`] takes it: `m`, or `4 dim` when `Flat`.
    pub const fn code_len(&self) -> usize {
        self.code_len
    }

    /// Bytes of the codes of a block. The factors begin here, the ids 128 bytes later.
    pub const fn code_bytes(&self) -> usize {
        self.code_bytes
    }

    /// Bytes of a block.
    pub const fn block_bytes(&self) -> usize {
        self.code_bytes.saturating_add(FACTORS + IDS)
    }

    /// A block of sixteen unused lanes.
    pub fn empty_block(&self) -> Vec<u8> {
        let mut block = vec![0; self.code_bytes];
        block.extend_from_slice([UNUSED.add.to_le_bytes(); BLOCK_ROWS].as_flattened());
        block.extend_from_slice([UNUSED.scale.to_le_bytes(); BLOCK_ROWS].as_flattened());
        block.extend_from_slice([NO_ID.to_le_bytes(); BLOCK_ROWS].as_flattened());
        block
    }

    /// Puts a row into a lane: its code (one byte a sub-quantizer, below 16 for 4-bit codes;
    /// little-endian `f32` for `Flat`), its factors and its id.
    ///
    /// # Panics
    ///
    /// When `block` or `code` has another length than this layout, when `lane` is not below 16, or
    /// a 4-bit code is not.
    pub fn put(&self, block: &mut [u8], lane: usize, code: &[u8], factors: Factors, id: u64) {
        assert_eq!(block.len(), self.block_bytes(), "a row is put into one block");
        assert_eq!(code.len(), self.code_len, "a code has the length of its layout");
        assert!(lane < BLOCK_ROWS, "a block has sixteen lanes");
        let (codes, factors_and_ids) = block.split_at_mut(self.code_bytes);
        match self.kind {
            CodeKind::Flat => put_flat(codes, lane, code),
            CodeKind::Pq4 | CodeKind::RaBitQ => put_nibbles(codes, lane, code),
            CodeKind::Pq8 => put_bytes(codes, lane, code),
        }
        let (both, ids) = factors_and_ids.split_at_mut(FACTORS);
        let (add, scale) = both.split_at_mut(FACTORS / 2);
        for (to, factor) in [(add, factors.add), (scale, factors.scale)] {
            if let Some(to) = to.as_chunks_mut().0.get_mut(lane) {
                *to = factor.to_le_bytes();
            }
        }
        if let Some(to) = ids.as_chunks_mut().0.get_mut(lane) {
            *to = id.to_le_bytes();
        }
    }

    /// Reads back the code that [`BlockLayout::put`] wrote.
    ///
    /// # Panics
    ///
    /// As `put`.
    pub fn take(&self, block: &[u8], lane: usize, code: &mut [u8]) {
        assert_eq!(block.len(), self.block_bytes(), "a row is taken from one block");
        assert_eq!(code.len(), self.code_len, "a code has the length of its layout");
        assert!(lane < BLOCK_ROWS, "a block has sixteen lanes");
        let (codes, _) = block.split_at(self.code_bytes);
        match self.kind {
            CodeKind::Flat => take_flat(codes, lane, code),
            CodeKind::Pq4 | CodeKind::RaBitQ => take_nibbles(codes, lane, code),
            CodeKind::Pq8 => take_bytes(codes, lane, code),
        }
    }

    /// The factors of a lane; those of an unused one when there is no such lane.
    pub fn factors(&self, block: &[u8], lane: usize) -> Factors {
        let both = block.get(self.code_bytes..).and_then(|rest| rest.get(..FACTORS));
        let (add, scale) =
            both.unwrap_or_default().split_at_checked(FACTORS / 2).unwrap_or_default();
        match (add.as_chunks().0.get(lane), scale.as_chunks().0.get(lane)) {
            (Some(add), Some(scale)) => {
                Factors { add: f32::from_le_bytes(*add), scale: f32::from_le_bytes(*scale) }
            }
            _ => UNUSED,
        }
    }

    /// The id of a lane; [`NO_ID`], as of an unused one, when there is no such lane.
    pub fn id(&self, block: &[u8], lane: usize) -> u64 {
        let id = self.id_bytes(block, lane).first_chunk();
        id.map_or(NO_ID, |bytes| u64::from_le_bytes(*bytes))
    }

    /// Where the id of a lane lies; empty when there is no such lane.
    pub fn id_bytes<'a>(&self, block: &'a [u8], lane: usize) -> &'a [u8] {
        let ids = block.get(self.code_bytes.saturating_add(FACTORS)..);
        let ids = ids.and_then(|rest| rest.get(..IDS));
        let lane = ids.and_then(|ids| ids.as_chunks::<8>().0.get(lane));
        lane.map_or(&[], |bytes| bytes)
    }
}

/// The factors of an unused lane: no estimate is below infinity.
const UNUSED: Factors = Factors { add: f32::INFINITY, scale: 0.0 };

fn put_flat(codes: &mut [u8], lane: usize, code: &[u8]) {
    if let Some(to) = codes.chunks_exact_mut(code.len().max(1)).nth(lane) {
        to.copy_from_slice(code);
    }
}

fn take_flat(codes: &[u8], lane: usize, code: &mut [u8]) {
    if let Some(from) = codes.chunks_exact(code.len().max(1)).nth(lane) {
        code.copy_from_slice(from);
    }
}

/// In each group of eight sub-quantizers a lane has four bytes: `j` low, `j + 4` high.
fn put_nibbles(codes: &mut [u8], lane: usize, code: &[u8]) {
    assert!(code.iter().all(|code| *code < 16), "a 4-bit code is below 16");
    for (group, part) in codes.as_chunks_mut::<GROUP>().0.iter_mut().zip(code.chunks(8)) {
        let (low, high) = part.split_at(part.len().min(4));
        let high = high.iter().copied().chain(std::iter::repeat(0));
        let low = low.iter().copied().chain(std::iter::repeat(0));
        if let Some(to) = group.as_chunks_mut::<4>().0.get_mut(lane) {
            for (to, (low, high)) in to.iter_mut().zip(low.zip(high)) {
                *to = low | (high << 4);
            }
        }
    }
}

fn take_nibbles(codes: &[u8], lane: usize, code: &mut [u8]) {
    for (group, part) in codes.as_chunks::<GROUP>().0.iter().zip(code.chunks_mut(8)) {
        let (low, high) = part.split_at_mut(part.len().min(4));
        if let Some(from) = group.as_chunks::<4>().0.get(lane) {
            for (to, from) in low.iter_mut().zip(from) {
                *to = from & 15;
            }
            for (to, from) in high.iter_mut().zip(from) {
                *to = from >> 4;
            }
        }
    }
}

/// A column of sixteen bytes for each sub-quantizer.
fn put_bytes(codes: &mut [u8], lane: usize, code: &[u8]) {
    for (column, from) in codes.as_chunks_mut::<BLOCK_ROWS>().0.iter_mut().zip(code) {
        if let Some(to) = column.get_mut(lane) {
            *to = *from;
        }
    }
}

fn take_bytes(codes: &[u8], lane: usize, code: &mut [u8]) {
    for (column, to) in codes.as_chunks::<BLOCK_ROWS>().0.iter().zip(code) {
        if let Some(from) = column.get(lane) {
            *to = *from;
        }
    }
}
