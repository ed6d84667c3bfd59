//! A tar archive of a JetStream object store (ADR-20), plain or compressed with gzip or zstd: how a client that speaks only NATS hands in
//! files.

use std::{
    io::{self, Read},
    path::Path,
    sync::Arc,
};

use archive::{Owner, Place, pipe};
use async_nats::jetstream::object_store::{GetErrorKind, Object};
use bus::Bus;
use bytes::Bytes;
use contract::{ApiError, ErrorCode, worktree::About};
use tokio::{io::AsyncReadExt, sync::mpsc};

use super::{Fetched, Files, Turn, Unpacked};

/// The most bytes an archive may have when it is not compressed any more.
const BYTES_MAX: u64 = 8 << 30;
/// How much of an object is read at once.
const PIECE: usize = 64 * 1024;
/// What a gzip file begins with (RFC 1952, 2.3.1).
const GZIP: [u8; 2] = [0x1f, 0x8b];
/// What a zstd frame begins with (RFC 8878, 3.1.1).
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// Reads and unpacks an object, `bucket/name`.
///
/// # Errors
/// It is not there, no archive, damaged or too large.
pub async fn fetch(bus: &Bus, name: &str, cache: &Path, turn: Turn) -> Result<Fetched, ApiError> {
    let object = find(bus, name).await?;
    let scratch = cache.join("scratch");
    let dir = std::fs::create_dir_all(&scratch)
        .and_then(|()| tempfile::Builder::new().prefix("object-").tempdir_in(&scratch))
        .map_err(|error| {
            ApiError::failed_precondition(format!("{} cannot be written: {error}", scratch.display()))
                .hint("the operator of workspace-service chooses another cache with WARREN_GIT_CACHE")
        })?;
    let (sender, reader) = pipe::inward();
    // Its turn is over when it has ended, whether or not anybody waits for it still.
    let unpacking = tokio::task::spawn_blocking(move || Ok::<_, io::Error>((unpack(reader, Unpacked(dir))?, turn)));
    let read = feed(object, sender).await;
    let unpacked = unpacking.await.map_err(|error| ApiError::internal(format!("unpacking failed: {error}")))?;
    let ((unpacked, walked), turn) = match (read, unpacked) {
        // What the reader says of a stream that ended early is no news.
        (Err(error), _) => return Err(ApiError::unavailable(format!("the object {name} cannot be read: {error}"))),
        (Ok(()), Err(error)) => {
            return Err(ApiError::invalid_argument(format!("the object {name} cannot be unpacked: {error}"))
                .hint("it has to be a tar archive, plain or compressed with gzip or zstd"));
        }
        (Ok(()), Ok(done)) => done,
    };
    Ok(Fetched {
        tree: Arc::new(walked.tree),
        about: About { origin: format!("object {name}"), ..About::default() },
        warnings: walked.warnings,
        files: Arc::new(Files::Unpacked(unpacked)),
        _turn: turn,
    })
}

async fn find(bus: &Bus, name: &str) -> Result<Object, ApiError> {
    let absent = || {
        ApiError::not_found(format!("there is no object {name}"))
            .hint("`nats object put BUCKET FILE` puts one there, `nats object ls BUCKET` lists them")
    };
    let (bucket, object) = name.split_once('/').ok_or_else(absent)?;
    let store = bus.jetstream().get_object_store(bucket).await.map_err(|error| {
        tracing::debug!(%error, bucket, "an object store was not found");
        absent()
    })?;
    store.get(object).await.map_err(|error| match error.kind() {
        GetErrorKind::NotFound => absent(),
        _ => ApiError::new(ErrorCode::Unavailable, format!("the object {name} cannot be read: {error}")),
    })
}

/// Passes the object on to its end; it checks its digest there. Whoever unpacks may have had enough before.
async fn feed(mut object: Object, pieces: mpsc::Sender<Bytes>) -> io::Result<()> {
    loop {
        let mut piece = vec![0; PIECE];
        let count = object.read(&mut piece).await?;
        piece.truncate(count);
        if pieces.send(piece.into()).await.is_err() || count == 0 {
            return Ok(());
        }
    }
}

fn unpack(reader: pipe::Reader, dir: Unpacked) -> io::Result<(Unpacked, tree::Walked)> {
    let path = dir.0.path().to_owned();
    let text = path.to_str().ok_or_else(|| io::Error::other("the cache's path is not UTF-8"))?;
    let place = Place::find(text, true, Owner::Own).map_err(io::Error::other)?;
    let plain = Bounded { from: decompressed(reader)?, left: BYTES_MAX };
    place.unpack(plain, || Ok(()))?;
    let walked = tree::walk(&path, |_, _| true)?;
    if walked.tree.entries().is_empty() {
        return Err(io::Error::other("it holds no files"));
    }
    Ok((dir, walked))
}

fn decompressed(mut reader: pipe::Reader) -> io::Result<Box<dyn Read>> {
    let mut start = Vec::new();
    reader.by_ref().take(ZSTD.len() as u64).read_to_end(&mut start)?;
    let (gzip, zstd) = (start.starts_with(&GZIP), start == ZSTD);
    let whole = Read::chain(io::Cursor::new(start), reader);
    Ok(match (gzip, zstd) {
        (true, _) => Box::new(flate2::read::MultiGzDecoder::new(whole)),
        (_, true) => Box::new(zstd::Decoder::new(whole)?),
        _ => Box::new(whole),
    })
}

/// Fails after so many bytes: a small object may be a large archive.
struct Bounded<R> {
    from: R,
    left: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.from.read(buffer)?;
        self.left = self
            .left
            .checked_sub(count as u64)
            .ok_or_else(|| io::Error::other(format!("it has more than {} GiB", BYTES_MAX >> 30)))?;
        Ok(count)
    }
}
