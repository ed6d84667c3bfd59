//! Names, each with its length before it, read through a window: neighbours in a directory mostly came together.

use std::{io, path::Path};

use crate::image::ext4::spool::Spool;

/// How much is read at once.
const WINDOW: usize = 32 << 10;

/// The spool of names.
pub(super) struct Names {
    spool: Spool,
    window: Vec<u8>,
    /// Where the window begins.
    at: u64,
}

impl Names {
    pub(super) fn new(dir: &Path) -> io::Result<Self> {
        Ok(Self { spool: Spool::new(dir)?, window: Vec::new(), at: 0 })
    }

    /// Keeps a name; gives its place.
    pub(super) fn push(&mut self, name: &[u8]) -> io::Result<u32> {
        let mut record = [0; 256];
        record[0] = u8::try_from(name.len()).map_err(io::Error::other)?;
        record[1..=name.len()].copy_from_slice(name);
        let place = self.spool.push(&record[..=name.len()])?;
        u32::try_from(place).map_err(|_| io::Error::other("all names together have more than 4 GiB"))
    }

    /// Reads a name; gives its length.
    pub(super) fn read(&mut self, place: u32, into: &mut [u8; 255]) -> io::Result<usize> {
        let record = self.record(place)?;
        let name = &record[1..=usize::from(record[0])];
        into[..name.len()].copy_from_slice(name);
        Ok(name.len())
    }

    /// Whether it is that name.
    pub(super) fn is(&mut self, place: u32, name: &[u8]) -> io::Result<bool> {
        let record = self.record(place)?;
        Ok(&record[1..=usize::from(record[0])] == name)
    }

    fn record(&mut self, place: u32) -> io::Result<&[u8]> {
        let place = u64::from(place);
        let inside = |window: &[u8], at: u64| {
            let from = usize::try_from(place.checked_sub(at)?).ok()?;
            let length = usize::from(*window.get(from)?);
            (from + length < window.len()).then_some(from)
        };
        let from = match inside(&self.window, self.at) {
            Some(from) => from,
            None => {
                // Some of what came before too: lists of names are read from their end as often.
                self.at = place.saturating_sub(WINDOW as u64 / 2);
                self.window.resize(WINDOW, 0);
                let count = self.spool.read_at(self.at, &mut self.window)?;
                self.window.truncate(count);
                inside(&self.window, self.at).ok_or_else(|| io::Error::other("a name is not where it was put"))?
            }
        };
        Ok(&self.window[from..])
    }
}
