//! Everything that the catalog holds, the header of a file, a row, and `LOCK`; the first byte chooses.
//! What parses must be written the same again, where there is but one way to write it. Then the
//! bytes are sealed as a value of the catalog, and must be found under their own name alone.

use cellardb_format as format;

const DIM: usize = 4;
const UUID: [u8; 16] = [7; 16];

pub(super) fn run(data: &[u8]) {
    let Some((which, bytes)) = data.split_first() else { return };
    macro_rules! round_trip {
        ($type:ty $(, $more:expr)*) => {
            if let Ok(value) = <$type>::parse(bytes $(, $more)*) {
                assert_eq!(&value.encode()[..], bytes, "{value:?}");
            }
        };
    }
    match which % 10 {
        0 => round_trip!(format::Config),
        1 => round_trip!(format::State),
        2 => round_trip!(format::Segment),
        3 => list(bytes),
        4 => {
            round_trip!(format::ModelRecord);
            let _ = format::ModelRecord::parse(bytes).map(|model| model.codebook_len());
        }
        5 => round_trip!(format::RoutingRecord, DIM),
        6 => round_trip!(format::Settings),
        7 if bytes.len().is_multiple_of(2) => round_trip!(format::Tombstones),
        7 => round_trip!(format::AskedRecord, DIM),
        8 => row(bytes),
        _ => {
            let _ = (format::FileHeader::parse(bytes), format::LockRecord::parse(bytes));
            let _ = format::parse_floats(bytes, bytes.len() / 4).map(|f| f.len());
            let _ = format::unseal(&UUID, "meta", 1, bytes);
            headers(bytes);
        }
    }
    sealed(bytes, u64::from(*which));
}

fn list(bytes: &[u8]) {
    let Ok(list) = format::ListEntry::parse(bytes) else { return };
    assert_eq!(list.encode(), bytes);
    for kind in [format::CodeKind::Flat, format::CodeKind::Pq8] {
        let layout = format::BlockLayout::new(kind, 6, 12);
        if list.check(&layout).is_ok() {
            let len = |frame: &format::FrameEntry| frame.payload_len(&layout) as u64;
            let end = list.frames.last().map_or(0, |frame| frame.offset + len(frame));
            assert!(end <= list.length, "frames that were checked lie within their file");
        }
    }
}

fn row(bytes: &[u8]) {
    let layout = format::RowLayout::new(DIM);
    let _ = layout.parse(bytes, &UUID, 1, 2);
    let Ok(row) = layout.trailer(bytes) else { return };
    let vector = layout.vector(bytes).expect("a row has a vector");
    let mut again = vec![0; layout.stride()];
    layout.encode(&mut again, &vector, &row, &UUID, 1, 2);
    assert_eq!(layout.parse(&again, &UUID, 1, 2).map(|r| r.id), Ok(row.id));
    let trailer = layout.stride() - 32..layout.stride() - 4;
    assert_eq!(again[trailer.clone()], bytes[trailer]);
    assert!(layout.parse(&again, &UUID, 1, 3).is_err(), "a row is of one place");
}

/// The two records of 64 bytes, with the checksum that they need.
fn headers(bytes: &[u8]) {
    let mut bytes = bytes.to_vec();
    bytes.resize(60, 0);
    bytes.extend(format::crc(&[&bytes]).to_le_bytes());
    if let Ok(header) = format::FileHeader::parse(&bytes) {
        assert_eq!(header.encode(), bytes[..]);
        assert_eq!(header.check(&header), Ok(()));
        assert!(header.check(&format::FileHeader { dim: header.dim ^ 1, ..header }).is_err());
    }
    if let Ok(lock) = format::LockRecord::parse(&bytes) {
        assert_eq!(lock.encode(), bytes[..]);
    }
}

/// A seal holds for the value, the key, the table and the index that it was made for.
fn sealed(bytes: &[u8], key: u64) {
    let mut value = bytes.to_vec();
    format::seal(&UUID, "lists", key, &mut value);
    assert_eq!(format::unseal(&UUID, "lists", key, &value), Ok(bytes));
    assert!(format::unseal(&UUID, "lists", key ^ 1, &value).is_err(), "of another key");
    assert!(format::unseal(&UUID, "listt", key, &value).is_err(), "of another table");
    assert!(format::unseal(&[6; 16], "lists", key, &value).is_err(), "of another index");
    value[bytes.len() / 2] ^= 1 << (key % 8);
    assert!(format::unseal(&UUID, "lists", key, &value).is_err(), "of another value");
}
