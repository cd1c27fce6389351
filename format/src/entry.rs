//! The values of the catalog that grow with the index: segments, lists, routing, tombstones.
//! Section 6. `encode` gives the value unsealed and `parse` takes it unsealed; see [`crate::seal`].

use crate::bitmap;
use crate::block::BlockLayout;
use crate::bytes::{Reader, count_u32, index, len_u64};
use crate::error::{FormatError, FormatErrorKind};
use crate::frame::frame_len;
use crate::{BLOCK_ROWS, FRAME_ALIGN, HEADER_LEN, MAX_CELLS, MAX_ID, MAX_LIST_BYTES};
use roaring::RoaringBitmap;

/// The shortest block: one group of codes, factors and ids.
const MIN_BLOCK: usize = 320;

/// A file of rows.
///
/// # Invariants
///
/// Dense (`ids` is `None`): `rows = end_id - first_id`. Sparse: `ids` holds `rows` values, all below
/// `end_id - first_id`, and the rank of `id - first_id` among them is the index of the row.
#[derive(Debug, Clone, PartialEq)]
pub struct Segment {
    /// No row has a smaller id.
    pub first_id: u64,
    /// No row has this id or a greater one.
    pub end_id: u64,
    /// Committed rows.
    pub rows: u64,
    /// Of a compacted segment the ids of its rows, less `first_id`.
    pub ids: Option<RoaringBitmap>,
}

impl Segment {
    /// The value as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(25);
        for field in [self.first_id, self.end_id, self.rows] {
            out.extend_from_slice(&field.to_le_bytes());
        }
        out.push(u8::from(self.ids.is_some()));
        if let Some(ids) = &self.ids {
            bitmap::append(ids, &mut out);
        }
        out
    }

    /// Reads the value.
    ///
    /// # Errors
    ///
    /// `Truncated`, `Length`; `Value` when the ids, their range and the number of rows disagree.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new(bytes);
        let first_id = reader.u64()?;
        let end_id = reader.u64()?;
        reader.ensure(first_id <= end_id && end_id <= MAX_ID, "range of ids of a segment")?;
        let span = end_id.saturating_sub(first_id);
        let rows = reader.u64()?;
        reader.ensure(rows <= span, "number of rows of a segment")?;
        let dense = reader.error(FormatErrorKind::Value("number of rows of a dense segment"));
        let ids = match reader.u8()? {
            0 if rows != span => return Err(dense),
            0 => None,
            1 => Some(parse_bitmap(&mut reader)?),
            _ => return Err(reader.error(FormatErrorKind::Value("form of a segment"))),
        };
        if let Some(ids) = &ids {
            reader.ensure(ids.len() == rows, "number of ids of a segment")?;
            let within = ids.max().is_none_or(|last| u64::from(last) < span);
            reader.ensure(within, "ids of a segment")?;
        }
        reader.finish()?;
        Ok(Self { first_id, end_id, rows, ids })
    }
}

/// A frame of a list, as the catalog knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameEntry {
    /// The cell of its rows.
    pub cell: u32,
    /// Rows.
    pub rows: u32,
    /// Where it begins in the file; a multiple of 64.
    pub offset: u64,
    /// Its checksum, see [`crate::frame_crc`].
    pub crc: u32,
}

impl FrameEntry {
    /// Bytes of its payload, which follow from its rows.
    pub fn payload_len(&self, layout: &BlockLayout) -> usize {
        self.blocks().saturating_mul(layout.block_bytes())
    }

    fn blocks(&self) -> usize {
        index(self.rows).div_ceil(BLOCK_ROWS)
    }

    /// Where a frame of blocks of this size ends.
    fn end(&self, block_bytes: usize) -> u64 {
        let len = frame_len(self.blocks().saturating_mul(block_bytes));
        self.offset.saturating_add(len_u64(len))
    }
}

/// The committed part of a list file.
///
/// # Invariants
///
/// Frames ascend, do not overlap, and lie between the file's header and `length`; `rows` is the
/// sum of theirs. That holds for the smallest blocks; [`ListEntry::check`] knows the true ones.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ListEntry {
    /// Revision of the file.
    pub revision: u32,
    /// Committed bytes of the file; 0 when there is none.
    pub length: u64,
    /// Rows in its frames, removed ones among them.
    pub rows: u64,
    /// In the order of the file.
    pub frames: Vec<FrameEntry>,
}

impl ListEntry {
    /// Bytes of one frame.
    const ENTRY: usize = 16;

    /// The value as bytes.
    ///
    /// # Panics
    ///
    /// When a frame begins at no multiple of 64, or 256 GiB or more into the file.
    pub fn encode(&self) -> Vec<u8> {
        let mut out =
            Vec::with_capacity(self.frames.len().saturating_mul(Self::ENTRY).saturating_add(24));
        out.extend_from_slice(&self.revision.to_le_bytes());
        out.extend_from_slice(&self.length.to_le_bytes());
        out.extend_from_slice(&self.rows.to_le_bytes());
        out.extend_from_slice(&count_u32(self.frames.len()).to_le_bytes());
        for FrameEntry { cell, rows, offset, crc } in &self.frames {
            let aligned = offset.is_multiple_of(len_u64(FRAME_ALIGN));
            assert!(aligned && *offset < MAX_LIST_BYTES, "a frame lies at a multiple of 64");
            let unit = u32::try_from(offset >> 6).unwrap_or(u32::MAX);
            let fields = [*cell, *rows, unit, *crc];
            out.extend_from_slice(fields.map(u32::to_le_bytes).as_flattened());
        }
        out
    }

    /// Reads the value.
    ///
    /// # Errors
    ///
    /// `Truncated`, `Length`; `Value` when an invariant does not hold.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new(bytes);
        let revision = reader.u32()?;
        let length = reader.u64()?;
        let aligned = length.is_multiple_of(len_u64(FRAME_ALIGN));
        reader.ensure(aligned && length <= MAX_LIST_BYTES, "length of a list")?;
        let rows = reader.u64()?;
        let bad_rows = reader.error(FormatErrorKind::Value("number of rows of a list"));
        let count = index(reader.u32()?);
        reader.expect_entries(count, Self::ENTRY)?;
        let mut frames = Vec::with_capacity(count);
        let mut sum = 0_u64;
        let mut end = len_u64(HEADER_LEN);
        for _ in 0..count {
            let cell = reader.u32()?;
            reader.ensure(index(cell) < MAX_CELLS, "cell of a frame")?;
            let rows = reader.u32()?;
            reader.ensure(rows > 0, "number of rows of a frame")?;
            let offset = u64::from(reader.u32()?).saturating_mul(len_u64(FRAME_ALIGN));
            let frame = FrameEntry { cell, rows, offset, crc: 0 };
            let starts_after = offset >= end;
            end = frame.end(MIN_BLOCK);
            reader.ensure(starts_after && end <= length, "position of a frame")?;
            frames.push(FrameEntry { crc: reader.u32()?, ..frame });
            sum = sum.saturating_add(u64::from(rows));
        }
        if sum != rows {
            return Err(bad_rows);
        }
        reader.finish()?;
        Ok(Self { revision, length, rows, frames })
    }

    /// Whether the frames have room for blocks of this layout.
    ///
    /// # Errors
    ///
    /// `Value`, at the offset of the frame in the encoded entry, when one reaches into the next or
    /// beyond the length of the file.
    pub fn check(&self, layout: &BlockLayout) -> Result<(), FormatError> {
        let starts = self.frames.iter().skip(1).map(|next| next.offset);
        let limits = starts.chain(std::iter::once(self.length));
        for (i, (frame, limit)) in self.frames.iter().zip(limits).enumerate() {
            if frame.end(layout.block_bytes()) > limit {
                let offset = len_u64(i).saturating_mul(len_u64(Self::ENTRY)).saturating_add(24);
                return Err(FormatError::new(offset, FormatErrorKind::Value("extent of a frame")));
            }
        }
        Ok(())
    }
}

/// The cells of one list: its own centroid, and the cells' in eight bits.
#[derive(Debug, Clone, PartialEq)]
pub struct RoutingRecord {
    /// The cell of the first row of `codes`.
    pub first_cell: u32,
    /// Centroid of the list, `dim` long.
    pub centroid: Vec<f32>,
    /// One for each cell.
    pub scales: Vec<f32>,
    /// `dim` for each cell: its centroid is `scale * code`.
    pub codes: Vec<i8>,
}

impl RoutingRecord {
    /// The value as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let floats = self.centroid.len().saturating_add(self.scales.len()).saturating_mul(4);
        let len = floats.saturating_add(self.codes.len()).saturating_add(8);
        let mut out = Vec::with_capacity(len);
        out.extend_from_slice(&self.first_cell.to_le_bytes());
        out.extend_from_slice(&count_u32(self.scales.len()).to_le_bytes());
        for value in self.centroid.iter().chain(&self.scales) {
            out.extend_from_slice(&value.to_le_bytes());
        }
        out.extend(self.codes.iter().map(|code| code.cast_unsigned()));
        out
    }

    /// Reads the value of an index of `dim` dimensions.
    ///
    /// # Errors
    ///
    /// `Truncated`, `Length`; `Value` for a number that is not finite or a cell that cannot be.
    pub fn parse(bytes: &[u8], dim: usize) -> Result<Self, FormatError> {
        let mut reader = Reader::new(bytes);
        let first_cell = reader.u32()?;
        let cells = reader.u32()?;
        let end = index(first_cell).saturating_add(index(cells));
        reader.ensure(end <= MAX_CELLS, "number of cells of a list")?;
        let cells = index(cells);
        let centroid = reader.floats(dim, "centroid of a list")?;
        let scales = reader.floats(cells, "scale of a cell")?;
        let codes = reader.take(cells.saturating_mul(dim))?;
        let codes = codes.iter().map(|code| code.cast_signed()).collect();
        reader.finish()?;
        Ok(Self { first_cell, centroid, scales, codes })
    }
}

/// The removed rows among 65,536 consecutive ids: the low sixteen bits of each.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Tombstones(pub RoaringBitmap);

impl Tombstones {
    /// The value as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        bitmap::append(&self.0, &mut out);
        out
    }

    /// Reads the value.
    ///
    /// # Errors
    ///
    /// `Truncated`, `Length`, `Magic`; `Value` when it is no bitmap, or holds more than 16 bits.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new(bytes);
        let dead = parse_bitmap(&mut reader)?;
        reader.ensure(dead.max().is_none_or(|last| last < 1 << 16), "removed row")?;
        Ok(Self(dead))
    }

    /// How long a value at the start of `bytes` would be; `None` where none can begin. What it holds
    /// is for [`Tombstones::parse`] to say.
    pub fn measure(bytes: &[u8]) -> Option<usize> {
        bitmap::measure(bytes)
    }
}

/// A bitmap is all that is left of a value.
fn parse_bitmap(reader: &mut Reader<'_>) -> Result<RoaringBitmap, FormatError> {
    let bytes = reader.rest();
    bitmap::parse(bytes).map_err(|error| error.within(reader.piece()))
}
