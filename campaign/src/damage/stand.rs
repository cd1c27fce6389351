//! Where a damaged index is laid out and opened: on a disk in memory, whose files are read by
//! positioned reads, or in a real directory, whose files are mapped.

use super::Files;
use super::ask::{Blame, Outcome, inspect};
use super::case::{Case, Change, Special};
use super::heap::{self, Use};
use super::image::Image;
use super::shelf::{Node, Shelf};
use crate::watch::{in_time, no_panic};
use crate::{HOME, stored};
use cellardb::{Index, Maintenance, Options};
use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

/// How an index is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// From memory, by positioned reads.
    Read,
    /// From real files, through maps.
    Map,
}

/// An image laid out to be damaged over and over.
#[derive(Debug)]
pub struct Stand<'a> {
    image: &'a Image,
    /// The directory that stands for `/`; none in memory.
    real: Option<tempfile::TempDir>,
    /// Whether a file without permissions is closed to this process; root opens it.
    pub modes_are_heeded: bool,
    /// What the whole image takes.
    whole: Use,
    /// Keeps the threads that indexes share from being started anew for each.
    _open: Index,
}

/// What became of one case.
#[derive(Debug, Clone, Copy)]
pub struct Verdict {
    pub outcome: Outcome,
    pub used: Use,
}

fn real_options() -> Options {
    Options::stored().threads(1).memory(16 << 20).maintenance(Maintenance::Manual)
}

#[expect(clippy::disallowed_methods, reason = "the harness lays out and damages real files")]
fn write(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).unwrap();
}

/// A directory in memory where there is one: no disk need turn for this.
fn scratch() -> Result<tempfile::TempDir, String> {
    let made = |dir: &Path| tempfile::Builder::new().prefix("cellardb-damage").tempdir_in(dir);
    made(Path::new("/dev/shm"))
        .or_else(|_| made(&std::env::temp_dir()))
        .map_err(cannot("lay out an index"))
}

/// For what is no broken promise.
pub fn cannot(what: &str) -> impl FnOnce(std::io::Error) -> String {
    move |e| format!("the harness cannot {what}: {e}")
}

impl<'a> Stand<'a> {
    pub fn new(image: &'a Image, mode: Mode) -> Result<Self, String> {
        let real = (mode == Mode::Map).then(scratch).transpose()?;
        let modes_are_heeded = match &real {
            Some(root) => modes_are_heeded(root.path()).map_err(cannot("try a file's mode"))?,
            None => true,
        };
        let open = stored(&Shelf::of(&image.files)).open_read_only(HOME);
        let open = open.map_err(|e| format!("the whole image: {e}"))?;
        let mut stand = Self { image, real, modes_are_heeded, whole: Use::default(), _open: open };
        let blame = Blame::default();
        // The first run fills what is kept for good: pools, thread locals.
        for _ in 0..2 {
            stand.restore();
            let (done, whole) = heap::of(|| stand.run(None, &blame, &[false, true], true));
            let (outcome, _) = done.map_err(|e| format!("the whole image: {e}"))?;
            if outcome != Outcome::Unharmed {
                return Err("the whole image is blamed".to_owned());
            }
            stand.whole = whole;
        }
        stand.restore();
        Ok(stand)
    }

    pub fn mode(&self) -> Mode {
        if self.real.is_some() { Mode::Map } else { Mode::Read }
    }

    /// Whether a case can be had here.
    pub fn can(&self, case: &Case<'_>) -> bool {
        let Change::Place(special) = case.change else { return true };
        let links = [
            Special::Link,
            Special::DanglingLink,
            Special::LoopLink,
            Special::DeviceLink,
            Special::Fifo,
        ];
        match special {
            special if links.contains(&special) => self.real.is_some(),
            Special::Denied => self.modes_are_heeded,
            Special::Foreign | Special::Stale => case.replacement(self.image).is_some(),
            _ => true,
        }
    }

    /// How a case is opened, and whether it is worked with then. A flip is opened in one way, to read or to
    /// write by turns and the other way round in the other mode; each byte is worked with once.
    fn ways(&self, case: &Case<'_>) -> (&'static [bool], bool) {
        match case.change {
            Change::Flip(at, bit) => {
                let turn = at + usize::from(self.real.is_some());
                let write = (turn + usize::from(bit)) % 2 == 1;
                (if write { &[true] } else { &[false] }, (turn + 1) % 8 == usize::from(bit))
            }
            Change::Xor(at, _) => (&[false, true], at % 8 == 0),
            _ => (&[false, true], true),
        }
    }

    /// Does the damage, asks everything, and undoes it.
    pub fn check(&self, case: &Case<'_>) -> Result<Verdict, String> {
        let blame = case.blame(self.image);
        let (ways, go_on) = self.ways(case);
        let run = || no_panic(|| self.run(Some(case), &blame, ways, go_on));
        let (done, used) = heap::of(|| in_time(run, || self.restore()));
        let (outcome, wrote) = match done {
            Ok(done) => done,
            Err(e) => {
                self.restore();
                return Err(e);
            }
        };
        if let Some(root) = &self.real {
            match self.byte(case) {
                Some((at, _)) if !wrote => {
                    set_byte(&place(root.path(), case.path), at, self.image.files[case.path][at]);
                }
                _ => self.restore(),
            }
        }
        if let Some(expected) = case.expected(self.image)
            && expected != outcome
        {
            return Err(format!("should be {expected:?}, is {outcome:?}"));
        }
        let longer = if let Change::Extend(n) = case.change { n } else { 0 };
        let most = 2 * (self.image.bytes() + longer);
        let (peak, largest) = (self.whole.peak + most, self.whole.largest + most);
        if used.peak > peak || used.largest > largest {
            let whole = self.whole;
            return Err(format!("takes {used:?} of memory, the whole index {whole:?}"));
        }
        Ok(Verdict { outcome, used })
    }

    fn byte(&self, case: &Case<'_>) -> Option<(usize, u8)> {
        case.change.byte(self.image.files.get(case.path)?)
    }

    /// Opens the damaged index to read, then to write. Tells whether it was opened to write.
    fn run(
        &self,
        case: Option<&Case<'_>>,
        blame: &Blame,
        ways: &[bool],
        go_on: bool,
    ) -> Result<(Outcome, bool), String> {
        let mut last = (Outcome::Unharmed, false);
        for write in ways.iter().copied() {
            let outcome = match &self.real {
                Some(root) => {
                    // What is damaged for the reader stays so for the writer.
                    if let (Some(case), true) = (case, write == ways[0]) {
                        self.damage(root.path(), case);
                    }
                    let home = place(root.path(), Path::new(HOME));
                    inspect((&real_options(), &home), self.image, blame, (write, go_on))
                }
                None => {
                    let options = stored(&self.shelf(case));
                    inspect((&options, Path::new(HOME)), self.image, blame, (write, go_on))
                }
            };
            last = (outcome?, write);
            if last.0 == Outcome::Named {
                break;
            }
        }
        Ok(last)
    }

    fn shelf(&self, case: Option<&Case<'_>>) -> Shelf {
        let shelf = Shelf::of(&self.image.files);
        let Some(case) = case else { return shelf };
        if let Some(bytes) = case.replacement(self.image) {
            shelf.put(case.path, bytes);
        }
        match case.change {
            Change::Place(Special::Exchange(other)) => {
                let (path, _) = self.image.files.iter().nth(other).unwrap();
                shelf.put(path, self.image.files[case.path].clone());
            }
            Change::Place(Special::Delete) => shelf.take(case.path),
            Change::Place(Special::Directory) => shelf.set(case.path, Node::Dir),
            Change::Place(Special::FullDirectory) => {
                shelf.set(case.path, Node::Dir);
                shelf.put(&case.path.join("child"), Default::default());
            }
            Change::Place(Special::Denied) => shelf.set(case.path, Node::Denied),
            _ => {}
        }
        shelf
    }

    fn damage(&self, root: &Path, case: &Case<'_>) {
        let path = place(root, case.path);
        if let Some((at, value)) = self.byte(case) {
            return set_byte(&path, at, value);
        }
        if let Some(bytes) = case.replacement(self.image) {
            write(&path, &bytes);
        }
        if let Change::Place(special) = case.change {
            match special {
                Special::Exchange(other) => {
                    let (other, _) = self.image.files.iter().nth(other).unwrap();
                    write(&place(root, other), &self.image.files[case.path]);
                }
                Special::Foreign | Special::Stale | Special::Empty => {}
                Special::Denied => {
                    fs::set_permissions(&path, PermissionsExt::from_mode(0o000)).unwrap();
                }
                _ => put_special(&path, special),
            }
        }
    }

    /// Lays out the image as it is whole, whatever is there.
    pub fn restore(&self) {
        let Some(root) = &self.real else { return };
        let home = place(root.path(), Path::new(HOME));
        let mut found = Vec::new();
        collect(&home, &mut found);
        let known: Files =
            self.image.files.iter().map(|(p, b)| (place(root.path(), p), b.clone())).collect();
        for path in found {
            let plain = fs::symlink_metadata(&path).is_ok_and(|m| m.is_file());
            if !plain || !known.contains_key(&path) {
                remove(&path);
            }
        }
        for (path, bytes) in &known {
            if fs::read(path).is_ok_and(|found| found == **bytes) {
                continue;
            }
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            // A file without permissions cannot be written over.
            let _ = fs::remove_file(path);
            write(path, bytes);
        }
    }
}

/// Where a path of an image lies in a real directory.
fn place(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

fn set_byte(path: &Path, at: usize, value: u8) {
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(&[value], at as u64).unwrap();
}

/// Everything below a directory that is in the place of a file.
fn collect(dir: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.map(|e| e.unwrap().path()) {
        let folder = fs::symlink_metadata(&entry).unwrap().is_dir();
        match entry.extension() {
            None if folder && !entry.ends_with("LOCK") => collect(&entry, found),
            _ => found.push(entry),
        }
    }
}

fn remove(path: &Path) {
    fs::remove_file(path).or_else(|_| fs::remove_dir_all(path)).unwrap();
}

fn put_special(path: &Path, special: Special) {
    let elsewhere = path.with_extension("elsewhere");
    if special == Special::Link {
        fs::copy(path, &elsewhere).unwrap();
    }
    remove(path);
    match special {
        Special::Directory => fs::create_dir(path).unwrap(),
        Special::FullDirectory => {
            fs::create_dir(path).unwrap();
            write(&path.join("child"), b"x");
        }
        Special::Fifo => {
            assert!(Command::new("mkfifo").arg(path).status().unwrap().success(), "mkfifo");
        }
        Special::Link => symlink(&elsewhere, path).unwrap(),
        Special::DanglingLink => symlink("nothing", path).unwrap(),
        Special::LoopLink => symlink(path, path).unwrap(),
        Special::DeviceLink => symlink("/dev/zero", path).unwrap(),
        _ => {}
    }
}

fn modes_are_heeded(folder: &Path) -> std::io::Result<bool> {
    let file = tempfile::NamedTempFile::new_in(folder)?;
    fs::set_permissions(file.path(), PermissionsExt::from_mode(0o000))?;
    Ok(fs::File::open(file.path()).is_err())
}
