//! Paths that are unusual or hostile: what is written never harms an index, an input or an old file.

use super::*;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};

/// An index of 50 rows, and their file.
fn filled() -> Room {
    let room = Room::with_index("exact");
    room.write("a.npy", &f32_npy(&rows(0..50)));
    room.ok(&["import", "index", "a.npy"]);
    room
}

fn bytes(room: &Room, name: &str) -> Vec<u8> {
    fs::read(room.path(name)).unwrap()
}

#[test]
fn outputs_within_the_index_and_over_other_files_are_refused_before_anything_is_written() {
    let room = filled();
    symlink(room.path("index"), room.path("link")).unwrap();
    symlink(room.path("a.npy"), room.path("alias.npy")).unwrap();
    let kept = ["index/catalog.redb", "index/rows/0000000000.rows", "index/LOCK", "a.npy"];
    let before = kept.map(|name| bytes(&room, name));
    for out in ["index/catalog.redb", "index/new.npy", "link/rows/0000000000.rows"] {
        room.fails(2, &["search", "index", "a.npy", "--out", out]);
        room.fails(2, &["export", "index", out]);
        room.fails(2, &["export", "index", "out.npy", "--ids", out]);
        room.fails(2, &["import", "index", "a.npy", "--ack", out]);
    }
    for out in ["a.npy", "alias.npy", "./index/../a.npy"] {
        assert!(room.fails(2, &["search", "index", "a.npy", "--out", out]).contains("is read"));
        room.fails(2, &["import", "index", "a.npy", "--ack", out]);
    }
    symlink("out.npy", room.path("to-out.npy")).unwrap();
    for same in ["./out.npy", "to-out.npy"] {
        room.fails(2, &["export", "index", "out.npy", "--ids", same]);
    }
    assert!(!room.path("out.npy").exists());
    assert!(kept.map(|name| bytes(&room, name)) == before, "a file was changed");
    assert_eq!(room.rows(), 50);
}

#[test]
fn an_output_takes_its_name_only_when_it_is_whole() {
    let room = filled();
    let mut data = f32s(&rows(0..20));
    data[15 * 16..15 * 16 + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    room.write("nan.npy", &npy("<f4", (20, DIM), &data));
    room.write("ids.npy", b"the only copy");
    let message = room.fails(1, &["search", "index", "nan.npy", "--out", "ids.npy"]);
    assert!(message.contains("nan.npy: row 15"), "{message}");
    assert_eq!(bytes(&room, "ids.npy"), b"the only copy");
    room.write("truth.npy", &npy("<i8", (20, 10), &[0; 20 * 10 * 8]));
    let message = room.fails(1, &["bench", "index", "nan.npy", "--truth", "truth.npy"]);
    assert!(message.contains("nan.npy: row 15"), "{message}");

    room.ok(&["search", "index", "a.npy", "-k", "1", "--out", "ids.npy"]);
    assert_eq!(npy_data(&room.path("ids.npy")).len(), 50 * 8);
    let mode = fs::metadata(room.path("ids.npy")).unwrap().permissions().mode();
    let usual = fs::metadata(room.path("a.npy")).unwrap().permissions().mode();
    assert_eq!(mode, usual);
    symlink("ids.npy", room.path("link.npy")).unwrap();
    room.ok(&["export", "index", "link.npy"]);
    assert!(fs::symlink_metadata(room.path("link.npy")).unwrap().is_symlink());
    assert_eq!(npy_data(&room.path("ids.npy")), f32s(&rows(0..50)));
    let left = fs::read_dir(room.dir.path()).unwrap();
    let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.as_bytes().starts_with(b".")), "{left:?}");
}

#[test]
fn what_is_no_file_is_written_through_and_never_read() {
    let room = filled();
    let piped = room.command(&["export", "index", "/dev/stdout", "-q"]).output().unwrap();
    assert!(piped.status.success(), "{}", text(&piped.stderr));
    room.ok(&["search", "index", "a.npy", "--out", "/dev/null"]);
    assert!(!fs::metadata("/dev/null").unwrap().is_file());
    fs::create_dir(room.path("folder")).unwrap();
    assert!(room.fails(1, &["export", "index", "folder"]).contains("directory"));
    assert!(Command::new("mkfifo").arg(room.path("pipe.npy")).status().unwrap().success());
    for verb in [["import", "index", "pipe.npy"], ["search", "index", "pipe.npy"]] {
        assert!(room.fails(1, &verb).contains("not a regular file"));
    }
}

#[test]
fn names_that_are_not_text_are_no_reason_to_panic() {
    let room = filled();
    let name = |stem: &[u8]| OsStr::from_bytes(stem).to_owned();
    let (dir, out, ids) = (name(b"index-\xFF"), name(b"out-\xFE.npy"), name(b"ids-\xFD.npy"));
    let run = |code: i32, arguments: &[&OsStr]| {
        let output = room.command(&[]).args(arguments).output().unwrap();
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {message}");
        assert!(!message.contains("panicked"), "{message}");
    };
    let [create, import, export, search, verify, stats] =
        ["create", "import", "export", "search", "verify", "stats"].map(OsStr::new);
    let [dim, four, ids_flag, out_flag] = ["--dim", "4", "--ids", "--out"].map(OsStr::new);
    run(0, &[create, &dir, dim, four]);
    fs::copy(room.path("a.npy"), room.path("").join(name(b"a-\xFC.npy"))).unwrap();
    run(0, &[import, &dir, &name(b"a-\xFC.npy")]);
    run(0, &[export, &dir, &out, ids_flag, &ids]);
    run(0, &[search, &dir, &out, out_flag, &ids]);
    run(0, &[verify, &dir]);
    File::create(room.path("").join(&dir).join("catalog.redb")).unwrap().write_all(b"?").unwrap();
    run(3, &[verify, &dir]);
    run(3, &[stats, &dir]);
}

#[test]
fn a_file_in_the_place_of_the_directory_is_named() {
    let room = filled();
    let message = room.fails(1, &["create", "a.npy", "--dim", "4"]);
    assert!(message.contains("a.npy") && message.contains("directory"), "{message}");
    assert!(room.fails(1, &["stats", "a.npy"]).contains("no index here"));
    assert!(room.fails(1, &["create", "index", "--dim", "4"]).contains("cellardb import"));
}
