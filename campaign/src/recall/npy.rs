//! Real data that lies in a folder: `base.npy`, `query.npy` and `metric.txt`, as `benches/peers/datasets.py` makes
//! them.

use super::cases::Case;
use super::{lives, worlds};
use cellardb::Metric;
use std::path::Path;
use std::sync::Arc;

/// A matrix of f32 in C order.
fn matrix(path: &Path, most: usize) -> Result<(Vec<Vec<f32>>, usize), String> {
    let what = |why: &str| format!("{}: {why}", path.display());
    let bytes = std::fs::read(path).map_err(|e| what(&e.to_string()))?;
    let header = || {
        let version = *bytes.get(6)?;
        let (from, len) = match version {
            1 => (10, usize::from(u16::from_le_bytes(bytes.get(8..10)?.try_into().ok()?))),
            _ => (12, u32::from_le_bytes(bytes.get(8..12)?.try_into().ok()?) as usize),
        };
        Some((std::str::from_utf8(bytes.get(from..from + len)?).ok()?, from + len))
    };
    let (header, start) = header().ok_or_else(|| what("is no .npy file"))?;
    if !header.contains("'<f4'") || !header.contains("'fortran_order': False") {
        return Err(what("is not of f32 in C order"));
    }
    let shape = header.split_once('(').and_then(|at| at.1.split_once(')')).map_or("", |at| at.0);
    let dim = shape.split(',').nth(1).and_then(|d| d.trim().parse::<usize>().ok());
    let dim = dim.filter(|d| *d > 0).ok_or_else(|| what("is no matrix"))?;
    let values =
        bytes[start..].chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    let values: Vec<f32> = values.take(most.saturating_mul(dim)).collect();
    Ok((values.chunks_exact(dim).map(<[f32]>::to_vec).collect(), dim))
}

/// The case of a folder: of its rows as many as `rows` says, all of them for `None`.
pub fn case(folder: &Path, rows: Option<usize>) -> Result<Case, String> {
    let most = rows.unwrap_or(usize::MAX);
    let (base, dim) = matrix(&folder.join("base.npy"), most)?;
    let (queries, same) = matrix(&folder.join("query.npy"), 10_000)?;
    if dim != same {
        return Err(format!("{}: {dim} and {same} dimensions", folder.display()));
    }
    let metric = std::fs::read_to_string(folder.join("metric.txt")).unwrap_or_default();
    let metric = match metric.trim() {
        "ip" => Metric::InnerProduct,
        "cosine" => Metric::Cosine,
        _ => Metric::L2,
    };
    let name = folder.file_name().map_or("data".into(), |name| name.to_string_lossy().into_owned());
    let len = base.len();
    Ok(Case {
        about: format!("real data, {len} rows"),
        name,
        dim,
        times: f32::INFINITY,
        most: len,
        queries: queries.len().saturating_sub(1000),
        metrics: vec![metric],
        make: Arc::new(move |_, _| worlds::given(base.clone(), queries.clone())),
        live: lives::plain,
        told: false,
        counts: true,
    })
}

#[cfg(test)]
mod tests {
    use super::case;
    use crate::data::Rng;
    use crate::recall::lives::draw;
    use std::fs::File;
    use std::io::Write;
    use std::path::Path;

    fn save(path: &Path, kind: &str, rows: usize, values: &[f32]) {
        let dim = values.len() / rows;
        let text =
            format!("{{'descr': '{kind}', 'fortran_order': False, 'shape': ({rows}, {dim}), }}");
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((text.len() as u16).to_le_bytes());
        bytes.extend(text.bytes());
        values.iter().for_each(|x| bytes.extend(x.to_le_bytes()));
        File::create(path).unwrap().write_all(&bytes).unwrap();
    }

    #[test]
    fn a_folder_is_a_case_of_its_rows_and_queries() {
        let root = tempfile::tempdir().unwrap();
        save(&root.path().join("base.npy"), "<f4", 3, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        save(&root.path().join("query.npy"), "<f4", 2, &[7.0, 8.0, 9.0, 10.0]);
        File::create(root.path().join("metric.txt")).unwrap().write_all(b"ip\n").unwrap();
        let found = case(root.path(), Some(2)).unwrap();
        assert_eq!((found.dim, found.size(9), found.metrics), (2, 2, vec![crate::METRICS[1]]));
        let mut rng = Rng::new(1);
        let world = (found.make)(&mut rng, 2);
        assert_eq!(draw(&world.rows, &mut rng, 2), [1.0, 2.0, 3.0, 4.0]);
        assert_eq!(draw(&world.queries, &mut rng, 2), [7.0, 8.0, 9.0, 10.0]);
        save(&root.path().join("query.npy"), "<f8", 2, &[7.0, 8.0, 9.0, 10.0]);
        assert!(case(root.path(), None).unwrap_err().contains("query.npy: is not of f32"));
        save(&root.path().join("query.npy"), "<f4", 1, &[7.0, 8.0, 9.0]);
        assert!(case(root.path(), None).unwrap_err().contains("2 and 3 dimensions"));
    }
}
