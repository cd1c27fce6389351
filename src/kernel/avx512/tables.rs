//! What is done once for a query: rotating it, and its lookup tables.

use super::super::{LANES, scalar};
use super::{add_product, load_f32, store, store16};
use std::arch::x86_64::*;

#[target_feature(enable = "avx512f")]
pub(in crate::kernel) fn codeword_products(
    columns: &[f32],
    (query, s): (&[f32], f32),
    (dsub, codewords): (usize, usize),
    out: &mut [f32],
) {
    let (columns, _) = columns.as_chunks::<LANES>();
    let width = codewords / LANES;
    let parts = query.chunks(dsub).zip(columns.chunks_exact(dsub * width));
    for (out, (query, columns)) in out.chunks_exact_mut(codewords).zip(parts) {
        for (at, out) in out.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
            let mut sum = _mm512_setzero_ps();
            for (q, column) in query.iter().zip(columns.iter().skip(at).step_by(width)) {
                sum = add_product(sum, _mm512_set1_ps(q * s), load_f32(column));
            }
            *out = store(sum);
        }
    }
}

#[target_feature(enable = "avx512f")]
pub(in crate::kernel) fn round_tables(
    values: &[f32],
    codewords: usize,
    minima: &mut [f32],
    bytes: &mut [u8],
) -> f32 {
    let mut widest = 0.0_f32;
    for (values, minimum) in values.chunks_exact(codewords).zip(minima.iter_mut()) {
        let mut low = _mm512_set1_ps(f32::INFINITY);
        let mut high = _mm512_set1_ps(f32::NEG_INFINITY);
        for part in values.as_chunks::<LANES>().0 {
            low = _mm512_min_ps(load_f32(part), low);
            high = _mm512_max_ps(load_f32(part), high);
        }
        *minimum = _mm512_reduce_min_ps(low);
        widest = widest.max(_mm512_reduce_max_ps(high) - *minimum);
    }
    let (step, inverse) = scalar::table_step(widest);
    let tables = values.chunks_exact(codewords).zip(bytes.chunks_exact_mut(codewords));
    for ((values, bytes), low) in tables.zip(minima.iter()) {
        let parts = values.as_chunks::<LANES>().0.iter().zip(bytes.as_chunks_mut::<LANES>().0);
        for (values, bytes) in parts {
            let above = _mm512_sub_ps(load_f32(values), _mm512_set1_ps(*low));
            let steps = _mm512_mul_ps(above, _mm512_set1_ps(inverse));
            let rounded = _mm512_add_ps(steps, _mm512_set1_ps(scalar::ROUND));
            store16(bytes, _mm512_cvtepi32_epi8(_mm512_castps_si512(rounded)));
        }
    }
    step
}

#[target_feature(enable = "avx512f")]
pub(in crate::kernel) fn rotate(signs: &[f32], x: &mut [f32]) {
    scalar::rotate_by(signs, x, |block| {
        let mut x = load_f32(block);
        x = butterfly(x, _mm512_permute_ps::<0b10_11_00_01>(x), 0b1010_1010_1010_1010);
        x = butterfly(x, _mm512_permute_ps::<0b01_00_11_10>(x), 0b1100_1100_1100_1100);
        x = butterfly(x, _mm512_shuffle_f32x4::<0b10_11_00_01>(x, x), 0b1111_0000_1111_0000);
        x = butterfly(x, _mm512_shuffle_f32x4::<0b01_00_11_10>(x, x), 0b1111_1111_0000_0000);
        *block = store(x);
    });
}

/// The sums with the partners in the lower lanes of the pairs, the differences in the upper ones.
#[inline]
#[target_feature(enable = "avx512f")]
fn butterfly(x: __m512, partner: __m512, upper: u16) -> __m512 {
    _mm512_mask_sub_ps(_mm512_add_ps(x, partner), upper, partner, x)
}
