//! The loops that a search spends its time in, beside what this machine reads at best.
//!
//! `cargo bench --bench kernels`: for each instruction set and shape of a code, rows per second and
//! the bytes that a scan reads of them, over runs of four blocks in some order that it does not know
//! in advance: once over few that stay in the cache, once over many that do not. `read` adds up the
//! bytes of the same runs and is the bandwidth that there is. Medians of seven.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    dead_code,
    unused_imports,
    unreachable_pub,
    reason = "a benchmark, of a room of its own"
)]

#[path = "../src/kernel/mod.rs"]
mod kernel;

use kernel::{Ahead, Aligned, FACTORS, Isa, LANES, Scan, Tiles};
use std::hint::black_box;
use std::time::Instant;

/// Blocks of a run: a cell of 64 rows.
const RUN: usize = 4;
/// Bytes of ids behind each block, which a scan does not read.
const IDS: usize = 128;

/// Calls `f` until a tenth of a second is over, seven times; seconds of a call, the median.
fn seconds(mut f: impl FnMut()) -> f64 {
    let mut times: Vec<f64> = (0..7)
        .map(|_| {
            let (start, mut calls) = (Instant::now(), 0);
            while start.elapsed().as_secs_f64() < 0.1 {
                f();
                calls += 1;
            }
            start.elapsed().as_secs_f64() / f64::from(calls)
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[3]
}

/// Numbers from 0 to `n` in an order that no prefetcher knows.
fn shuffled(n: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    for at in (1..n).rev() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        order.swap(at, (state % (at as u64 + 1)) as usize);
    }
    order
}

/// Blocks of random codes, none of whose rows comes below a limit.
struct Blocks {
    bytes: Aligned<u8>,
    block: usize,
    code: usize,
    order: Vec<usize>,
}

impl Blocks {
    fn new(code: usize, bytes: usize) -> Blocks {
        let block = code + FACTORS + IDS;
        let runs = (bytes / (RUN * block)).max(1);
        let mut bytes = Aligned::new(runs * RUN * block);
        let mut state = 7_u32;
        for byte in bytes.iter_mut() {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            *byte = (state >> 24) as u8;
        }
        for block in bytes.chunks_exact_mut(block) {
            block[code..code + FACTORS].as_chunks_mut::<4>().0.fill(1.0_f32.to_le_bytes());
        }
        Blocks { bytes, block, code, order: shuffled(runs) }
    }

    fn run(&self, at: usize) -> &[u8] {
        let len = RUN * self.block;
        self.order.get(at).map_or(&[], |run| &self.bytes[run * len..(run + 1) * len])
    }

    fn rows(&self) -> f64 {
        (self.order.len() * RUN * LANES) as f64
    }

    /// Bytes that a scan of them reads.
    fn scanned(&self) -> f64 {
        (self.order.len() * RUN * (self.code + FACTORS)) as f64
    }

    fn scan(&self, isa: Isa, eight: bool) -> f64 {
        let mut table = Aligned::new(if eight { self.code * 16 } else { self.code * 2 });
        table.fill(1);
        let scan = Scan {
            table: &table,
            block_bytes: self.block,
            base: 0.0,
            bias: 0.0,
            slope: 1.0,
            limit: 0.0,
        };
        let mut hits = Vec::new();
        seconds(|| {
            for at in 0..self.order.len() {
                let ahead = Ahead { next: self.run(at + 1), later: self.run(at + 4) };
                if eight {
                    isa.scan8(self.run(at), &scan, ahead, &mut hits);
                } else {
                    isa.scan4(self.run(at), &scan, ahead, &mut hits);
                }
            }
            assert!(black_box(&hits).is_empty());
        })
    }

    fn read(&self) -> f64 {
        seconds(|| {
            let mut sums = [0_u64; 8];
            for at in 0..self.order.len() {
                for block in self.run(at).chunks_exact(self.block) {
                    let (lines, _) = block[..self.code + FACTORS].as_chunks::<64>();
                    for line in lines {
                        for (sum, word) in sums.iter_mut().zip(line.as_chunks::<8>().0) {
                            *sum = sum.wrapping_add(u64::from_le_bytes(*word));
                        }
                    }
                }
            }
            black_box(sums);
        })
    }
}

/// Integer products of a query with the centroids of a list, as training and routing take them.
fn products(isa: Isa, dim: usize, rows: usize) -> (f64, f64) {
    let (mut codes, query) = (Aligned::new(rows * dim), vec![3; dim]);
    codes.fill(1);
    let (excess, scales, norms) = (vec![0; rows], vec![1.0; rows], vec![0.0; rows]);
    let tiles = Tiles { codes: &codes, excess: &excess, scales: &scales, norms: &norms };
    let mut hits = Vec::new();
    let took = seconds(|| isa.keys_i8(black_box(&query), &tiles, (1.0, 0.0), &mut hits));
    assert!(black_box(&hits).is_empty());
    let (four, mut of_each) = (vec![[[3; 4]; 4]; dim / 4], [(); 4].map(|()| Vec::new()));
    let took_four = seconds(|| isa.four_keys_i8(&four, &tiles, [(1.0, 0.0); 4], &mut of_each));
    let rate = |queries: usize, took: f64| (queries * rows * dim) as f64 / took / 1e9;
    (rate(1, took), rate(4, took_four))
}

fn main() {
    let detected = Isa::detect();
    println!("instruction set {}; Mrows/s and GB/s", detected.name());
    let kinds =
        [("RaBitQ 384", 96 * 8, false), ("Pq4 50", 4 * 64, false), ("Pq8 96", 24 * 64, true)];
    for (name, code, eight) in kinds {
        for (place, bytes) in [("256 KiB", 256 << 10), ("128 MiB", 128 << 20)] {
            let blocks = Blocks::new(code, bytes);
            let read = blocks.read();
            let rate =
                |seconds: f64| (blocks.rows() / seconds / 1e6, blocks.scanned() / seconds / 1e9);
            let (rows, gb) = rate(blocks.scan(detected, eight));
            let (_, best) = rate(read);
            println!(
                "{name:12} {place:8} scan {rows:7.0} {gb:6.1}   read {best:6.1}   {:3.0} %",
                100.0 * gb / best
            );
        }
    }
    for (dim, rows) in [(384, 64), (384, 80), (384, 512), (52, 64)] {
        let (one, four) = products(detected, dim, rows);
        println!("{rows} centroids of {dim} dimensions: {one:.1} G products/s, {four:.1} by four");
    }
}
