//! The same damage through the file system and its maps, and what only a file system has.

use super::*;
use std::os::unix::fs::symlink;
use std::process::Command;

#[test]
fn through_maps_of_real_files_damage_is_named_too() {
    for (shape, metric) in [(SHAPES[1], Metric::L2), (SHAPES[2], Metric::Cosine)] {
        let image = image(shape, metric, 1, true);
        let root = tempfile::tempdir().unwrap();
        SimDisk::load(&image.files).export(root.path());
        let home = root.path().join("index");
        let options = Options::stored().threads(1).maintenance(cellardb::Maintenance::Manual);
        assert_eq!(inspect(&options, &home, &image, &[]).unwrap(), Outcome::Unharmed);
        SimDisk::load(&image.files).export(root.path());
        for (path, bytes) in &image.files {
            let real = root.path().join(path.strip_prefix("/").unwrap());
            let flips = (0..bytes.len()).step_by((bytes.len() / 100).max(1)).map(|at| {
                let mut bytes = bytes.clone();
                bytes[at] ^= 0xFF;
                (format!("byte {at}"), bytes)
            });
            let cuts = (0..bytes.len()).step_by((bytes.len() / 30).max(1));
            let cuts = cuts.map(|len| (format!("truncated to {len}"), bytes[..len].to_vec()));
            for (what, bytes) in flips.chain(cuts) {
                replace(&real, &bytes);
                read_only(&options, &home, &image, path, &what);
            }
            let links = ["a link to nothing", "a link to itself", "a link to a device"];
            for what in ["a directory", "a FIFO"].into_iter().chain(links) {
                put_special(&real, what);
                read_only(&options, &home, &image, path, what);
            }
            remove(&real);
            replace(&real, bytes);
        }
    }
}

fn replace(path: &Path, bytes: &[u8]) {
    #[expect(clippy::disallowed_methods, reason = "the test damages a real file")]
    std::fs::write(path, bytes).unwrap();
}

/// Opens real files for reading, which leaves them as they are, and checks.
fn read_only(options: &Options, home: &Path, image: &Image, path: &Path, what: &str) {
    let taken = match options.open_read_only(home) {
        Ok(index) => ask(&index, &image.model, &[path])
            .and_then(|(found, _)| same(&found, &image.answers, &image.model)),
        Err(e) => named(&e, &[path]).map(drop),
    };
    taken.unwrap_or_else(|e| panic!("{}, real files: {}: {what}: {e}", image.name, path.display()));
}

fn remove(path: &Path) {
    std::fs::remove_file(path).or_else(|_| std::fs::remove_dir(path)).unwrap();
}

/// Puts something that is no file in the place of one.
fn put_special(path: &Path, what: &str) {
    remove(path);
    match what {
        "a directory" => std::fs::create_dir(path).unwrap(),
        "a FIFO" => assert!(Command::new("mkfifo").arg(path).status().unwrap().success()),
        "a link to nothing" => symlink("nothing", path).unwrap(),
        "a link to itself" => symlink(path, path).unwrap(),
        _ => symlink("/dev/zero", path).unwrap(),
    }
}

#[test]
fn directories_that_are_files_are_named() {
    let image = image(SHAPES[2], Metric::L2, 1, true);
    for folder in ["rows", "lists"] {
        let root = tempfile::tempdir().unwrap();
        SimDisk::load(&image.files).export(root.path());
        let home = root.path().join("index");
        std::fs::remove_dir_all(home.join(folder)).unwrap();
        replace(&home.join(folder), b"x");
        let options = Options::stored().threads(1).maintenance(cellardb::Maintenance::Manual);
        for opened in [options.open(&home), options.open_read_only(&home)] {
            let Err(Error::Corrupt { path, .. }) = &opened else { panic!("{folder}: {opened:?}") };
            assert!(path.starts_with(home.join(folder)), "{folder}: {opened:?}");
        }
    }
}
