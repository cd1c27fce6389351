//! A row segment with any bytes. Under checksums that fit it is read by the format, and as part of an
//! index, where a row that is returned is one in the file; under those that it had, answers are right
//! or errors name it.

use super::bytes::Bytes;
use super::image::{DIM, Files, Image, images, right_or_named, seal_file};
use crate::sim::SimDisk;
use crate::{HOME, stored};
use cellardb_format::{FileHeader, HEADER_LEN, RowLayout};
use std::path::PathBuf;

pub(super) fn run(data: &[u8]) {
    let mut input = Bytes(data);
    let image = &images()[input.below(images().len())];
    let flags = input.u8();
    let mut files = image.files.clone();
    let paths: Vec<PathBuf> =
        files.keys().filter(|p| p.extension().is_some_and(|e| e == "rows")).cloned().collect();
    let path = &paths[usize::from(flags >> 3) % paths.len()];
    let bytes = files.get_mut(path).unwrap();
    for _ in 0..=input.below(4) {
        if input.is_empty() {
            break;
        }
        row(&mut input, bytes);
    }
    if flags & 4 == 4 {
        return right_or_named(&files, &image.model, path, flags & 1 == 0);
    }
    seal_file(bytes);
    parsed(bytes);
    opened(&files, image, path, flags & 3);
}

/// Changes a field of a row, or anything.
fn row(input: &mut Bytes<'_>, bytes: &mut Vec<u8>) {
    let stride = RowLayout::new(DIM).stride();
    let rows = bytes.len().saturating_sub(HEADER_LEN) / stride;
    // The vector, then id, generation, the two cells, scale, and what is reserved.
    let fields = [(0, 4), (4, 4), (12, 4), (stride - 32, 8), (stride - 24, 4), (stride - 20, 4)];
    let more = [(stride - 16, 4), (stride - 12, 4), (stride - 8, 4), (16, 16)];
    let fields = [&fields[..], &more].concat();
    match input.below(fields.len() + 2) {
        field if field < fields.len() && rows > 0 => {
            let (at, len) = fields[field];
            let at = HEADER_LEN + input.below(rows) * stride + at;
            for (to, from) in bytes[at..at + len].iter_mut().zip(input.take(len)) {
                *to = *from;
            }
        }
        _ => input.change(bytes),
    }
}

fn parsed(bytes: &[u8]) {
    let Ok(header) = FileHeader::parse(bytes) else { return };
    assert_eq!(header.encode()[..], bytes[..HEADER_LEN]);
    let layout = RowLayout::new(DIM);
    for (i, row) in bytes[HEADER_LEN..].chunks(layout.stride()).enumerate() {
        if let Ok(found) = layout.parse(row, &header.uuid, header.number, i as u64) {
            assert_eq!(Ok(found), layout.trailer(row), "a row is read the same each time");
            assert_eq!(layout.vector(row).map(|v| v.len()), Ok(DIM));
        }
    }
}

/// Whatever the rows say, what an index returns stands in a file of rows, and errors name the file.
fn opened(files: &Files, image: &Image, path: &PathBuf, way: u8) {
    let write = way != 0;
    let disk = SimDisk::load(files);
    let named = |e: cellardb::Error| assert!(crate::blames(&e, path), "{}: {e}", path.display());
    let index = if write { stored(&disk).open(HOME) } else { stored(&disk).open_read_only(HOME) };
    let index = match index {
        Ok(index) => index,
        Err(e) => return named(e),
    };
    assert_eq!(index.ids(), image.model.ids(), "which rows there are stands in the catalog");
    for id in 0..image.model.next {
        match index.get(id) {
            Ok(Some(vector)) => {
                let bits: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
                let mut rows = files[path][HEADER_LEN..].chunks(RowLayout::new(DIM).stride());
                let stands = rows.any(|row| row.starts_with(&bits));
                assert!(stands || Some(&vector) == image.model.rows.get(&id));
            }
            Ok(None) => assert!(!image.model.rows.contains_key(&id)),
            Err(e) => named(e),
        }
    }
    let query = [1.0; DIM];
    for found in [index.search(&query, 9), index.query(&query).k(200).exact().run()] {
        match found {
            Ok(hits) => {
                assert!(hits.iter().all(|hit| image.model.rows.contains_key(&hit.0)));
                assert!(hits.windows(2).all(|pair| pair[0].0 != pair[1].0));
            }
            Err(e) => named(e),
        }
    }
    index.verify().map(drop).unwrap_or_else(named);
    match way {
        1 => drop(index.flush().and_then(|()| index.compact()).map_err(named)),
        2 => drop(index.train().map_err(named)),
        _ => {}
    }
}
