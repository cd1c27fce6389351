//! A trained model: routing, codes, and the recall settings measured with them.

use crate::kernel::Isa;
use crate::options::Metric;
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
}

/// One copy of a row.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Copy<'a> {
    pub(crate) cell: u32,
    pub(crate) code: &'a [u8],
    pub(crate) factors: Factors,
}

impl Encoded {
    /// The first and the second cell of each row, [`NONE`] without.
    pub(crate) fn cells(&self) -> impl Iterator<Item = (u32, u32)> {
        let rows = self.cells.chunks_exact(self.copies.max(1));
        rows.map(|cells| match cells {
            [first, second] => (*first, *second),
            [first, ..] => (*first, NONE),
            [] => (NONE, NONE),
        })
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
        dim: usize,
        codebook: Vec<f32>,
        lists: Vec<ListRouting>,
    ) -> Option<Self> {
        let router = Router::new(dim, record.norm_weight, lists)?;
        let (m, dsub) = (record.m as usize, record.dsub as usize);
        let (pq, rotation) = match record.code {
            CodeKind::Flat => (None, None),
            CodeKind::Pq4 => (Some(Pq::from_codebook(dim, m, 4, dsub, codebook)?), None),
            CodeKind::Pq8 => (Some(Pq::from_codebook(dim, m, 8, dsub, codebook)?), None),
            CodeKind::RaBitQ => {
                let rotation = Rotation::from_signs(dim, codebook)?;
                let pq = rotation.quantizer();
                ((pq.m, pq.dsub) == (m, dsub)).then_some((Some(pq), Some(rotation)))?
            }
        };
        let layout = BlockLayout::new(record.code, m, dim);
        let cells = router.cells() == record.cells as usize;
        cells.then_some(Self { record, metric, router, pq, rotation, layout })
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

    /// Fills the table of a query; `None` if the codes are the vectors themselves.
    pub(crate) fn table(&self, query: &[f32], table: &mut Table, rotated: &mut Vec<f32>) {
        let Some(pq) = &self.pq else { return };
        let s = if self.metric == Metric::L2 { -2.0 } else { -1.0 };
        match &self.rotation {
            Some(rotation) => {
                rotation.apply(query, rotated);
                table.build(pq, rotated, s);
            }
            None => table.build(pq, query, s),
        }
    }

    /// The cells of vectors as searched, in parallel: `copies` for each.
    pub(crate) fn assign(&self, isa: Isa, searched: &[f32]) -> Vec<u32> {
        if !self.record.spilled {
            return self.router.assign(isa, searched);
        }
        let pairs = self.router.assign_twice(isa, searched);
        pairs.into_iter().flat_map(|(first, second)| [first, second.unwrap_or(NONE)]).collect()
    }

    /// Copies of a row.
    pub(crate) fn copies(&self) -> usize {
        if self.record.spilled { 2 } else { 1 }
    }

    /// Codes of rows whose cells are known, `copies` of each, in parallel. `vectors` are as inserted,
    /// `scales` bring them to what is searched.
    pub(crate) fn encode(&self, vectors: &[f32], scales: &[f32], cells: Vec<u32>) -> Encoded {
        let (copies, code_len) = (self.copies(), self.code_len());
        let mut codes = vec![0; cells.len() * code_len];
        let dim = self.router.dim();
        let rows = vectors.par_chunks_exact(dim).zip(scales).zip(cells.par_chunks_exact(copies));
        let rows = rows.zip(codes.par_chunks_exact_mut(copies * code_len)).with_min_len(64);
        let factors = rows.map_init(Work::default, |work, (((vector, scale), cells), codes)| {
            let copies = cells.iter().zip(codes.chunks_exact_mut(code_len));
            let one = |(cell, code): (&u32, &mut [u8])| match *cell {
                NONE => Factors::default(),
                cell => self.encode_one(vector, *scale, cell, work, code),
            };
            copies.map(one).collect::<Vec<Factors>>()
        });
        let factors = factors.flatten_iter().collect();
        Encoded { generation: self.generation(), copies, cells, codes, factors }
    }

    /// SPEC.md, section 5.
    fn encode_one(
        &self,
        vector: &[f32],
        scale: f32,
        cell: u32,
        work: &mut Work,
        code: &mut [u8],
    ) -> Factors {
        let Some(pq) = &self.pq else {
            for (out, x) in code.chunks_exact_mut(4).zip(vector) {
                out.copy_from_slice(&x.to_le_bytes());
            }
            return Factors { add: scale, scale: 1.0 };
        };
        let Work { centroid, residual, rotated, turned, decoded } = work;
        centroid.resize(vector.len(), 0.0);
        residual.resize(vector.len(), 0.0);
        self.router.centroid(cell, centroid);
        for ((r, x), c) in residual.iter_mut().zip(vector).zip(&*centroid) {
            *r = x * scale - c;
        }
        let isa = pq.isa();
        let (length, inner) = (isa.dot(residual, residual), isa.dot(residual, centroid));
        let (residual, centroid) = match &self.rotation {
            Some(rotation) => {
                rotation.apply(residual, rotated);
                rotation.apply(centroid, turned);
                (rotated, turned)
            }
            None => (residual, centroid),
        };
        pq.encode(residual, code);
        decoded.resize(residual.len(), 0.0);
        pq.decode(code, decoded);
        let along = isa.dot(residual, decoded);
        let stretch = if along > 0.0 { length / along } else { 0.0 };
        let cross = stretch * isa.dot(centroid, decoded);
        let add = match self.metric {
            Metric::L2 => length + 2.0 * cross,
            Metric::Cosine => length / 2.0 + cross,
            Metric::InnerProduct => cross - inner,
        };
        Factors { add, scale: stretch }
    }
}

/// Room for encoding.
#[derive(Debug, Default)]
struct Work {
    centroid: Vec<f32>,
    residual: Vec<f32>,
    rotated: Vec<f32>,
    turned: Vec<f32>,
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
