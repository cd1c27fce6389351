//! What a repair says, and what an import after it.

use super::*;

#[test]
fn rows_that_a_repair_lost_are_not_said_to_be_there() {
    let room = Room::with_index("exact");
    room.write("a.npy", &f32_npy(&rows(0..100)));
    room.ok(&["import", "index", "a.npy"]);
    fs::remove_dir_all(room.path("index/rows")).unwrap();
    let plain = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cellardb"));
        let output = command.args(arguments).current_dir(room.dir.path()).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    let repaired = plain(&["repair", "index"]);
    assert!(repaired.contains("rows lost: 100") && repaired.contains("--skip 0"), "{repaired}");
    assert!(repaired.contains("damaged-") && repaired.contains("may be deleted"), "{repaired}");
    let stats = room.ok(&["stats", "index"]);
    assert_eq!((&stats["rows"], &stats["tail"]), (&0.into(), &0.into()));
    let resumed = plain(&["import", "index", "a.npy", "--resume"]);
    assert!(resumed.contains("100 of them are not there any more"), "{resumed}");
    assert_eq!(room.ok(&["import", "index", "a.npy", "--resume"])["gone"], 100);
    let again = room.ok(&["import", "index", "a.npy", "--skip", "0"]);
    assert_eq!((&again["rows"], &again["gone"]), (&100.into(), &100.into()));
    assert_eq!(room.rows(), 100);
}

#[test]
fn without_its_catalog_an_index_is_repaired_once_the_metric_is_said() {
    let room = Room::with_index("exact");
    room.write("a.npy", &f32_npy(&rows(0..100)));
    room.ok(&["import", "index", "a.npy"]);
    fs::remove_file(room.path("index/catalog.redb")).unwrap();
    assert!(room.fails(3, &["stats", "index"]).contains("cellardb repair"));
    assert!(room.fails(2, &["repair", "index"]).contains("--metric"));
    let repaired = room.ok(&["repair", "index", "--metric", "l2", "--kind", "exact"]);
    assert_eq!((&repaired["rows"], &repaired["catalog"]), (&100.into(), &true.into()));
    assert_eq!(repaired["lost_rows"], 0);
    room.ok(&["verify", "index"]);
}
