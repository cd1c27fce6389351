//! What a user reads: help, and messages.

use super::*;

fn plain(room: &Room, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cellardb"));
    command.args(arguments).current_dir(room.dir.path()).stdin(Stdio::null()).output().unwrap()
}

const VERBS: [&str; 13] = [
    "create",
    "import",
    "train",
    "calibrate",
    "search",
    "bench",
    "get",
    "remove",
    "stats",
    "verify",
    "repair",
    "compact",
    "export",
];

#[test]
fn help_is_wrapped_and_keeps_what_every_verb_takes_apart() {
    let room = Room::new();
    for verb in VERBS.iter().map(|verb| vec![*verb, "--help"]).chain([vec!["--help"]]) {
        let help = text(&plain(&room, &verb).stdout);
        assert!(help.lines().all(|line| line.chars().count() <= 100), "{help}");
        let (own, global) = help.split_once("Global options:").unwrap();
        let (global, _) = global.split_once("Examples:").unwrap_or((global, ""));
        for flag in ["--json", "--quiet"] {
            assert!(!own.contains(&format!("{flag}\n")) && !own.contains(&format!("{flag}  ")));
            assert_eq!(global.matches(&format!(" {flag}")).count(), 1, "{help}");
        }
    }
    let help = text(&plain(&room, &["--help"]).stdout);
    let first = help.lines().next().unwrap();
    assert!(first.contains("vectors") && first.contains("crash"), "{first}");
    assert!(help.contains("Examples:") && help.contains("130 interrupted"), "{help}");
}

#[test]
fn standard_error_is_silent_when_all_is_well() {
    let room = Room::with_index("auto");
    room.write("a.npy", &f32_npy(&rows(0..50)));
    room.write("b.npy", &f32_npy(&rows(50..90)));
    for arguments in [
        &["import", "index", "a.npy"][..],
        &["import", "index", "b.npy"],
        &["train", "index"],
        &["search", "index", "a.npy", "--out", "ids.npy"],
        &["compact", "index"],
        &["verify", "index"],
        &["export", "index", "out.npy"],
    ] {
        let output = plain(&room, arguments);
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        assert_eq!(text(&output.stderr), "", "{arguments:?}");
    }
}

#[test]
fn a_repair_that_names_other_options_than_the_catalog_has_says_which() {
    let room = Room::new();
    room.ok(&["create", "index", "--dim", "4", "--nlist", "7"]);
    for (option, value, stored) in
        [("--nlist", "8", "7"), ("--train-at", "5", "10000"), ("--kind", "exact", "Auto")]
    {
        let message = room.fails(2, &["repair", "index", option, value]);
        assert!(message.contains(&format!("the index has {stored}")), "{message}");
        assert!(message.contains(option) && !message.contains("Options::"), "{message}");
    }
    let message = room.fails(2, &["repair", "index", "--dim", "5"]);
    assert!(message.contains("the index has 4 dimensions; leave it out to take"), "{message}");
    room.ok(&["repair", "index", "--nlist", "7", "--kind", "auto", "--seed", "0"]);
}

#[test]
fn damage_to_the_catalog_is_told_in_our_words() {
    let room = Room::with_index("exact");
    let catalog = room.path("index/catalog.redb");
    let whole = fs::read(&catalog).unwrap();
    let mut told = std::collections::BTreeSet::new();
    let bend = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x5A;
        bytes
    };
    let places = (0..320).chain((4096..whole.len()).step_by(509));
    let mut states: Vec<Vec<u8>> = places.map(bend).collect();
    states.extend([whole[..whole.len() / 2].to_vec(), whole[..100].to_vec(), vec![7; 9000]]);
    for bytes in states {
        room.write("index/catalog.redb", &bytes);
        let output = room.run(&["stats", "index"]);
        let message = text(&output.stderr);
        let theirs = [
            "DB corrupted",
            "redb:",
            "Manual upgrade",
            "magic",
            "Table '",
            "I/O error",
            "panicked",
        ];
        assert!(!theirs.iter().any(|words| message.contains(words)), "{message}");
        if !output.status.success() {
            let refusal: Value = serde_json::from_str(message.trim()).unwrap();
            let words = refusal["error"].as_str().unwrap().to_owned();
            assert!(words.contains("catalog.redb") && words.contains("cellardb"), "{words}");
            told.insert(words);
        }
    }
    assert!(told.len() >= 2, "hardly anything was damaged: {told:?}");
}
