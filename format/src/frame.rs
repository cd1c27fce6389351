//! One frame of an inverted list: rows of one cell, added by one commit. Section 4.2.
//!
//! The frame's own checksum covers its header and the checksums of its payload; so opening a list
//! reads the headers only, and the payload is verified when it is first scanned.

use crate::block::BlockLayout;
use crate::bytes::{Reader, count_u32, index, len_u64};
use crate::checksum::crc;
use crate::error::{FormatError, FormatErrorKind};
use crate::{BLOCK_ROWS, CHUNK, FRAME_ALIGN, MAX_CELLS, MAX_DIM, MAX_PAYLOAD};

const MAGIC: u32 = 0x4652_414D;
/// Bytes before the table.
const FIXED: usize = 32;
/// The longest block there is: vectors of the greatest dimension.
const MAX_BLOCK: usize = 64 * MAX_DIM + 256;

/// Which file a frame belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListIdentity {
    /// Of the index.
    pub uuid: [u8; 16],
    /// List id.
    pub list: u32,
    /// Model generation.
    pub generation: u32,
    /// Revision of the file.
    pub revision: u32,
}

/// What the header of a frame says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// The cell that its rows belong to.
    pub cell: u32,
    /// Rows, in `ceil(rows / 16)` blocks.
    pub rows: u32,
    /// The commit that wrote it.
    pub seq: u64,
    /// Bytes of the blocks.
    pub payload_len: u32,
}

/// Bytes from the start of a frame to its payload.
pub const fn payload_offset(payload_len: usize) -> usize {
    align(payload_len.div_ceil(CHUNK).saturating_mul(4).saturating_add(FIXED))
}

/// Bytes from the start of a frame to the next.
pub const fn frame_len(payload_len: usize) -> usize {
    payload_offset(payload_len).saturating_add(align(payload_len))
}

const fn align(len: usize) -> usize {
    len.div_ceil(FRAME_ALIGN).saturating_mul(FRAME_ALIGN)
}

/// Appends a frame to `out` and returns its checksum, for the catalog. `offset` is where the frame
/// begins in its file; `payload` is the blocks of its `rows` rows.
///
/// # Panics
///
/// When `offset` is no multiple of 64; when `payload` is none of its own, or longer than a frame
/// may be; when there are no rows, or more than its blocks could hold.
pub fn encode_frame(
    identity: &ListIdentity,
    offset: u64,
    cell: u32,
    rows: u32,
    seq: u64,
    payload: &[u8],
    out: &mut Vec<u8>,
) -> u32 {
    assert!(offset.is_multiple_of(len_u64(FRAME_ALIGN)), "frames start at multiples of 64");
    assert!(payload.len().is_multiple_of(FRAME_ALIGN), "blocks are multiples of 64 bytes");
    assert!(payload.len() <= MAX_PAYLOAD.max(MAX_BLOCK), "a frame has a greatest length");
    let least = index(rows).saturating_mul(16);
    assert!(rows > 0 && least <= payload.len(), "a frame holds the rows of its blocks");
    let mut header = Vec::with_capacity(FIXED);
    for field in [MAGIC, cell, rows, count_u32(payload.len())] {
        header.extend_from_slice(&field.to_le_bytes());
    }
    header.extend_from_slice(&seq.to_le_bytes());
    header.extend_from_slice(&0_u32.to_le_bytes());
    let table: Vec<u8> =
        payload.chunks(CHUNK).flat_map(|chunk| crc(&[chunk]).to_le_bytes()).collect();
    let sum = header_crc(identity, offset, &header, &table);
    out.reserve(frame_len(payload.len()));
    out.extend_from_slice(&header);
    out.extend_from_slice(&sum.to_le_bytes());
    out.extend_from_slice(&table);
    let used = FIXED.saturating_add(table.len());
    out.extend(std::iter::repeat_n(0, payload_offset(payload.len()).saturating_sub(used)));
    out.extend_from_slice(payload);
    sum
}

/// Reads and verifies the header of the frame that begins with `bytes` and lies at `offset` of its
/// file. The payload lies within `bytes`, but is not verified; see [`verify_payload`].
///
/// # Errors
///
/// `Truncated`, `Magic`, `Length` when the payload is no whole number of blocks or too long,
/// `Checksum` when it is damaged or of another place, `Value` for what cannot be. The offset is
/// relative to the frame.
pub fn parse_frame(
    identity: &ListIdentity,
    offset: u64,
    bytes: &[u8],
    layout: &BlockLayout,
) -> Result<Frame, FormatError> {
    let mut reader = Reader::new(bytes);
    let header = reader.take(FIXED - 4)?;
    let sum = reader.u32()?;
    let mismatch = reader.error(FormatErrorKind::Checksum);

    let mut fields = Reader::new(header);
    if fields.u32()? != MAGIC {
        return Err(fields.error(FormatErrorKind::Magic));
    }
    let cell = fields.u32()?;
    let bad_cell = fields.error(FormatErrorKind::Value("cell of a frame"));
    let rows = fields.u32()?;
    let bad_rows = fields.error(FormatErrorKind::Value("number of rows of a frame"));
    let payload_len = fields.u32()?;
    let payload = index(payload_len);
    let blocks = blocks_in(payload, layout);
    let blocks = blocks.ok_or_else(|| fields.error(FormatErrorKind::Length))?;
    let seq = fields.u64()?;
    let reserved = fields.u32()?;

    // The length is in bounds, but nothing else is known before the checksum.
    let table = reader.take(payload.div_ceil(CHUNK).saturating_mul(4))?;
    if header_crc(identity, offset, header, table) != sum {
        return Err(mismatch);
    }
    fields.ensure(reserved == 0, "reserved field of a frame")?;
    if index(cell) >= MAX_CELLS {
        return Err(bad_cell);
    }
    if index(rows).div_ceil(BLOCK_ROWS) != blocks {
        return Err(bad_rows);
    }
    let padding = payload_offset(payload).saturating_sub(FIXED.saturating_add(table.len()));
    let padding = reader.take(padding)?;
    reader.ensure(padding.iter().all(|byte| *byte == 0), "padding of a frame")?;
    reader.take(payload)?;
    Ok(Frame { cell, rows, seq, payload_len })
}

/// Verifies the payload of a frame that [`parse_frame`] read from the same bytes.
///
/// # Errors
///
/// `Checksum` at the first chunk that is damaged, relative to the frame; `Truncated`.
pub fn verify_payload(bytes: &[u8], frame: &Frame) -> Result<(), FormatError> {
    let payload = index(frame.payload_len);
    let start = payload_offset(payload);
    let mut reader = Reader::new(bytes);
    let mut table = Reader::new(reader.take(start)?);
    table.take(FIXED)?;
    let mut at = len_u64(start);
    for chunk in reader.take(payload)?.chunks(CHUNK) {
        if crc(&[chunk]) != table.u32()? {
            return Err(FormatError::new(at, FormatErrorKind::Checksum));
        }
        at = at.saturating_add(len_u64(CHUNK));
    }
    Ok(())
}

/// The checksum of a frame, as the catalog holds it; nothing is verified.
pub fn frame_crc(bytes: &[u8]) -> Option<u32> {
    let mut reader = Reader::new(bytes);
    reader.take(FIXED - 4).ok()?;
    reader.u32().ok()
}

/// How many blocks a payload is, if it is a whole number of them and no longer than allowed.
fn blocks_in(payload: usize, layout: &BlockLayout) -> Option<usize> {
    let block = layout.block_bytes();
    let whole = payload.is_multiple_of(block) && payload <= MAX_PAYLOAD.max(block);
    payload.checked_div(block).filter(|blocks| whole && *blocks > 0)
}

fn header_crc(identity: &ListIdentity, offset: u64, header: &[u8], table: &[u8]) -> u32 {
    let ListIdentity { uuid, list, generation, revision } = identity;
    let position = [list, generation, revision].map(|field| field.to_le_bytes());
    crc(&[uuid, position.as_flattened(), &offset.to_le_bytes(), header, table])
}
