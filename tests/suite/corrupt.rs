//! Damage of every kind to every file of a small index: flipped bytes, truncated, extended, zeroed,
//! swapped, foreign, stale and missing files. The answer is right, or an error that names the file;
//! never a panic, never another answer. `CELLARDB_CORRUPT_EVERY=1` flips every byte of
//! every file in both ways (by default every so-many-th of the catalog, every third of the others).

mod real;

use cellardb::{Error, Index, Metric, Options};
use cellardb_campaign::data::{self, Rng};
use cellardb_campaign::model::Model;
use cellardb_campaign::sim::SimDisk;
use cellardb_campaign::{HOME, SHAPES, Shape, blames, parallel, scale, stored};
use cellardb_format::FORMAT_VERSION;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

const DIM: usize = 4;
const CATALOG: &str = "/index/catalog.redb";
const LOCK: &str = "/index/LOCK";

type Files = BTreeMap<PathBuf, Vec<u8>>;

/// The files of an index and what it answers while they are whole.
struct Image {
    name: String,
    files: Files,
    /// The files as they were some commits earlier.
    stale: Files,
    model: Model,
    answers: Answers,
}

/// Everything that is asked of an index. Equal answers are equal to the last bit.
#[derive(Debug, PartialEq)]
struct Answers {
    ids: Vec<usize>,
    rows: Vec<Option<Vec<f32>>>,
    searches: Vec<Vec<(usize, f32)>>,
    exact: Vec<Vec<(usize, f32)>>,
}

/// How an index took its damage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// Every answer right and nothing to complain of.
    Unharmed,
    /// Some error, or a finding of `verify`, that names the file.
    Named,
}

/// Builds a small index; `seed` makes its rows, `closed` says whether it ends in order or by a kill.
fn image(shape: Shape, metric: Metric, seed: u64, closed: bool) -> Image {
    let disk = SimDisk::new();
    let index = shape.options(DIM, metric).disk(Arc::new(disk.clone())).create(HOME).unwrap();
    let mut model = Model::new(DIM, metric);
    let mut rng = Rng::new(seed);
    let mut insert = |model: &mut Model, n| {
        let rows = data::vectors(&mut rng, n, DIM, metric);
        assert_eq!(index.insert_many(&rows).unwrap(), model.insert(&rows));
    };
    insert(&mut model, 70);
    index.train().unwrap();
    insert(&mut model, 10);
    index.flush().unwrap();
    let stale = disk.dump();
    for id in [3, 20, 75] {
        assert!(index.remove(id).unwrap());
        model.remove(&[id]);
    }
    insert(&mut model, 9);
    index.flush().unwrap();
    insert(&mut model, 4);
    if closed {
        index.close().unwrap();
    }
    let files = disk.dump();
    let index = stored(&SimDisk::load(&files)).open(HOME).unwrap();
    model.differs(&index, 1).unwrap();
    let Ok((answers, Outcome::Unharmed)) = ask(&index, &model, &[]) else {
        panic!("{}: the whole image is not in order", shape.name)
    };
    let name = format!("{} {metric:?} {}", shape.name, if closed { "closed" } else { "killed" });
    Image { name, files, stale, model, answers }
}

/// An error says that there is damage, and names one of these files.
fn named(error: &Error, files: &[&Path]) -> Result<Outcome, String> {
    if !matches!(error, Error::Corrupt { .. } | Error::FormatTooNew { .. }) {
        return Err(format!("error that does not speak of damage: {error}"));
    }
    if files.iter().any(|file| blames(error, file)) {
        Ok(Outcome::Named)
    } else {
        Err(format!("error that names another file or none: {error}"))
    }
}

/// Asks everything. An error that names one of `files` ends it, any other is a failure.
fn ask(index: &Index, model: &Model, files: &[&Path]) -> Result<(Answers, Outcome), String> {
    let mut outcome = Outcome::Unharmed;
    let mut answers =
        Answers { ids: Vec::new(), rows: Vec::new(), searches: Vec::new(), exact: Vec::new() };
    let mut note = |e: Error| named(&e, files).map(|o| outcome = o);
    answers.ids = index.ids();
    for id in 0..model.next + 1 {
        match index.get(id) {
            Ok(row) => answers.rows.push(row),
            Err(e) => {
                note(e)?;
                answers.rows.push(None);
            }
        }
    }
    let queries = data::vectors(&mut Rng::new(11), 3, DIM, model.metric);
    for query in queries.chunks(DIM) {
        for (hits, list) in [
            (index.search(query, 5), &mut answers.searches),
            (index.query(query).k(100).exact().run(), &mut answers.exact),
        ] {
            match hits {
                Ok(hits) => list.push(hits),
                Err(e) => {
                    note(e)?;
                    list.push(Vec::new());
                }
            }
        }
    }
    match index.verify() {
        Ok(report) => {
            for damage in &report.damage {
                if !files.iter().any(|f| damage.path.file_name() == f.file_name()) {
                    return Err(format!("verify blames another file: {damage:?}"));
                }
                outcome = Outcome::Named;
            }
        }
        Err(e) => note(e)?,
    }
    Ok((answers, outcome))
}

/// Whether everything that was answered equals the right answer. What ended in an error is empty.
fn same(found: &Answers, right: &Answers, model: &Model) -> Result<(), String> {
    if found.ids != right.ids {
        return Err(format!("silently other ids: {:?}", found.ids));
    }
    for (id, row) in found.rows.iter().enumerate() {
        if row.is_some() && *row != right.rows[id] {
            return Err(format!(
                "silently another row {id}: {row:?}, not {:?}",
                model.rows.get(&id)
            ));
        }
    }
    let searches = found.searches.iter().zip(&right.searches);
    for (hits, right) in searches.chain(found.exact.iter().zip(&right.exact)) {
        if !hits.is_empty() && hits != right {
            return Err(format!("silently other hits: {hits:?}, not {right:?}"));
        }
    }
    Ok(())
}

/// Opens damaged files, to write and to read, and asks everything; `files` are those that an error
/// may name.
fn inspect(
    options: &Options,
    home: &Path,
    image: &Image,
    files: &[&Path],
) -> Result<Outcome, String> {
    for read_only in [true, false] {
        let open = if read_only { options.open_read_only(home) } else { options.open(home) };
        let index = match open {
            Ok(index) => index,
            Err(Error::NotFound { .. }) if files.iter().any(|f| f.ends_with("catalog.redb")) => {
                return Ok(Outcome::Named);
            }
            Err(e) => return named(&e, files),
        };
        let (found, outcome) = ask(&index, &image.model, files)?;
        same(&found, &image.answers, &image.model)?;
        if outcome == Outcome::Named {
            return Ok(outcome);
        }
        if found != image.answers {
            return Err("an answer is missing without an error".to_owned());
        }
    }
    Ok(Outcome::Unharmed)
}

/// Checks a damaged image on a simulated disk; panics with `what` unless it is taken well.
fn check(image: &Image, files: &Files, blame: &[&Path], what: &str) -> Outcome {
    let start = Instant::now();
    let options = stored(&SimDisk::load(files));
    let inspected =
        catch_unwind(AssertUnwindSafe(|| inspect(&options, Path::new(HOME), image, blame)));
    let outcome = match inspected {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(e)) => panic!("{}: {what}: {e}", image.name),
        Err(_) => panic!("{}: {what}: PANIC, see above", image.name),
    };
    assert!(start.elapsed() < Duration::from_secs(20), "{}: {what}: took too long", image.name);
    outcome
}

/// Damages one file and checks.
fn damage(image: &Image, path: &Path, what: &str, change: impl FnOnce(&mut Vec<u8>)) -> Outcome {
    let mut files = image.files.clone();
    change(files.get_mut(path).unwrap());
    check(image, &files, &[path], &format!("{}: {what}", path.display()))
}

/// One image of every kind, closed and killed by turns; the metrics take turns too.
fn images() -> Vec<Image> {
    let (l2, ip, cosine) = (Metric::L2, Metric::InnerProduct, Metric::Cosine);
    let metrics = [l2, ip, l2, cosine, cosine];
    let closed = [true, false, false, true, false];
    let kinds = SHAPES.into_iter().zip(metrics).zip(closed);
    kinds.map(|((shape, metric), closed)| image(shape, metric, 1, closed)).collect()
}

#[test]
fn every_flipped_byte_is_harmless_or_named() {
    let every = scale("CELLARDB_CORRUPT_EVERY", 97) as usize;
    let images = images();
    let mut cases = Vec::new();
    for image in &images {
        for (path, bytes) in &image.files {
            let step = if path == Path::new(CATALOG) { every } else { every.min(3) };
            for at in (0..bytes.len()).step_by(step) {
                // A bit and the whole byte take turns, unless everything is asked for.
                let masks = [1 << (at / 2 % 8), 0xFF];
                let masks = if every == 1 { &masks[..] } else { &masks[at % 2..=at % 2] };
                cases.extend(masks.iter().map(|mask| (image, path, at, *mask)));
            }
        }
    }
    let caught = AtomicU64::new(0);
    parallel(&cases, |(image, path, at, mask)| {
        let what = format!("byte {at} of {} xor {mask:#04x}", image.files[*path].len());
        let outcome = damage(image, path, &what, |bytes| bytes[*at] ^= mask);
        caught.fetch_add(u64::from(outcome == Outcome::Named), Relaxed);
        if *path == Path::new(LOCK) {
            assert_eq!(outcome, Outcome::Unharmed, "{}: LOCK, {what}", image.name);
        }
    });
    let (flips, caught) = (cases.len() as u64, caught.into_inner());
    println!("{flips} flips, {caught} noticed, the others without effect");
    assert!(flips > 10_000 && caught * 10 > flips);
}

#[test]
fn every_flip_in_a_row_or_in_a_header_is_noticed() {
    let image = image(SHAPES[1], Metric::L2, 1, true);
    let stride = (4 * DIM).div_ceil(32) * 32 + 32;
    for (path, bytes) in &image.files {
        let live = match path.extension().and_then(|e| e.to_str()) {
            Some("rows") => bytes.len().min(64 + stride),
            Some("list") => bytes.len().min(64 + 32),
            _ => continue,
        };
        for at in 0..live {
            let outcome = damage(&image, path, &format!("byte {at}"), |b| b[at] ^= 1 << (at % 8));
            assert_eq!(outcome, Outcome::Named, "{}: byte {at} unnoticed", path.display());
        }
    }
}

#[test]
fn a_truncated_or_extended_file_is_harmless_or_named() {
    let images = images();
    let mut cases = Vec::new();
    for image in &images {
        for (path, bytes) in &image.files {
            let step = (bytes.len() / 60).max(1);
            cases.extend((0..bytes.len()).step_by(step).map(|len| (image, path, len)));
        }
    }
    parallel(&cases, |(image, path, len)| {
        damage(image, path, &format!("truncated to {len}"), |bytes| bytes.truncate(*len));
    });
    for image in &images {
        for path in image.files.keys() {
            for extra in [1, 64, 4096, 100_000] {
                let mut rng = Rng::new(extra);
                damage(image, path, &format!("{extra} bytes of garbage at the end"), |bytes| {
                    bytes.extend((0..extra).map(|_| rng.next_u64() as u8));
                });
            }
        }
    }
}

#[test]
fn a_zeroed_sector_is_harmless_or_named() {
    let images = images();
    let mut cases = Vec::new();
    for image in &images {
        for (path, bytes) in &image.files {
            cases.extend((0..bytes.len()).step_by(512).map(|at| (image, path, at)));
        }
    }
    parallel(&cases, |(image, path, at)| {
        damage(image, path, &format!("sector at {at} zeroed"), |bytes| {
            let end = bytes.len().min(at + 512);
            bytes[*at..end].fill(0);
        });
    });
}

#[test]
fn swapped_foreign_and_stale_files_are_harmless_or_named() {
    for image in &images() {
        let paths: Vec<&PathBuf> = image.files.keys().collect();
        for (i, a) in paths.iter().enumerate() {
            for b in &paths[i + 1..] {
                if a.extension() == b.extension() {
                    let mut files = image.files.clone();
                    files.insert(a.to_path_buf(), image.files[*b].clone());
                    files.insert(b.to_path_buf(), image.files[*a].clone());
                    check(image, &files, &[a, b], &format!("{a:?} and {b:?} swapped"));
                }
            }
        }
        let of = |path: &Path| -> Vec<&Path> {
            // Under another catalog every file is a stranger, and each may be the one named.
            if path == Path::new(CATALOG) {
                paths
                    .iter()
                    .map(|p| p.as_path())
                    .chain(image.stale.keys().map(|p| p.as_path()))
                    .collect()
            } else {
                paths.iter().map(|p| p.as_path()).filter(|p| *p == path).collect()
            }
        };
        for (path, bytes) in &image.stale {
            let mut files = image.files.clone();
            files.insert(path.clone(), bytes.clone());
            let outcome = check(image, &files, &of(path), &format!("{path:?} is stale"));
            if path == Path::new(LOCK) {
                assert_eq!(outcome, Outcome::Unharmed, "an older mark refuses nothing");
            }
        }
    }
    for (i, shape) in SHAPES.into_iter().enumerate() {
        let metric = cellardb_campaign::METRICS[i % 3];
        let (mine, other) = (image(shape, metric, 1, true), image(shape, metric, 2, true));
        for (path, bytes) in &other.files {
            if mine.files.contains_key(path) {
                let mut files = mine.files.clone();
                files.insert(path.clone(), bytes.clone());
                let blame: Vec<&Path> = if path == Path::new(CATALOG) {
                    mine.files.keys().chain(other.files.keys()).map(|p| p.as_path()).collect()
                } else {
                    vec![path]
                };
                check(&mine, &files, &blame, &format!("{path:?} of another index"));
            }
        }
    }
}

#[test]
fn a_missing_file_or_a_directory_in_its_place_is_harmless_or_named() {
    for image in &images() {
        for path in image.files.keys() {
            let mut files = image.files.clone();
            files.remove(path);
            let outcome = check(image, &files, &[path], &format!("{path:?} deleted"));
            let lock = path == Path::new(LOCK);
            assert_eq!(outcome == Outcome::Unharmed, lock, "{path:?} deleted");
            files.insert(path.join("child"), vec![1]);
            check(image, &files, &[path], &format!("{path:?} is a directory"));
        }
    }
}

#[test]
fn rows_that_lost_their_catalog_are_not_built_over() {
    let image = image(SHAPES[2], Metric::L2, 1, true);
    let rows: Files = image
        .files
        .iter()
        .filter(|(p, _)| p.extension() == Some("rows".as_ref()))
        .map(own)
        .collect();
    for lost in [CATALOG, "both"] {
        let mut files = image.files.clone();
        files.remove(Path::new(CATALOG));
        if lost == "both" {
            files.remove(Path::new(LOCK));
        }
        let disk = SimDisk::load(&files);
        let options = SHAPES[2].options(DIM, Metric::L2).disk(Arc::new(disk.clone()));
        let opened = options.open_or_create(HOME).map(drop);
        let made = options.create(HOME).map(drop);
        assert!(matches!(made, Err(Error::Corrupt { .. })), "{lost}: create said {made:?}");
        let left = disk.dump();
        let kept = rows.iter().all(|(path, bytes)| left.get(path) == Some(bytes));
        assert!(kept, "lost {lost}: the rows are gone; open_or_create said {opened:?}");
    }
}

fn own((path, bytes): (&PathBuf, &Vec<u8>)) -> (PathBuf, Vec<u8>) {
    (path.clone(), bytes.clone())
}

/// Another version in the header of a file is told apart from damage.
#[test]
fn another_format_is_refused_by_name() {
    let image = image(SHAPES[1], Metric::L2, 1, true);
    let (older, newer) = (FORMAT_VERSION - 1, FORMAT_VERSION + 1);
    for ((path, bytes), version) in
        image.files.iter().flat_map(|file| [(file, older), (file, newer)])
    {
        if matches!(path.extension().and_then(|e| e.to_str()), Some("rows" | "list")) {
            assert_eq!(bytes[..8], *b"\x89CELLAR\n", "{}", path.display());
            let mut files = image.files.clone();
            let header = &mut files.get_mut(path).unwrap()[..64];
            header[8..12].copy_from_slice(&version.to_le_bytes());
            let sum = cellardb_format::crc(&[&header[..60]]);
            header[60..].copy_from_slice(&sum.to_le_bytes());
            let disk = SimDisk::load(&files);
            let query = [1.0; DIM];
            let met = stored(&disk).open(HOME).and_then(|index| {
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

#[test]
fn the_checker_notices_another_answer_and_a_wrong_name() {
    let mine = image(SHAPES[0], Metric::L2, 1, true);
    let other = image(SHAPES[0], Metric::L2, 2, true);
    let options = stored(&SimDisk::load(&other.files));
    let said = inspect(&options, Path::new(HOME), &mine, &[Path::new(CATALOG)]).unwrap_err();
    assert!(said.contains("silently"), "{said}");
    let mut files = mine.files.clone();
    files.remove(Path::new(CATALOG));
    let options = stored(&SimDisk::load(&files));
    assert!(inspect(&options, Path::new(HOME), &mine, &[Path::new(LOCK)]).is_err());
}
