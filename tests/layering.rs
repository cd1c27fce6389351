//! The rooms of the house know only what stands below them. Read from the paths in the sources, so
//! that a `use` and a path in an expression count alike.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

use std::path::{Path, PathBuf};

/// A source file: its path below the project, and its code without comments.
struct Source {
    path: String,
    code: String,
    lines: usize,
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
}

fn sources(dir: &str) -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    if root.join(dir).exists() {
        collect(&root.join(dir), &mut files);
    }
    let name = |p: &Path| p.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
    let read = |p: PathBuf| source(&name(&p), &std::fs::read_to_string(&p).unwrap());
    files.into_iter().map(read).collect()
}

/// The code of a file: literals, comments and unit tests left out.
fn source(path: &str, text: &str) -> Source {
    let engine = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    let bare = |line: &str| {
        let line = line.replace("'\"'", "").replace("\\\"", "");
        let code: String = line.split('"').step_by(2).collect::<Vec<_>>().join("\"\"");
        code.split("//").next().unwrap().to_owned()
    };
    let code = engine.lines().map(bare).collect::<Vec<_>>().join("\n");
    Source { path: path.to_owned(), code, lines: text.lines().count() }
}

/// Every `a::b` path in the code that begins with `root`: its second part. Braces are looked into:
/// `use crate::{error::Error, index}` gives `error` and `index`.
fn children(code: &str, root: &str) -> Vec<String> {
    let mut found = Vec::new();
    let start = format!("{root}::");
    for (at, _) in code.match_indices(&start) {
        let before = code[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
            continue;
        }
        let rest = &code[at + start.len()..];
        if let Some(group) = rest.strip_prefix('{') {
            let (mut depth, mut word, mut whole) = (0, String::new(), true);
            for c in group.chars() {
                match c {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => {
                        found.push(std::mem::take(&mut word));
                        whole = true;
                    }
                    c if (c.is_alphanumeric() || c == '_') && whole && depth == 0 => word.push(c),
                    c if !c.is_whitespace() => whole = false,
                    _ => {}
                }
            }
            found.push(word);
        } else {
            found.push(rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect());
        }
    }
    found.retain(|name| !name.is_empty());
    found
}

/// Whether `word` stands alone in the code.
fn names(code: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(word).any(|(at, _)| {
        !code[..at].chars().next_back().is_some_and(part)
            && !code[at + word.len()..].chars().next().is_some_and(part)
    })
}

/// The rooms of this crate that each room may name.
const ROOMS: [(&str, &[&str]); 4] = [
    ("src/kernel/", &["kernel"]),
    ("src/quantizer/", &["kernel", "quantizer"]),
    ("src/storage/", &["storage", "callback", "error", "options", "planted", "sync"]),
    ("src/runtime/", &["runtime", "storage", "error", "sync"]),
];

/// What only these files (or folders) may name.
const ALONE: [(&str, &[&str]); 6] = [
    ("redb", &["src/storage/catalog/"]),
    ("memmap2", &["src/storage/map/"]),
    ("libc", &["src/storage/map/"]),
    ("unsafe", &["src/kernel/", "src/storage/map/"]),
    ("fs", &["src/storage/disk.rs", "src/storage/map/"]),
    ("arch", &["src/kernel/"]),
];

/// What redb has and the catalog must not use: commits that are not durable, what had most of the bugs
/// that lost data, and commits of two phases, which trust a bit without a checksum and do not mix
/// with those of one (tests/suite/catalog.rs).
const LEFT_ALONE: [&str; 12] = [
    "Durability::None",
    "savepoint",
    "Multimap",
    "set_two_phase_commit",
    "set_quick_repair",
    "set_concurrency_mode",
    "insert_reserve",
    "get_mut",
    "rename_table",
    "delete_table",
    "compact",
    "extract_if",
];

fn uses_left_alone(code: &str) -> Vec<&'static str> {
    let code = code.to_lowercase();
    LEFT_ALONE.into_iter().filter(|word| code.contains(&word.to_lowercase())).collect()
}

/// What a file does that its room does not allow.
fn breaches(source: &Source) -> Vec<String> {
    let Source { path, code, .. } = source;
    let mut found = Vec::new();
    for (room, allowed) in ROOMS {
        if path.starts_with(room) {
            for name in children(code, "crate") {
                if !allowed.contains(&name.as_str()) {
                    found.push(format!("{path} names crate::{name}"));
                }
            }
        }
    }
    if !path.starts_with("src/storage/") && !path.starts_with("src/index/") {
        let format = path.starts_with("src/") && names(code, "cellardb_format");
        if format {
            found.push(format!("{path} names cellardb_format"));
        }
    }
    for (word, homes) in ALONE {
        let std_only = ["fs", "arch"].contains(&word);
        let named = if std_only {
            children(code, "std").contains(&word.to_owned())
        } else {
            names(code, word)
        };
        if named && !homes.iter().any(|home| path.starts_with(home)) {
            found.push(format!("{path} names {word}"));
        }
    }
    found
}

#[test]
fn rooms_know_only_what_stands_below_them() {
    let all = sources("src");
    assert!(all.len() > 20, "only {} files read", all.len());
    let found: Vec<String> = all.iter().flat_map(breaches).collect();
    assert!(found.is_empty(), "{found:#?}");
    for (word, homes) in ALONE {
        for home in homes {
            assert!(all.iter().any(|s| s.path.starts_with(home)), "{word}: {home} is gone");
        }
    }
}

#[test]
fn the_catalog_uses_the_part_of_redb_that_is_tested() {
    let all = sources("src/storage");
    let catalog = all.iter().filter(|s| names(&s.code, "redb"));
    let catalog: String = catalog.map(|s| s.code.as_str()).collect();
    let found = uses_left_alone(&catalog);
    assert!(found.is_empty(), "{found:?}");
    assert!(catalog.contains("set_check_integrity_on_open"));
    assert!(catalog.contains("Durability::Immediate"));
    for (bad, word) in [
        ("t.set_durability(Durability::None)", "Durability::None"),
        ("t.persistent_savepoint()?", "savepoint"),
        ("MultimapTableDefinition::new(a)", "Multimap"),
        ("t.set_two_phase_commit(true)", "set_two_phase_commit"),
    ] {
        assert_eq!(uses_left_alone(bad), [word]);
    }
    assert!(uses_left_alone("if x.is_none() { None } else { Some(1) }").is_empty());
}

#[test]
fn the_format_does_no_input_or_output() {
    for Source { path, code, .. } in sources("format/src") {
        for word in ["fs", "io", "time", "thread", "env", "net"] {
            assert!(!children(&code, "std").contains(&word.to_owned()), "{path} names std::{word}");
        }
        for word in ["unsafe", "redb", "memmap2"] {
            assert!(!names(&code, word), "{path} names {word}");
        }
    }
}

#[test]
fn the_command_line_knows_the_public_interface_only() {
    for Source { path, code, .. } in sources("cli/src") {
        for word in ["cellardb_format", "redb", "memmap2", "unsafe"] {
            assert!(!names(&code, word), "{path} names {word}");
        }
    }
}

#[test]
fn no_file_is_longer_than_500_lines() {
    for dir in
        ["src", "format", "cli", "tests", "benches", "examples", "campaign", "fuzz/fuzz_targets"]
    {
        for Source { path, lines, .. } in sources(dir) {
            assert!(lines <= 500 || path.contains("target/"), "{path} has {lines} lines");
        }
    }
}

#[test]
fn the_checker_bites() {
    let bites = |path: &str, text: &str| breaches(&source(path, text)).len();
    let breach = [
        ("src/kernel/a.rs", "use crate::error::Error;"),
        ("src/kernel/a.rs", "use cellardb_format::State;"),
        ("src/quantizer/a.rs", "fn f() { crate::storage::open() }"),
        ("src/quantizer/a.rs", "use crate::{kernel::Isa, index::Index};"),
        ("src/storage/a.rs", "use crate::{\n    error::{Error, Result},\n    quantizer,\n};"),
        ("src/storage/a.rs", "type E = redb::Error;"),
        ("src/storage/rows.rs", "use memmap2::Mmap;"),
        ("src/index/a.rs", "let x = unsafe { f() };"),
        ("src/index/a.rs", "use std::{fmt, fs::File};"),
        ("src/index/a.rs", "std::fs::remove_file(p)"),
        ("src/index/a.rs", "use std::arch::x86_64::*;"),
    ];
    for (path, text) in breach {
        assert_eq!(bites(path, text), 1, "{path}: {text}");
    }
    let fine = [
        ("src/storage/a.rs", "use crate::error::{Error, Result};"),
        ("src/storage/catalog/mod.rs", "use redb::Database;"),
        ("src/storage/mod.rs", "dir.join(\"catalog.redb\")"),
        ("src/storage/disk.rs", "use std::fs::{self, File};"),
        ("src/kernel/a.rs", "unsafe { g() }"),
        ("src/index/a.rs", "// as redb and unsafe code do\nuse crate::storage::Store;"),
        ("src/index/a.rs", "use std::fmt; let fs = offsets; unsafe_code();"),
        ("src/kernel/mod.rs", "#[cfg(test)]\nmod tests {\n use crate::error::Error;\n}"),
    ];
    for (path, text) in fine {
        assert_eq!(bites(path, text), 0, "{path}: {text}");
    }
    assert_eq!(children("use crate::{a::b, c}; crate::d; mycrate::e", "crate"), ["a", "c", "d"]);
}
