//! **Merging** a text that was changed both here and in the VM, with git-merge-file(1).

use std::{fs, path::Path};

use crate::{error::WorktreeError, git::Git};

/// The longest text that is merged, in bytes.
pub(crate) const TEXT_MAX: u64 = 8 << 20;

/// The text with both changes; nothing where they touch, or it is no text.
pub(crate) fn merge(scratch: &Path, ours: &[u8], base: &[u8], theirs: &[u8]) -> Result<Option<Vec<u8>>, WorktreeError> {
    if [ours, base, theirs].iter().any(|text| text.contains(&0)) {
        return Ok(None);
    }
    for (name, text) in [("ours", ours), ("base", base), ("theirs", theirs)] {
        let path = scratch.join(name);
        fs::write(&path, text).map_err(WorktreeError::write(&path))?;
    }
    match Git::at(scratch).run(&["merge-file", "-p", "-q", "ours", "base", "theirs"]) {
        Ok(merged) => Ok(Some(merged)),
        // Its exit code is the number of conflicts.
        Err(WorktreeError::Git { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}
