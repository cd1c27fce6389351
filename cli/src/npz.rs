//! NumPy's `.npz`: a zip archive of `.npy` files, stored or deflated. Only the directory is held in
//! memory; what an archive says of itself is compared with the length of its file before it is believed.

use crate::bytes::{Bytes, Opener, Stream};
use flate2::Crc;
use flate2::read::DeflateDecoder;
use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// The directory of more arrays than anybody saves in one file.
const DIRECTORY_LIMIT: u64 = 16 << 20;
/// The end record with the longest comment.
const END_LIMIT: u64 = 22 + 65_535;
/// What stands in a field of 32 bits when the number is in another place.
const ELSEWHERE: u64 = 0xFFFF_FFFF;

const WRONG_SUM: &str = "its checksum is wrong: the array is not what was written";

/// An array in the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Member {
    /// Without `.npy`.
    pub(crate) name: String,
    method: u16,
    encrypted: bool,
    crc: u32,
    packed: u64,
    size: u64,
    /// Where its own header is.
    header: u64,
}

/// Little-endian numbers of a record.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn number(&self, at: usize, bytes: usize) -> Result<u64, String> {
        let field = self.0.get(at..at + bytes).ok_or("the directory of the archive ends early")?;
        Ok(field.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
    }

    fn u16(&self, at: usize) -> Result<u64, String> {
        self.number(at, 2)
    }

    fn u32(&self, at: usize) -> Result<u64, String> {
        self.number(at, 4)
    }

    fn u64(&self, at: usize) -> Result<u64, String> {
        self.number(at, 8)
    }
}

fn read_at(file: &File, at: u64, len: u64) -> Result<Vec<u8>, String> {
    let mut bytes = vec![0; len as usize];
    file.read_exact_at(&mut bytes, at).map_err(|e| format!("byte {at}: {e}"))?;
    Ok(bytes)
}

/// The arrays of an archive of `len` bytes, in the order of its directory.
pub(crate) fn members(file: &File, len: u64) -> Result<Vec<Member>, String> {
    let tail_at = len.saturating_sub(END_LIMIT);
    let tail = read_at(file, tail_at, len - tail_at)?;
    let ends = |at: &usize| {
        let comment = Fields(&tail).u16(at + 20).ok();
        tail[*at..].starts_with(b"PK\x05\x06") && comment == Some((tail.len() - at - 22) as u64)
    };
    let at = (0..(tail.len() + 1).saturating_sub(22)).rev().find(ends);
    let at =
        at.ok_or("not a .npz file: it does not end as a zip archive does, or was cut short")?;
    let end = Fields(&tail[at..]);
    let (mut size, mut start) = (end.u32(12)?, end.u32(16)?);
    if size == ELSEWHERE || start == ELSEWHERE || end.u16(10)? == 0xFFFF {
        (size, start) = large_end(file, (tail_at + at as u64).checked_sub(20))?;
    }
    if size > DIRECTORY_LIMIT || start.checked_add(size).is_none_or(|end| end > len) {
        return Err(format!(
            "its directory, {size} bytes at {start}, is not within the {len} of the file"
        ));
    }
    let directory = read_at(file, start, size)?;
    let (mut rest, mut found) = (&directory[..], Vec::new());
    while rest.starts_with(b"PK\x01\x02") {
        let entry = Fields(rest);
        let sizes = [entry.u16(28)?, entry.u16(30)?, entry.u16(32)?];
        let [name, extra, comment] = sizes.map(|size| size as usize);
        let whole = rest.get(..46 + name + extra + comment);
        let whole = whole.ok_or("the directory of the archive ends early")?;
        let name_bytes = &whole[46..46 + name];
        if let Some(name) = name_bytes.strip_suffix(b".npy") {
            let mut member = Member {
                name: String::from_utf8_lossy(name).into_owned(),
                method: entry.u16(10)? as u16,
                encrypted: entry.u16(8)? & 1 != 0,
                crc: entry.u32(16)? as u32,
                packed: entry.u32(20)?,
                size: entry.u32(24)?,
                header: entry.u32(42)?,
            };
            member.widen(&whole[46 + name_bytes.len()..][..extra])?;
            found.push(member);
        }
        rest = &rest[whole.len()..];
    }
    Ok(found)
}

/// The size and the start of a directory whose numbers are of 64 bits; `at` is where the record stands
/// that leads to them.
fn large_end(file: &File, at: Option<u64>) -> Result<(u64, u64), String> {
    let lost = "the archive does not say where its directory is";
    let leads = read_at(file, at.ok_or(lost)?, 20)?;
    if !leads.starts_with(b"PK\x06\x07") {
        return Err(lost.into());
    }
    let end = read_at(file, Fields(&leads).u64(8)?, 56)?;
    if !end.starts_with(b"PK\x06\x06") {
        return Err(lost.into());
    }
    Ok((Fields(&end).u64(40)?, Fields(&end).u64(48)?))
}

impl Member {
    /// Takes the numbers that need 64 bits from the extra field where they stand.
    fn widen(&mut self, extra: &[u8]) -> Result<(), String> {
        let mut rest = extra;
        while rest.len() >= 4 {
            let (id, len) = (Fields(rest).u16(0)?, Fields(rest).u16(2)? as usize);
            let body = rest.get(4..4 + len).ok_or("the directory of the archive ends early")?;
            if id == 1 {
                let mut at = 0;
                for number in [&mut self.size, &mut self.packed, &mut self.header] {
                    if *number == ELSEWHERE {
                        *number = Fields(body).u64(at)?;
                        at += 8;
                    }
                }
            }
            rest = &rest[4 + len..];
        }
        Ok(())
    }

    /// Compares an array that is not compressed with its checksum: before anything of it is taken. What is
    /// compressed is compared as it is read.
    pub(crate) fn check(&self, bytes: &Bytes) -> Result<(), String> {
        let Bytes::File { len, .. } = bytes else { return Ok(()) };
        let (mut sum, mut chunk) = (Crc::new(), vec![0; 1 << 20]);
        for at in (0..*len).step_by(chunk.len()) {
            let n = bytes.read(at, &mut chunk).map_err(|e| e.to_string())?;
            sum.update(&chunk[..n]);
        }
        if sum.sum() == self.crc { Ok(()) } else { Err(WRONG_SUM.into()) }
    }

    /// Its bytes, as they were before they were packed.
    pub(crate) fn open(&self, file: &File, len: u64) -> Result<Bytes, String> {
        if self.encrypted {
            return Err("it is encrypted".into());
        }
        let local = read_at(file, self.header, 30)?;
        if !local.starts_with(b"PK\x03\x04") {
            return Err(format!("there is no header of it at byte {}", self.header));
        }
        let names = Fields(&local).u16(26)? + Fields(&local).u16(28)?;
        // Behind 30 bytes that could be read, so none of this overflows.
        let start = self.header + 30 + names;
        if start.checked_add(self.packed).is_none_or(|end| end > len) {
            return Err(format!("{} bytes at {start}: the file ends at {len}", self.packed));
        }
        let file = file.try_clone().map_err(|e| e.to_string())?;
        match self.method {
            0 if self.packed == self.size => Ok(Bytes::File { file, base: start, len: self.size }),
            0 => Err("its two sizes differ, though it is not compressed".into()),
            8 => {
                let (file, member) = (Arc::new(file), self.clone());
                let open: Opener = Box::new(move || {
                    let end = start + member.packed;
                    let packed = Packed { file: Arc::clone(&file), at: start, end };
                    let source = DeflateDecoder::new(io::BufReader::with_capacity(1 << 16, packed));
                    Box::new(Checked {
                        source,
                        sum: Crc::new(),
                        left: member.size,
                        crc: member.crc,
                    })
                });
                Ok(Bytes::Stream(RefCell::new(Stream::repeatable(open, self.size))))
            }
            other => Err(format!(
                "compressed by method {other}; numpy.savez and numpy.savez_compressed are read"
            )),
        }
    }
}

/// The compressed bytes.
struct Packed {
    file: Arc<File>,
    at: u64,
    end: u64,
}

impl Read for Packed {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = (self.end - self.at).min(out.len() as u64) as usize;
        let n = self.file.read_at(&mut out[..n], self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}

/// As many bytes as the directory says, compared with its checksum when the last one is read.
struct Checked<R> {
    source: R,
    sum: Crc,
    left: u64,
    crc: u32,
}

impl<R: Read> Read for Checked<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.left.min(out.len() as u64) as usize;
        if n == 0 {
            return Ok(0);
        }
        let n = self.source.read(&mut out[..n])?;
        if n == 0 {
            let what = format!("the compressed array ends {} bytes early", self.left);
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, what));
        }
        self.sum.update(&out[..n]);
        self.left -= n as u64;
        if self.left == 0 && self.sum.sum() != self.crc {
            return Err(io::Error::new(io::ErrorKind::InvalidData, WRONG_SUM));
        }
        Ok(n)
    }
}
