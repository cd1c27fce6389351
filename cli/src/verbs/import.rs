//! `import`: files of vectors, streamed into an index a commit at a time, and taken up again where a
//! kill or Ctrl-C ended it.

use super::{Reading, manual, parse_bytes};
use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::output::{Console, grouped};
use crate::target;
use crate::vectors::VectorFile;
use cellardb::{Error, Index, Kind, Stats};
use clap::Args;
use indicatif::ProgressBar;
use serde_json::json;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

/// Rows compared between the index and the files before an import is resumed.
const SAMPLES: u64 = 64;

/// Add the vectors of files, then train if that is due.
///
/// Files are .npy (2-D, C order; f4, f8, u1, i1, i4, i8), .fvecs, .bvecs, .ivecs, .fbin, .u8bin,
/// .i8bin and .ibin. Every batch is one commit, durable before the next begins.
#[derive(Debug, Args)]
pub(crate) struct Import {
    /// Directory of the index.
    dir: PathBuf,
    /// Files of vectors, taken in this order.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Rows of a commit; fewer if they would take more than a quarter of --memory.
    #[arg(long, value_name = "N", default_value_t = 8192,
          value_parser = clap::value_parser!(u64).range(1..))]
    batch: u64,
    /// Memory for reading, training and folding, in bytes; K, M and G are understood.
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes, default_value = "512M")]
    memory: usize,
    /// Go on after the rows that are there already: the same as --skip auto.
    #[arg(long, conflicts_with = "skip")]
    resume: bool,
    /// Rows of the files to leave out, or "auto": as many as were ever inserted (live and removed
    /// rows, by the next id). auto wants an index that was filled from these files in this order, and compares
    /// some rows to see that it was.
    #[arg(long, value_name = "N|auto", value_parser = Skip::parse)]
    skip: Option<Skip>,
    /// After each commit append a line to FILE: how many rows of the files are durable, those that
    /// were left out included.
    #[arg(long, value_name = "FILE")]
    ack: Option<PathBuf>,
    /// Do not train at the end.
    #[arg(long)]
    no_train: bool,
    #[command(flatten)]
    reading: Reading,
}

#[derive(Debug, Clone, Copy)]
enum Skip {
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

/// What is said when there was nothing to add.
fn nothing(rows: u64, gone: u64, train_seconds: f64) -> String {
    let trained = match train_seconds > 0.0 {
        true => format!("; {train_seconds:.1} s of training"),
        false => String::new(),
    };
    let gone = match gone {
        0 => String::new(),
        n => format!(
            "; {} of them are not there any more, removed or lost (--skip 0 adds all rows of the files \
             again, under new ids)",
            grouped(n)
        ),
    };
    format!("nothing to add: all {} rows were inserted before{gone}{trained}", grouped(rows))
}

impl Import {
    pub(crate) fn run(&self, console: &Console) -> Result<(), Failure> {
        let interrupt = Interrupt::install().map_err(Failure::io(&self.dir))?;
        let files: Vec<_> =
            self.files.iter().map(|f| VectorFile::open(f)).collect::<Result<_, _>>()?;
        if let Some(ack) = &self.ack {
            let inputs: Vec<_> = files.iter().map(VectorFile::path).collect();
            target::check(&self.dir, &inputs, &[ack])?;
        }
        let total = files.iter().map(VectorFile::rows).sum();
        let bar = console.bar(total, "importing");
        let index = self.reading.apply(manual(&bar)).memory(self.memory).open(&self.dir)?;
        files.iter().try_for_each(|file| file.expect_dim(index.dim()))?;
        let skipped = self.rows_to_skip(&index, &files, total, console)?;
        let ack = match &self.ack {
            Some(path) => {
                let file = File::options().create(true).append(true).open(path);
                Some(file.map_err(Failure::io(path))?)
            }
            None => None,
        };

        let start = Instant::now();
        bar.set_position(skipped);
        let mut stream = Stream { import: self, index: &index, ack, durable: skipped, bar: &bar };
        for (file, first) in files.iter().zip(first_rows(&files)) {
            stream.file(file, first, &interrupt)?;
        }
        let durable = stream.durable;
        let resume = format!(
            "{} of {} rows are durable; to go on: cellardb import --resume {} {}",
            grouped(durable),
            grouped(total),
            self.dir.display(),
            self.files.iter().map(|f| f.display().to_string()).collect::<Vec<_>>().join(" ")
        );
        let interrupted = interrupt.asked() && durable < total;
        let mut train_seconds = 0.0;
        if !interrupted {
            interrupt.end_at_once(format!(
                "all {} rows are durable; what was left to do is done by: cellardb train {}",
                grouped(total),
                self.dir.display()
            ));
            train_seconds = self.finish(&index, console)?;
        }
        bar.finish_and_clear();
        let stats = index.stats();
        let gone = stats.next_id.saturating_sub(stats.rows);
        index.close()?;

        let (rows, seconds) = (durable - skipped, start.elapsed().as_secs_f64());
        let rate = rows as f64 / seconds.max(1e-9);
        let done = json!({
            "rows": rows, "skipped": skipped, "seconds": seconds, "train_seconds": train_seconds,
            "rows_per_second": rate, "interrupted": interrupted, "gone": gone,
        });
        console.result(&done, |_| {
            if rows == 0 {
                return nothing(durable, gone, train_seconds);
            }
            let (rows, rate) = (grouped(rows), grouped(rate as u64));
            format!(
                "{rows} rows in {seconds:.1} s, {train_seconds:.1} s of it training: {rate} rows/s"
            )
        })?;
        if interrupted { Err(Failure::Interrupted(resume)) } else { Ok(()) }
    }

    fn rows_to_skip(
        &self,
        index: &Index,
        files: &[VectorFile],
        total: u64,
        console: &Console,
    ) -> Result<u64, Failure> {
        let present = index.stats().next_id;
        let skip = if self.resume { Some(Skip::Auto) } else { self.skip };
        match skip {
            Some(Skip::Auto) => {
                self.check_same(index, files, present, total)?;
                Ok(present)
            }
            Some(Skip::Rows(rows)) if rows > total => {
                Err(Failure::Usage(format!("--skip {rows}: the files have {total} rows")))
            }
            Some(Skip::Rows(rows)) => Ok(rows),
            None => {
                let rows = index.stats().rows;
                if rows > 0 {
                    console.note(&format!(
                        "the index has {} rows, these are added; --resume continues an import",
                        grouped(rows)
                    ));
                }
                Ok(0)
            }
        }
    }

    /// Fails unless the rows of the index are the first rows of the files, as far as a sample tells.
    fn check_same(
        &self,
        index: &Index,
        files: &[VectorFile],
        present: u64,
        total: u64,
    ) -> Result<(), Failure> {
        if present > total {
            let what = format!(
                "{present} rows were inserted, but the files have {total}; \
                 these are not the files of the import to be resumed"
            );
            return Err(Failure::file(&self.dir, what));
        }
        let samples = present.min(SAMPLES);
        for sample in 0..samples {
            // Evenly spread, the first and the last row among them.
            let spread = u128::from(sample) * u128::from(present.saturating_sub(1));
            let row = (spread / u128::from((samples - 1).max(1))) as u64;
            let Some(stored) = index.get(row as usize)? else { continue };
            let found = files.iter().zip(first_rows(files)).find_map(|(file, first)| {
                let row = row.checked_sub(first).filter(|row| *row < file.rows())?;
                Some((file, row, file.floats(row, 1)))
            });
            let Some((file, at, given)) = found else { continue };
            if !given?.iter().map(|x| x.to_bits()).eq(stored.iter().map(|x| x.to_bits())) {
                let what = format!(
                    "row {at} is not row {row} of the index: the file has changed, or the index was \
                     filled otherwise; --skip N says how many rows to leave out"
                );
                return Err(Failure::file(file.path(), what));
            }
        }
        Ok(())
    }

    /// Trains if that is due, else folds; returns the seconds of training.
    fn finish(&self, index: &Index, console: &Console) -> Result<f64, Failure> {
        let start = Instant::now();
        if self.no_train || !training_is_due(&index.stats()) {
            index.flush()?;
            return Ok(0.0);
        }
        match index.train() {
            // The rows are stored all the same.
            Err(Error::Invalid { name: "training", why }) => {
                console.note(&format!("not trained: {why}"))
            }
            other => other?,
        }
        Ok(start.elapsed().as_secs_f64())
    }
}

/// For each file, the rows of the files before it.
fn first_rows(files: &[VectorFile]) -> impl Iterator<Item = u64> {
    files.iter().scan(0, |sum, file| {
        let first = *sum;
        *sum += file.rows();
        Some(first)
    })
}

/// Whether there is no model and enough rows for one, or twice the rows that the model was made of.
fn training_is_due(stats: &Stats) -> bool {
    let inverted = stats.kind != Kind::Exact && stats.rows >= stats.train_at;
    inverted && (stats.trained_rows == 0 || stats.rows / 2 >= stats.trained_rows)
}

/// The insertion of the files' rows, one after the other.
struct Stream<'a> {
    import: &'a Import,
    index: &'a Index,
    ack: Option<File>,
    /// Rows of the files that are durable, those left out included.
    durable: u64,
    bar: &'a ProgressBar,
}

impl Stream<'_> {
    /// Inserts what is missing of a file whose first row is row `first` of all, until interrupted.
    fn file(
        &mut self,
        file: &VectorFile,
        first: u64,
        interrupt: &Interrupt,
    ) -> Result<(), Failure> {
        let row_bytes = 4 * file.dim() as u64;
        let bound = (self.import.memory as u64 / 4 / row_bytes).max(1);
        let batch = self.import.batch.min(bound);
        let end = first + file.rows();
        while self.durable < end && !interrupt.asked() {
            let at = self.durable - first;
            let count = batch.min(file.rows() - at);
            let rows = file.floats(at, count as usize)?;
            self.index.insert_many(&rows).map_err(|error| self.explain(error, file, at))?;
            self.durable += count;
            self.bar.set_position(self.durable);
            self.acknowledge()?;
        }
        Ok(())
    }

    fn acknowledge(&mut self) -> Result<(), Failure> {
        let (Some(out), Some(path)) = (&mut self.ack, &self.import.ack) else { return Ok(()) };
        // One unbuffered write, so that the line is there whole or not at all when we are killed.
        out.write_all(format!("{}\n", self.durable).as_bytes()).map_err(Failure::io(path))
    }

    /// Says which row of which file was refused, and how many are safe.
    fn explain(&self, error: Error, file: &VectorFile, at: u64) -> Failure {
        match file.blame(error, at) {
            Failure::File(what) => {
                let durable = grouped(self.durable);
                Failure::File(format!("{what}; {durable} rows before its batch are durable"))
            }
            other => other,
        }
    }
}
