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
