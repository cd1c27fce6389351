//! Exact search: every live row against every query; and the rows that have no code yet.

use super::Inner;
use super::build::STEP;
use super::search::{Answer, Query};
use super::snapshot::Snapshot;
use super::topk::{Near, TopK};
use crate::error::Result;
use crate::storage::row_scan::RowBatch;

/// Answers a few queries in one pass over the rows.
pub(crate) fn answer(snapshot: &Snapshot, queries: &[Query<'_>], k: usize) -> Result<Vec<Answer>> {
    let live = usize::try_from(snapshot.state.live).unwrap_or(usize::MAX);
    let mut tops: Vec<TopK> = queries.iter().map(|_| TopK::new(k.min(live))).collect();
    let mut rows = 0;
    if k > 0 {
        snapshot.rows.each(|id, row| {
            if snapshot.dead.contains(id) {
                return Ok(());
            }
            for (query, top) in queries.iter().zip(&mut tops) {
                top.push(Near { distance: query.distance_to(&row), probe: 0, id });
            }
            rows += 1;
            Ok(())
        })?;
    }
    let answer = |top: TopK| Answer { hits: top.into_hits(), codes: rows, ..Answer::default() };
    Ok(tops.into_iter().map(answer).collect())
}

impl Inner {
    /// Compares a query with the plain rows, read in large pieces; returns how many are alive.
    pub(crate) fn compare_plain(
        &self,
        snapshot: &Snapshot,
        query: &Query<'_>,
        top: &mut TopK,
    ) -> Result<usize> {
        let (mut rows, plain) = (0, &snapshot.plain);
        if plain.is_empty() {
            return Ok(0);
        }
        let mut scan = snapshot.rows.scan(&*self.options.disk, plain.start, plain.end);
        let mut batch = RowBatch::default();
        while scan.next(STEP, &mut batch)? {
            for (row, vector) in batch.rows.iter().zip(batch.vectors.chunks_exact(self.dim)) {
                if !snapshot.dead.contains(row.id) {
                    let distance = query.distance(vector, row.scale);
                    top.push(Near { distance, probe: 0, id: row.id });
                    rows += 1;
                }
            }
            batch.clear();
        }
        Ok(rows)
    }
}
