//! Numbers as files spell them, and as `f32`.

/// The type of one value in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Element {
    F16,
    /// The upper half of an f32; NumPy's `ml_dtypes.bfloat16`.
    BF16,
    F32,
    F64,
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    U64,
    I64,
}

/// An element type and the order of its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Values {
    pub(crate) element: Element,
    pub(crate) big_endian: bool,
}

impl Element {
    pub(crate) fn bytes(self) -> u64 {
        match self {
            Self::U8 | Self::I8 => 1,
            Self::F16 | Self::BF16 | Self::U16 | Self::I16 => 2,
            Self::F32 | Self::U32 | Self::I32 => 4,
            Self::F64 | Self::U64 | Self::I64 => 8,
        }
    }

    pub(crate) fn is_float(self) -> bool {
        matches!(self, Self::F16 | Self::BF16 | Self::F32 | Self::F64)
    }

    pub(crate) fn little(self) -> Values {
        Values { element: self, big_endian: false }
    }
}

impl Values {
    /// The type that NumPy spells so, such as `<f4`.
    pub(crate) fn from_npy(descr: &str) -> Result<Self, String> {
        let (order, kind) = match descr.split_at_checked(1) {
            Some(split @ ("<" | ">" | "|" | "=", _)) => split,
            _ => ("<", descr),
        };
        let element = match kind {
            "f2" => Element::F16,
            // NumPy has no name for it, only for its two bytes.
            "V2" | "bfloat16" => Element::BF16,
            "f4" => Element::F32,
            "f8" => Element::F64,
            "u1" => Element::U8,
            "i1" => Element::I8,
            "u2" => Element::U16,
            "i2" => Element::I16,
            "u4" => Element::U32,
            "i4" => Element::I32,
            "u8" => Element::U64,
            "i8" => Element::I64,
            _ => {
                return Err(format!(
                    "elements of type {descr:?}; f2, bfloat16, f4, f8 and integers of 1 to 8 bytes are \
                     read: save it with x.astype('float32')"
                ));
            }
        };
        Ok(Self { element, big_endian: order == ">" })
    }

    /// As they are compared and stored.
    pub(crate) fn floats(self, mut bytes: Vec<u8>) -> Vec<f32> {
        self.turn(&mut bytes);
        match self.element {
            Element::F16 => fixed(&bytes, |b| half(u16::from_le_bytes(b))),
            Element::BF16 => {
                fixed(&bytes, |b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16))
            }
            Element::F32 => fixed(&bytes, f32::from_le_bytes),
            Element::F64 => fixed(&bytes, |b| f64::from_le_bytes(b) as f32),
            Element::U8 => fixed(&bytes, |[b]| f32::from(b)),
            Element::I8 => fixed(&bytes, |b| f32::from(i8::from_le_bytes(b))),
            Element::U16 => fixed(&bytes, |b| f32::from(u16::from_le_bytes(b))),
            Element::I16 => fixed(&bytes, |b| f32::from(i16::from_le_bytes(b))),
            Element::U32 => fixed(&bytes, |b| u32::from_le_bytes(b) as f32),
            Element::I32 => fixed(&bytes, |b| i32::from_le_bytes(b) as f32),
            Element::U64 => fixed(&bytes, |b| u64::from_le_bytes(b) as f32),
            Element::I64 => fixed(&bytes, |b| i64::from_le_bytes(b) as f32),
        }
    }

    /// As ids of rows; `None` for floats. An id that does not fit becomes one that is not there.
    pub(crate) fn integers(self, mut bytes: Vec<u8>) -> Option<Vec<i64>> {
        self.turn(&mut bytes);
        Some(match self.element {
            Element::U8 => fixed(&bytes, |[b]| i64::from(b)),
            Element::I8 => fixed(&bytes, |b| i64::from(i8::from_le_bytes(b))),
            Element::U16 => fixed(&bytes, |b| i64::from(u16::from_le_bytes(b))),
            Element::I16 => fixed(&bytes, |b| i64::from(i16::from_le_bytes(b))),
            Element::U32 => fixed(&bytes, |b| i64::from(u32::from_le_bytes(b))),
            Element::I32 => fixed(&bytes, |b| i64::from(i32::from_le_bytes(b))),
            Element::U64 => {
                fixed(&bytes, |b| i64::try_from(u64::from_le_bytes(b)).unwrap_or(i64::MAX))
            }
            Element::I64 => fixed(&bytes, i64::from_le_bytes),
            Element::F16 | Element::BF16 | Element::F32 | Element::F64 => return None,
        })
    }

    /// To little-endian.
    fn turn(self, bytes: &mut [u8]) {
        let size = self.element.bytes() as usize;
        if self.big_endian && size > 1 {
            bytes.chunks_exact_mut(size).for_each(<[u8]>::reverse);
        }
    }
}

/// Converts values of `N` bytes each.
fn fixed<const N: usize, T>(bytes: &[u8], convert: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks::<N>().0.iter().map(|value| convert(*value)).collect()
}

/// A number of IEEE 754's binary16, exactly.
fn half(bits: u16) -> f32 {
    let sign = u32::from(bits >> 15) << 31;
    let (exponent, fraction) = (u32::from(bits >> 10 & 0x1F), u32::from(bits & 0x3FF));
    let magnitude = match exponent {
        // Zero and what has no leading one: a multiple of 2^-24.
        0 => (fraction as f32 / (1 << 24) as f32).to_bits(),
        0x1F => 0xFF << 23 | fraction << 13,
        _ => (exponent + 127 - 15) << 23 | fraction << 13,
    };
    f32::from_bits(sign | magnitude)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_is_the_number_that_its_bits_stand_for() {
        for bits in 0..=u16::MAX {
            let (exponent, fraction) = (i32::from(bits >> 10 & 0x1F), f64::from(bits & 0x3FF));
            let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
            let expected = match exponent {
                0 => sign * fraction * 2.0_f64.powi(-24),
                31 if fraction == 0.0 => sign * f64::INFINITY,
                31 => f64::NAN,
                _ => sign * (1.0 + fraction / 1024.0) * 2.0_f64.powi(exponent - 15),
            };
            let found = half(bits);
            assert!(
                found.to_bits() == (expected as f32).to_bits()
                    || found.is_nan() && expected.is_nan(),
                "{bits:#06x}: {found}"
            );
        }
    }

    #[test]
    fn every_spelling_of_a_type_is_known_and_no_other() {
        for (descr, element, big_endian) in [
            ("<f2", Element::F16, false),
            (">f2", Element::F16, true),
            ("<V2", Element::BF16, false),
            ("|V2", Element::BF16, false),
            ("bfloat16", Element::BF16, false),
            ("f4", Element::F32, false),
            ("=f4", Element::F32, false),
            (">f8", Element::F64, true),
            ("|u1", Element::U8, false),
            ("<i1", Element::I8, false),
            (">u4", Element::U32, true),
        ] {
            assert_eq!(Values::from_npy(descr), Ok(Values { element, big_endian }), "{descr}");
        }
        for other in ["", "<", "|b1", "<c8", "<f1", "<f16", "<U5", "|V1", "|O", "<m8[ns]", "é4"] {
            let refused = Values::from_npy(other);
            assert!(refused.is_err_and(|why| why.contains("float32")), "{other}");
        }
    }

    #[test]
    fn big_endian_values_are_turned() {
        let values = Values { element: Element::I16, big_endian: true };
        assert_eq!(values.floats(vec![0, 1, 0xFF, 0xFE]), [1.0, -2.0]);
        assert_eq!(values.integers(vec![0, 1, 0xFF, 0xFE]), Some(vec![1, -2]));
    }
}
