//! CRC-32 (IEEE 802.3), and the seal on every value of the catalog. Alone names `crc32fast`.

use crate::bytes::len_u64;
use crate::error::{FormatError, FormatErrorKind};

/// The CRC-32 of the concatenation of `parts`.
pub fn crc(parts: &[&[u8]]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize()
}

/// Appends the checksum that binds `value` to its index, table and key.
pub fn seal(uuid: &[u8; 16], table: &str, key: u64, value: &mut Vec<u8>) {
    let sum = crc(&[uuid, table.as_bytes(), &key.to_le_bytes(), value]);
    value.extend_from_slice(&sum.to_le_bytes());
}

/// What was sealed, without its checksum.
///
/// # Errors
///
/// `Truncated` when there is no room for a checksum; `Checksum` when the bytes are damaged, or were
/// sealed for another index, table or key. The offset is that of the checksum.
pub fn unseal<'a>(
    uuid: &[u8; 16],
    table: &str,
    key: u64,
    value: &'a [u8],
) -> Result<&'a [u8], FormatError> {
    let Some((body, sum)) = value.split_last_chunk::<4>() else {
        return Err(FormatError::new(len_u64(value.len()), FormatErrorKind::Truncated));
    };
    if crc(&[uuid, table.as_bytes(), &key.to_le_bytes(), body]) == u32::from_le_bytes(*sum) {
        Ok(body)
    } else {
        Err(FormatError::new(len_u64(body.len()), FormatErrorKind::Checksum))
    }
}
