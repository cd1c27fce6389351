//! What belongs to a whole process: signals, forks, limits.
#![allow(unsafe_code, reason = "signals, forks and foreign maps are what is tested")]

use super::*;
use cellardb::Maintenance;
use cellardb_campaign::patience::HANGS;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Instant;

/// Runs a part of a test in a process of its own.
fn run(test: &str, part: &str, dir: &Path) -> ExitStatus {
    again(&format!("hostile::process::{test}"), part, dir).status().unwrap()
}

extern "C" fn leave(_: libc::c_int) {
    // SAFETY: ends the process.
    unsafe { libc::_exit(42) }
}

/// Reads a byte of a file that was cut under a map which is not Cellar's.
fn fault(dir: &Path) {
    let path = dir.join("foreign");
    #[expect(clippy::disallowed_methods, reason = "a file of the test")]
    std::fs::write(&path, [1; 8192]).unwrap();
    let file = std::fs::File::open(&path).unwrap();
    // SAFETY: the test is about what happens when the file is cut.
    let map = unsafe { memmap2::Mmap::map(&file) }.unwrap();
    cut(&path, 0);
    std::hint::black_box(map[std::hint::black_box(5000)]);
}

#[test]
fn a_signal_that_is_not_ours_does_what_it_did_before() {
    const TEST: &str = "a_signal_that_is_not_ours_does_what_it_did_before";
    let Some((part, dir)) = part() else {
        let ends = [("default", (Some(7), None)), ("handler", (None, Some(42)))];
        let more =
            [("ours", (None, Some(0))), ("unguarded", (Some(7), None)), ("sent", (Some(7), None))];
        for (part, end) in ends.into_iter().chain(more) {
            let root = tempfile::tempdir().unwrap();
            made(SHAPES[2], Metric::L2, &root.path().join("index"));
            let status = run(TEST, part, root.path());
            assert_eq!((status.signal(), status.code()), end, "{part}");
        }
        return;
    };
    // A test that dies of SIGBUS need leave no core.
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: lowers a limit of this process.
    unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const none) };
    if part == "handler" {
        // SAFETY: installs a handler that only ends the process.
        unsafe { libc::signal(libc::SIGBUS, leave as extern "C" fn(libc::c_int) as usize) };
    }
    let path = dir.join("index");
    let index = manual().guard(part != "unguarded").open_read_only(&path).unwrap();
    let query = [1.0; DIM];
    index.search(&query, 3).unwrap();
    if part == "ours" || part == "unguarded" {
        files(&path, "rows").iter().for_each(|file| cut(file, 0));
        assert!(matches!(index.search(&query, 3), Err(Error::Corrupt { .. })));
    } else if part == "sent" {
        // The handler of the standard library ends at the first that it does not know.
        for _ in 0..2 {
            // SAFETY: sends a signal to this process.
            unsafe { libc::raise(libc::SIGBUS) };
        }
    } else {
        fault(&dir);
    }
}

/// Forks; the child does what it is told and says whether it went well.
fn fork(child: impl FnOnce() -> bool) -> libc::pid_t {
    // SAFETY: this process has no other thread that could hold a lock of the allocator for ever: the test
    // runs alone, and the threads of the index sleep.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0);
    if pid == 0 {
        let well = std::panic::catch_unwind(std::panic::AssertUnwindSafe(child)).unwrap_or(false);
        // SAFETY: ends the child without what the test process does at its end.
        unsafe { libc::_exit(i32::from(!well)) }
    }
    pid
}

/// The exit code of a child; none if it hangs.
fn reap(pid: libc::pid_t) -> Option<i32> {
    let start = Instant::now();
    while start.elapsed() < HANGS {
        let mut status = 0;
        // SAFETY: asks for the end of a child of ours.
        if unsafe { libc::waitpid(pid, &raw mut status, libc::WNOHANG) } == pid {
            return libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    // SAFETY: ends a child of ours.
    unsafe { libc::kill(pid, libc::SIGKILL) };
    None
}

#[test]
fn a_forked_child_is_refused_and_harms_nothing() {
    const TEST: &str = "a_forked_child_is_refused_and_harms_nothing";
    let Some((_, dir)) = part() else {
        let root = tempfile::tempdir().unwrap();
        assert!(run(TEST, "fork", root.path()).success());
        return;
    };
    // With a thread of the index, which is not in the child, and without.
    for maintenance in [Maintenance::Background, Maintenance::Manual] {
        child_of(&dir.join(format!("{maintenance:?}")), maintenance);
    }
}

fn child_of(path: &Path, maintenance: Maintenance) {
    let rows = made(SHAPES[2], Metric::L2, path);
    let options = || Options::stored().threads(2).maintenance(maintenance);
    let index = options().open(path).unwrap();
    index.insert_many(&rows[..10 * DIM]).unwrap();
    let bytes = || -> Vec<Vec<u8>> {
        let all = ["rows", "list", "redb"].map(|kind| files(path, kind)).concat();
        all.iter().chain([&path.join("LOCK")]).map(|file| std::fs::read(file).unwrap()).collect()
    };
    let before = bytes();
    // The child drops the last handle that it has; the memory of the parent is not the same.
    let handle = std::cell::Cell::new(Some(index));
    let pid = fork(|| {
        let (own, query) = (handle.take().unwrap(), &rows[..DIM]);
        let refused = [
            own.insert(query).err(),
            own.remove(1).err(),
            own.get(1).err(),
            own.search(query, 1).err(),
            own.search_many(query, 1).err(),
            own.query(query).exact().run().err(),
            own.flush().err(),
            own.train().err(),
            own.compact().err(),
            own.verify().err(),
            own.clone().close().err(),
        ];
        let stats = own.stats();
        let all = refused.iter().all(|e| matches!(e, Some(Error::Forked)));
        let told = stats.poisoned.is_some_and(|why| why.contains("forked"));
        let rows = own.len() == 1010 && own.ids().len() == 1010;
        drop(own);
        all && told && rows
    });
    assert_eq!(reap(pid), Some(0), "the child");
    assert!(bytes() == before, "the child wrote to files of its parent");
    let index = handle.take().unwrap();
    index.insert(&[1.0; DIM]).unwrap();
    assert!(index.verify().unwrap().damage.is_empty());
    // A child may open it once the parent has closed it, though it has the file of the lock too.
    let again = path.to_owned();
    let own = index.clone();
    let pid = fork(move || {
        let _inherited = own;
        loop {
            // Its commits are put off to what the background does, which is not that of the parent.
            let soon = cellardb::Durability::Interval(Duration::from_millis(5));
            match options().durability(soon).open(&again) {
                Err(Error::Locked { .. }) => std::thread::sleep(Duration::from_millis(20)),
                Err(_) => return false,
                Ok(index) => {
                    let found = index.search_many(&[1.0; 8 * DIM], 1);
                    let right = index.len() == 1011 && found.is_ok_and(|found| found.len() == 8);
                    let before = index.stats().seq;
                    let inserted = index.insert(&[2.0; DIM]).is_ok();
                    let waits = |_: &usize| index.stats().seq == before;
                    let pause = |_| std::thread::sleep(Duration::from_millis(5));
                    (0..1000).take_while(waits).for_each(pause);
                    let committed = index.stats().seq == before + 1;
                    return right && inserted && committed && index.close().is_ok();
                }
            }
        }
    });
    std::thread::sleep(Duration::from_millis(50));
    drop(index);
    assert_eq!(reap(pid), Some(0), "the child that opens anew");
    let index = manual().open(path).unwrap();
    assert_eq!(index.len(), 1012);
    assert!(index.verify().unwrap().damage.is_empty());
}

#[test]
fn hundreds_of_open_indexes_have_no_thread_of_their_own() {
    const TEST: &str = "hundreds_of_open_indexes_have_no_thread_of_their_own";
    let Some((_, dir)) = part() else {
        let root = tempfile::tempdir().unwrap();
        assert!(run(TEST, "open", root.path()).success());
        return;
    };
    let threads = || std::fs::read_dir("/proc/self/task").unwrap().count();
    let (before, later) = (threads(), Duration::from_millis(20));
    let options = SHAPES[1].options(DIM, Metric::L2).maintenance(Maintenance::Background);
    let options = options.threads(2).durability(cellardb::Durability::Interval(later));
    let indexes: Vec<Index> =
        (0..200).map(|n| options.create(dir.join(n.to_string())).unwrap()).collect();
    assert_eq!(threads(), before, "nothing is to be done");
    let rows = data::vectors(&mut Rng::new(8), 200, DIM, Metric::L2);
    // All of them are to be trained and committed; few threads do it.
    let mut most = 0;
    for index in &indexes {
        index.insert_many(&rows).unwrap();
        most = most.max(threads());
    }
    let done = |index: &Index| index.stats().lists > 0 && index.stats().seq > 1;
    let start = std::time::Instant::now();
    while !indexes.iter().all(done) {
        assert!(start.elapsed() < HANGS, "not all of them are trained");
        most = most.max(threads());
        std::thread::sleep(Duration::from_millis(5));
    }
    // Threads of the scheduler, 4 + 2 + 2, and two for each of three kinds of work.
    assert!(most > before && most <= before + 14, "{most} threads after {before}");
}

#[test]
fn few_descriptors_are_enough_for_hundreds_of_lists_that_cannot_be_mapped() {
    const TEST: &str = "few_descriptors_are_enough_for_hundreds_of_lists_that_cannot_be_mapped";
    let refusing = Refusing::Maps;
    let Some((_, dir)) = part() else {
        let (root, path) = home();
        let options = SHAPES[2].options(DIM, Metric::L2).nlist(300).segment_bytes(8 << 10);
        let index = options.create(&path).unwrap();
        index.insert_many(&data::vectors(&mut Rng::new(4), 3000, DIM, Metric::L2)).unwrap();
        index.train().unwrap();
        assert_eq!(index.stats().lists, 300);
        index.close().unwrap();
        let mut limited = Command::new("sh");
        let inner = again(&format!("hostile::process::{TEST}"), "few", root.path());
        limited.args(["-c", "ulimit -n 64 && exec \"$@\"", "sh"]).arg(inner.get_program());
        limited.args(inner.get_args()).envs(inner.get_envs().filter_map(|(k, v)| Some((k, v?))));
        assert!(limited.status().unwrap().success());
        return;
    };
    let path = dir.join("index");
    let queries = data::vectors(&mut Rng::new(5), 40, DIM, Metric::L2);
    let expected = answers(&manual().open_read_only(&path).unwrap(), &queries);
    let index = refusing.options().open(&path).unwrap();
    assert_eq!(answers(&index, &queries), expected);
    let mine = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    assert!(mine() < 32, "{} are open", mine());
    assert!(index.verify().unwrap().damage.is_empty());
    // All the others are taken: searches and inserts say what to do, and go on when there are more.
    let mut taken = Vec::new();
    while let Ok(file) = std::fs::File::open("/dev/null") {
        taken.push(file);
    }
    assert_eq!(answers(&index, &queries), expected, "those that are kept are closed for others");
    while let Ok(file) = std::fs::File::open("/dev/null") {
        taken.push(file);
    }
    let many = vec![1.0; 200 * DIM];
    // The catalog may be open still, or have to be opened for a commit.
    let before = match index.insert_many(&many) {
        Ok(ids) => ids.end,
        Err(e) => {
            assert!(matches!(&e, Error::Io { .. }) && e.to_string().contains("ulimit -n"), "{e}");
            3000
        }
    };
    // As may be enough of what was kept, to find that the index is open already.
    let refused = manual().open(&path).unwrap_err();
    let locked = matches!(refused, Error::Locked { .. });
    assert!(locked || refused.to_string().contains("ulimit -n"), "{refused}");
    assert_eq!((index.stats().poisoned, index.len()), (None, before));
    drop(taken);
    assert_eq!(index.insert_many(&many).unwrap(), before..before + 200);
    index.flush().unwrap();
    assert!(index.verify().unwrap().damage.is_empty());
}

/// How much address space this process has taken.
fn address_space() -> u64 {
    let sizes = std::fs::read_to_string("/proc/self/statm").unwrap();
    4096 * sizes.split_whitespace().next().unwrap().parse::<u64>().unwrap()
}

#[test]
fn maps_leave_room_where_the_address_space_is_limited() {
    const TEST: &str = "maps_leave_room_where_the_address_space_is_limited";
    const WIDE: usize = 4096;
    let Some((part, dir)) = part() else {
        let (root, path) = home();
        let options = Index::options(WIDE).maintenance(Maintenance::Manual);
        let index = options.segment_bytes(16 << 20).create(&path).unwrap();
        let rows = data::vectors(&mut Rng::new(12), 500, WIDE, Metric::L2);
        for _ in 0..12 {
            index.insert_many(&rows).unwrap();
        }
        assert!(index.stats().row_bytes > 90 << 20);
        index.close().unwrap();
        for room in ["16", "64", "110", "400"] {
            assert!(run(TEST, room, root.path()).success(), "{room} MiB");
        }
        return;
    };
    // Less than the index, and hardly more: without care all of it goes into maps.
    let room = part.parse::<u64>().unwrap() << 20;
    let most = address_space() + room;
    let limit = libc::rlimit { rlim_cur: most, rlim_max: most };
    // SAFETY: lowers a limit of this process.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_AS, &raw const limit) }, 0);
    let index = manual().memory(4 << 20).open(dir.join("index")).unwrap();
    let query = data::vectors(&mut Rng::new(12), 500, WIDE, Metric::L2);
    let found = index.query(&query[..WIDE]).k(12).exact().run().unwrap();
    assert!(found.iter().all(|(_, distance)| *distance == 0.0), "{found:?}");
    // What the host asks for is there.
    let mut mine = vec![1_u8; (room / 3) as usize];
    std::hint::black_box(&mut mine);
    let id = index.insert(&query[..WIDE]).unwrap();
    assert_eq!(index.get(id).unwrap().unwrap(), query[..WIDE]);
    index.close().unwrap();
}

#[test]
fn a_relative_path_leads_to_one_index_wherever_the_process_goes() {
    const TEST: &str =
        "hostile::process::a_relative_path_leads_to_one_index_wherever_the_process_goes";
    let Some((_, dir)) = part() else {
        let root = tempfile::tempdir().unwrap();
        assert!(again(TEST, "go", root.path()).status().unwrap().success());
        return;
    };
    let rows = data::vectors(&mut Rng::new(6), 300, DIM, Metric::L2);
    for place in ["here", "there"] {
        std::fs::create_dir(dir.join(place)).unwrap();
        std::env::set_current_dir(dir.join(place)).unwrap();
        let options = SHAPES[0].options(DIM, Metric::L2).segment_bytes(8 << 10);
        options.create("index").unwrap().insert_many(&rows).unwrap();
    }
    std::env::set_current_dir(dir.join("here")).unwrap();
    let index = manual().open("index").unwrap();
    for elsewhere in [dir.join("there"), "/".into()] {
        std::env::set_current_dir(elsewhere).unwrap();
        index.insert_many(&rows).unwrap();
    }
    index.close().unwrap();
    for (place, n) in [("here", 900), ("there", 300)] {
        let index = manual().open(dir.join(place).join("index")).unwrap();
        assert_eq!(index.len(), n, "{place}");
        assert!(index.verify().unwrap().damage.is_empty(), "{place}");
    }
}
