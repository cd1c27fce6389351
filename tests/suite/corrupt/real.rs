//! The same damage through the file system and its maps, and what only a file system has.

use super::*;
use cellardb::Maintenance;

#[test]
fn through_maps_of_real_files_damage_is_named_too() {
    for shape in [SHAPES[1], SHAPES[2]] {
        let image = Image::new(shape, 1, true);
        let stand = Stand::new(&image, Mode::Map).unwrap();
        for (path, bytes) in &image.files {
            for at in (0..bytes.len()).step_by((bytes.len() / 100).max(1)) {
                check(&image, &stand, &Case { path, change: Change::Xor(at, 0xFF) });
            }
            for len in (0..bytes.len()).step_by((bytes.len() / 30).max(1)) {
                check(&image, &stand, &Case { path, change: Change::Truncate(len) });
            }
        }
        let (mut links, mut denied) = (0, 0);
        for case in structural(&image, |change| matches!(change, Change::Place(_))) {
            denied += usize::from(case.change == Change::Place(Special::Denied));
            links += usize::from(case.change == Change::Place(Special::Link));
            if stand.can(&case) {
                check(&image, &stand, &case);
            } else if case.change == Change::Place(Special::Denied) {
                // `campaign damage --structural` has a user do it whom the system heeds.
                assert!(!stand.modes_are_heeded);
            }
        }
        assert_eq!((links, denied), (image.files.len(), image.files.len()));
    }
}

#[test]
fn directories_that_are_files_are_named() {
    let image = Image::new(SHAPES[2], 1, true);
    for folder in ["rows", "lists"] {
        let root = tempfile::tempdir().unwrap();
        let home = root.path().join("index");
        for (path, bytes) in &image.files {
            let path = home.join(path.strip_prefix(HOME).unwrap());
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            write(&path, bytes);
        }
        std::fs::remove_dir_all(home.join(folder)).unwrap();
        write(&home.join(folder), b"x");
        let options = Options::stored().threads(1).maintenance(Maintenance::Manual);
        let opened: [cellardb::Result<Index>; 2] =
            [options.open(&home), options.open_read_only(&home)];
        for opened in opened {
            let Err(Error::Corrupt { path, .. }) = &opened else { panic!("{folder}: {opened:?}") };
            assert!(path.starts_with(home.join(folder)), "{folder}: {opened:?}");
        }
    }
}

fn write(path: &Path, bytes: &[u8]) {
    #[expect(clippy::disallowed_methods, reason = "the test lays out real files")]
    std::fs::write(path, bytes).unwrap();
}
