//! The **cache**: what can be made again, kept in directories that are nobody else's to look into, since what is in them may be a secret's
//! only copy outside of its repository.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt,
    path::Path,
};

use contract::FileName;

use crate::{capture::Captured, error::WorktreeError, packs};

/// Makes a directory and those above it that are missing, for their owner alone.
pub(crate) fn make(dir: &Path) -> Result<(), WorktreeError> {
    make_private(dir).map_err(WorktreeError::write(dir))
}

/// As [`make`], for those with errors of their own.
pub(crate) fn make_private(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

impl Captured {
    /// Takes note that a file of the tree was not what the tree says when it was sent. A pack that was kept and is damaged is dropped, so that
    /// the next capture makes another.
    pub fn distrust(&self, path: &FileName) {
        let Some((above, name)) = path.0.iter().rposition(|byte| *byte == b'/').map(|slash| path.0.split_at(slash))
        else {
            return;
        };
        if !above.ends_with(b"/objects/pack") {
            return;
        }
        let name = String::from_utf8_lossy(&name[1..]).into_owned();
        let all = self.caches.iter().filter_map(|cache| fs::read_dir(cache.join(packs::DIRECTORY)).ok());
        for dir in all.flatten().flatten() {
            let pack = dir.path().join(&name);
            match fs::remove_file(&pack) {
                Ok(()) => tracing::warn!(pack = %pack.display(), "a pack of the cache was damaged and is made anew"),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => tracing::warn!(pack = %pack.display(), %error, "a damaged pack cannot be removed"),
            }
        }
    }
}
