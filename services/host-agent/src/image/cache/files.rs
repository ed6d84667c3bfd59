//! The cache's **files**: `<hex>` of whole blobs, `<hex>.<size>.part` of those whose download was cut off. Nothing is synced: after a power cut
//! a whole blob is checked by its first reader, and a part when it is whole.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use bytes::Bytes;
use contract::ApiError;
use tokio::sync::{OwnedMutexGuard, mpsc};

use super::{Cache, blob::Content, check::Check};
use crate::{
    files,
    image::{high_water::HighWater, storage_error},
};

/// After so many bytes it is looked whether the disk has room.
const LOOK: u64 = 16 << 20;
/// How much of a part is read at once.
const PIECE: usize = 1 << 20;

/// A whole blob's place.
pub(super) fn whole(dir: &Path, digest: &str) -> PathBuf {
    dir.join(digest.trim_start_matches("sha256:"))
}

/// Where a blob is while it comes. The size is a manifest's, which may lie: who tells another one begins elsewhere.
pub(super) fn part(dir: &Path, digest: &str, size: u64) -> PathBuf {
    whole(dir, digest).with_extension(format!("{size}.part"))
}

/// What is there of a blob.
pub(super) enum Local {
    Whole(Arc<File>),
    Part(Box<Writer>),
}

/// Opens what is there of a blob, beginning it where nothing is. Blocking; a part is read and hashed again.
pub(super) fn open(cache: &Cache, digest: &str, size: u64) -> Result<Local, ApiError> {
    let path = whole(&cache.dir, digest);
    match File::open(&path) {
        Ok(file) => {
            let length = file.metadata().map_err(|error| storage_error(&path, &error))?.len();
            if length == size {
                // Used now: the least recently used go first.
                file.set_modified(SystemTime::now()).map_err(|error| storage_error(&path, &error))?;
                return Ok(Local::Whole(Arc::new(file)));
            }
            // A manifest is believed less than bytes are: only what is not that blob goes.
            if cache.is_proven(digest) || is(&file, digest, length).map_err(|error| storage_error(&path, &error))? {
                cache.proven(digest);
                return Err(ApiError::failed_precondition(format!(
                    "the manifest lies: it gives {digest} {size} bytes, and it has {length}"
                )));
            }
            files::remove_file(&path).map_err(|error| storage_error(&path, &error))?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(storage_error(&path, &error)),
    }
    Writer::open(cache, digest, size).map(|writer| Local::Part(Box::new(writer)))
}

/// Whether a file is the blob its name says.
fn is(file: &File, digest: &str, length: u64) -> io::Result<bool> {
    let (mut check, mut piece) = (Check::new(digest, length), vec![0; PIECE]);
    loop {
        match (&mut &*file).read(&mut piece)? {
            0 => return Ok(check.finish().is_ok()),
            count => check.update(&piece[..count]),
        }
    }
}

/// Writes a part, and makes it a whole blob at its end.
pub(super) struct Writer {
    file: Arc<File>,
    check: Check,
    size: u64,
    part: PathBuf,
    whole: PathBuf,
    high_water: HighWater,
    /// How much was there already.
    begun: u64,
}

/// What a writer leaves.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Written {
    /// A whole, proven blob.
    Whole,
    /// A part that can be gone on with.
    Part,
    /// Nothing: what had come was not what the digest says.
    Nothing(ApiError),
}

impl Writer {
    fn open(cache: &Cache, digest: &str, size: u64) -> Result<Self, ApiError> {
        let (part, whole) = (part(&cache.dir, digest, size), whole(&cache.dir, digest));
        let fail = |error: io::Error| storage_error(&part, &error);
        let mut options = OpenOptions::new();
        let mut file = options.read(true).write(true).create(true).truncate(false).open(&part).map_err(fail)?;
        let mut check = Check::new(digest, size);
        if file.metadata().map_err(fail)?.len() > size {
            file.set_len(0).map_err(fail)?;
        }
        let mut piece = vec![0; PIECE];
        loop {
            match file.read(&mut piece).map_err(fail)? {
                0 => break,
                count => check.update(&piece[..count]),
            }
        }
        let (begun, high_water) = (check.length(), cache.high_water.clone());
        Ok(Self { file: Arc::new(file), check, size, part, whole, high_water, begun })
    }

    pub(super) fn file(&self) -> Arc<File> {
        self.file.clone()
    }

    pub(super) fn begun(&self) -> u64 {
        self.begun
    }

    /// Writes what comes until nothing does. Blocking; `_turn` is held until no file is touched any more.
    pub(super) fn run(
        mut self,
        mut pieces: mpsc::Receiver<Bytes>,
        content: &Content,
        _turn: OwnedMutexGuard<()>,
    ) -> Result<Written, ApiError> {
        let mut next_look = self.begun;
        while let Some(piece) = pieces.blocking_recv() {
            if self.check.length() >= next_look {
                self.high_water.check()?;
                next_look = self.check.length() + LOOK;
            }
            let written = self.file.write_all_at(&piece, self.check.length());
            written.map_err(|error| storage_error(&self.part, &error))?;
            self.check.update(&piece);
            content.grow(self.check.length());
        }
        if self.check.length() < self.size {
            return Ok(Written::Part);
        }
        match self.check.finish() {
            Ok(()) => {
                fs::rename(&self.part, &self.whole).map_err(|error| storage_error(&self.whole, &error))?;
                Ok(Written::Whole)
            }
            Err(error) => {
                files::remove_file(&self.part).map_err(|error| storage_error(&self.part, &error))?;
                Ok(Written::Nothing(error))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;

    #[test]
    fn a_manifest_that_lies_about_a_size_takes_nothing_away() {
        let state = tempfile::tempdir().unwrap();
        let cache = Cache::open(state.path(), 1 << 20, HighWater::new(state.path(), 100)).unwrap();
        let digest = |bytes: &[u8]| format!("sha256:{}", hex::encode(Sha256::digest(bytes)));
        let (here, comes, wrong) = (digest(b"here"), digest(b"comes"), digest(b"wrong"));
        fs::write(whole(&cache.dir, &here), "here").unwrap();
        fs::write(part(&cache.dir, &comes, 5), "com").unwrap();
        fs::write(whole(&cache.dir, &wrong), "other").unwrap();
        // As after a restart: this process has seen none of their bytes.
        for _ in 0..2 {
            let Err(error) = open(&cache, &here, 1) else { panic!("it is another size") };
            assert!(error.message.contains("lies"), "{error}");
        }
        assert!(matches!(open(&cache, &here, 4), Ok(Local::Whole(_))));
        assert!(matches!(open(&cache, &comes, 1), Ok(Local::Part(writer)) if writer.begun() == 0));
        assert!(matches!(open(&cache, &comes, 5), Ok(Local::Part(writer)) if writer.begun() == 3));
        assert!(matches!(open(&cache, &wrong, 3), Ok(Local::Part(_))));
        assert!(!whole(&cache.dir, &wrong).exists(), "it was not what its name says");
    }
}
