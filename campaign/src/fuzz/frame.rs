//! A frame of an inverted list: one of the codes, then what lies behind its header.

use cellardb_format as format;
use cellardb_format::{BlockLayout, CodeKind, ListIdentity, crc};

const IDENTITY: ListIdentity = ListIdentity { uuid: [7; 16], list: 3, generation: 1, revision: 2 };

pub(super) fn run(data: &[u8]) {
    let Some((flags, bytes)) = data.split_first() else { return };
    let kind = [CodeKind::Flat, CodeKind::Pq4, CodeKind::Pq8][usize::from(flags >> 1) % 3];
    let layout = BlockLayout::new(kind, 6, 12);
    let offset = u64::from(flags >> 4) * 64;
    let mut bytes = bytes.to_vec();
    if flags & 1 == 1 {
        seal(&mut bytes, &IDENTITY, offset);
    }
    assert_eq!(format::frame_crc(&bytes).is_some(), bytes.len() >= 32);
    let Ok(frame) = format::parse_frame(&IDENTITY, offset, &bytes, &layout) else { return };
    let len = frame.payload_len as usize;
    assert_eq!(len / layout.block_bytes(), (frame.rows as usize).div_ceil(16));
    if format::verify_payload(&bytes, &frame).is_err() {
        return;
    }
    let start = format::payload_offset(len);
    let payload = &bytes[start..start + len];
    let mut again = Vec::new();
    let (cell, rows, seq) = (frame.cell, frame.rows, frame.seq);
    let sum = format::encode_frame(&IDENTITY, offset, cell, rows, seq, payload, &mut again);
    assert_eq!(again, bytes[..again.len()], "what was read is written the same");
    assert_eq!(format::frame_crc(&bytes), Some(sum));
    for block in payload.chunks_exact(layout.block_bytes()) {
        let mut same = layout.empty_block();
        for lane in 0..16 {
            let mut code = vec![0; layout.code_len()];
            layout.take(block, lane, &mut code);
            let (factors, id) = (layout.factors(block, lane), layout.id(block, lane));
            layout.put(&mut same, lane, &code, factors, id);
            assert_eq!(layout.id_bytes(&same, lane), layout.id_bytes(block, lane));
            let mut code_again = vec![0; layout.code_len()];
            layout.take(&same, lane, &mut code_again);
            assert_eq!(code_again, code, "what is put is taken");
        }
        assert_eq!(same[layout.code_bytes()..], block[layout.code_bytes()..]);
    }
}

/// Gives a frame at the start of `bytes` the checksums of its bytes, and returns its own.
pub(super) fn seal(bytes: &mut [u8], identity: &ListIdentity, offset: u64) -> Option<u32> {
    let len = u32::from_le_bytes(*bytes.get(12..)?.first_chunk()?) as usize;
    let (table, start) = (len.div_ceil(format::CHUNK) * 4, format::payload_offset(len));
    let payload = bytes.get(start..start.checked_add(len)?)?;
    let chunks = payload.chunks(format::CHUNK);
    let sums: Vec<u8> = chunks.flat_map(|chunk| crc(&[chunk]).to_le_bytes()).collect();
    bytes[32..32 + table].copy_from_slice(&sums);
    let words = [identity.list, identity.generation, identity.revision].map(u32::to_le_bytes);
    let place = [words.as_flattened(), &offset.to_le_bytes()].concat();
    let sum = crc(&[&identity.uuid, &place, &bytes[..28], &sums]);
    bytes[28..32].copy_from_slice(&sum.to_le_bytes());
    Some(sum)
}
