//! The **stat cache**: what was read of a file before, kept with the file's length, times and inode, so that a repeated capture
//! reads nothing that has not changed.

use std::{
    collections::HashMap,
    fs::{self, Metadata},
    io::Write,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use sha2::{Digest, Sha256};

use crate::cache::make_private;

/// A file whose times are this near to the moment it was read may change again within the same tick of its filesystem's clock, and
/// is read again: two seconds is the coarsest clock there is.
const RACY_NANOS: i128 = 2_000_000_000;
/// The first line of a cache; another one is none.
const MARK: &str = "warren stat cache 1";

/// What is known of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Known {
    stat: Stat,
    digest: String,
}

/// What changes when a file does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    size: u64,
    mtime: i128,
    ctime: i128,
    inode: u64,
}

impl Stat {
    pub(crate) fn of(metadata: &Metadata) -> Self {
        let nanos = |seconds: i64, nanos: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
        Self {
            size: metadata.len(),
            mtime: nanos(metadata.mtime(), metadata.mtime_nsec()),
            ctime: nanos(metadata.ctime(), metadata.ctime_nsec()),
            inode: metadata.ino(),
        }
    }
}

/// The cache of one directory.
#[derive(Debug, Default)]
pub(crate) struct StatCache {
    place: Option<PathBuf>,
    before: HashMap<Vec<u8>, Known>,
    now: Vec<(Vec<u8>, Known)>,
    fresh: bool,
}

impl StatCache {
    /// The cache of `root` below `dir`; an empty one where there is none that can be read.
    pub(crate) fn load(dir: &Path, root: &Path) -> Self {
        let name = hex::encode(Sha256::digest(root.as_os_str().as_encoded_bytes()));
        let place = dir.join("stat").join(name);
        let before = fs::read(&place).ok().and_then(|bytes| parse(&bytes)).unwrap_or_default();
        Self { place: Some(place), before, ..Self::default() }
    }

    /// The digest of a file that has not changed since it was read.
    pub(crate) fn get(&self, path: &[u8], stat: Stat) -> Option<&str> {
        self.before.get(path).filter(|known| known.stat == stat).map(|known| known.digest.as_str())
    }

    /// Notes a file that was read, or found unchanged, when `began` was the time.
    pub(crate) fn put(&mut self, path: &[u8], stat: Stat, digest: &str, began: SystemTime) {
        let began = began.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos().cast_signed());
        if stat.mtime.max(stat.ctime) + RACY_NANOS > began {
            return;
        }
        self.fresh |= self.get(path, stat).is_none();
        self.now.push((path.to_vec(), Known { stat, digest: digest.to_owned() }));
    }

    /// Keeps what was noted. A cache that cannot be written costs the next capture time, nothing else.
    pub(crate) fn save(&self) {
        let Some(place) = self.place.as_ref().filter(|_| self.fresh || self.now.len() != self.before.len()) else {
            return;
        };
        if let Err(error) = write(place, &self.now) {
            tracing::debug!(%error, "the stat cache was not written");
        }
    }
}

fn write(place: &Path, entries: &[(Vec<u8>, Known)]) -> std::io::Result<()> {
    let dir = place.parent().unwrap_or(Path::new("."));
    make_private(dir)?;
    let mut out = Vec::with_capacity(entries.len() * 128);
    writeln!(out, "{MARK}")?;
    for (path, Known { stat, digest }) in entries {
        write!(out, "{} {} {} {} {digest} ", stat.size, stat.mtime, stat.ctime, stat.inode)?;
        out.extend_from_slice(path);
        out.push(0);
    }
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    file.write_all(&out)?;
    file.persist(place).map_err(|error| error.error)?;
    Ok(())
}

fn parse(bytes: &[u8]) -> Option<HashMap<Vec<u8>, Known>> {
    let rest = bytes.strip_prefix(MARK.as_bytes())?.strip_prefix(b"\n")?;
    rest.split(|byte| *byte == 0).filter(|record| !record.is_empty()).map(record).collect()
}

fn record(record: &[u8]) -> Option<(Vec<u8>, Known)> {
    let mut parts = record.splitn(6, |byte| *byte == b' ');
    let mut word = || parts.next().and_then(|word| std::str::from_utf8(word).ok());
    let (size, mtime, ctime) = (word()?.parse().ok()?, word()?.parse().ok()?, word()?.parse().ok()?);
    let (inode, digest) = (word()?.parse().ok()?, word()?.to_owned());
    Some((parts.next()?.to_vec(), Known { stat: Stat { size, mtime, ctime, inode }, digest }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_is_known_until_it_changes_unless_it_was_racy() {
        let dir = tempfile::tempdir().unwrap();
        let root = Path::new("/some/where");
        let stat = Stat { size: 3, mtime: 5, ctime: 6, inode: 7 };
        let mut cache = StatCache::load(dir.path(), root);
        cache.put(b"a b\nc", stat, "d1", SystemTime::now());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos().cast_signed();
        cache.put(b"racy", Stat { ctime: now, ..stat }, "d2", SystemTime::now());
        cache.save();
        let again = StatCache::load(dir.path(), root);
        assert_eq!(again.get(b"a b\nc", stat), Some("d1"));
        assert_eq!(again.get(b"a b\nc", Stat { size: 4, ..stat }), None);
        assert_eq!(again.get(b"racy", Stat { ctime: now, ..stat }), None);
        fs::write(again.place.as_ref().unwrap(), "rubbish").unwrap();
        assert_eq!(StatCache::load(dir.path(), root).get(b"a b\nc", stat), None);
    }
}
