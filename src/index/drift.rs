//! How unlike the rows since the last measuring are to those that recall was measured with.

use cellardb_format::{Settings, State};

/// So many rows tell something.
const LEAST: u64 = 64;
/// One in twenty rows is far from its cell when rows are as they were.
const USUAL: u64 = 20;
/// So many times the usual share are rows from elsewhere.
const UNLIKE: u64 = 3;

/// Counts of the rows since recall was measured.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Drift {
    /// The id of the first of them.
    since: u64,
    /// The squared distance to the centroid of its cell from which on a row is far.
    limit: f32,
    rows: u64,
    far: u64,
}

impl Drift {
    /// Nothing has come since these were measured.
    pub(crate) fn since(settings: &Settings) -> Drift {
        Drift { since: settings.next_id, limit: settings.far, rows: 0, far: 0 }
    }

    /// As it was stored.
    pub(crate) fn stored(settings: &Settings, state: &State) -> Drift {
        Drift { rows: state.since_measured, far: state.since_far, ..Drift::since(settings) }
    }

    /// As it is stored.
    pub(crate) fn store(&self, state: &mut State) {
        (state.since_measured, state.since_far) =
            (self.rows.min(state.next_id), self.far.min(self.rows));
    }

    /// Notes rows by their squared distances to the centroids of their cells.
    pub(crate) fn note(&mut self, first_id: u64, distances: &[f32]) {
        if first_id >= self.since {
            self.rows += distances.len() as u64;
            let far = distances.iter().filter(|distance| **distance > self.limit);
            self.far += far.count() as u64;
        }
    }

    /// Whether rows come from elsewhere than those that were measured with.
    pub(crate) fn unlike(&self) -> bool {
        self.limit > 0.0 && self.rows >= LEAST && self.far * USUAL > self.rows * UNLIKE
    }

    /// The id from which on every search compares rows in full, if it must: what was measured says nothing
    /// of them, as their codes are too coarse and their cells too large.
    pub(crate) fn apart(&self) -> Option<u64> {
        self.unlike().then_some(self.since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_from_elsewhere_are_told_from_rows_as_before() {
        let settings = Settings { next_id: 100, far: 2.0, ..Settings::default() };
        let mut drift = Drift::since(&settings);
        let as_before: Vec<f32> = (0..1000).map(|n| if n % 20 == 0 { 2.5 } else { 1.0 }).collect();
        drift.note(100, &as_before);
        assert_eq!(drift.apart(), None);
        drift.note(1100, &[9.0; 99]);
        assert_eq!(drift.apart(), None, "149 of 1,099");
        drift.note(1199, &[9.0; 60]);
        assert_eq!(drift.apart(), Some(100));
        drift.note(0, &[0.0; 9999]);
        assert!(drift.unlike(), "those from before do not count");
    }

    #[test]
    fn few_rows_tell_nothing_and_neither_do_rows_that_lie_on_their_centroids() {
        let mut drift = Drift::since(&Settings { far: 2.0, ..Settings::default() });
        drift.note(0, &[9.0; 63]);
        assert_eq!(drift.apart(), None);
        drift.note(63, &[9.0]);
        assert_eq!(drift.apart(), Some(0));
    }
}
