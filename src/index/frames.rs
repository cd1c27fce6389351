//! Turning the rows of a list into frames: what folding, training and compaction have in common.

use super::tail::{TailCell, each_row};
use crate::error::Result;
use crate::storage::Tombstones;
use crate::storage::directory::Directory;
use crate::storage::lists::ListWriter;
use cellardb_format::{BLOCK_ROWS, BlockLayout, frame_len};

/// Payload bytes of a frame, unless one block is longer.
const FRAME_BYTES: usize = 1 << 20;

/// Writes the rows of a cell, in as many frames as it takes.
pub(crate) fn write_cell(
    writer: &mut ListWriter<'_>,
    layout: &BlockLayout,
    cell: &TailCell,
) -> Result<()> {
    let blocks = (FRAME_BYTES / layout.block_bytes()).max(1);
    let mut left = cell.rows;
    for payload in cell.blocks.chunks(blocks * layout.block_bytes()) {
        let rows = left.min(blocks * BLOCK_ROWS);
        writer.append(cell.cell, u32::try_from(rows).unwrap_or(u32::MAX), payload)?;
        left -= rows;
    }
    Ok(())
}

/// The bytes that `rows` rows of a cell take in a list.
pub(crate) fn cell_bytes(layout: &BlockLayout, rows: usize) -> u64 {
    let per_frame = (FRAME_BYTES / layout.block_bytes()).max(1) * BLOCK_ROWS;
    let frames = |rows: usize| frame_len(rows.div_ceil(BLOCK_ROWS) * layout.block_bytes());
    let mut bytes = rows / per_frame * frames(per_frame);
    if !rows.is_multiple_of(per_frame) {
        bytes += frames(rows % per_frame);
    }
    bytes as u64
}

/// The live rows of a cell, from the list and behind them from the tail, below `watermark`.
pub(crate) fn gather(
    lists: &Directory,
    tail: Option<&TailCell>,
    layout: &BlockLayout,
    (cell, code_len): (u32, usize),
    dead: &Tombstones,
    watermark: u64,
) -> Result<TailCell> {
    let mut out = TailCell::new(cell);
    let mut code = vec![0; code_len];
    for place in lists.places(cell) {
        each_row(layout, &lists.list_of(place).copy(place)?, &mut code, |code, factors, id| {
            if !dead.contains(id) {
                out.push(layout, code, factors, id);
            }
        });
    }
    if let Some(tail) = tail {
        add(&mut out, tail, layout, code_len, dead, watermark);
    }
    Ok(out)
}

/// Adds the live rows of a tail cell below `watermark`.
pub(crate) fn add(
    out: &mut TailCell,
    tail: &TailCell,
    layout: &BlockLayout,
    code_len: usize,
    dead: &Tombstones,
    watermark: u64,
) {
    let mut code = vec![0; code_len];
    tail.each(layout, &mut code, |code, factors, id| {
        if id < watermark && !dead.contains(id) {
            out.push(layout, code, factors, id);
        }
    });
}
