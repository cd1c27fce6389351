//! Frames of an inverted list.

use crate::common::{IDENTITY, Rng, UUID};
use cellardb_format::{
    BlockLayout, CodeKind, FormatError, FormatErrorKind, Frame, ListIdentity, crc, encode_frame,
    frame_crc, frame_len, parse_frame, payload_offset, verify_payload,
};

const LAYOUT: BlockLayout = BlockLayout::new(CodeKind::Pq4, 8, 0);

fn encoded(rng: &mut Rng, blocks: usize, rows: u32) -> Vec<u8> {
    let payload = rng.bytes(blocks * LAYOUT.block_bytes());
    let mut out = Vec::new();
    encode_frame(&IDENTITY, 640, 77, rows, 5, &payload, &mut out);
    out
}

fn read(bytes: &[u8]) -> Result<Frame, FormatError> {
    let frame = parse_frame(&IDENTITY, 640, bytes, &LAYOUT)?;
    verify_payload(bytes, &frame)?;
    Ok(frame)
}

#[test]
fn frames_are_read_back_one_after_the_other() {
    let mut rng = Rng::new(7);
    for layout in [LAYOUT, BlockLayout::new(CodeKind::Flat, 0, 100)] {
        let (mut file, mut frames) = (Vec::new(), Vec::new());
        for seq in 0..40 {
            let blocks = rng.size(40) + 1;
            let rows = (16 * blocks - rng.size(16)) as u32;
            let payload = rng.bytes(blocks * layout.block_bytes());
            let offset = 64 + file.len() as u64;
            let sum = encode_frame(&IDENTITY, offset, 3, rows, seq, &payload, &mut file);
            assert_eq!(file.len() as u64 + 64 - offset, frame_len(payload.len()) as u64);
            let payload_len = payload.len() as u32;
            frames.push((offset, sum, Frame { cell: 3, rows, seq, payload_len }, payload));
        }
        for (offset, sum, frame, payload) in frames {
            let bytes = &file[offset as usize - 64..];
            assert_eq!(parse_frame(&IDENTITY, offset, bytes, &layout), Ok(frame));
            assert_eq!(verify_payload(bytes, &frame), Ok(()));
            assert_eq!(frame_crc(bytes), Some(sum));
            let start = payload_offset(payload.len());
            assert_eq!(bytes[start..start + payload.len()], payload);
        }
    }
}

#[test]
fn the_parts_of_a_frame_lie_where_the_specification_says() {
    for (payload, offset, len) in [
        (64, 64, 128),
        (8192 * 8, 64, 64 + 65_536),
        (8192 * 8 + 64, 128, 128 + 65_600),
        (1 << 20, 576, 576 + (1 << 20)),
    ] {
        assert_eq!((payload_offset(payload), frame_len(payload)), (offset, len));
    }
    let bytes = encoded(&mut Rng::new(8), 40, 640);
    let payload = 40 * 320;
    assert_eq!(bytes[..4], *b"MARF");
    let fields = [77, 640, payload as u32].map(u32::to_le_bytes);
    assert_eq!(bytes[4..16], *fields.as_flattened());
    assert_eq!(bytes[16..24], 5_u64.to_le_bytes());
    assert_eq!(bytes[24..28], [0; 4]);
    assert_eq!(bytes[32..36], crc(&[&bytes[64..64 + 8192]]).to_le_bytes());
    assert_eq!(bytes[36..40], crc(&[&bytes[64 + 8192..]]).to_le_bytes());
    assert_eq!(bytes[40..64], [0; 24]);
    let place = [3_u32, 2, 8].map(u32::to_le_bytes);
    let covered: [&[u8]; 5] =
        [&UUID, place.as_flattened(), &640_u64.to_le_bytes(), &bytes[..28], &bytes[32..40]];
    assert_eq!(bytes[28..32], crc(&covered).to_le_bytes());
}

#[test]
fn a_frame_of_another_file_or_position_is_refused() {
    let bytes = encoded(&mut Rng::new(9), 1, 16);
    assert!(parse_frame(&IDENTITY, 640, &bytes, &LAYOUT).is_ok());
    let mut uuid = UUID;
    uuid[0] ^= 128;
    for (identity, offset) in [
        (ListIdentity { uuid, ..IDENTITY }, 640),
        (ListIdentity { list: 4, ..IDENTITY }, 640),
        (ListIdentity { generation: 3, ..IDENTITY }, 640),
        (ListIdentity { revision: 7, ..IDENTITY }, 640),
        (IDENTITY, 704),
    ] {
        let error = parse_frame(&identity, offset, &bytes, &LAYOUT).unwrap_err();
        assert_eq!((error.offset, error.kind), (28, FormatErrorKind::Checksum));
    }
}

#[test]
fn damage_of_the_payload_is_found_in_its_chunk() {
    let mut bytes = encoded(&mut Rng::new(10), 80, 1280);
    let frame = parse_frame(&IDENTITY, 640, &bytes, &LAYOUT).unwrap();
    for chunk in 0..3 {
        bytes[64 + 8192 * chunk + 99] ^= 4;
        assert_eq!(parse_frame(&IDENTITY, 640, &bytes, &LAYOUT), Ok(frame));
        let error = verify_payload(&bytes, &frame).unwrap_err();
        let expected = (64 + 8192 * chunk as u64, FormatErrorKind::Checksum);
        assert_eq!((error.offset, error.kind), expected);
        assert_eq!(error.within(640).offset, error.offset + 640);
        bytes[64 + 8192 * chunk + 99] ^= 4;
    }
}

/// A frame with forged header fields and the right checksum.
fn forged(change: impl Fn(&mut [u8])) -> Result<Frame, FormatErrorKind> {
    let mut bytes = encoded(&mut Rng::new(11), 2, 32);
    change(&mut bytes);
    let place = [3_u32, 2, 8].map(u32::to_le_bytes);
    let covered: [&[u8]; 5] =
        [&UUID, place.as_flattened(), &640_u64.to_le_bytes(), &bytes[..28], &bytes[32..36]];
    let sum = crc(&covered);
    bytes[28..32].copy_from_slice(&sum.to_le_bytes());
    read(&bytes).map_err(|error| error.kind)
}

#[test]
fn a_frame_with_a_right_checksum_and_impossible_values_is_refused() {
    let set = |at: usize, value: u32| {
        forged(move |bytes| bytes[at..at + 4].copy_from_slice(&value.to_le_bytes()))
    };
    let value = |what| Err(FormatErrorKind::Value(what));
    assert!(set(4, (1 << 24) - 1).is_ok());
    assert_eq!(set(4, 1 << 24), value("cell of a frame"));
    assert!(set(8, 17).is_ok());
    for rows in [0, 16, 33, u32::MAX] {
        assert_eq!(set(8, rows), value("number of rows of a frame"));
    }
    for payload in [0, 1, 319, 639, 641, (1 << 20) + 64, 1 << 31, u32::MAX] {
        assert_eq!(set(12, payload), Err(FormatErrorKind::Length));
    }
    assert_eq!(set(12, 320), value("number of rows of a frame"));
    let longer = forged(|bytes| bytes[8..16].copy_from_slice(&[48, 0, 0, 0, 0xC0, 3, 0, 0]));
    assert_eq!(longer, Err(FormatErrorKind::Truncated));
    assert!(set(12, 1 << 20).is_err());
    assert_eq!(set(24, 1), value("reserved field of a frame"));
    assert_eq!(set(36, 1), value("padding of a frame"));
    assert_eq!(set(0, 0x4652_414E), Err(FormatErrorKind::Magic));
}

#[test]
fn a_block_longer_than_a_mebibyte_is_a_frame_of_its_own() {
    let layout = BlockLayout::new(CodeKind::Flat, 0, 65_535);
    for (blocks, accepted) in [(1, true), (2, false)] {
        let payload = vec![7; blocks * layout.block_bytes()];
        let mut out = Vec::new();
        if blocks == 1 {
            encode_frame(&IDENTITY, 0, 1, 16, 1, &payload, &mut out);
        } else {
            out.extend_from_slice(b"MARF");
            out.extend_from_slice(&[1, 0, 0, 0, 32, 0, 0, 0]);
            out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
            out.extend_from_slice(&payload);
        }
        assert_eq!(parse_frame(&IDENTITY, 0, &out, &layout).is_ok(), accepted);
    }
}

#[test]
fn verifying_a_frame_that_is_not_all_there_is_an_error() {
    let bytes = encoded(&mut Rng::new(12), 3, 48);
    let frame = read(&bytes).unwrap();
    for len in 0..bytes.len() {
        assert!(verify_payload(&bytes[..len], &frame).is_err());
        assert!(frame_crc(&bytes[..len]).is_some() == (len >= 32));
    }
    let endless = Frame { payload_len: u32::MAX, ..frame };
    assert_eq!(verify_payload(&bytes, &endless).unwrap_err().kind, FormatErrorKind::Truncated);
}

#[test]
#[should_panic(expected = "rows of its blocks")]
fn a_frame_without_rows_is_not_written() {
    encoded(&mut Rng::new(13), 1, 0);
}
