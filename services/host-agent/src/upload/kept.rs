//! What is **kept** of an upload: the file as far as it came, and a record of how far that is on the disk for sure. Blocking.

use std::{
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use archive::{prefix::Prefix, sparse};
use contract::SessionId;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::files;

/// The file's name in its directory.
pub const GIVEN: &str = "given";
/// The record's.
const RECORD: &str = "upload.json";
/// After so many bytes, or so long, what came is synced and recorded: that much comes again at the most after a crash. A sync takes a disk that
/// turns a tenth of a second.
const SYNC_BYTES: u64 = 16 << 20;
const SYNC_AFTER: Duration = Duration::from_secs(2);

/// How far an upload is on the disk.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Record {
    /// The stream it comes on, or came last.
    stream: SessionId,
    /// What is before this offset is there.
    at: u64,
    /// That prefix's digest.
    digest: String,
    /// The whole file's length, once it is whole.
    whole: Option<u64>,
}

/// An upload's file.
pub(super) struct Kept {
    dir: PathBuf,
    file: File,
    record: Record,
    prefix: Prefix,
    /// Bytes that came since the last sync, and when that was.
    since: u64,
    synced: Instant,
}

/// Makes an empty directory of it, but for an upload that came there earlier.
///
/// # Errors
/// It cannot be made, or something in it not be removed.
pub fn fresh(dir: &Path) -> io::Result<()> {
    if read(dir).is_none() {
        files::remove_dir(dir)?;
        return fs::create_dir(dir);
    }
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if [GIVEN, RECORD].iter().any(|kept| entry.file_name() == *kept) {
            continue;
        }
        let path = entry.path();
        if entry.file_type()?.is_dir() { files::remove_dir(&path)? } else { files::remove_file(&path)? }
    }
    Ok(())
}

/// Removes an upload, or another file that was given: it is needed no more.
///
/// # Errors
/// It cannot be removed.
pub fn forget(dir: &Path) -> io::Result<()> {
    files::remove_file(&dir.join(RECORD))?;
    files::remove_file(&dir.join(GIVEN))
}

fn read(dir: &Path) -> Option<Record> {
    serde_json::from_slice(&fs::read(dir.join(RECORD)).ok()?).ok()
}

impl Kept {
    /// What is there; of a new upload, which comes on `stream`, nothing. With it, whether an earlier agent had begun.
    ///
    /// # Errors
    /// The disk's, or `Interrupted` where it is to end.
    pub(super) fn open(dir: &Path, stream: SessionId, cancel: &CancellationToken) -> io::Result<(Self, bool)> {
        let found = read(dir);
        let begun = found.is_some();
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(!begun);
        let file = options.open(dir.join(GIVEN))?;
        let record = found.unwrap_or(Record { stream, at: 0, digest: String::new(), whole: None });
        let (since, synced) = (0, Instant::now());
        let mut kept = Self { dir: dir.to_owned(), file, record, prefix: Prefix::default(), since, synced };
        if kept.whole() {
            return Ok((kept, begun));
        }
        if begun && !kept.is_proven(cancel)? {
            tracing::warn!(dir = %dir.display(), "what was kept of an upload is damaged; it comes from its beginning");
            kept.prefix = Prefix::default();
        }
        kept.sync()?;
        Ok((kept, begun))
    }

    /// Whether the file begins as the record says.
    fn is_proven(&mut self, cancel: &CancellationToken) -> io::Result<bool> {
        let (prefix, length) = (&mut self.prefix, self.file.metadata()?.len());
        // Zeros at its end may never have been written.
        sparse::data_between(&self.file, 0, self.record.at.min(length), |at, bytes| {
            prefix.take(at, bytes);
            if cancel.is_cancelled() { Err(io::ErrorKind::Interrupted.into()) } else { Ok(()) }
        })?;
        prefix.take(self.record.at, &[]);
        prefix.cut();
        Ok(prefix.reached() == self.record.at && prefix.digest() == self.record.digest)
    }

    /// Whether all of it is here.
    pub(super) fn whole(&self) -> bool {
        let length = || self.file.metadata().map(|file| file.len()).ok();
        self.record.whole.is_some_and(|whole| length() == Some(whole))
    }

    /// The file, for who writes what [`Kept::take`] hears of.
    pub(super) fn file(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// Where it is.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The stream it comes on.
    pub(super) fn stream(&self) -> SessionId {
        self.record.stream
    }

    /// How far it is here, and the digest of that.
    pub(super) fn place(&self) -> (u64, String) {
        (self.prefix.reached(), self.prefix.digest())
    }

    /// Has been written there.
    ///
    /// # Errors
    /// The disk's.
    pub(super) fn take(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.prefix.take(at, bytes);
        self.since += bytes.len() as u64;
        if self.since >= SYNC_BYTES || self.synced.elapsed() >= SYNC_AFTER { self.record() } else { Ok(()) }
    }

    fn record(&mut self) -> io::Result<()> {
        self.file.sync_data()?;
        (self.record.at, self.record.digest) = self.place();
        (self.since, self.synced) = (0, Instant::now());
        self.save()
    }

    /// Begins or goes on at [`Kept::place`], on the stream of the record; what is behind is no more.
    fn sync(&mut self) -> io::Result<()> {
        self.prefix.cut();
        self.file.set_len(self.prefix.reached())?;
        self.record.whole = None;
        self.record()
    }

    /// Goes on with another stream.
    ///
    /// # Errors
    /// The disk's.
    pub(super) fn go_on(&mut self, stream: SessionId) -> io::Result<()> {
        self.record.stream = stream;
        self.sync()
    }

    /// All of it is here.
    ///
    /// # Errors
    /// The disk's.
    pub(super) fn complete(&mut self) -> io::Result<()> {
        self.file.sync_all()?;
        self.record.whole = Some(self.file.metadata()?.len());
        self.save()
    }

    fn save(&self) -> io::Result<()> {
        let record = serde_json::to_vec(&self.record).map_err(io::Error::other)?;
        files::write_atomically(&self.dir.join(RECORD), &record, 0o600)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    fn opened(dir: &Path) -> (Kept, bool) {
        Kept::open(dir, SessionId::new(), &CancellationToken::new()).unwrap()
    }

    #[test]
    fn what_came_is_there_for_the_next_agent_unless_it_is_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("staging");
        fs::create_dir(&dir).unwrap();
        let (mut kept, begun) = opened(&dir);
        assert_eq!((begun, kept.place().0), (false, 0));
        let stream = kept.stream();
        // A hole, data, zeros at its end, and a bit that is no whole block.
        kept.file.write_all_at(&[7; 5000], 1 << 20).unwrap();
        kept.take(1 << 20, &[7; 5000]).unwrap();
        kept.take(2 << 20, &[0; 8200]).unwrap();
        kept.record().unwrap();
        let place = kept.place();
        assert_eq!(place.0, (2 << 20) + 8192);
        drop(kept);

        fs::create_dir(dir.join("modules")).unwrap();
        fs::write(dir.join("rootfs"), "half").unwrap();
        fresh(&dir).unwrap();
        let (kept, begun) = opened(&dir);
        assert_eq!((begun, kept.place(), kept.stream()), (true, place, stream));
        assert_eq!(kept.file.metadata().unwrap().len(), (2 << 20) + 8192);
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 2, "the file and its record");
        kept.file.write_all_at(&[8], 1 << 20).unwrap();
        drop(kept);
        let (mut kept, begun) = opened(&dir);
        assert_eq!((begun, kept.place().0, kept.file.metadata().unwrap().len()), (true, 0, 0));
        kept.file.set_len(77).unwrap();
        kept.complete().unwrap();
        let (kept, _) = opened(&dir);
        assert!(kept.whole());
        forget(&dir).unwrap();
        fresh(&dir).unwrap();
        assert!(!opened(&dir).1);
    }
}
