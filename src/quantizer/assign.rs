//! Which cell each row belongs to, in bulk, and the centroids that follow from it.

use crate::kernel::{Hit, Isa};
use crate::quantizer::FEW;
use crate::quantizer::rounded::Rounded;
use crate::quantizer::router::{ListRouting, Router, keep_least, pack, unpack};
use crate::quantizer::rows::{Four, RowTiles};
use crate::quantizer::tour::Tour;
use rayon::prelude::*;

/// Rows that are assigned together: their candidates are found list by list, so that the cells of a
/// list stay in cache.
pub(crate) const BATCH: usize = 1024;
/// Candidates of a row that are compared exactly, when found list by list: for one cell, for two.
const CANDIDATES: usize = 4;
const SPILL_CANDIDATES: usize = 10;
/// Lists that a row is compared with at first; then it is with four times as many in all.
const NEAREST: usize = 4;
/// Lists are left out from this many times the squared distance of the last candidate so far: at 1.6
/// codes and cells are as good as with all lists, at 1.4 and 1.2 they are not.
const FARTHEST: f32 = 1.6;
/// Candidates of a row that are compared exactly, when found by the sketch.
const SKETCHED: usize = 48;
/// Cells whose rows are looked up together.
const SUMMED: usize = 64;

impl Router {
    /// The nearest cell of each vector, n x dim, by Euclidean distance: nearly always, as only the
    /// cells of the nearest lists are looked at.
    pub(crate) fn assign(&self, isa: Isa, vectors: &[f32]) -> Vec<u32> {
        let parents = self.parents_to_assign();
        self.assign_to::<CANDIDATES, _>(isa, vectors, parents, |row, cells| {
            self.nearest_of(isa, row, cells)
        })
    }

    /// Two cells for each vector: the nearest, and the one that serves best where that fails, by the
    /// rule of SOAR (Sun et al., NeurIPS 2023): of small residual, and orthogonal to that of the
    /// first. None if there is but one cell.
    pub(crate) fn assign_twice(&self, isa: Isa, vectors: &[f32]) -> Vec<(u32, Option<u32>)> {
        let parents = self.parents_to_assign();
        self.assign_to::<SPILL_CANDIDATES, _>(isa, vectors, parents, |row, cells| {
            let first = self.nearest_of(isa, row, cells);
            (first, self.second_of(isa, row, first, cells))
        })
    }

    /// Finds `N` candidates or more for each vector, and chooses among them.
    fn assign_to<const N: usize, T: Send>(
        &self,
        isa: Isa,
        vectors: &[f32],
        parents: usize,
        choose: impl Fn(&[f32], &[u32]) -> T + Sync,
    ) -> Vec<T> {
        if vectors.len() < BATCH * self.dim {
            // Not worth laying out all cells side by side.
            let one = |(scratch, cells): &mut (Tour, Vec<u32>), row: &[f32]| {
                self.candidates(isa, row, self.near(), (parents, SKETCHED), scratch);
                cells.clear();
                cells.extend(scratch.keys.iter().map(|key| *key as u32));
                choose(row, cells)
            };
            if vectors.len() <= FEW * self.dim {
                let mut work = Default::default();
                return vectors.chunks_exact(self.dim).map(|row| one(&mut work, row)).collect();
            }
            return vectors.par_chunks_exact(self.dim).map_init(Default::default, one).collect();
        }
        let tiles = self.tiles.get_or_init(|| {
            let lists = 0..self.lists() as u32;
            RowTiles::new(&self.cells, lists.map(|list| self.cells_of(list)), 1.0)
        });
        // A few batches are as long as each other, and as many as two or four threads share.
        let n = vectors.len() / self.dim;
        let batch = n.div_ceil(n.div_ceil(BATCH).next_multiple_of(4));
        let batches = vectors.par_chunks(batch * self.dim);
        let batches = batches.map(|vectors| {
            let found = self.find_batch::<N>(isa, vectors, parents, tiles);
            let rows = vectors.chunks_exact(self.dim).zip(found);
            rows.map(|(row, (cells, n))| choose(row, &cells[..n])).collect::<Vec<T>>()
        });
        batches.flatten_iter().collect()
    }

    /// Lists whose cells a row is compared with at most: so many that text embeddings lose nothing, and
    /// no share of them, which would make the work grow with the square of the rows.
    fn parents_to_assign(&self) -> usize {
        (2.6 * (self.lists() as f32).sqrt()).max(16.0) as usize
    }

    /// For each vector up to `N` cells by integer products, nearest first, and how many.
    fn find_batch<const N: usize>(
        &self,
        isa: Isa,
        vectors: &[f32],
        from: usize,
        tiles: &RowTiles,
    ) -> Vec<([u32; N], usize)> {
        let rounded = Rounded::new(vectors, self.dim);
        let mut of_list = vec![Vec::new(); self.lists()];
        let mut near = self.near_parents(isa, &rounded, from);
        let owns: Vec<f32> = vectors.chunks_exact(self.dim).map(|row| isa.dot(row, row)).collect();
        let mut best = vec![[(f32::INFINITY, 0); N]; rounded.len()];
        let (mut from, mut to) = (0, NEAREST);
        // The nearest lists first: what they bring leaves few cells of the others to be kept, and tells
        // which need not be looked at.
        while near.iter().any(|near| near.len() > from) {
            for ((row, near), (own, best)) in (0..).zip(&mut near).zip(owns.iter().zip(&best)) {
                if near.len() > to {
                    near[from..].select_nth_unstable(to - from);
                }
                let limit = own + best[N - 1].0;
                let part = near.iter().take(to).skip(from).copied();
                let part = part.filter(|key| own + unpack(*key) <= FARTHEST * limit);
                part.for_each(|key| of_list[key as u32 as usize].push(row));
            }
            self.compare_batch(isa, &rounded, tiles, &mut of_list, &mut best);
            (from, to) = (to, 4 * to);
        }
        let found = |best: [(f32, u32); N]| {
            (
                best.map(|(_, cell)| cell),
                best.iter().filter(|(key, _)| *key < f32::INFINITY).count(),
            )
        };
        best.into_iter().map(found).collect()
    }

    /// The `n` nearest parents of each of some vectors, in no order.
    fn near_parents(&self, isa: Isa, vectors: &Rounded, n: usize) -> Vec<Vec<u64>> {
        let parents = &self.near().parents;
        let (mut four, mut hits) = (Four::default(), Default::default());
        let (mut near, mut keys) = (Vec::with_capacity(vectors.len()), Vec::new());
        for rows in (0..vectors.len() as u32).collect::<Vec<_>>().chunks(4) {
            vectors.lay_out(rows, &mut four);
            parents.four_keys(isa, 0, &four, [f32::INFINITY; 4], &mut hits);
            near.extend(hits.iter().take(rows.len()).map(|hits: &Vec<Hit>| {
                keys.clear();
                keys.extend(hits.iter().map(|hit| pack(hit.estimate, hit.slot)));
                keep_least(&mut keys, n);
                keys.clone()
            }));
            hits.iter_mut().for_each(Vec::clear);
        }
        near
    }

    /// Compares rounded vectors with the cells of the lists that they are put down for, and keeps the
    /// best of each.
    fn compare_batch<const N: usize>(
        &self,
        isa: Isa,
        vectors: &Rounded,
        tiles: &RowTiles,
        of_list: &mut [Vec<u32>],
        best: &mut [[(f32, u32); N]],
    ) {
        let (mut four, mut hits) = (Four::default(), Default::default());
        for (list, all) in of_list.iter_mut().enumerate() {
            for rows in all.chunks(4) {
                vectors.lay_out(rows, &mut four);
                let limit = |row: &u32| best[*row as usize][N - 1].0;
                let limits = [0, 1, 2, 3].map(|at| rows.get(at).map_or(f32::NEG_INFINITY, limit));
                tiles.four_keys(isa, list, &four, limits, &mut hits);
                for (row, hits) in rows.iter().zip(&mut hits) {
                    let first = self.first_cell(list as u32);
                    keep_candidates(&mut best[*row as usize], hits, first);
                }
                hits.iter_mut().for_each(Vec::clear);
            }
            all.clear();
        }
    }

    /// The nearest of the candidates, of equally near ones the first; cell 0 if there are none.
    fn nearest_of(&self, isa: Isa, vector: &[f32], candidates: &[u32]) -> u32 {
        let key = |cell: &u32| {
            let dot = self.cells.dot(isa, *cell as usize, vector);
            pack(self.norm(*cell) - 2.0 * dot, *cell)
        };
        candidates.iter().map(key).min().map_or(0, |key| key as u32)
    }

    /// The candidate `c` other than the first that has the least `|r'|^2 + <r, r'>^2 / |r|^2`, with
    /// `r` the residual of the first and `r'` that of `c`.
    fn second_of(&self, isa: Isa, vector: &[f32], first: u32, candidates: &[u32]) -> Option<u32> {
        let mut residual = vec![0.0; self.dim];
        self.centroid(first, &mut residual);
        residual.iter_mut().zip(vector).for_each(|(r, x)| *r = x - *r);
        let (squared, length) = (isa.dot(vector, vector), isa.dot(&residual, &residual));
        let along = isa.dot(&residual, vector);
        let key = |cell: &u32| {
            let dot = self.cells.dot(isa, *cell as usize, vector);
            let parallel = along - self.cells.dot(isa, *cell as usize, &residual);
            let penalty = if length > 0.0 { parallel * parallel / length } else { 0.0 };
            pack(squared + self.norm(*cell) - 2.0 * dot + penalty, *cell)
        };
        let others = candidates.iter().filter(|cell| **cell != first);
        others.map(key).min().map(|key| key as u32)
    }
}

/// One round of Lloyd's algorithm over all cells, in batches of rows: each cell becomes the mean of
/// its rows, on the `sphere` if they lie on one ([`super::kmeans::Training`]); one without rows stays.
/// Lists keep their cells.
#[derive(Debug)]
pub(crate) struct Refinement<'a> {
    router: &'a Router,
    sphere: Option<&'a [f32]>,
    sums: Vec<f32>,
    counts: Vec<u32>,
}

impl<'a> Refinement<'a> {
    /// Bytes that the sums take.
    pub(crate) fn size(router: &Router) -> usize {
        router.cells() * (router.dim() + 1) * 4
    }

    pub(crate) fn new(router: &'a Router, sphere: Option<&'a [f32]>) -> Refinement<'a> {
        let cells = router.cells();
        Refinement { router, sphere, sums: vec![0.0; cells * router.dim()], counts: vec![0; cells] }
    }

    /// Counts rows in, n x dim. The order of the batches decides the last bits of the result.
    pub(crate) fn add(&mut self, isa: Isa, vectors: &[f32]) {
        let dim = self.router.dim();
        // A mean bears a few rows that are not where they should be.
        let (router, parents) = (self.router, self.router.parents_to_assign() / 3 + 4);
        let cells = router.assign_to::<CANDIDATES, _>(isa, vectors, parents, |row, cells| {
            router.nearest_of(isa, row, cells)
        });
        let mut order: Vec<(u32, u32)> = cells.into_iter().zip(0..).collect();
        order.sort_unstable();
        let sums = self.sums.par_chunks_mut(SUMMED * dim);
        let parts = sums.zip(self.counts.par_chunks_mut(SUMMED)).enumerate();
        parts.for_each(|(part, (sums, counts))| {
            let (first, len) = (part * SUMMED, counts.len());
            let from = order.partition_point(|at| (at.0 as usize) < first);
            let own =
                order[from..].iter().map(|(cell, row)| (*cell as usize - first, *row as usize));
            for (cell, row) in own.take_while(|at| at.0 < len) {
                let sums = &mut sums[cell * dim..][..dim];
                sums.iter_mut().zip(&vectors[row * dim..]).for_each(|(sum, value)| *sum += value);
                counts[cell] += 1;
            }
        });
    }

    /// The routing by the new centroids.
    pub(crate) fn finish(self) -> Vec<ListRouting> {
        let lists = (0..self.router.lists() as u32).into_par_iter();
        lists.map(|list| self.list(list)).collect()
    }

    fn list(&self, list: u32) -> ListRouting {
        let (router, dim) = (self.router, self.router.dim());
        let cells = router.cells_of(list);
        let mut centroids = vec![0.0; cells.len() * dim];
        let (mut total, mut rows) = (vec![0.0; dim], 0);
        for (cell, centroid) in cells.clone().zip(centroids.chunks_exact_mut(dim)) {
            let sums = &self.sums[cell as usize * dim..][..dim];
            let count = self.counts[cell as usize] as usize;
            total.iter_mut().zip(sums).for_each(|(total, sum)| *total += sum);
            rows += count;
            if count > 0 {
                write_mean(sums, count, self.sphere, centroid);
            } else {
                router.centroid(cell, centroid);
            }
        }
        let mut parent = vec![0.0; dim];
        if rows > 0 {
            write_mean(&total, rows, self.sphere, &mut parent);
        } else {
            router.parents.decode(list as usize, &mut parent);
        }
        ListRouting::quantize(cells.start, &parent, &centroids)
    }
}

/// Writes the mean, or the point of the sphere that lies nearest to it.
pub(super) fn write_mean(sums: &[f32], rows: usize, sphere: Option<&[f32]>, out: &mut [f32]) {
    let mean = |sum: &f32| f64::from(*sum) / rows as f64;
    out.iter_mut().zip(sums).for_each(|(out, sum)| *out = mean(sum) as f32);
    let Some(center) = sphere else { return };
    let point = || sums.iter().zip(center).map(|(sum, center)| mean(sum) + f64::from(*center));
    let length = point().map(|x| x * x).sum::<f64>().sqrt();
    if length > 0.0 {
        let moved = point().zip(center).map(|(x, center)| x / length - f64::from(*center));
        out.iter_mut().zip(moved).for_each(|(out, x)| *out = x as f32);
    }
}

/// Keeps the least keys, in order.
fn keep_candidates<const N: usize>(best: &mut [(f32, u32); N], hits: &[Hit], first: u32) {
    for hit in hits {
        let mut kept = (hit.estimate, first + hit.slot);
        for best in best.iter_mut() {
            if kept.0 < best.0 {
                std::mem::swap(best, &mut kept);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{BATCH, ListRouting, Refinement, Router};
    use crate::kernel::Isa;
    use crate::quantizer::kmeans::tests::{nearest, train};
    use crate::quantizer::pq::tests::random;
    use crate::quantizer::router::tests::lists;

    const DIM: usize = 24;

    /// Rows from many overlapping blobs, and lists of cells trained on them in two levels.
    fn clustered(n: usize) -> (Vec<f32>, Vec<ListRouting>) {
        let (centers, noise) = (random(1, 300 * DIM), random(2, n * DIM));
        let at = |i: usize| centers[(i / DIM * 7 % 300) * DIM + i % DIM] + 0.5 * noise[i];
        let rows: Vec<f32> = (0..n * DIM).map(at).collect();
        let parents = train(&rows, DIM, 40, 6, 1);
        let owner = nearest(&rows, DIM, &parents);
        let mut all: Vec<ListRouting> = Vec::new();
        for (list, parent) in parents.chunks(DIM).enumerate() {
            let mine = rows.chunks(DIM).zip(&owner).filter(|(_, at)| at.0 == list as u32);
            let mine: Vec<f32> = mine.flat_map(|(row, _)| row.to_vec()).collect();
            let first = all.last().map_or(0, |list| list.first_cell + list.scales.len() as u32);
            all.push(ListRouting::quantize(first, parent, &train(&mine, DIM, 8, 6, 2)));
        }
        (rows, all)
    }

    fn cells(router: &Router) -> Vec<f32> {
        let mut cells = vec![0.0; router.cells() * router.dim()];
        let out = cells.chunks_mut(router.dim());
        out.zip(0..).for_each(|(out, cell)| router.centroid(cell, out));
        cells
    }

    fn after_a_round(router: &Router, rows: &[f32], sphere: Option<&[f32]>) -> Vec<ListRouting> {
        let mut round = Refinement::new(router, sphere);
        rows.chunks(1_000 * router.dim()).for_each(|rows| round.add(Isa::detect(), rows));
        round.finish()
    }

    #[test]
    fn assignment_agrees_with_the_exact_nearest_cell() {
        let (rows, all) = clustered(6_000);
        for weight in [0.0, 1.0] {
            let router = Router::new(DIM, weight, all.clone()).unwrap();
            let expected = nearest(&rows, DIM, &cells(&router));
            // In bulk, and a few at a time.
            for part in [rows.len(), (BATCH - 1) * DIM] {
                let found = rows.chunks(part).flat_map(|rows| router.assign(Isa::detect(), rows));
                let same = found.zip(&expected).filter(|(found, e)| *found == e.0).count();
                assert!(same * 1_000 >= 6_000 * 998, "{same} of 6000");
            }
        }
    }

    #[test]
    fn assignment_is_the_same_on_any_number_of_threads_and_instruction_set() {
        let router = Router::new(50, 0.0, lists(50, &[30; 20])).unwrap();
        let rows = random(1, 50 * (2 * BATCH + 7));
        let run = |threads, isa| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| (router.assign(isa, &rows), router.assign(isa, &rows[..50 * 20])))
        };
        let expected = run(1, Isa::detect());
        assert!(Isa::available().into_iter().all(|isa| run(2, isa) == expected));
    }

    #[test]
    fn the_second_cell_has_the_least_loss_among_the_near_ones() {
        let (rows, all) = clustered(6_000);
        let router = Router::new(DIM, 1.0, all).unwrap();
        let cells = cells(&router);
        let residual = |row: &[f32], cell: usize| -> Vec<f64> {
            let cell = &cells[cell * DIM..][..DIM];
            row.iter().zip(cell).map(|(x, c)| f64::from(x - c)).collect()
        };
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        for part in [rows.len(), (BATCH - 1) * DIM] {
            let found = rows.chunks(part).flat_map(|rows| router.assign_twice(Isa::detect(), rows));
            let firsts = router.assign(Isa::detect(), &rows);
            let mut best = 0;
            for ((row, (first, second)), expected) in rows.chunks(DIM).zip(found).zip(firsts) {
                let second = second.unwrap();
                assert!(first == expected && second != first);
                let r = residual(row, first as usize);
                let loss = |cell: usize| {
                    let other = residual(row, cell);
                    dot(&other, &other) + dot(&r, &other).powi(2) / dot(&r, &r)
                };
                let others = (0..router.cells()).filter(|cell| *cell != first as usize);
                let least = others.map(loss).fold(f64::INFINITY, f64::min);
                best += usize::from(loss(second as usize) <= least * 1.001);
            }
            assert!(best * 10 >= 6_000 * 9, "{best} of 6000");
        }
        let lone = Router::new(8, 1.0, lists(8, &[1])).unwrap();
        assert_eq!(lone.assign_twice(Isa::detect(), &[0.5; 8]), [(0, None)]);
    }

    #[test]
    fn refining_brings_cells_nearer_to_their_rows_and_keeps_the_numbering() {
        let rows = random(7, DIM * 3_000);
        let router = Router::new(DIM, 1.0, lists(DIM, &[12; 10])).unwrap();
        let total = |router: &Router| -> f32 {
            nearest(&rows, DIM, &cells(router)).iter().map(|(_, distance)| distance).sum()
        };
        let refined = Router::new(DIM, 1.0, after_a_round(&router, &rows, None)).unwrap();
        assert_eq!(refined.cells(), router.cells());
        assert!(total(&refined) < 0.95 * total(&router));
        let unit = Router::new(DIM, 1.0, after_a_round(&router, &rows, Some(&[0.0; DIM]))).unwrap();
        let filled = router.assign(Isa::detect(), &rows);
        assert!(filled.iter().all(|cell| (unit.norm(*cell) - 1.0).abs() < 0.02));
    }

    #[test]
    fn cells_without_rows_stay_when_refined() {
        let router = Router::new(8, 1.0, lists(8, &[3, 0, 2])).unwrap();
        let mut row = vec![0.0; 8];
        router.centroid(4, &mut row);
        let refined = Router::new(8, 1.0, after_a_round(&router, &row, None)).unwrap();
        for (before, after) in cells(&router).iter().zip(&cells(&refined)) {
            assert!((before - after).abs() < 0.02);
        }
    }
}
