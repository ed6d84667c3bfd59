//! A **squashfs** filesystem becomes an archive while it is read, by `sqfs2tar` in the cage of tools: it keeps owners, modes, times, extended
//! attributes, hard links and devices, and needs neither a mount nor a privilege.

use std::path::Path;

use contract::ApiError;

use super::{
    super::{storage_error, tool::Patient},
    Work, tree,
};

/// What the tool takes for the present time, which it has no use for.
const NOW: u64 = 1;
/// The root keeps what describes it, and what has no place in an archive is an error rather than left out.
const ARGUMENTS: [&str; 3] = ["--root-becomes", ".", "--no-skip"];

/// Writes its files as an ext4 filesystem.
///
/// # Errors
/// It is damaged, hostile, over a limit, the tool is missing, or the disk is full.
pub(super) fn write(work: &Work<'_>, given: &Path) -> Result<(), ApiError> {
    let patient = Patient::take(given, work.operation, NOW, work.cancel)?;
    let size = patient.file().metadata().map_err(|error| storage_error(given, &error))?.len();
    let archive = patient.stream("squashfs filesystem", "sqfs2tar", &ARGUMENTS, work.limits.unpacked)?;
    tree::unpack(work, size, 0, archive)
}
