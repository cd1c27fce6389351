//! Products of matrices; alone names faer.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};

/// `out = a * b^T`, all row-major: `a` is n x d, `b` is k x d, `out` is n x k.
///
/// Runs on the calling thread. The rounding of a row may depend on how many rows come with it, so
/// callers cut `a` into parts that depend on the data alone.
pub(crate) fn products(a: &[f32], b: &[f32], d: usize, out: &mut [f32]) {
    assert!(d > 0 && a.len().is_multiple_of(d) && b.len().is_multiple_of(d));
    let (n, k) = (a.len() / d, b.len() / d);
    assert_eq!(out.len(), n * k);
    let a = MatRef::from_row_major_slice(a, n, d);
    let b = MatRef::from_row_major_slice(b, k, d);
    let out = MatMut::from_row_major_slice_mut(out, n, k);
    matmul(out, Accum::Replace, a, b.transpose(), 1.0, Par::Seq);
}

#[cfg(test)]
mod tests {
    use super::products;

    #[test]
    fn products_are_inner_products_of_rows() {
        let a = [1.0, 2.0, 3.0, 4.0];
        let b = [5.0, 6.0, 7.0, 8.0, 9.0, 10.0];
        let mut out = [0.0; 6];
        products(&a, &b, 2, &mut out);
        assert_eq!(out, [17.0, 23.0, 29.0, 39.0, 53.0, 67.0]);
    }
}
