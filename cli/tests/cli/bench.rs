//! What `bench` measures.

use super::*;

#[test]
fn bench_of_an_exact_index_is_one_line_of_full_recall() {
    let room = Room::with_index("exact");
    let rows = rows(0..40);
    room.write("a.npy", &f32_npy(&rows));
    room.ok(&["import", "index", "a.npy"]);
    room.ok(&["search", "index", "a.npy", "--exact", "--out", "truth.npy"]);
    let line = room.ok(&["bench", "index", "a.npy", "--truth", "truth.npy", "--threads", "1"]);
    assert_eq!(line["recall"], 1.0);
    assert_eq!(line["setting"], "exact");
    for figure in ["qps", "qps_batch", "p50_us", "p99_us"] {
        assert!(line[figure].as_f64().unwrap() > 0.0, "{figure}");
    }
    let shuffled: Vec<u8> = (0..400_i64).flat_map(|i| (1000 + i).to_le_bytes()).collect();
    room.write("wrong.npy", &npy("<i8", (40, 10), &shuffled));
    let line = room.ok(&["bench", "index", "a.npy", "--truth", "wrong.npy", "--queries", "7"]);
    assert_eq!((&line["recall"], &line["queries"]), (&0.0.into(), &7.into()));

    room.write("few.npy", &npy("<i8", (40, 5), &shuffled[..40 * 5 * 8]));
    assert!(room.fails(1, &["bench", "index", "a.npy", "--truth", "few.npy"]).contains("10"));
    assert!(room.fails(1, &["bench", "index", "a.npy", "--truth", "a.npy"]).contains("integers"));
}

#[test]
fn bench_of_a_trained_index_begins_with_the_stored_settings() {
    let room = Room::new();
    room.ok(&["create", "index", "--dim", "4", "--kind", "ivf-pq", "--train-at", "500"]);
    room.write("a.npy", &f32_npy(&rows(0..2_000)));
    let imported = room.ok(&["import", "index", "a.npy"]);
    assert!(imported["train_seconds"].as_f64().unwrap() > 0.0);
    room.write("q.npy", &f32_npy(&rows(0..20)));
    room.ok(&["search", "index", "q.npy", "--exact", "--out", "truth.npy"]);
    let arguments = ["bench", "index", "q.npy", "--truth", "truth.npy", "--budget", "2"];
    let lines = room.lines(&arguments);
    let settings: Vec<_> = lines.iter().take(3).map(|l| l["setting"].as_str().unwrap()).collect();
    assert_eq!(settings, ["recall 0.90", "recall 0.95", "recall 0.99"]);
    assert!(lines.len() > 3);
    assert!(lines[3..].iter().all(|l| l["setting"].is_null() && l["probes"].is_u64()));
    let one = room.lines(&[&arguments[..5], &["--recall", "0.9"]].concat());
    assert_eq!(one.len(), 1);
}
