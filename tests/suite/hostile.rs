//! Neighbours that do not keep to the rules: files that are cut, replaced and removed under a running
//! process, forks, second writers, file systems without locks, few descriptors and no maps.

mod links;
mod locks;
mod moved;
mod process;
mod sparse;

use cellardb::{Disk, Error, FileSystem, Index, Metric, Options, Reads};
use cellardb_campaign::data::{self, Rng};
use cellardb_campaign::layer::{Call, Layer, Through};
use cellardb_campaign::verbs::hostile::{Mode, play, supervise};
use cellardb_campaign::{METRICS, SHAPES, Shape};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

const DIM: usize = 16;

/// Where the process that a test starts finds what it is to do.
const PART: &str = "CELLARDB_HOSTILE_PART";

/// This test again, alone in a process of its own, to play a part.
fn again(test: &str, part: &str, dir: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "--nocapture", "--test-threads=1", test]);
    command.env(PART, part).env("CELLARDB_HOSTILE_DIR", dir);
    command
}

/// The part of this process, and the directory.
fn part() -> Option<(String, PathBuf)> {
    let part = std::env::var(PART).ok()?;
    Some((part, std::env::var_os("CELLARDB_HOSTILE_DIR").unwrap().into()))
}

fn home() -> (tempfile::TempDir, PathBuf) {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("index");
    (root, path)
}

/// An index of some segments and lists, closed.
fn made(shape: Shape, metric: Metric, path: &Path) -> Vec<f32> {
    let options = shape.options(DIM, metric).segment_bytes(32 << 10);
    let index = options.create(path).unwrap();
    let rows = data::vectors(&mut Rng::new(9), 1000, DIM, metric);
    index.insert_many(&rows[..900 * DIM]).unwrap();
    index.train().unwrap();
    index.insert_many(&rows[900 * DIM..]).unwrap();
    index.close().unwrap();
    rows
}

fn manual() -> Options {
    Options::stored().threads(1).maintenance(cellardb::Maintenance::Manual)
}

/// The files of one kind below a directory.
fn files(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for path in std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()) {
        if path.is_dir() {
            found.extend(files(&path, extension));
        } else if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn cut(path: &Path, len: u64) {
    std::fs::OpenOptions::new().write(true).open(path).unwrap().set_len(len).unwrap();
}

/// Another file with these bytes in the place of one.
fn replace(path: &Path, bytes: &[u8]) {
    let fresh = path.with_extension("fresh");
    #[expect(clippy::disallowed_methods, reason = "another process replaces a real file")]
    std::fs::write(&fresh, bytes).unwrap();
    #[expect(clippy::disallowed_methods, reason = "another process replaces a real file")]
    std::fs::rename(&fresh, path).unwrap();
}

/// Everything that is asked of an index.
fn answers(index: &Index, queries: &[f32]) -> Vec<Vec<(usize, f32)>> {
    let mut found = index.query_many(queries).k(7).run().unwrap();
    for query in queries.chunks(index.dim()).step_by(7) {
        found.push(index.query(query).k(7).exact().run().unwrap());
        found.push(index.query(query).k(7).probes(3).rerank(40).run().unwrap());
        found.push(index.query(query).k(7).probes(1000).rerank(1000).run().unwrap());
    }
    found
}

#[test]
fn a_file_that_is_cut_under_its_map_is_an_error_that_names_it_and_then_right_again() {
    for (shape, extension) in [(SHAPES[2], "rows"), (SHAPES[2], "list"), (SHAPES[1], "list")] {
        let (_root, path) = home();
        let rows = made(shape, Metric::L2, &path);
        let index = manual().open(&path).unwrap();
        let before = answers(&index, &rows[..64 * DIM]);
        let victim = files(&path, extension).into_iter().next().unwrap();
        let pristine = std::fs::read(&victim).unwrap();
        assert!(pristine.len() > 4096, "{} bytes", pristine.len());
        cut(&victim, 4096);
        let mut errors = 0;
        for (query, before) in rows.chunks(DIM).zip(&before).take(64) {
            // By cells: so few rows would be compared one and all.
            match index.query(query).k(7).probes(1 << 20).rerank(1 << 20).run() {
                Ok(hits) => assert_eq!(hits, *before),
                Err(Error::Corrupt { path, what, .. }) => {
                    let named = path == victim && what.contains("cut while it was open");
                    assert!(named, "{}: {what}", path.display());
                    errors += 1;
                }
                Err(other) => panic!("{other}"),
            }
        }
        assert!(errors > 0);
        let found = index.verify().unwrap().damage;
        assert!(!found.is_empty() && found.iter().all(|damage| damage.path == victim), "{found:?}");
        // What would be written anew from it is not zeros with a checksum.
        if extension == "list" {
            index.remove_many(&(0..900).step_by(3).collect::<Vec<_>>()).unwrap();
            assert!(matches!(index.compact(), Err(Error::Corrupt { .. })));
            assert_eq!(index.stats().poisoned, None);
        }
        replace(&victim, &pristine);
        if extension == "rows" {
            assert_eq!(answers(&index, &rows[..64 * DIM]), before);
        } else {
            index.compact().unwrap();
            assert!(index.verify().unwrap().damage.is_empty());
        }
        index.insert(&rows[..DIM]).unwrap();
    }
}

#[test]
fn reads_without_maps_find_the_same() {
    let maps = |path: &Path| {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        // By those of its two locks nobody reads.
        let read = |line: &&str| !line.ends_with("/LOCK") && !line.ends_with("/catalog.redb");
        let ours = |line: &&str| line.contains(path.to_str().unwrap());
        maps.lines().filter(ours).filter(read).count()
    };
    for (shape, metric) in SHAPES.into_iter().zip(METRICS.into_iter().cycle()) {
        let (_root, path) = home();
        let rows = made(shape, metric, &path);
        let expected = {
            let index = manual().open_read_only(&path).unwrap();
            assert!(maps(&path) > 0);
            answers(&index, &rows[..32 * DIM])
        };
        let index = manual().reads(Reads::Copy).open(&path).unwrap();
        assert_eq!(answers(&index, &rows[..32 * DIM]), expected, "{} {metric:?}", shape.name);
        assert_eq!(index.get(5).unwrap().unwrap(), rows[5 * DIM..6 * DIM]);
        index.remove_many(&[1, 2, 3]).unwrap();
        index.flush().unwrap();
        index.compact().unwrap();
        assert!(index.verify().unwrap().damage.is_empty());
        assert_eq!(maps(&path), 0);
    }
}

#[test]
fn without_maps_every_read_is_verified() {
    let (_root, path) = home();
    let rows = made(SHAPES[0], Metric::L2, &path);
    let index = manual().reads(Reads::Copy).open(&path).unwrap();
    assert_eq!(index.get(3).unwrap().unwrap(), rows[3 * DIM..4 * DIM]);
    let victim = &files(&path, "rows")[0];
    let mut bytes = std::fs::read(victim).unwrap();
    let stride = 64 + 32;
    bytes[64 + 3 * stride + 5] ^= 1;
    // In place: the file that is open has other bytes now.
    #[expect(clippy::disallowed_methods, reason = "another process overwrites a real file")]
    std::fs::write(victim, &bytes).unwrap();
    assert!(matches!(index.get(3), Err(Error::Corrupt { path, .. }) if path == *victim));
    assert_eq!(index.get(4).unwrap().unwrap(), rows[4 * DIM..5 * DIM]);
}

#[test]
fn a_host_lives_beside_a_neighbour_that_cuts_and_replaces_its_files() {
    const TEST: &str = "hostile::a_host_lives_beside_a_neighbour_that_cuts_and_replaces_its_files";
    let modes = [("map", Mode::Map), ("torn", Mode::Torn), ("copy", Mode::Copy)];
    let time = Duration::from_millis(1500);
    if let Some((part, dir)) = part() {
        let (part, mode) = part.split_once(' ').unwrap();
        let mode = modes.iter().find(|(name, _)| *name == mode).unwrap().1;
        return play(part, mode, &dir, 3, time);
    }
    for (name, mode) in modes {
        let start = |part: &str, dir: &Path| again(TEST, &format!("{part} {name}"), dir);
        let tally = supervise(3, time, start).unwrap_or_else(|why| panic!("{name}: {why}"));
        assert!(mode == Mode::Torn || tally.wrong == 0, "{name}: {tally:?}");
        println!("{name}: {tally:?}");
    }
}

/// What a file system refuses.
#[derive(Debug, Clone, Copy)]
enum Refusing {
    /// Locks, with this error.
    Locks(i32),
    Maps,
}

impl Refusing {
    fn disk(self) -> Arc<dyn Disk> {
        Arc::new(Through { layer: self, disk: FileSystem })
    }

    fn options(self) -> Options {
        manual().disk(self.disk())
    }
}

impl Layer for Refusing {
    fn around<T>(&self, call: Call<'_>, job: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        match (self, call) {
            (Self::Locks(errno), Call::Lock) => Err(io::Error::from_raw_os_error(*errno)),
            (Self::Maps, Call::Map { .. }) => Err(io::Error::from_raw_os_error(libc::ENOMEM)),
            _ => job(),
        }
    }
}
