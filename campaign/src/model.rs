//! A naive index in memory: what the real one must equal.

use crate::data::{self, Rng};
use cellardb::{Index, Metric};
use std::collections::BTreeMap;
use std::ops::Range;

/// The rows by id, and the next id to give out.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    pub dim: usize,
    pub metric: Metric,
    pub rows: BTreeMap<usize, Vec<f32>>,
    pub next: usize,
}

impl Model {
    pub fn new(dim: usize, metric: Metric) -> Self {
        Self { dim, metric, rows: BTreeMap::new(), next: 0 }
    }

    pub fn insert(&mut self, rows: &[f32]) -> Range<usize> {
        let first = self.next;
        for row in rows.chunks(self.dim) {
            self.rows.insert(self.next, row.to_vec());
            self.next += 1;
        }
        first..self.next
    }

    pub fn remove(&mut self, ids: &[usize]) -> usize {
        ids.iter().filter(|id| self.rows.remove(id).is_some()).count()
    }

    pub fn ids(&self) -> Vec<usize> {
        self.rows.keys().copied().collect()
    }

    pub fn distance(&self, a: &[f32], b: &[f32]) -> f64 {
        let dot = |a: &[f32], b: &[f32]| -> f64 {
            a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
        };
        match self.metric {
            Metric::L2 => {
                a.iter().zip(b).map(|(x, y)| (f64::from(*x) - f64::from(*y)).powi(2)).sum()
            }
            Metric::InnerProduct => 1.0 - dot(a, b),
            _ => 1.0 - dot(a, b) / (dot(a, a) * dot(b, b)).sqrt(),
        }
    }

    /// The nearest `k` rows by distance, then id.
    pub fn search(&self, query: &[f32], k: usize) -> Vec<(usize, f32)> {
        let mut all: Vec<(usize, f64)> =
            self.rows.iter().map(|(id, row)| (*id, self.distance(query, row))).collect();
        all.sort_by(|a, b| a.1.total_cmp(&b.1).then(a.0.cmp(&b.0)));
        all.truncate(k);
        all.into_iter().map(|(id, d)| (id, d as f32)).collect()
    }

    /// How the index differs from this model, if it does: ids, rows bit for bit, removed rows, and
    /// exact search to the last id.
    pub fn differs(&self, index: &Index, seed: u64) -> Result<(), String> {
        let ids = index.ids();
        if ids != self.ids() {
            return Err(format!("ids are {ids:?}, should be {:?}", self.ids()));
        }
        if index.len() != self.rows.len() || index.is_empty() != self.rows.is_empty() {
            return Err(format!("len is {}, should be {}", index.len(), self.rows.len()));
        }
        for id in 0..self.next + 2 {
            let found = index.get(id).map_err(|e| format!("get {id}: {e}"))?;
            let bits = |v: &Vec<f32>| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            if found.as_ref().map(bits) != self.rows.get(&id).map(bits) {
                return Err(format!("row {id} is {found:?}, should be {:?}", self.rows.get(&id)));
            }
        }
        let mut rng = Rng::new(seed);
        for k in [1, 5, self.rows.len() + 3] {
            let query = data::vector(&mut rng, self.dim, self.metric);
            let found = index.query(&query).k(k).exact().run();
            let found = found.map_err(|e| format!("exact search: {e}"))?;
            if found != self.search(&query, k) {
                let right = self.search(&query, k);
                return Err(format!("exact search of {k} found {found:?}, should be {right:?}"));
            }
            self.plausible(&query, k, &index.search(&query, k).map_err(|e| e.to_string())?)?;
        }
        Ok(())
    }

    /// Whether an approximate answer could be right: as many hits as there are, each a live row at
    /// its true distance, in order, none twice.
    pub fn plausible(&self, query: &[f32], k: usize, hits: &[(usize, f32)]) -> Result<(), String> {
        if hits.len() != k.min(self.rows.len()) {
            let live = self.rows.len();
            return Err(format!("search of {k} among {live} rows has {} hits", hits.len()));
        }
        for (id, d) in hits {
            let row = self.rows.get(id).ok_or_else(|| format!("hit {id} is not a live row"))?;
            let right = self.distance(query, row) as f32;
            if *d != right {
                return Err(format!("hit {id} at distance {d}, should be {right}"));
            }
        }
        for pair in hits.windows(2) {
            if (pair[0].1, pair[0].0) >= (pair[1].1, pair[1].0) {
                return Err(format!("hits {:?} and {:?} are out of order", pair[0], pair[1]));
            }
        }
        Ok(())
    }

    /// Of the `k` nearest rows, the share that an answer reaches; a row as near as the last counts.
    pub fn recall(&self, query: &[f32], k: usize, hits: &[(usize, f32)]) -> f64 {
        let right = self.search(query, k);
        let Some(last) = right.last() else { return 1.0 };
        hits.iter().filter(|hit| hit.1 <= last.1).count() as f64 / right.len() as f64
    }
}
