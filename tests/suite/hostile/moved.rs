//! The directory of an open index is renamed: what has to open a file says so, nothing that was acknowledged is
//! lost, and everything goes on when it is moved back.

use super::*;
use cellardb::{Durability, Maintenance};

#[expect(clippy::disallowed_methods, reason = "somebody moves a real directory")]
fn mv(from: &Path, to: &Path) {
    std::fs::rename(from, to).unwrap();
}

/// An error that says what happened, and nothing of damage.
fn says_so<T: std::fmt::Debug>(what: &str, done: cellardb::Result<T>) {
    match done {
        Err(e @ Error::Moved { .. }) => {
            let text = e.to_string();
            assert!(text.contains("no longer at its place") && !text.contains("repair"), "{text}");
            assert!(text.contains("move it back"), "{text}");
        }
        other => panic!("{what}: {other:?}"),
    }
}

/// Every shape with either way to read, every way to read with strict and with relaxed durability.
fn ways() -> Vec<(Shape, Reads, Durability)> {
    let (strict, relaxed) = (Durability::Commit, Durability::Interval(Duration::from_secs(3600)));
    let mut all = vec![(SHAPES[1], Reads::Map, relaxed), (SHAPES[1], Reads::Copy, strict)];
    for shape in SHAPES {
        all.extend([(shape, Reads::Map, strict), (shape, Reads::Copy, relaxed)]);
    }
    all
}

#[test]
fn what_needs_files_of_a_renamed_directory_says_so_and_goes_on_when_it_is_back() {
    for (shape, reads, durability) in ways() {
        let (root, path) = home();
        let rows = made(shape, Metric::L2, &path);
        let index = manual().reads(reads).durability(durability).open(&path).unwrap();
        let before = answers(&index, &rows[..8 * DIM]);
        let strict = durability == Durability::Commit;
        // A segment that is not full takes rows; the next one has to be begun.
        let many = rows.repeat(2);
        let away = root.path().join("away");
        mv(&path, &away);
        if strict {
            says_so("insert", index.insert(&rows[..DIM]));
            says_so("remove", index.remove(5));
        }
        says_so("insert_many", index.insert_many(&many));
        says_so("flush", index.flush());
        says_so("train", index.train().and(index.flush()));
        says_so("compact", index.compact());
        says_so("verify", index.verify());
        if reads == Reads::Copy {
            // Those files that are kept open answer still.
            if let Some(e) = (0..1000).find_map(|id| index.get(id).err()) {
                says_so::<()>("get", Err(e));
            }
        } else {
            assert_eq!(answers(&index, &rows[..8 * DIM]), before, "maps need no names");
        }
        assert_eq!(index.stats().poisoned, None, "{} {reads:?} {durability:?}", shape.name);
        mv(&away, &path);
        assert_eq!(answers(&index, &rows[..8 * DIM]), before);
        let len = index.len();
        let ids = index.insert_many(&many).unwrap();
        index.flush().unwrap();
        index.train().unwrap();
        index.remove_many(&(0..900).step_by(3).collect::<Vec<_>>()).unwrap();
        index.compact().unwrap();
        assert_eq!(index.len(), len + 2000 - 300);
        index.close().unwrap();
        let index = manual().open(&path).unwrap();
        assert_eq!(index.get(ids.start + 3).unwrap().unwrap(), many[3 * DIM..4 * DIM]);
        assert_eq!(index.len(), len + 2000 - 300);
        let damage = index.verify().unwrap().damage;
        assert!(damage.is_empty(), "{damage:?}");
    }
}

#[test]
fn files_that_are_read_without_maps_are_not_damaged_because_their_directory_was_renamed() {
    for read_only in [false, true] {
        let (root, path) = home();
        let options = SHAPES[0].options(DIM, Metric::L2).segment_bytes(4096);
        let index = options.create(&path).unwrap();
        let rows = data::vectors(&mut Rng::new(9), 20_000, DIM, Metric::L2);
        index.insert_many(&rows).unwrap();
        assert!(index.stats().segments > 256, "more than are kept open");
        index.close().unwrap();
        let options = manual().reads(Reads::Copy);
        let index = if read_only { options.open_read_only(&path) } else { options.open(&path) };
        let index = index.unwrap();
        let before = index.search(&rows[..DIM], 5).unwrap();
        // Elsewhere, nowhere, and with another index in its place.
        let (away, other) = (root.path().join("away"), root.path().join("other"));
        made(SHAPES[0], Metric::L2, &other);
        mv(&path, &away);
        says_so("search", index.search(&rows[..DIM], 5));
        says_so("verify", index.verify());
        mv(&other, &path);
        says_so("search beside another", index.search(&rows[..DIM], 5));
        mv(&path, &other);
        mv(&away, &path);
        assert_eq!(index.search(&rows[..DIM], 5).unwrap(), before);
        // A file that is missing while its directory is there is damage, as ever.
        let victim = files(&path, "rows").into_iter().next().unwrap();
        std::fs::remove_file(&victim).unwrap();
        let lost = index.search(&rows[..DIM], 5);
        assert!(matches!(&lost, Err(Error::Corrupt { path, .. }) if *path == victim), "{lost:?}");
    }
}

#[test]
fn nothing_acknowledged_is_lost_by_a_directory_that_is_renamed_again_and_again() {
    let (root, path) = home();
    let options = SHAPES[1].options(DIM, Metric::L2).segment_bytes(8 << 10);
    let index = options.maintenance(Maintenance::Background).create(&path).unwrap();
    let away = root.path().join("away");
    let working = Arc::new(());
    let (mut kept, mut refused) = (Vec::new(), 0);
    std::thread::scope(|scope| {
        let worker = Arc::downgrade(&working);
        let (path, away) = (&path, &away);
        scope.spawn(move || {
            while worker.strong_count() > 0 {
                mv(path, away);
                std::thread::sleep(Duration::from_millis(3));
                mv(away, path);
                std::thread::sleep(Duration::from_millis(30));
            }
        });
        // Gone when this ends, however it does.
        let _working = working;
        let mut rng = Rng::new(11);
        for n in 0..100_000 {
            let rows = data::vectors(&mut rng, 1 + n % 40, DIM, Metric::L2);
            match index.insert_many(&rows) {
                Ok(ids) => kept.push((ids.start, rows)),
                Err(Error::Moved { .. }) => {
                    refused += 1;
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(other) => panic!("{other}"),
            }
            if n % 50 == 49
                && let Err(e) = index.flush()
            {
                assert!(matches!(e, Error::Moved { .. }), "{e}");
            }
            if kept.len() > 100 && refused > 100 {
                break;
            }
        }
    });
    assert!(kept.len() > 100 && refused > 100, "{} kept, {refused} refused", kept.len());
    assert_eq!(index.stats().poisoned, None);
    index.insert(&[0.5; DIM]).unwrap();
    index.close().unwrap();
    let index = manual().open(&path).unwrap();
    for (first, rows) in kept {
        for (id, row) in (first..).zip(rows.chunks(DIM)) {
            assert_eq!(index.get(id).unwrap().as_deref(), Some(row), "row {id}");
        }
    }
    assert!(index.verify().unwrap().damage.is_empty());
}

#[test]
fn what_relaxed_durability_has_put_off_is_in_the_directory_wherever_that_is() {
    let (root, path) = home();
    let rows = made(SHAPES[1], Metric::L2, &path);
    let options = manual().durability(Durability::Interval(Duration::from_secs(3600)));
    let index = options.open(&path).unwrap();
    let id = index.insert(&rows[..DIM]).unwrap();
    let away = root.path().join("away");
    mv(&path, &away);
    says_so("close", index.close());
    let index = manual().open(&away).unwrap();
    assert_eq!(index.get(id).unwrap().unwrap(), rows[..DIM]);
    assert!(index.verify().unwrap().damage.is_empty());
}
