//! A blocking **reader** of a blob that follows its download: it waits where the download has not come to yet, and tells the end only of what
//! is proven to be whole.

use std::{
    io::{self, Read},
    os::unix::fs::FileExt,
    sync::Arc,
};

use tokio_util::sync::CancellationToken;

use super::{
    blob::{Blob, Found},
    check::{Check, as_io},
};

/// Reads one blob from its beginning. An error is one of the download's own (see [`super::told`]).
pub(in crate::image) struct BlobReader {
    blob: Arc<Blob>,
    cancel: CancellationToken,
    position: u64,
    /// Of what was here before this process and nobody has read since; begun with the first byte.
    check: Check,
}

impl BlobReader {
    pub(super) fn new(blob: Arc<Blob>, cancel: CancellationToken) -> Self {
        let check = Check::new(blob.content.digest(), blob.content.size());
        Self { blob, cancel, position: 0, check }
    }
}

impl Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let content = &self.blob.content;
        match content.beyond(self.position, &self.cancel).map_err(as_io)? {
            Found::End(false) => Ok(0),
            Found::End(true) => match self.check.finish() {
                Ok(()) => {
                    self.blob.cache.proven(content.digest());
                    Ok(0)
                }
                Err(error) => {
                    self.blob.cache.damaged(content, &error);
                    Err(as_io(error))
                }
            },
            Found::Bytes(file, until) => {
                let there = usize::try_from(until - self.position).unwrap_or(usize::MAX);
                let length = buffer.len().min(there);
                let count = file.read_at(&mut buffer[..length], self.position)?;
                if count == 0 {
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "a blob's file was cut"));
                }
                if content.is_unproven() {
                    self.check.update(&buffer[..count]);
                }
                self.position += count as u64;
                Ok(count)
            }
        }
    }
}
