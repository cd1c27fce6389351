//! What `verify` and `stats` count.

use super::*;

#[test]
fn verify_tells_live_rows_from_removed_ones_and_stats_counts_the_disk_as_du_does() {
    let room = Room::with_index("exact");
    room.write("a.npy", &f32_npy(&rows(0..100)));
    room.ok(&["import", "index", "a.npy"]);
    room.ok(&["remove", "index", "3", "5"]);
    let whole = room.ok(&["verify", "index"]);
    assert_eq!((&whole["rows"], &whole["live"]), (&100.into(), &98.into()));
    let du = Command::new("du").args(["-s", "--block-size=1"]).arg(room.path("index")).output();
    let du = text(&du.unwrap().stdout);
    let disk = room.ok(&["stats", "index"])["disk_bytes"].as_u64().unwrap();
    assert_eq!(du.split_whitespace().next().unwrap().parse::<u64>().unwrap(), disk);
}

#[test]
fn calibrate_measures_on_the_queries_of_a_file_and_stats_says_so() {
    let room = Room::new();
    room.write("a.npy", &f32_npy(&rows(0..3_000)));
    room.write("questions.npy", &f32_npy(&rows(5_000..5_400)));
    room.ok(&["create", "index", "--dim", "4", "--train-at", "1000", "--kind", "ivf-flat"]);
    room.ok(&["import", "index", "a.npy", "--no-train"]);
    let untrained = room.ok(&["calibrate", "index", "questions.npy"]);
    assert_eq!(untrained["settings"].as_array().unwrap().len(), 0);
    room.ok(&["train", "index"]);
    assert_eq!(room.ok(&["stats", "index"])["measured"]["on"], "rows");
    let done = room.ok(&["calibrate", "index", "questions.npy"]);
    assert_eq!(done["queries"], 400);
    let stats = room.ok(&["stats", "index"]);
    let measured = &stats["measured"];
    assert_eq!((&measured["on"], &measured["queries"]), (&"given".into(), &400.into()));
    assert_eq!(stats["settings"], done["settings"]);
    room.write("nothing.npy", &f32_npy(&[]));
    assert!(room.fails(2, &["calibrate", "index", "nothing.npy"]).contains("none are given"));
}
