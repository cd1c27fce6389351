//! A trained model: routing, codes, and the recall settings measured with them.

use crate::kernel::Isa;
use crate::options::Metric;
use crate::quantizer::FEW;
use crate::quantizer::pq::Pq;
use crate::quantizer::rotation::Rotation;
use crate::quantizer::router::{ListRouting, Router};
use crate::quantizer::table::Table;
use cellardb_format::{BlockLayout, CodeKind, Factors, ModelRecord, NONE, RoutingRecord};
use rayon::prelude::*;

/// Everything that turns vectors into cells and codes.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) record: ModelRecord,
    pub(crate) metric: Metric,
    /// What vectors are taken less, so that their codes and centroids tell of their differences only.
    pub(crate) center: Vec<f32>,
    /// The center where codes are.
    turned_center: Vec<f32>,
    pub(crate) router: Router,
    /// Absent when the codes are the vectors themselves.
    pub(crate) pq: Option<Pq>,
    /// What is done to vectors before they are coded.
    rotation: Option<Rotation>,
    pub(crate) layout: BlockLayout,
}

/// Rows brought into cells and codes: one copy of each, or two.
#[derive(Debug, Default, Clone)]
pub(crate) struct Encoded {
    /// The generation of the model that did it; 0 when there was none.
    pub(crate) generation: u32,
    /// Copies of a row.
    copies: usize,
    /// Of each copy; [`NONE`] where there is no second.
    cells: Vec<u32>,
    /// `code_len` bytes a copy.
    codes: Vec<u8>,
    factors: Vec<Factors>,
    /// The squared distance of each row to the centroid of its first cell.
    distances: Vec<f32>,
}

/// A row to be encoded with its scale and its cells, and where its codes and factors go.
type Row<'a> =
    (((&'a [f32], &'a f32), &'a [u32]), ((&'a mut [u8], &'a mut f32), &'a mut [Factors]));

/// One copy of a row.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Copy<'a> {
    pub(crate) cell: u32,
    pub(crate) code: &'a [u8],
    pub(crate) factors: Factors,
}

impl Encoded {
    /// These rows, and behind them others of the same model.
    pub(crate) fn and(mut self, others: Self) -> Self {
        self.cells.extend(others.cells);
        self.codes.extend(others.codes);
        self.factors.extend(others.factors);
        self.distances.extend(others.distances);
        self
    }

    /// The first and the second cell of each row, [`NONE`] without.
    pub(crate) fn cells(&self) -> impl Iterator<Item = (u32, u32)> {
        let rows = self.cells.chunks_exact(self.copies.max(1));
        rows.map(|cells| match cells {
            [first, second] => (*first, *second),
            [first, ..] => (*first, NONE),
            [] => (NONE, NONE),
        })
    }

    /// The squared distance of each row to the centroid of its first cell.
    pub(crate) fn distances(&self) -> &[f32] {
        &self.distances
    }

    /// The copies of each row that are in a cell.
    pub(crate) fn rows(&self) -> impl Iterator<Item = impl Iterator<Item = Copy<'_>>> {
        let copies = self.copies.max(1);
        let rows = self.cells.len() / copies;
        let code_len = self.codes.len() / self.cells.len().max(1);
        let copy = move |at: usize| Copy {
            cell: self.cells[at],
            code: &self.codes[at * code_len..(at + 1) * code_len],
            factors: self.factors[at],
        };
        let of_row = move |row: usize| (row * copies..(row + 1) * copies).map(copy);
        (0..rows).map(move |row| of_row(row).filter(|copy| copy.cell != NONE))
    }
}

impl Model {
    pub(crate) fn new(
        record: ModelRecord,
        metric: Metric,
        center: Vec<f32>,
        codebook: Vec<f32>,
        lists: Vec<ListRouting>,
    ) -> Option<Self> {
        let dim = center.len();
        let router = Router::new(dim, record.norm_weight, lists)?;
        let (m, dsub) = (record.m as usize, record.dsub as usize);
        let (pq, rotation) = match record.code {
            CodeKind::Flat => (None, None),
            CodeKind::Pq4 => (Some(Pq::from_codebook(dim, m, 4, dsub, codebook)?), None),
            CodeKind::Pq8 => (Some(Pq::from_codebook(dim, m, 8, dsub, codebook)?), None),
            CodeKind::RaBitQ => {
                let rotation = Rotation::from_signs(dim, codebook)?;
                let fits = rotation.shape() == (m, dsub);
                fits.then(|| (Some(rotation.quantizer()), Some(rotation)))?
            }
        };
        let layout = BlockLayout::new(record.code, m, dim);
        if router.cells() != record.cells as usize {
            return None;
        }
        let turned_center = Vec::new();
        let mut model =
            Self { record, metric, center, turned_center, router, pq, rotation, layout };
        let mut turned = Vec::new();
        model.turn(model.center.iter().copied(), &mut turned);
        model.turned_center = turned;
        Some(model)
    }

    pub(crate) fn isa(&self) -> Isa {
        Isa::detect()
    }

    pub(crate) fn generation(&self) -> u32 {
        self.record.generation
    }

    /// Bytes of the code of one row.
    pub(crate) fn code_len(&self) -> usize {
        self.layout.code_len()
    }

    /// The numbers of the codebook, or the signs of the rotation.
    pub(crate) fn codebook(&self) -> &[f32] {
        match (&self.rotation, &self.pq) {
            (Some(rotation), _) => rotation.signs(),
            (None, Some(pq)) => &pq.codebook,
            (None, None) => &[],
        }
    }

    /// Fills the table of a query less the center; not if the codes are the vectors themselves.
    pub(crate) fn table(&self, query: &[f32], table: &mut Table, rotated: &mut Vec<f32>) {
        let Some(pq) = &self.pq else { return };
        let s = if self.metric == Metric::L2 { -2.0 } else { -1.0 };
        self.turn(query.iter().copied(), rotated);
        table.build(pq, rotated, s);
    }

    /// The cells of vectors as searched, in parallel unless they are few: `copies` for each.
    pub(crate) fn assign(&self, isa: Isa, searched: &[f32]) -> Vec<u32> {
        let mut shifted = searched.to_vec();
        shift(&mut shifted, &self.center);
        if !self.record.spilled {
            return self.router.assign(isa, &shifted);
        }
        let pairs = self.router.assign_twice(isa, &shifted);
        pairs.into_iter().flat_map(|(first, second)| [first, second.unwrap_or(NONE)]).collect()
    }

    /// The squared distances of vectors as searched to the centroids of their cells, in parallel.
    pub(crate) fn distances(&self, searched: &[f32]) -> Vec<f32> {
        let mut shifted = searched.to_vec();
        shift(&mut shifted, &self.center);
        let cells = self.router.assign(self.isa(), &shifted);
        let mut centroid = vec![0.0; self.router.dim()];
        let distance = |(vector, cell): (&[f32], u32)| {
            self.router.centroid(cell, &mut centroid);
            self.isa().l2(vector, &centroid)
        };
        shifted.chunks_exact(self.router.dim()).zip(cells).map(distance).collect()
    }

    /// Whether an estimate is kept under a limit. What is exact may equal it and still come first, by
    /// its id.
    pub(crate) fn is_within(&self, estimate: f32, limit: f32) -> bool {
        estimate < limit || (self.pq.is_none() && estimate == limit)
    }

    /// Copies of a row.
    pub(crate) fn copies(&self) -> usize {
        if self.record.spilled { 2 } else { 1 }
    }

    /// Codes of rows whose cells are known, `copies` of each, in parallel unless they are few. `vectors` are as inserted,
    /// `scales` bring them to what is searched.
    pub(crate) fn encode(&self, vectors: &[f32], scales: &[f32], cells: Vec<u32>) -> Encoded {
        self.encode_by(&[], vectors, scales, cells)
    }

    /// The centroids of all cells where codes are, to encode very many rows by; none where nothing is
    /// rotated, or where they take more than `most` bytes.
    pub(crate) fn turned(&self, most: usize) -> Vec<f32> {
        let width = self.router.dim().next_multiple_of(4);
        if self.rotation.is_none() || self.router.cells() * width * 4 > most {
            return Vec::new();
        }
        let mut turned = vec![0.0; self.router.cells() * width];
        turned.par_chunks_exact_mut(width).enumerate().for_each_init(
            Work::default,
            |work, (cell, out)| {
                self.turn_cell(cell as u32, work);
                out.copy_from_slice(&work.centroid);
            },
        );
        turned
    }

    /// [`Model::encode`] with the centroids from [`Model::turned`].
    pub(crate) fn encode_by(
        &self,
        turned: &[f32],
        vectors: &[f32],
        scales: &[f32],
        cells: Vec<u32>,
    ) -> Encoded {
        let (copies, code_len) = (self.copies(), self.code_len());
        let mut codes = vec![0; cells.len() * code_len];
        let mut factors = vec![Factors::default(); cells.len()];
        let mut distances = vec![0.0; scales.len()];
        let dim = self.router.dim();
        let one = |work: &mut Work, (((vector, scale), cells), (out, factors)): Row<'_>| {
            let (codes, distance) = out;
            let shifted = vector.iter().zip(&self.center).map(|(x, center)| x * scale - center);
            self.turn(shifted, &mut work.point);
            let copies = codes.chunks_exact_mut(code_len).zip(factors).enumerate();
            for (cell, (copy, (code, factors))) in
                cells.iter().zip(copies).filter(|(c, _)| **c != NONE)
            {
                match turned.get(*cell as usize * work.point.len()..) {
                    Some(turned) if !turned.is_empty() => {
                        work.centroid.clear();
                        work.centroid.extend_from_slice(&turned[..work.point.len()]);
                    }
                    _ => self.turn_cell(*cell, work),
                }
                if copy == 0 {
                    *distance = self.isa().l2(&work.point, &work.centroid);
                }
                *factors = match &self.pq {
                    Some(pq) => self.encode_one(pq, work, code),
                    None => verbatim(vector, *scale, code),
                };
            }
        };
        if scales.len() <= FEW {
            let rows = vectors.chunks_exact(dim).zip(scales).zip(cells.chunks_exact(copies));
            let codes_of = codes.chunks_exact_mut(copies * code_len).zip(&mut distances);
            let rows = rows.zip(codes_of.zip(factors.chunks_exact_mut(copies)));
            let mut work = Work::default();
            rows.for_each(|row| one(&mut work, row));
        } else {
            let rows = vectors.par_chunks_exact(dim).zip(scales);
            let rows = rows.zip(cells.par_chunks_exact(copies));
            let codes_of = codes.par_chunks_exact_mut(copies * code_len).zip(&mut distances);
            let rows = rows.zip(codes_of.zip(factors.par_chunks_exact_mut(copies)));
            rows.with_min_len(FEW / 2).for_each_init(Work::default, one);
        }
        Encoded { generation: self.generation(), copies, cells, codes, factors, distances }
    }

    /// Brings a vector to where codes are: rotates it, if that is done.
    fn turn(&self, vector: impl Iterator<Item = f32>, out: &mut Vec<f32>) {
        out.clear();
        out.extend(vector);
        if let Some(rotation) = &self.rotation {
            rotation.apply(out);
        }
    }

    /// Brings the centroid of a cell to where codes are.
    fn turn_cell(&self, cell: u32, work: &mut Work) {
        let Work { plain, centroid, .. } = work;
        plain.resize(self.router.dim(), 0.0);
        self.router.centroid(cell, plain);
        self.turn(plain.iter().copied(), centroid);
    }

    /// The code of `work.point` by `work.centroid` (SPEC.md, section 5).
    fn encode_one(&self, pq: &Pq, work: &mut Work, code: &mut [u8]) -> Factors {
        let Work { point, centroid, residual, decoded, .. } = work;
        residual.clear();
        residual.extend(point.iter().zip(&*centroid).map(|(x, c)| x - c));
        decoded.resize(residual.len(), 0.0);
        if self.rotation.is_some() {
            Rotation::encode(residual, code, decoded);
        } else {
            pq.encode(residual, code);
            pq.decode(code, decoded);
        }
        let isa = pq.isa();
        let (length, inner) = (isa.dot(residual, residual), isa.dot(residual, centroid));
        let along = isa.dot(residual, decoded);
        let stretch = if along > 0.0 { length / along } else { 0.0 };
        let cross = stretch * isa.dot(centroid, decoded);
        let add = match self.metric {
            Metric::L2 => length + 2.0 * cross,
            Metric::Cosine => length / 2.0 + cross,
            Metric::InnerProduct => cross - inner - isa.dot(&self.turned_center, point),
        };
        Factors { add, scale: stretch }
    }
}

/// The code of a vector that is the vector.
fn verbatim(vector: &[f32], scale: f32, code: &mut [u8]) -> Factors {
    for (out, x) in code.chunks_exact_mut(4).zip(vector) {
        out.copy_from_slice(&x.to_le_bytes());
    }
    Factors { add: scale, scale: 1.0 }
}

/// Takes the center off vectors, row-major.
pub(crate) fn shift(vectors: &mut [f32], center: &[f32]) {
    for row in vectors.chunks_exact_mut(center.len().max(1)) {
        row.iter_mut().zip(center).for_each(|(x, center)| *x -= center);
    }
}

/// Room for encoding. All but `plain` is where codes are.
#[derive(Debug, Default)]
struct Work {
    plain: Vec<f32>,
    point: Vec<f32>,
    centroid: Vec<f32>,
    residual: Vec<f32>,
    decoded: Vec<f32>,
}

/// The stored form of the routing of a list.
pub(crate) fn routing_record(list: ListRouting) -> RoutingRecord {
    let ListRouting { first_cell, centroid, scales, codes } = list;
    RoutingRecord { first_cell, centroid, scales, codes }
}

/// And back.
pub(crate) fn list_routing(record: RoutingRecord) -> ListRouting {
    let RoutingRecord { first_cell, centroid, scales, codes } = record;
    ListRouting { first_cell, centroid, scales, codes }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{Ahead, Hit, Scan};
    use crate::quantizer::pq::tests::random;
    use crate::quantizer::router::tests::lists;

    const DIM: usize = 60;
    const KINDS: [CodeKind; 3] = [CodeKind::Pq4, CodeKind::Pq8, CodeKind::RaBitQ];
    const METRICS: [Metric; 3] = [Metric::L2, Metric::InnerProduct, Metric::Cosine];

    fn model(code: CodeKind, metric: Metric) -> Model {
        let lists = lists(DIM, &[3, 5]);
        let (m, dsub, codebook) = match code {
            CodeKind::RaBitQ => {
                let rotation = Rotation::random(DIM, 3);
                (DIM / 4, 4, rotation.signs().to_vec())
            }
            _ => {
                let bits = if code == CodeKind::Pq4 { 4 } else { 8 };
                let pq = Pq::train(&random(9, 600 * DIM), DIM, 15, bits, 1);
                (pq.m, pq.dsub, pq.codebook)
            }
        };
        let record = ModelRecord {
            generation: 1,
            code,
            spilled: true,
            m: m as u32,
            dsub: dsub as u32,
            norm_weight: 1.0,
            squared: 1.0,
            lists: 2,
            cells: 8,
            trained_rows: 0,
            trained_next_id: 0,
        };
        let center = random(77, DIM).into_iter().map(|x| 0.05 * x).collect();
        Model::new(record, metric, center, codebook, lists).unwrap()
    }

    fn unit(mut vector: Vec<f32>) -> Vec<f32> {
        let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
        vector.iter_mut().for_each(|x| *x /= length);
        vector
    }

    fn distance(metric: Metric, q: &[f32], v: &[f32]) -> f32 {
        match metric {
            Metric::L2 => q.iter().zip(v).map(|(q, v)| (q - v) * (q - v)).sum(),
            _ => 1.0 - q.iter().zip(v).map(|(q, v)| q * v).sum::<f32>(),
        }
    }

    /// What estimates of inner products leave out.
    fn constant(metric: Metric) -> f32 {
        if metric == Metric::InnerProduct { 1.0 } else { 0.0 }
    }

    /// The centroid of a cell with the center.
    fn centroid(model: &Model, cell: u32) -> Vec<f32> {
        let mut centroid = vec![0.0; DIM];
        model.router.centroid(cell, &mut centroid);
        centroid.iter().zip(&model.center).map(|(c, center)| c + center).collect()
    }

    /// What a scan says of a row in a cell, and what the rounding of the table may do to it.
    fn estimate(model: &Model, metric: Metric, query: &[f32], row: &[f32], cell: u32) -> [f32; 2] {
        let (isa, layout) = (Isa::detect(), &model.layout);
        let encoded = model.encode(row, &[1.0], vec![cell, NONE]);
        let Copy { code, factors, .. } = encoded.rows().next().unwrap().next().unwrap();
        let mut block = layout.empty_block();
        layout.put(&mut block, 0, code, factors, 7);
        let (mut table, mut hits) = (Table::default(), Vec::<Hit>::new());
        let mut shifted = query.to_vec();
        shift(&mut shifted, &model.center);
        model.table(&shifted, &mut table, &mut Vec::new());
        let apart = distance(Metric::L2, query, &centroid(model, cell));
        let base = match metric {
            Metric::L2 => apart,
            Metric::Cosine => apart / 2.0,
            Metric::InnerProduct => {
                let mut plain = vec![0.0; DIM];
                model.router.centroid(cell, &mut plain);
                distance(metric, query, &model.center) + distance(metric, &shifted, &plain) - 2.0
            }
        };
        let Table { bytes, bias, slope, .. } = &table;
        let (bias, slope, limit) = (*bias, *slope, f32::INFINITY);
        let scan =
            Scan { table: bytes, block_bytes: layout.block_bytes(), base, bias, slope, limit };
        match layout.kind() {
            CodeKind::Pq8 => isa.scan8(&block, &scan, Ahead::default(), &mut hits),
            _ => isa.scan4(&block, &scan, Ahead::default(), &mut hits),
        }
        assert_eq!(hits.len(), 1);
        [hits[0].estimate, factors.scale * slope * model.code_len() as f32 / 2.0]
    }

    #[test]
    fn an_estimate_is_right_for_a_query_that_lies_where_the_row_does() {
        for (code, metric) in KINDS.into_iter().flat_map(|code| METRICS.map(|m| (code, m))) {
            let model = model(code, metric);
            for seed in 0..40 {
                let row = unit(random(100 + seed, DIM));
                for cell in 0..8 {
                    let [found, rounding] = estimate(&model, metric, &row, &row, cell);
                    let error = (found + constant(metric) - distance(metric, &row, &row)).abs();
                    assert!(error < rounding + 1e-3, "{code:?} {metric:?}: {error}");
                }
            }
        }
    }

    #[test]
    fn estimates_of_other_rows_are_near_and_lean_to_no_side() {
        for (code, metric) in KINDS.into_iter().flat_map(|code| METRICS.map(|m| (code, m))) {
            let model = model(code, metric);
            let (mut sum, mut squares, mut n) = (0.0, 0.0, 0.0);
            for seed in 0..300 {
                let (query, row) = (unit(random(seed, DIM)), unit(random(1_000 + seed, DIM)));
                let cell = model.assign(Isa::detect(), &row)[0];
                let [found, _] = estimate(&model, metric, &query, &row, cell);
                // What is estimated is `<q - c, r>`.
                let centroid = centroid(&model, cell);
                let lengths =
                    distance(Metric::L2, &query, &centroid) * distance(Metric::L2, &row, &centroid);
                let times = if metric == Metric::L2 { 2.0 } else { 1.0 };
                let error = found + constant(metric) - distance(metric, &query, &row);
                let error = f64::from(error / (times * lengths.sqrt()));
                (sum, squares, n) = (sum + error, squares + error * error, n + 1.0);
            }
            let (mean, spread) = (sum / n, f64::sqrt(squares / n));
            assert!(spread < 0.15, "{code:?} {metric:?}: {spread}");
            assert!(mean.abs() < 4.0 * spread / f64::sqrt(n), "{code:?} {metric:?}: {mean}");
        }
    }

    #[test]
    fn copies_of_rows_are_told_apart() {
        let model = model(CodeKind::Pq4, Metric::L2);
        let rows = random(5, 3 * DIM);
        let cells = vec![1, 4, 2, NONE, 0, 7];
        let encoded = model.encode(&rows, &[1.0; 3], cells);
        assert_eq!(encoded.cells().collect::<Vec<_>>(), [(1, 4), (2, NONE), (0, 7)]);
        let of_rows: Vec<Vec<u32>> =
            encoded.rows().map(|copies| copies.map(|copy| copy.cell).collect()).collect();
        assert_eq!(of_rows, [vec![1, 4], vec![2], vec![0, 7]]);
        let alone = model.encode(&rows[2 * DIM..], &[1.0], vec![7, NONE]);
        let alone = alone.rows().next().unwrap().next().unwrap();
        let last = encoded.rows().last().unwrap().last().unwrap();
        assert_eq!((last.code, last.factors), (alone.code, alone.factors));
    }
}
