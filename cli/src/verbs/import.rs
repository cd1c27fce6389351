//! `import`: files of vectors, streamed into an index a commit at a time, and taken up again where a
//! kill or Ctrl-C ended it.

use super::resume::{Begin, Rows};
use super::{manual, parse_bytes};
use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::output::{Console, bounded, grouped, unbounded};
use crate::target;
use crate::vectors::{Input, VectorFile, is_stdin};
use cellardb::{Error, Index};
use clap::{Args, ValueEnum};
use indicatif::ProgressBar;
use serde_json::json;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

const BATCH: u64 = 8192;
const MEMORY: &str = "512M";

/// Add the vectors of files, then train and measure recall if that is due.
///
/// Files are .npy and .npz (f2, bfloat16, f4, f8, integers; either byte order; C or Fortran order; an array
/// of one dimension is one row), .fvecs, .bvecs, .ivecs, .fbin, .u8bin, .i8bin and .ibin. FILE.npz:NAME is one
/// array of several, and - is standard input. Every batch is one commit, durable before the next begins.
///
/// Nothing is added if the index already begins or ends with rows of these files: --resume adds those that
/// are missing, --append all of them again.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Import {
    /// Directory of the index.
    dir: PathBuf,
    /// Files of vectors, taken in this order; - for standard input.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    input: Input,
    /// Rows of a commit; fewer if they would take more than a quarter of --memory.
    #[arg(long, value_name = "N", default_value_t = BATCH,
          value_parser = clap::value_parser!(u64).range(1..))]
    batch: u64,
    /// Memory for reading, training and folding, in bytes; K, M and G are understood.
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes, default_value = MEMORY)]
    memory: usize,
    /// Go on where an import of these files ended: leave out the rows that the index ends with. Some of
    /// them are compared, removed ones count as inserted. The same as --skip auto.
    #[arg(long, conflicts_with_all = ["skip", "append"])]
    resume: bool,
    /// Add all rows, even those that the index has already: the same as --skip 0.
    #[arg(long, conflicts_with = "skip")]
    append: bool,
    /// Rows of the files to leave out, or "auto": see --resume.
    #[arg(long, value_name = "N|auto", value_parser = Skip::parse)]
    skip: Option<Skip>,
    /// Leave out rows that cannot be compared (NaN, infinity, length zero under cosine) and say how many
    /// there were.
    #[arg(long)]
    skip_invalid: bool,
    /// After each commit append a line to FILE: how many rows of the files are done with, durable or left
    /// out.
    #[arg(long, value_name = "FILE")]
    ack: Option<PathBuf>,
    /// Do not train at the end.
    #[arg(long)]
    no_train: bool,
}

const EXAMPLES: &str = "\
Examples:
  cellardb import words embeddings.npy
  cellardb import words part1.npz:vectors part2.npz:vectors
  zstd -dc embeddings.fvecs.zst | cellardb import words - --format fvecs
  cellardb import words embeddings.npy --resume";

#[derive(Debug, Clone, Copy)]
pub(super) enum Skip {
    Auto,
    Rows(u64),
}

impl Skip {
    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            rows => rows.parse().map(Self::Rows).map_err(|_| "a number or \"auto\"".to_owned()),
        }
    }
}

/// What became of the rows of the files.
#[derive(Debug, Clone, Copy, Default)]
struct Done {
    /// Those that were there before.
    skipped: u64,
    added: u64,
    invalid: u64,
    /// Of those that were there before, those that are not there any more.
    gone: u64,
}

impl Done {
    fn text(&self, seconds: f64, train_seconds: f64) -> String {
        let Self { skipped, added, invalid, gone } = *self;
        let mut text = if added > 0 {
            let rate = grouped((added as f64 / seconds.max(1e-9)) as u64);
            let rows = if added == 1 { "row" } else { "rows" };
            let training = match train_seconds > 0.0 {
                true => format!(", {train_seconds:.1} s of it training"),
                false => String::new(),
            };
            format!("{} {rows} in {seconds:.1} s{training}: {rate} rows/s", grouped(added))
        } else if skipped > 0 {
            format!("nothing to add: all {} rows were inserted before", grouped(skipped))
        } else {
            "nothing to add: there is no row in the files".to_owned()
        };
        if added == 0 && gone > 0 {
            text += &format!(
                "; {} of them are not there any more, removed or lost (--append adds all rows of the files \
                 again, under new ids)",
                grouped(gone)
            );
        }
        if added == 0 && train_seconds > 0.0 {
            text += &format!("; {train_seconds:.1} s of training");
        }
        if invalid > 0 {
            let invalid = grouped(invalid);
            text += &format!("; left out because they cannot be compared: {invalid}");
        }
        text
    }
}

impl Import {
    pub(crate) fn run(&self, console: &Console) -> Result<(), Failure> {
        let interrupt = Interrupt::install().map_err(Failure::io(&self.dir))?;
        if self.files.iter().filter(|file| is_stdin(file)).count() > 1 {
            return Err(Failure::Usage("standard input (-) can be read once only".into()));
        }
        let open = |file: &PathBuf| VectorFile::open(file, self.input, self.memory);
        let files: Vec<_> = self.files.iter().map(open).collect::<Result<_, _>>()?;
        if let Some(ack) = &self.ack {
            let inputs: Vec<_> = self.files.iter().map(PathBuf::as_path).collect();
            target::check(&self.dir, &inputs, &[ack])?;
        }
        let total = files.iter().try_fold(0_u64, |sum, file| sum.checked_add(file.rows()?));
        let bar = console.bar(None, "comparing rows");
        let index = manual(&bar).memory(self.memory).open(&self.dir)?;
        files.iter().try_for_each(|file| file.expect_dim(index.dim()))?;
        let all =
            Rows { dir: &self.dir, files: &files, index: &index, skip_invalid: self.skip_invalid };
        let skip = match (self.resume, self.append) {
            (true, _) => Some(Skip::Auto),
            (_, true) => Some(Skip::Rows(0)),
            _ => self.skip,
        };
        let begin = all.begin(skip, total)?;
        if let Some(note) = &begin.note {
            bar.suspend(|| console.note(note));
        }
        match total {
            Some(total) => bounded(&bar, "importing", total),
            None => unbounded(&bar, "importing"),
        }
        let ack = match &self.ack {
            Some(path) => {
                let file = File::options().create(true).append(true).open(path);
                Some(file.map_err(Failure::io(path))?)
            }
            None => None,
        };

        let start = Instant::now();
        let stream =
            Stream { import: self, index: &index, ack, bar: &bar, begin, total, interrupt };
        let (mut done, interrupted) = stream.run(&all)?;
        let mut train_seconds = 0.0;
        if interrupted.is_none() {
            unbounded(&bar, "finishing");
            let (seconds, note) = self.finish(&index)?;
            train_seconds = seconds;
            bar.finish_and_clear();
            note.iter().for_each(|note| console.note(note));
        }
        bar.finish_and_clear();
        let stats = index.stats();
        done.gone = stats.next_id.saturating_sub(stats.rows);
        index.close()?;

        let seconds = start.elapsed().as_secs_f64();
        let result = json!({
            "rows": done.added, "skipped": done.skipped, "invalid": done.invalid, "seconds": seconds,
            "train_seconds": train_seconds, "rows_per_second": done.added as f64 / seconds.max(1e-9),
            "interrupted": interrupted.is_some(), "gone": done.gone,
        });
        console.result(&result, |_| done.text(seconds, train_seconds))?;
        interrupted.map_or(Ok(()), |what| Err(Failure::Interrupted(what)))
    }

    /// Trains and measures if that is due, as an index does that is open for long, and folds. Returns the
    /// seconds of training, and what there is to say.
    fn finish(&self, index: &Index) -> Result<(f64, Option<String>), Failure> {
        let (start, before) = (Instant::now(), index.stats().generation);
        if self.no_train {
            index.flush()?;
            return Ok((0.0, None));
        }
        let note = match index.maintain() {
            // The rows are stored all the same.
            Err(Error::Invalid { name: "training", why }) => Some(format!("not trained: {why}")),
            other => other.map(|()| None)?,
        };
        let trained = index.stats().generation != before;
        let seconds = if trained { start.elapsed().as_secs_f64() } else { 0.0 };
        index.flush()?;
        Ok((seconds, note))
    }

    /// The command that adds the rows from `row` on. Standard input tells nothing of rows that were read
    /// before, and rows that were left out by number are not looked for.
    fn command(&self, row: u64) -> String {
        let stdin = self.files.iter().any(|file| is_stdin(file));
        let mut words: Vec<String> = vec!["cellardb".into(), "import".into()];
        let mut flag = |name: &str, value: Option<String>| {
            words.push(name.to_owned());
            words.extend(value);
        };
        match self.skip {
            Some(Skip::Rows(_)) => flag("--skip", Some(row.to_string())),
            _ if self.append || stdin => flag("--skip", Some(row.to_string())),
            _ => flag("--resume", None),
        }
        if self.batch != BATCH {
            flag("--batch", Some(self.batch.to_string()));
        }
        if parse_bytes(MEMORY) != Ok(self.memory) {
            flag("--memory", Some(self.memory.to_string()));
        }
        if let Some(format) = self.input.format.and_then(|format| format.to_possible_value()) {
            flag("--format", Some(format.get_name().to_owned()));
        }
        for (given, name) in [(self.skip_invalid, "--skip-invalid"), (self.no_train, "--no-train")]
        {
            if given {
                flag(name, None);
            }
        }
        if let Some(ack) = &self.ack {
            flag("--ack", Some(quoted(ack)));
        }
        words.push(quoted(&self.dir));
        words.extend(self.files.iter().map(|file| quoted(file)));
        words.join(" ")
    }
}

/// A path as a shell takes it.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_alphanumeric() || "/._-+:,=@%".contains(c);
    match !text.is_empty() && text.chars().all(plain) {
        true => text,
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

/// The insertion of the files' rows, one after the other.
struct Stream<'a> {
    import: &'a Import,
    index: &'a Index,
    ack: Option<File>,
    bar: &'a ProgressBar,
    begin: Begin,
    total: Option<u64>,
    interrupt: Interrupt,
}

impl Stream<'_> {
    /// Inserts what is missing. Returns what became of the rows and, if the user asked to stop before the
    /// last one, how to go on.
    fn run(mut self, all: &Rows<'_>) -> Result<(Done, Option<String>), Failure> {
        let mut done = Done { skipped: self.begin.skip, ..Done::default() };
        let row_bytes = 4 * self.index.dim() as u64;
        let bound = (self.import.memory as u64 / 4 / row_bytes).max(1);
        let batch = self.import.batch.min(bound);
        let mut at = self.begin.skip;
        self.bar.set_position(at);
        self.bar.reset_eta();
        loop {
            if self.interrupt.asked() && self.total.is_none_or(|total| at < total) {
                let of =
                    self.total.map(|total| format!(" of {}", grouped(total))).unwrap_or_default();
                let command = self.import.command(at);
                let words = format!("{}{of} rows are durable; to go on: {command}", grouped(at));
                return Ok((done, Some(words)));
            }
            let Some(piece) = all.read(at, batch)? else { break };
            let read = (piece.rows.len() / self.index.dim()) as u64;
            let (rows, invalid) = all.valid(piece.rows);
            if !rows.is_empty() {
                let inserted = self.index.insert_many(&rows);
                inserted.map_err(|error| self.explain(error, piece.file, piece.at, at))?;
            }
            done.invalid += invalid.len() as u64;
            done.added += read - invalid.len() as u64;
            at += read;
            self.bar.set_position(at);
            self.acknowledge(at)?;
        }
        self.interrupt.end_at_once(format!(
            "all {} rows are durable; what was left to do is done by: cellardb train {}",
            grouped(at),
            quoted(&self.import.dir)
        ));
        all.files.iter().try_for_each(VectorFile::expect_end)?;
        Ok((done, None))
    }

    fn acknowledge(&mut self, durable: u64) -> Result<(), Failure> {
        let (Some(out), Some(path)) = (&mut self.ack, &self.import.ack) else { return Ok(()) };
        // One unbuffered write, so that the line is there whole or not at all when we are killed.
        out.write_all(format!("{durable}\n").as_bytes()).map_err(Failure::io(path))
    }

    /// Says which row of which file was refused, how many are safe, and what to do.
    fn explain(&self, error: Error, file: &VectorFile, first: u64, durable: u64) -> Failure {
        match (file.blame(error, first), self.import.skip_invalid) {
            (Failure::File(what), false) => Failure::File(format!(
                "{what}; {} rows before its batch are durable; to leave out such rows and go on: {} \
                 --skip-invalid",
                grouped(durable),
                self.import.command(durable)
            )),
            (other, _) => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_quoted_where_a_shell_would_take_them_apart() {
        for (path, shown) in [
            ("a/b-1.npy", "a/b-1.npy"),
            ("my file", "'my file'"),
            ("it's", r"'it'\''s'"),
            ("", "''"),
        ] {
            assert_eq!(quoted(Path::new(path)), shown);
        }
    }
}
