//! Exact search: every live row against every query, a segment at a time.

use super::search::{Answer, Query};
use super::snapshot::Snapshot;
use super::topk::{Near, TopK};
use crate::error::Result;

/// Answers a few queries in one pass over the rows.
pub(crate) fn answer(snapshot: &Snapshot, queries: &[Query<'_>], k: usize) -> Result<Vec<Answer>> {
    let live = usize::try_from(snapshot.state.live).unwrap_or(usize::MAX);
    let mut tops: Vec<TopK> = queries.iter().map(|_| TopK::new(k.min(live))).collect();
    let mut rows = 0;
    if k > 0 {
        for segment in snapshot.rows.segments() {
            snapshot.rows.each(segment, (0, u64::MAX), |id, row| {
                if snapshot.dead.contains(id) {
                    return Ok(());
                }
                let (vector, scale) = (row.vector(), row.scale());
                for (query, top) in queries.iter().zip(&mut tops) {
                    top.push(Near { distance: query.distance(&vector, scale), id });
                }
                rows += 1;
                Ok(())
            })?;
        }
    }
    let answer = |top: TopK| Answer { hits: top.into_hits(), codes: rows, ..Answer::default() };
    Ok(tops.into_iter().map(answer).collect())
}
