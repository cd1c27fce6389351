//! What recall is measured on, and that it is what searches find.

use cellardb::{Index, Kind, Maintenance, MeasuredOn, Metric, Options};
use cellardb_campaign::data::Rng;
use cellardb_campaign::patience::until;

const DIM: usize = 24;

/// Rows around 60 places, `apart` from each other.
fn rows(seed: u64, n: usize, at: f32) -> Vec<f32> {
    let (mut places, mut rng) = (Rng::new(7), Rng::new(seed));
    let places: Vec<f32> = (0..60 * DIM).map(|_| 2.0 * places.unit() - 1.0).collect();
    let row = |rng: &mut Rng| -> Vec<f32> {
        let place = rng.below(60) * DIM;
        let of = &places[place..place + DIM];
        of.iter().map(|x| at + x + 0.6 * (rng.unit() + rng.unit() - 1.0)).collect()
    };
    (0..n).flat_map(|_| row(&mut rng)).collect()
}

fn options(metric: Metric, bits: u8) -> Options {
    let kind = if bits == 0 { Kind::IvfFlat } else { Kind::IvfPq };
    let options = Index::options(DIM).metric(metric).kind(kind).train_at(2_000).threads(2);
    if bits == 0 { options } else { options.pq_bits(bits) }
}

/// The mean share of the ten nearest, ties included.
fn recall(index: &Index, queries: &[f32], asked: f32) -> f64 {
    recall_of(index, queries, (10, asked))
}

/// The mean share of the `k` nearest, ties included.
fn recall_of(index: &Index, queries: &[f32], (k, asked): (usize, f32)) -> f64 {
    let truth = index.query_many(queries).k(k).exact().run().unwrap();
    let found = index.query_many(queries).k(k).recall(asked).run().unwrap();
    let hits = found.iter().zip(&truth).map(|(found, truth)| {
        let last = truth[truth.len() - 1].1;
        found.iter().filter(|hit| hit.1 <= last).count().min(k)
    });
    hits.sum::<usize>() as f64 / (k * truth.len()) as f64
}

/// Hundreds of neighbours lie beyond the place of the query, in cells that ten of them never tell of.
#[test]
fn many_neighbours_are_found_as_well_as_ten() {
    let root = tempfile::tempdir().unwrap();
    for (number, (metric, bits)) in
        [(Metric::L2, 0), (Metric::L2, 4), (Metric::Cosine, 1)].into_iter().enumerate()
    {
        let options = options(metric, bits).maintenance(Maintenance::Manual);
        let index = options.create(root.path().join(number.to_string())).unwrap();
        index.insert_many(&rows(1, 12_000, 0.0)).unwrap();
        index.train().unwrap();
        let queries = rows(3, 150, 0.0);
        for k in [20, 50, 150, 300, 500] {
            let found = recall_of(&index, &queries, (k, 0.95));
            assert!(found > 0.93, "{metric:?} {bits}: {found} of {k}");
        }
        let few = index.query(&queries[..DIM]).k(50).explain().unwrap();
        assert!(!few.exact && few.codes < 6_000, "{few:?}");
    }
}

/// Queries of yesterday, or easier ones than rows, are no reason to find less.
#[test]
fn what_rows_take_is_the_least_whatever_is_asked() {
    let root = tempfile::tempdir().unwrap();
    let options = options(Metric::L2, 4).maintenance(Maintenance::Manual);
    let index = options.create(root.path().join("index")).unwrap();
    index.insert_many(&rows(1, 6_000, 0.0)).unwrap();
    index.train().unwrap();
    let before = index.stats().settings;
    // Far from all rows, where one neighbour is as good as another: nearly all are found at once.
    let easy: Vec<f32> = rows(3, 400, 0.0).iter().map(|x| 1e-3 * x).collect();
    index.calibrate(&easy).unwrap();
    let after = index.stats();
    assert_eq!(after.measured.unwrap().on, MeasuredOn::Given);
    for (rows, given) in before.iter().zip(&after.settings) {
        let less = given.probes < rows.probes || given.rerank < rows.rerank;
        assert!(given.exact || !less, "{rows:?} {given:?}");
    }
    assert!(recall(&index, &rows(5, 400, 0.0), 0.95) > 0.93);
}

#[test]
fn what_was_measured_on_given_queries_is_what_searches_with_them_find() {
    let root = tempfile::tempdir().unwrap();
    for (number, (metric, bits)) in
        [(Metric::L2, 4), (Metric::InnerProduct, 8), (Metric::Cosine, 1), (Metric::L2, 0)]
            .into_iter()
            .enumerate()
    {
        let options = options(metric, bits).maintenance(Maintenance::Manual);
        let index = options.create(root.path().join(number.to_string())).unwrap();
        index.insert_many(&rows(1, 6_000, 0.0)).unwrap();
        index.train().unwrap();
        assert_eq!(index.stats().measured.unwrap().on, MeasuredOn::Rows);
        // A part of the rows is in the tail, and some are gone.
        index.insert_many(&rows(2, 500, 0.0)).unwrap();
        index.remove_many(&(0..600).step_by(7).collect::<Vec<_>>()).unwrap();
        let queries = rows(3, 400, 0.3);
        index.calibrate(&queries).unwrap();
        let stats = index.stats();
        let measured = stats.measured.unwrap();
        assert_eq!((measured.on, measured.queries), (MeasuredOn::Given, 400));
        let mut cells = 0;
        for setting in stats.settings.iter().filter(|setting| !setting.exact) {
            let found = recall(&index, &queries, setting.recall);
            let off = (found - f64::from(setting.measured)).abs();
            assert!(off < 1e-6, "{metric:?} {bits}: {found}, {setting:?}");
            assert!(setting.measured >= setting.recall, "{setting:?}");
            let answer = index.query(&queries[..DIM]).recall(setting.recall).explain().unwrap();
            assert_eq!(answer.measured, Some(measured));
            cells += 1;
        }
        assert!(cells > 0, "{metric:?} {bits}: {:?}", stats.settings);
    }
}

#[test]
fn the_answer_to_an_inner_product_does_not_depend_on_the_length_of_the_query() {
    let root = tempfile::tempdir().unwrap();
    for (number, scale) in [1e-6_f32, 1.0, 1e6].into_iter().enumerate() {
        let options = options(Metric::InnerProduct, 4).maintenance(Maintenance::Manual);
        let index = options.create(root.path().join(number.to_string())).unwrap();
        let scaled = |v: Vec<f32>, by: f32| -> Vec<f32> { v.iter().map(|x| x * by).collect() };
        index.insert_many(&scaled(rows(1, 6_000, 0.0), scale)).unwrap();
        index.train().unwrap();
        let queries = rows(3, 100, 0.0);
        let ids = |queries: &[f32], asked: f32| -> Vec<Vec<usize>> {
            let found = index.query_many(queries).recall(asked).run().unwrap();
            found.into_iter().map(|hits| hits.into_iter().map(|hit| hit.0).collect()).collect()
        };
        assert!(index.stats().settings.iter().any(|setting| !setting.exact));
        for asked in [0.9, 0.95, 0.99] {
            let expected = ids(&queries, asked);
            // Powers of two, so that nothing is rounded elsewhere.
            for by in [2.0_f32.powi(-20), 0.125, 32.0, 2.0_f32.powi(20)] {
                assert_eq!(ids(&scaled(queries.clone(), by), asked), expected, "{scale} {by}");
            }
        }
    }
}

#[test]
fn rows_in_the_tail_of_a_cell_are_found_as_those_in_its_list() {
    let root = tempfile::tempdir().unwrap();
    for bits in [0, 4] {
        let options = options(Metric::L2, bits).maintenance(Maintenance::Manual);
        let index = options.create(root.path().join(bits.to_string())).unwrap();
        index.insert_many(&rows(1, 6_000, 0.0)).unwrap();
        index.train().unwrap();
        index.insert_many(&rows(2, 1_200, 0.0)).unwrap();
        assert_eq!(index.stats().tail, 1_200);
        let found = recall(&index, &rows(3, 500, 0.0), 0.9);
        assert!(found > 0.88, "{bits}: {found}");
    }
}

#[test]
fn recall_is_measured_on_what_is_asked_once_enough_was_and_kept_over_an_opening() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("index");
    let index = options(Metric::L2, 4).create(&path).unwrap();
    index.insert_many(&rows(1, 6_000, 0.0)).unwrap();
    index.train().unwrap();
    // The same question again and again says nothing of others.
    let one = rows(9, 1, 0.5);
    (0..1_500).for_each(|_| drop(index.search(&one, 10).unwrap()));
    assert!(index.search(&[f32::NAN; DIM], 10).is_err());
    index.maintain().unwrap();
    assert_eq!(index.stats().measured.unwrap().on, MeasuredOn::Rows);
    for query in rows(4, 1_500, 0.5).chunks(DIM) {
        index.search(query, 10).unwrap();
    }
    until("measuring on what was asked", || {
        index.stats().measured.is_some_and(|measured| measured.on == MeasuredOn::Asked)
    });
    let found = recall(&index, &rows(5, 600, 0.5), 0.95);
    assert!(found > 0.93, "{found}");
    let before = index.stats();
    index.close().unwrap();
    let again = Index::open(&path).unwrap();
    let stats = again.stats();
    assert_eq!((stats.measured, &stats.settings), (before.measured, &before.settings));
    assert!(stats.asked > 0 && again.verify().unwrap().damage.is_empty());
    again.close().unwrap();
    let silent = Options::stored().learn_queries(false).open(&path).unwrap();
    silent.search(&one, 10).unwrap();
    assert_eq!(silent.stats().asked, 0);
    silent.close().unwrap();
    // What was learnt before is gone for those who learn again.
    let learning = Index::open(&path).unwrap();
    assert_eq!(learning.stats().asked, 0);
}

#[test]
fn rows_that_are_replaced_are_measured_and_trained_on_though_there_are_as_many() {
    let root = tempfile::tempdir().unwrap();
    let options = options(Metric::L2, 4).maintenance(Maintenance::Manual);
    let index = options.create(root.path().join("index")).unwrap();
    index.insert_many(&rows(1, 6_000, 0.0)).unwrap();
    index.maintain().unwrap();
    let (first, measured) = (index.stats().generation, index.stats().measured.unwrap());
    let mut oldest = 0;
    let mut replace = |n: usize, seed: u64| {
        index.insert_many(&rows(seed, n, 5.0)).unwrap();
        index.remove_many(&(oldest..oldest + n).collect::<Vec<_>>()).unwrap();
        oldest += n;
        index.maintain().unwrap();
        index.stats()
    };
    assert_eq!(replace(1_000, 2).generation, first);
    let stats = replace(1_000, 3);
    assert_eq!(stats.generation, first, "a third");
    assert!(stats.measured.unwrap() != measured);
    assert_eq!(replace(1_500, 4).generation, first + 1, "more than a half");
    assert!(replace(2_500, 5).rows == 6_000);
    let found = recall(&index, &rows(6, 600, 5.0), 0.95);
    assert!(found > 0.93, "{found}");
    // Too few to be trained on are measured.
    let few: Vec<usize> = index.ids().into_iter().skip(1_500).collect();
    index.remove_many(&few).unwrap();
    index.train().unwrap();
    assert_eq!(index.stats().measured.unwrap().rows, 1_500);
}
