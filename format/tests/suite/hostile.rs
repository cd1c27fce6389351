//! Bytes made to mislead: nothing panics, and what is accepted has exactly one form.

use crate::common::{
    IDENTITY, Rng, UUID, asked, config, list, model, routing, segment, settings, state, tombstones,
};
use cellardb_format::{
    AskedRecord, BlockLayout, CodeKind, Config, FileHeader, FormatErrorKind, ListEntry, LockRecord,
    ModelRecord, RoutingRecord, RowLayout, Segment, Settings, State, Tombstones, encode_floats,
    parse_floats, parse_frame, unseal,
};
use roaring::RoaringBitmap;

/// Some bytes changed, exchanged for extremes, cut off, or added.
fn mutate(rng: &mut Rng, bytes: &mut Vec<u8>) {
    for _ in 0..=rng.size(3) {
        let at = rng.size(bytes.len().max(1));
        match rng.below(6) {
            0 if at < bytes.len() => bytes[at] = rng.bytes(1)[0],
            1 if at < bytes.len() => bytes[at] ^= 1 << rng.below(8),
            2 if at + 4 <= bytes.len() => bytes[at..at + 4].fill(0xFF),
            3 if at + 4 <= bytes.len() => bytes[at..at + 4].fill(0),
            4 => bytes.truncate(at),
            5 => bytes.extend(rng.bytes(4)),
            _ => {}
        }
    }
}

/// Parses mutated values; whatever passes is written as the same bytes.
fn has_one_form(
    rng: &mut Rng,
    make: impl Fn(&mut Rng) -> Vec<u8>,
    parse_and_encode: impl Fn(&[u8]) -> Option<Vec<u8>>,
) {
    let mut accepted = 0;
    for round in 0..4000 {
        let mut bytes = if round % 8 == 0 { rng.bytes(round % 90) } else { make(rng) };
        if round % 8 != 1 {
            mutate(rng, &mut bytes);
        }
        if let Some(again) = parse_and_encode(&bytes) {
            accepted += 1;
            assert_eq!(again, bytes);
        }
    }
    assert!(accepted >= 500, "values that were not changed are accepted");
}

#[test]
fn what_is_accepted_as_a_value_has_one_form() {
    let rng = &mut Rng::new(40);
    let layout = BlockLayout::new(CodeKind::Pq8, 9, 0);
    has_one_form(rng, |rng| config(rng).encode(), |b| Some(Config::parse(b).ok()?.encode()));
    has_one_form(rng, |rng| state(rng).encode(), |b| Some(State::parse(b).ok()?.encode()));
    has_one_form(
        rng,
        |rng| list(rng).encode(),
        |bytes| {
            let list = ListEntry::parse(bytes).ok()?;
            let _ = list.check(&layout);
            Some(list.encode())
        },
    );
    has_one_form(rng, |rng| model(rng).encode(), |b| Some(ModelRecord::parse(b).ok()?.encode()));
    has_one_form(rng, |rng| settings(rng).encode(), |b| Some(Settings::parse(b).ok()?.encode()));
    has_one_form(
        rng,
        |rng| asked(rng, 3).encode(),
        |bytes| Some(AskedRecord::parse(bytes, 3).ok()?.encode()),
    );
    has_one_form(
        rng,
        |rng| routing(rng, 7).encode(),
        |bytes| Some(RoutingRecord::parse(bytes, 7).ok()?.encode()),
    );
    has_one_form(
        rng,
        |rng| encode_floats(&rng.floats(30)),
        |bytes| Some(encode_floats(&parse_floats(bytes, 30).ok()?)),
    );
}

#[test]
fn what_is_accepted_as_a_set_of_ids_has_one_form() {
    let rng = &mut Rng::new(41);
    has_one_form(rng, |rng| segment(rng).encode(), |b| Some(Segment::parse(b).ok()?.encode()));
    has_one_form(
        rng,
        |rng| tombstones(rng).encode(),
        |bytes| Some(Tombstones::parse(bytes).ok()?.encode()),
    );
}

#[test]
fn random_bytes_are_no_header_row_or_frame() {
    let rng = &mut Rng::new(42);
    let layout = BlockLayout::new(CodeKind::Pq8, 9, 0);
    for round in 0..4000 {
        let mut bytes = rng.bytes(round % 700);
        if round % 2 == 0 && bytes.len() > 16 {
            bytes[..4].copy_from_slice(b"MARF");
            let payload = (layout.block_bytes() * rng.size(3)) as u32;
            bytes[12..16].copy_from_slice(&payload.to_le_bytes());
        }
        assert!(FileHeader::parse(&bytes).is_err());
        assert!(LockRecord::parse(&bytes).is_err());
        assert!(parse_frame(&IDENTITY, 64, &bytes, &layout).is_err());
        assert!(RowLayout::new(round % 50 + 1).parse(&bytes, &UUID, 0, 0).is_err());
        assert!(unseal(&UUID, "lists", 0, &bytes).is_err());
    }
}

fn refused(bytes: &[u8]) -> FormatErrorKind {
    Tombstones::parse(bytes).unwrap_err().kind
}

#[test]
fn a_set_that_promises_more_than_it_has_is_refused_before_it_is_made() {
    let le = |parts: &[u16]| parts.iter().flat_map(|part| part.to_le_bytes()).collect::<Vec<u8>>();
    let value = FormatErrorKind::Value("number of containers of a set");
    assert_eq!(refused(&le(&[12_346, 0, 0xFFFF, 0xFFFF])), value);
    assert_eq!(refused(&le(&[12_346, 0, 1, 1])), value);
    assert_eq!(refused(&le(&[12_346, 0, 0, 1])), FormatErrorKind::Truncated);
    assert_eq!(refused(&le(&[12_347, 0xFFFF])), FormatErrorKind::Truncated);
    assert_eq!(refused(&le(&[12_345, 0])), FormatErrorKind::Magic);
    assert_eq!(refused(&le(&[12_346, 1, 0, 0])), FormatErrorKind::Magic);
    // One run container of 65,535 runs.
    let runs = [&le(&[12_347, 0])[..], &[1], &le(&[0, 9, 0xFFFF, 1, 2])].concat();
    assert_eq!(refused(&runs), FormatErrorKind::Truncated);
    // One bit set of 65,536 values, of which there are eight bytes.
    let bits = le(&[12_346, 0, 1, 0, 0, 0xFFFF, 16, 0, 1, 2, 3, 4]);
    assert_eq!(refused(&bits), FormatErrorKind::Truncated);
}

#[test]
fn a_set_in_another_form_than_its_own_is_refused() {
    let invalid = FormatErrorKind::Value("set of row ids");
    let good = Tombstones([1, 2, 3].into_iter().collect()).encode();
    assert!(Tombstones::parse(&good).is_ok());
    assert_eq!(refused(&[&good[..], &[0]].concat()), FormatErrorKind::Length);
    for (at, byte) in [(12, 17), (16, 3), (16, 2)] {
        let mut bytes = good.clone();
        bytes[at] = byte;
        assert_eq!(refused(&bytes), invalid);
    }
    let mut runs: RoaringBitmap = (5..900).collect();
    runs.optimize();
    let good = Tombstones(runs).encode();
    assert!(Tombstones::parse(&good).is_ok());
    for (at, byte) in [(7, 0), (8, 0xFF), (4, 0), (9, 0), (4, 3)] {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        assert!(Tombstones::parse(&bytes).is_err(), "byte {at}");
        bytes[at] = byte;
        assert_eq!(Tombstones::parse(&bytes).is_ok(), good[at] == byte, "byte {at}");
    }
}
