//! What **goes** when the cache is too large: the least recently used first, never what is in use.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use crate::files;

/// Nobody will go on with a download that was cut off so long ago.
const PART_AGE: Duration = Duration::from_secs(7 * 24 * 3600);

/// What a cache holds, or what went of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheUsage {
    /// Blobs, whole and partial.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
}

struct Kept {
    used: SystemTime,
    bytes: u64,
    path: PathBuf,
}

/// Removes files until no more than `limit` bytes are left, or nothing that may go; gives what is left and what went. Each is asked for at the
/// moment it would go, by its blob's hash: nothing means that it stays, and what is given is kept until it is gone.
pub(super) fn trim<T>(
    dir: &Path,
    limit: u64,
    may_go: impl Fn(&str) -> Option<T>,
) -> io::Result<(CacheUsage, CacheUsage)> {
    let mut all = list(dir)?;
    all.sort_by_key(|kept| kept.used);
    let (mut left, mut gone) = (CacheUsage::default(), CacheUsage::default());
    for kept in &all {
        (left.blobs, left.bytes) = (left.blobs + 1, left.bytes + kept.bytes);
    }
    let now = SystemTime::now();
    for kept in &all {
        let old = kept.path.extension().is_some() && now.duration_since(kept.used).is_ok_and(|age| age > PART_AGE);
        if left.bytes <= limit && !old {
            continue;
        }
        let name = kept.path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let Some(_turn) = may_go(name.split('.').next().unwrap_or_default()) else { continue };
        files::remove_file(&kept.path)?;
        (left.blobs, left.bytes) = (left.blobs - 1, left.bytes - kept.bytes);
        (gone.blobs, gone.bytes) = (gone.blobs + 1, gone.bytes + kept.bytes);
    }
    Ok((left, gone))
}

fn list(dir: &Path) -> io::Result<Vec<Kept>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let metadata = match entry.metadata() {
            Ok(metadata) => metadata,
            // Renamed or removed since.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        all.push(Kept { used: metadata.modified()?, bytes: metadata.len(), path: entry.path() });
    }
    Ok(all)
}
