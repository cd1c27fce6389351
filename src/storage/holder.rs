//! Who holds a lock, as the kernel tells it.

/// The processes that hold a lock of `flock` on a file, and whether exclusively, from the text of
/// `/proc/locks`: `1: FLOCK ADVISORY WRITE 15571 fe:00:10010831 0 EOF`, and the same with `->` for one who waits.
pub(super) fn parse(locks: &str, device: u64, inode: u64) -> Vec<(u32, bool)> {
    let device = (rustix::fs::major(device), rustix::fs::minor(device));
    let one = |line: &str| {
        let mut words = line.split_whitespace().skip(1);
        let (kind, _, access) = (words.next()?, words.next()?, words.next()?);
        let pid = words.next()?.parse().ok()?;
        let mut file = words.next()?.split(':');
        let mut hex = || u32::from_str_radix(file.next()?, 16).ok();
        let found = (hex()?, hex()?);
        let same = found == device && file.next()?.parse() == Ok(inode);
        (kind == "FLOCK" && same && pid > 0).then_some((pid, access == "WRITE"))
    };
    locks.lines().filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn only_those_who_hold_a_lock_on_this_very_file_are_told() {
        let text = "1: FLOCK  ADVISORY  WRITE 15571 fe:00:10831 0 EOF\n\
                    1: -> FLOCK  ADVISORY  WRITE 15572 fe:00:10831 0 EOF\n\
                    2: POSIX  ADVISORY  WRITE 15573 fe:00:10831 0 EOF\n\
                    3: FLOCK  ADVISORY  READ  15574 fe:00:10831 0 EOF\n\
                    4: FLOCK  ADVISORY  WRITE 15575 fe:01:10831 0 EOF\n\
                    5: FLOCK  ADVISORY  WRITE 15576 fe:00:10832 0 EOF\n\
                    6: FLOCK  ADVISORY  WRITE 0 fe:00:10831 0 EOF\n\
                    7: LEASE\n";
        let device = rustix::fs::makedev(0xfe, 0);
        assert_eq!(parse(text, device, 10831), [(15571, true), (15574, false)]);
    }
}
