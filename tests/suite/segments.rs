//! How many row segments there are, whatever is removed and when: as many as the bytes that live fill, and
//! a few. And what it takes to keep them so few.

use cellardb::{FileSystem, Index, Kind, Maintenance, Metric, Options};
use cellardb_campaign::HOME;
use cellardb_campaign::data::{self, Rng};
use cellardb_campaign::layer::{Call, Layer, Through};
use cellardb_campaign::sim::SimDisk;
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

const DIM: usize = 4;
/// Bytes of a row of four dimensions.
const STRIDE: u64 = 64;

/// Which rows go when a few new ones have come.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Going {
    /// All that are older than the window, but one in so many.
    Pinned(usize),
    /// As many as came, at random, so that the window stays as long.
    Random,
    /// The oldest.
    Oldest,
}

/// Counts the bytes that are written.
#[derive(Debug, Clone, Default)]
struct Bytes(Arc<AtomicU64>);

impl Layer for Bytes {
    fn around<T>(&self, call: Call<'_>, job: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        if let Call::Write { data, .. } = call {
            self.0.fetch_add(data.len() as u64, Relaxed);
        }
        job()
    }
}

/// A window of 700 rows moves over so many inserts; what is called after each step decides when the
/// space of those that go is given back.
fn churn(index: &Index, going: Going, inserts: usize, mut step: impl FnMut(&Index)) -> Vec<usize> {
    let (mut rng, mut window, mut pinned) = (Rng::new(5), VecDeque::new(), Vec::new());
    for _ in 0..inserts / 100 {
        let rows = data::vectors(&mut rng, 100, DIM, Metric::L2);
        for id in index.insert_many(&rows).unwrap() {
            match going {
                Going::Pinned(every) if id % every == 0 => pinned.push(id),
                _ => window.push_back(id),
            }
        }
        let over = window.len().saturating_sub(700);
        let gone: Vec<usize> = match going {
            Going::Random => (0..over)
                .map(|_| window.swap_remove_back(rng.below(window.len())).unwrap())
                .collect(),
            _ => window.drain(..over).collect(),
        };
        assert_eq!(index.remove_many(&gone).unwrap(), gone.len());
        step(index);
    }
    let mut left: Vec<usize> = window.into_iter().chain(pinned).collect();
    left.sort_unstable();
    left
}

const GOING: [Going; 5] =
    [Going::Pinned(10), Going::Pinned(1000), Going::Pinned(100_000), Going::Random, Going::Oldest];

fn exact(segment_bytes: u64) -> Options {
    Index::options(DIM).kind(Kind::Exact).segment_bytes(segment_bytes).threads(1)
}

/// Waits until the background has nothing to do; how many segments there are then.
fn settled(index: &Index, few: u64) -> u64 {
    let start = Instant::now();
    loop {
        let segments = index.stats().segments;
        if segments <= few || start.elapsed() > Duration::from_secs(30) {
            return segments;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn holds(index: &Index, left: &[usize]) {
    assert_eq!(index.ids(), left);
    assert!(index.verify().unwrap().damage.is_empty());
}

#[test]
fn in_the_background_segments_stay_as_few_as_what_lives_fills() {
    for going in GOING {
        for segment_bytes in [4096, 64 << 10, 128 << 20] {
            let disk = SimDisk::new();
            let options = || exact(segment_bytes).disk(Arc::new(disk.clone()));
            let index = options().create(HOME).unwrap();
            let left = churn(&index, going, 60_000, |_| {});
            // With what was removed since the last compaction, which is not due yet.
            let rows = left.len() as u64 + index.stats().removed;
            let few = 12 + 8 * (rows * STRIDE / segment_bytes);
            let segments = settled(&index, few);
            assert!(
                segments <= few,
                "{going:?}, {segment_bytes}: {segments} segments, {few} at most"
            );
            assert_eq!(index.stats().maintenance_error, None);
            holds(&index, &left);
            index.close().unwrap();
            holds(&options().open(HOME).unwrap(), &left);
        }
    }
}

#[test]
fn a_compaction_leaves_no_two_neighbours_that_fit_one_segment() {
    for going in GOING {
        for segment_bytes in [4096, 64 << 10, 128 << 20] {
            let disk = SimDisk::new();
            let options = exact(segment_bytes).maintenance(Maintenance::Manual);
            let index = options.disk(Arc::new(disk.clone())).create(HOME).unwrap();
            let mut steps = 0;
            let left = churn(&index, going, 40_000, |index| {
                steps += 1;
                if steps % 10 == 0 {
                    index.compact().unwrap();
                }
            });
            index.compact().unwrap();
            let segments = index.stats().segments;
            let full = left.len() as u64 * STRIDE / segment_bytes;
            assert!(
                segments <= 2 + 2 * full,
                "{going:?}, {segment_bytes}: {segments}, {full} full"
            );
            assert_eq!(index.stats().removed, 0);
            holds(&index, &left);
            assert_eq!(index.compact().unwrap().rows, 0);
            assert_eq!(index.stats().segments, segments, "there is nothing left to do");
        }
    }
}

#[test]
fn bringing_segments_together_writes_no_row_more_often_than_there_are_tiers() {
    for going in [Going::Pinned(2), Going::Pinned(10), Going::Pinned(1000), Going::Oldest] {
        let bytes = Bytes::default();
        let disk = Through { layer: bytes.clone(), disk: SimDisk::new() };
        let options = exact(1 << 20).maintenance(Maintenance::Manual).disk(Arc::new(disk));
        let index = options.create(HOME).unwrap();
        let mut compacting = 0;
        let left = churn(&index, going, 100_000, |index| {
            // Often, and as little as there is to give back.
            let before = bytes.0.load(Relaxed);
            index.compact().unwrap();
            compacting += bytes.0.load(Relaxed) - before;
        });
        holds(&index, &left);
        // The window is written anew with each step, a few pages of the catalog are, and what stays as
        // often as there are tiers; so is what has not grown to an eighth of a segment yet.
        let steps = 1000 * (800 * STRIDE + (64 << 10) + (1 << 20) / 8);
        let most = steps + 6 * left.len() as u64 * STRIDE;
        assert!(compacting <= most, "{going:?}: {} KiB, {} at most", compacting >> 10, most >> 10);
    }
}

/// A disk that has room for what goes on, but for no new file.
#[derive(Debug, Clone, Default)]
struct Full(Arc<AtomicBool>);

impl Layer for Full {
    fn around<T>(&self, call: Call<'_>, job: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        match call {
            Call::Write { .. } if self.0.load(Relaxed) => {
                Err(io::Error::from_raw_os_error(libc::ENOSPC))
            }
            _ => job(),
        }
    }
}

#[test]
fn segments_that_were_left_early_become_one_though_no_row_was_removed() {
    let root = tempfile::tempdir().unwrap();
    let full = Full::default();
    let disk = Through { layer: full.clone(), disk: FileSystem };
    let index = exact(128 << 20).disk(Arc::new(disk)).create(root.path().join("index")).unwrap();
    // After each insert that failed the next one begins a segment.
    for n in 0..60_u16 {
        full.0.store(true, Relaxed);
        assert!(index.insert(&[9.0; DIM]).is_err());
        full.0.store(false, Relaxed);
        assert_eq!(index.insert(&[f32::from(n); DIM]).unwrap(), usize::from(n));
    }
    let segments = settled(&index, 16);
    assert!(segments <= 16, "{segments} segments");
    holds(&index, &(0..60).collect::<Vec<_>>());
    assert_eq!(index.compact().unwrap().rows, 0);
    assert!(index.stats().segments <= 2);
    holds(&index, &(0..60).collect::<Vec<_>>());
    for n in 0..60_u16 {
        assert_eq!(index.get(n.into()).unwrap().unwrap(), [f32::from(n); DIM]);
    }
}
