//! Files that were made longer and hold nothing there: terabytes that cost neither time nor memory.

use super::*;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Much more than such an index has, and a small part of a terabyte.
const MOST: u64 = 64 << 20;

/// As long as the file system here lets a file be.
fn lengthen(path: &Path) -> u64 {
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    let len = (36..43).rev().map(|n| 1 << n).find(|len| file.set_len(*len).is_ok());
    len.unwrap()
}

/// A copy of an index that is open for writing: as a kill would leave it.
fn killed() -> (tempfile::TempDir, PathBuf, Vec<f32>) {
    let (root, path) = home();
    let rows = made(SHAPES[2], Metric::L2, &path);
    let index = manual().open(&path).unwrap();
    index.remove_many(&[3, 4, 5]).unwrap();
    let copy = path.with_extension("copy");
    let copied = Command::new("cp").arg("-r").args([&path, &copy]).status().unwrap();
    assert!(copied.success());
    (root, copy, rows)
}

/// Counts the bytes that are read, mapped or written.
#[derive(Debug, Clone, Default)]
struct Touched(Arc<AtomicU64>);

impl Layer for Touched {
    fn around<T>(&self, call: Call<'_>, job: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let bytes = match call {
            Call::Read { len } => len as u64,
            Call::Write { data, .. } => data.len() as u64,
            Call::Map { len } => len,
            _ => 0,
        };
        self.0.fetch_add(bytes, Relaxed);
        job()
    }
}

impl Touched {
    fn options(&self) -> Options {
        manual().disk(Arc::new(Through { layer: self.clone(), disk: FileSystem }))
    }

    /// Does it without touching more than a small part of a terabyte.
    fn little<T>(&self, what: &str, job: impl FnOnce() -> T) -> T {
        let before = self.0.load(Relaxed);
        let done = job();
        let touched = self.0.load(Relaxed) - before;
        assert!(touched < MOST, "{what} touched {touched} bytes");
        done
    }
}

#[test]
fn a_catalog_that_was_lengthened_opens_after_a_kill() {
    let (_root, path, rows) = killed();
    let touched = Touched::default();
    let catalog = path.join("catalog.redb");
    let len = lengthen(&catalog);
    let index = touched.little("reading", || touched.options().open_read_only(&path).unwrap());
    assert_eq!(index.len(), 997);
    drop(index);
    let index = touched.little("opening", || touched.options().open(&path).unwrap());
    index.insert(&rows[..DIM]).unwrap();
    assert!(touched.little("verifying", || index.verify().unwrap()).damage.is_empty());
    touched.little("closing", || index.close().unwrap());
    assert!(fs::metadata(&catalog).unwrap().len() < len);
    assert_eq!(
        touched.little("opening again", || touched.options().open(&path).unwrap()).len(),
        998
    );
}

#[test]
fn lengthened_files_are_repaired_as_if_they_were_not() {
    let (_root, path, _) = killed();
    let touched = Touched::default();
    let catalog = path.join("catalog.redb");
    let mut bytes = fs::read(&catalog).unwrap();
    for page in bytes.chunks_mut(4096).skip(1).step_by(3) {
        page[9] ^= 1;
    }
    replace(&catalog, &bytes);
    lengthen(&catalog);
    let segments = files(&path, "rows");
    for segment in [&segments[0], &segments[segments.len() - 1]] {
        let mut bytes = fs::read(segment).unwrap();
        bytes[64 + 7] ^= 1;
        replace(segment, &bytes);
        lengthen(segment);
    }
    let repaired =
        touched.little("repairing", || touched.options().metric(Metric::L2).repair(&path).unwrap());
    let lost: usize = repaired.lost.iter().map(ExactSizeIterator::len).sum();
    assert!(repaired.rows >= 995 && lost <= 2, "{repaired:?}");
    for aside in &repaired.aside {
        let held = fs::metadata(aside).unwrap().blocks() * 512;
        assert!(held < 64 << 20, "{}: {held} bytes", aside.display());
    }
    assert!(manual().open(&path).unwrap().verify().unwrap().damage.is_empty());
}
