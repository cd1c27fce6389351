//! Damage of every kind to every file of a small index: flipped bytes, truncated, extended, zeroed,
//! swapped, foreign, stale and missing files. The answer is right, or an error that names the file;
//! never a panic, never another answer. These are samples: `campaign damage` flips every bit, and with
//! `--structural` does all the rest. `CELLARDB_CORRUPT_EVERY=1` flips every byte of every file here too, in
//! both ways (by default every so-many-th of the catalog, every third of the others).

mod real;

use cellardb::{Error, Index, Options};
use cellardb_campaign::damage::ask::{Blame, Outcome, inspect};
use cellardb_campaign::damage::case::{Case, Change, Special, parse};
use cellardb_campaign::damage::image::{Image, metric};
use cellardb_campaign::damage::shelf::Shelf;
use cellardb_campaign::damage::stand::{Mode, Stand};
use cellardb_campaign::damage::structural::{self, Density};
use cellardb_campaign::damage::{CATALOG, DIM, Files, LOCK};
use cellardb_campaign::watch::no_panic;
use cellardb_campaign::{HOME, SHAPES, parallel, scale, stored};
use cellardb_format::FORMAT_VERSION;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// One image of every kind, closed and killed by turns.
fn images() -> Vec<Image> {
    let closed = [true, false, false, true, false];
    SHAPES.into_iter().zip(closed).map(|(shape, closed)| Image::new(shape, 1, closed)).collect()
}

/// Checks a damage; panics unless it is taken well.
fn check(image: &Image, stand: &Stand<'_>, case: &Case<'_>) -> Outcome {
    match stand.check(case) {
        Ok(verdict) => verdict.outcome,
        Err(e) => panic!("{}:{case}: {e}", image.name),
    }
}

/// Checks the cases of an image that `choose` takes, from memory; returns how many and how many of them
/// were noticed.
fn check_all<'a>(image: &'a Image, cases: &[Case<'a>]) -> (u64, u64) {
    let stand = Stand::new(image, Mode::Read).unwrap();
    let noticed = AtomicU64::new(0);
    let cases: Vec<&Case<'_>> = cases.iter().filter(|case| stand.can(case)).collect();
    parallel(&cases, |case| {
        let outcome = check(image, &stand, case);
        noticed.fetch_add(u64::from(outcome == Outcome::Named), Relaxed);
    });
    (cases.len() as u64, noticed.into_inner())
}

/// The structural damage of an image, thinned out.
fn structural(image: &Image, choose: impl Fn(Change) -> bool) -> Vec<Case<'_>> {
    let mut cases = Vec::new();
    let density = Density { lengths: 61, pairs: 60, seed: 1 };
    structural::cases(image, density, &mut |case| {
        if choose(case.change) {
            cases.push(case);
        }
    });
    cases
}

#[test]
fn every_flipped_byte_is_harmless_or_named() {
    let every = scale("CELLARDB_CORRUPT_EVERY", 97) as usize;
    let (mut flips, mut caught) = (0, 0);
    for image in &images() {
        let mut cases = Vec::new();
        for (path, bytes) in &image.files {
            let step = if path == Path::new(CATALOG) { every } else { every.min(5) };
            for at in (0..bytes.len()).step_by(step) {
                // A bit and the whole byte take turns, unless everything is asked for.
                let masks = [1 << (at / 2 % 8), 0xFF];
                let masks = if every == 1 { &masks[..] } else { &masks[at % 2..=at % 2] };
                cases
                    .extend(masks.iter().map(|mask| Case { path, change: Change::Xor(at, *mask) }));
            }
        }
        let (cases, noticed) = check_all(image, &cases);
        (flips, caught) = (flips + cases, caught + noticed);
    }
    println!("{flips} flips, {caught} noticed, the others without effect");
    assert!(flips > 10_000 && caught * 10 > flips);
}

#[test]
fn every_flip_of_a_byte_that_counts_is_noticed() {
    let image = Image::new(SHAPES[1], 1, true);
    let mut cases = Vec::new();
    for (path, live) in &image.contents.committed {
        for at in 0..*live {
            let case = Case { path, change: Change::Xor(at, 1 << (at % 8)) };
            assert_eq!(case.expected(&image), Some(Outcome::Named), "{case}");
            cases.push(case);
        }
    }
    let (flips, noticed) = check_all(&image, &cases);
    assert!(flips == noticed && flips > 5000, "{noticed} of {flips}");
}

#[test]
fn a_truncated_or_extended_file_is_harmless_or_named() {
    for image in &images() {
        let lengths = |change| matches!(change, Change::Truncate(_) | Change::Extend(_));
        assert!(check_all(image, &structural(image, lengths)).0 > 500);
    }
}

#[test]
fn a_zeroed_or_exchanged_sector_is_harmless_or_named() {
    for image in &images() {
        let sectors = |change| matches!(change, Change::Zero(..) | Change::Sectors(..));
        assert!(check_all(image, &structural(image, sectors)).0 > 200);
    }
}

#[test]
fn a_file_in_the_place_of_another_or_none_at_all_is_harmless_or_named() {
    for image in &images() {
        let places = |change| matches!(change, Change::Place(_));
        let cases = structural(image, places);
        let (checked, noticed) = check_all(image, &cases);
        assert!(checked > 40 && noticed * 2 > checked, "{noticed} of {checked}");
    }
}

#[test]
fn rows_that_lost_their_catalog_are_not_built_over() {
    let image = Image::new(SHAPES[2], 1, true);
    let rows = |files: &Files| -> Files {
        let rows = files.iter().filter(|(p, _)| p.extension() == Some("rows".as_ref()));
        rows.map(|(path, bytes)| (path.clone(), Arc::clone(bytes))).collect()
    };
    for lost in [&[CATALOG][..], &[CATALOG, LOCK]] {
        let disk = Shelf::of(&image.files);
        lost.iter().for_each(|path| disk.take(Path::new(path)));
        let options = SHAPES[2].options(DIM, metric(SHAPES[2])).disk(Arc::new(disk.clone()));
        let opened = options.open_or_create(HOME).map(drop);
        let made = options.create(HOME).map(drop);
        assert!(matches!(made, Err(Error::Corrupt { .. })), "{lost:?}: create said {made:?}");
        let kept = rows(&disk.dump()) == rows(&image.files);
        assert!(kept, "lost {lost:?}: the rows are gone; open_or_create said {opened:?}");
    }
}

/// Another version in the header of a file is told apart from damage.
#[test]
fn another_format_is_refused_by_name() {
    let image = Image::new(SHAPES[1], 1, true);
    let (older, newer) = (FORMAT_VERSION - 1, FORMAT_VERSION + 1);
    for ((path, bytes), version) in
        image.files.iter().flat_map(|file| [(file, older), (file, newer)])
    {
        if matches!(path.extension().and_then(|e| e.to_str()), Some("rows" | "list")) {
            assert_eq!(bytes[..8], *b"\x89CELLAR\n", "{}", path.display());
            let mut files = image.files.clone();
            let header = &mut Arc::make_mut(files.get_mut(path).unwrap())[..64];
            header[8..12].copy_from_slice(&version.to_le_bytes());
            let sum = cellardb_format::crc(&[&header[..60]]);
            header[60..].copy_from_slice(&sum.to_le_bytes());
            let query = [1.0; DIM];
            let met = stored(&Shelf::of(&files)).open(HOME).and_then(|index| {
                index.query(&query).k(100).exact().run()?;
                index.query(&query).k(100).probes(100).run()
            });
            let (named, found) = match &met {
                Err(Error::FormatTooNew { path, found, .. }) if version == newer => (path, found),
                Err(Error::FormatTooOld { path, found, .. }) if version == older => (path, found),
                _ => panic!("{}: {met:?}", path.display()),
            };
            assert_eq!((named.file_name(), *found), (path.file_name(), version));
        }
    }
}

/// What `inspect` says of these files.
fn said(image: &Image, files: &Files, blame: &str) -> Result<Outcome, String> {
    let options = stored(&Shelf::of(files));
    inspect((&options, Path::new(HOME)), image, &Blame::of(Path::new(blame)), (false, false))
}

#[test]
fn the_checker_notices_another_answer_a_wrong_name_and_a_panic_that_was_caught() {
    let mine = Image::new(SHAPES[0], 1, true);
    let other = said(&mine, &mine.foreign, CATALOG).unwrap_err();
    assert!(other.contains("silently"), "{other}");
    let mut files = mine.files.clone();
    files.remove(Path::new(CATALOG));
    assert!(said(&mine, &files, LOCK).is_err());
    assert_eq!(said(&mine, &files, CATALOG), Ok(Outcome::Named));
    let caught = no_panic(|| Ok(std::panic::catch_unwind(|| panic!("a bug")).is_err()));
    assert!(caught.unwrap_err().contains("a bug"));
}

#[test]
fn every_case_is_found_again_by_its_name() {
    let image = Image::new(SHAPES[1], 1, false);
    let mut cases = structural(&image, |_| true);
    structural::bytes(&image, (0, 997), &[0, 0xFF], &mut |case| cases.push(case));
    for case in &cases {
        let (path, change) = parse(&case.to_string()).unwrap();
        assert_eq!((&*path, change), (case.path, case.change), "{case}");
    }
    assert!(cases.iter().any(|case| case.change == Change::Place(Special::Fifo)));
}
