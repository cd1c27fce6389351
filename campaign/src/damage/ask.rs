//! Asking a damaged index everything: each answer is right to the last bit, or an error that names
//! the damaged file.

use super::image::Image;
use super::{CATALOG, DIM};
use crate::blames;
use crate::data::{self, Rng};
use crate::model::Model;
use cellardb::{Error, Index, Options};
use std::io;
use std::path::{Path, PathBuf};

/// Everything that is asked of an index. Equal answers are equal to the last bit.
#[derive(Debug, PartialEq)]
pub struct Answers {
    pub ids: Vec<usize>,
    pub rows: Vec<Option<Vec<f32>>>,
    pub searches: Vec<Vec<(usize, f32)>>,
    pub exact: Vec<Vec<(usize, f32)>>,
}

/// How an index took its damage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Every answer right and nothing to complain of.
    Unharmed,
    /// Some error, or a finding of `verify`, that names the file.
    Named,
}

/// What an error may say.
#[derive(Debug, Clone, Default)]
pub struct Blame {
    /// The files that it may name.
    pub files: Vec<PathBuf>,
    /// Whether it may say that the system denied it.
    pub denied: bool,
}

impl Blame {
    pub fn of(file: &Path) -> Self {
        Self { files: vec![file.to_owned()], denied: false }
    }

    fn catalog(&self) -> bool {
        self.files.iter().any(|file| file == Path::new(CATALOG))
    }
}

/// An error says that there is damage, and names one of these files.
pub fn named(error: &Error, blame: &Blame) -> Result<Outcome, String> {
    let denied = |source: &io::Error| source.kind() == io::ErrorKind::PermissionDenied;
    match error {
        Error::Corrupt { .. } | Error::FormatTooNew { .. } => {}
        Error::Io { source, .. } if blame.denied && denied(source) => {}
        _ => return Err(format!("error that does not speak of damage: {error}")),
    }
    if blame.files.iter().any(|file| blames(error, file)) {
        Ok(Outcome::Named)
    } else {
        Err(format!("error that names another file or none: {error}"))
    }
}

/// Asks everything. An error that names the right file is noted, any other is a failure.
pub fn ask(index: &Index, model: &Model, blame: &Blame) -> Result<(Answers, Outcome), String> {
    let mut outcome = Outcome::Unharmed;
    let mut answers =
        Answers { ids: Vec::new(), rows: Vec::new(), searches: Vec::new(), exact: Vec::new() };
    let mut note = |e: Error| named(&e, blame).map(|o| outcome = o);
    answers.ids = index.ids();
    for id in 0..model.next + 1 {
        match index.get(id) {
            Ok(row) => answers.rows.push(row),
            Err(e) => {
                note(e)?;
                answers.rows.push(None);
            }
        }
    }
    let queries = data::vectors(&mut Rng::new(11), 3, DIM, model.metric);
    for query in queries.chunks(DIM) {
        match index.search(query, 5) {
            Ok(hits) => answers.searches.push(hits),
            Err(e) => {
                note(e)?;
                answers.searches.push(Vec::new());
            }
        }
    }
    match index.query_many(&queries).k(100).exact().run() {
        Ok(hits) => answers.exact = hits,
        Err(e) => {
            note(e)?;
            answers.exact = vec![Vec::new(); 3];
        }
    }
    match index.verify() {
        Ok(report) => {
            for damage in &report.damage {
                if !blame.files.iter().any(|f| damage.path.file_name() == f.file_name()) {
                    return Err(format!("verify blames another file: {damage:?}"));
                }
                outcome = Outcome::Named;
            }
        }
        Err(e) => note(e)?,
    }
    Ok((answers, outcome))
}

/// Whether everything that was answered equals the right answer. What ended in an error is empty.
pub fn same(found: &Answers, right: &Answers, model: &Model) -> Result<(), String> {
    if found.ids != right.ids {
        return Err(format!("silently other ids: {:?}", found.ids));
    }
    for (id, row) in found.rows.iter().enumerate() {
        if row.is_some() && *row != right.rows[id] {
            return Err(format!(
                "silently another row {id}: {row:?}, not {:?}",
                model.rows.get(&id)
            ));
        }
    }
    let searches = found.searches.iter().zip(&right.searches);
    for (hits, right) in searches.chain(found.exact.iter().zip(&right.exact)) {
        if !hits.is_empty() && hits != right {
            return Err(format!("silently other hits: {hits:?}, not {right:?}"));
        }
    }
    Ok(())
}

/// Opens damaged files, for writing if `write`, and asks everything. With `go_on` it is worked with
/// then, and opened again.
pub fn inspect(
    (options, home): (&Options, &Path),
    image: &Image,
    blame: &Blame,
    (write, go_on): (bool, bool),
) -> Result<Outcome, String> {
    let open = if write { options.open(home) } else { options.open_read_only(home) };
    let index = match open {
        Ok(index) => index,
        Err(Error::NotFound { .. }) if blame.catalog() => return Ok(Outcome::Named),
        Err(e) => return named(&e, blame),
    };
    let (found, outcome) = ask(&index, &image.model, blame)?;
    same(&found, &image.answers, &image.model)?;
    if outcome == Outcome::Unharmed && found != image.answers {
        return Err("an answer is missing without an error".to_owned());
    }
    if !write || !go_on || outcome == Outcome::Named {
        return Ok(outcome);
    }
    work(index, (options, home), &image.model, blame)
}

/// Inserts, removes and folds; all of it is there afterwards, or an error says why not.
fn work(
    index: Index,
    (options, home): (&Options, &Path),
    model: &Model,
    blame: &Blame,
) -> Result<Outcome, String> {
    let mut model = model.clone();
    let rows = data::vectors(&mut Rng::new(12), 3, DIM, model.metric);
    let written = index.insert_many(&rows).and_then(|ids| {
        if ids != model.insert(&rows) {
            return Ok(Err(format!("inserted rows got the ids {ids:?}")));
        }
        let gone = [ids.start, 30];
        model.remove(&gone);
        index.remove_many(&gone)?;
        index.flush()?;
        Ok(model.differs(&index, 2))
    });
    match written {
        Ok(right) => right.map_err(|e| format!("after more work: {e}"))?,
        Err(e) => return named(&e, blame),
    }
    index.close().or_else(|e| named(&e, blame).map(drop))?;
    let index = match options.open_read_only(home) {
        Ok(index) => index,
        Err(e) => return named(&e, blame),
    };
    model.differs(&index, 3).map_err(|e| format!("after more work, opened again: {e}"))?;
    let report = index.verify().map_err(|e| format!("after more work: {e}"))?;
    match report.damage.first() {
        Some(damage) => Err(format!("damaged by more work: {damage:?}")),
        None => Ok(Outcome::Unharmed),
    }
}
