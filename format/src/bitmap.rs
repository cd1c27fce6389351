//! Portable roaring bitmaps. Alone names the deserializer of `roaring`.
//!
//! That deserializer checks every value, but allocates by counts that it has not compared with the
//! input, ignores the offsets, the cardinalities of run containers and what follows the last
//! container. So the containers are walked before it runs, and what it made is written again and
//! compared: one set of values in one set of containers has one form.

use crate::bytes::{Reader, index};
use crate::error::{FormatError, FormatErrorKind};
use roaring::RoaringBitmap;

const COOKIE: u16 = 12_346;
const COOKIE_RUNS: u16 = 12_347;
/// With run containers, fewer containers than this have no offsets.
const OFFSETS_FROM: usize = 4;
/// Containers of more values than this are bit sets.
const ARRAY_MAX: usize = 4096;
const BIT_SET: usize = 8192;
const MAX_CONTAINERS: usize = 1 << 16;

/// Appends the bitmap to `out`, with the containers that it has.
pub(crate) fn append(bitmap: &RoaringBitmap, out: &mut Vec<u8>) {
    out.reserve(bitmap.serialized_size());
    let written = bitmap.serialize_into(&mut *out);
    debug_assert!(written.is_ok(), "writing to memory does not fail");
}

/// Reads a bitmap that ends where the bytes end.
pub(crate) fn parse(bytes: &[u8]) -> Result<RoaringBitmap, FormatError> {
    walk(bytes)?.finish()?;
    let invalid = FormatError::new(0, FormatErrorKind::Value("set of row ids"));
    let bitmap = RoaringBitmap::deserialize_from(bytes).map_err(|_| invalid)?;
    let mut again = Vec::new();
    append(&bitmap, &mut again);
    if again == bytes { Ok(bitmap) } else { Err(invalid) }
}

/// How many of the bytes a bitmap at their start would take.
pub(crate) fn measure(bytes: &[u8]) -> Option<usize> {
    let left = walk(bytes).ok()?.rest().len();
    bytes.len().checked_sub(left)
}

/// Follows the lengths of all containers to the end of the last.
fn walk(bytes: &[u8]) -> Result<Reader<'_>, FormatError> {
    let mut reader = Reader::new(bytes);
    let cookie = reader.u16()?;
    let high = reader.u16()?;
    let runs = cookie == COOKIE_RUNS;
    let count = if runs {
        usize::from(high).saturating_add(1)
    } else if [cookie, high] == [COOKIE, 0] {
        index(reader.u32()?)
    } else {
        return Err(FormatError::new(0, FormatErrorKind::Magic));
    };
    reader.ensure(count <= MAX_CONTAINERS, "number of containers of a set")?;
    let mut flags = if runs { reader.take(count.div_ceil(8))? } else { &[] }.iter();
    let descriptions = reader.take(count.saturating_mul(4))?;
    if !runs || count >= OFFSETS_FROM {
        reader.take(count.saturating_mul(4))?;
    }
    let mut flag = 0;
    for (i, [_, _, low, high]) in descriptions.as_chunks::<4>().0.iter().enumerate() {
        flag = if i.is_multiple_of(8) { flags.next().copied().unwrap_or(0) } else { flag >> 1 };
        let values = usize::from(u16::from_le_bytes([*low, *high])).saturating_add(1);
        let len = if flag & 1 == 1 {
            usize::from(reader.u16()?).saturating_mul(4)
        } else if values <= ARRAY_MAX {
            values.saturating_mul(2)
        } else {
            BIT_SET
        };
        reader.take(len)?;
    }
    Ok(reader)
}
