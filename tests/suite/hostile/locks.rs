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
