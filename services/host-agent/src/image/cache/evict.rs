//! What **goes** when the cache is too large: the least recently used first, never what is in use.

use std::{
    collections::HashSet,
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
    in_use: bool,
}

/// Removes files until no more than `limit` bytes are left, or nothing that may go; gives what is left and what went.
pub(super) fn trim(dir: &Path, limit: u64, in_use: &HashSet<String>) -> io::Result<(CacheUsage, CacheUsage)> {
    let mut all = list(dir, in_use)?;
    all.sort_by_key(|kept| kept.used);
    let (mut left, mut gone) = (CacheUsage::default(), CacheUsage::default());
    for kept in &all {
        (left.blobs, left.bytes) = (left.blobs + 1, left.bytes + kept.bytes);
    }
    let now = SystemTime::now();
    for kept in all.iter().filter(|kept| !kept.in_use) {
        let old = kept.path.extension().is_some() && now.duration_since(kept.used).is_ok_and(|age| age > PART_AGE);
        if left.bytes <= limit && !old {
            continue;
        }
        files::remove_file(&kept.path)?;
        (left.blobs, left.bytes) = (left.blobs - 1, left.bytes - kept.bytes);
        (gone.blobs, gone.bytes) = (gone.blobs + 1, gone.bytes + kept.bytes);
    }
    Ok((left, gone))
}

fn list(dir: &Path, in_use: &HashSet<String>) -> io::Result<Vec<Kept>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let metadata = match entry.metadata() {
            Ok(metadata) => metadata,
            // Renamed or removed since.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let path = entry.path();
        let hash = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        let in_use = in_use.contains(&hash);
        all.push(Kept { used: metadata.modified()?, bytes: metadata.len(), path, in_use });
    }
    Ok(all)
}
