//! Files that verbs write: never over an index or an input, and under their name only once whole.

use crate::failure::Failure;
use crate::vectors;
use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

/// Fails if an output is the same file as another output or an input, or lies within the index.
pub(crate) fn check(dir: &Path, inputs: &[&Path], outputs: &[&Path]) -> Result<(), Failure> {
    let index = place(dir);
    let inputs: Vec<PathBuf> = inputs
        .iter()
        .filter(|path| !vectors::is_stdin(path))
        .map(|path| place(vectors::place(path)))
        .collect();
    for (at, output) in outputs.iter().enumerate() {
        let found = place(output);
        if found.starts_with(&index) {
            return Err(refuse(output, "lies in the directory of the index"));
        }
        if inputs.contains(&found) {
            return Err(refuse(output, "is read and cannot be written as well"));
        }
        if outputs[..at].iter().any(|other| place(other) == found) {
            return Err(refuse(output, "is to be written twice"));
        }
    }
    Ok(())
}

fn refuse(path: &Path, why: &str) -> Failure {
    Failure::Usage(format!("{}: {why}; choose another place", path.display()))
}

/// Where a path leads, links followed, whether there is a file or not. Of links that lead nowhere one
/// is followed.
fn place(path: &Path) -> PathBuf {
    let to = fs::read_link(path).map_or_else(|_| path.to_owned(), |to| folder(path).join(to));
    fs::canonicalize(path).unwrap_or_else(|_| match (folder(&to).canonicalize(), to.file_name()) {
        (Ok(folder), Some(name)) => folder.join(name),
        _ => path.to_owned(),
    })
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."))
}

/// A file being written. Dropped before [`Target::finish`] it leaves what was there untouched.
#[derive(Debug)]
pub(crate) struct Target {
    path: PathBuf,
    file: Sink,
}

#[derive(Debug)]
enum Sink {
    /// Beside the file that it will replace.
    Fresh(NamedTempFile),
    /// What is no regular file, such as a pipe, cannot be replaced.
    Special(File),
}

impl Target {
    pub(crate) fn create(path: &Path) -> Result<Self, Failure> {
        if !folder(path).is_dir() {
            return Err(Failure::file(path, "there is no such directory to write into"));
        }
        let file = match fs::metadata(path) {
            Ok(found) if found.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
            Ok(found) if !found.is_file() => {
                File::options().write(true).open(path).map(Sink::Special)
            }
            _ => tempfile::Builder::new()
                .prefix(".cellardb-")
                .permissions(Permissions::from_mode(0o666))
                .tempfile_in(folder(&place(path)))
                .map(Sink::Fresh),
        };
        Ok(Self { path: path.to_owned(), file: file.map_err(Failure::io(path))? })
    }

    /// Brings everything to the disk and gives the file its name.
    pub(crate) fn finish(self) -> Result<(), Failure> {
        let done = match self.file {
            Sink::Special(_) => Ok(()),
            Sink::Fresh(file) => file
                .as_file()
                .sync_all()
                .and_then(|()| file.persist(place(&self.path)).map(drop).map_err(|e| e.error)),
        };
        done.map_err(Failure::io(&self.path))
    }
}

impl Write for Target {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.file {
            Sink::Fresh(file) => file.write(bytes),
            Sink::Special(file) => file.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
