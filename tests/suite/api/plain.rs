//! Rows in the tail that have no code yet, as after a crash: searches find them at once, while a
//! thread encodes them.

use super::*;
use std::collections::BTreeMap;

const WIDE: usize = 48;

type Files = BTreeMap<PathBuf, Vec<u8>>;

/// An index that was killed with many rows in its tail.
fn killed(shape: Shape, metric: Metric) -> (Files, Model) {
    let disk = SimDisk::new();
    let options = shape.options(WIDE, metric).segment_bytes(1 << 18).disk(Arc::new(disk.clone()));
    let index = options.create(HOME).unwrap();
    let (mut model, mut rng) = (Model::new(WIDE, metric), Rng::new(5));
    for n in [1_500, 2_500] {
        let rows = data::vectors(&mut rng, n, WIDE, metric);
        index.insert_many(&rows).unwrap();
        model.insert(&rows);
        if model.next == n {
            index.train().unwrap();
        }
    }
    (disk.dump(), model)
}

/// Opens with a background thread, as a host does.
fn opened(files: &Files, write: bool) -> Index {
    let options = Options::stored().threads(1).disk(Arc::new(SimDisk::load(files)));
    let index = if write { options.open(HOME) } else { options.open_read_only(HOME) };
    index.unwrap()
}

/// Searches every cell, so that the answer is exact.
fn wide(index: &Index, query: &[f32], k: usize) -> Vec<(usize, f32)> {
    index.query(query).k(k).probes(usize::MAX).rerank(10_000).run().unwrap()
}

fn coded(index: &Index) {
    until("the encoding of the tail", || index.stats().uncoded == 0);
}

#[test]
fn rows_without_a_code_are_found_as_soon_as_the_index_is_open() {
    let mut seen = 0;
    for (shape, metric) in SHAPES[1..].iter().zip(METRICS.into_iter().cycle()) {
        let (files, mut model) = killed(*shape, metric);
        for write in [false, true] {
            let index = opened(&files, write);
            seen += index.stats().uncoded;
            for (turn, id) in [3_999, 10, 1_499, 1_500, 2_500].into_iter().enumerate() {
                let hits = wide(&index, &model.rows[&id], 7);
                assert_eq!(hits, model.search(&model.rows[&id], 7), "{} {turn}", shape.name);
            }
            coded(&index);
            let hits = wide(&index, &model.rows[&3_000], 7);
            assert_eq!(hits, model.search(&model.rows[&3_000], 7), "{}", shape.name);
        }
        let index = opened(&files, true);
        let query = model.rows[&3_790].clone();
        index.remove_many(&[3_790, 2_000]).unwrap();
        model.remove(&[3_790, 2_000]);
        let id = index.insert(&query).unwrap();
        assert_eq!(model.insert(&query), id..id + 1);
        for _ in 0..3 {
            assert_eq!(wide(&index, &query, 7), model.search(&query, 7), "{}", shape.name);
            index.flush().unwrap();
            assert_eq!(index.stats().uncoded, 0);
        }
        let many = index.query_many(&query.repeat(3)).k(7).exact().run().unwrap();
        assert!(many.iter().all(|hits| *hits == model.search(&query, 7)));
        assert!(index.verify().unwrap().damage.is_empty());
        assert_eq!(index.stats().maintenance_error, None);
    }
    assert!(seen > 0, "every tail was encoded before it could be looked at");
}

#[test]
fn many_queries_at_once_wait_for_the_codes_and_training_takes_plain_rows_in() {
    let (files, model) = killed(SHAPES[4], Metric::L2);
    let queries: Vec<f32> = (3_000..3_020).flat_map(|id| model.rows[&id].clone()).collect();
    let index = opened(&files, true);
    let found = index.search_many(&queries, 1).unwrap();
    assert_eq!(index.stats().uncoded, 0);
    assert!(found.iter().zip(3_000..).all(|(hits, id)| hits == &[(id, 0.0)]));
    let index = opened(&files, true);
    index.train().unwrap();
    assert_eq!((index.stats().tail, index.stats().uncoded), (0, 0));
    for id in [10, 3_000] {
        assert_eq!(wide(&index, &model.rows[&id], 7), model.search(&model.rows[&id], 7));
    }
}

#[test]
fn a_damaged_row_without_a_code_is_named_and_the_index_opens_all_the_same() {
    let (mut files, model) = killed(SHAPES[2], Metric::L2);
    let (path, bytes) =
        files.iter_mut().rfind(|(path, _)| path.extension().is_some_and(|e| e == "rows")).unwrap();
    let (path, len) = (path.clone(), bytes.len());
    // The file may be longer than what is committed: damage a row in the middle of it.
    bytes[len / 2] ^= 1;
    let index = opened(&files, true);
    let query = &model.rows[&3];
    let refused = index.search(query, 5).unwrap_err();
    assert!(matches!(&refused, Error::Corrupt { path: at, .. } if *at == path), "{refused}");
    assert_eq!(index.get(3).unwrap().as_ref(), Some(query));
    let refused = index.flush().unwrap_err();
    assert!(matches!(&refused, Error::Corrupt { path: at, .. } if *at == path), "{refused}");
    let report = index.verify().unwrap();
    assert!(report.damage.iter().any(|damage| damage.path == path));
}
