//! Every instruction set of this machine against the scalar definition, on random and hostile bytes.

use super::{Ahead, FACTORS, Grid, Hit, Isa, LANES, Level, NAMES, ROTATION_STEPS, Scan, Tiles};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::process::Command;

const SCALAR: Isa = Isa(Level::Scalar);

fn floats(rng: &mut ChaCha8Rng, n: usize) -> Vec<f32> {
    (0..n).map(|_| rng.random_range(-2.0..2.0)).collect()
}

fn bytes(rng: &mut ChaCha8Rng, n: usize) -> Vec<u8> {
    (0..n).map(|_| rng.random_range(0..=255)).collect()
}

fn signed(rng: &mut ChaCha8Rng, n: usize) -> Vec<i8> {
    (0..n).map(|_| rng.random_range(-128..=127)).collect()
}

/// Equal bits, but any NaN is like any other.
fn same(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan())
}

#[test]
fn a_required_instruction_set_is_there() {
    if let Ok(name) = std::env::var("CELLARDB_REQUIRE_ISA") {
        let names: Vec<_> = Isa::available().iter().map(|isa| isa.name()).collect();
        assert!(names.contains(&name.as_str()), "{name} is missing, there are {names:?}");
    }
    assert_eq!(Isa::available().last(), Some(&Isa::up_to(None)));
}

#[test]
fn the_environment_names_the_best_instruction_set_to_use() {
    if let Ok(name) = std::env::var("CELLARDB_TEST_EXPECTS_ISA") {
        assert_eq!(Isa::detect().name(), name);
        return;
    }
    let all = Isa::available();
    for (name, expected) in
        NAMES.into_iter().zip(all.iter().chain(std::iter::repeat(&all[all.len() - 1])))
    {
        assert_eq!(Isa::up_to(Some(name)), *expected, "{name}");
        let test = "kernel::tests::the_environment_names_the_best_instruction_set_to_use";
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args([test, "--exact"]).env("CELLARDB_ISA", name);
        let child = child.env("CELLARDB_TEST_EXPECTS_ISA", expected.name()).output().unwrap();
        assert!(child.status.success(), "{name}: {child:?}");
        assert!(String::from_utf8_lossy(&child.stdout).contains("1 passed"), "{name}: {child:?}");
    }
    assert_eq!(Isa::up_to(Some("avx3")), Isa::up_to(None));
}

#[test]
fn float_sums_equal_the_scalar_ones_bit_for_bit() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for n in (0..300).chain([383, 384, 1000, 1536]) {
        let (a, b) = (floats(&mut rng, n), floats(&mut rng, n));
        let row = signed(&mut rng, n);
        for isa in Isa::available() {
            assert!(same(isa.l2(&a, &b), SCALAR.l2(&a, &b)), "{isa:?} {n}");
            assert!(same(isa.dot(&a, &b), SCALAR.dot(&a, &b)), "{isa:?} {n}");
            assert!(same(isa.dot_i8(&a, &row), SCALAR.dot_i8(&a, &row)), "{isa:?} {n}");
        }
    }
}

#[test]
fn rounding_to_a_grid_takes_the_nearest_level_on_every_instruction_set() {
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    for (n, levels) in (0..70).flat_map(|n| [(n, &[0.5][..]), (n, &[-1.5, -0.5, 0.25, 2.0][..])]) {
        let widths: Vec<f32> = floats(&mut rng, n).iter().map(|width| width.abs()).collect();
        let (values, grid) = (floats(&mut rng, n), Grid { levels, widths: &widths });
        for isa in Isa::available() {
            let (mut nearest, mut rounded) = (vec![9; n], vec![9.0; n]);
            isa.round(&grid, &values, &mut nearest, &mut rounded);
            for (at, (level, rounded)) in nearest.iter().zip(rounded).enumerate() {
                let off = |level: &f32| (values[at] - level * widths[at]).abs();
                let least = levels.iter().map(off).fold(f32::INFINITY, f32::min);
                assert_eq!(rounded, levels[usize::from(*level)] * widths[at], "{isa:?}");
                assert!(off(&levels[usize::from(*level)]) <= least + 1e-6, "{isa:?}");
            }
        }
    }
}

#[test]
fn float_sums_of_any_bits_equal_the_scalar_ones() {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    for n in 0..200 {
        let mut any = || -> Vec<f32> {
            (0..n).map(|_| f32::from_bits(rng.random_range(0..=u32::MAX))).collect()
        };
        let (a, b) = (any(), any());
        for isa in Isa::available() {
            assert!(same(isa.l2(&a, &b), SCALAR.l2(&a, &b)), "{isa:?} {n}");
            assert!(same(isa.dot(&a, &b), SCALAR.dot(&a, &b)), "{isa:?} {n}");
        }
    }
}

#[test]
fn float_sums_are_near_the_sums_in_double_precision() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let (a, b) = (floats(&mut rng, 777), floats(&mut rng, 777));
    let pairs = || a.iter().zip(&b).map(|(a, b)| (f64::from(*a), f64::from(*b)));
    let l2: f64 = pairs().map(|(a, b)| (a - b) * (a - b)).sum();
    let dot: f64 = pairs().map(|(a, b)| a * b).sum();
    assert!((f64::from(SCALAR.l2(&a, &b)) - l2).abs() < 1e-3);
    assert!((f64::from(SCALAR.dot(&a, &b)) - dot).abs() < 1e-3);
}

fn keys(isa: Isa, query: &[u8], tiles: &Tiles<'_>, limit: f32) -> Vec<Hit> {
    let mut hits = vec![Hit { estimate: 7.0, slot: 7 }];
    isa.keys_i8(query, tiles, (-0.25, limit), &mut hits);
    let hits = hits.split_off(1);
    // Four at once give what each gives alone, whatever the others are.
    let other: Vec<u8> = query.iter().map(|byte| byte.wrapping_mul(7)).collect();
    let limits = [(-0.25, limit), (0.5, 0.0), (-0.25, limit), (-0.25, f32::NEG_INFINITY)];
    let mut four = [(); 4].map(|()| Vec::new());
    let (query_fours, other_fours) = (query.as_chunks::<4>().0, other.as_chunks::<4>().0);
    let queries: Vec<_> =
        query_fours.iter().zip(other_fours).map(|(q, o)| [*q, *o, *q, *q]).collect();
    isa.four_keys_i8(&queries, tiles, limits, &mut four);
    let mut alone = Vec::new();
    isa.keys_i8(&other, tiles, limits[1], &mut alone);
    let steps = limits.map(|(step, _)| step);
    let least = isa.four_least_i8(&queries, tiles, steps);
    assert_eq!(least, Isa::available()[0].four_least_i8(&queries, tiles, steps), "{isa:?}");
    if let Some(hit) = hits.first() {
        let best = hits.iter().map(|hit| hit.estimate).fold(hit.estimate, f32::min);
        assert_eq!(Some(&least[0]), hits.iter().find(|hit| hit.estimate == best), "{isa:?}");
    }
    assert_eq!(four, [hits.clone(), alone, hits.clone(), Vec::new()], "{isa:?}");
    hits
}

#[test]
fn integer_dots_are_exact_at_the_extremes() {
    for width in [4, 64, 1 << 16] {
        for rows in [16, 64, 80] {
            let codes = vec![-128; rows * width];
            let (excess, scales) = (vec![0; rows], vec![1.0; rows]);
            let tiles = Tiles { codes: &codes, excess: &excess, scales: &scales, norms: &scales };
            let estimate = 1.0 - 0.25 * (255 * -128 * width as i32) as f32;
            for isa in Isa::available() {
                let hits = keys(isa, &vec![255; width], &tiles, f32::INFINITY);
                assert_eq!(hits.len(), rows);
                assert!(hits.iter().all(|hit| hit.estimate == estimate), "{isa:?}");
            }
        }
    }
}

#[test]
fn a_key_is_made_of_the_numbers_of_its_row() {
    // Number 6 of row 17: tile 1, second four, row 1, third.
    let (mut codes, mut query) = (vec![0; 32 * 8], vec![0; 8]);
    codes[16 * 8 + 64 + 4 + 2] = -3;
    query[6] = 200;
    let (mut excess, mut scales) = (vec![0; 32], vec![0.0; 32]);
    (excess[17], scales[17]) = (100, 2.0);
    let tiles = Tiles { codes: &codes, excess: &excess, scales: &scales, norms: &[-1.0; 32] };
    for isa in Isa::available() {
        let hits = keys(isa, &query, &tiles, f32::INFINITY);
        assert_eq!((hits.len(), hits[17]), (32, Hit { estimate: 349.0, slot: 17 }));
        assert_eq!(hits[16].estimate, -1.0);
    }
}

#[test]
fn keys_of_any_bytes_equal_the_scalar_ones() {
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    for width in [4, 52, 64, 384, 788] {
        for rows in [0, 16, 32, 48, 64, 80, 128, 176] {
            let (query, codes) = (bytes(&mut rng, width), signed(&mut rng, rows * width));
            let (mut scales, mut norms) = (floats(&mut rng, rows), floats(&mut rng, rows));
            let excess: Vec<i32> =
                (0..rows).map(|_| rng.random_range(i32::MIN..=i32::MAX) >> 8).collect();
            if rows > 0 {
                (norms[3], norms[5], scales[7]) = (f32::INFINITY, f32::NAN, f32::MAX);
            }
            let tiles = Tiles { codes: &codes, excess: &excess, scales: &scales, norms: &norms };
            for limit in [f32::INFINITY, 0.0, f32::NAN] {
                let expected = keys(SCALAR, &query, &tiles, limit);
                for isa in Isa::available() {
                    assert_eq!(
                        keys(isa, &query, &tiles, limit),
                        expected,
                        "{isa:?} {width} {rows}"
                    );
                }
            }
        }
    }
}

struct Case {
    blocks: Vec<u8>,
    table: Vec<u8>,
    block_bytes: usize,
}

impl Case {
    fn new(rng: &mut ChaCha8Rng, blocks: usize, table: Vec<u8>, code_bytes: usize) -> Case {
        // With something behind the factors, as ids are.
        let block_bytes = code_bytes + FACTORS + 64 * rng.random_range(0..3_usize);
        let mut blocks = bytes(rng, blocks * block_bytes);
        for block in blocks.chunks_exact_mut(block_bytes) {
            // Half of the factors are sensible, the others any bits.
            for lane in (0..2 * LANES).step_by(2) {
                let factor = rng.random_range(-1e3_f32..1e3).to_le_bytes();
                block[code_bytes + 4 * lane..][..4].copy_from_slice(&factor);
            }
        }
        Case { blocks, table, block_bytes }
    }

    fn check(&self, scan: fn(Isa, &[u8], &Scan<'_>, Ahead<'_>, &mut Vec<Hit>)) {
        for limit in [f32::INFINITY, 100.0, -1e9, f32::NAN] {
            let args = Scan {
                table: &self.table,
                block_bytes: self.block_bytes,
                base: 0.3,
                bias: 1.7,
                slope: -0.017,
                limit,
            };
            let mut expected = Vec::new();
            let (block, near) = (self.block_bytes, &*self.blocks);
            scan(SCALAR, near, &args, Ahead::default(), &mut expected);
            assert!(expected.iter().all(|hit| hit.estimate < limit));
            for isa in Isa::available() {
                let mut hits = vec![Hit { estimate: 7.0, slot: 7 }];
                // What comes is longer, shorter, or nothing.
                for next in [near, near.get(block..).unwrap_or_default(), &[0; 1]] {
                    hits.truncate(1);
                    scan(isa, near, &args, Ahead { next, later: next }, &mut hits);
                }
                assert_eq!(hits.len(), expected.len() + 1, "{isa:?} limit {limit}");
                for (hit, expected) in hits[1..].iter().zip(&expected) {
                    assert_eq!(hit.slot, expected.slot, "{isa:?}");
                    assert_eq!(hit.estimate.to_bits(), expected.estimate.to_bits(), "{isa:?}");
                }
            }
        }
    }
}

#[test]
fn scans_of_four_bit_codes_equal_the_scalar_one() {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    for groups in [0, 1, 2, 3, 4, 7, 24, 63, 64, 65, 130] {
        for blocks in [0, 1, 2, 3, 9] {
            let table = bytes(&mut rng, groups * 128);
            Case::new(&mut rng, blocks, table, groups * 64).check(Isa::scan4);
        }
    }
    // The largest sums.
    Case::new(&mut rng, 2, vec![255; 8192 * 128], 8192 * 64).check(Isa::scan4);
}

#[test]
fn scans_of_eight_bit_codes_equal_the_scalar_one() {
    let mut rng = ChaCha8Rng::seed_from_u64(6);
    for quads in [0, 1, 2, 3, 12, 63, 64, 65, 130] {
        for blocks in [0, 1, 2, 3, 4, 5, 8, 11] {
            let table = bytes(&mut rng, quads * 1024);
            Case::new(&mut rng, blocks, table, quads * 64).check(Isa::scan8);
        }
    }
    Case::new(&mut rng, 2, vec![255; 16_384 * 1024], 16_384 * 64).check(Isa::scan8);
}

#[test]
fn a_scan_finds_the_sum_of_the_tables_of_each_row() {
    // Sub-quantizer 9 of row 5 is 12: group 1, low nibble, byte 4 * 5 + 1. Sub-quantizer 14 is 3:
    // group 1, high nibble, byte 4 * 5 + 2.
    let (mut table, mut block) = (vec![0; 256], vec![0; 128 + FACTORS]);
    table[16 * 9 + 12] = 200;
    table[16 * 14 + 3] = 50;
    block[64 + 21] = 12;
    block[64 + 22] = 3 << 4;
    block[128 + 64 + 4 * 5..][..4].copy_from_slice(&2.0_f32.to_le_bytes());
    for isa in Isa::available() {
        let (base, bias, slope) = (1.0, 3.0, -2.0);
        let scan = Scan { table: &table, block_bytes: 256, base, bias, slope, limit: 0.0 };
        let mut hits = Vec::new();
        isa.scan4(&block, &scan, Ahead::default(), &mut hits);
        assert_eq!(hits, [Hit { estimate: 1.0 + 2.0 * (3.0 - 500.0), slot: 5 }], "{isa:?}");
    }
}

#[test]
fn unused_lanes_are_never_hits() {
    let mut block = vec![0; 64 + FACTORS];
    for (lane, factor) in [f32::INFINITY, f32::NAN].iter().cycle().take(LANES).enumerate() {
        block[64 + 4 * lane..][..4].copy_from_slice(&factor.to_le_bytes());
    }
    for isa in Isa::available() {
        for table in [vec![0; 128], vec![0; 1024]] {
            let scan = Scan {
                table: &table,
                block_bytes: 192,
                base: 0.0,
                bias: 0.0,
                slope: 1.0,
                limit: f32::INFINITY,
            };
            let mut hits = Vec::new();
            if table.len() == 128 {
                isa.scan4(&block, &scan, Ahead::default(), &mut hits);
            } else {
                isa.scan8(&block, &scan, Ahead::default(), &mut hits);
            }
            assert!(hits.is_empty(), "{isa:?}");
        }
    }
}

#[test]
fn tables_equal_the_scalar_ones() {
    let mut rng = ChaCha8Rng::seed_from_u64(8);
    for (parts, codewords, dsub, last) in
        [(0, 16, 2, 2), (1, 16, 1, 1), (7, 16, 4, 3), (96, 16, 4, 4), (3, 256, 4, 1)]
    {
        let len = if parts == 0 { 0 } else { (parts - 1) * dsub + last };
        let query = floats(&mut rng, len);
        let columns = floats(&mut rng, parts * dsub * codewords);
        let tables = |isa: Isa| {
            let mut products = vec![7.0; parts * codewords];
            isa.codeword_products(&columns, (&query, -2.0), (dsub, codewords), &mut products);
            let (mut minima, mut bytes) = (vec![7.0; parts], vec![9; products.len()]);
            let step = isa.round_tables(&products, codewords, &mut minima, &mut bytes);
            (products, minima, bytes, step)
        };
        let expected = tables(SCALAR);
        for isa in Isa::available() {
            assert_eq!(tables(isa), expected, "{isa:?}");
        }
    }
}

#[test]
fn rotations_equal_the_scalar_one() {
    let mut rng = ChaCha8Rng::seed_from_u64(9);
    for dim in [1, 2, 3, 4, 12, 16, 52, 127, 128, 132, 384, 508, 784] {
        let signs: Vec<f32> =
            floats(&mut rng, ROTATION_STEPS * dim).iter().map(|x| x.signum()).collect();
        let vector = floats(&mut rng, dim);
        let mut expected = vector.clone();
        SCALAR.rotate(&signs, &mut expected);
        for isa in Isa::available() {
            let mut rotated = vector.clone();
            isa.rotate(&signs, &mut rotated);
            assert_eq!(rotated, expected, "{isa:?} {dim}");
        }
    }
}

#[test]
fn encoding_equals_the_scalar_one() {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    for (groups, codewords, dsub) in [(0, 16, 2), (1, 16, 1), (3, 16, 2), (2, 256, 4), (1, 7, 3)] {
        let mut x = floats(&mut rng, groups * LANES * dsub);
        let mut codebook = floats(&mut rng, groups * LANES * dsub * codewords);
        if let [first, ..] = codebook.as_mut_slice() {
            *first = f32::NAN;
            x[3] = f32::INFINITY;
        }
        let mut expected = vec![0; groups * LANES];
        SCALAR.encode(&x, &codebook, dsub, &mut expected);
        for isa in Isa::available() {
            let mut codes = vec![9; groups * LANES];
            isa.encode(&x, &codebook, dsub, &mut codes);
            assert_eq!(codes, expected, "{isa:?}");
        }
    }
}

#[test]
fn lengths_that_do_not_fit_are_refused() {
    let refused = |call: fn()| assert!(std::panic::catch_unwind(call).is_err());
    fn scan(
        table: usize,
        block_bytes: usize,
        blocks: usize,
        scan: fn(Isa, &[u8], &Scan<'_>, Ahead<'_>, &mut Vec<Hit>),
    ) {
        let table = vec![0; table];
        let args =
            Scan { table: &table, block_bytes, base: 0.0, bias: 0.0, slope: 1.0, limit: 1.0 };
        scan(Isa::detect(), &vec![0; blocks], &args, Ahead::default(), &mut Vec::new());
    }
    scan(128, 256, 512, Isa::scan4);
    scan(1024, 256, 512, Isa::scan8);
    refused(|| scan(128, 256, 511, Isa::scan4));
    refused(|| scan(128, 191, 382, Isa::scan4));
    refused(|| scan(127, 256, 512, Isa::scan4));
    refused(|| scan(1024, 256, 511, Isa::scan8));
    refused(|| scan(1023, 256, 512, Isa::scan8));
    refused(|| scan(1024, 191, 382, Isa::scan8));
    refused(|| _ = Isa::detect().l2(&[1.0], &[]));
    refused(|| _ = Isa::detect().dot(&[1.0], &[]));
    refused(|| _ = Isa::detect().dot_i8(&[1.0], &[]));
    fn keys_of(width: usize, codes: usize, excess: usize, scales: usize) {
        let (query, codes) = (vec![0; width], vec![0; codes]);
        let (excess, scales) = (vec![0; excess], vec![0.0; scales]);
        let tiles = Tiles { codes: &codes, excess: &excess, scales: &scales, norms: &[0.0; 16] };
        keys(Isa::detect(), &query, &tiles, 1.0);
    }
    keys_of(4, 64, 16, 16);
    refused(|| keys_of(5, 80, 16, 16));
    refused(|| keys_of(4, 63, 16, 16));
    refused(|| keys_of(4, 64, 15, 16));
    refused(|| keys_of(4, 64, 16, 15));
    Isa::detect().rotate(&[1.0; 4 * ROTATION_STEPS], &mut [0.0; 4]);
    refused(|| Isa::detect().rotate(&[1.0; 3 * ROTATION_STEPS], &mut [0.0; 4]));
    fn products(columns: usize, query: usize, out: usize) {
        let (columns, query, mut out) = (vec![0.0; columns], vec![0.0; query], vec![0.0; out]);
        Isa::detect().codeword_products(&columns, (&query, 1.0), (2, 16), &mut out);
    }
    products(64, 3, 32);
    refused(|| products(64, 5, 32));
    refused(|| products(63, 3, 32));
    refused(|| _ = Isa::detect().round_tables(&[0.0; 32], 16, &mut [0.0; 1], &mut [0; 32]));
    refused(|| _ = Isa::detect().round_tables(&[0.0; 16], 16, &mut [0.0; 1], &mut [0; 15]));
    refused(|| Isa::detect().encode(&[0.0; 16], &[0.0; 31], 1, &mut [0; 16]));
    refused(|| Isa::detect().encode(&[0.0; 16], &[0.0; 257 * 16], 1, &mut [0; 16]));
}
