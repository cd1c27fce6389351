//! Damage of every kind to every file, then a repair: all that was not damaged is there, bit for bit and
//! under its id; what is missing is said; the index is whole and goes on. A power cut during the repair
//! costs nothing more. `CELLARDB_REPAIR_EVERY=1` damages every place of every file, `CELLARDB_REPAIR_SEEDS=8`
//! cuts after every operation.

mod cuts;
mod odd;

use cellardb::{Error, Index, Metric, Options, Repaired};
use cellardb_campaign::data::{self, Rng};
use cellardb_campaign::model::Model;
use cellardb_campaign::sim::{Fault, SimDisk};
use cellardb_campaign::{HOME, SHAPES, Shape, parallel, scale, stored};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const DIM: usize = 4;
const STRIDE: usize = 64;
const CATALOG: &str = "/index/catalog.redb";
const LOCK: &str = "/index/LOCK";

type Files = BTreeMap<PathBuf, Vec<u8>>;

/// A small index of several segments, sparse and dense, with removed rows, lists and a tail.
struct Image {
    shape: Shape,
    files: Files,
    /// The files some commits earlier.
    stale: Files,
    model: Model,
    /// Every row that ever was.
    ever: BTreeMap<usize, Vec<f32>>,
}

fn image(shape: Shape, metric: Metric, seed: u64) -> Image {
    let disk = SimDisk::new();
    let index = shape.options(DIM, metric).disk(Arc::new(disk.clone())).create(HOME).unwrap();
    let (mut model, mut rng, mut ever) = (Model::new(DIM, metric), Rng::new(seed), BTreeMap::new());
    let mut insert = |model: &mut Model, n| {
        let rows = data::vectors(&mut rng, n, DIM, metric);
        assert_eq!(index.insert_many(&rows).unwrap(), model.insert(&rows));
        ever.extend(model.rows.clone());
    };
    let remove = |model: &mut Model, ids: &[usize]| {
        assert_eq!(index.remove_many(ids).unwrap(), ids.len());
        model.remove(ids);
    };
    insert(&mut model, 70);
    remove(&mut model, &[0, 5, 6, 40]);
    index.train().unwrap();
    index.compact().unwrap();
    insert(&mut model, 80);
    index.flush().unwrap();
    let stale = disk.dump();
    remove(&mut model, &[3, 20, 75, 140]);
    insert(&mut model, 9);
    index.flush().unwrap();
    insert(&mut model, 4);
    index.close().unwrap();
    Image { shape, files: disk.dump(), stale, model, ever }
}

fn images() -> Vec<Image> {
    let (l2, ip, cosine) = (Metric::L2, Metric::InnerProduct, Metric::Cosine);
    let metrics = [l2, ip, l2, cosine, cosine];
    SHAPES.into_iter().zip(metrics).map(|(shape, metric)| image(shape, metric, 1)).collect()
}

/// What a damage may cost.
#[derive(Debug, Clone, Default)]
struct Cost {
    /// Rows whose bytes were hurt.
    hurt: BTreeSet<usize>,
    /// Whether what tells the removed rows was hurt.
    removals: bool,
}

impl Image {
    fn options(&self, disk: &SimDisk) -> Options {
        self.shape.options(DIM, self.model.metric).disk(Arc::new(disk.clone()))
    }

    /// Rows that differ between the files of the image and these.
    fn cost(&self, files: &Files) -> Cost {
        let mut cost = Cost::default();
        for (path, bytes) in &self.files {
            let now = files.get(path);
            if path.extension() == Some("rows".as_ref()) {
                for at in (64..bytes.len()).step_by(STRIDE).filter(|at| at + STRIDE <= bytes.len())
                {
                    let row = &bytes[at..at + STRIDE];
                    if now.and_then(|now| now.get(at..at + STRIDE)) != Some(row) {
                        let id = &row[STRIDE - 32..STRIDE - 24];
                        cost.hurt.insert(u64::from_le_bytes(id.try_into().unwrap()) as usize);
                    }
                }
            } else if path == Path::new(CATALOG) {
                cost.removals |= now != Some(bytes);
            }
        }
        cost
    }
}

fn contains(ranges: &[Range<usize>], id: usize) -> bool {
    ranges.iter().any(|range| range.contains(&id))
}

/// What an index says of its rows after a repair.
type Outcome = (BTreeMap<usize, Vec<f32>>, Vec<Range<usize>>, Vec<Range<usize>>);

/// Repairs and checks everything; what is left of the index then.
fn repair(image: &Image, disk: &SimDisk, cost: &Cost) -> Result<(Repaired, Outcome), String> {
    let repaired = image.options(disk).repair(HOME).map_err(|e| format!("repair: {e}"))?;
    let model = survivors(image, disk, cost, &repaired)?;
    let outcome = (model.rows.clone(), repaired.lost.clone(), repaired.unknown.clone());
    let before = disk.dump();
    let again = image.options(disk).repair(HOME).map_err(|e| format!("second repair: {e}"))?;
    if !again.damage.is_empty() || disk.dump() != before {
        return Err(format!("a second repair finds something to do: {again:?}"));
    }
    goes_on(disk, model)?;
    Ok((repaired, outcome))
}

/// The rows that are there, each held against what was inserted, and the missing against what was said.
fn survivors(
    image: &Image,
    disk: &SimDisk,
    cost: &Cost,
    repaired: &Repaired,
) -> Result<Model, String> {
    let index = stored(disk).open_read_only(HOME).map_err(|e| format!("open: {e}"))?;
    let report = index.verify().map_err(|e| format!("verify: {e}"))?;
    if !report.damage.is_empty() {
        return Err(format!("not whole: {:?}", report.damage));
    }
    let mut model = image.model.clone();
    for id in 0..model.next {
        let found = index.get(id).map_err(|e| format!("get {id}: {e}"))?;
        let (live, lost) = (image.model.rows.contains_key(&id), contains(&repaired.lost, id));
        let open = lost || contains(&repaired.unknown, id);
        match &found {
            Some(_) if open => return Err(format!("row {id} is there and said to be lost")),
            Some(row) if *row != image.ever[&id] => return Err(format!("row {id} is {row:?}")),
            Some(_) if !live && !cost.removals => return Err(format!("row {id} came back")),
            None if lost && !live && !cost.removals => {
                return Err(format!("row {id} was removed and is said to be lost"));
            }
            None if live && !open => return Err(format!("row {id} is gone without a word")),
            None if open && !cost.hurt.contains(&id) && (live || lost) => {
                return Err(format!("row {id} is lost (or not known), and was not damaged"));
            }
            _ => {}
        }
        match found {
            Some(row) => model.rows.insert(id, row),
            None => model.rows.remove(&id),
        };
    }
    if repaired.damage.is_empty() && model.rows != image.model.rows {
        return Err("nothing was damaged, but the rows are others".to_owned());
    }
    if repaired.rows != model.rows.len() as u64 {
        return Err(format!(
            "{} rows were announced, {} are there",
            repaired.rows,
            model.rows.len()
        ));
    }
    model.differs(&index, 3)?;
    Ok(model)
}

/// Takes rows under ids that never were, and has them at the next opening.
fn goes_on(disk: &SimDisk, mut model: Model) -> Result<(), String> {
    let text = |e: Error| format!("going on: {e}");
    let index = stored(disk).open(HOME).map_err(text)?;
    let rows = data::vectors(&mut Rng::new(5), 12, DIM, model.metric);
    let (found, right) = (index.insert_many(&rows).map_err(text)?, model.insert(&rows));
    if found != right {
        return Err(format!("new rows got ids {found:?}, should be {right:?}"));
    }
    index.flush().map_err(text)?;
    let gone: Vec<usize> = model.ids().into_iter().step_by(6).collect();
    index.remove_many(&gone).map_err(text)?;
    model.remove(&gone);
    index.compact().map_err(text)?;
    index.close().map_err(text)?;
    let index = stored(disk).open(HOME).map_err(text)?;
    model.differs(&index, 7).map_err(|e| format!("opened after going on: {e}"))
}

/// Checks the repair of some files; panics with `what`.
fn check(image: &Image, files: &Files, what: &str) -> Repaired {
    let cost = image.cost(files);
    let repaired = repair(image, &SimDisk::load(files), &cost);
    repaired.unwrap_or_else(|e| panic!("{}: {what}: {e}", image.shape.name)).0
}

fn damage(image: &Image, path: &Path, what: &str, change: impl FnOnce(&mut Vec<u8>)) -> Repaired {
    let mut files = image.files.clone();
    change(files.get_mut(path).unwrap());
    check(image, &files, &format!("{}: {what}", path.display()))
}

/// Every so-many-th place of every file; the catalog is long and takes longer steps.
fn places(images: &[Image], step: usize) -> Vec<(&Image, &PathBuf, usize)> {
    let every = scale("CELLARDB_REPAIR_EVERY", step as u64) as usize;
    let mut cases = Vec::new();
    for image in images {
        for (path, bytes) in &image.files {
            let step = if path == Path::new(CATALOG) { every * 40 } else { every };
            cases.extend((0..bytes.len()).step_by(step).map(|at| (image, path, at)));
        }
    }
    cases
}

#[test]
fn a_flipped_byte_costs_its_row_at_most() {
    let images = images();
    parallel(&places(&images, 251), |(image, path, at)| {
        let repaired =
            damage(image, path, &format!("byte {at} flipped"), |bytes| bytes[*at] ^= 0x41);
        let lost: usize = repaired.lost.iter().map(ExactSizeIterator::len).sum();
        assert!(lost <= 1, "{}: byte {at}: {lost} rows lost", path.display());
        if path.extension() == Some("list".as_ref()) || *path == Path::new(LOCK) {
            assert_eq!(lost, 0, "{}: byte {at}", path.display());
        }
    });
}

#[test]
fn a_truncated_or_zeroed_file_costs_what_was_in_it() {
    let images = images();
    parallel(&places(&images, 2503), |(image, path, at)| {
        damage(image, path, &format!("truncated to {at}"), |bytes| bytes.truncate(*at));
        damage(image, path, &format!("sector at {at} zeroed"), |bytes| {
            let start = at / 512 * 512;
            let end = bytes.len().min(start + 512);
            bytes[start..end].fill(0);
        });
    });
}

#[test]
fn a_missing_file_or_a_directory_in_its_place_costs_what_was_in_it() {
    for image in &images() {
        for path in image.files.keys() {
            let mut files = image.files.clone();
            files.remove(path);
            let repaired = check(image, &files, &format!("{path:?} deleted"));
            assert_eq!(repaired.catalog, *path == Path::new(CATALOG));
            files.insert(path.join("child"), vec![1]);
            check(image, &files, &format!("{path:?} is a directory"));
        }
    }
}

#[test]
fn a_file_in_the_place_of_a_directory_costs_what_was_in_it() {
    for image in &images() {
        for dir in ["/index/rows", "/index/lists", "/index/lists/g0001", "/index/lists/g0001/000"] {
            let mut files = image.files.clone();
            files.retain(|path, _| !path.starts_with(dir));
            files.insert(dir.into(), vec![1]);
            check(image, &files, &format!("{dir} is a file"));
        }
    }
}

#[test]
fn swapped_files_cost_nothing_and_foreign_ones_what_they_replaced() {
    for image in &images() {
        let paths: Vec<&PathBuf> = image.files.keys().collect();
        for (i, a) in paths.iter().enumerate() {
            for b in paths[i + 1..].iter().filter(|b| a.extension() == b.extension()) {
                let mut files = image.files.clone();
                files.insert(a.to_path_buf(), image.files[*b].clone());
                files.insert(b.to_path_buf(), image.files[*a].clone());
                let repaired = check(image, &files, &format!("{a:?} and {b:?} swapped"));
                assert!(repaired.lost.is_empty(), "{a:?} and {b:?} swapped: {repaired:?}");
            }
        }
        let other = self::image(image.shape, image.model.metric, 2);
        for (path, bytes) in other.files.iter().filter(|(path, _)| image.files.contains_key(*path))
        {
            let mut files = image.files.clone();
            files.insert(path.clone(), bytes.clone());
            let repaired = check(image, &files, &format!("{path:?} of another index"));
            assert!(!repaired.damage.is_empty(), "{path:?} of another index unnoticed");
        }
    }
}

#[test]
fn an_older_catalog_brings_back_what_came_after_it() {
    for image in &images() {
        let mut files = image.files.clone();
        files.insert(CATALOG.into(), image.stale[Path::new(CATALOG)].clone());
        let repaired = check(image, &files, "the catalog is an older one");
        assert!(repaired.catalog && repaired.lost.is_empty(), "{repaired:?}");
        for (path, bytes) in image.stale.iter().filter(|(path, _)| path.starts_with("/index/lists"))
        {
            let mut files = image.files.clone();
            files.insert(path.clone(), bytes.clone());
            check(image, &files, &format!("{path:?} is an older one"));
        }
    }
}

/// Removed rows are known from the bytes of a catalog of which a page is damaged.
#[test]
fn a_damaged_page_of_the_catalog_costs_no_removal() {
    let image = image(SHAPES[2], Metric::L2, 1);
    let (mut broken, mut back) = (0, 0);
    for at in (0..image.files[Path::new(CATALOG)].len()).step_by(509) {
        let repaired = damage(&image, Path::new(CATALOG), &format!("byte {at}"), |b| b[at] ^= 0x41);
        if repaired.catalog {
            broken += 1;
            back += u64::from(repaired.rows > image.model.rows.len() as u64);
        }
    }
    println!("{broken} damaged catalogs, removed rows came back from {back}");
    assert!(broken > 3 && back * 4 < broken, "{back} of {broken}");
}

/// A batch that ran into a full disk left rows in one segment; their ids went to others, in the next.
#[test]
fn of_two_rows_of_one_id_the_acknowledged_one_comes_back() {
    let mut image = image(SHAPES[0], Metric::L2, 1);
    let disk = SimDisk::load(&image.files);
    let index = stored(&disk).open(HOME).unwrap();
    let mut rng = Rng::new(9);
    let rows = data::vectors(&mut rng, 60, DIM, Metric::L2);
    disk.fail(1, Fault::Enospc, false);
    assert!(index.insert_many(&rows).is_err());
    let rows = data::vectors(&mut rng, 60, DIM, Metric::L2);
    assert_eq!(index.insert_many(&rows).unwrap(), image.model.insert(&rows));
    index.close().unwrap();
    image.ever.extend(image.model.rows.clone());
    let mut files = disk.dump();
    files.remove(Path::new(CATALOG));
    let cost = Cost { removals: true, ..Cost::default() };
    let (repaired, _) = repair(&image, &SimDisk::load(&files), &cost).unwrap();
    assert!(repaired.aside.len() == 2, "the two segments did not meet: {repaired:?}");
}

#[test]
fn without_a_catalog_the_metric_must_be_said_and_must_fit() {
    for (metric, wrong) in [(Metric::L2, Metric::Cosine), (Metric::Cosine, Metric::L2)] {
        let image = image(SHAPES[1], metric, 1);
        let mut files = image.files.clone();
        files.remove(Path::new(CATALOG));
        let disk = SimDisk::load(&files);
        let silent = stored(&disk).repair(HOME);
        assert!(matches!(silent, Err(Error::Invalid { name: "metric", .. })), "{silent:?}");
        let other = stored(&disk).metric(wrong).repair(HOME);
        assert!(matches!(other, Err(Error::Invalid { name: "metric", .. })), "{other:?}");
        let dim = Options::new(DIM + 1).metric(metric).disk(Arc::new(disk.clone())).repair(HOME);
        assert!(matches!(dim, Err(Error::Dimension { .. })), "{dim:?}");
        let rows = files.iter().filter(|(path, _)| path.starts_with("/index/rows"));
        let left = disk.dump();
        assert!(rows.clone().all(|(path, bytes)| left.get(path) == Some(bytes)));
        repair(&image, &disk, &image.cost(&files)).unwrap();
    }
}

#[test]
fn what_is_whole_is_left_alone_and_what_is_open_is_refused() {
    for image in &images() {
        let disk = SimDisk::load(&image.files);
        let index = stored(&disk).open(HOME).unwrap();
        assert!(matches!(image.options(&disk).repair(HOME), Err(Error::Locked { .. })));
        drop(index);
        let before = disk.dump();
        let repaired = image.options(&disk).repair(HOME).unwrap();
        assert!(repaired.damage.is_empty() && repaired.aside.is_empty(), "{repaired:?}");
        assert_eq!((repaired.rows, disk.dump()), (image.model.rows.len() as u64, before));
    }
    let nothing = stored(&SimDisk::new()).repair(HOME);
    assert!(matches!(nothing, Err(Error::NotFound { .. })), "{nothing:?}");
}

/// What was damaged is kept: every file that is taken out of use is there under another name.
#[test]
fn what_was_damaged_is_kept_aside() {
    let kept = |path: &Path| path.starts_with("/index/rows") || path == Path::new(CATALOG);
    for image in &images() {
        for path in image.files.keys().filter(|path| kept(path)) {
            let mut files = image.files.clone();
            files.get_mut(path).unwrap()[80..].iter_mut().step_by(50).for_each(|b| *b ^= 1);
            let disk = SimDisk::load(&files);
            let repaired = image.options(&disk).repair(HOME).unwrap();
            let left = disk.dump();
            let kept = repaired.aside.iter().any(|aside| left.get(aside) == Some(&files[path]));
            assert!(kept, "{path:?} is not kept: {:?}", repaired.aside);
        }
    }
}

#[test]
fn the_checker_notices_a_row_that_is_gone_or_wrong() {
    let image = image(SHAPES[0], Metric::L2, 1);
    let disk = SimDisk::load(&image.files);
    let index = stored(&disk).open(HOME).unwrap();
    index.remove(10).unwrap();
    drop(index);
    let said =
        survivors(&image, &disk, &Cost::default(), &image.options(&disk).repair(HOME).unwrap());
    assert!(said.unwrap_err().contains("row 10 is gone"));
    let other = self::image(SHAPES[0], Metric::L2, 2);
    let disk = SimDisk::load(&other.files);
    let said =
        survivors(&image, &disk, &Cost::default(), &image.options(&disk).repair(HOME).unwrap());
    assert!(said.unwrap_err().contains("row 1 is"));
    assert!(Index::repair("/no/such/index").is_err());
}
