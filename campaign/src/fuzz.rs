//! What the fuzz targets call, and the replay of their corpora. Checksums are mended after the
//! bytes were changed where the first byte asks for it, so that what lies behind them is reached.

use crate::data;
use crate::sim::SimDisk;
use crate::{HOME, SHAPES, stored};
use cellardb::{Error, Index, Metric};
use cellardb_format as format;
use cellardb_format::{BlockLayout, CodeKind, HEADER_LEN, ListIdentity, crc};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

const IDENTITY: ListIdentity = ListIdentity { uuid: [7; 16], list: 3, generation: 1, revision: 2 };
const DIM: usize = 4;

/// A frame of one of the three codes, and what lies behind its header.
pub fn frame(data: &[u8]) {
    let Some((flags, bytes)) = data.split_first() else { return };
    let kind = [CodeKind::Flat, CodeKind::Pq4, CodeKind::Pq8][usize::from(flags >> 1) % 3];
    let layout = BlockLayout::new(kind, 6, 12);
    let offset = u64::from(flags >> 4) * 64;
    let mut bytes = bytes.to_vec();
    if flags & 1 == 1 {
        seal_frame(&mut bytes, offset);
    }
    let Ok(frame) = format::parse_frame(&IDENTITY, offset, &bytes, &layout) else { return };
    let len = frame.payload_len as usize;
    assert_eq!(len / layout.block_bytes(), (frame.rows as usize).div_ceil(16));
    if format::verify_payload(&bytes, &frame).is_ok() {
        let start = format::payload_offset(len);
        let payload = &bytes[start..start + len];
        let mut again = Vec::new();
        let (cell, rows, seq) = (frame.cell, frame.rows, frame.seq);
        format::encode_frame(&IDENTITY, offset, cell, rows, seq, payload, &mut again);
        assert_eq!(again, bytes[..again.len()], "what was read is written the same");
        for block in payload.chunks_exact(layout.block_bytes()) {
            let mut code = [0; 64];
            for lane in 0..16 {
                let _ = (layout.id(block, lane), layout.factors(block, lane));
                let len = if kind == CodeKind::Flat { 48 } else { 6 };
                layout.take(block, lane, &mut code[..len]);
            }
        }
    }
}

/// Gives a frame the checksums of its bytes.
fn seal_frame(bytes: &mut [u8], offset: u64) {
    let Some(len) = bytes.get(12..16).map(|b| u32::from_le_bytes(b.try_into().unwrap())) else {
        return;
    };
    let (table, start) = ((len as usize).div_ceil(8192) * 4, format::payload_offset(len as usize));
    if bytes.len() < start.saturating_add(len as usize) {
        return;
    }
    let payload = &bytes[start..start + len as usize];
    let sums: Vec<u8> = payload.chunks(8192).flat_map(|c| crc(&[c]).to_le_bytes()).collect();
    bytes[32..32 + table].copy_from_slice(&sums);
    let words = [IDENTITY.list, IDENTITY.generation, IDENTITY.revision].map(u32::to_le_bytes);
    let place = [words.as_flattened(), &offset.to_le_bytes()].concat();
    let sum = crc(&[&IDENTITY.uuid, &place, &bytes[..28], &bytes[32..32 + table]]);
    bytes[28..32].copy_from_slice(&sum.to_le_bytes());
}

/// Everything that the catalog holds, the header of a file, a row, and `LOCK`; the first byte
/// chooses. What parses must be written the same again, where there is but one way to write it.
pub fn record(data: &[u8]) {
    let Some((which, bytes)) = data.split_first() else { return };
    macro_rules! round_trip {
        ($type:ty $(, $more:expr)*) => {
            if let Ok(value) = <$type>::parse(bytes $(, $more)*) {
                assert_eq!(&value.encode()[..], bytes);
            }
        };
    }
    match which % 10 {
        0 => round_trip!(format::Config),
        1 => round_trip!(format::State),
        2 => drop(format::Segment::parse(bytes)),
        3 => round_trip!(format::ListEntry),
        4 => round_trip!(format::ModelRecord),
        5 => round_trip!(format::RoutingRecord, DIM),
        6 => round_trip!(format::Settings),
        7 => drop(format::Tombstones::parse(bytes)),
        8 => {
            let row = format::RowLayout::new(DIM);
            let _ = row.parse(bytes, &[7; 16], 1, 2);
            let _ = (row.trailer(bytes), row.vector(bytes).map(|v| v.len()));
        }
        _ => {
            let _ = (format::FileHeader::parse(bytes), format::LockRecord::parse(bytes));
            let _ = format::parse_floats(bytes, bytes.len() / 4).map(|f| f.len());
            let _ = format::unseal(&[7; 16], "meta", 1, bytes);
        }
    }
}

/// The files of an index, and how many rows it has.
type Image = (BTreeMap<PathBuf, Vec<u8>>, usize);

/// A small index of each kind, made once.
fn images() -> &'static [Image] {
    static IMAGES: OnceLock<Vec<Image>> = OnceLock::new();
    IMAGES.get_or_init(|| {
        let build = |shape: crate::Shape| {
            let disk = SimDisk::new();
            let options = shape.options(DIM, Metric::L2).disk(Arc::new(disk.clone()));
            let index = options.create(HOME).unwrap();
            let rows = data::vectors(&mut data::Rng::new(1), 80, DIM, Metric::L2);
            index.insert_many(&rows[..70 * DIM]).unwrap();
            index.train().unwrap();
            index.insert_many(&rows[70 * DIM..]).unwrap();
            index.close().unwrap();
            (disk.dump(), 80)
        };
        SHAPES.into_iter().map(build).collect()
    })
}

/// A directory: the first byte chooses the kind and whether checksums are mended, then come patches
/// of `file u8, offset u32, length u8, bytes`; length 0 truncates. Opens, asks everything, inserts.
pub fn directory(data: &[u8]) {
    let Some((flags, mut patches)) = data.split_first() else { return };
    let (files, rows) = &images()[usize::from(flags & 7) % SHAPES.len()];
    let mut files = files.clone();
    while let Some((head, rest)) = patches.split_first_chunk::<6>() {
        let file = usize::from(head[0]) % files.len();
        let bytes = files.values_mut().nth(file).unwrap();
        let at = u32::from_le_bytes(head[1..5].try_into().unwrap()) as usize % (bytes.len() + 1);
        let len = usize::from(head[5]).min(rest.len());
        if len == 0 {
            bytes.truncate(at);
        } else {
            let end = (at + len).min(bytes.len());
            bytes[at..end].copy_from_slice(&rest[..end - at]);
        }
        patches = &rest[len..];
    }
    if flags & 4 == 4 {
        files.values_mut().for_each(|bytes| seal_file(bytes));
    }
    let Ok(index) = stored(&SimDisk::load(&files)).open(HOME) else { return };
    if let Err(e) = ask(&index, *rows) {
        let file = files.keys().any(|path| crate::blames(&e, path));
        assert!(file || !matches!(e, Error::Corrupt { .. }), "names no file: {e}");
    }
    let _ = index.close();
}

fn ask(index: &Index, rows: usize) -> Result<(), Error> {
    let query = vec![1.0; index.dim()];
    index.search(&query, 5)?;
    index.query(&query).k(100).exact().run()?;
    for id in 0..rows + 1 {
        index.get(id)?;
    }
    index.verify()?;
    index.insert(&query)?;
    index.flush()?;
    index.remove(1)?;
    index.compact().map(drop)
}

/// Gives the header of a file, and the rows behind it, the checksums of their bytes.
fn seal_file(bytes: &mut [u8]) {
    if bytes.len() < HEADER_LEN || bytes[..8] != *b"\x89CELLAR\n" {
        return;
    }
    let sum = crc(&[&bytes[..60]]);
    bytes[60..64].copy_from_slice(&sum.to_le_bytes());
    if bytes[12..16] != [1, 0, 0, 0] {
        return;
    }
    let (header, rows) = bytes.split_at_mut(HEADER_LEN);
    let stride = format::RowLayout::new(DIM).stride();
    for (i, row) in rows.chunks_exact_mut(stride).enumerate() {
        let (covered, sum) = row.split_at_mut(stride - 4);
        let i = (i as u64).to_le_bytes();
        sum.copy_from_slice(&crc(&[&header[16..32], &header[32..40], &i, covered]).to_le_bytes());
    }
}
