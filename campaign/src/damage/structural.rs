//! Damage to the structure of a directory: lengths, sectors, and files that are not what they were.

use super::case::{Case, Change, SPECIALS, Special};
use super::image::Image;
use crate::data::Rng;
use std::path::Path;

/// How much of it: all, or a sample of each sort.
#[derive(Debug, Clone, Copy)]
pub struct Density {
    /// Every so-many-th length.
    pub lengths: usize,
    /// At most so many pairs of sectors of each size and file; all pairs where there are no more.
    pub pairs: usize,
    pub seed: u64,
}

/// Every case for an image, one after the other.
pub fn cases<'a>(image: &'a Image, density: Density, each: &mut dyn FnMut(Case<'a>)) {
    for (path, bytes) in &image.files {
        let mut case = |change| each(Case { path, change });
        // The lengths next to what counts, and to the end, are never left out.
        let live = image.contents.committed.get(path).copied().unwrap_or(0);
        let near = [live.wrapping_sub(1), live, live + 1, bytes.len() - 1];
        for len in 0..bytes.len() {
            if len % density.lengths == 0 || near.contains(&len) {
                case(Change::Truncate(len));
            }
        }
        for n in [1, 63, 64, 512, 4096, 100_000] {
            case(Change::Extend(n));
        }
        for size in [512, 4096] {
            for at in (0..bytes.len()).step_by(size) {
                case(Change::Zero(at, size));
            }
            sectors(size, bytes.len(), path, density, &mut case);
        }
    }
    places(image, each);
}

/// Pairs of sectors that change places.
fn sectors(size: usize, len: usize, path: &Path, density: Density, case: &mut dyn FnMut(Change)) {
    let n = len.div_ceil(size);
    let pairs = n * n.saturating_sub(1) / 2;
    if pairs <= density.pairs {
        for a in 0..n {
            for b in a + 1..n {
                case(Change::Sectors(size, a, b));
            }
        }
        return;
    }
    let name = path.as_os_str().len() as u64;
    let mut rng = Rng::new(density.seed ^ (name << 32 | size as u64));
    for _ in 0..density.pairs {
        let (a, b) = (rng.below(n), rng.below(n - 1));
        let b = if b >= a { b + 1 } else { b };
        case(Change::Sectors(size, a.min(b), a.max(b)));
    }
}

/// Files that are another, or no file at all.
fn places<'a>(image: &'a Image, each: &mut dyn FnMut(Case<'a>)) {
    for (i, path) in image.files.keys().enumerate() {
        for other in i + 1..image.files.len() {
            each(Case { path, change: Change::Place(Special::Exchange(other)) });
        }
        for (special, _) in SPECIALS {
            each(Case { path, change: Change::Place(special) });
        }
    }
    // Files that were there some commits earlier and are not any more.
    for path in image.stale.keys().filter(|path| !image.files.contains_key(*path)) {
        each(Case { path, change: Change::Place(Special::Stale) });
    }
}

/// Every bit of every byte, or of every `every`-th from `first` on; then each byte with the values.
pub fn bytes<'a>(
    image: &'a Image,
    (first, every): (usize, usize),
    patterns: &[u8],
    each: &mut dyn FnMut(Case<'a>),
) {
    for (path, bytes) in &image.files {
        for at in (first..bytes.len()).step_by(every) {
            for bit in 0..8 {
                each(Case { path, change: Change::Flip(at, bit) });
            }
            for value in patterns {
                if bytes[at] != *value {
                    each(Case { path, change: Change::Set(at, *value) });
                }
            }
        }
    }
}
