//! The **format** of a file, by what stands in it and not by what it is called.

use std::{fs::File, io, os::unix::fs::FileExt};

use contract::ApiError;

/// What can be made an image of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Ext4,
    Squashfs,
    Erofs,
    /// A tar archive, maybe compressed with gzip or zstd.
    Tar,
}

/// Bytes at a place that say what a file is.
type Mark = (u64, &'static [u8]);

/// ext2, ext3 and ext4 (`s_magic`), at 1024 + 0x38.
const EXT: Mark = (1080, &[0x53, 0xef]);
/// squashfs (`s_magic`); those of before version 4 may be big-endian, which nothing makes any more.
const SQUASHFS: Mark = (0, b"hsqs");
/// erofs (`EROFS_SUPER_MAGIC_V1`), at 1024.
const EROFS: Mark = (1024, &[0xe2, 0xe1, 0xf5, 0xe0]);
const GZIP: Mark = (0, &[0x1f, 0x8b]);
const ZSTD: Mark = (0, &[0x28, 0xb5, 0x2f, 0xfd]);
/// tar(5): `ustar` in the first header.
const TAR: Mark = (257, b"ustar");

/// What people have and cannot be taken as it is, with what to do about it.
const OTHERS: [(&str, Mark, &str); 8] = [
    (
        "a qcow2 disk",
        (0, b"QFI\xfb"),
        "`qemu-img convert -O raw` makes a raw disk of it, whose root partition can be registered",
    ),
    (
        "a VMDK disk",
        (0, b"KDMV"),
        "`qemu-img convert -O raw` makes a raw disk of it, whose root partition can be registered",
    ),
    (
        "a whole disk with partitions",
        (512, b"EFI PART"),
        "register its root partition: `losetup -P` shows partitions, `dd` takes one out",
    ),
    ("an XFS filesystem", (0, b"XFSB"), "mount it and register the directory"),
    ("a btrfs filesystem", (0x10040, b"_BHRfS_M"), "mount it and register the directory"),
    ("a CD image", (0x8001, b"CD001"), "mount it and register what is in it"),
    ("an xz file", (0, b"\xfd7zXZ\0"), "unpack it with `unxz` first"),
    (
        "a disk with a boot record",
        (510, &[0x55, 0xaa]),
        "register its root partition: `losetup -P` shows partitions, `dd` takes one out",
    ),
];

impl Format {
    /// What that file is.
    ///
    /// # Errors
    /// It cannot be read; inside, `invalid_argument` for what nothing can be made of.
    pub(super) fn of(file: &File) -> io::Result<Result<Self, ApiError>> {
        let marks = [
            // Before ext4's, which is short enough to stand in their bytes by chance.
            (SQUASHFS, Self::Squashfs),
            (EROFS, Self::Erofs),
            (EXT, Self::Ext4),
            (TAR, Self::Tar),
            (GZIP, Self::Tar),
            (ZSTD, Self::Tar),
        ];
        for (mark, format) in marks {
            if has(file, mark)? {
                return Ok(Ok(format));
            }
        }
        for (what, mark, hint) in OTHERS {
            if has(file, mark)? {
                let message = format!("the file is {what}, of which no image can be made");
                return Ok(Err(ApiError::invalid_argument(message).hint(hint)));
            }
        }
        Ok(Err(ApiError::invalid_argument(
            "the file is neither a filesystem (ext4, squashfs, erofs) nor a tar archive",
        )
        .hint("`file` tells what it is; a directory can be registered too")))
    }
}

fn has(file: &File, (at, mark): Mark) -> io::Result<bool> {
    let mut bytes = vec![0; mark.len()];
    match file.read_exact_at(&mut bytes, at) {
        Ok(()) => Ok(bytes == mark),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(at: u64, mark: &[u8]) -> Result<Format, ApiError> {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(mark, at).unwrap();
        Format::of(&file).unwrap()
    }

    #[test]
    fn files_are_known_by_what_is_in_them() {
        assert_eq!(of(EXT.0, EXT.1), Ok(Format::Ext4));
        assert_eq!(of(SQUASHFS.0, SQUASHFS.1), Ok(Format::Squashfs));
        assert_eq!(of(EROFS.0, EROFS.1), Ok(Format::Erofs));
        assert_eq!(of(257, b"ustar\0"), Ok(Format::Tar));
        assert_eq!(of(0, GZIP.1), Ok(Format::Tar));
        assert_eq!(of(0, ZSTD.1), Ok(Format::Tar));
        for (what, (at, mark), _) in OTHERS {
            let error = of(at, mark).unwrap_err();
            assert!(error.message.contains(what) && error.hint.is_some(), "{error:?}");
        }
        assert!(of(0, b"").unwrap_err().message.contains("neither"));
        assert!(of(0, b"#!/bin/sh").unwrap_err().message.contains("neither"));
    }
}
