//! The kernels for processors with AVX2.

use super::scalar::{finish, keep_below};
use super::{Ahead, Grid, Hit, LANES, Scan, Tiles};
use std::arch::x86_64::*;

/// Groups of 8 sub-quantizers whose sums fit 16 bits: 64 times 4 entries of at most 255.
const GROUPS: usize = 64;
/// The row of each 32-bit position after `transpose`.
const ROWS: [usize; LANES] = [0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7, 12, 13, 14, 15];

pub(super) fn detected() -> bool {
    std::arch::is_x86_feature_detected!("avx2")
}

#[inline(always)]
pub(super) fn prefetch<T>(near: *const T) {
    // SAFETY: SSE is part of the architecture, and a prefetch reads nothing: any address will do.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(near.cast()) }
}

// Its shuffles see 16 entries at a time: 16 of them for one table of 256 lose in `scan8`.
widened! { "avx2"
    fn l2(a: &[f32], b: &[f32]) -> f32;
    fn dot(a: &[f32], b: &[f32]) -> f32;
    fn dot_i8(query: &[f32], row: &[i8]) -> f32;
    fn codeword_products(
        columns: &[f32], query: (&[f32], f32), shape: (usize, usize), out: &mut [f32]
    );
    fn round_tables(values: &[f32], codewords: usize, minima: &mut [f32], bytes: &mut [u8]) -> f32;
    fn round(grid: &Grid<'_>, values: &[f32], nearest: &mut [u8], rounded: &mut [f32]);
    fn rotate(signs: &[f32], x: &mut [f32]);
    fn scan8(blocks: &[u8], scan: &Scan<'_>, hits: &mut Vec<Hit>);
    fn encode(x: &[f32], codebook: &[f32], dsub: usize, codes: &mut [u8]);
}

#[inline]
#[target_feature(enable = "avx2")]
fn load(bytes: &[u8; 32]) -> __m256i {
    // SAFETY: the reference covers the 32 bytes read, and the load needs no alignment.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn load16_signed(bytes: &[i8; 16]) -> __m128i {
    // SAFETY: the reference covers the 16 bytes read, and the load needs no alignment.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store(out: &mut [i32; 8], value: __m256i) {
    // SAFETY: the reference covers the 32 bytes written, and the store needs no alignment.
    unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), value) }
}

/// Both sides are widened to 16 bits: the products of the byte form saturate.
#[target_feature(enable = "avx2")]
pub(super) fn keys_i8(query: &[u8], tiles: &Tiles<'_>, limits: (f32, f32), hits: &mut Vec<Hit>) {
    let (query, _) = query.as_chunks::<4>();
    let (codes, _) = tiles.codes.as_chunks::<16>();
    let (codes, _) = codes.as_chunks::<4>();
    for (number, codes) in codes.chunks_exact(query.len()).enumerate() {
        // Of 4 rows each: the sums of the first two and of the last two of every four numbers.
        let mut sums = [_mm256_setzero_si256(); 4];
        for (query, codes) in query.iter().zip(codes) {
            let query = _mm256_set1_epi32(i32::from_le_bytes(*query));
            let query = _mm256_cvtepu8_epi16(_mm256_castsi256_si128(query));
            for (sum, codes) in sums.iter_mut().zip(codes) {
                let codes = _mm256_cvtepi8_epi16(load16_signed(codes));
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(query, codes));
            }
        }
        let mut pairs = [[0; 8]; 4];
        for (pairs, sum) in pairs.iter_mut().zip(sums) {
            store(pairs, sum);
        }
        let pairs = pairs.as_flattened();
        let dots = std::array::from_fn(|row| pairs[2 * row] + pairs[2 * row + 1]);
        keep_below(number * LANES, &dots, tiles, limits, hits);
    }
}

/// From 4 sub-quantizers a row to 16 rows a sub-quantizer: the first result holds sub-quantizers 0
/// and 1 in its halves, the second 2 and 3, rows in the order of `ROWS`.
#[inline]
#[target_feature(enable = "avx2")]
fn transpose(codes: &[[u8; 32]; 2]) -> [__m256i; 2] {
    let turn = _mm256_setr_epi8(
        0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15, //
        0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15,
    );
    let a = _mm256_shuffle_epi8(load(&codes[0]), turn);
    let b = _mm256_shuffle_epi8(load(&codes[1]), turn);
    [
        _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_unpacklo_epi32(a, b)),
        _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_unpackhi_epi32(a, b)),
    ]
}

/// Adds the sums of up to `GROUPS` groups: of pairs of rows as 16-bit numbers, and of the odd row
/// of each pair alone, from which the even one follows.
#[inline]
#[target_feature(enable = "avx2")]
fn add_groups(codes: &[[[u8; 32]; 2]], tables: &[[[u8; 32]; 4]], sums: &mut [u32; LANES]) {
    let nibble = _mm256_set1_epi8(15);
    let mut pairs = _mm256_setzero_si256();
    let mut odd = _mm256_setzero_si256();
    for (codes, table) in codes.iter().zip(tables) {
        let [a, b] = transpose(codes);
        let parts = [
            (_mm256_and_si256(a, nibble), &table[0]),
            (_mm256_and_si256(b, nibble), &table[1]),
            (_mm256_and_si256(_mm256_srli_epi16::<4>(a), nibble), &table[2]),
            (_mm256_and_si256(_mm256_srli_epi16::<4>(b), nibble), &table[3]),
        ];
        for (index, table) in parts {
            let entries = _mm256_shuffle_epi8(load(table), index);
            pairs = _mm256_add_epi16(pairs, entries);
            odd = _mm256_add_epi16(odd, _mm256_srli_epi16::<8>(entries));
        }
    }
    let even = _mm256_sub_epi16(pairs, _mm256_slli_epi16::<8>(odd));
    // The halves are different sub-quantizers of the same rows.
    for half in 0..2 {
        let (even, odd) = if half == 0 {
            (_mm256_castsi256_si128(even), _mm256_castsi256_si128(odd))
        } else {
            (_mm256_extracti128_si256::<1>(even), _mm256_extracti128_si256::<1>(odd))
        };
        let mut lanes = [[0; 8]; 2];
        store(&mut lanes[0], _mm256_cvtepu16_epi32(_mm_unpacklo_epi16(even, odd)));
        store(&mut lanes[1], _mm256_cvtepu16_epi32(_mm_unpackhi_epi16(even, odd)));
        for (row, sum) in ROWS.iter().zip(lanes.as_flattened()) {
            sums[*row] += *sum as u32;
        }
    }
}

#[target_feature(enable = "avx2")]
pub(super) fn scan4(blocks: &[u8], scan: &Scan<'_>, ahead: Ahead<'_>, hits: &mut Vec<Hit>) {
    ahead.next.iter().step_by(64).for_each(|line| prefetch(line));
    let (tables, _) = scan.table.as_chunks::<32>();
    let (tables, _) = tables.as_chunks::<4>();
    for (number, block) in blocks.chunks_exact(scan.block_bytes).enumerate() {
        let (codes, rest) = block.split_at(scan.table.len() / 2);
        let (codes, _) = codes.as_chunks::<32>();
        let (codes, _) = codes.as_chunks::<2>();
        let mut sums = [0; LANES];
        for (codes, tables) in codes.chunks(GROUPS).zip(tables.chunks(GROUPS)) {
            add_groups(codes, tables, &mut sums);
        }
        finish(number, &sums, rest, scan, hits);
    }
}
