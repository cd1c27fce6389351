//! Writing a compacted row segment: the rows of others that are still wanted, under a new number.

use super::disk::Disk;
use super::orphan;
use super::row_scan::RowBatch;
use super::rows::{Rows, Segment, SegmentFile, header, path};
use crate::error::{Error, Result};
use cellardb_format::HEADER_LEN;
use roaring::RoaringBitmap;
use std::path::Path;
use std::sync::Arc;

/// Rows are gathered up to about this many before they are written.
const STEP: usize = 1024;

/// Writes and syncs the rows of neighbouring segments that are `alive` as one; `None` if there are none. The
/// name is not durable before its directory is synced.
pub(crate) fn write(
    disk: &dyn Disk,
    dir: &Path,
    rows: &Rows,
    old: &[&Segment],
    number: u64,
    alive: impl Fn(u64) -> bool,
) -> Result<Option<Segment>> {
    let (shape, path) = (*rows.shape(), path(dir, number));
    let stride = shape.layout.stride();
    let (Some(first), Some(last)) = (old.first(), old.last()) else { return Ok(None) };
    let (first_id, end_id) = (first.file.first_id(), last.end_id);
    if end_id - first_id > 1 << 32 {
        let why =
            format!("segment {} has more ids than a compacted one can hold", first.file.number());
        return Err(Error::invalid("segment_bytes", why));
    }
    orphan::remove(disk, &path, &shape.uuid)?;
    let file = disk.create(&path).map_err(Error::io("create", &path))?;
    let mut buf = header(shape.uuid, number, shape.dim, &shape.layout).encode().to_vec();
    let (mut ids, mut index, mut offset) = (RoaringBitmap::new(), 0_u64, 0_u64);
    let (mut scan, mut batch) = (rows.scan(disk, first_id, end_id), RowBatch::default());
    while scan.next(STEP, &mut batch)? {
        for (row, vector) in batch.rows.iter().zip(batch.vectors.chunks_exact(shape.dim)) {
            let relative = u32::try_from(row.id - first_id);
            // All of them fit: it was looked at above.
            let Some(relative) = relative.ok().filter(|_| alive(row.id)) else { continue };
            ids.insert(relative);
            let at = buf.len();
            buf.resize(at + stride, 0);
            let out = buf.get_mut(at..).unwrap_or_default();
            shape.layout.encode(out, vector, row, &shape.uuid, number, index);
            index += 1;
        }
        file.write_at(&buf, offset).map_err(Error::io("write", &path))?;
        offset += buf.len() as u64;
        buf.clear();
        batch = RowBatch::default();
    }
    if index == 0 {
        disk.remove(&path).map_err(Error::io("remove", &path))?;
        return Ok(None);
    }
    file.sync().map_err(Error::io("sync", &path))?;
    let len = HEADER_LEN as u64 + index * stride as u64;
    let file = SegmentFile::open(disk, dir, &shape, number, first_id, Some(ids), len)?;
    Ok(Some(Segment { file: Arc::new(file), rows: index, end_id }))
}
