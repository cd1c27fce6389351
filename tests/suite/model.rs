//! Random operations against a naive index in memory: insert, remove, search, fold, train, compact,
//! close, kill and power cut, for every kind and metric. `CELLARDB_MODEL_SEEDS` scales it up.

use cellardb::{Error, Index, Metric, Options};
use cellardb_campaign::change::Cut;
use cellardb_campaign::data::{self, Rng};
use cellardb_campaign::model::Model;
use cellardb_campaign::sim::SimDisk;
use cellardb_campaign::{HOME, METRICS, SHAPES, Shape, parallel, scale, stored};
use std::sync::Arc;

/// An index, its model, and the disk below.
struct Pair {
    disk: SimDisk,
    index: Index,
    model: Model,
    rng: Rng,
    approximate: (f64, u32),
}

impl Pair {
    fn new(shape: Shape, metric: Metric, dim: usize, seed: u64) -> Self {
        let disk = SimDisk::new();
        let index = shape.options(dim, metric).disk(Arc::new(disk.clone())).create(HOME).unwrap();
        let model = Model::new(dim, metric);
        Self { disk, index, model, rng: Rng::new(seed), approximate: (0.0, 0) }
    }

    fn rows(&mut self, n: usize) -> Vec<f32> {
        data::vectors(&mut self.rng, n, self.model.dim, self.model.metric)
    }

    /// An id: mostly a live one, at times a removed one or one never given.
    fn id(&mut self) -> usize {
        self.rng.below(self.model.next + 3)
    }

    fn search(&mut self) {
        let query = self.rows(1);
        let k = [0, 1, 3, 10, 50, 1000][self.rng.below(6)];
        let right = self.model.search(&query, k);
        assert_eq!(self.index.query(&query).k(k).exact().run().unwrap(), right);
        let hits = self.index.search(&query, k).unwrap();
        self.model.plausible(&query, k, &hits).unwrap();
        if k > 0 && !right.is_empty() {
            self.approximate.0 += self.model.recall(&query, k, &hits);
            self.approximate.1 += 1;
        }
        let all = self.index.query(&query).k(k).probes(usize::MAX).rerank(1 << 20).run().unwrap();
        assert_eq!(all, right, "with every cell probed and every row reranked it is exact");
        let queries = self.rows(3);
        let many = self.index.search_many(&queries, 5).unwrap();
        for (query, hits) in queries.chunks(self.model.dim).zip(many) {
            assert_eq!(hits, self.index.search(query, 5).unwrap(), "alone and in a batch");
        }
    }

    fn change(&mut self) {
        match self.rng.below(4) {
            0 => {
                let row = self.rows(1);
                assert_eq!(self.index.insert(&row).unwrap(), self.model.insert(&row).start);
            }
            1 => {
                let n = self.rng.below(40);
                let rows = self.rows(n);
                assert_eq!(self.index.insert_many(&rows).unwrap(), self.model.insert(&rows));
            }
            2 => {
                let id = self.id();
                assert_eq!(self.index.remove(id).unwrap(), self.model.remove(&[id]) == 1);
            }
            _ => {
                let ids: Vec<usize> = (0..self.rng.below(12)).map(|_| self.id()).collect();
                assert_eq!(self.index.remove_many(&ids).unwrap(), self.model.remove(&ids));
            }
        }
    }

    fn maintain(&mut self) {
        match self.rng.below(4) {
            0 | 1 => self.index.flush().unwrap(),
            2 => self.index.train().unwrap(),
            _ => {
                self.index.compact().unwrap();
                assert_eq!(self.index.stats().removed, 0, "compaction leaves no removed row");
            }
        }
    }

    /// Goes away in one of several ways and comes back on what is left.
    fn reopen(self) -> Self {
        let Self { disk, index, model, mut rng, approximate } = self;
        let way = rng.below(5);
        let disk = match way {
            0 => {
                index.close().unwrap();
                disk
            }
            1 => {
                drop(index);
                disk
            }
            2 => disk.after_kill(),
            3 => disk.after_cut(Cut::Dropped),
            _ => disk.after_cut(Cut::Random(rng.next_u64())),
        };
        if way < 2 {
            read_only(&disk, &model);
        }
        let index = stored(&disk).open(HOME).unwrap_or_else(|e| panic!("way {way}: {e}"));
        model.differs(&index, 1).unwrap_or_else(|e| panic!("way {way}: {e}"));
        Self { disk, index, model, rng, approximate }
    }

    fn run(mut self, steps: usize) -> Self {
        for _ in 0..steps {
            match self.rng.below(20) {
                0..=8 => self.change(),
                9..=14 => self.search(),
                15..=16 => self.maintain(),
                17 => self = self.reopen(),
                18 => self.model.differs(&self.index, 2).unwrap(),
                _ => assert!(self.index.verify().unwrap().damage.is_empty()),
            }
        }
        self.model.differs(&self.index, 3).unwrap();
        self
    }
}

/// Opened for reading the index answers the same and refuses writes.
fn read_only(disk: &SimDisk, model: &Model) {
    let index = stored(disk).open_read_only(HOME).unwrap();
    model.differs(&index, 4).unwrap();
    let row = vec![1.0; model.dim];
    assert!(matches!(index.insert(&row), Err(Error::ReadOnly)));
    let before = disk.dump();
    drop(index);
    assert!(before == disk.dump(), "a reader wrote");
}

#[test]
fn random_operations_equal_the_model() {
    let mut cases = Vec::new();
    for seed in 0..scale("CELLARDB_MODEL_SEEDS", 4) {
        for shape in SHAPES {
            for metric in METRICS {
                cases.push((shape, metric, seed));
            }
        }
    }
    parallel(&cases, |(shape, metric, seed)| {
        let name = format!("{} {metric:?} seed {seed}", shape.name);
        let dim = [4, 8, 6, 17][*seed as usize % 4];
        let work = || Pair::new(*shape, *metric, dim, *seed).run(80);
        let pair = std::panic::catch_unwind(work).unwrap_or_else(|_| panic!("{name}: see above"));
        let (sum, n) = pair.approximate;
        assert!(n == 0 || sum / f64::from(n) > 0.75, "{name}: recall {}", sum / f64::from(n));
    });
}

#[test]
fn a_large_batch_and_a_long_life_equal_the_model() {
    for shape in [SHAPES[1], SHAPES[2]] {
        let mut pair = Pair::new(shape, Metric::L2, 8, 99);
        let rows = pair.rows(1500);
        assert_eq!(pair.index.insert_many(&rows).unwrap(), pair.model.insert(&rows));
        pair.index.train().unwrap();
        let gone: Vec<usize> = (0..1500).step_by(3).collect();
        assert_eq!(pair.index.remove_many(&gone).unwrap(), pair.model.remove(&gone));
        pair = pair.run(40);
        pair.index.compact().unwrap();
        drop(pair.reopen());
    }
}

#[test]
fn the_same_rows_and_seed_give_the_same_index() {
    let build = |threads: usize| {
        let disk = SimDisk::new();
        let options: Options = SHAPES[2].options(8, Metric::L2).threads(threads);
        let index = options.disk(Arc::new(disk.clone())).create(HOME).unwrap();
        let rows = data::vectors(&mut Rng::new(5), 600, 8, Metric::L2);
        index.insert_many(&rows).unwrap();
        index.train().unwrap();
        let queries = data::vectors(&mut Rng::new(6), 20, 8, Metric::L2);
        index.query_many(&queries).k(10).probes(1).rerank(10).run().unwrap()
    };
    assert_eq!(build(1), build(2));
}

#[test]
fn the_model_notices_a_missing_row_and_another_value() {
    let mut pair = Pair::new(SHAPES[0], Metric::L2, 4, 1);
    pair.index.insert_many(&[1.0; 8]).unwrap();
    pair.model.insert(&[1.0; 4]);
    assert!(pair.model.differs(&pair.index, 1).unwrap_err().contains("ids are"));
    pair.model.insert(&[2.0; 4]);
    assert!(pair.model.differs(&pair.index, 1).unwrap_err().contains("row 1 is"));
    let wrong = [(0, 0.0), (7, 1.0)];
    assert!(pair.model.plausible(&[1.0; 4], 2, &wrong).unwrap_err().contains("not a live row"));
}
