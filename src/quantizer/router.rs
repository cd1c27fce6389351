//! Two-level routing: which cells a query or a row belongs to.
//!
//! A list holds neighbouring cells. The parents, one centroid for each list, are ranked first, then
//! the cells of the best ones: parents by integer products of rounded bytes, cells by a sketch of
//! theirs. The cells that are kept are ranked again by their centroids and the query itself.

use crate::kernel::Isa;
use crate::quantizer::rows::{RowTiles, Rows, round_row};
use crate::quantizer::sketch::{self, Sketch};
use std::ops::Range;
use std::sync::OnceLock;

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

/// All lists and cells of a model.
#[derive(Debug)]
pub(crate) struct Router {
    pub(super) dim: usize,
    pub(super) norm_weight: f32,
    /// The first cell of each list, and the number of cells.
    first: Vec<u32>,
    list_of: Vec<u32>,
    pub(super) parents: Rows,
    pub(super) cells: Rows,
    /// To rank for queries, and to find the nearest cells of rows when that is another order: made
    /// at the first use.
    pub(super) ranks: Level,
    near: OnceLock<Level>,
    /// All cells side by side, to find those of many rows: made at the first use.
    pub(super) tiles: OnceLock<RowTiles>,
}

/// The parents and a sketch of the cells, to be ranked by one norm weight.
#[derive(Debug)]
pub(super) struct Level {
    pub(super) parents: RowTiles,
    pub(super) sketch: Sketch,
}

impl Level {
    fn new(first: &[u32], parents: &Rows, cells: &Rows, weight: f32) -> Level {
        let lists: Vec<_> = first.windows(2).map(|ends| ends[0]..ends[1]).collect();
        let sketch = Sketch::new(parents.dim(), &lists, &Residuals { weight, parents, cells });
        let all = std::iter::once(0..parents.len() as u32);
        Level { parents: RowTiles::new(parents, all, weight), sketch }
    }

    /// Cells to compare by themselves so that nearly all of the `n` nearest are among them.
    pub(super) fn candidates(&self, n: usize) -> usize {
        self.sketch.candidates(n)
    }
}

impl Router {
    /// `None` if lengths do not fit, or cells are not numbered in order.
    pub(crate) fn new(dim: usize, norm_weight: f32, lists: Vec<ListRouting>) -> Option<Router> {
        let cells = lists.iter().map(|list| list.scales.len()).sum::<usize>();
        if dim == 0 || u32::try_from(cells).is_err() {
            return None;
        }
        let (mut first, mut list_of) = (vec![0], Vec::with_capacity(cells));
        let (mut parents, mut parent_scales) = (Vec::new(), Vec::with_capacity(lists.len()));
        let mut codes = Vec::with_capacity(cells);
        for (number, list) in lists.iter().enumerate() {
            let fits = list.first_cell as usize == codes.len()
                && list.centroid.len() == dim
                && list.codes.len() == list.scales.len() * dim;
            if !fits {
                return None;
            }
            codes.extend(list.codes.chunks_exact(dim));
            list_of.resize(codes.len(), number as u32);
            parent_scales.push(round_row(&list.centroid, &mut parents));
            first.push(codes.len() as u32);
        }
        let scales = lists.iter().flat_map(|list| &list.scales).copied().collect();
        let cells = Rows::gather(dim, scales, &codes);
        let codes: Vec<&[i8]> = parents.chunks_exact(dim).collect();
        let parents = Rows::gather(dim, parent_scales, &codes);
        let ranks = Level::new(&first, &parents, &cells, norm_weight);
        let (near, tiles) = (OnceLock::new(), OnceLock::new());
        Some(Router { dim, norm_weight, first, list_of, parents, cells, ranks, near, tiles })
    }

    /// Dimensions of a vector.
    pub(crate) fn dim(&self) -> usize {
        self.dim
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

    /// The inner product of a query with the centroid of a cell.
    pub(super) fn dot(&self, isa: Isa, cell: u32, query: &[f32]) -> f32 {
        self.cells.dot(isa, cell as usize, query)
    }

    /// Asks for the centroid of a cell to be brought near.
    pub(super) fn prefetch(&self, isa: Isa, cell: u32) {
        self.cells.prefetch(isa, cell as usize);
    }

    /// What finds the nearest cells of rows.
    /// Whether one thread may assign a few rows by itself: what is made at the first use takes several.
    pub(crate) fn is_ready(&self) -> bool {
        self.norm_weight == 1.0 || self.near.get().is_some()
    }

    pub(super) fn near(&self) -> &Level {
        if self.norm_weight == 1.0 {
            return &self.ranks;
        }
        self.near.get_or_init(|| Level::new(&self.first, &self.parents, &self.cells, 1.0))
    }
}

/// What the sketch is of.
struct Residuals<'a> {
    weight: f32,
    parents: &'a Rows,
    cells: &'a Rows,
}

impl sketch::Cells for Residuals<'_> {
    fn weight(&self) -> f32 {
        self.weight
    }

    fn parent(&self, list: usize, out: &mut [f32]) {
        self.parents.decode(list, out);
    }

    fn residual(&self, list: usize, cell: u32, out: &mut [f32]) {
        self.cells.decode(cell as usize, out);
        self.parents.subtract(list, out);
    }
}

/// A number that sorts by the key, then by the index.
pub(crate) fn pack(key: f32, index: u32) -> u64 {
    let bits = key.to_bits();
    let sortable = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
    u64::from(sortable) << 32 | u64::from(index)
}

/// The key of a packed number.
pub(super) fn unpack(packed: u64) -> f32 {
    let bits = (packed >> 32) as u32;
    f32::from_bits(if bits >> 31 == 1 { bits & !(1 << 31) } else { !bits })
}

/// Keeps the `n` least, the greatest of them last.
pub(super) fn keep_least(keys: &mut Vec<u64>, n: usize) {
    if n < keys.len() {
        if n > 0 {
            keys.select_nth_unstable(n - 1);
        }
        keys.truncate(n);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::{ListRouting, Probe, Router};
    use crate::kernel::Isa;
    use crate::quantizer::pq::tests::random;
    use crate::quantizer::tour::Tour;

    /// Lists around parents, cells around lists.
    pub(crate) fn lists(dim: usize, counts: &[usize]) -> Vec<ListRouting> {
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

    /// All batches of a tour.
    fn rank(router: &Router, isa: Isa, query: &[f32], probes: usize) -> Vec<Probe> {
        let (mut tour, mut all) = (Tour::default(), Vec::new());
        router.begin(isa, query, probes, &mut tour);
        loop {
            match router.more(isa, query, &mut tour) {
                [] => return all,
                batch => all.extend_from_slice(batch),
            }
        }
    }

    fn exact(router: &Router, query: &[f32], weight: f64) -> Vec<u32> {
        let mut cell = vec![0.0; router.dim()];
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
            for seed in 0..10 {
                let query = random(seed, 37);
                let expected = exact(&router, &query, f64::from(weight));
                for probes in [87, 1_000] {
                    let ranked = rank(&router, Isa::detect(), &query, probes);
                    let cells: Vec<u32> = ranked.iter().map(|probe| probe.cell).collect();
                    assert_eq!(cells, expected);
                }
            }
        }
    }

    #[test]
    fn few_probes_are_nearly_the_first_of_all() {
        let router = Router::new(64, 1.0, lists(64, &[40; 16])).unwrap();
        for seed in 0..20 {
            let query = random(seed, 64);
            let expected = exact(&router, &query, 1.0);
            for probes in [0, 1, 10, 100] {
                let ranked = rank(&router, Isa::detect(), &query, probes);
                let cells: Vec<u32> = ranked.iter().map(|probe| probe.cell).collect();
                assert_eq!(cells.len(), probes);
                assert_eq!(cells.first(), expected[..probes].first());
                let found = expected[..probes].iter().filter(|cell| cells.contains(cell)).count();
                assert!(found * 10 >= probes * 9, "{found} of {probes}");
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
            let ranked = rank(&router, isa, &rows[..50], 70);
            assert_eq!(ranked, rank(&router, Isa::detect(), &rows[..50], 70));
        }
    }

    #[test]
    fn cells_and_lists_know_each_other() {
        let router = Router::new(8, 1.0, lists(8, &[3, 0, 2])).unwrap();
        assert_eq!((router.lists(), router.cells(), router.dim()), (3, 5, 8));
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
}
