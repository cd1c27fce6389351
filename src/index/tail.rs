//! Rows that are committed but in no list file yet, encoded per cell in the blocks of a list.

use super::model::{Copy, Model};
use cellardb_format::{BLOCK_ROWS, BlockLayout, Factors, NO_ID};
use rayon::prelude::*;
use std::sync::Arc;

/// Encoded rows by list and cell. Cloning shares the lists; a change copies only what it touches.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tail {
    lists: Vec<Arc<TailList>>,
    bytes: usize,
}

/// A tail that another was made from, and that other.
#[derive(Debug)]
pub(crate) struct Made {
    from: Tail,
    made: Tail,
}

#[derive(Debug, Clone, Default)]
struct TailList {
    /// In the order of the cells.
    cells: Vec<TailCell>,
    /// Bytes of their blocks.
    bytes: usize,
}

/// The rows of one cell.
#[derive(Debug, Clone)]
pub(crate) struct TailCell {
    pub(crate) cell: u32,
    pub(crate) rows: usize,
    pub(crate) blocks: Vec<u8>,
}

impl TailCell {
    pub(crate) fn new(cell: u32) -> Self {
        Self { cell, rows: 0, blocks: Vec::new() }
    }

    /// Adds a row in the next free lane.
    pub(crate) fn push(&mut self, layout: &BlockLayout, code: &[u8], factors: Factors, id: u64) {
        let lane = self.rows % BLOCK_ROWS;
        if lane == 0 {
            self.blocks.extend_from_slice(&layout.empty_block());
        }
        let start = self.blocks.len() - layout.block_bytes();
        layout.put(&mut self.blocks[start..], lane, code, factors, id);
        self.rows += 1;
    }

    /// Calls `f` with the code, factor and id of each row.
    pub(crate) fn each(
        &self,
        layout: &BlockLayout,
        code: &mut [u8],
        f: impl FnMut(&[u8], Factors, u64),
    ) {
        each_row(layout, &self.blocks, code, f);
    }

    /// [`TailCell::each`] of the rows from an id on; blocks without any are passed over.
    fn each_from(
        &self,
        layout: &BlockLayout,
        code: &mut [u8],
        from: u64,
        mut f: impl FnMut(&[u8], Factors, u64),
    ) {
        for block in self.blocks.chunks_exact(layout.block_bytes()) {
            let wanted = |lane| (from..NO_ID).contains(&layout.id(block, lane));
            if (0..BLOCK_ROWS).any(wanted) {
                each_row(layout, block, code, |code, factors, id| {
                    if id >= from {
                        f(code, factors, id);
                    }
                });
            }
        }
    }
}

/// Calls `f` with the code, factor and id of each row of some blocks.
pub(crate) fn each_row(
    layout: &BlockLayout,
    blocks: &[u8],
    code: &mut [u8],
    mut f: impl FnMut(&[u8], Factors, u64),
) {
    for block in blocks.chunks_exact(layout.block_bytes()) {
        for lane in 0..BLOCK_ROWS {
            let id = layout.id(block, lane);
            if id != NO_ID {
                layout.take(block, lane, code);
                f(code, layout.factors(block, lane), id);
            }
        }
    }
}

impl TailList {
    /// Adds a copy of a row; returns the bytes that it grew by.
    fn put(&mut self, layout: &BlockLayout, copy: Copy<'_>, id: u64) -> usize {
        let at = self.cells.partition_point(|c| c.cell < copy.cell);
        if self.cells.get(at).is_none_or(|c| c.cell != copy.cell) {
            self.cells.insert(at, TailCell::new(copy.cell));
        }
        let before = self.cells[at].blocks.len();
        self.cells[at].push(layout, copy.code, copy.factors, id);
        let grown = self.cells[at].blocks.len() - before;
        self.bytes += grown;
        grown
    }
}

impl Tail {
    pub(crate) fn new(lists: usize) -> Self {
        Self { lists: vec![Arc::default(); lists], bytes: 0 }
    }

    /// Bytes of the blocks.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds a copy of a row.
    pub(crate) fn push(&mut self, model: &Model, copy: Copy<'_>, id: u64) {
        let list = model.router.list_of(copy.cell);
        self.put(&model.layout, (list, copy.cell), (copy.code, copy.factors), id);
    }

    fn put(
        &mut self,
        layout: &BlockLayout,
        (list, cell): (u32, u32),
        (code, factors): (&[u8], Factors),
        id: u64,
    ) {
        if let Some(list) = self.lists.get_mut(list as usize) {
            self.bytes += Arc::make_mut(list).put(layout, Copy { cell, code, factors }, id);
        }
    }

    /// Adds the copies of many rows, in parallel by list; within a cell they keep their order.
    pub(crate) fn push_many(&mut self, model: &Model, copies: &[(u64, Copy<'_>)]) {
        let list_of = |at: u32| model.router.list_of(copies[at as usize].1.cell);
        let mut order: Vec<(u32, u32)> =
            (0..copies.len() as u32).map(|at| (list_of(at), at)).collect();
        order.sort_unstable();
        let parts: Vec<&[(u32, u32)]> = order.chunk_by(|a, b| a.0 == b.0).collect();
        let mut parts = parts.into_iter().peekable();
        let of_list = |(number, list)| {
            let part = parts.next_if(|part| part[0].0 == number)?;
            Some((list, part))
        };
        let jobs: Vec<_> = (0..).zip(&mut self.lists).filter_map(of_list).collect();
        let grown = jobs.into_par_iter().with_min_len(2).map(|(list, part)| {
            let list = Arc::make_mut(list);
            let copies = part.iter().map(|(_, at)| &copies[*at as usize]);
            copies.map(|(id, copy)| list.put(&model.layout, *copy, *id)).sum::<usize>()
        });
        self.bytes += grown.sum::<usize>();
    }

    /// The rows of a cell.
    pub(crate) fn cell(&self, list: u32, cell: u32) -> Option<&TailCell> {
        let cells = &self.lists.get(list as usize)?.cells;
        cells.binary_search_by_key(&cell, |c| c.cell).ok().and_then(|at| cells.get(at))
    }

    /// The cells of a list that have rows.
    pub(crate) fn cells(&self, list: usize) -> &[TailCell] {
        self.lists.get(list).map_or(&[], |l| &l.cells)
    }

    /// This tail, and behind it the rows of another from an id on. What `before` was made in the same way from
    /// lists that have not changed since is taken over: so the work is done ahead, and what is left of it
    /// while the writer is held is small.
    pub(crate) fn with(
        &self,
        other: &Self,
        (layout, code_len, from): (&BlockLayout, usize, u64),
        before: Option<Made>,
    ) -> Made {
        let mut made = self.clone();
        let mut buf = vec![0; code_len];
        for (list, theirs) in other.lists.iter().enumerate() {
            let done = before.as_ref().filter(|before| before.from.is_same(other, list));
            if let Some(done) = done.and_then(|done| done.made.lists.get(list)) {
                made.lists[list] = Arc::clone(done);
                continue;
            }
            for cell in &theirs.cells {
                cell.each_from(layout, &mut buf, from, |code, factors, id| {
                    made.put(layout, (list as u32, cell.cell), (code, factors), id);
                });
            }
        }
        made.bytes = made.lists.iter().map(|list| list.bytes).sum();
        Made { from: other.clone(), made }
    }

    /// Whether a list of another tail is the same as here.
    fn is_same(&self, other: &Self, list: usize) -> bool {
        match (self.lists.get(list), other.lists.get(list)) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }
}

impl Made {
    pub(crate) fn tail(self) -> Tail {
        self.made
    }

    /// How many lists of a tail are not what this was made from.
    pub(crate) fn changed(&self, tail: &Tail) -> usize {
        (0..tail.lists.len()).filter(|list| !self.from.is_same(tail, *list)).count()
    }
}

#[cfg(test)]
mod tests {
    use super::Tail;
    use cellardb_format::{BlockLayout, CodeKind, Factors};

    /// The rows of each cell of a tail, in their order.
    fn held(tail: &Tail, layout: &BlockLayout) -> Vec<(usize, u32, Vec<u64>)> {
        let mut code = vec![0; layout.code_len()];
        let mut all = Vec::new();
        for list in 0..tail.lists.len() {
            for cell in tail.cells(list) {
                let mut ids = Vec::new();
                cell.each(layout, &mut code, |_, _, id| ids.push(id));
                assert_eq!(ids.len(), cell.rows);
                all.push((list, cell.cell, ids));
            }
        }
        all
    }

    #[test]
    fn a_tail_made_ahead_is_the_same_when_rows_have_come_since() {
        let layout = BlockLayout::new(CodeKind::Pq4, 4, 8);
        let code = vec![0; layout.code_len()];
        let put = |tail: &mut Tail, id: u64| {
            let (list, cell) = ((id * 7 % 5) as u32, (id * 7 % 5 * 3 + id % 3) as u32);
            tail.put(&layout, (list, cell), (&code, Factors::default()), id);
        };
        let all = |ids: std::ops::Range<u64>| {
            let mut tail = Tail::new(5);
            ids.for_each(|id| put(&mut tail, id));
            tail
        };
        for (base, from, seen, now) in [(0, 0, 300, 300), (40, 40, 90, 91), (0, 150, 200, 260)] {
            let mut tail = all(base..seen);
            let how = (&layout, code.len(), from);
            let ahead = all(0..base).with(&tail, how, None);
            assert_eq!(ahead.changed(&tail), 0);
            (seen..now).for_each(|id| put(&mut tail, id));
            assert_eq!(ahead.changed(&tail), usize::min(5, (now - seen) as usize));
            let made = all(0..base).with(&tail, how, Some(ahead)).tail();
            let mut expected = all(0..base);
            (from.max(base)..now).for_each(|id| put(&mut expected, id));
            assert_eq!(held(&made, &layout), held(&expected, &layout));
            assert_eq!(made.bytes(), expected.bytes());
        }
    }
}
