//! The packing of codes, against the byte map of the specification.

use crate::common::Rng;
use cellardb_format::{BLOCK_ROWS, BlockLayout, CodeKind, Factors, NO_ID};

const KINDS: [CodeKind; 4] = [CodeKind::Flat, CodeKind::Pq4, CodeKind::Pq8, CodeKind::RaBitQ];

const ZERO: Factors = Factors { add: 0.0, scale: 0.0 };
const UNUSED: Factors = Factors { add: f32::INFINITY, scale: 0.0 };

fn bits(factors: Factors) -> (u32, u32) {
    (factors.add.to_bits(), factors.scale.to_bits())
}

fn random_code(rng: &mut Rng, layout: &BlockLayout) -> Vec<u8> {
    let mut code = rng.bytes(layout.code_len());
    if matches!(layout.kind(), CodeKind::Pq4 | CodeKind::RaBitQ) {
        code.iter_mut().for_each(|code| *code &= 15);
    }
    code
}

#[test]
fn blocks_are_multiples_of_64_bytes() {
    for kind in KINDS {
        for m in (1..200).chain([384, 65_535]) {
            let layout = BlockLayout::new(kind, m, m);
            assert_eq!(layout.block_bytes() % 64, 0);
            assert_eq!(layout.block_bytes(), layout.code_bytes() + 256);
            assert_eq!(layout.empty_block().len(), layout.block_bytes());
        }
    }
    assert_eq!(BlockLayout::new(CodeKind::Flat, 0, 3).code_bytes(), 192);
    for (m, pq4, pq8) in [(1, 64, 64), (4, 64, 64), (5, 64, 128), (8, 64, 128), (9, 128, 192)] {
        assert_eq!(BlockLayout::new(CodeKind::Pq4, m, 999).code_bytes(), pq4);
        assert_eq!(BlockLayout::new(CodeKind::Pq8, m, 999).code_bytes(), pq8);
    }
}

#[test]
fn what_is_put_into_lanes_is_taken_from_them() {
    let mut rng = Rng::new(5);
    for kind in KINDS {
        for m in [1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17, 31, 48, 96] {
            let layout = BlockLayout::new(kind, m, m);
            let mut block = layout.empty_block();
            let mut rows: Vec<Option<(Vec<u8>, Factors, u64)>> = vec![None; BLOCK_ROWS];
            for _ in 0..24 {
                let lane = rng.size(BLOCK_ROWS);
                let (code, id) = (random_code(&mut rng, &layout), rng.next());
                let factors = Factors { add: rng.f32(), scale: rng.f32() };
                layout.put(&mut block, lane, &code, factors, id);
                rows[lane] = Some((code, factors, id));
                for (lane, row) in rows.iter().enumerate() {
                    let unused = (vec![0; layout.code_len()], UNUSED, NO_ID);
                    let (code, factors, id) = row.as_ref().unwrap_or(&unused);
                    let mut read = vec![0xEE; layout.code_len()];
                    layout.take(&block, lane, &mut read);
                    assert_eq!(&read, code);
                    assert_eq!(bits(layout.factors(&block, lane)), bits(*factors));
                    assert_eq!(layout.id(&block, lane), *id);
                }
            }
        }
    }
}

/// The byte map of section 4.3, written down once more as it stands there.
fn by_the_specification(kind: CodeKind, m: usize, dim: usize, codes: &[Vec<u8>]) -> Vec<u8> {
    match kind {
        CodeKind::Flat => codes.concat(),
        CodeKind::Pq4 | CodeKind::RaBitQ => {
            let mut out = vec![0; m.div_ceil(8) * 64];
            let of = |i: usize, s: usize| if s < m { codes[i][s] } else { 0 };
            for g in 0..m.div_ceil(8) {
                for i in 0..16 {
                    for j in 0..4 {
                        out[64 * g + 4 * i + j] = of(i, 8 * g + j) + 16 * of(i, 8 * g + j + 4);
                    }
                }
            }
            out
        }
        CodeKind::Pq8 => {
            let _ = dim;
            let mut out = vec![0; m.div_ceil(4) * 4 * 16];
            for i in 0..16 {
                for j in 0..m {
                    out[16 * j + i] = codes[i][j];
                }
            }
            out
        }
    }
}

#[test]
fn packing_agrees_with_the_byte_map_of_the_specification() {
    let mut rng = Rng::new(6);
    for kind in KINDS {
        for m in 1..40 {
            let layout = BlockLayout::new(kind, m, m);
            let mut block = layout.empty_block();
            let codes: Vec<Vec<u8>> = (0..16).map(|_| random_code(&mut rng, &layout)).collect();
            for (lane, code) in codes.iter().enumerate() {
                let factors = Factors { add: lane as f32, scale: -(lane as f32) };
                layout.put(&mut block, lane, code, factors, 100 + lane as u64);
            }
            let add = (0..16).flat_map(|i| (i as f32).to_le_bytes());
            let factors: Vec<u8> =
                add.chain((0..16).flat_map(|i| (-(i as f32)).to_le_bytes())).collect();
            let ids: Vec<u8> = (100_u64..116).flat_map(u64::to_le_bytes).collect();
            let codes = by_the_specification(kind, m, m, &codes);
            assert_eq!(block, [codes, factors, ids].concat());
        }
    }
}

#[test]
fn single_codes_lie_at_positions_computed_by_hand() {
    // Sub-quantizer 13 of row 6: group 1, j = 1, high nibble of byte 64 + 4 * 6 + 1.
    let layout = BlockLayout::new(CodeKind::Pq4, 14, 0);
    let mut block = layout.empty_block();
    let mut code = vec![0; 14];
    (code[13], code[2]) = (0xB, 0x7);
    layout.put(&mut block, 6, &code, Factors { add: 2.0, scale: 3.0 }, 9);
    assert_eq!((block[89], block[26]), (0xB0, 0x07));
    assert_eq!(block[..128].iter().filter(|byte| **byte != 0).count(), 2);
    assert_eq!(block[128 + 24..128 + 28], 2.0_f32.to_le_bytes());
    assert_eq!(block[192 + 24..192 + 28], 3.0_f32.to_le_bytes());
    assert_eq!(block[256 + 48..256 + 56], 9_u64.to_le_bytes());

    // Sub-quantizer 5 of row 15: byte 16 * 5 + 15.
    let layout = BlockLayout::new(CodeKind::Pq8, 6, 0);
    let mut block = layout.empty_block();
    layout.put(&mut block, 15, &[0, 0, 0, 0, 0, 0xC3], ZERO, 0);
    assert_eq!(block[95], 0xC3);
    assert_eq!(block[..128].iter().filter(|byte| **byte != 0).count(), 1);

    // Dimension 1 of row 2, of 3: byte 4 * (3 * 2 + 1).
    let layout = BlockLayout::new(CodeKind::Flat, 0, 3);
    let mut block = layout.empty_block();
    layout.put(&mut block, 2, [0.0, 1.0, 0.0].map(f32::to_le_bytes).as_flattened(), ZERO, 0);
    assert_eq!(block[28..32], 1.0_f32.to_le_bytes());
}

#[test]
fn a_lane_that_is_not_there_is_an_unused_one() {
    let layout = BlockLayout::new(CodeKind::Pq8, 4, 0);
    let mut block = layout.empty_block();
    let five = Factors { add: 5.0, scale: 0.5 };
    layout.put(&mut block, 15, &[1, 2, 3, 4], five, 6);
    assert_eq!((layout.factors(&block, 15), layout.id(&block, 15)), (five, 6));
    assert_eq!((layout.factors(&block, 16), layout.id(&block, 16)), (UNUSED, NO_ID));
    for len in [0, 63, 64, 100, 191, 255, 319] {
        assert_eq!(layout.id(&block[..len], 15), NO_ID);
    }
    for len in [0, 63, 127, 191] {
        assert_eq!(layout.factors(&block[..len], 15), UNUSED);
    }
}

#[test]
#[should_panic(expected = "sixteen lanes")]
fn a_seventeenth_lane_is_refused() {
    let layout = BlockLayout::new(CodeKind::Pq8, 4, 0);
    layout.put(&mut layout.empty_block(), 16, &[0; 4], ZERO, 0);
}

#[test]
#[should_panic(expected = "below 16")]
fn a_code_of_five_bits_is_no_nibble() {
    let layout = BlockLayout::new(CodeKind::Pq4, 4, 0);
    layout.put(&mut layout.empty_block(), 0, &[0, 16, 0, 0], ZERO, 0);
}

#[test]
fn kinds_of_code_have_the_numbers_of_the_specification() {
    for (number, kind) in (0..).zip(KINDS) {
        assert_eq!(kind.code(), number);
        assert_eq!(CodeKind::from_code(number), Some(kind));
    }
    assert_eq!(CodeKind::from_code(4), None);
    assert_eq!(KINDS.map(CodeKind::codewords), [0, 16, 256, 16]);
}
