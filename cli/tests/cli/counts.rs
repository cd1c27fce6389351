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
