//! Whoever waits for the background of an index finds its work done. Alone in its process, whose threads
//! are what is looked at.

use cellardb::{Index, Maintenance};
use cellardb_campaign::data::Rng;
use cellardb_campaign::recall::idle;

#[test]
fn the_background_has_trained_and_folded_when_the_wait_is_over() {
    let root = tempfile::tempdir().unwrap();
    let options = Index::options(16).train_at(2000).maintenance(Maintenance::Background);
    let index = options.create(root.path().join("index")).unwrap();
    let mut rng = Rng::new(1);
    for _ in 0..4 {
        let rows: Vec<f32> = (0..5000 * 16).map(|_| rng.gauss()).collect();
        index.insert_many(&rows).unwrap();
    }
    idle::wait(&index).unwrap();
    let stats = index.stats();
    assert!(stats.trained_rows > 5000 && stats.tail < 5000, "{stats:?}");
    assert_eq!(stats.settings.len(), 3);
}
