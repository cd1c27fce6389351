//! The corpora of the fuzz targets, replayed as plain tests: as they are, and damaged at random. To keep
//! what the fuzzer found, copy the file from `fuzz/artifacts/TARGET` to `fuzz/corpus/TARGET`.

use cellardb_campaign::data::Rng;
use cellardb_campaign::fuzz;
use std::path::{Path, PathBuf};

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn corpus(target: &str) -> Vec<PathBuf> {
    files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target))
}

/// An input with up to four small changes.
fn changed(input: &[u8], changes: usize, rng: &mut Rng) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..changes.min(4) {
        match rng.below(4) {
            0 => bytes.truncate(rng.below(bytes.len() + 1)),
            1 => bytes.push(rng.next_u64() as u8),
            _ if bytes.is_empty() => {}
            _ => {
                let at = rng.below(bytes.len());
                bytes[at] = [0, 1, 0x7F, 0x80, 0xFF, rng.next_u64() as u8][rng.below(6)];
            }
        }
    }
    bytes
}

/// Runs a target over its corpus, and over `rounds` random changes of each input.
fn replay(target: &str, rounds: usize) {
    let inputs = corpus(target);
    assert!(inputs.len() >= 10, "{target}: the corpus has {} inputs", inputs.len());
    for path in inputs {
        let input = std::fs::read(&path).unwrap();
        let mut rng = Rng::new(input.len() as u64);
        for round in 0..=rounds {
            let bytes = changed(&input, round, &mut rng);
            let fine = std::panic::catch_unwind(|| fuzz::run(target, &bytes)).is_ok();
            assert!(fine, "{}, round {round}: {bytes:?}", path.display());
        }
    }
}

#[test]
fn every_target_has_a_corpus_and_every_corpus_a_target() {
    let folders = files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus"));
    let mut targets: Vec<&str> = fuzz::TARGETS.iter().map(|(name, _)| *name).collect();
    targets.sort_unstable();
    let names = folders.iter().map(|folder| folder.file_name().unwrap().to_str().unwrap());
    assert!(names.eq(targets.iter().copied()), "fuzz/corpus is {folders:?}, targets {targets:?}");
}

macro_rules! corpora {
    ($($name:ident: $target:ident, $rounds:literal;)*) => {$(
        #[test]
        fn $name() {
            replay(stringify!($target), $rounds);
        }
    )*};
}

corpora! {
    frames_never_panic: frame, 100;
    records_never_panic: record, 100;
    row_segments_never_panic_and_give_the_rows_of_their_files: segment, 1;
    directories_never_panic_behind_mended_checksums: directory, 1;
    a_damaged_catalog_gives_right_answers_or_an_error_that_names_it: catalog, 1;
    sequences_of_operations_equal_the_model: operations, 0;
    after_cuts_faults_and_damage_what_was_acknowledged_is_there: reopen, 0;
    kernels_of_every_instruction_set_equal_the_scalar_ones: kernels, 3;
}
