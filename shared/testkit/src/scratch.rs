//! Temporary directories whose owner can be seen to be dead, so that what a killed test run left can be removed.

use std::{
    fs::File,
    path::{Path, PathBuf},
};

/// The file below a scratch directory that its owner keeps locked while it lives.
const ALIVE: &str = ".alive";

/// A directory of a test's own, removed when dropped.
pub(crate) struct Scratch {
    dir: tempfile::TempDir,
    // The kernel lets go of the lock with the process, however that ends.
    _alive: File,
}

impl Scratch {
    /// Makes one below the system's temporary directory; the name begins with `prefix`.
    ///
    /// # Panics
    /// The directory or its lock cannot be made.
    pub(crate) fn new(prefix: &str) -> Self {
        let dir = tempfile::Builder::new().prefix(prefix).tempdir().expect("a temporary directory");
        // Locked before it has its name: who finds it by name never finds it free.
        let unnamed = dir.path().join(".alive.new");
        let alive = File::create(&unnamed).expect("a file in a directory of ours");
        alive.lock().expect("a file of ours can be locked");
        std::fs::rename(unnamed, dir.path().join(ALIVE)).expect("a file of ours can be renamed");
        Self { dir, _alive: alive }
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }
}

/// Hands each directory of that prefix whose owner is dead to `clear`, then removes it. Of several test processes
/// that look at once, one gets it.
pub(crate) fn sweep(prefix: &str, clear: impl Fn(&Path)) {
    for dir in of_prefix(prefix) {
        let Ok(alive) = File::open(dir.join(ALIVE)) else { continue };
        if alive.try_lock().is_err() {
            continue;
        }
        clear(&dir);
        if let Err(error) = std::fs::remove_dir_all(&dir) {
            eprintln!("{} of a killed test run stays: {error}", dir.display());
        }
    }
}

fn of_prefix(prefix: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix)).map(|entry| entry.path()).collect()
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn only_the_directories_of_the_dead_are_swept() {
        let live = Scratch::new("wsweep-");
        let dead = tempfile::Builder::new().prefix("wsweep-").tempdir().expect("a directory").keep();
        std::fs::write(dead.join(ALIVE), "").expect("a file in it");
        let seen = RefCell::new(Vec::new());
        sweep("wsweep-", |dir| seen.borrow_mut().push(dir.to_owned()));
        assert_eq!(seen.into_inner(), std::slice::from_ref(&dead));
        assert!(live.path().exists() && !dead.exists());
    }
}
