//! Imports that are repeated, resumed, or meet rows that cannot be stored.

use super::arrays::{archive, fed};
use super::*;

fn exported(room: &Room) -> Vec<u8> {
    room.ok(&["export", "index", "out.npy"]);
    npy_data(&room.path("out.npy"))
}

#[test]
fn a_forgotten_resume_adds_nothing_twice() {
    let all = rows(0..300);
    for deflate in [None, Some(false), Some(true)] {
        let room = Room::with_index("exact");
        let file = if deflate.is_some() { "all.npz" } else { "all.npy" };
        match deflate {
            None => room.write(file, &f32_npy(&all)),
            Some(deflate) => {
                room.write(file, &archive(&[("all", &f32_npy(&all))], deflate, false));
            }
        }
        room.write("head.npy", &f32_npy(&all[..130]));
        room.ok(&["import", "index", "head.npy"]);
        let message = room.fails(2, &["import", "index", file]);
        assert!(message.contains("130") && message.contains("--resume"), "{message}");
        assert_eq!(room.rows(), 130);
        assert_eq!(room.ok(&["import", "index", file, "--resume"])["rows"], 170);
        assert!(exported(&room) == f32s(&all), "{file}");
        // Once more, now that all of them are there.
        let message = room.fails(2, &["import", "index", file]);
        assert!(message.contains("all 300 rows") && message.contains("--append"), "{message}");
        let message = room.fails(2, &["import", "index", "head.npy"]);
        assert!(message.contains("all 130 rows") && message.contains("first rows"), "{message}");
        assert_eq!(room.rows(), 300);
        assert_eq!(room.ok(&["import", "index", "head.npy", "--append"])["rows"], 130);
        assert_eq!(room.rows(), 430);
    }
}

#[test]
fn an_import_into_an_index_that_had_rows_is_resumed() {
    let room = Room::with_index("exact");
    let (old, all) = (rows(1000..1077), rows(0..300));
    room.write("old.npy", &f32_npy(&old));
    room.write("all.npy", &f32_npy(&all));
    room.write("head.npy", &f32_npy(&all[..130]));
    room.ok(&["import", "index", "old.npy"]);
    // Other rows are no reason to ask.
    room.ok(&["import", "index", "head.npy"]);
    let message = room.fails(2, &["import", "index", "all.npy"]);
    assert!(message.contains("130") && message.contains("--resume"), "{message}");
    // Rows of it that are gone, the last one among them, are counted.
    room.ok(&["remove", "index", "76", "77", "205", "206"]);
    let resumed = room.ok(&["import", "index", "all.npy", "--resume"]);
    assert_eq!((&resumed["rows"], &resumed["skipped"]), (&170.into(), &130.into()));
    let kept = [&old[..76], &all[1..128], &all[130..]].concat();
    assert!(exported(&room) == f32s(&kept));
    room.ok(&["import", "index", "all.npy", "--resume"]);
    let message = room.fails(1, &["import", "index", "old.npy", "--resume"]);
    assert!(message.contains("377 rows were inserted"), "{message}");
}

#[test]
fn what_was_added_twice_can_still_be_resumed_and_is_spoken_of() {
    let room = Room::with_index("exact");
    let all = rows(0..300);
    room.write("all.npy", &f32_npy(&all));
    room.write("head.npy", &f32_npy(&all[..130]));
    room.write("half.npy", &f32_npy(&all[..200]));
    room.ok(&["import", "index", "half.npy"]);
    room.ok(&["import", "index", "head.npy", "--append"]);
    let output = room.run(&["import", "index", "all.npy", "--resume"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let message = text(&output.stderr);
    assert!(message.contains("twice") && message.contains("200"), "{message}");
    assert!(exported(&room) == f32s(&[&all[..200], &all].concat()));
}

#[test]
fn files_that_share_some_rows_with_the_index_are_others() {
    let room = Room::with_index("exact");
    let all = rows(0..300);
    room.write("all.npy", &f32_npy(&all));
    room.ok(&["import", "index", "all.npy"]);
    // The last row of the index is in it, and many more, but not all before it.
    let mut other = rows(0..400);
    other[150] = [9; DIM];
    room.write("other.npy", &f32_npy(&other));
    let message = room.fails(1, &["import", "index", "other.npy", "--resume"]);
    assert!(message.contains("row 150 is not row 150"), "{message}");
    assert_eq!(room.ok(&["import", "index", "other.npy"])["rows"], 400);
}

#[test]
fn rows_that_are_all_alike_are_counted() {
    let room = Room::with_index("exact");
    room.write("forty.npy", &f32_npy(&[[1, 2, 3, 4]; 40]));
    room.write("hundred.npy", &f32_npy(&[[1, 2, 3, 4]; 100]));
    room.ok(&["import", "index", "forty.npy"]);
    assert_eq!(room.ok(&["import", "index", "hundred.npy", "--resume"])["rows"], 60);
    assert_eq!(room.rows(), 100);
}

#[test]
fn standard_input_is_resumed_by_comparing_what_passes() {
    let room = Room::with_index("exact");
    let all = rows(0..3000);
    let (head, whole) = (f32_npy(&all[..1300]), f32_npy(&all));
    assert!(fed(&room, &["import", "index", "-"], &head).status.success());
    let again = fed(&room, &["import", "index", "-"], &whole);
    assert_eq!(again.status.code(), Some(2));
    assert!(text(&again.stderr).contains("--resume"), "{}", text(&again.stderr));
    let mut other = all.clone();
    other[700] = [9; DIM];
    let refused = fed(&room, &["import", "index", "-", "--resume"], &f32_npy(&other));
    assert!(text(&refused.stderr).contains("row 700"), "{}", text(&refused.stderr));
    assert_eq!(room.rows(), 1300);
    let resumed = fed(&room, &["import", "index", "-", "--resume"], &whole);
    assert!(resumed.status.success(), "{}", text(&resumed.stderr));
    assert!(exported(&room) == f32s(&all));
    let short = fed(&room, &["import", "index", "-", "--resume"], &head);
    assert!(text(&short.stderr).contains("only 1,300"), "{}", text(&short.stderr));
    let skipped = fed(&room, &["import", "index", "-", "--skip", "2999"], &whole);
    assert!(skipped.status.success(), "{}", text(&skipped.stderr));
    assert_eq!(room.rows(), 3001);
}

/// Rows of which some cannot be compared, and the others.
fn spoiled(all: &[[i8; DIM]], bad: &[(usize, f32)]) -> (Vec<u8>, Vec<u8>) {
    let (mut data, mut whole) = (f32s(all), Vec::new());
    for (row, value) in bad {
        data[row * 16 + 4..row * 16 + 8].copy_from_slice(&value.to_le_bytes());
    }
    for (at, row) in data.chunks(16).enumerate() {
        if !bad.iter().any(|(bad, _)| *bad == at) {
            whole.extend(row);
        }
    }
    (data, whole)
}

#[test]
fn rows_that_cannot_be_compared_are_left_out_on_demand_and_counted() {
    let all = rows(0..300);
    let bad = [(0, f32::NAN), (15, f32::NAN), (16, f32::INFINITY), (120, f32::NEG_INFINITY)];
    let (data, whole) = spoiled(&all, &bad);
    for file in ["bad.npy", "bad.npz"] {
        let room = Room::with_index("exact");
        let bytes = npy("<f4", (300, DIM), &data);
        match file {
            "bad.npy" => room.write(file, &bytes),
            _ => room.write(file, &archive(&[("bad", &bytes)], true, false)),
        }
        room.write("clean.npy", &npy("<f4", (14, DIM), &data[16..15 * 16]));
        let message = room.fails(1, &["import", "index", file, "--batch", "8", "--ack", "my acks"]);
        assert!(message.contains("row 0") && message.contains("--skip-invalid"), "{message}");
        assert!(message.contains("--batch 8") && message.contains("--ack 'my acks'"), "{message}");
        // As after an import with --skip-invalid that was killed: rows and ids differ by one.
        room.ok(&["import", "index", "clean.npy"]);
        let message = room.fails(1, &["import", "index", file, "--resume"]);
        assert!(message.contains("--skip-invalid"), "{message}");
        let import = ["import", "index", file, "--skip-invalid", "--batch", "8"];
        assert!(room.fails(2, &import).contains("--resume"));
        let resumed = room.ok(&[&import[..], &["--resume"]].concat());
        let counts = ["rows", "skipped", "invalid"].map(|name| resumed[name].as_u64().unwrap());
        assert_eq!(counts, [282, 15, 3]);
        assert!(exported(&room) == whole);
        assert_eq!(room.ok(&[&import[..], &["--resume"]].concat())["rows"], 0);
    }
}

#[test]
fn under_cosine_rows_of_length_zero_are_left_out_too() {
    let room = Room::new();
    room.ok(&["create", "index", "--dim", "4", "--metric", "cosine"]);
    let mut data = f32s(&rows(0..100));
    data[..16].fill(0);
    data[50 * 16..52 * 16].fill(0);
    room.write("zeros.npy", &npy("<f4", (100, DIM), &data));
    assert!(room.fails(1, &["import", "index", "zeros.npy"]).contains("length zero"));
    let imported = room.ok(&["import", "index", "zeros.npy", "--skip-invalid"]);
    assert_eq!((&imported["rows"], &imported["invalid"]), (&97.into(), &3.into()));
    // The same rows are no trouble for another metric.
    room.ok(&["create", "l2", "--dim", "4"]);
    let imported = room.ok(&["import", "l2", "zeros.npy", "--skip-invalid"]);
    assert_eq!((&imported["rows"], &imported["invalid"]), (&100.into(), &0.into()));
}

#[test]
fn an_interrupted_import_prints_the_command_that_goes_on() {
    let room = Room::with_index("exact");
    room.write("the rows.npy", &f32_npy(&rows(0..40_000)));
    let arguments =
        ["import", "index", "the rows.npy", "--batch", "2", "--ack", "acks", "--no-train"];
    let mut command = room.command(&arguments);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let start = Instant::now();
    while acknowledged(&room) < 5 {
        assert!(start.elapsed() < Duration::from_secs(20 * 60), "hangs before the first commits");
        std::thread::sleep(Duration::from_millis(1));
    }
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    let message = text(&child.wait_with_output().unwrap().stderr);
    let refusal: Value = serde_json::from_str(message.lines().last().unwrap()).unwrap();
    let words = refusal["error"].as_str().unwrap();
    let shown = words.split_once("to go on: cellardb ").unwrap().1;
    assert!(shown.contains("--batch 2") && shown.contains("--no-train"), "{shown}");
    // The shell takes it as it stands.
    let program = env!("CARGO_BIN_EXE_cellardb");
    let line = format!("{program} {shown} --json");
    let output = Command::new("sh").args(["-c", &line]).current_dir(room.dir.path()).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(exported(&room) == f32s(&rows(0..40_000)));
    assert_eq!(acknowledged(&room), 40_000);
}

#[test]
fn training_is_repeated_at_four_times_the_rows_and_measuring_at_a_quarter_more() {
    let room = Room::new();
    room.ok(&["create", "index", "--dim", "4", "--kind", "ivf-pq", "--train-at", "500"]);
    let all = rows(0..2400);
    let mut settings = Value::Null;
    for (from, to, trained) in
        [(0, 600, 600), (600, 1300, 600), (1300, 2300, 600), (2300, 2400, 2400)]
    {
        room.write("part.npy", &f32_npy(&all[from..to]));
        let imported = room.ok(&["import", "index", "part.npy"]);
        let stats = room.ok(&["stats", "index"]);
        assert_eq!(stats["trained_rows"], trained, "{to} rows");
        let anew = imported["train_seconds"].as_f64().unwrap() > 0.0;
        assert_eq!(anew, stats["trained_rows"] == to, "{to} rows");
        let measured = stats["settings"].clone();
        assert_ne!(measured, settings, "{to} rows");
        settings = measured;
    }
}
