//! A power cut at operations of a repair: what is repaired after it is the same.

use super::*;
use cellardb_campaign::change::Cut;
use cellardb_campaign::sim::cuts;

/// Damages that lead through every part of a repair.
fn wounds(image: &Image) -> Vec<(&'static str, Files)> {
    let rows: Vec<&PathBuf> =
        image.files.keys().filter(|p| p.extension() == Some("rows".as_ref())).collect();
    let mut wounds = Vec::new();
    let mut wound = |what, change: &dyn Fn(&mut Files)| {
        let mut files = image.files.clone();
        change(&mut files);
        wounds.push((what, files));
    };
    wound("rows damaged", &|files| {
        for path in &rows {
            files.get_mut(*path).unwrap()[64 + 3 * STRIDE] ^= 1;
        }
    });
    wound("catalog and rows gone", &|files| {
        files.remove(Path::new(CATALOG));
        files.get_mut(rows[0]).unwrap()[64 + 3 * STRIDE] ^= 1;
    });
    wound("catalog damaged", &|files| {
        let catalog = files.get_mut(Path::new(CATALOG)).unwrap();
        for page in catalog.chunks_mut(4096).skip(1).step_by(3) {
            page[9] ^= 1;
        }
    });
    if let Some(list) = image.files.keys().find(|p| p.extension() == Some("list".as_ref())) {
        wound("a list gone", &|files| drop(files.remove(list)));
    }
    wounds
}

#[test]
fn a_power_cut_during_a_repair_costs_nothing_more() {
    let seeds = scale("CELLARDB_REPAIR_SEEDS", 1);
    let mut cases = Vec::new();
    let images: Vec<Image> =
        [SHAPES[0], SHAPES[1], SHAPES[2]].map(|shape| image(shape, Metric::L2, 1)).into();
    for image in &images {
        for (what, files) in wounds(image) {
            let disk = SimDisk::load(&files);
            disk.record();
            image.options(&disk).repair(HOME).unwrap();
            let ops = disk.recorded();
            let right = repair(image, &SimDisk::load(&files), &image.cost(&files)).unwrap().1;
            let walker = SimDisk::load(&files);
            for (n, op) in ops.iter().enumerate() {
                walker.replay(op);
                if n % (if seeds > 1 { 1 } else { 7 }) == 0 {
                    for cut in cuts(seeds, n as u64) {
                        untouched(&files, &walker.after_cut(cut));
                        cases.push((image, what, n, walker.after_cut(cut), cut, right.clone()));
                    }
                }
            }
        }
    }
    assert!(cases.len() > 100, "only {} cuts", cases.len());
    parallel(&cases, |(image, what, n, left, cut, right)| {
        let what = format!("{}: {what}, cut after operation {n} ({cut:?})", image.shape.name);
        let cost = Cost { hurt: (0..image.model.next).collect(), removals: true };
        let repaired = image.options(left).repair(HOME).unwrap_or_else(|e| panic!("{what}: {e}"));
        let model = survivors_or_done(image, left, &cost, &repaired, &right.0);
        let model = model.unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(model.rows, right.0, "{what}");
        if !repaired.damage.is_empty() {
            assert_eq!((&repaired.lost, &repaired.unknown), (&right.1, &right.2), "{what}");
        }
        goes_on(&left.after_cut(Cut::Dropped), model).unwrap_or_else(|e| panic!("{what}: {e}"));
    });
}

/// After the commit point there is nothing left to repair: the rows are those that are right.
fn survivors_or_done(
    image: &Image,
    disk: &SimDisk,
    cost: &Cost,
    repaired: &Repaired,
    right: &BTreeMap<usize, Vec<f32>>,
) -> Result<Model, String> {
    if !repaired.damage.is_empty() {
        return survivors(image, disk, cost, repaired);
    }
    let index = stored(disk).open(HOME).map_err(|e| e.to_string())?;
    let mut model = image.model.clone();
    model.rows.clone_from(right);
    model.differs(&index, 3)?;
    Ok(model)
}

/// As long as the old catalog has its name, the lists that it names are as they were.
fn untouched(files: &Files, left: &SimDisk) {
    let left = left.dump();
    if left.get(Path::new(CATALOG)) == files.get(Path::new(CATALOG)) {
        for (path, bytes) in files.iter().filter(|(path, _)| path.starts_with("/index/lists")) {
            assert_eq!(left.get(path), Some(bytes), "{}", path.display());
        }
    }
}
