//! The image's file while it is written: blocks go out in large pieces, and what is never written stays a hole.

use std::{
    fs::File,
    io::{self, Write as _},
    os::{
        fd::{AsFd, AsRawFd},
        unix::fs::FileExt,
    },
    path::Path,
};

use nix::fcntl::{FallocateFlags, fallocate};
use tokio_util::sync::CancellationToken;

use super::{BLOCK, Error, space::Space};

/// How much is gathered before it is written.
const PIECE: usize = 1 << 20;
/// How much is written before the disk is told to begin with it, in bytes: what is synced at the end is then mostly there.
const AHEAD: u64 = 8 << 20;

/// The file, and which of its blocks are taken.
pub(super) struct Image {
    file: File,
    pub space: Space,
    /// Bytes that wait, and where they go.
    waiting: Vec<u8>,
    at: u64,
    /// From where on the disk was not told to begin yet.
    begun: u64,
    cancel: CancellationToken,
}

impl Image {
    pub(super) fn create(path: &Path, cancel: CancellationToken) -> io::Result<Self> {
        let file = File::options().read(true).write(true).create(true).truncate(true).open(path)?;
        Ok(Self { file, space: Space::new(), waiting: Vec::with_capacity(PIECE), at: 0, begun: 0, cancel })
    }

    /// Writes a block, or the beginning of one.
    pub(super) fn put(&mut self, block: u64, bytes: &[u8]) -> Result<(), Error> {
        let at = block * BLOCK as u64;
        if self.at + self.waiting.len() as u64 != at || self.waiting.len() + BLOCK > PIECE {
            self.flush()?;
            self.at = at;
        }
        self.waiting.write_all(bytes)?;
        // The next block begins at its own place.
        self.waiting.resize(self.waiting.len().next_multiple_of(BLOCK), 0);
        Ok(())
    }

    /// Writes out what waits.
    pub(super) fn flush(&mut self) -> Result<(), Error> {
        if self.cancel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        self.file.write_all_at(&self.waiting, self.at)?;
        let end = self.at + self.waiting.len() as u64;
        self.waiting.clear();
        if end >= self.begun + AHEAD {
            begin_writing(&self.file, self.begun, end - self.begun);
            self.begun = end;
        }
        Ok(())
    }

    /// Reads a block.
    pub(super) fn get(&mut self, block: u64) -> Result<[u8; BLOCK], Error> {
        self.flush()?;
        let mut bytes = [0; BLOCK];
        self.file.read_exact_at(&mut bytes, block * BLOCK as u64)?;
        Ok(bytes)
    }

    /// Gives blocks back to the host.
    pub(super) fn punch(&mut self, start: u64, count: u64) -> Result<(), Error> {
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let (start, length) = (start * BLOCK as u64, count * BLOCK as u64);
        let (start, length) =
            (i64::try_from(start).map_err(io::Error::other)?, i64::try_from(length).map_err(io::Error::other)?);
        match fallocate(self.file.as_fd(), flags, start, length) {
            // A host's filesystem without holes keeps them.
            Ok(()) | Err(nix::errno::Errno::EOPNOTSUPP) => Ok(()),
            Err(error) => Err(Error::Io(error.into())),
        }
    }

    /// Sets the size and waits until all is on the disk.
    pub(super) fn finish(mut self, blocks: u64) -> Result<u64, Error> {
        self.flush()?;
        let length = blocks * BLOCK as u64;
        self.file.set_len(length)?;
        self.file.sync_all()?;
        Ok(length)
    }
}

/// Has the kernel begin to write a stretch of a file to the disk, without waiting for it. A filesystem that does not do so (what is written
/// is synced anyway) is no error.
fn begin_writing(file: &File, from: u64, length: u64) {
    let (Ok(from), Ok(length)) = (i64::try_from(from), i64::try_from(length)) else { return };
    // SAFETY: the descriptor is open for as long as the file is borrowed, and nothing else is passed than numbers.
    unsafe { libc::sync_file_range(file.as_raw_fd(), from, length, libc::SYNC_FILE_RANGE_WRITE) };
}
