//! Every flipped bit and every missing byte of every structure is found.

use crate::common::{
    IDENTITY, Rng, UUID, config, each_flip, each_prefix, header, list, model, routing, row,
    segment, settings, state, tombstones,
};
use cellardb_format::{
    BlockLayout, CodeKind, Config, FileHeader, FormatErrorKind, ListEntry, LockRecord, ModelRecord,
    RoutingRecord, RowLayout, Segment, Settings, State, Tombstones, encode_floats, encode_frame,
    parse_floats, parse_frame, seal, unseal, verify_payload,
};

#[test]
fn in_a_file_header() {
    let mut rng = Rng::new(30);
    for _ in 0..20 {
        let bytes = header(&mut rng).encode();
        each_flip(&bytes, |bytes| FileHeader::parse(bytes).is_err());
        each_prefix(&bytes, |bytes| {
            FileHeader::parse(bytes).unwrap_err().kind == FormatErrorKind::Truncated
        });
    }
}

#[test]
fn in_a_lock_record() {
    let bytes = LockRecord { uuid: UUID, seq: 123, pid: 456 }.encode();
    each_flip(&bytes, |bytes| LockRecord::parse(bytes).is_err());
    each_prefix(&bytes, |bytes| LockRecord::parse(bytes).is_err());
}

#[test]
fn in_a_row() {
    let mut rng = Rng::new(31);
    for dim in [1, 3, 8, 13, 40] {
        let layout = RowLayout::new(dim);
        let mut bytes = vec![0; layout.stride()];
        layout.encode(&mut bytes, &rng.floats(dim), &row(&mut rng), &UUID, 1, 2);
        each_flip(&bytes, |bytes| layout.parse(bytes, &UUID, 1, 2).is_err());
        each_prefix(&bytes, |bytes| {
            let vector_is_there = bytes.len() >= layout.vector_bytes();
            assert_eq!(layout.vector(bytes).is_ok(), vector_is_there);
            layout.parse(bytes, &UUID, 1, 2).is_err() && layout.trailer(bytes).is_err()
        });
    }
}

#[test]
fn in_a_frame() {
    let mut rng = Rng::new(32);
    let pq4 = BlockLayout::new(CodeKind::Pq4, 8, 0);
    let flat = BlockLayout::new(CodeKind::Flat, 0, 64);
    for (layout, blocks) in [(pq4, 1), (pq4, 3), (flat, 2), (flat, 3)] {
        let payload = rng.bytes(blocks * layout.block_bytes());
        let mut bytes = Vec::new();
        encode_frame(&IDENTITY, 64, 1, 16 * blocks as u32, 2, &payload, &mut bytes);
        let read = |bytes: &[u8]| {
            let frame = parse_frame(&IDENTITY, 64, bytes, &layout)?;
            verify_payload(bytes, &frame)
        };
        assert_eq!(read(&bytes), Ok(()));
        each_flip(&bytes, |bytes| read(bytes).is_err());
        each_prefix(&bytes, |bytes| parse_frame(&IDENTITY, 64, bytes, &layout).is_err());
    }
}

/// Flips and prefixes of the sealed value, prefixes and longer forms of the open one.
fn in_value(table: &str, key: u64, value: Vec<u8>, parses: impl Fn(&[u8]) -> bool) {
    assert!(parses(&value));
    each_prefix(&value, |bytes| !parses(bytes));
    for extra in [0, 1, 255] {
        assert!(!parses(&[&value[..], &[extra]].concat()), "{table}: a byte too many");
    }
    let mut sealed = value;
    seal(&UUID, table, key, &mut sealed);
    each_flip(&sealed, |bytes| unseal(&UUID, table, key, bytes).is_err());
    each_prefix(&sealed, |bytes| unseal(&UUID, table, key, bytes).is_err());
}

#[test]
fn in_a_value_of_the_catalog() {
    let rng = &mut Rng::new(33);
    in_value("meta", 0, config(rng).encode(), |bytes| Config::parse(bytes).is_ok());
    in_value("meta", 1, state(rng).encode(), |bytes| State::parse(bytes).is_ok());
    in_value("lists", 7, list(rng).encode(), |bytes| ListEntry::parse(bytes).is_ok());
    in_value("model", 8, model(rng).encode(), |bytes| ModelRecord::parse(bytes).is_ok());
    let codebook = encode_floats(&rng.floats(50));
    in_value("model", 9, codebook, |bytes| parse_floats(bytes, 50).is_ok());
    let routing = routing(rng, 10).encode();
    in_value("model", 10, routing, |bytes| RoutingRecord::parse(bytes, 10).is_ok());
    in_value("settings", 1, settings(rng).encode(), |bytes| Settings::parse(bytes).is_ok());
}

#[test]
fn in_a_set_of_ids() {
    // Small sets: the work is the square of their size.
    let rng = &mut Rng::new(34);
    let small = |bytes: &Vec<u8>| bytes.len() < 1000;
    let mut dense_and_sparse = (0..).map(|_| segment(rng).encode()).filter(small);
    for bytes in dense_and_sparse.by_ref().take(20) {
        in_value("segments", 5, bytes, |bytes| Segment::parse(bytes).is_ok());
    }
    let rng = &mut Rng::new(35);
    for bytes in (0..).map(|_| tombstones(rng).encode()).filter(small).take(20) {
        in_value("dead", 6, bytes, |bytes| Tombstones::parse(bytes).is_ok());
    }
}
