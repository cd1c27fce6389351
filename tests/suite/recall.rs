//! Recall floors on real data: 12,000 GloVe words of `examples/data`. What an index has measured of
//! itself must be true of questions that it has not seen.

use cellardb::{Answer, Index, Kind, Maintenance, Metric, Setting};
use std::path::Path;
use std::sync::OnceLock;

const DIM: usize = 50;
const QUESTIONS: usize = 1000;

/// Every twelfth word asks, the others are stored: (rows, queries), row-major.
fn words() -> &'static (Vec<f32>, Vec<f32>) {
    static WORDS: OnceLock<(Vec<f32>, Vec<f32>)> = OnceLock::new();
    WORDS.get_or_init(|| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/data/words.i8");
        let bytes = std::fs::read(path).unwrap();
        let (mut rows, mut queries) = (Vec::new(), Vec::new());
        for (i, record) in bytes.chunks_exact(4 + DIM).enumerate() {
            let scale = f32::from_le_bytes(record[..4].try_into().unwrap());
            let codes =
                record[4..].iter().map(|code| scale * f32::from(i8::from_le_bytes([*code])));
            if i % 12 == 0 { queries.extend(codes) } else { rows.extend(codes) }
        }
        assert_eq!(queries.len(), QUESTIONS * DIM);
        (rows, queries)
    })
}

/// An index of the words.
fn build(kind: Kind, bits: u8, metric: Metric, root: &Path) -> Index {
    build_of(&words().0, (kind, bits, metric), root)
}

/// An index of rows of as many dimensions as the words have.
fn build_of(rows: &[f32], (kind, bits, metric): (Kind, u8, Metric), root: &Path) -> Index {
    let index = Index::options(DIM)
        .kind(kind)
        .pq_bits(bits)
        .metric(metric)
        .maintenance(Maintenance::Manual)
        .create(root.join("index"))
        .unwrap();
    for batch in rows.chunks(1000 * DIM) {
        index.insert_many(batch).unwrap();
    }
    index.train().unwrap();
    index
}

/// Mean share of the ten true neighbours.
fn recall(found: &[Vec<(usize, f32)>], truth: &[Vec<(usize, f32)>]) -> f64 {
    let hits: usize = found
        .iter()
        .zip(truth)
        .map(|(found, truth)| {
            let last = truth.last().unwrap().1;
            found.iter().filter(|hit| hit.1 <= last || truth.iter().any(|t| t.0 == hit.0)).count()
        })
        .sum();
    hits as f64 / (10 * truth.len()) as f64
}

/// At every stored setting the index does what it says, and the settings are in order.
fn keeps_its_word(kind: Kind, bits: u8, metric: Metric) {
    let root = tempfile::tempdir().unwrap();
    let index = build(kind, bits, metric, root.path());
    let (_, queries) = words();
    let truth = index.query_many(queries).exact().run().unwrap();
    let settings = index.stats().settings;
    assert_eq!(settings.iter().map(|s| s.recall).collect::<Vec<_>>(), [0.90, 0.95, 0.99]);
    for s in &settings {
        let answers = index.query_many(queries).recall(s.recall).explain().unwrap();
        let codes = answers.iter().map(|a| a.codes).sum::<usize>() / QUESTIONS;
        let found: Vec<_> = answers.into_iter().map(|answer| answer.hits).collect();
        let reached = recall(&found, &truth);
        println!("{kind:?} {bits} {metric:?}: {s:?} reached {reached:.4}, {codes} codes");
        let asked = f64::from(s.recall);
        assert!(reached >= asked - 0.02, "asked for {asked}, reached {reached}");
        assert!((reached - f64::from(s.measured)).abs() < 0.025, "measured {}", s.measured);
        assert!(codes < 11_000 * 2 / 3, "{codes} codes of 11,000 rows is no better than exact");
    }
    for pair in settings.windows(2) {
        assert!(pair[0].probes <= pair[1].probes && pair[0].codes <= pair[1].codes);
    }
    let default = index.search_many(queries, 10).unwrap();
    assert!(recall(&default, &truth) >= 0.93, "the default is 0.95");
    index.close().unwrap();
    let index = Index::open(root.path().join("index")).unwrap();
    assert_eq!(index.stats().settings, settings);
    assert_eq!(index.search_many(queries, 10).unwrap(), default, "the same after reopening");
}

#[test]
fn rows_estimated_too_far_are_not_reranked_and_hardly_missed() {
    let root = tempfile::tempdir().unwrap();
    let index = build(Kind::IvfPq, 4, Metric::L2, root.path());
    let (_, queries) = words();
    let truth = index.query_many(queries).exact().run().unwrap();
    let mut shares = Vec::new();
    for setting in index.stats().settings {
        let Setting { recall: asked, rerank, .. } = setting;
        // Who says how many are reranked gets as many.
        let all = index.query_many(queries).recall(asked).rerank(rerank).explain().unwrap();
        let few = index.query_many(queries).recall(asked).explain().unwrap();
        let reranked = |answers: &[Answer]| answers.iter().map(|a| a.reranked).sum::<usize>();
        let hits = |answers: &[Answer]| answers.iter().map(|a| a.hits.clone()).collect::<Vec<_>>();
        let loss = recall(&hits(&all), &truth) - recall(&hits(&few), &truth);
        let share = reranked(&few) as f64 / reranked(&all) as f64;
        println!("{setting:?}: {share:.2} of the rows, {loss:.4} of recall lost");
        assert!(share < 1.0 && loss < 0.006, "{share} of the rows, {loss} of recall lost");
        shares.push(share);
        let alike = all.iter().zip(&few).filter(|(all, few)| all.codes == few.codes);
        assert_eq!(alike.count(), QUESTIONS, "what is scanned does not depend on it");
    }
    // How many depends on the depth that the setting chose: of few there are few to leave out.
    assert!(shares.iter().any(|share| *share < 0.8), "{shares:?} of the rows");
}

#[test]
fn a_flat_index_keeps_its_word() {
    keeps_its_word(Kind::IvfFlat, 0, Metric::L2);
}

#[test]
fn a_pq4_index_keeps_its_word() {
    keeps_its_word(Kind::IvfPq, 4, Metric::Cosine);
    keeps_its_word(Kind::IvfPq, 4, Metric::InnerProduct);
}

#[test]
fn a_pq8_index_keeps_its_word() {
    keeps_its_word(Kind::IvfPq, 8, Metric::L2);
}

#[test]
fn the_default_kind_keeps_its_word() {
    keeps_its_word(Kind::Auto, 0, Metric::Cosine);
}

#[test]
fn words_far_from_the_origin_are_found_as_well_as_near_it() {
    let (rows, queries) = words();
    for (metric, bits, far) in
        [(Metric::L2, 4, 700.0), (Metric::L2, 1, 700.0), (Metric::Cosine, 8, 3.0)]
    {
        let moved = |values: &[f32]| values.iter().map(|x| x + far).collect::<Vec<f32>>();
        let (rows, queries) = (moved(rows), moved(queries));
        let root = tempfile::tempdir().unwrap();
        let index = build_of(&rows, (Kind::IvfPq, bits, metric), root.path());
        let truth = index.query_many(&queries).exact().run().unwrap();
        for s in index.stats().settings {
            let answers = index.query_many(&queries).recall(s.recall).explain().unwrap();
            let found: Vec<_> = answers.into_iter().map(|answer| answer.hits).collect();
            let reached = recall(&found, &truth);
            println!("{metric:?} {bits}: {s:?} reached {reached:.4}");
            assert!(s.measured >= s.recall && reached >= f64::from(s.recall) - 0.02);
            assert!(s.codes < 7_000.0 && s.rerank <= 640, "codes that tell little: {s:?}");
        }
    }
}

#[test]
fn where_codes_tell_nothing_the_rows_are_compared_until_the_recall_holds() {
    // Two heaps so far apart that a byte cannot tell the rows of one from each other.
    let (rows, _) = words();
    let heap = |at: usize| if at.is_multiple_of(2) { 30_000.0 } else { -30_000.0 };
    let rows = rows[..1_500 * DIM].chunks(DIM).enumerate();
    let rows: Vec<f32> = rows.flat_map(|(at, row)| row.iter().map(move |x| x + heap(at))).collect();
    for bits in [1, 4, 8] {
        let root = tempfile::tempdir().unwrap();
        let options = Index::options(DIM).kind(Kind::IvfPq).pq_bits(bits).train_at(1000);
        let index =
            options.maintenance(Maintenance::Manual).create(root.path().join("index")).unwrap();
        index.insert_many(&rows).unwrap();
        index.train().unwrap();
        assert_eq!(index.stats().settings.len(), 3);
        let queries = &rows[..300 * DIM];
        let truth = index.query_many(queries).exact().run().unwrap();
        for s in index.stats().settings {
            let found = index.query_many(queries).recall(s.recall).run().unwrap();
            let reached = recall(&found, &truth);
            println!("{bits}: {s:?} reached {reached:.4}");
            assert!(s.measured >= s.recall && reached >= f64::from(s.recall) - 0.03, "{s:?}");
        }
    }
}

#[test]
fn an_exact_index_equals_a_naive_search() {
    let root = tempfile::tempdir().unwrap();
    for metric in cellardb_campaign::METRICS {
        let index = build(Kind::Exact, 0, metric, &root.path().join(format!("{metric:?}")));
        let (rows, queries) = words();
        let mut model = cellardb_campaign::model::Model::new(DIM, metric);
        model.insert(rows);
        let found = index.search_many(queries, 10).unwrap();
        for (query, found) in queries.chunks(DIM).zip(&found).step_by(20) {
            for (hit, right) in found.iter().zip(model.search(query, 10)) {
                assert!((hit.1 - right.1).abs() <= 1e-4 * right.1.abs().max(1.0), "{metric:?}");
                assert!(hit.0 == right.0 || (hit.1 - right.1).abs() < 1e-4, "{metric:?}");
            }
        }
    }
}

#[test]
fn rows_that_arrive_after_training_are_found_as_well() {
    let root = tempfile::tempdir().unwrap();
    let (rows, queries) = words();
    let index = Index::options(DIM).kind(Kind::IvfPq).maintenance(Maintenance::Manual);
    let index = index.train_at(4000).create(root.path().join("index")).unwrap();
    index.insert_many(&rows[..5000 * DIM]).unwrap();
    index.train().unwrap();
    index.insert_many(&rows[5000 * DIM..8000 * DIM]).unwrap();
    index.flush().unwrap();
    index.insert_many(&rows[8000 * DIM..]).unwrap();
    let gone: Vec<usize> = (0..11_000).step_by(7).collect();
    assert_eq!(index.remove_many(&gone).unwrap(), gone.len());
    let stats = index.stats();
    assert_eq!((stats.tail, stats.trained_rows), (3000, 5000));
    let truth = index.query_many(queries).exact().run().unwrap();
    let before = recall(&index.search_many(queries, 10).unwrap(), &truth);
    index.compact().unwrap();
    assert_eq!(truth, index.query_many(queries).exact().run().unwrap());
    let after = recall(&index.search_many(queries, 10).unwrap(), &truth);
    println!("in tail and lists {before:.4}, after compaction {after:.4}");
    assert!(before >= 0.90 && after >= 0.90);
}

#[test]
fn the_measure_notices_a_wrong_answer() {
    let truth = vec![(0..10).map(|id| (id, id as f32)).collect::<Vec<_>>()];
    let found = vec![(5..15).map(|id| (id, id as f32)).collect::<Vec<_>>()];
    assert_eq!(recall(&truth, &truth), 1.0);
    assert_eq!(recall(&found, &truth), 0.5);
}
