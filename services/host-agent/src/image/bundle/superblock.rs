//! The **superblock** of a root filesystem: what is looked at before an image from elsewhere is taken
//! (`Documentation/filesystems/ext4/super.rst` in the kernel's sources).

use std::{fs::File, io, os::unix::fs::FileExt, path::Path};

use contract::ApiError;

use crate::image::storage_error;

/// Where it begins, and how much of it is looked at.
const OFFSET: u64 = 1024;
const LENGTH: usize = 1024;

/// Refuses a file that is no ext4 filesystem, or one that reaches beyond its end.
///
/// # Errors
/// `invalid_argument` with the reason, or the file cannot be read.
pub(in crate::image) fn check(path: &Path, size: u64) -> Result<(), ApiError> {
    judge(&read(path)?, size)
}

/// Refuses a filesystem whose journal holds what is not in its place yet.
///
/// # Errors
/// `failed_precondition`, or the file cannot be read.
pub(in crate::image) fn check_unmounted(path: &Path) -> Result<(), ApiError> {
    // s_feature_incompat, EXT4_FEATURE_INCOMPAT_RECOVER.
    if read(path)?[0x60] & 0x4 == 0 {
        return Ok(());
    }
    Err(ApiError::failed_precondition("the filesystem is mounted, or was not unmounted in order")
        .hint("unmount it, or stop the machine it is the disk of; `e2fsck -f FILE` mends what a crash left"))
}

fn read(path: &Path) -> Result<[u8; LENGTH], ApiError> {
    let mut block = [0; LENGTH];
    match File::open(path).and_then(|file| file.read_exact_at(&mut block, OFFSET)) {
        Ok(()) => Ok(block),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(refused("is too small")),
        Err(error) => Err(storage_error(path, &error)),
    }
}

fn refused(why: &str) -> ApiError {
    ApiError::invalid_argument(format!("the image's root filesystem {why}"))
        .hint("only whole ext4 filesystems can be used")
}

fn judge(block: &[u8; LENGTH], size: u64) -> Result<(), ApiError> {
    let word = |at: usize| u64::from(u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]));
    if u16::from_le_bytes([block[0x38], block[0x39]]) != 0xEF53 {
        return Err(refused("is no ext4 filesystem"));
    }
    // s_log_block_size: 1024 << n, up to 64 KiB.
    let shift = word(0x18);
    if shift > 6 {
        return Err(refused("has blocks of an impossible size"));
    }
    // The upper half counts with the feature 64bit only.
    let high = if word(0x60) & 0x80 == 0 { 0 } else { word(0x150) };
    let blocks = high << 32 | word(0x4);
    match blocks.checked_mul(1024 << shift) {
        Some(bytes) if bytes > 0 && bytes <= size => Ok(()),
        _ => Err(refused(&format!(
            "says that it has {blocks} blocks of {} bytes, and the file has {size} bytes",
            1024 << shift
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_filesystem_that_is_all_there_is_taken() {
        let mut block = [0; LENGTH];
        assert!(judge(&block, 1 << 20).unwrap_err().message.contains("no ext4"));
        block[0x38..0x3a].copy_from_slice(&0xEF53u16.to_le_bytes());
        block[0x18] = 2;
        block[0x4..0x8].copy_from_slice(&256u32.to_le_bytes());
        judge(&block, 1 << 20).unwrap();
        judge(&block, (1 << 20) + 5).unwrap();
        assert!(judge(&block, (1 << 20) - 1).is_err());
        block[0x60] = 0x80;
        block[0x150] = 1;
        assert!(judge(&block, 1 << 20).is_err());
        block[0x18] = 7;
        assert!(judge(&block, u64::MAX).unwrap_err().message.contains("impossible"));
    }
}
