//! A trained model: routing, codes, and the recall settings measured with them.

use crate::kernel::Isa;
use crate::options::Metric;
use crate::quantizer::pq::Pq;
use crate::quantizer::router::{ListRouting, Router};
use cellardb_format::{BlockLayout, CodeKind, ModelRecord, RoutingRecord};

/// Everything that turns vectors into cells and codes.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) record: ModelRecord,
    pub(crate) metric: Metric,
    pub(crate) router: Router,
    /// Absent when the codes are the vectors themselves.
    pub(crate) pq: Option<Pq>,
    pub(crate) layout: BlockLayout,
}

/// Rows brought into cells and codes.
#[derive(Debug, Default, Clone)]
pub(crate) struct Encoded {
    /// The generation of the model that did it; 0 when there was none.
    pub(crate) generation: u32,
    pub(crate) cells: Vec<u32>,
    /// `code_len` bytes a row.
    pub(crate) codes: Vec<u8>,
    pub(crate) factors: Vec<f32>,
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
        let bits = match record.code {
            CodeKind::Flat => None,
            CodeKind::Pq4 => Some(4),
            CodeKind::Pq8 => Some(8),
        };
        let pq = match bits {
            Some(bits) => Some(pq(&record, dim, bits, codebook)?),
            None => None,
        };
        let layout = BlockLayout::new(record.code, record.m as usize, dim);
        let cells = router.cells() == record.cells as usize;
        cells.then_some(Self { record, metric, router, pq, layout })
    }

    pub(crate) fn generation(&self) -> u32 {
        self.record.generation
    }

    /// Bytes of the code of one row.
    pub(crate) fn code_len(&self) -> usize {
        self.layout.code_len()
    }

    /// Finds the nearest cells of vectors as searched, in parallel.
    pub(crate) fn assign(&self, isa: Isa, searched: &[f32]) -> Vec<u32> {
        self.router.assign(isa, searched)
    }

    /// Encodes one row in a cell: the code goes to `code`, the factor is returned. `vector` is as
    /// inserted, `scale` brings it to what is searched.
    pub(crate) fn encode(
        &self,
        vector: &[f32],
        scale: f32,
        cell: u32,
        work: &mut Work,
        code: &mut [u8],
    ) -> f32 {
        let Some(pq) = &self.pq else {
            for (out, x) in code.chunks_exact_mut(4).zip(vector) {
                out.copy_from_slice(&x.to_le_bytes());
            }
            return scale;
        };
        work.centroid.resize(vector.len(), 0.0);
        work.residual.resize(vector.len(), 0.0);
        self.router.centroid(cell, &mut work.centroid);
        for ((r, x), c) in work.residual.iter_mut().zip(vector).zip(&work.centroid) {
            *r = x * scale - c;
        }
        pq.encode(&work.residual, code);
        if self.metric == Metric::InnerProduct {
            return 0.0;
        }
        pq.decode(code, &mut work.residual);
        let pairs = work.residual.iter().zip(&work.centroid);
        let factor: f32 = pairs.map(|(r, c)| r * (r + 2.0 * c)).sum();
        if self.metric == Metric::Cosine { factor / 2.0 } else { factor }
    }
}

/// Room for [`Model::encode`].
#[derive(Debug, Default)]
pub(crate) struct Work {
    centroid: Vec<f32>,
    residual: Vec<f32>,
}

fn pq(record: &ModelRecord, dim: usize, bits: u32, codebook: Vec<f32>) -> Option<Pq> {
    Pq::from_codebook(dim, record.m as usize, bits, record.dsub as usize, codebook)
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
