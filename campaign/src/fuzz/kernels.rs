//! The kernels on any lengths and any bytes: every instruction set equals the scalar definition bit for
//! bit (any NaN is like any other), and reads nothing beside its slices, which AddressSanitizer sees
//! because each is an allocation of its own.

use super::bytes::Bytes;
use crate::kernel::{Ahead, FACTORS, Grid, Hit, Isa, ROTATION_STEPS, Scan, Tiles};

pub(super) fn run(data: &[u8]) {
    let mut input = Bytes(data);
    let kernel = input.below(9);
    let isas = Isa::available();
    let (scalar, others) = isas.split_first().expect("the scalar definition is always there");
    // What follows in the input decides the shape, and then fills the slices.
    let outcome = |isa: Isa| {
        let mut input = input;
        match kernel {
            0 => sums(isa, &mut input),
            1 => round(isa, &mut input),
            2 => products(isa, &mut input),
            3 => rotate(isa, &mut input),
            4 => round_tables(isa, &mut input),
            5 => keys(isa, &mut input),
            6 => scan(isa, &mut input, (128, 2), Isa::scan4),
            7 => scan(isa, &mut input, (1024, 16), Isa::scan8),
            _ => encode(isa, &mut input),
        }
    };
    let expected = outcome(*scalar);
    for isa in others {
        assert_eq!(outcome(*isa), expected, "{} of kernel {kernel}", isa.name());
    }
}

/// What a kernel gave, every NaN made alike.
#[derive(Debug, Default, PartialEq)]
struct Outcome {
    bits: Vec<u32>,
    bytes: Vec<u8>,
    slots: Vec<u32>,
}

impl Outcome {
    fn floats(&mut self, values: &[f32]) {
        let bits = |x: &f32| if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() };
        self.bits.extend(values.iter().map(bits));
    }

    fn hits(&mut self, hits: &[Hit]) {
        self.slots.push(hits.len() as u32);
        for Hit { estimate, slot } in hits {
            self.floats(&[*estimate]);
            self.slots.push(*slot);
        }
    }
}

/// Numbers of any bits, or (one input in two) small ones whose sums say more.
fn floats(input: &mut Bytes<'_>, len: usize) -> Vec<f32> {
    if input.u8() & 1 == 0 {
        let bytes = input.fill(4 * len);
        return bytes.as_chunks().0.iter().map(|word| f32::from_le_bytes(*word)).collect();
    }
    input.fill(len).iter().map(|byte| (f32::from(*byte) - 128.0) / 37.0).collect()
}

fn signed(input: &mut Bytes<'_>, len: usize) -> Vec<i8> {
    input.fill(len).into_iter().map(u8::cast_signed).collect()
}

/// One number of any bits.
fn float(input: &mut Bytes<'_>) -> f32 {
    match input.u8() % 8 {
        0 => f32::INFINITY,
        1 => f32::NEG_INFINITY,
        2 => f32::NAN,
        3 => f32::from_bits(input.u32()),
        4 => 0.0,
        _ => f32::from(input.u8().cast_signed()) / 3.0,
    }
}

fn sums(isa: Isa, input: &mut Bytes<'_>) -> Outcome {
    let len = input.below(1100);
    let (a, b) = (floats(input, len), floats(input, len));
    let row = signed(input, len);
    let mut out = Outcome::default();
    out.floats(&[isa.l2(&a, &b), isa.dot(&a, &b), isa.dot_i8(&a, &row)]);
    out
}

fn round(isa: Isa, input: &mut Bytes<'_>) -> Outcome {
    let (len, levels) = (input.below(300), input.below(256) + 1);
    let mut levels = floats(input, levels);
    levels.sort_by(f32::total_cmp);
    let (widths, values) = (floats(input, len), floats(input, len));
    let mut out = Outcome { bytes: vec![9; len], ..Outcome::default() };
    let mut rounded = vec![9.0; len];
    isa.round(&Grid { levels: &levels, widths: &widths }, &values, &mut out.bytes, &mut rounded);
    out.floats(&rounded);
    out
}

fn products(isa: Isa, input: &mut Bytes<'_>) -> Outcome {
    let (len, dsub) = (input.below(70), input.below(9) + 1);
    let codewords = [16, 256][input.below(2)];
    let mut products = vec![7.0; len.div_ceil(dsub) * codewords];
    let (query, columns) = (floats(input, len), floats(input, products.len() * dsub));
    isa.codeword_products(&columns, (&query, float(input)), (dsub, codewords), &mut products);
    let mut out = Outcome::default();
    out.floats(&products);
    out
}

fn rotate(isa: Isa, input: &mut Bytes<'_>) -> Outcome {
    let len = input.below(600) + 1;
    let (signs, mut vector) = (floats(input, len * ROTATION_STEPS), floats(input, len));
    isa.rotate(&signs, &mut vector);
    let mut out = Outcome::default();
    out.floats(&vector);
    out
}

fn round_tables(isa: Isa, input: &mut Bytes<'_>) -> Outcome {
    let (parts, codewords) = (input.below(40), [16, 256][input.below(2)]);
    let values = floats(input, parts * codewords);
    let (mut minima, mut bytes) = (vec![7.0; parts], vec![9; values.len()]);
    let step = isa.round_tables(&values, codewords, &mut minima, &mut bytes);
    let mut out = Outcome { bytes, ..Outcome::default() };
    out.floats(&minima);
    out.floats(&[step]);
    out
}

fn keys(isa: Isa, input: &mut Bytes<'_>) -> Outcome {
    let (width, rows) = (4 * (input.below(100) + 1), 16 * input.below(14));
    let limits = [(); 4].map(|()| (float(input), float(input)));
    let (codes, scales) = (signed(input, rows * width), floats(input, rows));
    let (norms, queries) = (floats(input, rows), input.fill(4 * width));
    let excess: Vec<i32> = input
        .fill(4 * rows)
        .as_chunks()
        .0
        .iter()
        .map(|word| i32::from_le_bytes(*word) >> 4)
        .collect();
    let tiles = Tiles { codes: &codes, excess: &excess, scales: &scales, norms: &norms };
    let queries: Vec<[[u8; 4]; 4]> = queries.as_chunks::<4>().0.as_chunks::<4>().0.to_vec();
    let mut out = Outcome::default();
    let query: Vec<u8> = queries.iter().flat_map(|four| four[0]).collect();
    let mut hits = vec![Hit { estimate: 7.0, slot: 7 }];
    isa.keys_i8(&query, &tiles, limits[0], &mut hits);
    out.hits(&hits);
    let mut four = [(); 4].map(|()| Vec::new());
    isa.four_keys_i8(&queries, &tiles, limits, &mut four);
    assert_eq!(four[0].len(), hits.len() - 1, "four at once find what each finds alone");
    four.iter().for_each(|hits| out.hits(hits));
    out.hits(&isa.four_least_i8(&queries, &tiles, limits.map(|(step, _)| step)));
    out
}

/// A scan over blocks whose codes are `of_table.0 / of_table.1` bytes for each unit of the table.
fn scan(
    isa: Isa,
    input: &mut Bytes<'_>,
    (unit, ratio): (usize, usize),
    scan: fn(Isa, &[u8], &Scan<'_>, Ahead<'_>, &mut Vec<Hit>),
) -> Outcome {
    let (units, blocks, behind) = (input.below(70), input.below(9), input.below(3));
    let block_bytes = units * unit / ratio + FACTORS + 64 * behind;
    let [base, bias, slope, limit] = [(); 4].map(|()| float(input));
    let (table, blocks) = (input.fill(units * unit), input.fill(blocks * block_bytes));
    let (next, later) = (input.fill(input.0.len() % 200), input.fill(3));
    let args = Scan { table: &table, block_bytes, base, bias, slope, limit };
    let mut hits = vec![Hit { estimate: 7.0, slot: 7 }];
    scan(isa, &blocks, &args, Ahead { next: &next, later: &later }, &mut hits);
    let mut out = Outcome::default();
    out.hits(&hits);
    out
}

fn encode(isa: Isa, input: &mut Bytes<'_>) -> Outcome {
    let (groups, dsub) = (input.below(4), input.below(5) + 1);
    let codewords = [1, 2, 7, 16, 255, 256][input.below(6)];
    let x = floats(input, groups * 16 * dsub);
    let codebook = floats(input, x.len() * codewords);
    let mut out = Outcome { bytes: vec![9; groups * 16], ..Outcome::default() };
    isa.encode(&x, &codebook, dsub, &mut out.bytes);
    out
}
