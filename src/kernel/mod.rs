//! Slices in, numbers out: the loops that searching and training spend their time in.
//!
//! No I/O, no format, no policy. [`scalar`] is the definition; the other instruction sets equal it
//! bit for bit, sums of `f32` included, so an index answers alike on every machine. Intrinsics, and
//! with them `unsafe`, are found in this room only. Every bit pattern of a code is legal: safety
//! rests on the lengths asserted here, never on what the bytes say.
#![expect(unsafe_code, reason = "intrinsics load and store through pointers; see each SAFETY")]

/// Calls the function of this name of an instruction set.
macro_rules! dispatch {
    ($isa:expr, $name:ident($($arg:expr),*)) => {
        match $isa.0 {
            Level::Scalar => scalar::$name($($arg),*),
            // SAFETY: this value proves that the processor has AVX2.
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => unsafe { avx2::$name($($arg),*) },
            // SAFETY: this value proves that the processor has the AVX-512 features named there.
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => unsafe { avx512::$name($($arg),*) },
        }
    };
}

/// Compiles scalar definitions for wider registers: the compiler neither reorders nor fuses sums.
#[cfg(target_arch = "x86_64")]
macro_rules! widened {
    ($features:literal $(fn $name:ident($($arg:ident: $type:ty),*) $(-> $out:ty)?;)*) => {$(
        #[target_feature(enable = $features)]
        pub(super) fn $name($($arg: $type),*) $(-> $out)? {
            super::scalar::$name($($arg),*)
        }
    )*};
}

mod aligned;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod scalar;
#[cfg(test)]
mod tests;

pub(crate) use aligned::Aligned;

use std::sync::OnceLock;

/// Rows of a block.
pub(crate) const LANES: usize = 16;
/// Bytes of a block behind its codes that a scan reads: 16 factors to add, 16 to multiply by.
pub(crate) const FACTORS: usize = 4 * LANES + 4 * LANES;
/// More sub-quantizers than an index can have; keeps every sum below 2^31.
const MAX_TABLES: usize = 1 << 17;

/// A step of a rotation, after its signs.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// The orthonormal Hadamard transform of the first `2^k` numbers, the most that there are.
    First,
    /// That of the last `2^k`.
    Last,
    /// Each pair of numbers half the length apart becomes its sum and its difference, over the root of
    /// two.
    Pairs,
}

/// A rotation. Transforms of the first and the last `2^k` numbers mix all of them only where they
/// overlap by much and not too much; the pairs make up for it at a tenth of the cost.
const ROTATION: [Step; 6] =
    [Step::First, Step::Last, Step::Pairs, Step::First, Step::Pairs, Step::Last];
/// Signs of a rotation for each dimension.
pub(crate) const ROTATION_STEPS: usize = ROTATION.len();

/// The names of the instruction sets, the least first.
const NAMES: [&str; 3] = ["scalar", "avx2", "avx512"];

/// An instruction set that this machine has. Only [`Isa::detect`] and [`Isa::available`] make one,
/// so holding it is the proof that its instructions may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Isa(Level);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    Scalar,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

/// What a scan computes, kept below `limit`: `(base + add) + scale * (bias + slope * sum of table
/// entries)`, `add` and `scale` being the factors of the row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scan<'a> {
    /// `u8` entries, 16 or 256 for each sub-quantizer, padded to a whole number of code groups.
    pub(crate) table: &'a [u8],
    /// Bytes from one block to the next: codes, factors, and what the scan does not read.
    pub(crate) block_bytes: usize,
    pub(crate) base: f32,
    pub(crate) bias: f32,
    /// One table step.
    pub(crate) slope: f32,
    /// Estimates from here on are dropped.
    pub(crate) limit: f32,
}

/// What will be scanned soon, to be brought near meanwhile.
///
/// A core waits for about a dozen lines of memory at a time: one run ahead, asked for evenly while
/// this one is computed, keeps it at that, and one line of a later run has its page looked up.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ahead<'a> {
    pub(crate) next: &'a [u8],
    pub(crate) later: &'a [u8],
}

/// Levels to round to: the same in each dimension, in units of its width.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grid<'a> {
    /// Ascending, at most 256.
    pub(crate) levels: &'a [f32],
    pub(crate) widths: &'a [f32],
}

/// Rows of small integers, 16 side by side.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tiles<'a> {
    /// `i8` x (rows / 16 x width / 4 x 16 x 4): four numbers of each of 16 rows, then the next four.
    pub(crate) codes: &'a [i8],
    /// What the dot of each row is too large by.
    pub(crate) excess: &'a [i32],
    /// The scale of each row.
    pub(crate) scales: &'a [f32],
    /// What is added for each row; +infinity for a row that is none.
    pub(crate) norms: &'a [f32],
}

/// A row whose estimate is below the limit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Hit {
    /// The estimated distance.
    pub(crate) estimate: f32,
    /// Block times 16 plus lane, from the start of the scanned blocks.
    pub(crate) slot: u32,
}

impl Isa {
    /// The best instruction set of this machine, or the best up to the one that `CELLARDB_ISA` names.
    /// The environment is read once.
    pub(crate) fn detect() -> Isa {
        static CHOSEN: OnceLock<Isa> = OnceLock::new();
        *CHOSEN.get_or_init(|| Isa::up_to(std::env::var("CELLARDB_ISA").ok().as_deref()))
    }

    /// The best instruction set up to one of this name; a name that is none limits nothing.
    fn up_to(name: Option<&str>) -> Isa {
        let rank = |name| NAMES.iter().position(|other| Some(*other) == name);
        let most = rank(name).unwrap_or(NAMES.len());
        let allowed = |isa: &Isa| rank(Some(isa.name())).is_some_and(|rank| rank <= most);
        Isa::available().into_iter().rfind(allowed).unwrap_or(Isa(Level::Scalar))
    }

    /// All instruction sets of this machine, the scalar one first.
    pub(crate) fn available() -> Vec<Isa> {
        let mut all = vec![Isa(Level::Scalar)];
        #[cfg(target_arch = "x86_64")]
        {
            if avx2::detected() {
                all.push(Isa(Level::Avx2));
            }
            if avx512::detected() {
                all.push(Isa(Level::Avx512));
            }
        }
        all
    }

    /// Its name, in lower case.
    pub(crate) fn name(self) -> &'static str {
        match self.0 {
            Level::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => "avx512",
        }
    }

    /// The squared Euclidean distance.
    pub(crate) fn l2(self, a: &[f32], b: &[f32]) -> f32 {
        assert_eq!(a.len(), b.len());
        dispatch!(self, l2(a, b))
    }

    /// The inner product.
    pub(crate) fn dot(self, a: &[f32], b: &[f32]) -> f32 {
        assert_eq!(a.len(), b.len());
        dispatch!(self, dot(a, b))
    }

    /// The inner product of a query with a row of small integers.
    pub(crate) fn dot_i8(self, query: &[f32], row: &[i8]) -> f32 {
        assert_eq!(query.len(), row.len());
        dispatch!(self, dot_i8(query, row))
    }

    /// Rounds numbers to the levels of a grid: which level each is nearest to, the number of midpoints
    /// below it, and what that stands for.
    pub(crate) fn round(
        self,
        grid: &Grid<'_>,
        values: &[f32],
        nearest: &mut [u8],
        rounded: &mut [f32],
    ) {
        assert!((1..=256).contains(&grid.levels.len()) && grid.widths.len() == values.len());
        assert!(nearest.len() == values.len() && rounded.len() == values.len());
        dispatch!(self, round(grid, values, nearest, rounded))
    }

    /// `s` times the inner products of the parts of a query with the codewords for each: `columns` is
    /// parts x dsub x codewords, `out` parts x codewords, and the query has `dsub` numbers a part, of
    /// the last perhaps fewer.
    pub(crate) fn codeword_products(
        self,
        columns: &[f32],
        (query, s): (&[f32], f32),
        (dsub, codewords): (usize, usize),
        out: &mut [f32],
    ) {
        assert!(dsub > 0 && (codewords == 16 || codewords == 256));
        assert!(out.len() == query.len().div_ceil(dsub) * codewords);
        assert!(columns.len() == out.len() * dsub);
        let shape = (dsub, codewords);
        dispatch!(self, codeword_products(columns, (query, s), shape, out))
    }

    /// Rotates a vector in place: for each [`Step`] of the rotation flips signs, of which there are
    /// steps x the length of the vector, and does what the step says.
    pub(crate) fn rotate(self, signs: &[f32], x: &mut [f32]) {
        assert!(!x.is_empty() && signs.len() == ROTATION.len() * x.len());
        dispatch!(self, rotate(signs, x))
    }

    /// Rounds tables of 16 or 256 entries to bytes: of each its least entry is 0, one step holds for
    /// all, and 255 steps are the widest table. Writes the least entries, returns the step.
    pub(crate) fn round_tables(
        self,
        values: &[f32],
        codewords: usize,
        minima: &mut [f32],
        bytes: &mut [u8],
    ) -> f32 {
        assert!(codewords == 16 || codewords == 256);
        assert!(values.len() == minima.len() * codewords && bytes.len() == values.len());
        dispatch!(self, round_tables(values, codewords, minima, bytes))
    }

    /// Ranks rows of small integers by `norm + (step * scale) * (dot - excess)`, the integer dot being
    /// exact, and appends those below the limit to `hits`, in order.
    ///
    /// The width is the length of the query, a multiple of 4 and at most 65,536.
    pub(crate) fn keys_i8(
        self,
        query: &[u8],
        tiles: &Tiles<'_>,
        (step, limit): (f32, f32),
        hits: &mut Vec<Hit>,
    ) {
        check_tiles(query.len(), tiles);
        dispatch!(self, keys_i8(query, tiles, (step, limit), hits))
    }

    /// The same for four queries at once, which share what is read of the rows: `queries` are four
    /// numbers of each, then the next four.
    pub(crate) fn four_keys_i8(
        self,
        queries: &[[[u8; 4]; 4]],
        tiles: &Tiles<'_>,
        limits: [(f32, f32); 4],
        hits: &mut [Vec<Hit>; 4],
    ) {
        check_tiles(4 * queries.len(), tiles);
        #[cfg(target_arch = "x86_64")]
        if self.0 == Level::Avx512 {
            // SAFETY: this value proves that the processor has the AVX-512 features named there.
            return unsafe { avx512::four_keys_i8(queries, tiles, limits, hits) };
        }
        for (at, (limits, hits)) in limits.into_iter().zip(hits).enumerate() {
            let query: Vec<u8> = queries.iter().flat_map(|four| four[at]).collect();
            self.keys_i8(&query, tiles, limits, hits);
        }
    }

    /// The row of the least of these keys for each of four queries: of equal keys the first, and the
    /// first row of all where no key is below infinity.
    pub(crate) fn four_least_i8(
        self,
        queries: &[[[u8; 4]; 4]],
        tiles: &Tiles<'_>,
        steps: [f32; 4],
    ) -> [Hit; 4] {
        check_tiles(4 * queries.len(), tiles);
        #[cfg(target_arch = "x86_64")]
        if self.0 == Level::Avx512 {
            // SAFETY: this value proves that the processor has the AVX-512 features named there.
            return unsafe { avx512::four_least_i8(queries, tiles, steps) };
        }
        let mut hits = <[Vec<Hit>; 4]>::default();
        self.four_keys_i8(queries, tiles, steps.map(|step| (step, f32::INFINITY)), &mut hits);
        let none = Hit { estimate: f32::INFINITY, slot: 0 };
        let less = |least: Hit, hit: Hit| if hit.estimate < least.estimate { hit } else { least };
        hits.map(|hits| hits.into_iter().fold(none, less))
    }

    /// Scans blocks of 4-bit codes and appends the rows below the limit to `hits`, in order.
    ///
    /// The table holds, for each group of 8 sub-quantizers, 8 tables of 16 entries.
    pub(crate) fn scan4(
        self,
        blocks: &[u8],
        scan: &Scan<'_>,
        ahead: Ahead<'_>,
        hits: &mut Vec<Hit>,
    ) {
        assert!(scan.table.len().is_multiple_of(128) && scan.table.len() / 16 <= MAX_TABLES);
        check_blocks(blocks, scan, scan.table.len() / 2);
        dispatch!(self, scan4(blocks, scan, ahead, hits))
    }

    /// Scans blocks of 8-bit codes and appends the rows below the limit to `hits`, in order.
    ///
    /// The table holds 256 entries for each column, the columns padded to a multiple of 4.
    pub(crate) fn scan8(
        self,
        blocks: &[u8],
        scan: &Scan<'_>,
        ahead: Ahead<'_>,
        hits: &mut Vec<Hit>,
    ) {
        assert!(scan.table.len().is_multiple_of(1024) && scan.table.len() / 256 <= MAX_TABLES);
        check_blocks(blocks, scan, scan.table.len() / 16);
        self.prefetch(ahead.next);
        dispatch!(self, scan8(blocks, scan, hits))
    }

    /// The nearest codeword of each sub-quantizer; of equally near ones the first.
    ///
    /// Sub-quantizers come in groups of 16 lanes: `x` is groups x dsub x 16, `codebook` is groups x
    /// codewords x dsub x 16, `codes` is groups x 16, with at most 256 codewords.
    pub(crate) fn encode(self, x: &[f32], codebook: &[f32], dsub: usize, codes: &mut [u8]) {
        assert!(dsub > 0 && codes.len().is_multiple_of(LANES) && x.len() == codes.len() * dsub);
        let codewords = if x.is_empty() { 0 } else { codebook.len() / x.len() };
        assert!(codewords <= 256 && codebook.len() == codewords * x.len());
        dispatch!(self, encode(x, codebook, dsub, codes))
    }

    /// Asks for bytes to be brought near: the next run of blocks while this one is scanned.
    pub(crate) fn prefetch<T>(self, bytes: &[T]) {
        #[cfg(target_arch = "x86_64")]
        for line in bytes.iter().step_by(const { 64_usize.div_ceil(size_of::<T>()) }) {
            avx2::prefetch(line);
        }
    }
}

fn check_blocks(blocks: &[u8], scan: &Scan<'_>, code_bytes: usize) {
    assert!(scan.block_bytes >= code_bytes + FACTORS);
    assert!(blocks.len().is_multiple_of(scan.block_bytes));
    assert!(blocks.len() / scan.block_bytes <= u32::MAX as usize / LANES);
}

fn check_tiles(width: usize, tiles: &Tiles<'_>) {
    let rows = tiles.norms.len();
    assert!(width > 0 && width.is_multiple_of(4) && width <= 1 << 16);
    assert!(rows.is_multiple_of(LANES) && u32::try_from(rows).is_ok());
    assert!(tiles.codes.len() == rows * width);
    assert!(tiles.scales.len() == rows && tiles.excess.len() == rows);
}
