//! **Unpacking** a bundle's root filesystem: what comes is hostile until its digests have shown otherwise.
//!
//! Nothing is allocated or written by a number before that was checked against a limit, and a frame gives no more than the chunk it is of.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt,
    path::Path,
    sync::mpsc,
};

use contract::ApiError;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use super::{
    packing::{AT_ONCE, CHUNK, HEAD, check_head, check_table, chunk_length, chunks},
    superblock,
};
use crate::image::{
    cache::told, identity::Rootfs, limits::Limits, progress::Reporter, source::mismatch, storage_error,
};

/// What is left out where it is zeros.
const BLOCK: usize = 4096;

/// A layer as its descriptor has it.
pub(in crate::image) struct Layer<'a> {
    pub digest: &'a str,
    pub size: u64,
}

/// Unpacks what `reader` gives into the file `into`, without its zeros, synced. Blocking.
///
/// # Errors
/// It is not what the descriptor or the configuration says, is over a limit, or cannot be read or written.
pub(in crate::image) fn unpack(
    reader: impl Read,
    layer: &Layer<'_>,
    rootfs: &Rootfs,
    into: &Path,
    limits: &Limits,
    progress: &Reporter,
    cancel: &CancellationToken,
) -> Result<(), ApiError> {
    if rootfs.size > limits.unpacked || layer.size > limits.packed {
        return Err(ApiError::invalid_argument(format!(
            "the bundle's root filesystem has {} bytes, packed {}: more than the {} and {} this host takes",
            rootfs.size, layer.size, limits.unpacked, limits.packed
        )));
    }
    progress.phase("unpacking", rootfs.size);
    let mut packed = Hashed { inner: reader, hasher: Sha256::new(), digest: layer.digest };
    let file = File::create(into).map_err(|error| storage_error(into, &error))?;
    file.set_len(rootfs.size).map_err(|error| storage_error(into, &error))?;
    let mut head = [0; HEAD];
    packed.fill(&mut head)?;
    check_head(&head, rootfs.size)?;
    let count = usize::try_from(chunks(rootfs.size)).map_err(|_| ApiError::invalid_argument("too many chunks"))?;
    let mut table = vec![0; count * 4];
    packed.fill(&mut table)?;
    let (table, _) = table.as_chunks::<4>();
    let table: Vec<u32> = table.iter().map(|length| u32::from_le_bytes(*length)).collect();
    check_table(&table, rootfs.size, layer.size)?;

    let (full, written) = mpsc::sync_channel::<Vec<Vec<u8>>>(1);
    let (file, sizes) = (&file, rootfs.size);
    let raw = std::thread::scope(|threads| {
        let writing = threads.spawn(move || write(file, sizes, &written, progress));
        let read = feed(&mut packed, &table, rootfs.size, &full, cancel);
        drop(full);
        let raw = writing.join().map_err(|_| ApiError::internal("a writing thread panicked"))?;
        let raw = raw.map_err(|error| storage_error(into, &error))?;
        read.map(|()| raw)
    })?;
    let digest = packed.end()?;
    if digest != layer.digest {
        return Err(mismatch("the bundle's layer", layer.digest, &digest));
    }
    if raw != rootfs.digest {
        return Err(mismatch("the bundle's root filesystem", &rootfs.digest, &raw));
    }
    superblock::check(into, rootfs.size)?;
    file.sync_all().map_err(|error| storage_error(into, &error))
}

/// Reads frames and gives their chunks on, in order; zeros are an empty chunk.
fn feed<R: Read>(
    packed: &mut Hashed<'_, R>,
    table: &[u32],
    size: u64,
    to: &mpsc::SyncSender<Vec<Vec<u8>>>,
    cancel: &CancellationToken,
) -> Result<(), ApiError> {
    for (group, lengths) in (0u64..).zip(table.chunks(AT_ONCE)) {
        if cancel.is_cancelled() {
            return Err(ApiError::cancelled("the staging was discarded"));
        }
        let mut frames = Vec::with_capacity(AT_ONCE);
        for length in lengths {
            let mut frame = vec![0; *length as usize];
            packed.fill(&mut frame)?;
            frames.push(frame);
        }
        let chunks: Vec<Result<Vec<u8>, ApiError>> = std::thread::scope(|threads| {
            let numbered = (group * AT_ONCE as u64..).zip(&frames);
            let decoding: Vec<_> =
                numbered.map(|(chunk, frame)| threads.spawn(move || decompress(frame, chunk, size))).collect();
            let joined = decoding.into_iter().map(|thread| thread.join());
            joined
                .map(|chunk| chunk.unwrap_or_else(|_| Err(ApiError::internal("an unpacking thread panicked"))))
                .collect()
        });
        let chunks = chunks.into_iter().collect::<Result<Vec<_>, _>>()?;
        // The writer is gone where it failed, which it tells itself.
        if to.send(chunks).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

fn decompress(frame: &[u8], chunk: u64, size: u64) -> Result<Vec<u8>, ApiError> {
    if frame.is_empty() {
        return Ok(Vec::new());
    }
    let length = chunk_length(size, chunk);
    let mut bytes = vec![0; length];
    let got = zstd::bulk::decompress_to_buffer(frame, &mut bytes);
    match got {
        Ok(got) if got == length => Ok(bytes),
        Ok(got) => {
            Err(ApiError::invalid_argument(format!("chunk {chunk} of the bundle has {got} bytes instead of {length}")))
        }
        Err(error) => {
            Err(ApiError::invalid_argument(format!("chunk {chunk} of the bundle cannot be unpacked: {error}")))
        }
    }
}

/// Writes chunks as they come; gives the digest of all of them.
fn write(file: &File, size: u64, chunks: &mpsc::Receiver<Vec<Vec<u8>>>, progress: &Reporter) -> io::Result<String> {
    let (mut hasher, zeros) = (Sha256::new(), vec![0; CHUNK]);
    for (chunk, bytes) in (0u64..).zip(chunks.iter().flatten()) {
        let length = chunk_length(size, chunk);
        let bytes = if bytes.is_empty() { &zeros[..length] } else { &bytes[..] };
        hasher.update(bytes);
        write_sparse(file, chunk * CHUNK as u64, bytes, &zeros)?;
        progress.add(length as u64);
    }
    Ok(format!("sha256:{}", hex::encode(hasher.finalize())))
}

/// Writes what is not zeros, in as few writes as there are stretches of it.
fn write_sparse(file: &File, offset: u64, bytes: &[u8], zeros: &[u8]) -> io::Result<()> {
    let (mut from, mut at) = (0, 0);
    for block in bytes.chunks(BLOCK) {
        if block == &zeros[..block.len()] {
            if from < at {
                file.write_all_at(&bytes[from..at], offset + from as u64)?;
            }
            from = at + block.len();
        }
        at += block.len();
    }
    if from < at {
        file.write_all_at(&bytes[from..at], offset + from as u64)?;
    }
    Ok(())
}

/// A reader that hashes what it gives.
struct Hashed<'a, R> {
    inner: R,
    hasher: Sha256,
    digest: &'a str,
}

impl<R: Read> Hashed<'_, R> {
    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), ApiError> {
        self.inner.read_exact(buffer).map_err(|error| self.broken(&error))?;
        self.hasher.update(&*buffer);
        Ok(())
    }

    /// The digest, once nothing is left.
    fn end(mut self) -> Result<String, ApiError> {
        match self.inner.read(&mut [0]) {
            Ok(0) => Ok(format!("sha256:{}", hex::encode(self.hasher.finalize()))),
            Ok(_) => Err(mismatch("the bundle's layer (longer than its table says)", self.digest, "longer")),
            Err(error) => Err(self.broken(&error)),
        }
    }

    fn broken(&self, error: &io::Error) -> ApiError {
        if let Some(error) = told(error) {
            return error;
        }
        match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                mismatch("the bundle's layer (shorter than its table says)", self.digest, "shorter")
            }
            _ => ApiError::unavailable(format!("the bundle's layer {} cannot be read: {error}", self.digest)),
        }
    }
}
