//! Threads that work on one layer at once: one inflates, one hashes, and the caller's applies what comes.

use std::{
    io::{self, BufRead, BufReader, Read},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
};

use contract::ApiError;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use super::Packed;
use crate::image::{cache::told, limits::Limits, progress::Reporter, source::mismatch};

/// A chunk's bytes.
const CHUNK: usize = 256 << 10;
/// Chunks between two threads: enough that none waits for the other's next step, 1 MiB at the most.
const CHUNKS: usize = 4;
/// The largest window a zstd frame may ask for, as a power of two (32 MiB): more is more memory than a host gives a layer.
const WINDOW: u32 = 25;

type Chunk = Arc<Piece>;

/// Bytes of a chunk, whose memory is used again when nobody reads them any more.
#[derive(Default)]
struct Piece {
    bytes: Vec<u8>,
    spare: Spare,
}

impl Drop for Piece {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        self.spare.lock().unwrap_or_else(PoisonError::into_inner).push(bytes);
    }
}

/// Memory of chunks that were read: never more than there were chunks at once.
type Spare = Arc<Mutex<Vec<Vec<u8>>>>;

/// What was inflated, as it comes.
pub(super) struct Chunks {
    receiver: Receiver<Chunk>,
    chunk: Chunk,
    at: usize,
}

impl Read for Chunks {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let bytes = self.fill_buf()?;
        let count = bytes.len().min(into.len());
        into[..count].copy_from_slice(&bytes[..count]);
        self.consume(count);
        Ok(count)
    }
}

impl BufRead for Chunks {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.chunk.bytes.len()
            && let Ok(chunk) = self.receiver.recv()
        {
            (self.chunk, self.at) = (chunk, 0);
        }
        Ok(&self.chunk.bytes[self.at..])
    }

    fn consume(&mut self, count: usize) {
        self.at += count;
    }
}

/// Why a layer was not applied.
pub(super) struct Failure {
    pub error: ApiError,
    /// It may be that the bytes are not those their author sent: what their digest says then goes first.
    pub doubtful: bool,
}

/// What the thread that inflates goes by.
struct Inflate<'a> {
    digest: String,
    packed: u64,
    /// What the image's layers may still unpack to.
    budget: u64,
    limits: &'a Limits,
    progress: &'a Reporter,
    cancel: &'a CancellationToken,
    doubtful: &'a AtomicBool,
}

/// Unpacks a layer through `apply`, which must read it to its end; gives its length unpacked.
pub(super) fn unpack(
    packed: Packed,
    budget: u64,
    limits: &Limits,
    progress: &Reporter,
    cancel: &CancellationToken,
    apply: impl FnOnce(&mut Chunks) -> Result<(), Failure>,
) -> Result<u64, ApiError> {
    let (to_apply, receiver) = sync_channel(CHUNKS);
    let (to_hash, hashed) = sync_channel(CHUNKS);
    let doubtful = AtomicBool::new(false);
    let Packed { descriptor, diff_id, reader } = packed;
    let inflate = Inflate {
        digest: descriptor.digest,
        packed: descriptor.size,
        budget,
        limits,
        progress,
        cancel,
        doubtful: &doubtful,
    };
    let failed = |error: io::Error| ApiError::internal(format!("no thread can be started: {error}"));
    let died = |_| ApiError::internal("a thread that unpacked a layer failed");
    let (applied, inflated, digest) = thread::scope(|scope| {
        let inflating = thread::Builder::new().name("image-inflate".to_owned());
        let inflating =
            inflating.spawn_scoped(scope, move || inflate.run(reader, &[to_apply, to_hash])).map_err(failed)?;
        let hashing = thread::Builder::new().name("image-hash".to_owned());
        let hashing = hashing.spawn_scoped(scope, move || hash(&hashed)).map_err(failed)?;
        let mut chunks = Chunks { receiver, chunk: Chunk::default(), at: 0 };
        let applied = apply(&mut chunks);
        doubtful.store(applied.as_ref().is_err_and(|failure| failure.doubtful), Ordering::Release);
        // The one that inflates finds out that nobody wants more.
        drop(chunks);
        Ok::<_, ApiError>((applied, inflating.join().map_err(died)?, hashing.join().map_err(died)?))
    })?;
    let length = inflated?;
    applied.map_err(|failure| failure.error)?;
    match diff_id {
        Some(said) if said != digest => Err(mismatch("an unpacked layer", &said, &digest)),
        _ => Ok(length),
    }
}

fn hash(chunks: &Receiver<Chunk>) -> String {
    let mut hasher = Sha256::new();
    for chunk in chunks {
        hasher.update(&chunk.bytes);
    }
    format!("sha256:{}", hex::encode(hasher.finalize()))
}

impl Inflate<'_> {
    /// Inflates until the end, or until nobody takes more; gives the length.
    fn run(&self, reader: Box<dyn Read + Send>, to: &[SyncSender<Chunk>; 2]) -> Result<u64, ApiError> {
        let mut input = BufReader::with_capacity(CHUNK, Counted { reader, progress: self.progress });
        let inflated = self.inflate(&mut input, to);
        let doubtful = match &inflated {
            // Nobody wanted more of it before its end: whether that is a doubt knows who left.
            Ok((_, whole)) => *whole,
            Err(error) => error.code == contract::ErrorCode::InvalidArgument && !error.message.contains(TOO_MUCH),
        };
        if doubtful || self.doubtful.load(Ordering::Acquire) {
            self.rest(&mut input)?;
        }
        inflated.map(|(length, _)| length)
    }

    /// Reads what is left of the packed bytes: only at their end their digest is known.
    fn rest(&self, input: &mut dyn BufRead) -> Result<(), ApiError> {
        loop {
            self.wanted()?;
            let count = input.fill_buf().map_err(|error| self.fail(&error))?.len();
            if count == 0 {
                return Ok(());
            }
            input.consume(count);
        }
    }

    fn inflate(&self, input: &mut dyn BufRead, to: &[SyncSender<Chunk>; 2]) -> Result<(u64, bool), ApiError> {
        let magic = input.fill_buf().map_err(|error| self.fail(&error))?;
        // What the bytes are decides, not what the media type says; they must agree with the diff id anyway.
        let mut reader: Box<dyn Read + '_> = match magic {
            [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => {
                let mut decoder = zstd::Decoder::with_buffer(input).map_err(|error| self.fail(&error))?;
                decoder.window_log_max(WINDOW).map_err(|error| self.fail(&error))?;
                Box::new(decoder)
            }
            _ => Box::new(input),
        };
        let (mut length, spare) = (0, Spare::default());
        loop {
            self.wanted()?;
            let again = spare.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let mut bytes = again.unwrap_or_default();
            bytes.resize(CHUNK, 0);
            let count = fill(&mut reader, &mut bytes).map_err(|error| self.fail(&error))?;
            if count == 0 {
                return Ok((length, true));
            }
            bytes.truncate(count);
            length += count as u64;
            self.check(length)?;
            let chunk = Chunk::new(Piece { bytes, spare: spare.clone() });
            if to.iter().any(|to| to.send(chunk.clone()).is_err()) {
                return Ok((length, false));
            }
        }
    }

    fn wanted(&self) -> Result<(), ApiError> {
        match self.cancel.is_cancelled() {
            true => Err(ApiError::cancelled("the staging was discarded")),
            false => Ok(()),
        }
    }

    fn check(&self, length: u64) -> Result<(), ApiError> {
        let bomb = length > self.limits.ratio_from && length / self.limits.ratio > self.packed.max(1);
        if length <= self.budget && !bomb {
            return Ok(());
        }
        let error = ApiError::invalid_argument(format!(
            "the layer {} {TOO_MUCH}: {length} bytes and more from {}",
            self.digest, self.packed
        ));
        Err(error.hint("the host takes more with WARREN_IMAGE_BYTES and WARREN_IMAGE_RATIO"))
    }

    fn fail(&self, error: &io::Error) -> ApiError {
        told(error).unwrap_or_else(|| {
            ApiError::invalid_argument(format!("the layer {} cannot be unpacked: {error}", self.digest))
        })
    }
}

/// Tells how many packed bytes were read: how many there are is known, unlike what they unpack to.
struct Counted<'a> {
    reader: Box<dyn Read + Send>,
    progress: &'a Reporter,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(buffer)?;
        self.progress.add(count as u64);
        Ok(count)
    }
}

/// What is said of a layer that unpacks to more than a host takes.
const TOO_MUCH: &str = "unpacks to too much";

/// Reads until the buffer is full or nothing more comes.
fn fill(reader: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut count = 0;
    while count < buffer.len() {
        match reader.read(&mut buffer[count..]) {
            Ok(0) => break,
            Ok(more) => count += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(count)
}
