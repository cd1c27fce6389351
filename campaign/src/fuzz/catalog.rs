//! `catalog.redb` raw: any bytes of a real one replaced, opened for writing and for reading. Every
//! answer is right, or an error names the catalog.

use super::bytes::Bytes;
use super::image::{images, right_or_named};
use std::path::Path;

pub(super) fn run(data: &[u8]) {
    let mut input = Bytes(data);
    let image = &images()[input.below(images().len())];
    let write = input.below(2) == 0;
    let mut files = image.files.clone();
    let path = Path::new(crate::HOME).join("catalog.redb");
    let bytes = files.get_mut(&path).unwrap();
    for _ in 0..=input.below(6) {
        if input.is_empty() {
            break;
        }
        match input.below(4) {
            // The header, or the beginning of a page, where most of what redb believes stands.
            0 => patch(bytes, 0, &mut input),
            1 => {
                let page = input.below(bytes.len() / 4096 + 1) * 4096;
                patch(bytes, page, &mut input);
            }
            // A page in the place of another.
            2 => {
                let pages = bytes.len() / 4096;
                let (from, to) = (input.below(pages) * 4096, input.below(pages) * 4096);
                if pages > 0 {
                    bytes.copy_within(from..from + 4096, to);
                }
            }
            _ => input.change(bytes),
        }
    }
    right_or_named(&files, &image.model, &path, write);
}

fn patch(bytes: &mut [u8], base: usize, input: &mut Bytes<'_>) {
    let at = base + input.below(320);
    let len = input.below(16) + 1;
    for (to, from) in bytes.iter_mut().skip(at).zip(input.take(len)) {
        *to = *from;
    }
}
