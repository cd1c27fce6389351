//! Durable inserts of one row each, against what the disk's own sync rate allows.
//!
//! `cargo bench --bench durable [-- DIR]`: DIR should lie on the disk in question; the default is
//! the directory for temporary files. Prints, for one and for sixteen threads, rows per second and
//! the ratio to the rate at which the same disk syncs one write of the same size.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a benchmark"
)]

use cellardb::{Index, Kind};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

const DIM: usize = 384;
const ROW: usize = 4 * DIM + 32;
const TIME: Duration = Duration::from_secs(3);

/// Runs `f` for a while; calls per second.
fn rate(mut f: impl FnMut(u64)) -> f64 {
    let (start, mut n) = (Instant::now(), 0);
    while start.elapsed() < TIME {
        f(n);
        n += 1;
    }
    n as f64 / start.elapsed().as_secs_f64()
}

/// Writes and syncs one row after another, over bytes that exist or past the end of the file.
fn disk(dir: &Path, overwrite: bool) -> f64 {
    let file = File::create(dir.join("sync-rate")).unwrap();
    if overwrite {
        file.write_all_at(&vec![0; 64 << 20], 0).unwrap();
        file.sync_all().unwrap();
    }
    let rows = (64 << 20) / ROW as u64;
    rate(|n| {
        let at = if overwrite { n % rows } else { n };
        file.write_all_at(&[1; ROW], at * ROW as u64).unwrap();
        file.sync_data().unwrap();
    })
}

/// Rows per second and rows per commit.
fn inserts(dir: &Path, threads: usize) -> (f64, f64) {
    let path = dir.join(format!("{threads}.cellar"));
    let index = Index::options(DIM).kind(Kind::Exact).create(path).unwrap();
    let start = Instant::now();
    std::thread::scope(|scope| {
        for t in 0..threads {
            let index = index.clone();
            scope.spawn(move || {
                rate(|n| {
                    let row: Vec<f32> = (0..DIM).map(|d| (n as usize + d + t) as f32).collect();
                    index.insert(&row).unwrap();
                })
            });
        }
    });
    let rows = index.len() as f64;
    (rows / start.elapsed().as_secs_f64(), rows / index.stats().seq as f64)
}

fn main() {
    let room = match std::env::args().skip(1).find(|a| !a.starts_with('-')) {
        Some(dir) => tempfile::tempdir_in(dir).unwrap(),
        None => tempfile::tempdir().unwrap(),
    };
    let (append, overwrite) = (disk(room.path(), false), disk(room.path(), true));
    println!("the disk: {append:.0} appends and {overwrite:.0} overwrites synced per second");
    let ((one, _), (sixteen, group)) = (inserts(room.path(), 1), inserts(room.path(), 16));
    println!(
        "1 thread: {one:.0} inserts/s, {:.2}x the appends, {:.2}x the overwrites",
        one / append,
        one / overwrite
    );
    println!(
        "16 threads: {sixteen:.0} inserts/s, {:.1}x one thread, {group:.1} rows a commit",
        sixteen / one
    );
}
