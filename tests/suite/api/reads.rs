//! What a search reads, and the bound on it.

use cellardb::{Error, Kind, Metric};
use cellardb_campaign::data::{self, Rng};
use cellardb_campaign::{METRICS, SHAPES};

#[test]
fn no_search_reads_more_than_it_may() {
    for (shape, metric) in SHAPES.into_iter().flat_map(|s| METRICS.map(|m| (s, m))) {
        let (_disk, index) = super::fresh(shape, metric);
        let dim = index.dim();
        let rows = data::vectors(&mut Rng::new(3), 700, dim, metric);
        index.insert_many(&rows[..600 * dim]).unwrap();
        index.train().unwrap();
        // Some cells have a second frame, and some rows are in no list.
        index.insert_many(&rows[600 * dim..650 * dim]).unwrap();
        index.flush().unwrap();
        index.insert_many(&rows[650 * dim..]).unwrap();
        for query in rows.chunks(dim).step_by(90) {
            let free = index.query(query).probes(50).rerank(200).explain().unwrap();
            assert!(free.reads > 20 && free.bytes >= free.reads * 4 * dim, "{free:?}");
            if shape.kind == Kind::Exact {
                assert_eq!(free.reads, 700, "an index without cells reads every row");
                continue;
            }
            for most in [2, 3, 7, 20, 60] {
                let search = || index.query(query).k(5).probes(50).rerank(200).max_reads(most);
                let bound = search().explain().unwrap();
                let (reads, hits) = (bound.reads, bound.hits.len());
                assert!(reads <= most && bound.bytes <= free.bytes, "{reads} of {most}");
                assert!(bound.cells + bound.reranked <= reads && hits > 0, "{bound:?}");
                let many = index.query_many(query).k(5).probes(50).rerank(200).max_reads(most);
                assert_eq!(many.run().unwrap(), [bound.hits]);
                let recall = index.query(query).recall(0.99).max_reads(most).explain().unwrap();
                assert!(recall.reads <= most);
            }
            for rerank in [0, 1, usize::MAX] {
                let search = index.query(query).k(5).probes(50).rerank(rerank).max_reads(60);
                let found = search.explain().unwrap();
                assert!(found.reads <= 60 && !found.hits.is_empty(), "{rerank}: {found:?}");
            }
            let enough = index.query(query).probes(50).rerank(200).max_reads(10_000);
            assert_eq!(enough.explain().unwrap(), free, "a bound out of reach changes nothing");
        }
    }
}

#[test]
fn a_bound_that_no_search_can_keep_is_refused() {
    let (_disk, index) = super::fresh(SHAPES[1], Metric::L2);
    let query = vec![0.5; index.dim()];
    let refused = |search: cellardb::Query<'_>| match search.run() {
        Err(Error::Invalid { name, .. }) => assert_eq!(name, "max_reads"),
        other => panic!("{other:?}"),
    };
    refused(index.query(&query).max_reads(0));
    refused(index.query(&query).max_reads(1));
    refused(index.query(&query).exact().max_reads(100));
    refused(index.query(&query).recall(1.0).max_reads(100));
}
