//! Where the frames of all cells lie, side by side: a search looks up a hundred cells, and would else
//! wait for as many lists in turn.

use super::lists::List;
use cellardb_format::FrameEntry;
use std::ops::Deref;
use std::sync::Arc;

/// Lists of a model, one after the other: mostly all of them.
#[derive(Debug)]
pub(crate) struct Directory {
    lists: Vec<Arc<List>>,
    /// Frames in the order of their cells, and where those of each cell begin.
    places: Vec<Place>,
    starts: Vec<u32>,
    first_cell: u32,
}

/// Where a frame lies.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    list: u32,
    /// Which frame of its list.
    frame: u32,
    /// Rows in it.
    pub(crate) rows: u32,
    pub(super) payload: u32,
    pub(super) offset: u64,
}

impl Place {
    /// The number of the frame in its list.
    pub(super) fn frame(&self) -> usize {
        self.frame as usize
    }
}

impl Directory {
    /// Lists whose cells follow each other.
    pub(crate) fn new(lists: Vec<Arc<List>>) -> Self {
        let frames = lists.iter().map(|list| list.entry().frames.len()).sum();
        let cells = lists.iter().map(|list| list.cells().len()).sum::<usize>();
        let (mut places, mut starts) = (Vec::with_capacity(frames), Vec::with_capacity(cells + 1));
        for (number, list) in (0..).zip(&lists) {
            let from = places.len();
            let place = |(frame, entry): (u32, &FrameEntry)| {
                let payload = u32::try_from(list.payload_len(entry)).unwrap_or(u32::MAX);
                let FrameEntry { cell, rows, offset, .. } = *entry;
                (cell, Place { list: number, frame, rows, payload, offset })
            };
            let mut of_list: Vec<(u32, Place)> =
                (0..).zip(&list.entry().frames).map(place).collect();
            of_list.sort_by_key(|(cell, _)| *cell);
            let mut before = from;
            for cell in list.cells() {
                starts.push(before as u32);
                before += of_list[before - from..].iter().take_while(|(c, _)| *c == cell).count();
            }
            places.extend(of_list.into_iter().map(|(_, place)| place));
        }
        starts.push(places.len() as u32);
        let first_cell = lists.first().map_or(0, |list| list.cells().start);
        Self { lists, places, starts, first_cell }
    }

    /// Where the frames of a cell lie.
    pub(crate) fn places(&self, cell: u32) -> &[Place] {
        let at = cell.wrapping_sub(self.first_cell) as usize;
        let Some([from, to]) = self.starts.get(at..).and_then(|rest| rest.first_chunk()) else {
            return &[];
        };
        self.places.get(*from as usize..*to as usize).unwrap_or_default()
    }

    /// The list that a frame is in.
    pub(crate) fn list_of(&self, place: &Place) -> &List {
        &self.lists[place.list as usize]
    }
}

impl Deref for Directory {
    type Target = [Arc<List>];

    fn deref(&self) -> &[Arc<List>] {
        &self.lists
    }
}
