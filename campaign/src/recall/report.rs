//! docs/recall.md: what `campaign recall` and `campaign year` found.

use super::judge::{Reached, Verdict};
use crate::{SHAPES, metric_name};
use std::fmt::Write;
use std::path::Path;

/// Where the part of `campaign year` begins.
const YEAR: &str = "## A year in an hour\n";

const JUDGED: &str = "\
Distributions and lifetimes of an index, each with every kind and metric. Asked for a recall of 0.90, 0.95 or 0.99, it must reach
that less 0.01, as a mean over queries that are none of the rows and that the index never saw. The truth is brute force in f64
over the rows that are there; a row as near as the tenth counts as one of the ten, whichever it is (within what f32 rounds). With
that, of every case:

* an exact search finds what brute force finds;
* no recall takes more work than 1.1 exact searches: rows compared, and codes scanned by their part of the bytes of a row;
* less recall never costs more codes and rows, at 0.5, 0.8, 0.9, 0.93, 0.95, 0.97, 0.99 and 0.995;
* of some cases (one and fifty neighbours) 0.95 is reached with k = 1 and k = 50 too, give or take two standard errors.

Queries that come from elsewhere than the rows are judged after the index was told of, or was asked, 1,000 others like them.
";

/// Of several runs of one case, a row of the table.
fn row(verdicts: &[&Verdict]) -> String {
    let first = verdicts[0];
    let mut line = format!("| {} | {} | {} |", first.case, metric_name(first.metric), first.rows);
    for shape in &SHAPES[1..] {
        let verdict = verdicts.iter().find(|v| v.shape == shape.name);
        let _ = write!(line, " {} |", verdict.map_or_else(|| "-".to_owned(), |v| cell(v)));
    }
    let most = verdicts.iter().map(|v| v.work).fold(0.0, f64::max);
    let other: Vec<String> = verdicts
        .iter()
        .flat_map(|v| v.faults.iter().filter(|f| !f.short).map(|f| (v.shape, &f.what)))
        .map(|(shape, what)| format!("{shape}: {what}"))
        .collect();
    let _ = write!(line, " {most:.2} | {} |", other.join("; "));
    line
}

/// What counts: on queries like those that it was told of, where the case is about those.
fn cell(verdict: &Verdict) -> String {
    let reached = verdict.judged().iter().map(|r: &Reached| match r.holds() {
        true => format!("{:.3}", r.recall),
        false => format!("**{:.3}**", r.recall),
    });
    reached.collect::<Vec<_>>().join(" ")
}

/// The part of `campaign recall`.
pub fn recalls(verdicts: &[Verdict], broken: &[String], command: &str, summary: &str) -> String {
    let mut text =
        format!("# Recall\n\n{JUDGED}\nMade by `{command}`.\n\n```text\n{summary}\n```\n\n");
    text += "Recall that falls short is in bold; *work* is the most of a search in units of an exact one.\n\n";
    text +=
        "| case | metric | rows | flat | pq4 | pq8 | 1 bit | work | what else does not hold |\n";
    text += "|---|---|---|---|---|---|---|---|---|\n";
    let mut left: Vec<&Verdict> = verdicts.iter().collect();
    while let Some(first) = left.first().copied() {
        let same = |v: &&Verdict| v.case == first.case && v.metric == first.metric;
        let (of, rest) = left.into_iter().partition::<Vec<_>, _>(same);
        let _ = writeln!(text, "{}", row(&of));
        left = rest;
    }
    for what in broken {
        let _ = writeln!(text, "\nNot judged: {what}");
    }
    let mut about: Vec<(&str, &str)> =
        verdicts.iter().map(|v| (v.case.as_str(), v.about.as_str())).collect();
    about.dedup();
    text += "\nThe cases:\n\n";
    for (case, about) in about {
        let _ = writeln!(text, "* `{case}`: {about}");
    }
    text
}

/// The part of `campaign year`.
pub fn year(command: &str, summary: &str) -> String {
    format!("{YEAR}\nMade by `{command}`.\n\n```text\n{summary}\n```\n")
}

/// Writes one part and leaves the other as it is.
pub fn write(path: &Path, part: &str) -> Result<(), String> {
    let old = std::fs::read_to_string(path).unwrap_or_default();
    #[expect(clippy::disallowed_methods, reason = "asked for by --write")]
    std::fs::write(path, merged(&old, part)).map_err(|e| format!("{}: {e}", path.display()))
}

fn merged(old: &str, part: &str) -> String {
    let at = old.find(YEAR).unwrap_or(old.len());
    let (recalls, year) = match part.starts_with(YEAR) {
        true => (&old[..at], part),
        false => (part, &old[at..]),
    };
    let space = if recalls.is_empty() || year.is_empty() { "" } else { "\n" };
    format!("{}{space}{space}{year}", recalls.trim_end()).trim_end().to_owned() + "\n"
}

#[cfg(test)]
mod tests {
    use super::{merged, year};

    #[test]
    fn one_part_is_written_and_the_other_stays() {
        let new = merged("", "# Recall\n\nall\n");
        assert_eq!(new, "# Recall\n\nall\n");
        let both = merged(&new, &year("campaign year", "flat"));
        assert!(both.starts_with("# Recall\n\nall\n\n## A year in an hour\n"), "{both}");
        let again = merged(&both, "# Recall\n\nother\n");
        assert!(again.starts_with("# Recall\n\nother\n\n## A year"), "{again}");
        assert!(again.ends_with("flat\n```\n"), "{again}");
        assert_eq!(merged(&again, &year("campaign year", "flat")), again);
    }
}
