//! Searches on several threads.

use cellardb::{Index, Kind, Maintenance, Metric};
use cellardb_campaign::data::{self, Rng};

const DIM: usize = 4;

#[test]
fn a_search_finds_the_same_on_any_number_of_threads() {
    let rows = data::vectors(&mut Rng::new(1), 40_000, DIM, Metric::L2);
    let queries = data::vectors(&mut Rng::new(2), 30, DIM, Metric::L2);
    for (kind, bits) in [(Kind::IvfFlat, 0), (Kind::IvfPq, 4)] {
        let root = tempfile::tempdir().unwrap();
        let options = Index::options(DIM).kind(kind).pq_bits(bits).threads(3);
        let options = options.maintenance(Maintenance::Manual);
        let index = options.create(root.path().join("index")).unwrap();
        index.insert_many(&rows).unwrap();
        index.train().unwrap();
        assert!(index.stats().cells > 600);
        index.remove_many(&(0..40_000).step_by(3).collect::<Vec<_>>()).unwrap();
        // Rows in a compacted segment, and rows behind it.
        index.compact().unwrap();
        index.insert_many(&rows[..100 * DIM]).unwrap();
        for query in queries[..3 * DIM].chunks(DIM) {
            // So many that the farthest cells have a part in them.
            let search = || index.query(query).k(15_000);
            let exact = search().exact().explain().unwrap();
            let cells = search().probes(600).explain().unwrap();
            assert!(cells.cells > 512 && exact.codes == index.len());
            for threads in [0, 2, 3] {
                assert_eq!(search().exact().threads(threads).explain().unwrap(), exact);
                let shared = search().probes(600).threads(threads).explain().unwrap();
                assert_eq!(shared, cells, "{kind:?}, {threads} threads");
            }
        }
        // A thread that waits for its share of one search may begin another.
        std::thread::scope(|scope| {
            let searches = || {
                for query in queries.chunks(DIM).cycle().take(300) {
                    let found = index.query(query).k(5).probes(600).threads(2).run().unwrap();
                    assert_eq!(found.len(), 5);
                }
            };
            (0..4).for_each(|_| drop(scope.spawn(searches)));
        });
    }
}
