//! The kernels for processors with AVX-512 F, BW, DQ, VL, VBMI and VNNI (Ice Lake, Zen 4 and later).
//!
//! The scan of 4-bit codes looks up 64 entries with one `vpermb`, whose tables of 4 neighbouring
//! sub-quantizers fill one register, and adds the 4 entries of a row with one `vpdpbusd`: sums of
//! 32 bits drop out in the order of the rows, exactly.

mod products;
mod tables;

pub(super) use products::{four_keys_i8, four_least_i8, keys_i8};
pub(super) use tables::{codeword_products, rotate, round_tables};

use super::avx2::prefetch;
use super::scalar;
use super::{Ahead, FACTORS, Grid, Hit, LANES, Scan};
use std::arch::x86_64::*;

/// Blocks of a longer run that are asked for at once.
const LONGER: usize = 4;
/// Columns whose sums fit 16 bits.
const COLUMNS: usize = 256;

pub(super) fn detected() -> bool {
    std::arch::is_x86_feature_detected!("avx512f")
        && std::arch::is_x86_feature_detected!("avx512bw")
        && std::arch::is_x86_feature_detected!("avx512dq")
        && std::arch::is_x86_feature_detected!("avx512vl")
        && std::arch::is_x86_feature_detected!("avx512vbmi")
        && std::arch::is_x86_feature_detected!("avx512vnni")
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(bytes: &[u8; 64]) -> __m512i {
    // SAFETY: the reference covers the 64 bytes read, and the load needs no alignment.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load16(bytes: &[u8; 16]) -> __m128i {
    // SAFETY: the reference covers the 16 bytes read, and the load needs no alignment.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load16_signed(bytes: &[i8; 16]) -> __m128i {
    // SAFETY: the reference covers the 16 bytes read, and the load needs no alignment.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_signed(bytes: &[i8; 64]) -> __m512i {
    // SAFETY: the reference covers the 64 bytes read, and the load needs no alignment.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_f32(values: &[f32; 16]) -> __m512 {
    // SAFETY: the reference covers the 16 numbers read, and the load needs no alignment.
    unsafe { _mm512_loadu_ps(values.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_i32(values: &[i32; 16]) -> __m512i {
    // SAFETY: the reference covers the 16 numbers read, and the load needs no alignment.
    unsafe { _mm512_loadu_si512(values.as_ptr().cast()) }
}

/// The numbers from `16 * lane` on of fewer than 64, filled up with zeros.
#[inline]
#[target_feature(enable = "avx512f")]
fn load_part(values: &[f32], lane: usize) -> __m512 {
    let mask = (!(u64::MAX << (values.len() & 63)) >> (16 * lane)) as u16;
    // SAFETY: bit `i` of the mask is set only if `16 * lane + i` is below the length, and the load
    // touches no number whose bit is not set.
    unsafe { _mm512_maskz_loadu_ps(mask, values.as_ptr().wrapping_add(16 * lane)) }
}

/// The same of signed bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn load_signed_part(values: &[i8], lane: usize) -> __m128i {
    let mask = (!(u64::MAX << (values.len() & 63)) >> (16 * lane)) as u16;
    // SAFETY: bit `i` of the mask is set only if `16 * lane + i` is below the length, and the load
    // touches no byte whose bit is not set.
    unsafe { _mm_maskz_loadu_epi8(mask, values.as_ptr().wrapping_add(16 * lane)) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(value: __m512) -> [f32; 16] {
    let mut out = [0.0; 16];
    // SAFETY: the array covers the 16 numbers written, and the store needs no alignment.
    unsafe { _mm512_storeu_ps(out.as_mut_ptr(), value) };
    out
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store_u16(value: __m512i) -> [u16; 32] {
    let mut out = [0; 32];
    // SAFETY: the array covers the 64 bytes written, and the store needs no alignment.
    unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), value) };
    out
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store16(out: &mut [u8; 16], value: __m128i) {
    // SAFETY: the reference covers the 16 bytes written, and the store needs no alignment.
    unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), value) };
}

#[inline]
#[target_feature(enable = "avx512f")]
fn add_square(sum: __m512, a: __m512, b: __m512) -> __m512 {
    let difference = _mm512_sub_ps(a, b);
    _mm512_add_ps(sum, _mm512_mul_ps(difference, difference))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn add_product(sum: __m512, a: __m512, b: __m512) -> __m512 {
    _mm512_add_ps(sum, _mm512_mul_ps(a, b))
}

/// Folds lanes in halves, down to one.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn fold(sums: [__m512; 4]) -> f32 {
    let all = _mm512_add_ps(_mm512_add_ps(sums[0], sums[2]), _mm512_add_ps(sums[1], sums[3]));
    let eight = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps::<1>(all));
    let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
}

#[target_feature(enable = "avx512f,avx512dq")]
pub(super) fn l2(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [_mm512_setzero_ps(); 4];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<64>(), b.as_chunks::<64>());
    for (a, b) in a.iter().zip(b) {
        for (sum, (a, b)) in sums.iter_mut().zip(quarters(a).iter().zip(quarters(b))) {
            *sum = add_square(*sum, load_f32(a), load_f32(b));
        }
    }
    if !a_rest.is_empty() {
        for (lane, sum) in sums.iter_mut().enumerate() {
            *sum = add_square(*sum, load_part(a_rest, lane), load_part(b_rest, lane));
        }
    }
    fold(sums)
}

#[target_feature(enable = "avx512f,avx512dq")]
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [_mm512_setzero_ps(); 4];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<64>(), b.as_chunks::<64>());
    for (a, b) in a.iter().zip(b) {
        for (sum, (a, b)) in sums.iter_mut().zip(quarters(a).iter().zip(quarters(b))) {
            *sum = add_product(*sum, load_f32(a), load_f32(b));
        }
    }
    if !a_rest.is_empty() {
        for (lane, sum) in sums.iter_mut().enumerate() {
            *sum = add_product(*sum, load_part(a_rest, lane), load_part(b_rest, lane));
        }
    }
    fold(sums)
}

widened! { "avx512f,avx512bw,avx512dq,avx512vl"
    fn round(grid: &Grid<'_>, values: &[f32], nearest: &mut [u8], rounded: &mut [f32]);
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) fn dot_i8(query: &[f32], row: &[i8]) -> f32 {
    let widen = |bytes| _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
    let mut sums = [_mm512_setzero_ps(); 4];
    let ((query, query_rest), (row, row_rest)) = (query.as_chunks::<64>(), row.as_chunks::<64>());
    for (query, row) in query.iter().zip(row) {
        for (sum, (query, row)) in sums.iter_mut().zip(quarters(query).iter().zip(quarters(row))) {
            *sum = add_product(*sum, load_f32(query), widen(load16_signed(row)));
        }
    }
    if !query_rest.is_empty() {
        for (lane, sum) in sums.iter_mut().enumerate() {
            let row = widen(load_signed_part(row_rest, lane));
            *sum = add_product(*sum, load_part(query_rest, lane), row);
        }
    }
    fold(sums)
}

fn quarters<T>(values: &[T; 64]) -> &[[T; 16]] {
    values.as_chunks().0
}

#[target_feature(enable = "avx512f")]
pub(super) fn encode(x: &[f32], codebook: &[f32], dsub: usize, codes: &mut [u8]) {
    let (codes, _) = codes.as_chunks_mut::<LANES>();
    if codes.is_empty() {
        return;
    }
    let (x, codebook) = (x.as_chunks::<LANES>().0, codebook.as_chunks::<LANES>().0);
    let book = codebook.len() / codes.len();
    for (group, codes) in codes.iter_mut().enumerate() {
        let x = &x[group * dsub..(group + 1) * dsub];
        store16(codes, encode_group(x, &codebook[group * book..(group + 1) * book]));
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn encode_group(x: &[[f32; LANES]], codewords: &[[f32; LANES]]) -> __m128i {
    let mut best = _mm512_set1_ps(f32::INFINITY);
    let mut code = _mm512_setzero_si512();
    let mut number = _mm512_setzero_si512();
    for codeword in codewords.chunks_exact(x.len()) {
        let mut distance = _mm512_setzero_ps();
        for (x, c) in x.iter().zip(codeword) {
            distance = add_square(distance, load_f32(x), load_f32(c));
        }
        let nearer = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(distance, best);
        best = _mm512_mask_mov_ps(best, nearer, distance);
        code = _mm512_mask_mov_epi32(code, nearer, number);
        number = _mm512_add_epi32(number, _mm512_set1_epi32(1));
    }
    _mm512_cvtepi32_epi8(code)
}

/// Keeps the estimates below the limit, of 16 rows.
#[inline]
#[target_feature(enable = "avx512f")]
fn keep(number: usize, estimates: __m512, limit: f32, hits: &mut Vec<Hit>) {
    let mut below = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(estimates, _mm512_set1_ps(limit));
    if below != 0 {
        let estimates = store(estimates);
        hits.reserve(LANES);
        while below != 0 {
            let lane = below.trailing_zeros() as usize;
            below &= below - 1;
            let slot = (number * LANES + lane) as u32;
            hits.push(Hit { estimate: estimates[lane], slot });
        }
    }
}

/// Looks up both nibbles of a group and adds the entries of each row.
#[inline]
#[target_feature(enable = "avx512f,avx512vbmi,avx512vnni")]
fn add_group([low, high]: [__m512i; 2], codes: &[u8; 64], table: &[[u8; 64]; 2]) -> [__m512i; 2] {
    // Byte 4 i + j looks into the table of sub-quantizer j: (code & 15) | 16 j.
    let of_table = _mm512_set1_epi32(0x3020_1000);
    let nibble = _mm512_set1_epi8(15);
    let ones = _mm512_set1_epi8(1);
    let codes = load(codes);
    const AND_OR: i32 = 0b1110_1010;
    let a = _mm512_ternarylogic_epi32::<AND_OR>(codes, nibble, of_table);
    let b = _mm512_ternarylogic_epi32::<AND_OR>(_mm512_srli_epi32::<4>(codes), nibble, of_table);
    [
        _mm512_dpbusd_epi32(low, _mm512_permutexvar_epi8(a, load(&table[0])), ones),
        _mm512_dpbusd_epi32(high, _mm512_permutexvar_epi8(b, load(&table[1])), ones),
    ]
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni")]
pub(super) fn scan4(blocks: &[u8], scan: &Scan<'_>, ahead: Ahead<'_>, hits: &mut Vec<Hit>) {
    let (tables, _) = scan.table.as_chunks::<64>();
    let (tables, _) = tables.as_chunks::<2>();
    let (table_pairs, table_last) = tables.as_chunks::<2>();
    ahead.later.iter().take(1).for_each(|line| prefetch(line));
    let mut coming = ahead.next.chunks(scan.block_bytes);
    for (number, block) in blocks.chunks_exact(scan.block_bytes).enumerate() {
        // Where nothing comes, it asks for what it has.
        let near = coming.next().unwrap_or(block).as_ptr();
        let (codes, rest) = block.split_at(tables.len() * 64);
        let (codes, _) = codes.as_chunks::<64>();
        let (code_pairs, code_last) = codes.as_chunks::<2>();
        let mut even = [_mm512_setzero_si512(); 2];
        let mut odd = [_mm512_setzero_si512(); 2];
        for (at, (codes, table)) in code_pairs.iter().zip(table_pairs).enumerate() {
            prefetch(near.wrapping_add(128 * at));
            prefetch(near.wrapping_add(128 * at + 64));
            even = add_group(even, &codes[0], &table[0]);
            odd = add_group(odd, &codes[1], &table[1]);
        }
        for (codes, table) in code_last.iter().zip(table_last) {
            prefetch(near.wrapping_add(128 * code_pairs.len()));
            even = add_group(even, codes, table);
        }
        prefetch(near.wrapping_add(64 * codes.len()));
        prefetch(near.wrapping_add(64 * codes.len() + 64));
        let sums =
            _mm512_add_epi32(_mm512_add_epi32(even[0], even[1]), _mm512_add_epi32(odd[0], odd[1]));
        finish(number, sums, rest, scan, hits);
    }
    // The next run may be longer.
    let scanned = tables.len() * 64 + FACTORS;
    for block in coming.take(LONGER) {
        block.iter().take(scanned).step_by(64).for_each(|line| prefetch(line));
    }
}

/// Estimates the rows of a block and keeps those below the limit.
#[inline]
#[target_feature(enable = "avx512f")]
fn finish(number: usize, sums: __m512i, rest: &[u8], scan: &Scan<'_>, hits: &mut Vec<Hit>) {
    let [add, scale, ..] = rest.as_chunks::<64>().0 else { return };
    let bases = _mm512_add_ps(_mm512_set1_ps(scan.base), _mm512_castsi512_ps(load(add)));
    let steps = _mm512_mul_ps(_mm512_set1_ps(scan.slope), _mm512_cvtepi32_ps(sums));
    let products = _mm512_add_ps(_mm512_set1_ps(scan.bias), steps);
    let scaled = _mm512_mul_ps(_mm512_castsi512_ps(load(scale)), products);
    let estimates = _mm512_add_ps(bases, scaled);
    keep(number, estimates, scan.limit, hits);
}

/// Four blocks at a time: a register holds the codes of one column for 64 rows, and its table of
/// 256 entries four registers.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
pub(super) fn scan8(blocks: &[u8], scan: &Scan<'_>, hits: &mut Vec<Hit>) {
    let (tables, _) = scan.table.as_chunks::<64>();
    let (tables, _) = tables.as_chunks::<4>();
    let code_bytes = tables.len() * LANES;
    for (number, four) in blocks.chunks(4 * scan.block_bytes).enumerate() {
        let last = four.len() / scan.block_bytes - 1;
        // Missing blocks repeat the last one; their sums are not used.
        let block = |at: usize| &four[at.min(last) * scan.block_bytes..][..code_bytes];
        let columns = [0, 1, 2, 3].map(|at| block(at).as_chunks::<LANES>().0);
        let mut sums = [[0_u32; LANES]; 4];
        for start in (0..tables.len()).step_by(COLUMNS) {
            let end = (start + COLUMNS).min(tables.len());
            let part = columns.map(|columns| &columns[start..end]);
            add_columns(part, &tables[start..end], &mut sums);
        }
        for (at, (block, sums)) in four.chunks_exact(scan.block_bytes).zip(&sums).enumerate() {
            scalar::finish(number * 4 + at, sums, &block[code_bytes..], scan, hits);
        }
    }
}

/// Adds at most `COLUMNS` columns: rows of even and of odd number apart, in 16 bits.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
fn add_columns(
    columns: [&[[u8; LANES]]; 4],
    tables: &[[[u8; 64]; 4]],
    sums: &mut [[u32; LANES]; 4],
) {
    let byte = _mm512_set1_epi16(255);
    let mut even = _mm512_setzero_si512();
    let mut odd = _mm512_setzero_si512();
    let [a, b, c, d] = columns;
    for ((((a, b), c), d), table) in a.iter().zip(b).zip(c).zip(d).zip(tables) {
        let codes = gather([a, b, c, d]);
        let low = _mm512_permutex2var_epi8(load(&table[0]), codes, load(&table[1]));
        let high = _mm512_permutex2var_epi8(load(&table[2]), codes, load(&table[3]));
        let entries = _mm512_mask_blend_epi8(_mm512_movepi8_mask(codes), low, high);
        even = _mm512_add_epi16(even, _mm512_and_si512(entries, byte));
        odd = _mm512_add_epi16(odd, _mm512_srli_epi16::<8>(entries));
    }
    let (even, odd) = (store_u16(even), store_u16(odd));
    for (at, sum) in sums.as_flattened_mut().iter_mut().enumerate() {
        *sum += u32::from(if at % 2 == 0 { even[at / 2] } else { odd[at / 2] });
    }
}

/// Four parts side by side.
#[inline]
#[target_feature(enable = "avx512f")]
fn gather([a, b, c, d]: [&[u8; LANES]; 4]) -> __m512i {
    let codes = _mm512_castsi128_si512(load16(a));
    let codes = _mm512_inserti32x4::<1>(codes, load16(b));
    let codes = _mm512_inserti32x4::<2>(codes, load16(c));
    _mm512_inserti32x4::<3>(codes, load16(d))
}
