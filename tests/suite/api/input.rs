//! What is asked of an index that is unusual, and still has a right answer.

use super::*;

#[test]
fn products_that_overflow_on_the_way_give_the_right_answer() {
    for (metric, expected) in [
        (Metric::Cosine, [2.0, 1.0, 0.0]),
        (Metric::InnerProduct, [f32::INFINITY, 1.0, f32::NEG_INFINITY]),
    ] {
        let (_disk, index) = fresh(SHAPES[0], metric);
        index.insert(&[3e38; DIM]).unwrap();
        index.insert(&[-3e38; DIM]).unwrap();
        let mut across = [3e38; DIM];
        across.iter_mut().step_by(2).for_each(|x| *x = -3e38);
        index.insert(&across).unwrap();
        let mut hits = index.search(&[-3e38; DIM], 3).unwrap();
        hits.sort_by_key(|hit| hit.0);
        for ((_, distance), expected) in hits.iter().zip([expected[0], expected[2], expected[1]]) {
            assert!(
                *distance == expected || (distance - expected).abs() < 1e-5,
                "{metric:?} {hits:?}"
            );
        }
    }
}

#[test]
fn another_metric_than_the_stored_one_is_refused_and_none_takes_it() {
    let (_root, path) = home();
    drop(Index::options(DIM).metric(Metric::Cosine).create(&path).unwrap());
    let refused = Index::options(DIM).metric(Metric::L2).open_or_create(&path);
    assert!(matches!(refused, Err(Error::Invalid { name: "metric", .. })), "{refused:?}");
    let index = Index::options(DIM).open_or_create(&path).unwrap();
    assert_eq!(index.stats().metric, Metric::Cosine);
}

#[test]
fn an_index_may_lie_in_directories_that_are_not_there_yet() {
    let (_root, path) = home();
    let path = path.join("a/b/c");
    drop(Index::options(DIM).create(&path).unwrap());
    assert!(Index::open(&path).unwrap().is_empty());
}

/// Rows of numbers that are close to normal.
fn normal(seed: u64, rows: usize) -> Vec<f32> {
    let mut rng = Rng::new(seed);
    let mut sum = || (0..12).map(|_| rng.unit()).sum::<f32>() - 6.0;
    (0..rows * DIM).map(|_| sum()).collect()
}

/// A trained index of each kind and metric, with `rows` rows of normal numbers.
fn trained(rows: usize) -> impl Iterator<Item = Index> {
    let pairs = SHAPES.into_iter().flat_map(|shape| METRICS.map(|metric| (shape, metric)));
    pairs.map(move |(shape, metric)| {
        let (_disk, index) = fresh(shape, metric);
        index.insert_many(&normal(1, rows)).unwrap();
        index.train().unwrap();
        assert_eq!(index.stats().lists > 0, shape.kind != Kind::Exact);
        index
    })
}

#[test]
fn k_rows_are_found_while_k_live_however_few_the_cells_hold() {
    let query = [0.1, 0.2, -0.3, 0.4];
    for index in trained(600) {
        index.remove_many(&(0..580).collect::<Vec<_>>()).unwrap();
        let all = index.query(&query).k(50).exact().run().unwrap();
        assert_eq!(all.len(), 20);
        for search in [index.query(&query), index.query(&query).probes(1).rerank(1)] {
            assert_eq!(search.k(50).run().unwrap(), all);
        }
        let few = index.query(&query).probes(1).k(5).explain().unwrap();
        assert_eq!(few.hits.len(), 5);
        let many = index.query_many(&[query, query].concat()).probes(1).k(5).run().unwrap();
        assert!(many.iter().all(|hits| hits.len() == 5));
    }
}

#[test]
fn distances_that_overflow_come_last_and_are_not_lost() {
    for index in trained(300) {
        let vast: Vec<f32> = normal(2, 8).iter().map(|x| x * 1e20).collect();
        index.insert_many(&vast).unwrap();
        for query in [[0.1, 0.2, -0.3, 0.4], [1e20, 2e20, -1e20, 1e20]] {
            let exact = index.query(&query).k(400).exact().run().unwrap();
            assert_eq!(exact.len(), 308);
            assert!(exact.is_sorted_by(|a, b| a.1.total_cmp(&b.1).is_le()), "{exact:?}");
            assert_eq!(index.search(&query, 400).unwrap(), exact);
            assert_eq!(index.query_many(&query).k(400).run().unwrap(), [exact]);
        }
    }
}

#[test]
fn training_passes_over_rows_whose_lengths_overflow_and_they_are_still_found() {
    for shape in SHAPES {
        let (_disk, index) = fresh(shape, Metric::L2);
        let vast: Vec<f32> = normal(4, 100).iter().map(|x| x * 1e25).collect();
        index.insert_many(&vast).unwrap();
        let trained = index.train();
        if shape.kind != Kind::Exact {
            assert!(matches!(trained, Err(Error::Invalid { name: "training", .. })), "{trained:?}");
        }
        index.insert_many(&normal(3, 600)).unwrap();
        assert_eq!(index.search(&[0.0; DIM], 800).unwrap().len(), 700);
        index.train().unwrap();
        let hits = index.query(&[0.0; DIM]).k(700).run().unwrap();
        assert_eq!(hits, index.query(&[0.0; DIM]).k(700).exact().run().unwrap());
        let settings = index.stats().settings;
        assert!(settings.iter().all(|s| s.measured >= s.recall), "{settings:?}");
        assert_eq!(settings.is_empty(), shape.kind == Kind::Exact);
    }
}

#[test]
fn one_row_and_two_can_be_trained_on() {
    for shape in SHAPES {
        for n in [1, 2] {
            let (_disk, index) = fresh(shape, Metric::L2);
            let rows = normal(5, n);
            index.insert_many(&rows).unwrap();
            index.train().unwrap();
            assert_eq!(index.search(&rows[..DIM], 5).unwrap().len(), n);
            assert_eq!(index.search(&rows[..DIM], 1).unwrap()[0].0, 0);
        }
    }
}

#[test]
fn a_query_that_cannot_be_compared_is_named_by_its_place() {
    let index = trained(100).next().unwrap();
    let mut queries = normal(5, 40);
    queries[33 * DIM + 1] = f32::NAN;
    let refused = index.query_many(&queries).run();
    assert!(matches!(refused, Err(Error::Vector { position: 33, .. })), "{refused:?}");
    let refused = index.search_many(&queries[1..], 1);
    assert!(matches!(refused, Err(Error::Dimension { found: 159, .. })), "{refused:?}");
}

#[test]
fn an_interval_of_zero_is_refused() {
    let disk = SimDisk::new();
    let options = SHAPES[1].options(DIM, Metric::L2).disk(Arc::new(disk));
    let options = options.durability(Durability::Interval(Duration::ZERO));
    let refused = options.create(HOME).unwrap_err();
    assert!(matches!(refused, Error::Invalid { name: "durability", .. }), "{refused}");
    assert!(refused.to_string().contains("Durability::Commit"), "{refused}");
}
