//! Exact search: every live row against every query; and the rows that have no code yet.

use super::Inner;
use super::build::STEP;
use super::distance::Query;
use super::search::Answer;
use super::snapshot::Snapshot;
use super::topk::{Ranked, TopK};
use crate::error::Result;
use crate::planted::{self, Bug};
use crate::storage::row_scan::RowBatch;
use rayon::prelude::*;

/// Answers a few queries in one pass over the rows, of which each thread takes a part.
pub(crate) fn answer(
    snapshot: &Snapshot,
    queries: &[Query<'_>],
    k: usize,
    threads: usize,
) -> Result<Vec<Answer>> {
    let live = usize::try_from(snapshot.state.live).unwrap_or(usize::MAX);
    let nearest = || -> Vec<TopK> { queries.iter().map(|_| TopK::new(k.min(live))).collect() };
    let part = |part: usize| -> Result<(usize, Vec<TopK>)> {
        let (mut rows, mut tops) = (0, nearest());
        snapshot.rows.each_of(part, threads, |id, row| {
            if snapshot.dead.contains(id) && !planted::on(Bug::RemovedFound) {
                return Ok(());
            }
            for (query, top) in queries.iter().zip(&mut tops) {
                top.push(Ranked { key: query.key_of(&row), id });
            }
            rows += 1;
            Ok(())
        })?;
        Ok((rows, tops))
    };
    let parts: Vec<(usize, Vec<TopK>)> = match (k, threads) {
        (0, _) => Vec::new(),
        (_, 1) => vec![part(0)?],
        _ => (0..threads).into_par_iter().map(part).collect::<Result<_>>()?,
    };
    let rows = parts.iter().map(|(rows, _)| rows).sum();
    let mut tops = nearest();
    for (_, found) in parts {
        tops.iter_mut().zip(found).for_each(|(top, found)| top.merge(found));
    }
    let answer = |(query, top): (&Query<'_>, TopK)| {
        let bytes = rows * snapshot.rows.shape().layout.stride();
        let hits = query.hits(top);
        Answer { hits, exact: true, codes: rows, reads: rows, bytes, ..Answer::default() }
    };
    Ok(queries.iter().zip(tops).map(answer).collect())
}

impl Inner {
    /// Compares a query with the rows that are compared in full whatever the cells hold, read in large
    /// pieces; returns how many of them live.
    pub(crate) fn compare_in_full(
        &self,
        snapshot: &Snapshot,
        query: &Query<'_>,
        top: &mut TopK,
    ) -> Result<usize> {
        let mut rows = 0;
        for ids in snapshot.in_full().into_iter().filter(|ids| !ids.is_empty()) {
            let mut scan = snapshot.rows.scan(&*self.options.disk, ids.start, ids.end);
            let mut batch = RowBatch::default();
            while scan.next(STEP, &mut batch)? {
                for (row, vector) in batch.rows.iter().zip(batch.vectors.chunks_exact(self.dim)) {
                    if !snapshot.dead.contains(row.id) {
                        top.push(Ranked { key: query.key(vector, row.scale), id: row.id });
                        rows += 1;
                    }
                }
                batch.clear();
            }
        }
        Ok(rows)
    }
}

#[cfg(test)]
mod tests {
    use crate::index::plan::{Effort, Most, Plan};
    use crate::index::tail::Tail;
    use crate::{Index, Kind, Maintenance};

    #[test]
    fn a_search_whose_plain_rows_were_compacted_away_meanwhile_begins_anew() {
        let dir = tempfile::tempdir().unwrap();
        let options = Index::options(2).kind(Kind::IvfFlat).nlist(2).train_at(64).threads(1);
        let options = options.maintenance(Maintenance::Manual);
        let index = options.create(dir.path().join("index")).unwrap();
        let rows = |ids: std::ops::Range<usize>| -> Vec<f32> {
            ids.flat_map(|id| [id as f32, (id % 7) as f32]).collect()
        };
        index.insert_many(&rows(0..100)).unwrap();
        index.train().unwrap();
        index.insert_many(&rows(100..150)).unwrap();
        let inner = &*index.inner;
        let mut old = (*inner.snapshot()).clone();
        old.plain = old.state.watermark..old.state.next_id;
        old.tail = Tail::new(old.indexed.as_ref().unwrap().lists.len());
        let plan =
            Plan::Probe(Effort { probes: 100, rerank: 10, stop: 0.0, slack: 0.0, most: Most::ANY });
        let query = rows(130..131);
        let before = inner.answer(&old, &query, (3, 1), plan).unwrap();
        assert_eq!((before.hits[0], before.codes), ((130, 0.0), 150));
        index.remove(131).unwrap();
        index.compact().unwrap();
        let after = inner.answer(&old, &query, (3, 1), plan).unwrap();
        assert_eq!(after.hits, index.query(&query).k(3).exact().run().unwrap());
    }
}
