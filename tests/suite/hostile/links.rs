//! Links in a directory that somebody else has made: opening or repairing it reads and writes nothing outside.

use super::*;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;

const ROWS: usize = 150;

/// The bytes of all files below a directory.
fn bytes(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for path in fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()) {
        if path.is_dir() {
            found.extend(self::bytes(&path));
        } else {
            found.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
    found
}

/// An index, and another elsewhere that is to stay as it is.
fn pair() -> (tempfile::TempDir, PathBuf, PathBuf) {
    let (root, path) = home();
    let victim = path.with_extension("victim");
    for path in [&path, &victim] {
        let index = SHAPES[1].options(DIM, Metric::L2).create(path).unwrap();
        index.insert_many(&data::vectors(&mut Rng::new(9), ROWS, DIM, Metric::L2)).unwrap();
        index.train().unwrap();
        index.close().unwrap();
    }
    (root, path, victim)
}

fn remove(path: &Path) {
    fs::remove_file(path).or_else(|_| fs::remove_dir_all(path)).unwrap();
}

#[test]
fn a_link_out_of_an_index_is_refused_and_what_it_leads_to_is_untouched() {
    let (_root, whole, victim) = pair();
    let before = bytes(&victim);
    for name in ["LOCK", "catalog.redb", "rows", "lists", "lists/g0001", "lists/g0001/000"] {
        let path = whole.with_extension(name.replace('/', "-"));
        assert!(Command::new("cp").arg("-r").args([&whole, &path]).status().unwrap().success());
        let link = path.join(name);
        remove(&link);
        symlink(victim.join(name), &link).unwrap();
        let opened = manual().open(&path);
        let Err(Error::Corrupt { path: named, what, .. }) = &opened else {
            panic!("{name}: {opened:?}")
        };
        assert!(*named == link && what.contains("link"), "{name}: {what}");
        assert_eq!(bytes(&victim), before, "{name}: opened");
        let _ = manual().open_read_only(&path).map(|index| index.close());
        assert_eq!(bytes(&victim), before, "{name}: read");
        let repaired = manual().metric(Metric::L2).repair(&path);
        assert_eq!(bytes(&victim), before, "{name}: repaired: {repaired:?}");
        if name == "rows" {
            let why = repaired.unwrap_err().to_string();
            assert!(why.contains("rows") && why.contains("link"), "{why}");
        } else {
            assert_eq!(
                repaired.unwrap_or_else(|e| panic!("{name}: {e}")).rows,
                ROWS as u64,
                "{name}"
            );
            manual().open(&path).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert_eq!(bytes(&victim), before, "{name}: opened after the repair");
        }
    }
}

#[test]
fn nothing_is_made_through_a_link() {
    for name in ["LOCK", "rows", "lists", "catalog.new"] {
        let (_root, path) = home();
        let outside = path.with_extension("outside");
        fs::create_dir(&path).unwrap();
        if matches!(name, "rows" | "lists") {
            fs::create_dir(&outside).unwrap();
        } else {
            fs::copy("/proc/self/cmdline", &outside).unwrap();
        }
        let before = fs::read(&outside).ok();
        symlink(&outside, path.join(name)).unwrap();
        let made = SHAPES[0].options(DIM, Metric::L2).create(&path);
        assert_eq!(made.is_ok(), name == "catalog.new", "{name}: {made:?}");
        drop(made);
        assert_eq!(fs::read(&outside).ok(), before, "{name}");
        assert!(fs::read_dir(&outside).map_or(0, Iterator::count) == 0, "{name}");
    }
}

#[test]
fn an_index_that_a_link_leads_to_is_one_index() {
    let (_root, path) = home();
    let rows = made(SHAPES[2], Metric::L2, &path);
    let link = path.with_extension("link");
    symlink(&path, &link).unwrap();
    let index = manual().open(&link).unwrap();
    assert!(matches!(manual().open(&path), Err(Error::Locked { .. })));
    index.insert(&rows[..DIM]).unwrap();
    index.close().unwrap();
    assert!(manual().repair(&link).unwrap().damage.is_empty());
    assert_eq!(manual().open(&path).unwrap().len(), 1001);
}

#[test]
fn segments_of_another_index_are_not_swept_away() {
    let (_root, path, victim) = pair();
    let stray = files(&victim, "rows").remove(0);
    let copy = path.join("rows/0000000900.rows");
    fs::copy(&stray, &copy).unwrap();
    let orphan = path.join("rows/0000000901.rows");
    fs::copy(files(&path, "rows").remove(0), &orphan).unwrap();
    cut(&orphan, 30);
    manual().open(&path).unwrap();
    assert_eq!(fs::read(&copy).unwrap(), fs::read(&stray).unwrap());
    assert!(!orphan.exists(), "what a crash left is removed");
}
