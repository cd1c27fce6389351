//! Where the bytes of an array are: in a file or a part of one, in memory, or in what can only be read
//! forwards.

use std::cell::RefCell;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

/// The bytes of one array, read by position.
#[derive(Debug)]
pub(crate) enum Bytes {
    /// A part of a file.
    File {
        file: File,
        base: u64,
        len: u64,
    },
    Memory(Vec<u8>),
    Stream(RefCell<Stream>),
}

impl Bytes {
    /// How many there are; not known of standard input.
    pub(crate) fn len(&self) -> Option<u64> {
        match self {
            Self::File { len, .. } => Some(*len),
            Self::Memory(bytes) => Some(bytes.len() as u64),
            Self::Stream(stream) => stream.borrow().len,
        }
    }

    /// Reads as many bytes from `offset` on as there are, at most as many as `out` has room for.
    pub(crate) fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::File { file, base, len } => {
                let left = len.saturating_sub(offset).min(out.len() as u64) as usize;
                let (out, _) = out.split_at_mut(left);
                // Not past its end, even if the file has become shorter.
                file.read_exact_at(out, base.saturating_add(offset)).map(|()| left)
            }
            Self::Memory(bytes) => {
                let rest = usize::try_from(offset).ok().and_then(|at| bytes.get(at..));
                Ok(fill(out, rest.unwrap_or_default()))
            }
            Self::Stream(stream) => stream.borrow_mut().read(offset, out),
        }
    }

    pub(crate) fn read_exact(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        match self.read(offset, out)? == out.len() {
            true => Ok(()),
            false => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it ends early")),
        }
    }
}

fn fill(out: &mut [u8], from: &[u8]) -> usize {
    let n = out.len().min(from.len());
    out.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
    n
}

/// What opens a stream anew.
pub(crate) type Opener = Box<dyn Fn() -> Box<dyn Read>>;

/// Bytes that are read forwards. The first ones are kept, so that a header and some rows can be looked at
/// twice; to go back behind them the stream is opened anew, where it can be.
pub(crate) struct Stream {
    source: Box<dyn Read>,
    again: Option<Opener>,
    len: Option<u64>,
    /// Where the source is.
    at: u64,
    head: Vec<u8>,
}

/// So many of the first bytes are kept: a header, and the longest row.
const HEAD: usize = 1 << 20;

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream")
            .field("len", &self.len)
            .field("at", &self.at)
            .finish_non_exhaustive()
    }
}

impl Stream {
    /// What can be read once.
    pub(crate) fn once(source: impl Read + 'static) -> Self {
        Self { source: Box::new(source), again: None, len: None, at: 0, head: Vec::new() }
    }

    /// What can be read again, and has `len` bytes.
    pub(crate) fn repeatable(open: Opener, len: u64) -> Self {
        Self { source: open(), again: Some(open), len: Some(len), at: 0, head: Vec::new() }
    }

    /// The number of bytes that a second reader will find.
    pub(crate) fn kept(&self) -> usize {
        if self.again.is_some() { usize::MAX } else { HEAD }
    }

    fn read(&mut self, offset: u64, out: &mut [u8]) -> io::Result<usize> {
        let kept = usize::try_from(offset).ok().and_then(|at| self.head.get(at..));
        let mut done = fill(out, kept.unwrap_or_default());
        let next = offset.saturating_add(done as u64);
        if done < out.len() && next < self.at {
            let again = self.again.as_ref();
            let again = again.ok_or_else(|| io::Error::other("it cannot be read a second time"))?;
            (self.source, self.at) = (again(), 0);
        }
        let mut passed = [0; 4096];
        while done < out.len() {
            if self.at < next {
                let n = (next - self.at).min(passed.len() as u64) as usize;
                if self.pull(&mut passed[..n])? == 0 {
                    break;
                }
                continue;
            }
            match self.pull(&mut out[done..])? {
                0 => break,
                n => done += n,
            }
        }
        Ok(done)
    }

    fn pull(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = loop {
            match self.source.read(out) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                read => break read?,
            }
        };
        if self.at == self.head.len() as u64 {
            let room = HEAD - self.head.len();
            self.head.extend_from_slice(&out[..n.min(room)]);
        }
        self.at += n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives a few bytes at a time.
    struct Slow(io::Cursor<Vec<u8>>);

    impl Read for Slow {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            let n = out.len().min(70_001);
            self.0.read(&mut out[..n])
        }
    }

    #[test]
    fn a_stream_reads_by_position_and_goes_back_where_it_can() {
        let bytes: Vec<u8> = (0..3_000_000_u32).map(|i| (i * 7 / 3) as u8).collect();
        let slow = |bytes: &[u8]| Slow(io::Cursor::new(bytes.to_vec()));
        let again = {
            let bytes = bytes.clone();
            Stream::repeatable(Box::new(move || Box::new(slow(&bytes))), 3_000_000)
        };
        let once = Stream::once(slow(&bytes));
        for (repeatable, stream) in [(true, again), (false, once)] {
            let stream = Bytes::Stream(RefCell::new(stream));
            let mut out = vec![0; 200_000];
            for at in [0, 100, 900_000, 10, 1_100_000, 2_500_000] {
                assert_eq!(stream.read(at, &mut out).unwrap(), out.len(), "{at}");
                assert!(out == bytes[at as usize..][..out.len()], "{at}");
            }
            let back = stream.read(1_500_000, &mut out);
            assert_eq!(back.is_ok(), repeatable);
            assert!(!repeatable || out == bytes[1_500_000..1_700_000]);
            if repeatable {
                assert_eq!(stream.read(2_900_000, &mut out).unwrap(), 100_000);
                assert_eq!(stream.read(4_000_000, &mut out).unwrap(), 0);
                assert!(stream.read_exact(2_900_000, &mut out).is_err());
            }
        }
    }
}
