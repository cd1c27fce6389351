//! Exact products of rounded queries with rows of small integers, 16 side by side.
//!
//! A product takes five cycles to add and two can begin in each, so there are always eight sums; a
//! core reads one register a cycle, so four queries share what is read of the rows.

use super::super::{Hit, Tiles};
use super::{keep, load_f32, load_i32, load_signed, store};
use std::arch::x86_64::*;

/// Four tiles share each load of the query; what is left goes one by one.
#[target_feature(enable = "avx512f,avx512vnni")]
pub(in crate::kernel) fn keys_i8(
    query: &[u8],
    tiles: &Tiles<'_>,
    limits: (f32, f32),
    hits: &mut Vec<Hit>,
) {
    let (query, _) = query.as_chunks::<4>();
    let (codes, _) = tiles.codes.as_chunks::<64>();
    let width = query.len();
    let (fours, last) = codes.split_at(codes.len() / (4 * width) * (4 * width));
    for (number, four) in fours.chunks_exact(4 * width).enumerate() {
        let (ab, cd) = four.split_at(2 * width);
        let ((a, b), (c, d)) = (ab.split_at(width), cd.split_at(width));
        let sums = four_dots(query, [a, b, c, d]);
        for (at, sum) in sums.into_iter().enumerate() {
            keep_below(4 * number + at, sum, tiles, limits, hits);
        }
    }
    for (number, codes) in last.chunks_exact(width).enumerate() {
        keep_below(fours.len() / width + number, dots(query, codes), tiles, limits, hits);
    }
}

/// The dots of the rows of four tiles. A product takes five cycles to add, and two can begin in each:
/// there are eight sums.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn four_dots(query: &[[u8; 4]], tiles: [&[[i8; 64]]; 4]) -> [__m512i; 4] {
    let (mut even, mut odd) = ([_mm512_setzero_si512(); 4], [_mm512_setzero_si512(); 4]);
    let (pairs, q_last) = query.as_chunks::<2>();
    let [a, b, c, d] = tiles.map(|tile| tile.as_chunks::<2>().0);
    for ((((q, a), b), c), d) in pairs.iter().zip(a).zip(b).zip(c).zip(d) {
        let (p, q) = (broadcast(&q[0]), broadcast(&q[1]));
        for (at, tile) in [a, b, c, d].into_iter().enumerate() {
            even[at] = _mm512_dpbusd_epi32(even[at], p, load_signed(&tile[0]));
            odd[at] = _mm512_dpbusd_epi32(odd[at], q, load_signed(&tile[1]));
        }
    }
    if let [q] = q_last {
        for (sum, tile) in even.iter_mut().zip(tiles) {
            *sum = _mm512_dpbusd_epi32(*sum, broadcast(q), load_signed(&tile[query.len() - 1]));
        }
    }
    std::array::from_fn(|at| _mm512_add_epi32(even[at], odd[at]))
}

/// The dots of the rows of a tile. A product takes several cycles to add: there are four sums.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn dots(query: &[[u8; 4]], tile: &[[i8; 64]]) -> __m512i {
    let zero = _mm512_setzero_si512();
    let (mut w, mut x, mut y, mut z) = (zero, zero, zero, zero);
    let ((query, q_last), (tile, last)) = (query.as_chunks::<4>(), tile.as_chunks::<4>());
    for ([p, q, r, s], [a, b, c, d]) in query.iter().zip(tile) {
        w = _mm512_dpbusd_epi32(w, broadcast(p), load_signed(a));
        x = _mm512_dpbusd_epi32(x, broadcast(q), load_signed(b));
        y = _mm512_dpbusd_epi32(y, broadcast(r), load_signed(c));
        z = _mm512_dpbusd_epi32(z, broadcast(s), load_signed(d));
    }
    for (q, a) in q_last.iter().zip(last) {
        w = _mm512_dpbusd_epi32(w, broadcast(q), load_signed(a));
    }
    _mm512_add_epi32(_mm512_add_epi32(w, x), _mm512_add_epi32(y, z))
}

/// Four queries share each load of the rows of two tiles.
#[target_feature(enable = "avx512f,avx512vnni")]
pub(in crate::kernel) fn four_keys_i8(
    queries: &[[[u8; 4]; 4]],
    tiles: &Tiles<'_>,
    limits: [(f32, f32); 4],
    hits: &mut [Vec<Hit>; 4],
) {
    for (pair, codes) in tiles.codes.as_chunks::<64>().0.chunks(2 * queries.len()).enumerate() {
        let (dots, used) = pair_dots(queries, codes);
        for (tile, dots) in (2 * pair..).zip(&dots[..used]) {
            for at in 0..4 {
                keep_below(tile, dots[at], tiles, limits[at], &mut hits[at]);
            }
        }
    }
}

/// Keeps the least key of each lane and where it was.
#[target_feature(enable = "avx512f,avx512vnni")]
pub(in crate::kernel) fn four_least_i8(
    queries: &[[[u8; 4]; 4]],
    tiles: &Tiles<'_>,
    steps: [f32; 4],
) -> [Hit; 4] {
    let mut least = [_mm512_set1_ps(f32::INFINITY); 4];
    let mut found = [_mm512_setzero_si512(); 4];
    for (pair, codes) in tiles.codes.as_chunks::<64>().0.chunks(2 * queries.len()).enumerate() {
        let (dots, used) = pair_dots(queries, codes);
        for (tile, dots) in (2 * pair..).zip(&dots[..used]) {
            let number = _mm512_set1_epi32(tile as i32);
            for at in 0..4 {
                let keys = keys_of(tile, dots[at], tiles, steps[at]);
                let below = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(keys, least[at]);
                least[at] = _mm512_mask_mov_ps(least[at], below, keys);
                found[at] = _mm512_mask_mov_epi32(found[at], below, number);
            }
        }
    }
    let mut hits = [Hit { estimate: f32::INFINITY, slot: 0 }; 4];
    for (hit, (keys, tiles)) in hits.iter_mut().zip(least.into_iter().zip(found)) {
        let tiles = store(_mm512_castsi512_ps(tiles));
        for ((key, tile), lane) in store(keys).into_iter().zip(tiles).zip(0..) {
            let slot = 16 * tile.to_bits() + lane;
            if key < hit.estimate || key == hit.estimate && key < f32::INFINITY && slot < hit.slot {
                *hit = Hit { estimate: key, slot };
            }
        }
    }
    hits
}

/// The dots of the rows of two tiles with four queries, which share each load of the rows, and how
/// many tiles there are: the last may be alone.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn pair_dots(queries: &[[[u8; 4]; 4]], codes: &[[i8; 64]]) -> ([[__m512i; 4]; 2], usize) {
    let (a, b) = codes.split_at(queries.len());
    let (b, used) = if b.is_empty() { (a, 1) } else { (b, 2) };
    let (mut first, mut second) = ([_mm512_setzero_si512(); 4], [_mm512_setzero_si512(); 4]);
    for ((four, a), b) in queries.iter().zip(a).zip(b) {
        let (a, b) = (load_signed(a), load_signed(b));
        for at in 0..4 {
            let query = broadcast(&four[at]);
            first[at] = _mm512_dpbusd_epi32(first[at], query, a);
            second[at] = _mm512_dpbusd_epi32(second[at], query, b);
        }
    }
    ([first, second], used)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn broadcast(four: &[u8; 4]) -> __m512i {
    _mm512_set1_epi32(i32::from_le_bytes(*four))
}

/// Keeps the rows of a tile whose keys are below the limit.
#[inline]
#[target_feature(enable = "avx512f")]
fn keep_below(
    tile: usize,
    dots: __m512i,
    tiles: &Tiles<'_>,
    (step, limit): (f32, f32),
    hits: &mut Vec<Hit>,
) {
    keep(tile, keys_of(tile, dots, tiles, step), limit, hits);
}

/// The keys of the rows of a tile.
#[inline]
#[target_feature(enable = "avx512f")]
fn keys_of(tile: usize, dots: __m512i, tiles: &Tiles<'_>, step: f32) -> __m512 {
    let (norms, scales) = (tiles.norms.as_chunks::<16>().0, tiles.scales.as_chunks::<16>().0);
    let dots = _mm512_sub_epi32(dots, load_i32(&tiles.excess.as_chunks::<16>().0[tile]));
    let steps = _mm512_mul_ps(_mm512_set1_ps(step), load_f32(&scales[tile]));
    let keys = _mm512_mul_ps(steps, _mm512_cvtepi32_ps(dots));
    _mm512_add_ps(load_f32(&norms[tile]), keys)
}
