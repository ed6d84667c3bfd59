//! **Mending**: the filesystem of a disk that was in use is made whole, small, and free of what was deleted in it.

use contract::ApiError;

use crate::image::{
    storage_error,
    tool::{Patient, Said},
};

/// Room beside what is in it: for a journal's move, and to work in before the disk is grown.
const SLACK: u64 = 64 << 20;
/// Sizes are multiples of this many bytes.
const STEP: u64 = 1 << 20;
/// Where a superblock is, and its length.
const SUPERBLOCK: (u64, usize) = (1024, 1024);

/// What `e2fsck` says with its exit code: nothing wrong, or mended.
fn sound(said: &Said) -> bool {
    said.code().is_some_and(|code| code & !3 == 0)
}

fn check(patient: &Patient<'_>, options: &[&str]) -> Result<Said, ApiError> {
    patient.run("e2fsck", options, &[], b"", &[])
}

fn beyond_repair(said: &Said) -> ApiError {
    let how = match said.code() {
        Some(code) => format!("e2fsck gave up with {code}"),
        None => "e2fsck was ended by its limits".to_owned(),
    };
    ApiError::failed_precondition(format!(
        "the VM's disk holds no filesystem that can be mended: {how}: {}",
        said.last_line()
    ))
    .hint("does the VM still start from it?")
}

/// Replays the journal, mends what is wrong, and writes directories anew, without the names that were deleted.
///
/// # Errors
/// `failed_precondition` for what cannot be mended.
pub(super) fn repair(patient: &Patient<'_>) -> Result<(), ApiError> {
    let said = check(patient, &["-f", "-y", "-D"])?;
    if sound(&said) { Ok(()) } else { Err(beyond_repair(&said)) }
}

/// Makes counters right after a change.
///
/// # Errors
/// As [`repair`].
pub(super) fn settle(patient: &Patient<'_>) -> Result<(), ApiError> {
    let said = check(patient, &["-f", "-y"])?;
    if sound(&said) { Ok(()) } else { Err(beyond_repair(&said)) }
}

/// Takes the journal away, in which old content may be; its size, to make one as large, if there was one.
///
/// # Errors
/// It cannot be taken away.
pub(super) fn drop_journal(patient: &Patient<'_>) -> Result<Option<String>, ApiError> {
    let said = patient.run("dumpe2fs", &["-h"], &[], b"", &[])?;
    let text = String::from_utf8_lossy(&said.output);
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    if !field("Filesystem features:").is_some_and(|all| all.split_whitespace().any(|one| one == "has_journal")) {
        return Ok(None);
    }
    let size = field("Total journal size:").and_then(mebibytes).map(|size| size.clamp(4, 1024).to_string());
    // Taken away in force: what of it was to be replayed has been.
    done(patient.run("tune2fs", &["-f", "-O", "^has_journal"], &[], b"", &[])?, "its journal cannot be taken away")?;
    Ok(Some(size.unwrap_or_else(|| "16".to_owned())))
}

/// Reads `64M` or `4096k`.
fn mebibytes(text: &str) -> Option<u64> {
    let number = |unit: &str| text.strip_suffix(unit)?.parse::<u64>().ok();
    number("k").map(|kibibytes| kibibytes / 1024).or_else(|| number("M")).or_else(|| number("G")?.checked_mul(1024))
}

/// Makes an empty journal of so many MiB.
///
/// # Errors
/// There is no room for it.
pub(super) fn make_journal(patient: &Patient<'_>, mebibytes: &str) -> Result<(), ApiError> {
    let size = format!("size={mebibytes}");
    done(patient.run("tune2fs", &["-J", &size], &[], b"", &[])?, "a new journal cannot be made")
}

fn done(said: Said, what: &str) -> Result<(), ApiError> {
    match said.code() {
        Some(0) => Ok(()),
        _ => Err(ApiError::failed_precondition(format!(
            "the disk's filesystem cannot be used: {what}: {}",
            said.last_line()
        ))),
    }
}

/// Makes it as small as what is in it, and some room. One that is about so small stays.
///
/// # Errors
/// The tool failed in its middle.
pub(super) fn shrink(patient: &Patient<'_>) -> Result<(), ApiError> {
    let said = patient.run("resize2fs", &["-P"], &[], b"", &[])?;
    let text = String::from_utf8_lossy(&said.output);
    let blocks = text.lines().find_map(|line| {
        line.split(':').nth(1)?.trim().parse::<u64>().ok().filter(|_| line.starts_with("Estimated minimum"))
    });
    let (size, block) = size(patient)?;
    let Some(needed) = blocks.and_then(|blocks| blocks.checked_mul(block)) else {
        tracing::info!(said = said.last_line(), "a filesystem stays as large as it is");
        return cut(patient, size);
    };
    let wanted = (needed + needed / 8 + SLACK).next_multiple_of(STEP);
    if wanted >= size / 8 * 7 {
        return cut(patient, size);
    }
    let said = patient.run("resize2fs", &[], &[&format!("{}K", wanted >> 10)], b"", &[])?;
    done(said, "it cannot be made smaller")?;
    let (size, _) = self::size(patient)?;
    cut(patient, size)
}

/// Cuts off what is behind the filesystem.
fn cut(patient: &Patient<'_>, size: u64) -> Result<(), ApiError> {
    let file = patient.file();
    let cut = file.metadata().and_then(|metadata| if metadata.len() > size { file.set_len(size) } else { Ok(()) });
    cut.map_err(|error| storage_error(patient.path(), &error))
}

/// Bytes of the filesystem, and of a block of it, as its superblock says (`Documentation/filesystems/ext4/super.rst` in the kernel's
/// sources).
fn size(patient: &Patient<'_>) -> Result<(u64, u64), ApiError> {
    use std::os::unix::fs::FileExt;
    let mut block = [0; SUPERBLOCK.1];
    patient.file().read_exact_at(&mut block, SUPERBLOCK.0).map_err(|error| storage_error(patient.path(), &error))?;
    let word = |at: usize| u64::from(u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]));
    let (shift, high) = (word(0x18).min(6), if word(0x60) & 0x80 == 0 { 0 } else { word(0x150) });
    let bytes = (high << 32 | word(0x4)).checked_mul(1024 << shift);
    let length = patient.file().metadata().map_err(|error| storage_error(patient.path(), &error))?.len();
    match bytes {
        Some(bytes) if bytes > 0 && bytes <= length => Ok((bytes, 1024 << shift)),
        _ => Err(ApiError::failed_precondition("the filesystem on the VM's disk is larger than that disk")),
    }
}

/// Punches out every block that nothing uses: an image does not carry what was deleted.
///
/// # Errors
/// The filesystem is not whole.
pub(super) fn forget(patient: &Patient<'_>) -> Result<(), ApiError> {
    // e2fsck discards nothing in a run that mended something, so that one comes before.
    settle(patient)?;
    let said = check(patient, &["-f", "-y", "-E", "discard"])?;
    if said.code() == Some(0) { Ok(()) } else { Err(beyond_repair(&said)) }
}

/// Finds nothing wrong any more.
///
/// # Errors
/// It did.
pub(super) fn verify(patient: &Patient<'_>) -> Result<(), ApiError> {
    let said = check(patient, &["-f", "-n"])?;
    if said.code() == Some(0) { Ok(()) } else { Err(beyond_repair(&said)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_the_tools_write_them() {
        assert_eq!((mebibytes("64M"), mebibytes("4096k"), mebibytes("1G")), (Some(64), Some(4), Some(1024)));
        assert_eq!((mebibytes(""), mebibytes("M"), mebibytes("64"), mebibytes("é")), (None, None, None, None));
    }
}
