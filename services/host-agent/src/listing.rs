//! The **listing** of a directory, as inventories tell of it: what is in it, how old that is and what it takes of the disk.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// How deep a directory is looked into for its size: a kernel's modules are eight below theirs.
const DEPTH_MAX: usize = 16;

/// What is in a directory, and whether it is a directory itself.
///
/// # Errors
/// It cannot be read.
pub fn names(dir: &Path) -> io::Result<Vec<(String, bool)>> {
    fs::read_dir(dir)?
        .map(|entry| {
            let entry = entry?;
            Ok((entry.file_name().to_string_lossy().into_owned(), entry.file_type()?.is_dir()))
        })
        .collect()
}

/// Since when a file is as it is. Not its modification time, which archives and tools set as they like.
pub fn age(metadata: &fs::Metadata) -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.saturating_sub(Duration::from_secs(metadata.ctime().try_into().unwrap_or_default()))
}

/// What the files below a directory take, in bytes; what goes meanwhile counts for nothing. Links are not followed.
pub fn disk_bytes(dir: &Path) -> u64 {
    below(dir, DEPTH_MAX)
}

fn below(dir: &Path, depth: usize) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() && depth > 0 => below(&entry.path(), depth - 1),
            Ok(metadata) => metadata.blocks() * 512,
            Err(_) => 0,
        })
        .sum()
}
