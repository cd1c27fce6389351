//! Rows of a segment.

use crate::common::{Rng, UUID, row};
use cellardb_format::{FormatErrorKind, NONE, Row, RowLayout, crc, floats};
use std::borrow::Cow;

fn encoded(layout: &RowLayout, vector: &[f32], row: &Row) -> Vec<u8> {
    let mut out = vec![0xAA; layout.stride()];
    layout.encode(&mut out, vector, row, &UUID, 6, 11);
    out
}

#[test]
fn a_row_is_read_back_bit_for_bit() {
    let mut rng = Rng::new(1);
    for round in 0..300 {
        let dim = rng.size(70) + 1;
        let layout = RowLayout::new(dim);
        let mut vector = rng.floats(dim);
        if round % 3 == 0 {
            vector[0] = f32::from_bits(0x7FC1_2345);
        }
        let row = row(&mut rng);
        let bytes = encoded(&layout, &vector, &row);
        assert_eq!(layout.parse(&bytes, &UUID, 6, 11), Ok(row));
        assert_eq!(layout.trailer(&bytes), Ok(row));
        let read = layout.vector(&bytes).unwrap();
        assert!(read.iter().zip(&vector).all(|(a, b)| a.to_bits() == b.to_bits()));
        assert_eq!(read.len(), dim);
    }
}

#[test]
fn the_parts_of_a_row_lie_where_the_specification_says() {
    for (dim, stride) in [(1, 64), (8, 64), (9, 96), (384, 1568), (65_535, 262_176)] {
        let layout = RowLayout::new(dim);
        assert_eq!(layout.stride(), stride);
        assert_eq!(layout.vector_bytes(), 4 * dim);
    }
    let row = Row { id: 0x0102_0304_0506_0708, generation: 9, cell: 10, spill: NONE, scale: 0.5 };
    let bytes = encoded(&RowLayout::new(9), &[1.0; 9], &row);
    assert_eq!(bytes[32..36], 1.0_f32.to_le_bytes());
    assert_eq!(bytes[36..64], [0; 28]);
    assert_eq!(bytes[64..72], [8, 7, 6, 5, 4, 3, 2, 1]);
    assert_eq!(bytes[72..76], [9, 0, 0, 0]);
    assert_eq!(bytes[76..80], [10, 0, 0, 0]);
    assert_eq!(bytes[80..84], [255; 4]);
    assert_eq!(bytes[84..88], [0, 0, 0, 0x3F]);
    assert_eq!(bytes[88..92], [0; 4]);
    let sum = crc(&[&UUID, &6_u64.to_le_bytes(), &11_u64.to_le_bytes(), &bytes[..92]]);
    assert_eq!(bytes[92..96], sum.to_le_bytes());
}

#[test]
fn a_row_of_another_index_segment_or_position_is_refused() {
    let layout = RowLayout::new(5);
    let row = row(&mut Rng::new(2));
    let bytes = encoded(&layout, &[1.0; 5], &row);
    let mut other = UUID;
    other[15] ^= 1;
    for (uuid, segment, index) in [(&other, 6, 11), (&UUID, 7, 11), (&UUID, 6, 12)] {
        let error = layout.parse(&bytes, uuid, segment, index).unwrap_err();
        assert_eq!((error.offset, error.kind), (60, FormatErrorKind::Checksum));
    }
}

/// Changes bytes of a row and makes its checksum right again.
fn forged(at: usize, bytes: &[u8]) -> Result<Row, FormatErrorKind> {
    let layout = RowLayout::new(5);
    let mut row = encoded(&layout, &[1.0; 5], &row(&mut Rng::new(3)));
    row[at..at + bytes.len()].copy_from_slice(bytes);
    let sum = crc(&[&UUID, &6_u64.to_le_bytes(), &11_u64.to_le_bytes(), &row[..60]]);
    row[60..].copy_from_slice(&sum.to_le_bytes());
    let answer = layout.parse(&row, &UUID, 6, 11);
    assert_eq!(layout.trailer(&row).is_ok(), answer.is_ok());
    answer.map_err(|error| error.kind)
}

#[test]
fn a_row_with_a_right_checksum_and_impossible_values_is_refused() {
    let value = |what| Err(FormatErrorKind::Value(what));
    assert!(forged(0, &[1]).is_ok());
    assert_eq!(forged(32, &(1_u64 << 63).to_le_bytes()), value("row id"));
    assert_eq!(forged(44, &(1_u32 << 24).to_le_bytes()), value("cell of a row"));
    assert_eq!(forged(48, &(u32::MAX - 1).to_le_bytes()), value("second cell of a row"));
    for scale in [f32::NAN, f32::INFINITY, -1.0] {
        assert_eq!(forged(52, &scale.to_le_bytes()), value("scale of a row"));
    }
    assert_eq!(forged(56, &[1]), value("reserved field of a row"));
}

#[test]
fn floats_are_borrowed_when_aligned_and_copied_when_not() {
    let values = [1.5_f32, -0.0, f32::MAX, 3.0];
    let mut buffer = [0; 32];
    let start = buffer.as_ptr().align_offset(4);
    for (shift, borrowed) in [(0, true), (1, false), (2, false), (3, false), (4, true)] {
        let at = start + shift;
        for (to, from) in
            buffer[at..at + 16].iter_mut().zip(values.map(f32::to_le_bytes).as_flattened())
        {
            *to = *from;
        }
        let read = floats(&buffer[at..at + 16]);
        assert_eq!(*read, values);
        assert_eq!(matches!(read, Cow::Borrowed(_)), borrowed);
        assert_eq!(floats(&buffer[at..at + 15]).len(), 3);
    }
    assert!(floats(&[]).is_empty());
}

#[test]
#[should_panic(expected = "dimension of its index")]
fn a_vector_of_another_dimension_is_not_written() {
    encoded(&RowLayout::new(4), &[1.0; 5], &row(&mut Rng::new(4)));
}
