//! The bytes of a fuzz input, taken from the front.

/// What is left of an input; zeros when it has come to its end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bytes<'a>(pub(super) &'a [u8]);

impl<'a> Bytes<'a> {
    pub(super) fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    /// The next bytes, fewer at the end.
    pub(super) fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        let taken = self.take(N);
        out[..taken.len()].copy_from_slice(taken);
        out
    }

    pub(super) fn u8(&mut self) -> u8 {
        u8::from_le_bytes(self.array())
    }

    pub(super) fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    pub(super) fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    /// A number below `n`, of as few bytes as it needs; 0 if `n` is 0.
    pub(super) fn below(&mut self, n: usize) -> usize {
        match n {
            0..=1 => 0,
            2..=0x100 => usize::from(self.u8()) % n,
            0x101..=0x1_0000 => usize::from(self.u16()) % n,
            _ => self.u32() as usize % n,
        }
    }

    /// Exactly `len` bytes: what is left, again and again, each time with another byte added to all.
    pub(super) fn fill(self, len: usize) -> Vec<u8> {
        let source = if self.0.is_empty() { &[0][..] } else { self.0 };
        let mut out = Vec::with_capacity(len);
        for round in 0_u8..=255 {
            let wanted = len - out.len();
            out.extend(source.iter().take(wanted).map(|byte| byte.wrapping_add(round)));
            if out.len() == len {
                break;
            }
        }
        out.resize(len, 0);
        out
    }

    /// Changes some bytes in one of the ways in which bytes go wrong, mostly so that lengths stay.
    pub(super) fn change(&mut self, bytes: &mut Vec<u8>) {
        let way = self.u8();
        let at = self.below(bytes.len() + 1);
        match way % 16 {
            0 => bytes.truncate(at),
            1 => {
                let more = self.u8();
                let more = self.take(usize::from(more));
                bytes.splice(at..at, more.iter().copied());
            }
            2 => {
                let end = (at + usize::from(self.u8())).min(bytes.len());
                bytes.drain(at..end);
            }
            // A number of 32 bits, aligned: one more, one less, or one of the extremes.
            3..=8 => {
                let delta = self.u8();
                if let Some(word) = bytes.as_chunks_mut::<4>().0.get_mut(at / 4) {
                    let value = u32::from_le_bytes(*word);
                    *word = match delta % 8 {
                        0 => 0,
                        1 => u32::MAX,
                        2 => 1 << 31,
                        3 => value.wrapping_add(1),
                        4 => value.wrapping_sub(1),
                        5 => value << 8,
                        6 => 0x7FC0_0000,
                        _ => value.wrapping_add(u32::from(delta)),
                    }
                    .to_le_bytes();
                }
            }
            9..=11 => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << self.below(8);
                }
            }
            _ => {
                let new = self.u8();
                let new = self.take(usize::from(new % 16) + 1);
                for (to, from) in bytes.iter_mut().skip(at).zip(new) {
                    *to = *from;
                }
            }
        }
    }
}
