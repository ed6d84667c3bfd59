//! The **cache** of fetched repositories: bounded by bytes, the least recently used goes first. Processes of one machine share it: who
//! uses it holds its lock with others, who removes something holds it alone.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use contract::{ApiError, ErrorCode};
use nix::fcntl::{Flock, FlockArg};

/// How many bytes of repositories stay when nothing else is said.
pub const BYTES: u64 = 10 << 30;
/// What lies in `scratch` for this long is nobody's any more: longer than a prepare may take.
const STALE: Duration = Duration::from_secs(2 * 3600);
/// The name of the lock in the cache, and in each repository.
const LOCK: &str = "warren.lock";

/// Keeps everything in the cache for as long as the lock lives.
///
/// # Errors
/// The cache cannot be made or locked.
pub fn used(cache: &Path) -> Result<Flock<File>, ApiError> {
    let cannot = |error: &io::Error| {
        ApiError::new(ErrorCode::FailedPrecondition, format!("the cache {} cannot be used: {error}", cache.display()))
            .hint("the operator of workspace-service chooses another with WARREN_GIT_CACHE")
    };
    // Of repositories that others may not read.
    let made = DirBuilder::new().recursive(true).mode(0o700).create(cache);
    made.map_err(|error| cannot(&error))?;
    let file = File::options().create(true).truncate(false).write(true).open(cache.join(LOCK));
    let file = file.map_err(|error| cannot(&error))?;
    Flock::lock(file, FlockArg::LockShared).map_err(|(_, error)| cannot(&error.into()))
}

/// Removes repositories, the least recently used first, until the rest has at most so many bytes. While others use the cache it is
/// left as it is: whoever comes last does it.
pub fn evict(cache: &Path, bytes: u64) {
    let Ok(file) = File::options().write(true).open(cache.join(LOCK)) else { return };
    let Ok(_alone) = Flock::lock(file, FlockArg::LockExclusiveNonblock) else { return };
    let mut found: Vec<(SystemTime, u64, PathBuf)> = directories(&cache.join("remotes"))
        .into_iter()
        .map(|path| {
            // Whoever fetches opens the lock anew, which is a use.
            let used = fs::metadata(path.join(LOCK)).and_then(|lock| lock.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
            (used, size(&path), path)
        })
        .collect();
    found.sort();
    let mut total: u64 = found.iter().map(|(_, size, _)| size).sum();
    for (_, size, path) in found {
        if total <= bytes {
            return;
        }
        match fs::remove_dir_all(&path) {
            Ok(()) => tracing::info!(path = %path.display(), size, "a fetched repository made room"),
            Err(error) => tracing::warn!(path = %path.display(), %error, "a fetched repository cannot be removed"),
        }
        total -= size;
    }
}

/// Removes what processes that died left in `scratch`.
pub fn sweep(cache: &Path) {
    for path in directories(&cache.join("scratch")) {
        let modified = fs::metadata(&path).and_then(|directory| directory.modified());
        if modified.is_ok_and(|then| then.elapsed().is_ok_and(|age| age > STALE)) {
            archive::make_removable(&path);
            if let Err(error) = fs::remove_dir_all(&path) {
                tracing::warn!(path = %path.display(), %error, "a dead process' files cannot be removed");
            }
        }
    }
}

fn directories(path: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(path) else { return Vec::new() };
    let entries = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    entries.map(|entry| entry.path()).collect()
}

fn size(path: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(path) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => size(&entry.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repository(cache: &Path, name: &str, bytes: usize, age: Duration) {
        let dir = cache.join("remotes").join(name);
        fs::create_dir_all(dir.join("objects")).unwrap();
        fs::write(dir.join("objects/pack"), vec![0; bytes]).unwrap();
        let lock = File::create(dir.join(LOCK)).unwrap();
        lock.set_modified(SystemTime::now() - age).unwrap();
    }

    fn left(cache: &Path) -> Vec<String> {
        let mut names: Vec<_> = directories(&cache.join("remotes"))
            .iter()
            .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn the_least_recently_used_make_room_unless_somebody_uses_the_cache() {
        let dir = tempfile::tempdir().unwrap();
        let cache = dir.path();
        let minutes = |n: u64| Duration::from_secs(60 * n);
        for (name, age) in [("old", 30), ("older", 40), ("new", 10)] {
            repository(cache, name, 1000, minutes(age));
        }
        let in_use = used(cache).unwrap();
        evict(cache, 0);
        assert_eq!(left(cache).len(), 3);
        drop(in_use);
        evict(cache, 2500);
        assert_eq!(left(cache), ["new", "old"]);
        evict(cache, 2000);
        assert_eq!(left(cache), ["new", "old"]);
        evict(cache, 1);
        assert!(left(cache).is_empty());
    }

    #[test]
    fn only_what_is_old_is_nobodys() {
        let dir = tempfile::tempdir().unwrap();
        let scratch = dir.path().join("scratch");
        for name in ["dead", "alive"] {
            fs::create_dir_all(scratch.join(name)).unwrap();
        }
        File::open(scratch.join("dead")).unwrap().set_modified(SystemTime::now() - 2 * STALE).unwrap();
        sweep(dir.path());
        assert!(scratch.join("alive").exists() && !scratch.join("dead").exists());
    }
}
