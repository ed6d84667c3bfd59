//! **Packing** a root filesystem for a bundle.

use std::{
    fs::File,
    io::{self, Seek, SeekFrom, Write},
    os::unix::fs::FileExt,
    path::Path,
};

use contract::ApiError;
use nix::unistd::{Whence, lseek};
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use super::{
    packing::{AT_ONCE, CHUNK, LEVEL, chunk_length, chunks, header},
    superblock,
};
use crate::{
    files,
    image::{ImageOptions, identity::digest_of_file, progress::Reporter, storage_error},
};

/// A packed root filesystem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::image) struct Packed {
    /// Of the layer.
    pub digest: String,
    /// Bytes of the layer.
    pub size: u64,
    /// Of the root filesystem itself.
    pub raw_digest: String,
    /// Bytes of the root filesystem.
    pub raw_size: u64,
}

/// Its name in the directory it is packed in.
pub(in crate::image) const PACKED: &str = "rootfs.zst";

/// Packs an image's root filesystem in a fresh directory.
///
/// # Errors
/// It is none, the disk is full, a file cannot be read or written, or it was called off.
pub(in crate::image) async fn packed(
    rootfs: &Path,
    dir: &Path,
    options: &ImageOptions,
    progress: &Reporter,
    cancel: &CancellationToken,
) -> Result<Packed, ApiError> {
    let (rootfs, dir, reserve) = (rootfs.to_owned(), dir.to_owned(), options.limits.reserve);
    let (progress, cancel) = (progress.clone(), cancel.clone());
    // Not abandoned on a cancel, which it looks out for itself: nothing may write there once this has ended.
    let packing = tokio::task::spawn_blocking(move || {
        files::remove_dir(&dir).map_err(|error| storage_error(&dir, &error))?;
        std::fs::create_dir(&dir).map_err(|error| storage_error(&dir, &error))?;
        let size = std::fs::metadata(&rootfs).map_err(|error| storage_error(&rootfs, &error))?;
        superblock::check(&rootfs, size.len())?;
        room(&dir, allocated(&size).saturating_add(reserve))?;
        pack(&rootfs, &dir.join(PACKED), &progress, &cancel)
    });
    packing.await.map_err(|error| ApiError::internal(format!("the packing failed: {error}")))?
}

fn allocated(metadata: &std::fs::Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::blocks(metadata) * 512
}

/// Packed, an image is smaller than what it takes of the disk.
fn room(dir: &Path, needed: u64) -> Result<(), ApiError> {
    let free = files::free_bytes(dir).map_err(|error| storage_error(dir, &error))?;
    if free >= needed {
        return Ok(());
    }
    Err(ApiError::resource_exhausted(format!(
        "the host's disk has {} MiB free and packing the image needs up to {} MiB",
        free >> 20,
        needed >> 20
    ))
    .hint("remove images with `warren image rm`, or give the host more disk"))
}

/// Packs `rootfs` into the file `into`. Blocking.
///
/// # Errors
/// A file cannot be read or written, or it was cancelled.
pub(in crate::image) fn pack(
    rootfs: &Path,
    into: &Path,
    progress: &Reporter,
    cancel: &CancellationToken,
) -> Result<Packed, ApiError> {
    let source = File::open(rootfs).map_err(|error| storage_error(rootfs, &error))?;
    let raw_size = source.metadata().map_err(|error| storage_error(rootfs, &error))?.len();
    progress.phase("packing", raw_size);
    let sink = File::create(into).map_err(|error| storage_error(into, &error))?;
    let raw_digest = frames(&source, raw_size, sink, progress, cancel).map_err(|error| match error {
        Broken::Read(error) => storage_error(rootfs, &error),
        Broken::Write(error) => storage_error(into, &error),
        Broken::Cancelled => ApiError::cancelled("the packing was called off"),
    })?;
    let hashed = digest_of_file(into, |_| !cancel.is_cancelled());
    let (digest, size) = hashed.map_err(|error| match error.kind() {
        io::ErrorKind::Interrupted => ApiError::cancelled("the packing was called off"),
        _ => storage_error(into, &error),
    })?;
    Ok(Packed { digest, size, raw_digest, raw_size })
}

enum Broken {
    Read(io::Error),
    Write(io::Error),
    Cancelled,
}

/// Writes the frames, then the table before them; gives the digest of what was read.
fn frames(
    source: &File,
    size: u64,
    mut sink: File,
    progress: &Reporter,
    cancel: &CancellationToken,
) -> Result<String, Broken> {
    let count = chunks(size);
    let mut table = vec![0u32; usize::try_from(count).map_err(|_| Broken::Read(io::ErrorKind::FileTooLarge.into()))?];
    sink.seek(SeekFrom::Start(header(size, &table).len() as u64)).map_err(Broken::Write)?;
    let (mut hasher, zeros, mut hole) = (Sha256::new(), vec![0; CHUNK], Holes::default());
    let mut room = vec![vec![0; CHUNK]; AT_ONCE];
    let mut next = 0;
    while next < count {
        if cancel.is_cancelled() {
            return Err(Broken::Cancelled);
        }
        let group: Vec<u64> = (next..count).take(AT_ONCE).collect();
        next += group.len() as u64;
        for (chunk, buffer) in group.iter().zip(&mut room) {
            let length = chunk_length(size, *chunk);
            buffer.resize(length, 0);
            let offset = chunk * CHUNK as u64;
            if hole.covers(source, offset, length as u64).map_err(Broken::Read)? {
                buffer.copy_from_slice(&zeros[..length]);
            } else {
                source.read_exact_at(buffer, offset).map_err(Broken::Read)?;
            }
        }
        let read = &room[..group.len()];
        // Hashing goes on beside compressing.
        let packed: Vec<io::Result<Vec<u8>>> = std::thread::scope(|threads| {
            let packing: Vec<_> = read.iter().map(|buffer| threads.spawn(|| compress(buffer, &zeros))).collect();
            read.iter().for_each(|buffer| hasher.update(buffer));
            let joined = packing.into_iter().map(|thread| thread.join());
            joined.map(|frame| frame.unwrap_or_else(|_| Err(io::Error::other("a packing thread panicked")))).collect()
        });
        for (chunk, frame) in group.iter().zip(packed) {
            let frame = frame.map_err(Broken::Write)?;
            sink.write_all(&frame).map_err(Broken::Write)?;
            if let (Ok(at), Ok(length)) = (usize::try_from(*chunk), u32::try_from(frame.len())) {
                table[at] = length;
            }
        }
        progress.add(read.iter().map(|buffer| buffer.len() as u64).sum());
    }
    sink.write_all_at(&header(size, &table), 0).map_err(Broken::Write)?;
    Ok(format!("sha256:{}", hex::encode(hasher.finalize())))
}

/// The frame of a chunk; nothing for zeros.
fn compress(chunk: &[u8], zeros: &[u8]) -> io::Result<Vec<u8>> {
    if chunk == &zeros[..chunk.len()] {
        return Ok(Vec::new());
    }
    let mut compressor = zstd::bulk::Compressor::new(LEVEL)?;
    compressor.include_checksum(true)?;
    compressor.compress(chunk)
}

/// Where the file's next data begins, as far as that was asked for: holes are not read.
#[derive(Default)]
struct Holes {
    data_from: u64,
}

impl Holes {
    fn covers(&mut self, file: &File, offset: u64, length: u64) -> io::Result<bool> {
        if self.data_from < offset {
            let from = i64::try_from(offset).map_err(io::Error::other)?;
            self.data_from = match lseek(file, from, Whence::SeekData) {
                Ok(found) => found.unsigned_abs(),
                Err(nix::errno::Errno::ENXIO) => u64::MAX,
                // A filesystem that knows no holes: then all is data.
                Err(_) => offset,
            };
        }
        Ok(self.data_from >= offset + length)
    }
}
