//! What is stored and what is asked for: options, and the dimensions of vectors.

use super::*;

/// Every option that is stored, as it is and as something else, under the name that the error has.
type Pair = (&'static str, fn(Options) -> Options, fn(Options) -> Options, &'static str);
const STORED: [Pair; 8] = [
    ("metric", |o| o.metric(Metric::Cosine), |o| o.metric(Metric::L2), "Cosine"),
    ("kind", |o| o.kind(Kind::IvfPq), |o| o.kind(Kind::Auto), "IvfPq"),
    ("pq_bits", |o| o.pq_bits(8), |o| o.pq_bits(0), "8"),
    ("pq_subquantizers", |o| o.pq_subquantizers(2), |o| o.pq_subquantizers(4), "2"),
    ("nlist", |o| o.nlist(7), |o| o.nlist(0), "7"),
    ("seed", |o| o.seed(9), |o| o.seed(0), "9"),
    ("train_at", |o| o.train_at(500), |o| o.train_at(10_000), "500"),
    ("segment_bytes", |o| o.segment_bytes(8192), |o| o.segment_bytes(128 << 20), "8192"),
];

#[test]
fn an_option_that_is_given_must_be_what_is_stored_and_one_that_is_not_takes_it() {
    let (_root, path) = home();
    let manual = || Options::stored().maintenance(Maintenance::Manual);
    let whole =
        STORED.iter().fold(manual().dim(DIM), |options, (_, as_stored, ..)| as_stored(options));
    drop(whole.create(&path).unwrap());
    for (name, as_stored, other, stored) in STORED {
        let other = other(manual().dim(DIM));
        for refused in [other.open(&path), other.open_or_create(&path), other.open_read_only(&path)]
        {
            let Err(Error::Invalid { name: named, why }) = &refused else { panic!("{refused:?}") };
            assert_eq!(*named, name);
            let words = format!("the index has {stored}");
            assert!(why.contains(&words) && why.contains("Options::stored"), "{name}: {why}");
        }
        assert!(other.repair(&path).is_err(), "{name}");
        drop(as_stored(manual()).open_or_create(&path).unwrap());
    }
    drop(whole.open(&path).unwrap());
    let index = manual().open(&path).unwrap();
    let stats = index.stats();
    assert_eq!((stats.kind, stats.metric, stats.train_at), (Kind::IvfPq, Metric::Cosine, 500));
    index.insert_many(&data::vectors(&mut Rng::new(1), 600, DIM, Metric::Cosine)).unwrap();
    index.train().unwrap();
    let stats = index.stats();
    assert_eq!((stats.lists, stats.code, stats.subquantizers), (7, "pq8", 2));
    assert!(stats.segments > 1, "segments of 8 KiB");
}

#[test]
fn what_is_not_given_has_the_documented_default() {
    let (_root, path) = home();
    drop(Index::options(DIM).create(&path).unwrap());
    let defaults = |o: Options| o.kind(Kind::Auto).pq_bits(0).pq_subquantizers(0).nlist(0).seed(0);
    let defaults = defaults(Index::options(DIM)).metric(Metric::L2);
    drop(defaults.train_at(10_000).segment_bytes(128 << 20).open(&path).unwrap());
}

#[test]
fn an_error_of_dimensions_says_what_has_which() {
    let (disk, index) = fresh(SHAPES[0], Metric::L2);
    let says = |e: Error, given: Given, found: usize, words: &[&str]| {
        let named = matches!(e, Error::Dimension { given: g, expected: DIM, found: f }
            if g == given && f == found);
        assert!(named && words.iter().all(|word| e.to_string().contains(word)), "{e:?}: {e}");
    };
    let one = ["vector of 50 numbers", "the index have 4"];
    says(index.insert(&[1.0; 50]).unwrap_err(), Given::Vector, 50, &one);
    says(index.search(&[1.0; 50], 1).unwrap_err(), Given::Vector, 50, &one);
    says(index.query(&[1.0; 50]).run().unwrap_err(), Given::Vector, 50, &one);
    let many = ["50 numbers", "no whole vectors", "multiple of 4"];
    says(index.insert_many(&[1.0; 50]).unwrap_err(), Given::Vectors, 50, &many);
    says(index.search_many(&[1.0; 50], 1).unwrap_err(), Given::Vectors, 50, &many);
    drop(index);
    let other = stored(&disk).dim(50);
    let opened = ["50 was asked for", "the index has 4 dimensions", "Options::stored"];
    says(other.open(HOME).unwrap_err(), Given::Options, 50, &opened);
    says(other.open_read_only(HOME).unwrap_err(), Given::Options, 50, &opened);
    says(other.open_or_create(HOME).unwrap_err(), Given::Options, 50, &opened);
    says(other.repair(HOME).unwrap_err(), Given::Options, 50, &opened);
}

#[test]
fn maintain_does_what_is_due_and_nothing_else() {
    let (_root, path) = home();
    let options = Index::options(8).kind(Kind::IvfPq).train_at(300).threads(1);
    let index = options.maintenance(Maintenance::Manual).create(&path).unwrap();
    let rows = data::vectors(&mut Rng::new(1), 1300, 8, Metric::L2);
    let mut last = index.stats();
    // Rows in all, those that the model is then made of, and whether recall is measured again.
    for (to, trained, measured) in [
        (299, 0, false),
        (320, 320, true),
        (390, 320, false),
        (410, 320, true),
        (1270, 320, true),
        (1280, 1280, true),
    ] {
        index.insert_many(&rows[index.len() * 8..to * 8]).unwrap();
        index.maintain().unwrap();
        let stats = index.stats();
        assert_eq!((stats.rows, stats.trained_rows), (to as u64, trained), "{to} rows");
        let codes = |stats: &Stats| stats.settings.iter().map(|s| s.codes).sum::<f32>();
        assert_eq!(codes(&stats) != codes(&last), measured, "{to} rows");
        last = stats;
    }
    let gone: Vec<usize> = (0..1200).collect();
    index.remove_many(&gone).unwrap();
    index.maintain().unwrap();
    assert_eq!(index.stats().removed, 0, "compacted");
    index.close().unwrap();
    let reader = Index::open_read_only(&path).unwrap();
    assert!(matches!(reader.maintain(), Err(Error::ReadOnly)));
}
