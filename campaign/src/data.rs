//! Seeded numbers and vectors. The vectors hold small integers, so that every distance is exact in
//! f32 and in f64 and ties are true ties.

use cellardb::Metric;

/// SplitMix64 (Steele et al. 2014): tiny, seeded, good enough to choose test cases.
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `n`; 0 if `n` is 0.
    pub fn below(&mut self, n: usize) -> usize {
        if n == 0 { 0 } else { (self.next_u64() % n as u64) as usize }
    }

    /// A number in 0.0..1.0.
    pub fn unit(&mut self) -> f32 {
        (self.next_u64() >> 40) as f32 / (1u64 << 24) as f32
    }

    /// A number of the standard normal distribution (Box and Muller 1958).
    pub fn gauss(&mut self) -> f32 {
        let open = ((self.next_u64() >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
        let turn = (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        ((-2.0 * open.ln()).sqrt() * (std::f64::consts::TAU * turn).cos()) as f32
    }
}

/// A vector whose distances to others are exact: integers of -8 to 8, and under cosine 1 or 4
/// (or 16) entries of one magnitude, so that the length is a power of two.
pub fn vector(rng: &mut Rng, dim: usize, metric: Metric) -> Vec<f32> {
    if metric != Metric::Cosine {
        return (0..dim).map(|_| rng.below(17) as f32 - 8.0).collect();
    }
    let entries = match rng.below(4) {
        0 => 1,
        _ if dim >= 16 => 16,
        _ if dim >= 4 => 4,
        _ => 1,
    };
    let magnitude = [0.5, 1.0, 2.0, 4.0][rng.below(4)];
    let mut places: Vec<usize> = (0..dim).collect();
    let mut v = vec![0.0; dim];
    for _ in 0..entries {
        let place = places.swap_remove(rng.below(places.len()));
        v[place] = if rng.below(2) == 0 { magnitude } else { -magnitude };
    }
    v
}

/// `n` such vectors, row after row.
pub fn vectors(rng: &mut Rng, n: usize, dim: usize, metric: Metric) -> Vec<f32> {
    (0..n).flat_map(|_| vector(rng, dim, metric)).collect()
}
