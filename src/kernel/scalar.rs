//! What the kernels compute, in plain loops: the other instruction sets are tested against these.
//!
//! Sums of `f32` run over 64 lanes, element `i` in lane `i % 64`, a rounded product and then a
//! rounded sum (never a fused one), and the lanes are folded in halves. A last part is filled up
//! with zeros, which change no lane: no lane is ever -0.
//!
//! Functions marked `inline(always)` are also compiled for wider registers by the siblings.

use super::{Ahead, Grid, Hit, LANES, ROTATION, Scan, Step, Tiles};
use std::f32::consts::FRAC_1_SQRT_2;

const WIDE: usize = 64;

/// Folds lanes in halves: `l[i] + l[i + 8]`, then 4, 2, 1.
#[inline(always)]
fn fold16(mut lanes: [f32; 16]) -> f32 {
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
    }
    lanes[0]
}

#[inline(always)]
fn fold(lanes: &[f32; WIDE]) -> f32 {
    let mut sums = [0.0; 16];
    for (i, sum) in sums.iter_mut().enumerate() {
        *sum = (lanes[i] + lanes[i + 32]) + (lanes[i + 16] + lanes[i + 48]);
    }
    fold16(sums)
}

/// The sum of a term of each pair.
#[inline(always)]
fn sum<B: Copy>(a: &[f32], b: &[B], term: impl Fn(f32, B) -> f32) -> f32 {
    let mut lanes = [0.0; WIDE];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<WIDE>(), b.as_chunks::<WIDE>());
    for (a, b) in a.iter().zip(b) {
        for lane in 0..WIDE {
            lanes[lane] += term(a[lane], b[lane]);
        }
    }
    for (lane, (a, b)) in lanes.iter_mut().zip(a_rest.iter().zip(b_rest)) {
        *lane += term(*a, *b);
    }
    fold(&lanes)
}

#[inline(always)]
pub(super) fn l2(a: &[f32], b: &[f32]) -> f32 {
    sum(a, b, |a, b| (a - b) * (a - b))
}

#[inline(always)]
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    sum(a, b, |a, b| a * b)
}

#[inline(always)]
pub(super) fn dot_i8(query: &[f32], row: &[i8]) -> f32 {
    sum(query, row, |q, r| q * f32::from(r))
}

/// See [`super::Isa::round`].
#[inline(always)]
pub(super) fn round(grid: &Grid<'_>, values: &[f32], nearest: &mut [u8], rounded: &mut [f32]) {
    let ((values, values_rest), (widths, widths_rest)) =
        (values.as_chunks::<LANES>(), grid.widths.as_chunks::<LANES>());
    let ((nearest, nearest_rest), (rounded, rounded_rest)) =
        (nearest.as_chunks_mut::<LANES>(), rounded.as_chunks_mut::<LANES>());
    for ((value, width), out) in values.iter().zip(widths).zip(nearest.iter_mut().zip(rounded)) {
        (*out.0, *out.1) = round_lanes(grid.levels, value, width);
    }
    let rest = values_rest.iter().zip(widths_rest);
    for ((value, width), out) in rest.zip(nearest_rest.iter_mut().zip(rounded_rest)) {
        let (nearest, rounded) = round_lanes(grid.levels, &[*value], &[*width]);
        (*out.0, *out.1) = (nearest[0], rounded[0]);
    }
}

#[inline(always)]
fn round_lanes<const N: usize>(
    levels: &[f32],
    values: &[f32; N],
    widths: &[f32; N],
) -> ([u8; N], [f32; N]) {
    let mut nearest = [0_u32; N];
    let mut rounded = widths.map(|width| levels[0] * width);
    for pair in levels.windows(2) {
        let (midpoint, next) = ((pair[0] + pair[1]) / 2.0, pair[1]);
        for lane in 0..N {
            let above = values[lane] > midpoint * widths[lane];
            nearest[lane] += u32::from(above);
            rounded[lane] = if above { next * widths[lane] } else { rounded[lane] };
        }
    }
    (nearest.map(|level| level as u8), rounded)
}

/// See [`super::Isa::codeword_products`].
#[inline(always)]
pub(super) fn codeword_products(
    columns: &[f32],
    (query, s): (&[f32], f32),
    (dsub, codewords): (usize, usize),
    out: &mut [f32],
) {
    let parts = query.chunks(dsub).zip(columns.chunks_exact(dsub * codewords));
    for (out, (query, columns)) in out.chunks_exact_mut(codewords).zip(parts) {
        let (out, _) = out.as_chunks_mut::<LANES>();
        out.fill([0.0; LANES]);
        for (q, column) in query.iter().zip(columns.chunks_exact(codewords)) {
            let q = q * s;
            for (out, column) in out.iter_mut().zip(column.as_chunks::<LANES>().0) {
                for lane in 0..LANES {
                    out[lane] += q * column[lane];
                }
            }
        }
    }
}

/// See [`super::Isa::rotate`].
#[inline(always)]
pub(super) fn rotate(signs: &[f32], x: &mut [f32]) {
    rotate_by(signs, x, hadamard16);
}

/// The same by a transform of sixteen numbers that is not scaled.
#[inline(always)]
pub(super) fn rotate_by(signs: &[f32], x: &mut [f32], short: impl Fn(&mut [f32; LANES])) {
    let part = 1 << x.len().ilog2();
    let last = x.len() - part;
    for (step, signs) in ROTATION.iter().zip(signs.chunks_exact(x.len())) {
        match step {
            Step::First => {
                hadamard(&mut x[..part], &signs[..part], &short);
                flip(&mut x[part..], &signs[part..]);
            }
            Step::Last => {
                flip(&mut x[..last], &signs[..last]);
                hadamard(&mut x[last..], &signs[last..], &short);
            }
            Step::Pairs => {
                flip(x, signs);
                turn_pairs(x);
            }
        }
    }
}

#[inline(always)]
fn flip(x: &mut [f32], signs: &[f32]) {
    x.iter_mut().zip(signs).for_each(|(x, sign)| *x *= sign);
}

/// Turns each number of the first half and the one half the length behind it by 45 degrees.
#[inline(always)]
fn turn_pairs(x: &mut [f32]) {
    let (first, second) = x.split_at_mut(x.len() / 2);
    for (a, b) in first.iter_mut().zip(second) {
        (*a, *b) = ((*a + *b) * FRAC_1_SQRT_2, (*a - *b) * FRAC_1_SQRT_2);
    }
}

/// The orthonormal Hadamard transform of `2^k` numbers, after their signs.
#[inline(always)]
fn hadamard(x: &mut [f32], signs: &[f32], short: &impl Fn(&mut [f32; LANES])) {
    let n = x.len();
    let mut half = 1;
    if n >= LANES {
        let blocks = x.as_chunks_mut::<LANES>().0.iter_mut().zip(signs.as_chunks::<LANES>().0);
        for (block, signs) in blocks {
            block.iter_mut().zip(signs).for_each(|(x, sign)| *x *= sign);
            short(block);
        }
        half = LANES;
    } else {
        flip(x, signs);
    }
    // Two stages at a time: what they wait for is memory.
    while 4 * half <= n {
        for four in x.chunks_exact_mut(4 * half) {
            let (low, high) = four.split_at_mut(2 * half);
            let ((a, b), (c, d)) = (low.split_at_mut(half), high.split_at_mut(half));
            for (((a, b), c), d) in a.iter_mut().zip(b).zip(c).zip(d) {
                let (low, high) = ((*a + *b, *a - *b), (*c + *d, *c - *d));
                (*a, *c) = (low.0 + high.0, low.0 - high.0);
                (*b, *d) = (low.1 + high.1, low.1 - high.1);
            }
        }
        half *= 4;
    }
    if half < n {
        let (a, b) = x.split_at_mut(half);
        for (a, b) in a.iter_mut().zip(b) {
            (*a, *b) = (*a + *b, *a - *b);
        }
    }
    let scale = 1.0 / (n as f32).sqrt();
    x.iter_mut().for_each(|x| *x *= scale);
}

fn hadamard16(block: &mut [f32; LANES]) {
    for half in [1, 2, 4, 8] {
        let before = *block;
        for (i, value) in block.iter_mut().enumerate() {
            let (a, b) = (before[i & !half], before[i | half]);
            *value = if i & half == 0 { a + b } else { a - b };
        }
    }
}

/// 1.5 * 2^23: adding it rounds, and leaves the integer in the low bits.
pub(super) const ROUND: f32 = 12_582_912.0;

/// One step of tables whose widest is so wide, and one over it.
#[inline(always)]
pub(super) fn table_step(widest: f32) -> (f32, f32) {
    let step = widest / 255.0;
    (step, if step.is_normal() { 1.0 / step } else { 0.0 })
}

/// See [`super::Isa::round_tables`].
#[inline(always)]
pub(super) fn round_tables(
    values: &[f32],
    codewords: usize,
    minima: &mut [f32],
    bytes: &mut [u8],
) -> f32 {
    let mut widest = 0.0_f32;
    for (values, minimum) in values.chunks_exact(codewords).zip(minima.iter_mut()) {
        let (low, high) = range(values);
        *minimum = low;
        widest = widest.max(high - low);
    }
    let (step, inverse) = table_step(widest);
    let tables = values.chunks_exact(codewords).zip(bytes.chunks_exact_mut(codewords));
    for ((values, bytes), low) in tables.zip(minima.iter()) {
        let values = values.as_chunks::<LANES>().0;
        for (bytes, values) in bytes.as_chunks_mut::<LANES>().0.iter_mut().zip(values) {
            for lane in 0..LANES {
                let rounded = (values[lane] - low) * inverse + ROUND;
                bytes[lane] = rounded.to_bits() as u8;
            }
        }
    }
    step
}

/// The least and the greatest value, by 16 lanes.
#[inline(always)]
fn range(values: &[f32]) -> (f32, f32) {
    let (mut low, mut high) = ([f32::INFINITY; LANES], [f32::NEG_INFINITY; LANES]);
    for part in values.as_chunks::<LANES>().0 {
        for lane in 0..LANES {
            low[lane] = if part[lane] < low[lane] { part[lane] } else { low[lane] };
            high[lane] = if part[lane] > high[lane] { part[lane] } else { high[lane] };
        }
    }
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            low[i] = low[i].min(low[i + half]);
            high[i] = high[i].max(high[i + half]);
        }
    }
    (low[0], high[0])
}

pub(super) fn keys_i8(query: &[u8], tiles: &Tiles<'_>, limits: (f32, f32), hits: &mut Vec<Hit>) {
    for (number, codes) in tiles.codes.chunks_exact(LANES * query.len()).enumerate() {
        let mut dots = [0; LANES];
        for (four, query) in codes.chunks_exact(4 * LANES).zip(query.chunks_exact(4)) {
            for (dot, codes) in dots.iter_mut().zip(four.chunks_exact(4)) {
                let products = query.iter().zip(codes).map(|(q, c)| i32::from(*q) * i32::from(*c));
                *dot += products.sum::<i32>();
            }
        }
        keep_below(number * LANES, &dots, tiles, limits, hits);
    }
}

/// Keeps the rows of a tile whose keys are below the limit; `first` is its first row.
#[inline(always)]
pub(super) fn keep_below(
    first: usize,
    dots: &[i32; LANES],
    tiles: &Tiles<'_>,
    (step, limit): (f32, f32),
    hits: &mut Vec<Hit>,
) {
    for (slot, dot) in (first..).zip(dots) {
        let dot = dot.wrapping_sub(tiles.excess[slot]) as f32;
        let estimate = tiles.norms[slot] + step * tiles.scales[slot] * dot;
        if estimate < limit {
            hits.push(Hit { estimate, slot: slot as u32 });
        }
    }
}

pub(super) fn scan4(blocks: &[u8], scan: &Scan<'_>, _: Ahead<'_>, hits: &mut Vec<Hit>) {
    let code_bytes = scan.table.len() / 2;
    for (number, block) in blocks.chunks_exact(scan.block_bytes).enumerate() {
        let (codes, rest) = block.split_at(code_bytes);
        let mut sums = [0_u32; LANES];
        for (codes, table) in codes.chunks_exact(64).zip(scan.table.chunks_exact(128)) {
            for (at, code) in codes.iter().enumerate() {
                let (row, j) = (at / 4, at % 4);
                let low = table[16 * j + usize::from(code & 15)];
                let high = table[16 * (j + 4) + usize::from(code >> 4)];
                sums[row] += u32::from(low) + u32::from(high);
            }
        }
        finish(number, &sums, rest, scan, hits);
    }
}

#[inline(always)]
pub(super) fn scan8(blocks: &[u8], scan: &Scan<'_>, hits: &mut Vec<Hit>) {
    let code_bytes = scan.table.len() / 16;
    for (number, block) in blocks.chunks_exact(scan.block_bytes).enumerate() {
        let (codes, rest) = block.split_at(code_bytes);
        let mut sums = [0_u32; LANES];
        for (codes, table) in codes.chunks_exact(LANES).zip(scan.table.chunks_exact(256)) {
            for (sum, code) in sums.iter_mut().zip(codes) {
                *sum += u32::from(table[usize::from(*code)]);
            }
        }
        finish(number, &sums, rest, scan, hits);
    }
}

/// Turns the sums of a block into estimates and keeps those below the limit; `rest` begins with
/// the factors.
#[inline(always)]
pub(super) fn finish(
    number: usize,
    sums: &[u32; LANES],
    rest: &[u8],
    scan: &Scan<'_>,
    hits: &mut Vec<Hit>,
) {
    let (factors, _) = rest.as_chunks::<4>();
    let (add, scale) = factors.split_at(LANES);
    for (lane, ((sum, add), scale)) in sums.iter().zip(add).zip(scale).enumerate() {
        let (add, scale) = (f32::from_le_bytes(*add), f32::from_le_bytes(*scale));
        let estimate = (scan.base + add) + scale * (scan.bias + scan.slope * *sum as f32);
        if estimate < scan.limit {
            hits.push(Hit { estimate, slot: (number * LANES + lane) as u32 });
        }
    }
}

#[inline(always)]
pub(super) fn encode(x: &[f32], codebook: &[f32], dsub: usize, codes: &mut [u8]) {
    let (groups, _) = codes.as_chunks_mut::<LANES>();
    if groups.is_empty() {
        return;
    }
    let book = codebook.len() / groups.len();
    for (group, codes) in groups.iter_mut().enumerate() {
        let (x, _) = x[group * dsub * LANES..(group + 1) * dsub * LANES].as_chunks::<LANES>();
        let codewords = &codebook[group * book..(group + 1) * book];
        *codes = encode_group(x, codewords.as_chunks::<LANES>().0);
    }
}

#[inline(always)]
fn encode_group(x: &[[f32; LANES]], codewords: &[[f32; LANES]]) -> [u8; LANES] {
    let mut best = [f32::INFINITY; LANES];
    let mut codes = [0_i32; LANES];
    for (number, codeword) in codewords.chunks_exact(x.len()).enumerate() {
        let mut distance = [0.0; LANES];
        for (x, c) in x.iter().zip(codeword) {
            for lane in 0..LANES {
                distance[lane] += (x[lane] - c[lane]) * (x[lane] - c[lane]);
            }
        }
        for lane in 0..LANES {
            let nearer = distance[lane] < best[lane];
            codes[lane] = if nearer { number as i32 } else { codes[lane] };
            best[lane] = if nearer { distance[lane] } else { best[lane] };
        }
    }
    codes.map(|code| code as u8)
}
