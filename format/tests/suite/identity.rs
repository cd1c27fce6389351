//! What a file, a lock record or a sealed value says about where it belongs.

use crate::common::{Rng, UUID, header};
use cellardb_format::{
    FileHeader, FileKind, FormatError, FormatErrorKind, LockRecord, crc, seal, unseal,
};

#[test]
fn the_checksum_is_the_one_of_ieee_802_3() {
    assert_eq!(crc(&[b"123456789"]), 0xCBF4_3926);
    assert_eq!(crc(&[b"123", b"", b"456789"]), 0xCBF4_3926);
    assert_eq!(crc(&[]), 0);
}

#[test]
fn a_file_header_is_read_back() {
    let mut rng = Rng::new(14);
    for _ in 0..500 {
        let header = header(&mut rng);
        let bytes = header.encode();
        assert_eq!(FileHeader::parse(&bytes), Ok(header));
        assert_eq!(FileHeader::parse(&[&bytes[..], &rng.bytes(9)].concat()), Ok(header));
        assert_eq!(header.check(&header), Ok(()));
    }
}

#[test]
fn the_header_of_another_file_is_named_by_the_field_that_differs() {
    let a = header(&mut Rng::new(15));
    let kind = if a.kind == FileKind::Rows { FileKind::List } else { FileKind::Rows };
    let mut uuid = a.uuid;
    uuid[3] ^= 1;
    for (offset, b) in [
        (12, FileHeader { kind, ..a }),
        (16, FileHeader { uuid, ..a }),
        (32, FileHeader { number: a.number ^ 1, ..a }),
        (40, FileHeader { generation: a.generation ^ 1, ..a }),
        (44, FileHeader { revision: a.revision ^ 1, ..a }),
        (48, FileHeader { dim: a.dim ^ 1, ..a }),
        (52, FileHeader { unit: a.unit ^ 1, ..a }),
    ] {
        let expected = FormatError::new(offset, FormatErrorKind::Identity);
        assert_eq!(a.check(&b), Err(expected));
    }
}

/// A header with forged bytes, and the right checksum if `sealed`.
fn forged(at: usize, bytes: &[u8], sealed: bool) -> FormatErrorKind {
    let mut header = header(&mut Rng::new(16)).encode();
    header[at..at + bytes.len()].copy_from_slice(bytes);
    if sealed {
        let sum = crc(&[&header[..60]]);
        header[60..].copy_from_slice(&sum.to_le_bytes());
    }
    FileHeader::parse(&header).unwrap_err().kind
}

#[test]
fn wherever_a_header_is_damaged_the_error_is_at_its_beginning() {
    let whole = header(&mut Rng::new(17)).encode();
    for at in 0..64 {
        let mut damaged = whole;
        damaged[at] ^= 4;
        assert_eq!(FileHeader::parse(&damaged).unwrap_err().offset, 0, "byte {at}");
    }
}

#[test]
fn another_version_is_told_apart_from_a_damaged_one() {
    for version in [0, 7] {
        assert_eq!(forged(8, &[version], false), FormatErrorKind::Checksum);
        let found = u32::from(version);
        assert_eq!(forged(8, &[version], true), FormatErrorKind::Version { found });
    }
    for sealed in [false, true] {
        assert_eq!(forged(0, &[7], sealed), FormatErrorKind::Magic);
    }
}

#[test]
fn a_header_with_a_right_checksum_and_impossible_values_is_refused() {
    for (at, bytes, what) in [
        (12, [0, 0, 0, 0], "kind of file"),
        (12, [3, 0, 0, 0], "kind of file"),
        (48, [0, 0, 0, 0], "dimension"),
        (48, [0, 0, 1, 0], "dimension"),
        (56, [0, 0, 0, 1], "reserved field of the file header"),
    ] {
        assert_eq!(forged(at, &bytes, true), FormatErrorKind::Value(what));
        assert_eq!(forged(at, &bytes, false), FormatErrorKind::Checksum);
    }
}

#[test]
fn a_lock_record_is_read_back() {
    let mut rng = Rng::new(17);
    for _ in 0..100 {
        let uuid = rng.bytes(16).try_into().unwrap();
        let record = LockRecord { uuid, seq: rng.next() >> 2, pid: rng.u32() };
        assert_eq!(LockRecord::parse(&record.encode()), Ok(record));
    }
    assert_eq!(LockRecord::parse(&[0; 64]).unwrap_err().kind, FormatErrorKind::Magic);
    let beyond = LockRecord { uuid: UUID, seq: (1 << 62) + 1, pid: 2 }.encode();
    let expected = FormatErrorKind::Value("number of the commit");
    assert_eq!(LockRecord::parse(&beyond).unwrap_err().kind, expected);
    let mut forged = LockRecord { uuid: UUID, seq: 1, pid: 2 }.encode();
    forged[40] = 1;
    let sum = crc(&[&forged[..60]]);
    forged[60..].copy_from_slice(&sum.to_le_bytes());
    let expected = FormatErrorKind::Value("reserved field of the lock record");
    assert_eq!(LockRecord::parse(&forged).unwrap_err().kind, expected);
}

#[test]
fn a_sealed_value_opens_only_under_its_index_table_and_key() {
    let mut rng = Rng::new(18);
    for len in [0, 1, 4, 100, 10_000] {
        let value = rng.bytes(len);
        let mut sealed = value.clone();
        seal(&UUID, "lists", 9, &mut sealed);
        assert_eq!(sealed.len(), len + 4);
        assert_eq!(unseal(&UUID, "lists", 9, &sealed), Ok(&value[..]));
        let mut other = UUID;
        other[7] ^= 1;
        let expected = Err(FormatError::new(len as u64, FormatErrorKind::Checksum));
        assert_eq!(unseal(&other, "lists", 9, &sealed), expected);
        assert_eq!(unseal(&UUID, "model", 9, &sealed), expected);
        assert_eq!(unseal(&UUID, "lists", 8, &sealed), expected);
    }
    let expected = FormatError::new(3, FormatErrorKind::Truncated);
    assert_eq!(unseal(&UUID, "lists", 9, &[1, 2, 3]), Err(expected));
}

#[test]
fn errors_are_sentences_with_an_offset() {
    for (kind, text) in [
        (FormatErrorKind::Truncated, "unexpected end of data (at byte 12)"),
        (FormatErrorKind::Checksum, "checksum mismatch (at byte 12)"),
        (
            FormatErrorKind::Version { found: 7 },
            "format version 7, this program reads version 5 (at byte 12)",
        ),
        (FormatErrorKind::Value("metric"), "invalid metric (at byte 12)"),
        (FormatErrorKind::Identity, "file header belongs to another index or file (at byte 12)"),
    ] {
        assert_eq!(FormatError::new(12, kind).to_string(), text);
    }
}
