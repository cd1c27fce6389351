//! Who may have an index open, whatever becomes of its lock.

use super::*;

#[test]
fn a_file_system_without_locks_is_refused_with_advice() {
    let (_root, path) = home();
    made(SHAPES[0], Metric::L2, &path);
    for errno in [libc::ENOLCK, libc::EOPNOTSUPP, libc::EINVAL, libc::ENOSYS] {
        let refusing = Refusing::Locks(errno);
        let options = refusing.options();
        let other = path.with_extension("other");
        let tries = [options.open(&path), options.open_read_only(&path)];
        let created = SHAPES[0].options(DIM, Metric::L2).disk(refusing.disk());
        for refused in tries.into_iter().chain([created.create(&other)]) {
            let Err(e @ Error::Io { op: "lock", .. }) = refused else { panic!("{refused:?}") };
            let text = e.to_string();
            assert!(text.contains("LOCK") && text.contains("move the index to a local"), "{text}");
        }
    }
    assert!(manual().open(&path).is_ok());
}

fn is_locked(opened: cellardb::Result<Index>) -> bool {
    match opened {
        Err(e @ Error::Locked { .. }) => e.to_string().contains("close it there, or wait"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_lock_that_was_removed_or_replaced_lets_nobody_in() {
    for replaced in [false, true] {
        let (_root, path) = home();
        let rows = made(SHAPES[1], Metric::L2, &path);
        let index = manual().open(&path).unwrap();
        assert!(is_locked(manual().open(&path)) && is_locked(manual().open_read_only(&path)));
        let lock = path.join("LOCK");
        match replaced {
            true => replace(&lock, &std::fs::read(&lock).unwrap()),
            false => std::fs::remove_file(&lock).unwrap(),
        }
        assert!(is_locked(manual().open(&path)) && is_locked(manual().open_read_only(&path)));
        let id = index.insert(&rows[..DIM]).unwrap();
        index.close().unwrap();
        let index = manual().open(&path).unwrap();
        assert_eq!(index.get(id).unwrap().unwrap(), rows[..DIM]);
        assert!(index.verify().unwrap().damage.is_empty());
    }
}

#[test]
fn what_would_be_lost_with_a_replaced_catalog_is_not_acknowledged() {
    for removed in [false, true] {
        let (_root, path) = home();
        let rows = made(SHAPES[1], Metric::L2, &path);
        let index = manual().open(&path).unwrap();
        let catalog = path.join("catalog.redb");
        match removed {
            true => std::fs::remove_file(&catalog).unwrap(),
            false => replace(&catalog, &std::fs::read(&catalog).unwrap()),
        }
        let lost = index.insert(&rows[..DIM]);
        assert!(matches!(&lost, Err(Error::Corrupt { path, .. }) if *path == catalog), "{lost:?}");
        assert!(matches!(index.insert(&rows[..DIM]), Err(Error::Poisoned { .. })));
        assert_eq!(index.search(&rows[..DIM], 1).unwrap()[0].1, 0.0, "searches go on");
    }
}

#[test]
fn an_index_that_takes_the_place_of_an_open_one_is_left_alone() {
    for shape in [SHAPES[0], SHAPES[2]] {
        let (root, path) = home();
        made(shape, Metric::L2, &path);
        let other = root.path().join("other");
        let rows = made(shape, Metric::L2, &other);
        // It has files under the names that the open one would take next.
        manual().open(&other).unwrap().insert_many(&rows.repeat(4)).unwrap();
        let index = manual().open(&path).unwrap();
        // It begins a segment at once.
        index.remove(999).unwrap();
        index.compact().unwrap();
        #[expect(clippy::disallowed_methods, reason = "somebody moves the directories")]
        {
            std::fs::rename(&path, root.path().join("old")).unwrap();
            std::fs::rename(&other, &path).unwrap();
        }
        let new = manual().open(&path).unwrap();
        let tries = [index.insert_many(&rows).map(drop), index.train(), index.compact().map(drop)];
        for refused in tries {
            let Err(e) = refused else { continue };
            let text = e.to_string();
            let known = matches!(e, Error::Moved { .. });
            let named = text.contains("no longer at its place");
            assert!(known && named, "{text}");
        }
        drop(index);
        assert!(new.verify().unwrap().damage.is_empty());
        new.insert_many(&rows).unwrap();
        new.close().unwrap();
        let new = manual().open(&path).unwrap();
        assert_eq!(new.len(), 6000);
        assert!(new.verify().unwrap().damage.is_empty());
    }
}

/// The most memory that this process has had, in KiB.
fn most_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_segment_that_somebody_lengthened_takes_rows() {
    let (_root, path) = home();
    let rows = made(SHAPES[0], Metric::L2, &path);
    let last = files(&path.join("rows"), "rows").pop().unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(last).unwrap();
    file.set_len(1 << 40).unwrap();
    let before = most_memory();
    let index = manual().open(&path).unwrap();
    index.insert_many(&rows).unwrap();
    assert!(most_memory() - before < 1 << 20, "memory was taken in proportion to the file");
    index.close().unwrap();
    let index = manual().open(&path).unwrap();
    assert_eq!(index.len(), 2000);
    assert!(index.verify().unwrap().damage.is_empty());
}
