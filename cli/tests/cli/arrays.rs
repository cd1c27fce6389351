//! Arrays as NumPy writes them: every element type, both orders of bytes and of rows, archives; and what
//! comes from standard input.

use super::*;
use flate2::write::DeflateEncoder;
use flate2::{Compression, Crc};

/// A `.npy` file with this shape as Python spells it.
pub(super) fn array(descr: &str, fortran: bool, shape: &str, data: &[u8]) -> Vec<u8> {
    let fortran = if fortran { "True" } else { "False" };
    let dict = format!("{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}\n");
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((dict.len() as u16).to_le_bytes());
    bytes.extend(dict.as_bytes());
    bytes.extend(data);
    bytes
}

/// An archive of members, as numpy.savez (stored) and numpy.savez_compressed write it: sizes of 64 bits
/// in the local headers; in the directory too if `wide`, as beyond 4 GiB.
pub(super) fn archive(members: &[(&str, &[u8])], deflate: bool, wide: bool) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for (name, bytes) in members {
        let name = format!("{name}.npy");
        let mut crc = Crc::new();
        crc.update(bytes);
        let packed = if deflate {
            let mut encoder = DeflateEncoder::new(Vec::new(), Compression::fast());
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap()
        } else {
            bytes.to_vec()
        };
        let (size, length) = (bytes.len() as u64, packed.len() as u64);
        let method = if deflate { 8_u16 } else { 0 };
        let header = out.len() as u64;
        let common = |out: &mut Vec<u8>, wide: bool| {
            out.extend([45, 0, 0, 0]);
            out.extend(method.to_le_bytes());
            out.extend([0, 0, 0x21, 0]);
            out.extend(crc.sum().to_le_bytes());
            for number in [length, size] {
                out.extend(if wide { u32::MAX } else { number as u32 }.to_le_bytes());
            }
            out.extend((name.len() as u16).to_le_bytes());
        };
        out.extend(b"PK\x03\x04");
        common(&mut out, true);
        out.extend(20_u16.to_le_bytes());
        out.extend(name.as_bytes());
        out.extend([1, 0, 16, 0]);
        out.extend([size, length].map(u64::to_le_bytes).concat());
        out.extend(packed);

        directory.extend(b"PK\x01\x02\x2D\x03");
        common(&mut directory, wide);
        directory.extend(if wide { 28_u16 } else { 0 }.to_le_bytes());
        directory.extend([0; 10]);
        directory.extend(if wide { u32::MAX } else { header as u32 }.to_le_bytes());
        directory.extend(name.as_bytes());
        if wide {
            directory.extend([1, 0, 24, 0]);
            directory.extend([size, length, header].map(u64::to_le_bytes).concat());
        }
    }
    let (start, size, count) = (out.len() as u64, directory.len() as u64, members.len() as u64);
    out.extend(directory);
    if wide {
        let at = out.len() as u64;
        out.extend(b"PK\x06\x06");
        out.extend(44_u64.to_le_bytes());
        out.extend([45, 0, 45, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        out.extend([count, count, size, start].map(u64::to_le_bytes).concat());
        out.extend(b"PK\x06\x07\0\0\0\0");
        out.extend(at.to_le_bytes());
        out.extend(1_u32.to_le_bytes());
    }
    out.extend(b"PK\x05\x06\0\0\0\0");
    let number = |n: u64, most: u64| if wide { most } else { n };
    out.extend([number(count, 0xFFFF) as u16; 2].map(u16::to_le_bytes).concat());
    out.extend((number(size, 0xFFFF_FFFF) as u32).to_le_bytes());
    out.extend((number(start, 0xFFFF_FFFF) as u32).to_le_bytes());
    out.extend([0, 0]);
    out
}

/// By columns.
fn turned<const N: usize>(rows: &[[i8; DIM]], convert: impl Fn(i8) -> [u8; N]) -> Vec<u8> {
    (0..DIM).flat_map(|at| rows.iter().map(move |row| row[at])).flat_map(convert).collect()
}

/// Small whole numbers as a half: exact, and not made by the code that is tested.
fn half(x: i8) -> [u8; 2] {
    let bits = match x {
        0 => 0,
        _ => {
            let exponent = x.unsigned_abs().ilog2();
            let fraction = (u32::from(x.unsigned_abs()) << (10 - exponent)) & 0x3FF;
            (u32::from(x < 0) << 15) | ((exponent + 15) << 10) | fraction
        }
    };
    (bits as u16).to_le_bytes()
}

/// What an import of this file stores, as the bytes of f32.
fn stored(room: &Room, arguments: &[&str]) -> Vec<u8> {
    let _ = fs::remove_dir_all(room.path("index"));
    room.ok(&["create", "index", "--dim", "4", "--kind", "exact"]);
    room.ok(&[&["import", "index"], arguments, &["--batch", "7"]].concat());
    room.ok(&["export", "index", "out.npy"]);
    npy_data(&room.path("out.npy"))
}

#[test]
fn every_element_type_in_either_order_of_bytes_and_of_rows_is_read() {
    let room = Room::new();
    let rows = rows(0..50);
    type Spelling = (&'static str, fn(&[[i8; DIM]], bool) -> Vec<u8>);
    fn spell<const N: usize>(rows: &[[i8; DIM]], by_column: bool, f: fn(i8) -> [u8; N]) -> Vec<u8> {
        if by_column { turned(rows, f) } else { values(rows, f) }
    }
    let spellings: Vec<Spelling> = vec![
        ("<f2", |rows, turn| spell(rows, turn, half)),
        (">f2", |rows, turn| spell(rows, turn, |x| [half(x)[1], half(x)[0]])),
        ("<V2", |rows, turn| {
            spell(rows, turn, |x| ((f32::from(x).to_bits() >> 16) as u16).to_le_bytes())
        }),
        ("|V2", |rows, turn| {
            spell(rows, turn, |x| ((f32::from(x).to_bits() >> 16) as u16).to_le_bytes())
        }),
        ("<f4", |rows, turn| spell(rows, turn, |x| f32::from(x).to_le_bytes())),
        (">f4", |rows, turn| spell(rows, turn, |x| f32::from(x).to_be_bytes())),
        (">f8", |rows, turn| spell(rows, turn, |x| f64::from(x).to_be_bytes())),
        ("|i1", |rows, turn| spell(rows, turn, i8::to_le_bytes)),
        ("|u1", |rows, turn| spell(rows, turn, |x| [x as u8])),
        ("<i2", |rows, turn| spell(rows, turn, |x| i16::from(x).to_le_bytes())),
        (">u2", |rows, turn| spell(rows, turn, |x| (x as u16).to_be_bytes())),
        (">i4", |rows, turn| spell(rows, turn, |x| i32::from(x).to_be_bytes())),
        ("<u4", |rows, turn| spell(rows, turn, |x| (x as u32).to_le_bytes())),
        (">i8", |rows, turn| spell(rows, turn, |x| i64::from(x).to_be_bytes())),
        ("<u8", |rows, turn| spell(rows, turn, |x| (x as u64).to_le_bytes())),
    ];
    for (descr, data) in spellings {
        for fortran in [false, true] {
            let bytes = array(descr, fortran, "(50, 4)", &data(&rows, fortran));
            room.write("a.npy", &bytes);
            assert!(stored(&room, &["a.npy"]) == f32s(&rows), "{descr}, Fortran order: {fortran}");
        }
    }
}

#[test]
fn archives_are_read_stored_and_compressed_whole_or_by_the_name_of_an_array() {
    let room = Room::new();
    let (rows, other) = (rows(0..300), rows(300..310));
    let base = f32_npy(&rows);
    let turned = array(">f4", true, "(300, 4)", &turned(&rows, |x| f32::from(x).to_be_bytes()));
    let (query, ids) = (f32_npy(&other), array("<i8", false, "(2,)", &[0; 16]));
    for (deflate, wide) in [(false, false), (true, false), (false, true), (true, true)] {
        let case = format!("deflate: {deflate}, wide: {wide}");
        room.write("one.npz", &archive(&[("arr_0", &base)], deflate, wide));
        assert!(stored(&room, &["one.npz"]) == f32s(&rows), "{case}");
        room.write("turned.npz", &archive(&[("arr_0", &turned)], deflate, wide));
        assert!(stored(&room, &["turned.npz"]) == f32s(&rows), "{case}");
        room.write("table.npz", &archive(&[("ids", &ids), ("base", &base)], deflate, wide));
        assert!(stored(&room, &["table.npz"]) == f32s(&rows), "{case}");
        let several = [("base", &base[..]), ("query", &query), ("ids", &ids)];
        room.write("several.npz", &archive(&several, deflate, wide));
        let two = stored(&room, &["several.npz:base", "several.npz:query"]);
        assert!(two == [f32s(&rows), f32s(&other)].concat(), "{case}");
        // A file of just this name comes before an array of that one.
        room.write("several.npz:rows.npy", &query);
        assert_eq!(room.lines(&["search", "index", "several.npz:rows.npy"]).len(), 10);
        let message = room.fails(1, &["search", "index", "several.npz"]);
        assert!(
            message.contains("base, query, ids") && message.contains("several.npz:"),
            "{message}"
        );
        let message = room.fails(1, &["search", "index", "several.npz:bose"]);
        assert!(message.contains("bose") && message.contains("base, query, ids"), "{message}");
        let found = room.lines(&["search", "index", "several.npz:query", "-k", "1"]);
        assert!(found.iter().zip(300..).all(|(line, id)| line["ids"][0] == id), "{case}");
    }
}

#[test]
fn an_archive_that_is_cut_or_bent_is_refused_or_gives_the_rows_that_it_had() {
    let room = Room::with_index("exact");
    let base = f32_npy(&rows(0..300));
    room.write("base.npy", &base);
    room.ok(&["import", "index", "base.npy"]);
    for (deflate, wide) in [(false, false), (true, false), (true, true)] {
        let whole = archive(&[("base", &base)], deflate, wide);
        let mut read = 0;
        for end in (0..whole.len()).step_by(211).chain([whole.len() - 1]) {
            room.write("cut.npz", &whole[..end]);
            let message = room.fails(1, &["search", "index", "cut.npz"]);
            assert!(message.contains("cut.npz"), "{end}: {message}");
        }
        // Every byte of the headers and of the directory, one at a time, and some of the array.
        let directory = whole.len() - if wide { 200 } else { 90 };
        for at in (0..64).chain((64..directory).step_by(401)).chain(directory..whole.len()) {
            let mut bytes = whole.clone();
            bytes[at] ^= 0xFF;
            room.write("bent.npz", &bytes);
            let output = room.run(&["search", "index", "bent.npz", "--out", "ids.npy", "-k", "1"]);
            let message = text(&output.stderr);
            match output.status.code() {
                // A byte without a meaning here, such as that of the time.
                Some(0) => {
                    let ids: Vec<u8> = (0..300_i64).flat_map(i64::to_le_bytes).collect();
                    assert!(npy_data(&room.path("ids.npy")) == ids, "byte {at}");
                    read += 1;
                }
                code => assert!(code == Some(1) && message.contains("bent.npz"), "{at}: {message}"),
            }
        }
        assert!(read > 10, "only {read} bytes without a meaning");
    }
}

#[test]
fn the_checksum_of_an_array_in_an_archive_is_compared() {
    let room = Room::with_index("exact");
    let base = f32_npy(&rows(0..300));
    for deflate in [false, true] {
        let mut bytes = archive(&[("base", &base)], deflate, false);
        let sum = bytes.windows(4).rposition(|part| part == b"PK\x01\x02").unwrap() + 16;
        bytes[sum] ^= 1;
        room.write("sum.npz", &bytes);
        let message = room.fails(1, &["import", "index", "sum.npz"]);
        assert!(message.contains("sum.npz:base") && message.contains("checksum"), "{message}");
        assert_eq!(room.rows(), 0);
    }
}

#[test]
fn a_compressed_array_in_fortran_order_says_what_memory_it_needs() {
    let room = Room::with_index("exact");
    let data = turned(&rows(0..300), |x| f32::from(x).to_le_bytes());
    let bytes = array("<f4", true, "(300, 4)", &data);
    room.write("turned.npz", &archive(&[("base", &bytes)], true, false));
    let message = room.fails(1, &["import", "index", "turned.npz", "--memory", "4K"]);
    let needed = bytes.len().to_string();
    assert!(message.contains(&needed) && message.contains("ascontiguousarray"), "{message}");
    room.write("turned.npy", &bytes);
    let imported = room.ok(&["import", "index", "turned.npy", "--memory", "4K"]);
    assert_eq!(imported["rows"], 300, "from a file, its columns are read piece by piece");
    room.ok(&["export", "index", "out.npy"]);
    assert!(npy_data(&room.path("out.npy")) == f32s(&rows(0..300)));
}

#[test]
fn an_array_of_one_dimension_is_one_row_and_an_empty_one_says_so() {
    let room = Room::with_index("exact");
    room.write("one.npy", &array("<f4", false, "(4,)", &f32s(&rows(7..8))));
    assert_eq!(room.ok(&["import", "index", "one.npy"])["rows"], 1);
    let found = room.lines(&["search", "index", "one.npy", "-k", "1"]);
    assert_eq!((found.len(), &found[0]["distances"][0]), (1, &0.0.into()));
    room.write("empty.npy", &array("<f4", false, "(0, 4)", &[]));
    let mut command = Command::new(env!("CARGO_BIN_EXE_cellardb"));
    let output =
        command.args(["import", "index", "empty.npy"]).current_dir(room.dir.path()).output();
    let output = output.unwrap();
    assert!(output.status.success());
    assert_eq!(text(&output.stdout), "nothing to add: there is no row in the files\n");
    for (shape, data, words) in [
        ("(5,)", 20, "5 dimensions, the index has 4"),
        ("(0,)", 0, "nothing in it"),
        ("()", 4, "a single number"),
        ("(2, 3, 4)", 96, "reshape(-1, x.shape[-1])"),
    ] {
        room.write("odd.npy", &array("<f4", false, shape, &vec![0; data]));
        let message = room.fails(1, &["import", "index", "odd.npy"]);
        assert!(message.contains(words) && message.contains("odd.npy"), "{shape}: {message}");
    }
    room.write("bool.npy", &array("|b1", false, "(2, 4)", &[1; 8]));
    let message = room.fails(1, &["import", "index", "bool.npy"]);
    assert!(message.contains("|b1") && message.contains("astype('float32')"), "{message}");
}

/// Runs a verb with these bytes as its standard input.
pub(super) fn fed(room: &Room, arguments: &[&str], bytes: &[u8]) -> Output {
    let mut command = room.command(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // A verb that refuses its input may not have read it.
    let _ = stdin.write_all(bytes);
    drop(stdin);
    child.wait_with_output().unwrap()
}

#[test]
fn standard_input_is_imported_as_it_comes_in_every_format() {
    let rows = rows(0..5000);
    let turned = turned(&rows, |x| f32::from(x).to_le_bytes());
    for (format, bytes) in [
        ("npy", f32_npy(&rows)),
        ("npy", array("<f4", true, "(5000, 4)", &turned)),
        ("fvecs", prefixed(&rows, |row| f32s(&[*row]))),
        ("bvecs", prefixed(&rows, |row| values(&[*row], |x| [x as u8]))),
        ("fbin", with_counts(rows.len(), &f32s(&rows))),
        ("i8bin", with_counts(rows.len(), &values(&rows, i8::to_le_bytes))),
    ] {
        let room = Room::with_index("exact");
        let import = ["import", "index", "-", "--format", format, "--batch", "128"];
        let output = fed(&room, &import, &bytes);
        assert!(output.status.success(), "{format}: {}", text(&output.stderr));
        room.ok(&["export", "index", "out.npy"]);
        assert!(npy_data(&room.path("out.npy")) == f32s(&rows), "{format}");
        // Whatever was cut off is missed, not passed over.
        for cut in [1, 7, 20_000] {
            let room = Room::with_index("exact");
            let output = fed(&room, &import, &bytes[..bytes.len() - cut]);
            let message = text(&output.stderr);
            let whole_rows = format.ends_with("vecs") && cut == 20_000;
            assert_eq!(output.status.code(), Some(if whole_rows { 0 } else { 1 }), "{message}");
            assert!(whole_rows || message.contains("standard input"), "{message}");
        }
    }
}

#[test]
fn standard_input_is_one_array_and_a_whole_one() {
    let room = Room::with_index("exact");
    let bytes = f32_npy(&rows(0..50));
    let output = fed(&room, &["import", "index", "-"], &[&bytes[..], &bytes].concat());
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("goes on behind the 50 rows"), "{message}");
    assert_eq!(fed(&room, &["import", "index", "-", "-"], &bytes).status.code(), Some(2));
    let output = fed(&room, &["import", "index", "-", "--format", "npz"], &bytes);
    assert!(text(&output.stderr).contains("by its name"));
    let output = fed(&room, &["search", "index", "-", "-k", "1", "--out", "ids.npy"], &bytes);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let ids: Vec<u8> = (0..50_i64).flat_map(i64::to_le_bytes).collect();
    assert_eq!(npy_data(&room.path("ids.npy")), ids);
    let output = fed(&room, &["import", "index", "-", "--append"], b"\x93NUMPY");
    assert!(text(&output.stderr).contains("too short for a .npy header"));
    let vast = array("<f4", false, "(4611686018427387904, 4)", &[0; 16]);
    let output = fed(&room, &["import", "index", "-", "--append"], &vast);
    assert!(text(&output.stderr).contains("no file is so long"), "{}", text(&output.stderr));
}
