//! How unlike the rows since the last measuring are to those that recall was measured with.

use cellardb_format::{Settings, State};

/// So many rows tell something.
const LEAST: u64 = 64;
/// One in twenty rows is far from its cell when rows are as they were.
const USUAL: u64 = 20;
/// So many times the usual share are rows from elsewhere.
const UNLIKE: u64 = 3;
/// Four times the share of rows beyond the middle that are such rows too: more of those that were few.
const MIXED: u64 = 3;

/// Counts of the rows since recall was measured.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Drift {
    /// The id of the first of them.
    since: u64,
    /// The squared distance to the centroid of its cell from which on a row is far, and that in the middle.
    limit: f32,
    middle: f32,
    rows: u64,
    far: u64,
    beyond: u64,
}

impl Drift {
    /// Nothing has come since these were measured.
    pub(crate) fn since(settings: &Settings) -> Drift {
        let (limit, middle) = (settings.far, settings.middle);
        Drift { since: settings.next_id, limit, middle, ..Drift::default() }
    }

    /// As it was stored.
    pub(crate) fn stored(settings: &Settings, state: &State) -> Drift {
        let (rows, beyond, far) = (state.since_measured, state.since_beyond, state.since_far);
        Drift { rows, beyond, far, ..Drift::since(settings) }
    }

    /// As it is stored.
    pub(crate) fn store(&self, state: &mut State) {
        state.since_measured = self.rows.min(state.next_id);
        state.since_beyond = self.beyond.min(state.since_measured);
        state.since_far = self.far.min(state.since_beyond);
    }

    /// Notes rows by their squared distances to the centroids of their cells.
    pub(crate) fn note(&mut self, first_id: u64, distances: &[f32]) {
        if first_id >= self.since {
            self.rows += distances.len() as u64;
            let over =
                |limit| distances.iter().filter(|distance| **distance > limit).count() as u64;
            self.far += over(self.limit);
            self.beyond += over(self.middle);
        }
    }

    /// Whether rows come from elsewhere than those that were measured with.
    pub(crate) fn unlike(&self) -> bool {
        let far = self.far * USUAL > self.rows * UNLIKE;
        let mixed = self.middle > 0.0 && self.beyond * 4 > self.rows * MIXED;
        self.limit > 0.0 && self.rows >= LEAST && (far || mixed)
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
    use crate::storage::EMPTY;

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
    fn more_of_rows_that_were_few_are_told_too() {
        let settings = Settings { far: 9.0, middle: 2.0, ..Settings::default() };
        let mut drift = Drift::since(&settings);
        drift.note(0, &[1.0; 100]);
        drift.note(100, &[5.0; 290]);
        assert_eq!(drift.apart(), None);
        drift.note(390, &[5.0; 20]);
        assert_eq!(drift.apart(), Some(0));
        let mut state = State { next_id: 410, ..EMPTY };
        drift.store(&mut state);
        assert!((state.since_measured, state.since_beyond, state.since_far) == (410, 310, 0));
        assert_eq!(Drift::stored(&settings, &state).apart(), Some(0));
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
