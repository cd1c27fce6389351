//! Where rows and queries come from.

use crate::data::Rng;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Draws one vector.
pub type Draw = Arc<dyn Fn(&mut Rng) -> Vec<f32> + Send + Sync>;

/// Rows, and queries that are none of them.
#[derive(Clone)]
pub struct World {
    pub rows: Draw,
    pub queries: Draw,
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("World")
    }
}

/// Makes a world of so many dimensions.
pub type Make = fn(&mut Rng, usize) -> World;

fn alike(draw: impl Fn(&mut Rng) -> Vec<f32> + Send + Sync + 'static) -> World {
    let rows: Draw = Arc::new(draw);
    World { queries: Arc::clone(&rows), rows }
}

impl World {
    /// Changes every vector, rows and queries alike.
    fn each(self, change: impl Fn(&mut Rng, &mut Vec<f32>) + Send + Sync + 'static) -> Self {
        let change = Arc::new(change);
        let with = |draw: Draw, change: Arc<dyn Fn(&mut Rng, &mut Vec<f32>) + Send + Sync>| {
            Arc::new(move |rng: &mut Rng| {
                let mut vector = draw(rng);
                change(rng, &mut vector);
                vector
            }) as Draw
        };
        World { rows: with(self.rows, change.clone()), queries: with(self.queries, change) }
    }

    fn queries(self, draw: impl Fn(&mut Rng) -> Vec<f32> + Send + Sync + 'static) -> Self {
        World { queries: Arc::new(draw), ..self }
    }
}

fn normal(rng: &mut Rng, dim: usize) -> Vec<f32> {
    (0..dim).map(|_| rng.gauss()).collect()
}

fn centers(rng: &mut Rng, count: usize, dim: usize) -> Vec<Vec<f32>> {
    (0..count).map(|_| normal(rng, dim)).collect()
}

pub fn scale(vector: &mut [f32], by: f32) {
    vector.iter_mut().for_each(|x| *x *= by);
}

pub fn unit(vector: &mut [f32]) {
    let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    scale(vector, 1.0 / length.max(1e-20));
}

fn near(rng: &mut Rng, center: &[f32], spread: f32) -> Vec<f32> {
    center.iter().map(|x| x + spread * rng.gauss()).collect()
}

fn multiply(matrix: &[Vec<f32>], factors: &[f32]) -> Vec<f32> {
    let mut out = vec![0.0; matrix[0].len()];
    for (row, factor) in matrix.iter().zip(factors) {
        out.iter_mut().zip(row).for_each(|(o, x)| *o += factor * x);
    }
    out
}

pub fn gauss(_: &mut Rng, dim: usize) -> World {
    alike(move |rng| normal(rng, dim))
}

pub fn uniform(_: &mut Rng, dim: usize) -> World {
    alike(move |rng| (0..dim).map(|_| rng.unit()).collect())
}

/// Heaps of one width.
pub fn heaps(rng: &mut Rng, dim: usize, count: usize, spread: f32) -> World {
    let centers = centers(rng, count, dim);
    alike(move |rng| {
        let at = rng.below(centers.len());
        near(rng, &centers[at], spread)
    })
}

pub fn clusters(rng: &mut Rng, dim: usize) -> World {
    heaps(rng, dim, 300, 0.6).each(|_, v| unit(v))
}

/// Heaps of many widths.
pub fn widths(rng: &mut Rng, dim: usize) -> World {
    let centers = centers(rng, 1000, dim);
    let spreads: Vec<f32> = (0..1000).map(|_| 0.2 + 0.6 * rng.unit()).collect();
    alike(move |rng| {
        let at = rng.below(1000);
        near(rng, &centers[at], spreads[at])
    })
}

pub fn zipf(rng: &mut Rng, dim: usize) -> World {
    let centers = centers(rng, 1000, dim);
    let mut sums = Vec::new();
    let mut sum = 0.0;
    for rank in 1..=1000 {
        sum += 1.0 / rank as f32;
        sums.push(sum);
    }
    alike(move |rng| {
        let at = rng.unit() * sums[999];
        let at = sums.partition_point(|s| *s <= at).min(999);
        near(rng, &centers[at], 0.4)
    })
}

/// Heaps of heaps of heaps.
pub fn hierarchy(rng: &mut Rng, dim: usize) -> World {
    let mut level = centers(rng, 8, dim);
    for spread in [0.3, 0.1] {
        let parents = level;
        level = (0..parents.len() * 8).map(|at| near(rng, &parents[at / 8], spread)).collect();
    }
    alike(move |rng| {
        let at = rng.below(level.len());
        near(rng, &level[at], 0.03)
    })
}

/// Few factors, whose heaps are mixed into many dimensions, in a cone: as embeddings of texts are.
pub fn text(rng: &mut Rng, dim: usize) -> World {
    let mix = centers(rng, 24, dim);
    let topics = centers(rng, 400, 24);
    let mut cone = normal(rng, dim);
    unit(&mut cone);
    alike(move |rng| {
        let at = rng.below(topics.len());
        let mut vector = multiply(&mix, &near(rng, &topics[at], 0.5));
        unit(&mut vector);
        vector.iter_mut().zip(&cone).for_each(|(v, c)| *v += 0.6 * c + 0.02 * rng.gauss());
        unit(&mut vector);
        vector
    })
}

/// Variances that fall by a power, along no axis.
pub fn spectrum(rng: &mut Rng, dim: usize) -> World {
    let mix = centers(rng, dim, dim);
    alike(move |rng| {
        let factors: Vec<f32> = (0..dim).map(|at| rng.gauss() / (1.0 + at as f32)).collect();
        multiply(&mix, &factors)
    })
}

/// Points of a curve, with little noise.
pub fn curve(rng: &mut Rng, dim: usize) -> World {
    let turns: Vec<(f32, f32)> =
        (0..dim).map(|_| (0.5 + 6.0 * rng.unit(), 6.3 * rng.unit())).collect();
    alike(move |rng| {
        let at = 3.0 * rng.unit();
        turns.iter().map(|(turn, from)| (turn * at + from).sin() + 0.001 * rng.gauss()).collect()
    })
}

/// Pictures of three strokes: whole numbers of 0 to 255, most of them 0.
pub fn images(_: &mut Rng, dim: usize) -> World {
    let side = (dim as f32).sqrt() as usize;
    alike(move |rng| {
        let mut picture = vec![0.0_f32; dim];
        for _ in 0..3 {
            let end = |rng: &mut Rng| (rng.unit() * side as f32, rng.unit() * side as f32);
            let (from, to) = (end(rng), end(rng));
            for pixel in 0..side * side {
                let (x, y) = ((pixel % side) as f32, (pixel / side) as f32);
                let (dx, dy) = (to.0 - from.0, to.1 - from.1);
                let along = ((x - from.0) * dx + (y - from.1) * dy) / (dx * dx + dy * dy).max(0.1);
                let along = along.clamp(0.0, 1.0);
                let (ax, ay) = (x - from.0 - along * dx, y - from.1 - along * dy);
                let ink = 255.0 * (1.5 - (ax * ax + ay * ay).sqrt()).clamp(0.0, 1.0);
                picture[pixel] = picture[pixel].max(ink.round());
            }
        }
        picture
    })
}

/// Ten entries that are not 0.
pub fn sparse(_: &mut Rng, dim: usize) -> World {
    alike(move |rng| {
        let mut vector = vec![0.0; dim];
        for _ in 0..10 {
            vector[rng.below(dim)] = rng.gauss();
        }
        unit(&mut vector);
        vector
    })
}

pub fn one_hot(_: &mut Rng, dim: usize) -> World {
    alike(move |rng| {
        let mut vector = vec![0.0; dim];
        vector[rng.below(dim)] = 1.0;
        vector
    })
}

/// Eight attributes, each one of several values: as a table is encoded.
pub fn categories(_: &mut Rng, dim: usize) -> World {
    let values = dim / 8;
    alike(move |rng| {
        let mut vector = vec![0.0; dim];
        for attribute in 0..8 {
            let at = rng.below(values).min(rng.below(values));
            vector[attribute * values + at] = 1.0;
        }
        vector
    })
}

pub fn binary(rng: &mut Rng, dim: usize) -> World {
    let kinds: Vec<Vec<bool>> =
        (0..200).map(|_| (0..dim).map(|_| rng.below(2) == 1).collect()).collect();
    alike(move |rng| {
        let kind = &kinds[rng.below(200)];
        kind.iter().map(|bit| f32::from(u8::from(*bit != (rng.below(8) == 0)))).collect()
    })
}

/// Histograms of whole numbers of 0 to 255, as SIFT makes them.
pub fn bytes(rng: &mut Rng, dim: usize) -> World {
    let kinds: Vec<Vec<f32>> = (0..400)
        .map(|_| (0..dim).map(|_| 60.0 * (-rng.unit().max(1e-6).ln()) - 20.0).collect())
        .collect();
    alike(move |rng| {
        let kind = &kinds[rng.below(400)];
        kind.iter().map(|x| (x + 25.0 * rng.gauss()).round().clamp(0.0, 255.0)).collect()
    })
}

/// Student's t with so many degrees of freedom: numbers apart.
fn student(rng: &mut Rng, freedom: usize) -> f32 {
    let squares: f32 = (0..freedom).map(|_| rng.gauss().powi(2)).sum();
    rng.gauss() / (squares / freedom as f32).max(1e-12).sqrt()
}

/// Every number has heavy tails.
pub fn tails(_: &mut Rng, dim: usize) -> World {
    alike(move |rng| (0..dim).map(|_| student(rng, 3)).collect())
}

/// The length of a row has.
pub fn far_out(rng: &mut Rng, dim: usize) -> World {
    heaps(rng, dim, 100, 0.5).each(|rng, v| scale(v, student(rng, 2).abs() + 0.1))
}

pub fn constant(rng: &mut Rng, dim: usize) -> World {
    heaps(rng, dim, 200, 0.6).each(|_, v| {
        v.iter_mut().step_by(2).for_each(|x| *x = 3.0);
    })
}

/// All far from the origin, some dimensions further.
pub fn offset(rng: &mut Rng, dim: usize) -> World {
    heaps(rng, dim, 200, 0.6).each(|_, v| {
        v.iter_mut().for_each(|x| *x += 100.0);
        v.iter_mut().step_by(8).for_each(|x| *x += 10_000.0);
    })
}

/// One dimension counts in thousands, another in thousandths.
pub fn uneven(rng: &mut Rng, dim: usize) -> World {
    heaps(rng, dim, 200, 0.6).each(|_, v| {
        (v[0], v[1]) = (v[0] * 1000.0, v[1] * 0.001);
    })
}

/// Each row some twenty times; queries beside them.
pub fn copies(rng: &mut Rng, dim: usize) -> World {
    let originals = centers(rng, 600, dim);
    let others = originals.clone();
    let world = alike(move |rng| originals[rng.below(600)].clone());
    world.queries(move |rng| {
        let at = rng.below(600);
        near(rng, &others[at], 0.3)
    })
}

/// Thirty vectors, each hundreds of times with a little noise.
pub fn near_copies(rng: &mut Rng, dim: usize) -> World {
    heaps(rng, dim, 30, 1e-4)
}

/// A heap, and one row in a hundred and fifty far out; of the queries one in four.
pub fn heap(_: &mut Rng, dim: usize) -> World {
    let draw = move |out: usize| {
        move |rng: &mut Rng| {
            let wide = if rng.below(out) == 0 { 100.0 } else { 0.01 };
            near(rng, &vec![0.0; dim], wide)
        }
    };
    alike(draw(150)).queries(draw(4))
}

fn lengths(rng: &mut Rng, dim: usize, sigma: f32) -> World {
    clusters(rng, dim).each(move |rng, v| scale(v, (sigma * rng.gauss()).exp()))
}

pub fn lengths_little(rng: &mut Rng, dim: usize) -> World {
    lengths(rng, dim, 0.3)
}

/// Queries from all directions, rows of very different lengths: products that recommend.
pub fn mips(rng: &mut Rng, dim: usize) -> World {
    lengths(rng, dim, 0.5).queries(move |rng| normal(rng, dim))
}

pub fn mips_wide(rng: &mut Rng, dim: usize) -> World {
    lengths(rng, dim, 1.0).queries(move |rng| normal(rng, dim))
}

/// Rows of like lengths, queries of one to a millionth of it to a million times.
pub fn query_lengths(rng: &mut Rng, dim: usize) -> World {
    let world = lengths_little(rng, dim);
    let draw = Arc::clone(&world.queries);
    world.queries(move |rng| {
        let mut query = draw(rng);
        scale(&mut query, 10_f32.powf(12.0 * rng.unit() - 6.0));
        query
    })
}

pub fn tiny(rng: &mut Rng, dim: usize) -> World {
    lengths_little(rng, dim).each(|_, v| scale(v, 1e-6))
}

pub fn huge(rng: &mut Rng, dim: usize) -> World {
    lengths_little(rng, dim).each(|_, v| scale(v, 1e6))
}

/// Pictures described by texts: rows in one cone, queries in another (Yandex Text-to-Image).
pub fn other_cone(rng: &mut Rng, dim: usize) -> World {
    let mix = Arc::new(centers(rng, 24, dim));
    let topics = Arc::new(centers(rng, 300, 24));
    let mut cones = centers(rng, 2, dim);
    cones.iter_mut().for_each(|cone| unit(cone));
    let part = |cone: Vec<f32>, (spread, share, noise): (f32, f32, f32)| {
        let (mix, topics) = (Arc::clone(&mix), Arc::clone(&topics));
        move |rng: &mut Rng| {
            let at = rng.below(300);
            let mut vector = multiply(&mix, &near(rng, &topics[at], spread));
            unit(&mut vector);
            let with = vector.iter().zip(&cone);
            let mut vector: Vec<f32> =
                with.map(|(v, c)| share * v + 1.2 * c + noise * rng.gauss()).collect();
            unit(&mut vector);
            vector
        }
    };
    let rows = part(cones.remove(0), (0.4, 1.0, 0.02));
    alike(rows).queries(part(cones.remove(0), (0.9, 0.5, 0.06)))
}

/// Queries between the heaps of the rows.
pub fn between(rng: &mut Rng, dim: usize) -> World {
    let world = heaps(rng, dim, 300, 0.3);
    let draw = Arc::clone(&world.rows);
    world.queries(move |rng| {
        let (a, b) = (draw(rng), draw(rng));
        a.iter().zip(&b).map(|(x, y)| (x + y) / 2.0).collect()
    })
}

/// Queries about what few rows are about.
pub fn rare(rng: &mut Rng, dim: usize) -> World {
    let centers = Arc::new(centers(rng, 300, dim));
    let draw = |from: usize, often: usize| {
        let centers = Arc::clone(&centers);
        move |rng: &mut Rng| {
            let few = rng.below(often) == 0;
            let at = if few { from + rng.below(300 - from) } else { rng.below(from) };
            near(rng, &centers[at], if few { 1.0 } else { 0.3 })
        }
    };
    alike(draw(270, 20)).queries(draw(270, 1))
}

/// The words of `examples/data`; every sixth of them asks.
pub fn words(_: &mut Rng, dim: usize) -> World {
    static BYTES: &[u8] = include_bytes!("../../../examples/data/words.i8");
    let (mut rows, mut queries) = (Vec::new(), Vec::new());
    for (at, record) in BYTES.chunks_exact(4 + dim).enumerate() {
        let scale = f32::from_le_bytes(record[..4].try_into().unwrap());
        let codes = record[4..].iter().map(|code| scale * f32::from(code.cast_signed()));
        if at % 6 == 0 { queries.push(codes.collect()) } else { rows.push(codes.collect()) }
    }
    given(rows, queries)
}

/// Vectors that there are already, in their order; from the first again after the last.
pub fn given(rows: Vec<Vec<f32>>, queries: Vec<Vec<f32>>) -> World {
    let next = |vectors: Vec<Vec<f32>>| {
        let at = AtomicUsize::new(0);
        Arc::new(move |_: &mut Rng| vectors[at.fetch_add(1, Relaxed) % vectors.len()].clone())
            as Draw
    };
    World { rows: next(rows), queries: next(queries) }
}
