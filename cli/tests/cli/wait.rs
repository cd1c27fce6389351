//! An index that another process has open.

use super::{Room, text};
use std::process::Stdio;
use std::time::Duration;

#[test]
fn a_verb_waits_for_an_index_as_long_as_it_is_told_to() {
    let room = Room::with_index("exact");
    let index = cellardb::Index::open(room.path("index")).unwrap();
    index.insert(&[1.0; 4]).unwrap();
    for verb in [["remove", "index", "0"], ["get", "index", "0"]] {
        let message = room.fails(4, &verb);
        let named = format!("(pid {})", std::process::id());
        assert!(message.contains(&named) && message.contains("--wait"), "{message}");
    }
    let removal = room.command(&["remove", "index", "0", "--wait", "120"]);
    let mut removal = { removal }.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // Longer than one who does not wait would try.
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(removal.try_wait().unwrap(), None, "it did not wait");
    index.close().unwrap();
    let output = removal.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(room.rows(), 0);
    let message = room.fails(2, &["stats", "index", "--wait", "long"]);
    assert!(message.contains("such as 3 or 0.5"), "{message}");
}
