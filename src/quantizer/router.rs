//! Two-level routing: which cells a query or a row belongs to.
//!
//! A list holds neighbouring cells. The parents, one centroid for each list, are ranked first, then
//! the cells of the best ones: parents by integer products of rounded bytes, cells by a sketch of
//! theirs. The cells that are kept are ranked again by their centroids and the query itself.

use crate::kernel::{Hit, Isa};
use crate::quantizer::rows::{Bytes, Rows, round_query, round_row};
use crate::quantizer::sketch::{self, Sketch};
use crate::quantizer::table::Table;
use rayon::prelude::*;
use std::ops::Range;

/// Rows that are assigned together: their candidates are found list by list.
const BATCH: usize = 1024;
/// Candidate cells of a row that are compared exactly.
const CANDIDATES: usize = 4;

/// The routing of one list, as it is stored.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ListRouting {
    /// The number of its first cell; the others follow.
    pub(crate) first_cell: u32,
    /// The centroid of the list.
    pub(crate) centroid: Vec<f32>,
    /// The scale of each cell.
    pub(crate) scales: Vec<f32>,
    /// The centroids of the cells over their scales: cells x dim.
    pub(crate) codes: Vec<i8>,
}

impl ListRouting {
    /// Rounds the centroids of the cells, cells x dim.
    pub(crate) fn quantize(first_cell: u32, centroid: &[f32], cells: &[f32]) -> ListRouting {
        let mut codes = Vec::with_capacity(cells.len());
        let rows = cells.chunks_exact(centroid.len());
        let scales = rows.map(|cell| round_row(cell, &mut codes)).collect();
        ListRouting { first_cell, centroid: centroid.to_vec(), scales, codes }
    }
}

/// A cell to visit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Probe {
    /// The cell.
    pub(crate) cell: u32,
    /// The inner product of the query with its centroid.
    pub(crate) dot: f32,
    /// The squared length of its centroid.
    pub(crate) norm: f32,
}

/// Buffers of a query.
#[derive(Debug, Default)]
pub(crate) struct RouteScratch {
    bytes: Vec<u8>,
    dots: Vec<i32>,
    values: Vec<f32>,
    parents: Vec<u64>,
    table: Table,
    hits: Vec<Hit>,
    keys: Vec<u64>,
    probes: Vec<Probe>,
}

/// All lists and cells of a model.
#[derive(Debug)]
pub(crate) struct Router {
    dim: usize,
    norm_weight: f32,
    /// The first cell of each list, and the number of cells.
    first: Vec<u32>,
    list_of: Vec<u32>,
    parents: Rows,
    cells: Rows,
    sketch: Sketch,
}

impl Router {
    /// `None` if lengths do not fit, or cells are not numbered in order.
    pub(crate) fn new(dim: usize, norm_weight: f32, lists: Vec<ListRouting>) -> Option<Router> {
        let cells = lists.iter().map(|list| list.scales.len()).sum::<usize>();
        if dim == 0 || u32::try_from(cells).is_err() {
            return None;
        }
        let (mut first, mut list_of) = (vec![0], Vec::with_capacity(cells));
        let mut parent_rows = Rows::with_capacity(dim, lists.len());
        let mut cell_rows = Rows::with_capacity(dim, cells);
        let mut codes = Vec::new();
        for (number, list) in lists.iter().enumerate() {
            let fits = list.first_cell as usize == cell_rows.len()
                && list.centroid.len() == dim
                && list.codes.len() == list.scales.len() * dim;
            if !fits {
                return None;
            }
            for (scale, codes) in list.scales.iter().zip(list.codes.chunks_exact(dim)) {
                cell_rows.push(*scale, codes);
                list_of.push(number as u32);
            }
            codes.clear();
            let scale = round_row(&list.centroid, &mut codes);
            parent_rows.push(scale, &codes);
            first.push(cell_rows.len() as u32);
        }
        let ranges: Vec<_> = first.windows(2).map(|ends| ends[0]..ends[1]).collect();
        let residuals = Residuals { norm_weight, parents: &parent_rows, cells: &cell_rows };
        let sketch = Sketch::new(dim, &ranges, &residuals);
        Some(Router {
            dim,
            norm_weight,
            first,
            list_of,
            parents: parent_rows,
            cells: cell_rows,
            sketch,
        })
    }

    /// The number of lists.
    pub(crate) fn lists(&self) -> usize {
        self.parents.len()
    }

    /// The number of cells.
    pub(crate) fn cells(&self) -> usize {
        self.cells.len()
    }

    /// The list that holds a cell.
    pub(crate) fn list_of(&self, cell: u32) -> u32 {
        self.list_of[cell as usize]
    }

    /// The first cell of a list.
    #[cfg(test)]
    pub(crate) fn first_cell(&self, list: u32) -> u32 {
        self.first[list as usize]
    }

    /// The cells of a list.
    pub(crate) fn cells_of(&self, list: u32) -> Range<u32> {
        self.first[list as usize]..self.first[list as usize + 1]
    }

    /// Writes the centroid of a cell, `dim` numbers.
    pub(crate) fn centroid(&self, cell: u32, out: &mut [f32]) {
        self.cells.decode(cell as usize, out);
    }

    /// The squared length of the centroid of a cell.
    pub(crate) fn norm(&self, cell: u32) -> f32 {
        self.cells.norm(cell as usize)
    }

    /// The `probes` cells to visit first, nearest first; all of them, exactly, from `cells()` on.
    pub(crate) fn rank<'a>(
        &self,
        isa: Isa,
        query: &[f32],
        probes: usize,
        scratch: &'a mut RouteScratch,
    ) -> &'a [Probe] {
        assert_eq!(query.len(), self.dim);
        self.candidates(isa, query, probes, scratch);
        let RouteScratch { keys, probes: out, .. } = scratch;
        out.clear();
        out.extend(keys.iter().enumerate().map(|(at, key)| {
            let cell = *key as u32;
            if let Some(next) = keys.get(at + 4) {
                self.cells.prefetch(isa, *next as u32 as usize);
            }
            let dot = self.cells.dot(isa, cell as usize, query);
            Probe { cell, dot, norm: self.norm(cell) }
        }));
        let key = |probe: &Probe| self.norm_weight * probe.norm - 2.0 * probe.dot;
        out.sort_unstable_by_key(|probe| pack(key(probe), probe.cell));
        out.truncate(probes);
        out
    }

    /// Leaves the cells to be ranked exactly in the keys of the scratch.
    fn candidates(&self, isa: Isa, query: &[f32], probes: usize, scratch: &mut RouteScratch) {
        let RouteScratch { bytes, dots, values, parents, table, hits, keys, .. } = scratch;
        keys.clear();
        if probes >= self.cells() {
            keys.extend(0..self.cells() as u64);
            return;
        }
        bytes.resize(self.cells.width(), 0);
        let scale = round_query(query, bytes);
        values.resize(self.lists(), 0.0);
        self.parents.keys(isa, Bytes { bytes, scale }, self.norm_weight, 0, (dots, values));
        parents.clear();
        parents.extend(values.iter().zip(0..).map(|(key, list)| pack(*key, list)));
        keep_least(parents, self.parents_for(probes));
        parents.sort_unstable();
        self.sketch.build(table, query);
        let wanted = probes + probes / 2 + 16;
        let mut limit = f32::INFINITY;
        let mut next = parents.iter().map(|key| *key as u32).peekable();
        while let Some(list) = next.next() {
            if let Some(next) = next.peek() {
                self.sketch.prefetch(isa, *next as usize);
            }
            let base = values[list as usize] - self.norm_weight * self.parents.norm(list as usize);
            hits.clear();
            self.sketch.scan(isa, list as usize, table, (base, limit), hits);
            let first = self.first[list as usize];
            keys.extend(hits.iter().map(|hit| pack(hit.estimate, first + hit.slot)));
            if keys.len() > 2 * wanted + 64 {
                keep_least(keys, wanted);
                limit = keys.last().map_or(limit, |key| unpack(*key));
            }
        }
        keep_least(keys, wanted);
    }

    /// Parents whose cells are ranked for so many probes.
    fn parents_for(&self, probes: usize) -> usize {
        if probes >= self.cells() {
            return self.lists();
        }
        (12.0 * (probes as f32).sqrt()).max(16.0) as usize
    }

    /// The nearest cell of each vector, n x dim, by Euclidean distance.
    pub(crate) fn assign(&self, isa: Isa, vectors: &[f32]) -> Vec<u32> {
        let batches = vectors.par_chunks(BATCH * self.dim);
        batches.map(|vectors| self.assign_batch(isa, vectors)).flatten_iter().collect()
    }

    /// Parents whose cells a row is compared with.
    fn parents_to_assign(&self) -> usize {
        (self.lists() / 6).max(16)
    }

    fn assign_batch(&self, isa: Isa, vectors: &[f32]) -> Vec<u32> {
        let width = self.cells.width();
        let rows = vectors.len() / self.dim;
        let mut bytes = vec![0; rows * width];
        let mut scales = Vec::with_capacity(rows);
        let mut of_list = vec![Vec::new(); self.lists()];
        let (mut dots, mut values, mut parents) = (Vec::new(), vec![0.0; self.lists()], Vec::new());
        let pairs = vectors.chunks_exact(self.dim).zip(bytes.chunks_exact_mut(width));
        for (row, (vector, bytes)) in pairs.enumerate() {
            let scale = round_query(vector, bytes);
            let query = Bytes { bytes, scale };
            self.parents.keys(isa, query, 1.0, 0, (&mut dots, &mut values));
            parents.clear();
            parents.extend(values.iter().enumerate().map(|(list, key)| pack(*key, list as u32)));
            keep_least(&mut parents, self.parents_to_assign());
            parents.iter().for_each(|key| of_list[*key as u32 as usize].push(row as u32));
            scales.push(scale);
        }
        let mut best = vec![[u64::MAX; CANDIDATES]; rows];
        for (list, rows) in of_list.iter().enumerate() {
            let cells = self.cells_of(list as u32);
            values.resize(cells.len(), 0.0);
            for row in rows.iter().map(|row| *row as usize) {
                let query = Bytes { bytes: &bytes[row * width..][..width], scale: scales[row] };
                self.cells.keys(isa, query, 1.0, cells.start as usize, (&mut dots, &mut values));
                keep_candidates(&mut best[row], &values, cells.start);
            }
        }
        let rows = vectors.chunks_exact(self.dim).zip(&best);
        rows.map(|(vector, best)| self.nearest_of(isa, vector, best)).collect()
    }

    /// The nearest of the candidates, of equally near ones the first; cell 0 if there are none.
    fn nearest_of(&self, isa: Isa, vector: &[f32], candidates: &[u64]) -> u32 {
        let cells = candidates.iter().filter(|key| **key != u64::MAX).map(|key| *key as u32);
        let key = |cell: u32| {
            let dot = self.cells.dot(isa, cell as usize, vector);
            pack(self.norm(cell) - 2.0 * dot, cell)
        };
        cells.map(key).min().map_or(0, |key| key as u32)
    }
}

/// What the sketch is of.
struct Residuals<'a> {
    norm_weight: f32,
    parents: &'a Rows,
    cells: &'a Rows,
}

impl sketch::Cells for Residuals<'_> {
    fn residual(&self, list: usize, cell: u32, out: &mut [f32]) -> f32 {
        self.cells.decode(cell as usize, out);
        self.parents.subtract(list, out);
        self.norm_weight * self.cells.norm(cell as usize)
    }
}

/// Keeps the least keys, in order of their key.
fn keep_candidates(best: &mut [u64; CANDIDATES], values: &[f32], first: u32) {
    for (value, cell) in values.iter().zip(first..) {
        let key = pack(*value, cell);
        if key < best[CANDIDATES - 1] {
            best[CANDIDATES - 1] = key;
            for at in (1..CANDIDATES).rev() {
                if best[at] < best[at - 1] {
                    best.swap(at, at - 1);
                }
            }
        }
    }
}

/// A number that sorts by the key, then by the index.
fn pack(key: f32, index: u32) -> u64 {
    let bits = key.to_bits();
    let sortable = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
    u64::from(sortable) << 32 | u64::from(index)
}

/// The key of a packed number.
fn unpack(packed: u64) -> f32 {
    let bits = (packed >> 32) as u32;
    f32::from_bits(if bits >> 31 == 1 { bits & !(1 << 31) } else { !bits })
}

/// Keeps the `n` least, the greatest of them last.
fn keep_least(keys: &mut Vec<u64>, n: usize) {
    if n < keys.len() {
        if n > 0 {
            keys.select_nth_unstable(n - 1);
        }
        keys.truncate(n);
    }
}

#[cfg(test)]
mod tests {
    use super::{ListRouting, RouteScratch, Router};
    use crate::kernel::Isa;
    use crate::quantizer::kmeans::{nearest, train};
    use crate::quantizer::pq::tests::random;

    /// Lists around parents, cells around lists.
    fn lists(dim: usize, counts: &[usize]) -> Vec<ListRouting> {
        let mut first = 0;
        let list = |(number, cells): (usize, &usize)| {
            let centroid = random(number as u64, dim);
            let offsets = random(1_000 + number as u64, cells * dim);
            let near = |(at, offset): (usize, &f32)| centroid[at % dim] + 0.5 * offset;
            let cells_of: Vec<f32> = offsets.iter().enumerate().map(near).collect();
            let list = ListRouting::quantize(first, &centroid, &cells_of);
            first += *cells as u32;
            list
        };
        counts.iter().enumerate().map(list).collect()
    }

    fn exact(router: &Router, query: &[f32], weight: f64) -> Vec<u32> {
        let mut cell = vec![0.0; router.dim];
        let mut keys: Vec<(f64, u32)> = (0..router.cells() as u32)
            .map(|number| {
                router.centroid(number, &mut cell);
                let pairs = || cell.iter().zip(query).map(|(c, q)| (f64::from(*c), f64::from(*q)));
                let norm: f64 = pairs().map(|(c, _)| c * c).sum();
                assert!((norm - f64::from(router.norm(number))).abs() < 1e-3);
                (weight * norm - 2.0 * pairs().map(|(c, q)| c * q).sum::<f64>(), number)
            })
            .collect();
        keys.sort_by(|a, b| a.partial_cmp(b).unwrap());
        keys.into_iter().map(|(_, cell)| cell).collect()
    }

    #[test]
    fn all_cells_are_ranked_exactly_when_all_are_asked_for() {
        for weight in [0.0, 1.0] {
            let router = Router::new(37, weight, lists(37, &[5, 0, 64, 1, 17])).unwrap();
            let mut scratch = RouteScratch::default();
            for seed in 0..10 {
                let query = random(seed, 37);
                let expected = exact(&router, &query, f64::from(weight));
                for probes in [87, 1_000] {
                    let ranked = router.rank(Isa::detect(), &query, probes, &mut scratch);
                    let cells: Vec<u32> = ranked.iter().map(|probe| probe.cell).collect();
                    assert_eq!(cells, expected);
                }
            }
        }
    }

    #[test]
    fn few_probes_are_the_first_of_all() {
        let router = Router::new(64, 1.0, lists(64, &[40; 16])).unwrap();
        let mut scratch = RouteScratch::default();
        for seed in 0..20 {
            let query = random(seed, 64);
            let expected = exact(&router, &query, 1.0);
            for probes in [0, 1, 10, 100] {
                let ranked = router.rank(Isa::detect(), &query, probes, &mut scratch);
                let cells: Vec<u32> = ranked.iter().map(|probe| probe.cell).collect();
                assert_eq!(cells, expected[..probes]);
            }
        }
    }

    #[test]
    fn every_instruction_set_ranks_and_assigns_alike() {
        let router = Router::new(50, 1.0, lists(50, &[30; 20])).unwrap();
        let rows = random(1, 50 * 100);
        let expected = router.assign(Isa::detect(), &rows);
        for isa in Isa::available() {
            assert_eq!(router.assign(isa, &rows), expected);
            let (mut a, mut b) = (RouteScratch::default(), RouteScratch::default());
            let ranked = router.rank(isa, &rows[..50], 70, &mut a);
            assert_eq!(ranked, router.rank(Isa::detect(), &rows[..50], 70, &mut b));
        }
    }

    #[test]
    fn cells_and_lists_know_each_other() {
        let router = Router::new(8, 1.0, lists(8, &[3, 0, 2])).unwrap();
        assert_eq!((router.lists(), router.cells(), router.dim), (3, 5, 8));
        assert_eq!(
            (router.cells_of(0), router.cells_of(1), router.cells_of(2)),
            (0..3, 3..3, 3..5)
        );
        assert_eq!((0..5).map(|cell| router.list_of(cell)).collect::<Vec<_>>(), [0, 0, 0, 2, 2]);
        assert_eq!(router.first_cell(2), 3);
    }

    #[test]
    fn inconsistent_routing_is_refused() {
        let with = |change: fn(&mut Vec<ListRouting>)| {
            let mut all = lists(8, &[3, 4]);
            change(&mut all);
            Router::new(8, 1.0, all).is_some()
        };
        assert!(with(|_| ()));
        assert!(!with(|all| all[1].first_cell = 4));
        assert!(!with(|all| _ = all[0].centroid.pop()));
        assert!(!with(|all| _ = all[0].codes.pop()));
        assert!(!with(|all| _ = all[1].scales.pop()));
        assert!(!with(|all| all.reverse()));
        assert!(Router::new(0, 1.0, Vec::new()).is_none());
    }

    #[test]
    fn assignment_agrees_with_the_exact_nearest_cell() {
        // Rows from many overlapping blobs, and cells trained on them in two levels.
        let (dim, n) = (24, 6_000);
        let centers = random(1, 300 * dim);
        let noise = random(2, n * dim);
        let at = |i: usize| centers[(i / dim * 7 % 300) * dim + i % dim] + 0.5 * noise[i];
        let rows: Vec<f32> = (0..n * dim).map(at).collect();
        let parents = train(&rows, dim, 40, 6, 1);
        let owner = nearest(&rows, dim, &parents);
        let mut all: Vec<ListRouting> = Vec::new();
        for (list, parent) in parents.chunks(dim).enumerate() {
            let mine = rows.chunks(dim).zip(&owner).filter(|(_, at)| at.0 == list as u32);
            let mine: Vec<f32> = mine.flat_map(|(row, _)| row.to_vec()).collect();
            let first = all.last().map_or(0, |list| list.first_cell + list.scales.len() as u32);
            all.push(ListRouting::quantize(first, parent, &train(&mine, dim, 8, 6, 2)));
        }
        let router = Router::new(dim, 0.0, all).unwrap();
        let mut cells = vec![0.0; router.cells() * dim];
        cells.chunks_mut(dim).zip(0..).for_each(|(out, cell)| router.centroid(cell, out));
        let expected = nearest(&rows, dim, &cells);
        let found = router.assign(Isa::detect(), &rows);
        let same = found.iter().zip(&expected).filter(|(found, e)| **found == e.0).count();
        assert!(same * 1_000 >= n * 998, "{same} of {n}");
    }
}
