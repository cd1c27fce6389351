//! What happens to an index before it is asked.

use super::idle;
use super::worlds::{self, World};
use crate::data::Rng;
use cellardb::{Index, Maintenance, Metric, Options};
use std::path::Path;

/// An index and what it should hold.
#[derive(Debug)]
pub struct Life {
    pub index: Index,
    pub world: World,
    pub rng: Rng,
    pub dim: usize,
    /// Rows that a case of its size has.
    pub size: usize,
    /// What was inserted, each row at the place of its id.
    pub rows: Vec<f32>,
    pub gone: Vec<bool>,
}

/// Fills an index.
pub type Live = fn(&mut Life) -> Result<(), String>;

fn text(e: cellardb::Error) -> String {
    e.to_string()
}

/// A vector that every metric takes.
pub fn draw(draw: &worlds::Draw, rng: &mut Rng, n: usize) -> Vec<f32> {
    let one = |rng: &mut Rng| {
        let mut vector = draw(rng);
        if vector.iter().all(|x| *x == 0.0) {
            vector[0] = 1.0;
        }
        vector
    };
    (0..n).flat_map(|_| one(rng)).collect()
}

impl Life {
    pub fn begin(
        (path, options): (&Path, Options),
        (world, dim, size): (World, usize, usize),
        rng: Rng,
    ) -> Result<Self, String> {
        let index = options.create(path).map_err(text)?;
        Ok(Self { index, world, rng, dim, size, rows: Vec::new(), gone: Vec::new() })
    }

    pub fn draw(&mut self, n: usize) -> Vec<f32> {
        draw(&self.world.rows, &mut self.rng, n)
    }

    pub fn queries(&mut self, n: usize) -> Vec<f32> {
        draw(&self.world.queries, &mut self.rng, n)
    }

    fn insert(&mut self, rows: &[f32], batch: usize) -> Result<(), String> {
        for batch in rows.chunks(batch * self.dim) {
            let ids = self.index.insert_many(batch).map_err(text)?;
            if ids.start != self.gone.len() {
                return Err(format!("ids {ids:?} after {} rows", self.gone.len()));
            }
            self.rows.extend_from_slice(batch);
            self.gone.resize(ids.end, false);
        }
        Ok(())
    }

    fn remove(&mut self, ids: &[usize]) -> Result<(), String> {
        let removed = self.index.remove_many(ids).map_err(text)?;
        if removed != ids.len() {
            return Err(format!("{removed} of {} rows removed", ids.len()));
        }
        ids.iter().for_each(|id| self.gone[*id] = true);
        Ok(())
    }

    fn live(&self) -> Vec<usize> {
        (0..self.gone.len()).filter(|id| !self.gone[*id]).collect()
    }

    /// Inserts rows of the world and waits for the background.
    fn grow(&mut self, n: usize, batch: usize) -> Result<(), String> {
        let rows = self.draw(n);
        self.insert(&rows, batch)?;
        idle::wait(&self.index)
    }

    /// Removes the oldest row for each that is inserted.
    fn turn_over(&mut self, n: usize, batch: usize) -> Result<(), String> {
        let mut oldest = self.live().into_iter();
        for _ in 0..n.div_ceil(batch) {
            let rows = self.draw(batch);
            self.insert(&rows, batch)?;
            let ids: Vec<usize> = oldest.by_ref().take(batch).collect();
            self.remove(&ids)?;
        }
        idle::wait(&self.index)
    }

    fn move_on(&mut self, world: World) {
        self.world = world;
    }
}

/// All rows at once, trained by the caller.
pub fn plain(life: &mut Life) -> Result<(), String> {
    let rows = life.draw(life.size);
    life.insert(&rows, 4096)?;
    life.index.train().map_err(text)
}

/// A quarter after the training, half of that in no list yet.
pub fn tail(life: &mut Life) -> Result<(), String> {
    let rows = life.draw(life.size);
    let (first, rest) = rows.split_at(life.size / 4 * 3 * life.dim);
    life.insert(first, 4096)?;
    life.index.train().map_err(text)?;
    let (folded, waiting) = rest.split_at(rest.len() / life.dim / 2 * life.dim);
    life.insert(folded, 500)?;
    life.index.flush().map_err(text)?;
    life.insert(waiting, 100)
}

/// One region after another.
pub fn sorted(life: &mut Life) -> Result<(), String> {
    let rows = life.draw(life.size);
    let mut rows: Vec<&[f32]> = rows.chunks_exact(life.dim).collect();
    // Neighbours stand together: by the nearest of some rows.
    let marks: Vec<Vec<f32>> = rows.iter().step_by(rows.len() / 40).map(|r| r.to_vec()).collect();
    let region = |row: &[f32]| {
        let far = |mark: &Vec<f32>| mark.iter().zip(row).map(|(a, b)| (a - b) * (a - b)).sum();
        let distances: Vec<f32> = marks.iter().map(far).collect();
        (0..marks.len()).min_by(|a, b| distances[*a].total_cmp(&distances[*b]))
    };
    rows.sort_by_cached_key(|row| region(row));
    let rows = rows.concat();
    life.insert(&rows, life.size / 120)?;
    idle::wait(&life.index)
}

/// Grows by a little, again and again.
pub fn growth(life: &mut Life) -> Result<(), String> {
    for _ in 0..10 {
        life.grow(life.size / 10, 200)?;
    }
    Ok(())
}

fn elsewhere(life: &mut Life, from: f32) -> World {
    let world = worlds::heaps(&mut life.rng, life.dim, 100, 0.5);
    let moved = |draw: worlds::Draw| {
        std::sync::Arc::new(move |rng: &mut Rng| {
            let mut vector = draw(rng);
            vector.iter_mut().for_each(|x| *x += from);
            vector
        }) as worlds::Draw
    };
    World { rows: moved(world.rows), queries: moved(world.queries) }
}

/// A fifth more rows from elsewhere, and queries from there.
pub fn drift_little(life: &mut Life) -> Result<(), String> {
    life.grow(life.size / 6 * 5, 500)?;
    let world = elsewhere(life, 6.0);
    life.move_on(world);
    life.grow(life.size / 6, 500)
}

/// Twice as many more from elsewhere.
pub fn drift(life: &mut Life) -> Result<(), String> {
    life.grow(life.size / 3, 500)?;
    let world = elsewhere(life, 6.0);
    life.move_on(world);
    life.grow(life.size / 3 * 2, 500)
}

/// The rows are the same number at all times, what they are about changes.
pub fn turnover(life: &mut Life) -> Result<(), String> {
    life.grow(life.size, 500)?;
    let world = elsewhere(life, 0.0);
    life.move_on(world);
    life.turn_over(life.size, 100)
}

/// Thrice, each time about something else.
pub fn turnovers(life: &mut Life) -> Result<(), String> {
    life.grow(life.size, 500)?;
    for _ in 0..3 {
        let world = elsewhere(life, 0.0);
        life.move_on(world);
        life.turn_over(life.size, 200)?;
    }
    Ok(())
}

/// Half of the rows change what they are about.
pub fn half_turnover(life: &mut Life) -> Result<(), String> {
    life.grow(life.size, 500)?;
    let world = elsewhere(life, 0.0);
    life.move_on(world);
    life.turn_over(life.size / 2, 100)
}

/// Nine of ten rows removed at random.
pub fn thinned(life: &mut Life) -> Result<(), String> {
    life.grow(life.size, 1000)?;
    let mut ids = life.live();
    ids.retain(|_| life.rng.below(10) != 0);
    life.remove(&ids)?;
    idle::wait(&life.index)
}

/// All but forty.
pub fn few_left(life: &mut Life) -> Result<(), String> {
    life.grow(life.size, 1000)?;
    let keep = life.size / 40;
    let ids: Vec<usize> = life.live().into_iter().filter(|id| id % keep != 0).collect();
    life.remove(&ids)?;
    idle::wait(&life.index)
}

/// One side of the space.
pub fn one_side(life: &mut Life) -> Result<(), String> {
    life.grow(life.size, 1000)?;
    let side = |id: &usize| life.rows[id * life.dim] + life.rows[id * life.dim + 1] > -0.3;
    let ids: Vec<usize> = life.live().into_iter().filter(side).collect();
    life.remove(&ids)?;
    idle::wait(&life.index)
}

/// Every eighth row is kept for good, the others come and go.
pub fn pinned(life: &mut Life) -> Result<(), String> {
    life.grow(life.size, 500)?;
    for _ in 0..2 {
        let world = elsewhere(life, 0.0);
        life.move_on(world);
        let old = life.live().into_iter().filter(|id| id % 8 != 0).collect::<Vec<_>>();
        for ids in old.chunks(200) {
            let rows = life.draw(ids.len());
            life.insert(&rows, 200)?;
            life.remove(ids)?;
        }
        idle::wait(&life.index)?;
    }
    Ok(())
}

/// Asks a thousand queries first, one by one.
pub fn asks(life: &mut Life) -> Result<(), String> {
    life.grow(life.size, 1000)?;
    for query in life.queries(1000).chunks_exact(life.dim) {
        life.index.search(query, 10).map_err(text)?;
    }
    idle::wait(&life.index)
}

fn one_of(lives: &[Live], live: Live) -> bool {
    lives.iter().any(|by| std::ptr::fn_addr_eq(*by, live))
}

/// Whether an index learns from what it is asked; elsewhere it must not, because of what it is judged by.
pub fn learns(live: Live) -> bool {
    one_of(&[asks], live)
}

/// The options of a case: it trains early where the background does it, as a large index does that grows.
pub fn options(
    live: Live,
    size: usize,
    (shape, dim, metric): (crate::Shape, usize, Metric),
) -> Options {
    let options = Index::options(dim).metric(metric).kind(shape.kind).pq_bits(shape.bits);
    let options = options.learn_queries(learns(live));
    match one_of(&[plain, tail], live) {
        true => options.train_at(size / 2).maintenance(Maintenance::Manual),
        false => options.train_at(size / 6).maintenance(Maintenance::Background),
    }
}
