//! Files of vectors, and standard input, read by rows: `.npy` and `.npz`, `.fvecs` and its kin, `.fbin`
//! and its kin.

use crate::bytes::{Bytes, Stream};
use crate::failure::Failure;
use crate::layout::{Format, Layout};
use crate::npz::{self, Member};
use cellardb::Error;
use clap::Args;
use std::cell::{Cell, RefCell};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, IsTerminal};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The name of standard input.
const STDIN: &str = "-";
/// So much of an array that must be in memory as a whole, unless the caller says otherwise.
pub(crate) const MEMORY: usize = 512 << 20;
/// An error names no more arrays than this.
const NAMED: usize = 20;

/// How files are read.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Input {
    /// Format of the files, where their extension does not tell it; of - it is npy unless said here.
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub(crate) format: Option<Format>,
}

/// An open file of vectors.
#[derive(Debug)]
pub(crate) struct VectorFile {
    path: PathBuf,
    bytes: Bytes,
    layout: Layout,
    /// How many rows there were, where only the end tells it.
    ended: Cell<Option<u64>>,
}

impl VectorFile {
    /// Opens a file and checks that its length is the one that its header promises. Standard input is read
    /// as its rows are asked for.
    pub(crate) fn open(path: &Path, input: Input, memory: usize) -> Result<Self, Failure> {
        match is_stdin(path) {
            true => Self::stdin(input, memory, false),
            false => Self::file(path, input, memory),
        }
    }

    /// Opens a file whose rows are read in any order: standard input is kept in a file for that.
    pub(crate) fn open_whole(path: &Path, input: Input) -> Result<Self, Failure> {
        match is_stdin(path) {
            true => Self::stdin(input, MEMORY, true),
            false => Self::file(path, input, MEMORY),
        }
    }

    fn stdin(input: Input, memory: usize, whole: bool) -> Result<Self, Failure> {
        let path = Path::new("standard input");
        let refuse = |what: &str| Failure::Usage(format!("standard input: {what}"));
        let format = input.format.unwrap_or(Format::Npy);
        if format == Format::Npz {
            return Err(refuse("an archive is read from its end: give the .npz file by its name"));
        }
        if io::stdin().is_terminal() {
            return Err(refuse("it is a terminal; pipe a file of vectors into it"));
        }
        let bytes = match whole {
            true => {
                let mut file = tempfile::tempfile().map_err(Failure::io(path))?;
                let len =
                    io::copy(&mut io::stdin().lock(), &mut file).map_err(Failure::io(path))?;
                Bytes::File { file, base: 0, len }
            }
            false => Bytes::Stream(RefCell::new(Stream::once(io::stdin()))),
        };
        Self::of(path, format, bytes, memory).map_err(|failure| match (failure, input.format) {
            (Failure::File(what), None) => {
                Failure::File(format!("{what}; it is read as .npy unless --format says what it is"))
            }
            (failure, _) => failure,
        })
    }

    fn file(path: &Path, input: Input, memory: usize) -> Result<Self, Failure> {
        let (place, array) = split(path);
        let metadata = fs::metadata(place).map_err(Failure::io(path))?;
        // Asked before it is opened: a FIFO would keep us waiting for its other end.
        if !metadata.is_file() {
            let what = "not a regular file; what a pipe gives is read as -, with --format";
            return Err(Failure::file(path, what));
        }
        let file = File::open(place).map_err(Failure::io(path))?;
        let len = metadata.len();
        if len == 0 {
            return Err(Failure::file(path, "an empty file, without even a header"));
        }
        let format = input.format.map_or_else(|| Format::of(place), Ok);
        let format = format.map_err(|what| Failure::file(path, what))?;
        if format != Format::Npz {
            return Self::of(path, format, Bytes::File { file, base: 0, len }, memory);
        }
        let member = choose(&file, len, array).map_err(|what| Failure::file(path, what))?;
        let path = match array {
            Some(_) => path.to_owned(),
            None => named(path, &member.name),
        };
        let bytes = member.open(&file, len);
        let bytes = bytes.and_then(|bytes| member.check(&bytes).map(|()| bytes));
        let bytes = bytes.map_err(|what| Failure::file(&path, what))?;
        Self::of(&path, format, bytes, memory)
    }

    fn of(path: &Path, format: Format, bytes: Bytes, memory: usize) -> Result<Self, Failure> {
        let layout = Layout::of(format, &bytes).map_err(|what| Failure::file(path, what))?;
        let mut file = Self { path: path.to_owned(), bytes, layout, ended: Cell::new(None) };
        if let (true, Bytes::Stream(_), Some(rows)) =
            (file.layout.fortran, &file.bytes, file.layout.rows)
        {
            // Compared with the largest number of bytes when the layout was read.
            let need = file.layout.start + rows * file.layout.stride();
            if need > memory as u64 {
                let what = format!(
                    "in Fortran order, so that all {need} bytes of it must be in memory, which may hold \
                     {memory}; save it with numpy.ascontiguousarray(x), or as a .npy file"
                );
                return Err(Failure::file(path, what));
            }
            let mut whole = vec![0; need as usize];
            file.bytes.read_exact(0, &mut whole).map_err(Failure::io(path))?;
            file.bytes = Bytes::Memory(whole);
        }
        Ok(file)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// How many rows there are, where that is known before the end.
    pub(crate) fn rows(&self) -> Option<u64> {
        self.layout.rows.or(self.ended.get())
    }

    /// Whether its rows can be read once only, but for the first ones.
    pub(crate) fn is_once(&self) -> bool {
        matches!(&self.bytes, Bytes::Stream(stream) if stream.borrow().kept() < usize::MAX)
    }

    /// Rows at the beginning that can be read more than once.
    pub(crate) fn repeatable(&self) -> u64 {
        match &self.bytes {
            Bytes::Stream(stream) => {
                (stream.borrow().kept() as u64).saturating_sub(self.layout.start)
                    / self.layout.stride()
            }
            _ => u64::MAX,
        }
    }

    pub(crate) fn dim(&self) -> usize {
        self.layout.dim as usize
    }

    /// Fails unless the rows have `dim` values.
    pub(crate) fn expect_dim(&self, dim: usize) -> Result<(), Failure> {
        let found = self.dim();
        if found == dim {
            return Ok(());
        }
        Err(Failure::file(
            &self.path,
            format!("vectors of {found} dimensions, the index has {dim}; is it the right index?"),
        ))
    }

    /// Says of a vector that was refused which row it is, `first` being that of the first one.
    pub(crate) fn blame(&self, error: Error, first: u64) -> Failure {
        match error {
            Error::Vector { position, why } => {
                Failure::file(&self.path, format!("row {} {why}", first + position as u64))
            }
            other => other.into(),
        }
    }

    /// Rows `first..first + count` as f32, row-major; fewer if the rows were not counted and end before.
    pub(crate) fn floats(&self, first: u64, count: usize) -> Result<Vec<f32>, Failure> {
        Ok(self.layout.values.floats(self.values(first, count)?))
    }

    /// Rows `first..first + count` as integers, row-major; a file of floats is refused.
    pub(crate) fn integers(&self, first: u64, count: usize) -> Result<Vec<i64>, Failure> {
        let ids = self.layout.values.integers(self.values(first, count)?);
        ids.ok_or_else(|| Failure::file(&self.path, "row ids are needed, which are integers"))
    }

    /// Fails if there is more than the rows of the header. A file has been compared with its length.
    pub(crate) fn expect_end(&self) -> Result<(), Failure> {
        let (true, Some(rows)) = (self.is_once(), self.layout.rows) else { return Ok(()) };
        let end = self.layout.start + rows * self.layout.stride();
        match self.bytes.read(end, &mut [0]).map_err(Failure::io(&self.path))? {
            0 => Ok(()),
            _ => {
                let what = format!(
                    "goes on behind the {rows} rows that its header tells of, and what follows was not \
                     read; several files are given by their names"
                );
                Err(Failure::file(&self.path, what))
            }
        }
    }

    /// The bytes of the values of some rows, without the prefixes.
    fn values(&self, first: u64, count: usize) -> Result<Vec<u8>, Failure> {
        let Layout { start, prefix, rows, .. } = self.layout;
        let end = first.saturating_add(count as u64);
        if let Some(rows) = rows.filter(|rows| end > *rows) {
            let what = format!("{rows} rows, {end} are needed");
            return Err(Failure::file(&self.path, what));
        }
        if self.layout.fortran {
            return self.columns(first, count);
        }
        // Within the length of the file where there is one, and else of what can be read.
        let stride = self.layout.stride();
        let at = first.checked_mul(stride).and_then(|at| at.checked_add(start));
        let at = at.ok_or_else(|| Failure::file(&self.path, "no file is so long"))?;
        let mut bytes = vec![0; count * stride as usize];
        let read = self.bytes.read(at, &mut bytes).map_err(|e| {
            Failure::file(&self.path, format!("rows {first} to {}: {e}", end.saturating_sub(1)))
        })?;
        if read < bytes.len() && (rows.is_some() || !read.is_multiple_of(stride as usize)) {
            let row = first + read as u64 / stride;
            let of = rows.map(|rows| format!(" of {rows}")).unwrap_or_default();
            return Err(Failure::file(
                &self.path,
                format!("ends in row {row}{of}: was it cut short?"),
            ));
        }
        if rows.is_none() && read < bytes.len() {
            self.ended.set(Some(first + read as u64 / stride));
        }
        bytes.truncate(read);
        if prefix == 0 { Ok(bytes) } else { self.without_prefixes(first, &bytes) }
    }

    fn without_prefixes(&self, first: u64, bytes: &[u8]) -> Result<Vec<u8>, Failure> {
        let Layout { prefix, dim, .. } = self.layout;
        let stride = self.layout.stride();
        let mut values = Vec::with_capacity(bytes.len());
        for (row, bytes) in (first..).zip(bytes.chunks_exact(stride as usize)) {
            let (found, row_values) = bytes.split_at(prefix as usize);
            if found != (dim as u32).to_le_bytes() {
                let what = format!(
                    "row {row} (byte {}) does not have {dim} dimensions as the first row does",
                    row * stride
                );
                return Err(Failure::file(&self.path, what));
            }
            values.extend_from_slice(row_values);
        }
        Ok(values)
    }

    /// Rows of an array that is stored by columns: a piece of each column.
    fn columns(&self, first: u64, count: usize) -> Result<Vec<u8>, Failure> {
        let Layout { values, start, rows, dim, .. } = self.layout;
        let (size, dim) = (values.element.bytes() as usize, dim as usize);
        let mut column = vec![0; count * size];
        let mut out = vec![0; count * dim * size];
        for at in 0..dim {
            let place = start + (at as u64 * rows.unwrap_or(0) + first) * size as u64;
            self.bytes.read_exact(place, &mut column).map_err(Failure::io(&self.path))?;
            let places = out.chunks_exact_mut(size).skip(at).step_by(dim);
            places.zip(column.chunks_exact(size)).for_each(|(to, from)| to.copy_from_slice(from));
        }
        Ok(out)
    }
}

/// Whether a name on the command line stands for standard input.
pub(crate) fn is_stdin(path: &Path) -> bool {
    path == Path::new(STDIN)
}

/// `FILE.npz:NAME` as its two parts, unless there is a file of just this name.
fn split(path: &Path) -> (&Path, Option<&OsStr>) {
    let name = path.as_os_str().as_bytes();
    let at = name.windows(5).position(|part| part.eq_ignore_ascii_case(b".npz:"));
    match at {
        Some(at) if !path.exists() => {
            let (file, array) = name.split_at(at + 4);
            (Path::new(OsStr::from_bytes(file)), Some(OsStr::from_bytes(&array[1..])))
        }
        _ => (path, None),
    }
}

/// The place of the file that a name on the command line leads to.
pub(crate) fn place(path: &Path) -> &Path {
    split(path).0
}

fn named(path: &Path, array: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(":");
    name.push(array);
    name.into()
}

/// The array of this name, or the only one, or the only one that is a table of floats.
fn choose(file: &File, len: u64, wanted: Option<&OsStr>) -> Result<Member, String> {
    let mut members = npz::members(file, len)?;
    let at = match wanted {
        Some(name) => members.iter().position(|member| OsStr::new(&member.name) == name),
        None if members.len() == 1 => Some(0),
        None => {
            let tables = (0..members.len()).filter(|at| is_table(file, len, &members[*at]));
            let tables: Vec<usize> = tables.take(2).collect();
            if let [only] = tables[..] { Some(only) } else { None }
        }
    };
    if let Some(at) = at {
        return Ok(members.swap_remove(at));
    }
    let names: Vec<&str> = members.iter().take(NAMED).map(|member| &*member.name).collect();
    let more = if members.len() > NAMED { " and more" } else { "" };
    Err(match (wanted, names.is_empty()) {
        (_, true) => "there is no array in it".to_owned(),
        (Some(name), _) => {
            format!("no array {name:?} in it; there are {}{more}", names.join(", "))
        }
        (None, _) => format!(
            "several arrays: {}{more}; say which one, such as FILE.npz:{}",
            names.join(", "),
            names[0]
        ),
    })
}

/// Whether an array has two dimensions and holds floats.
fn is_table(file: &File, len: u64, member: &Member) -> bool {
    let layout = member.open(file, len).and_then(|bytes| Layout::of(Format::Npz, &bytes));
    layout.is_ok_and(|layout| layout.values.element.is_float() && layout.rows != Some(1))
}
