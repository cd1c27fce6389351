//! The only place that writes to standard output, and the notes and bars on standard error.

use crate::failure::Failure;
use indicatif::{ProgressBar, ProgressState, ProgressStyle};
use serde::Serialize;
use serde_json::json;
use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

/// Where results, notes and progress go.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Console {
    json: bool,
    quiet: bool,
}

impl Console {
    pub(crate) fn new(json: bool, quiet: bool) -> Self {
        Self { json, quiet }
    }

    /// Prints a result: as a line of JSON, or as `text` makes it.
    pub(crate) fn result<T: Serialize>(
        &self,
        value: &T,
        text: impl FnOnce(&T) -> String,
    ) -> Result<(), Failure> {
        let line = if self.json {
            serde_json::to_string(value).map_err(|e| Failure::File(e.to_string()))?
        } else {
            text(value)
        };
        self.line(&line)
    }

    /// Prints a line that is a part of a table; with `--json`, nothing.
    pub(crate) fn heading(&self, line: &str) -> Result<(), Failure> {
        if self.json { Ok(()) } else { self.line(line) }
    }

    fn line(&self, line: &str) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        writeln!(out, "{line}").and_then(|()| out.flush()).map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::ReaderGone,
            _ => Failure::File(format!("standard output: {error}")),
        })
    }

    /// Says something on standard error that is not a result.
    pub(crate) fn note(&self, text: &str) {
        if !self.quiet {
            complain(&format!("cellardb: {text}"));
        }
    }

    /// Says on standard error why the verb did not succeed.
    pub(crate) fn failure(&self, failure: &Failure) {
        if self.json {
            let (text, code) = (failure.to_string(), failure.exit_code());
            complain(&json!({ "error": text, "exit_code": code }).to_string());
        } else {
            complain(&format!("cellardb: {failure}"));
        }
    }

    /// A bar on standard error; hidden when that is not a terminal. What has no total yet turns.
    pub(crate) fn bar(&self, total: Option<u64>, what: &'static str) -> ProgressBar {
        if self.quiet || !io::stderr().is_terminal() {
            return ProgressBar::hidden();
        }
        let bar = ProgressBar::no_length();
        match total {
            Some(total) => bounded(&bar, what, total),
            None => unbounded(&bar, what),
        }
        // Even where no step is reported for long one sees that it goes on.
        bar.enable_steady_tick(Duration::from_millis(100));
        bar
    }
}

/// Begins a stage of so many steps.
pub(crate) fn bounded(bar: &ProgressBar, what: &'static str, total: u64) {
    begin(bar, what, "{msg:16} {wide_bar} {human_pos}/{human_len} {rate} {eta}");
    bar.set_length(total);
}

/// Begins a stage whose end is not known.
pub(crate) fn unbounded(bar: &ProgressBar, what: &'static str) {
    bar.unset_length();
    begin(bar, what, "{msg:16} {spinner} {count}{elapsed}");
}

/// Clock and rate are those of the stage.
fn begin(bar: &ProgressBar, what: &'static str, template: &str) {
    let rate = |state: &ProgressState, out: &mut dyn fmt::Write| {
        let _ = write!(out, "{}/s", grouped(state.per_sec() as u64));
    };
    let count = |state: &ProgressState, out: &mut dyn fmt::Write| {
        let _ = match state.pos() {
            0 => Ok(()),
            n => write!(out, "{} at {}/s, ", grouped(n), grouped(state.per_sec() as u64)),
        };
    };
    bar.reset();
    bar.set_message(what);
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.with_key("rate", rate).with_key("count", count));
    }
}

/// Writes a line to standard error. A closed standard error is no reason to fail.
pub(crate) fn complain(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// A path for people and for JSON: names that are not UTF-8 are shown as far as they are.
pub(crate) fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// Rows of `name value`, the names padded to one width.
pub(crate) fn pairs(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let lines: Vec<_> =
        rows.iter().map(|(name, value)| format!("{name:width$}  {value}")).collect();
    lines.join("\n")
}

/// `1234567` as `1,234,567`.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Bytes in the largest unit of which there is at least one.
pub(crate) fn bytes(number: u64) -> String {
    let units = [("GiB", 1_u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match units.iter().find(|(_, size)| number >= *size) {
        Some((unit, size)) => format!("{:.1} {unit}", number as f64 / *size as f64),
        None => format!("{number} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_by_thousands() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_000), "1,000");
        assert_eq!(grouped(u64::MAX), "18,446,744,073,709,551,615");
    }

    #[test]
    fn bytes_are_given_in_the_largest_unit() {
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(3 << 30), "3.0 GiB");
    }
}
