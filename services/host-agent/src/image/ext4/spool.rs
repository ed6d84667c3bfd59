//! A list of bytes too long for memory: its end in memory, the rest in a file without a name beside the image.

use std::{fs::File, io, os::unix::fs::FileExt, path::Path};

/// How much is in memory before it goes to the file.
const TAIL: usize = 1 << 20;

/// Bytes that are added at the end, and read and changed anywhere.
pub(crate) struct Spool {
    file: File,
    /// How many bytes are in the file; the tail follows them.
    filed: u64,
    tail: Vec<u8>,
}

impl Spool {
    pub(crate) fn new(dir: &Path) -> io::Result<Self> {
        Ok(Self { file: tempfile::tempfile_in(dir)?, filed: 0, tail: Vec::new() })
    }

    pub(crate) fn length(&self) -> u64 {
        self.filed + self.tail.len() as u64
    }

    /// Adds bytes; gives where they begin.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> io::Result<u64> {
        if self.tail.len() + bytes.len() > TAIL {
            self.file.write_all_at(&self.tail, self.filed)?;
            self.filed += self.tail.len() as u64;
            self.tail.clear();
        }
        let at = self.length();
        self.tail.extend_from_slice(bytes);
        Ok(at)
    }

    /// Reads as many bytes as there are from a place on; gives their count.
    pub(crate) fn read_at(&self, at: u64, into: &mut [u8]) -> io::Result<usize> {
        let wanted = into.len().min(usize::try_from(self.length().saturating_sub(at)).unwrap_or(usize::MAX));
        let filed = usize::try_from(self.filed.saturating_sub(at)).unwrap_or(usize::MAX).min(wanted);
        self.file.read_exact_at(&mut into[..filed], at)?;
        if filed < wanted {
            let from = (at + filed as u64 - self.filed) as usize;
            into[filed..wanted].copy_from_slice(&self.tail[from..from + wanted - filed]);
        }
        Ok(wanted)
    }

    /// Changes bytes that are there.
    pub(crate) fn write_at(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let filed = usize::try_from(self.filed.saturating_sub(at)).unwrap_or(usize::MAX).min(bytes.len());
        self.file.write_all_at(&bytes[..filed], at)?;
        if filed < bytes.len() {
            let from = (at + filed as u64 - self.filed) as usize;
            self.tail[from..from + bytes.len() - filed].copy_from_slice(&bytes[filed..]);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_added_is_found_and_changed_across_the_edge() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = Spool::new(dir.path()).unwrap();
        let record = |n: u32| n.to_le_bytes().repeat(75);
        for n in 0..10_000 {
            assert_eq!(spool.push(&record(n)).unwrap(), u64::from(n) * 300);
        }
        assert!(spool.filed > 0 && !spool.tail.is_empty());
        let edge = spool.filed - 100;
        spool.write_at(edge, &[9; 250]).unwrap();
        let mut seen = [0; 300];
        spool.read_at(edge - 25, &mut seen).unwrap();
        assert_eq!(seen[25..275], [9; 250]);
        assert!(seen[..25] != [9; 25] && seen[275..] != [9; 25]);
        spool.read_at(300 * 77, &mut seen).unwrap();
        assert_eq!(seen[..], record(77));
        assert_eq!(spool.read_at(spool.length() - 5, &mut seen).unwrap(), 5);
    }
}
