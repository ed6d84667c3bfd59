//! Disks: a VM's root is a copy-on-write clone of its image's root filesystem, grown to the size asked for. The image is
//! never written.

mod qcow2;

use std::{
    fs::{File, OpenOptions},
    io,
    os::fd::AsRawFd,
    path::Path,
};

use contract::{ApiError, MebiBytes};

use crate::handles::DiskHandle;

nix::ioctl_write_int_bad!(
    /// `FICLONE` (ioctl_ficlonerange(2)): shares all blocks of another file.
    ficlone,
    0x4004_9409
);

/// The disk a VM will have on this filesystem: a reflink copy where it can share blocks (XFS, btrfs), else a
/// qcow2 overlay.
pub fn choose(state_dir: &Path) -> DiskHandle {
    if shares_blocks(state_dir) {
        DiskHandle { file: "root.img".to_owned(), format: "raw".to_owned() }
    } else {
        DiskHandle { file: "root.qcow2".to_owned(), format: "qcow2".to_owned() }
    }
}

fn shares_blocks(dir: &Path) -> bool {
    let clone = || -> io::Result<()> {
        let from = tempfile::tempfile_in(dir)?;
        let to = tempfile::tempfile_in(dir)?;
        reflink(&from, &to)
    };
    clone().is_ok()
}

fn reflink(from: &File, to: &File) -> io::Result<()> {
    // SAFETY: both descriptors are open files of ours, and FICLONE takes a descriptor as its argument.
    unsafe { ficlone(to.as_raw_fd(), from.as_raw_fd()) }?;
    Ok(())
}

/// Makes the clone in `dir`; what an interrupted attempt left is made anew.
///
/// # Errors
/// `invalid_argument` when the size is below the image's; `resource_exhausted` when the disk is full.
pub fn clone(image: &Path, dir: &Path, disk: &DiskHandle, size: MebiBytes) -> Result<(), ApiError> {
    let smallest = MebiBytes::holding(std::fs::metadata(image).map_err(|error| failed(image, &error))?.len());
    if size < smallest {
        return Err(ApiError::invalid_argument(format!(
            "a disk of {size} is smaller than its image, which has {smallest}"
        ))
        .hint(format!("ask for {smallest} or more")));
    }
    let path = dir.join(&disk.file);
    let made = match disk.format.as_str() {
        "raw" => raw(image, &path, size),
        _ => qcow2::create(image, &path, size.bytes()),
    };
    made.map_err(|error| failed(&path, &error))
}

/// Grows a disk that is not in use to a size; one that is as large already stays.
///
/// # Errors
/// `resource_exhausted` when the disk is full.
pub fn grow(dir: &Path, disk: &DiskHandle, size: MebiBytes) -> Result<(), ApiError> {
    let path = dir.join(&disk.file);
    let grown = match disk.format.as_str() {
        "raw" => OpenOptions::new()
            .write(true)
            .open(&path)
            .and_then(|file| if file.metadata()?.len() < size.bytes() { file.set_len(size.bytes()) } else { Ok(()) }),
        _ => qcow2::grow(&path, size.bytes()),
    };
    grown.map_err(|error| failed(&path, &error))
}

fn raw(image: &Path, path: &Path, size: MebiBytes) -> io::Result<()> {
    let to = OpenOptions::new().write(true).create(true).truncate(true).open(path)?;
    reflink(&File::open(image)?, &to)?;
    to.set_len(size.bytes())
}

fn failed(path: &Path, error: &io::Error) -> ApiError {
    let message = format!("the disk {} cannot be made: {error}", path.display());
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ApiError::resource_exhausted(message),
        _ => ApiError::internal(message),
    }
}
