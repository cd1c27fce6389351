//! The built binary on small files: formats, exit codes, resumption, hostile input.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "cli/again.rs"]
mod again;
#[path = "cli/arrays.rs"]
mod arrays;
#[path = "cli/bench.rs"]
mod bench;
#[path = "cli/counts.rs"]
mod counts;
#[path = "cli/paths.rs"]
mod paths;
#[path = "cli/repair.rs"]
mod repair;
#[path = "cli/wait.rs"]
mod wait;
#[path = "cli/words.rs"]
mod words;

use serde_json::Value;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const DIM: usize = 4;

struct Room {
    dir: TempDir,
}

impl Room {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn with_index(kind: &str) -> Self {
        let room = Self::new();
        room.ok(&["create", "index", "--dim", "4", "--kind", kind]);
        room
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cellardb"));
        command.args(arguments).arg("--json").current_dir(self.dir.path()).stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// The JSON lines that a verb prints; it must succeed.
    fn lines(&self, arguments: &[&str]) -> Vec<Value> {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn ok(&self, arguments: &[&str]) -> Value {
        let lines = self.lines(arguments);
        assert_eq!(lines.len(), 1, "{arguments:?}");
        lines.into_iter().next().unwrap()
    }

    /// The message on standard error; the verb must fail with this code and print no result.
    fn fails(&self, code: i32, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {message}");
        assert_eq!(text(&output.stdout), "", "{arguments:?}");
        message
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        File::create(self.path(name)).unwrap().write_all(bytes).unwrap();
    }

    fn rows(&self) -> u64 {
        self.ok(&["stats", "index"])["rows"].as_u64().unwrap()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Small whole numbers, so that every element type holds them exactly; no two rows are equal.
fn rows(range: std::ops::Range<usize>) -> Vec<[i8; DIM]> {
    range.map(|i| [(i % 100) as i8, (i / 100) as i8, (i * i % 127) as i8, 1]).collect()
}

fn npy(descr: &str, shape: (usize, usize), data: &[u8]) -> Vec<u8> {
    let dict = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape:?}, }}\n");
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((dict.len() as u16).to_le_bytes());
    bytes.extend(dict.as_bytes());
    bytes.extend(data);
    bytes
}

fn values<const N: usize>(rows: &[[i8; DIM]], convert: impl Fn(i8) -> [u8; N]) -> Vec<u8> {
    rows.iter().flatten().flat_map(|value| convert(*value)).collect()
}

fn f32s(rows: &[[i8; DIM]]) -> Vec<u8> {
    values(rows, |x| f32::from(x).to_le_bytes())
}

fn f32_npy(rows: &[[i8; DIM]]) -> Vec<u8> {
    npy("<f4", (rows.len(), DIM), &f32s(rows))
}

/// Each row preceded by its dimension.
fn prefixed(rows: &[[i8; DIM]], convert: impl Fn(&[i8; DIM]) -> Vec<u8>) -> Vec<u8> {
    rows.iter().flat_map(|row| [vec![DIM as u8, 0, 0, 0], convert(row)].concat()).collect()
}

fn with_counts(rows: usize, data: &[u8]) -> Vec<u8> {
    [&(rows as u32).to_le_bytes()[..], &(DIM as u32).to_le_bytes()[..], data].concat()
}

/// What follows the header of a .npy file that this program wrote.
fn npy_data(path: &Path) -> Vec<u8> {
    let bytes = fs::read(path).unwrap();
    let start = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    assert_eq!(start % 64, 0);
    bytes[start..].to_vec()
}

#[test]
fn every_format_comes_out_as_it_went_in() {
    let rows = rows(0..50);
    let n = rows.len();
    let unsigned = |x: i8| [x as u8];
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("f4.npy", npy("<f4", (n, DIM), &f32s(&rows))),
        ("f8.npy", npy("<f8", (n, DIM), &values(&rows, |x| f64::from(x).to_le_bytes()))),
        ("u1.npy", npy("|u1", (n, DIM), &values(&rows, unsigned))),
        ("i1.npy", npy("|i1", (n, DIM), &values(&rows, i8::to_le_bytes))),
        ("i4.npy", npy("<i4", (n, DIM), &values(&rows, |x| i32::from(x).to_le_bytes()))),
        ("i8.npy", npy("<i8", (n, DIM), &values(&rows, |x| i64::from(x).to_le_bytes()))),
        ("a.fvecs", prefixed(&rows, |row| f32s(&[*row]))),
        ("a.bvecs", prefixed(&rows, |row| values(&[*row], unsigned))),
        ("a.fbin", with_counts(n, &f32s(&rows))),
        ("a.u8bin", with_counts(n, &values(&rows, unsigned))),
    ];
    for (name, bytes) in cases {
        let room = Room::with_index("exact");
        room.write(name, &bytes);
        let imported = room.ok(&["import", "index", name, "--batch", "7"]);
        assert_eq!(imported["rows"], n, "{name}");
        let exported = room.ok(&["export", "index", "out.npy", "--ids", "ids.npy"]);
        assert_eq!(exported["rows"], n, "{name}");
        assert_eq!(npy_data(&room.path("out.npy")), f32s(&rows), "{name}");
        let ids: Vec<u8> = (0..n as i64).flat_map(i64::to_le_bytes).collect();
        assert_eq!(npy_data(&room.path("ids.npy")), ids, "{name}");
        // What was exported can be imported.
        room.ok(&["create", "again", "--dim", "4"]);
        assert_eq!(room.ok(&["import", "again", "out.npy"])["rows"], n, "{name}");
    }
}

#[test]
fn damaged_or_hostile_vector_files_are_refused_by_name_and_nothing_is_stored() {
    let room = Room::with_index("exact");
    let rows = rows(0..10);
    let whole = f32_npy(&rows);
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("empty.npy", vec![], "empty"),
        ("empty.fvecs", vec![], "empty"),
        ("short.npy", whole[..whole.len() - 1].to_vec(), "bytes long"),
        ("long.npy", [&whole[..], &[0]].concat(), "bytes long"),
        ("not.npy", b"PK\x03\x04 something else".to_vec(), "not a .npy file"),
        ("complex.npy", npy("<c8", (10, 2), &f32s(&rows)), "<c8"),
        ("vast.npy", npy("<f4", (1 << 62, DIM), &f32s(&rows)), "no file is so long"),
        ("wide.npy", npy("<f4", (1, 70_000), &[0; 280_000]), "70000 values"),
        ("narrow.npy", npy("<f4", (10, 0), &[]), "0 values"),
        ("dim.npy", npy("<f4", (20, 2), &f32s(&rows)), "2 dimensions, the index has 4"),
        ("short.fvecs", prefixed(&rows, |row| f32s(&[*row]))[..199].to_vec(), "bytes long"),
        ("zero.fvecs", vec![0; 40], "0 values"),
        ("huge.fvecs", vec![0xFF; 40], "4294967295 values"),
        ("three.fvecs", vec![4, 0, 0], "too short"),
        ("short.fbin", with_counts(11, &f32s(&rows)), "bytes long"),
        ("huge.fbin", vec![0xFF; 64], "4294967295 values"),
        ("words.txt", b"hello".to_vec(), "extension"),
    ];
    for (name, bytes, reason) in cases {
        room.write(name, &bytes);
        let message = room.fails(1, &["import", "index", name]);
        assert!(message.contains(reason) && message.contains(name), "{name}: {message}");
    }
    let mut uneven = prefixed(&rows, |row| f32s(&[*row]));
    uneven[20] = 3;
    room.write("uneven.fvecs", &uneven);
    assert!(room.fails(1, &["import", "index", "uneven.fvecs"]).contains("row 1"));
    assert!(room.fails(1, &["import", "index", "absent.npy"]).contains("absent.npy"));
    assert!(room.fails(1, &["import", "index", "index"]).contains("not a regular file"));
    assert_eq!(room.rows(), 0);
}

#[test]
fn a_row_that_the_index_refuses_is_named_by_its_place_in_the_file() {
    let room = Room::with_index("exact");
    let mut data = f32s(&rows(0..20));
    data[15 * 16..15 * 16 + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    room.write("nan.npy", &npy("<f4", (20, DIM), &data));
    let message = room.fails(1, &["import", "index", "nan.npy", "--batch", "8"]);
    assert!(message.contains("nan.npy") && message.contains("row 15"), "{message}");
    assert_eq!(room.rows(), 8);
}

#[test]
fn exit_codes_say_what_went_wrong() {
    let room = Room::with_index("exact");
    room.fails(2, &["create", "other"]);
    room.fails(2, &["create", "other", "--dim", "0"]);
    room.fails(2, &["create", "other", "--dim", "4", "--nlist", "1000000"]);
    room.fails(2, &["no-such-verb"]);
    room.fails(2, &["search", "index", "q.npy", "--exact", "--recall", "0.9"]);
    room.fails(1, &["create", "index", "--dim", "4"]);
    assert!(room.fails(1, &["stats", "absent"]).contains("cellardb create"));
    assert!(room.fails(1, &["get", "absent", "1"]).contains("no index"));
    assert_eq!(room.run(&["--help"]).status.code(), Some(0));

    let writer = cellardb::Index::open(room.path("index")).unwrap();
    room.write("q.npy", &f32_npy(&rows(0..1)));
    for verb in [["import", "index", "q.npy"], ["remove", "index", "0"]] {
        let refusal: Value = serde_json::from_str(room.fails(4, &verb).trim()).unwrap();
        assert_eq!(refusal["exit_code"], 4);
    }
    for verb in ["stats", "verify", "compact", "train"] {
        room.fails(4, &[verb, "index"]);
    }
    drop(writer);
    room.ok(&["compact", "index"]);

    room.ok(&["import", "index", "q.npy"]);
    let segment = room.path("index/rows/0000000000.rows");
    let mut bytes = fs::read(&segment).unwrap();
    bytes[8] = 99;
    File::create(&segment).unwrap().write_all(&bytes).unwrap();
    assert!(room.fails(3, &["stats", "index"]).contains("0000000000.rows"));
    let sum = cellardb_format::crc(&[&bytes[..60]]);
    bytes[60..64].copy_from_slice(&sum.to_le_bytes());
    File::create(&segment).unwrap().write_all(&bytes).unwrap();
    assert!(room.fails(5, &["stats", "index"]).contains("format version 99"));
}

#[test]
fn a_flipped_bit_in_the_rows_is_found_by_verify_with_exit_code_3() {
    let room = Room::with_index("exact");
    room.write("a.npy", &f32_npy(&rows(0..100)));
    room.ok(&["import", "index", "a.npy"]);
    let whole = room.ok(&["verify", "index"]);
    assert_eq!(whole["damage"].as_array().unwrap().len(), 0);
    assert_eq!(whole["rows"], 100);

    let segment = room.path("index/rows/0000000000.rows");
    let mut bytes = fs::read(&segment).unwrap();
    bytes[64 + 50 * 64] ^= 1;
    File::create(&segment).unwrap().write_all(&bytes).unwrap();
    let output = room.run(&["verify", "index"]);
    assert_eq!(output.status.code(), Some(3));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let damage = report["damage"].as_array().unwrap();
    assert!(!damage.is_empty());
    assert!(damage[0]["path"].as_str().unwrap().ends_with(".rows"));

    let repaired = room.ok(&["repair", "index"]);
    assert_eq!(repaired["lost"], serde_json::json!([[50, 51]]));
    assert_eq!((&repaired["rows"], &repaired["lost_rows"]), (&99.into(), &1.into()));
    let aside: Vec<&str> =
        repaired["aside"].as_array().unwrap().iter().map(|path| path.as_str().unwrap()).collect();
    assert!(aside.iter().any(|path| path.ends_with("0000000000.damaged-1")), "{aside:?}");
    let whole = room.ok(&["verify", "index"]);
    assert_eq!((whole["damage"].as_array().unwrap().len(), &whole["rows"]), (0, &99.into()));
    let again = room.ok(&["repair", "index"]);
    assert_eq!(again["damage"].as_array().unwrap().len(), 0);
}

#[test]
fn search_prints_ascending_hits_and_writes_ids_padded_with_minus_one() {
    let room = Room::with_index("exact");
    let rows = rows(0..5);
    room.write("a.npy", &f32_npy(&rows));
    room.ok(&["import", "index", "a.npy"]);
    let found = room.lines(&["search", "index", "a.npy", "-k", "3"]);
    assert_eq!(found.len(), 5);
    for (i, line) in found.iter().enumerate() {
        assert_eq!(line["query"], i);
        assert_eq!(line["ids"][0], i);
        assert_eq!(line["distances"][0], 0.0);
        let distances: Vec<f64> =
            line["distances"].as_array().unwrap().iter().map(|d| d.as_f64().unwrap()).collect();
        assert_eq!(distances.len(), 3);
        assert!(distances.is_sorted());
    }
    room.ok(&["search", "index", "a.npy", "-k", "7", "--exact", "--out", "ids.npy"]);
    let ids: Vec<i64> = npy_data(&room.path("ids.npy"))
        .as_chunks::<8>()
        .0
        .iter()
        .map(|b| i64::from_le_bytes(*b))
        .collect();
    assert_eq!(ids.len(), 5 * 7);
    for (i, row) in ids.chunks(7).enumerate() {
        assert_eq!(row[0], i as i64);
        assert_eq!(row[5..], [-1, -1]);
        assert!(row[..5].iter().all(|id| (0..5).contains(id)));
    }
    room.write("wrong.npy", &npy("<f4", (2, 3), &[0; 24]));
    assert!(room.fails(1, &["search", "index", "wrong.npy"]).contains("3 dimensions"));
}

#[test]
fn an_import_is_resumed_where_it_ended_and_only_from_the_same_files() {
    let room = Room::with_index("exact");
    let all = rows(0..300);
    room.write("first.npy", &f32_npy(&all[..120]));
    room.write("second.npy", &f32_npy(&all[120..]));
    room.write("head.npy", &f32_npy(&all[..130]));
    // The state after an import that was killed ten rows into the second file.
    room.ok(&["import", "index", "head.npy"]);
    let resume = ["import", "index", "first.npy", "second.npy", "--resume", "--batch", "50"];
    let resumed = room.ok(&[&resume[..], &["--ack", "acks"]].concat());
    assert_eq!((&resumed["rows"], &resumed["skipped"]), (&170.into(), &130.into()));
    assert_eq!(fs::read_to_string(room.path("acks")).unwrap(), "180\n230\n280\n300\n");
    room.ok(&["export", "index", "out.npy"]);
    assert_eq!(npy_data(&room.path("out.npy")), f32s(&all));
    assert_eq!(room.ok(&resume)["rows"], 0);

    // Removed rows count, even when nothing is left of them, and are not compared.
    room.ok(&["remove", "index", "0", "299"]);
    assert_eq!(room.ok(&resume)["rows"], 0);
    room.ok(&["compact", "index"]);
    assert_eq!(room.ok(&resume)["rows"], 0);

    assert!(room.fails(1, &["import", "index", "head.npy", "--resume"]).contains("130"));
    let mut other = all.clone();
    other[250..299].fill([9, 9, 9, 9]);
    room.write("other.npy", &f32_npy(&other));
    let message = room.fails(1, &["import", "index", "other.npy", "--skip", "auto"]);
    assert!(message.contains("other.npy") && message.contains("is not row"), "{message}");
    assert_eq!(room.ok(&["import", "index", "other.npy", "--skip", "299"])["rows"], 1);
    room.fails(2, &["import", "index", "other.npy", "--skip", "301"]);
    room.fails(2, &["import", "index", "other.npy", "--skip", "1", "--resume"]);
    assert_eq!(room.rows(), 299);
}

/// Starts an import of many small commits and waits until some of them are acknowledged.
fn long_import(room: &Room, total: usize) -> std::process::Child {
    room.write("long.npy", &f32_npy(&rows(0..total)));
    let arguments = ["import", "index", "long.npy", "--batch", "1", "--ack", "acks"];
    let mut command = room.command(&arguments);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let start = Instant::now();
    while acknowledged(room) < 5 {
        assert!(start.elapsed() < Duration::from_secs(20 * 60), "hangs before the first commits");
        std::thread::sleep(Duration::from_millis(1));
    }
    child
}

fn acknowledged(room: &Room) -> usize {
    let acks = fs::read_to_string(room.path("acks")).unwrap_or_default();
    acks.lines().last().map_or(0, |line| line.parse().unwrap())
}

#[test]
fn what_a_killed_import_acknowledged_is_there_and_the_rest_can_be_added() {
    let (room, total) = (Room::with_index("exact"), 40_000);
    let mut child = long_import(&room, total);
    child.kill().unwrap();
    child.wait().unwrap();
    let (durable, acked) = (room.rows() as usize, acknowledged(&room));
    assert!(durable == acked || durable == acked + 1, "{durable} rows, {acked} acknowledged");
    assert!(durable < total);
    room.ok(&["verify", "index"]);
    room.ok(&["import", "index", "long.npy", "--resume", "--no-train"]);
    room.ok(&["export", "index", "out.npy"]);
    assert_eq!(npy_data(&room.path("out.npy")), f32s(&rows(0..total)));
}

#[test]
fn an_interrupted_import_finishes_its_commit_and_says_how_to_go_on() {
    let (room, total) = (Room::with_index("exact"), 40_000);
    let child = long_import(&room, total);
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("--resume"), "{}", text(&output.stderr));
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(result["interrupted"], true);
    assert_eq!(result["rows"], room.rows());
    assert_eq!(room.rows() as usize, acknowledged(&room));
}

#[test]
fn every_verb_that_opens_an_index_reads_it_without_maps_if_told_to() {
    let room = Room::with_index("exact");
    let rows: Vec<u8> = (0..40_u16).flat_map(|n| f32::from(n).to_le_bytes()).collect();
    room.write("rows.npy", &npy("<f4", (10, DIM), &rows));
    room.ok(&["import", "index", "rows.npy", "--reads", "copy"]);
    let search = ["search", "index", "rows.npy", "-k", "3"];
    let copied = room.lines(&[&search[..], &["--reads", "copy"]].concat());
    assert_eq!(copied, room.lines(&[&search[..], &["--reads", "map"]].concat()));
    let verbs = [
        &["get", "index", "3"][..],
        &["stats", "index"],
        &["verify", "index"],
        &["remove", "index", "3"],
        &["compact", "index"],
        &["train", "index"],
        &["calibrate", "index", "rows.npy"],
        &["export", "index", "out.npy"],
        &["repair", "index"],
    ];
    for verb in verbs {
        room.ok(&[verb, &["--reads", "copy"]].concat());
    }
    let refused = room.run(&["stats", "index", "--reads", "twice"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused.stderr).contains("copy"), "{}", text(&refused.stderr));
    // What the verb does is still what its help begins with.
    let help = Command::new(env!("CARGO_BIN_EXE_cellardb")).args(["stats", "--help"]).output();
    let help = text(&help.unwrap().stdout);
    assert!(!help.starts_with("How the files") && help.contains("--reads <HOW>"), "{help}");
}

#[test]
fn rows_are_read_and_removed_by_id() {
    let room = Room::with_index("exact");
    room.write("a.npy", &f32_npy(&rows(0..10)));
    room.ok(&["import", "index", "a.npy"]);
    let row = room.ok(&["get", "index", "3"]);
    assert_eq!(row["vector"], serde_json::json!([3.0, 0.0, 9.0, 1.0]));
    assert_eq!(room.ok(&["remove", "index", "3", "4", "4", "99"])["removed"], 2);
    let output = room.run(&["get", "index", "3", "5"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(text(&output.stdout).lines().count(), 2);
    assert!(text(&output.stderr).contains("no row 3"));
    let stats = room.ok(&["stats", "index"]);
    assert_eq!((&stats["rows"], &stats["removed"]), (&8.into(), &2.into()));
    room.ok(&["compact", "index"]);
    assert_eq!(room.ok(&["export", "index", "out.npy"])["rows"], 8);
}

#[test]
fn tables_for_people_come_without_json() {
    let room = Room::with_index("exact");
    let mut command = Command::new(env!("CARGO_BIN_EXE_cellardb"));
    let output = command.args(["stats", "index"]).current_dir(room.dir.path()).output().unwrap();
    assert!(output.status.success());
    assert!(text(&output.stdout).contains("dimensions"));
    assert_eq!(text(&output.stderr), "");
}

#[test]
fn rows_that_cannot_be_trained_on_are_imported_all_the_same() {
    let room = Room::new();
    room.ok(&["create", "index", "--dim", "4", "--train-at", "10"]);
    let vast: Vec<u8> = (0..80).flat_map(|i| (i as f32 * 1e30 + 1e30).to_le_bytes()).collect();
    room.write("vast.npy", &npy("<f4", (20, DIM), &vast));
    let output = room.run(&["import", "index", "vast.npy"]);
    assert!(output.status.success() && text(&output.stderr).contains("not trained"));
    assert_eq!(room.rows(), 20);
    room.ok(&["import", "index", "vast.npy", "--resume"]);
    room.fails(2, &["search", "index", "vast.npy", "--probes", "0"]);
    let found = room.lines(&["search", "index", "vast.npy", "-k", "20"]);
    assert!(found.iter().all(|line| line["ids"].as_array().unwrap().len() == 20));
}
