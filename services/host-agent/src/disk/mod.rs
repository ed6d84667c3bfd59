//! Disks: a VM's root is a copy-on-write clone of its image's root filesystem, grown to the size asked for. The image is
//! never written.

mod driver;
mod overlay;
mod qcow2;
mod snapshot;
mod sparse;

use std::{fs::OpenOptions, io, path::Path};

use contract::{ApiError, MebiBytes};

pub use driver::{Driver, DriverError, Wanted};
pub use snapshot::Snapshot;

use crate::handles::DiskHandle;

/// Makes the clone in `dir`; what an interrupted attempt left is made anew.
///
/// # Errors
/// `invalid_argument` when the size is below the image's; `resource_exhausted` when the disk is full.
pub fn clone(driver: Driver, image: &Path, dir: &Path, disk: &DiskHandle, size: MebiBytes) -> Result<(), ApiError> {
    let smallest = MebiBytes::holding(std::fs::metadata(image).map_err(|error| failed(image, &error))?.len());
    if size < smallest {
        return Err(ApiError::invalid_argument(format!(
            "a disk of {size} is smaller than its image, which has {smallest}"
        ))
        .hint(format!("ask for {smallest} or more")));
    }
    let path = dir.join(&disk.file);
    driver.clone_image(image, &path, disk, size).map_err(|error| failed(&path, &error))
}

/// The size of a disk as its guest sees it.
///
/// # Errors
/// It is not there, or not what it should be.
pub fn size(dir: &Path, disk: &DiskHandle) -> Result<MebiBytes, ApiError> {
    let path = dir.join(&disk.file);
    let bytes = match disk.format.as_str() {
        "raw" => std::fs::metadata(&path).map(|metadata| metadata.len()),
        _ => qcow2::size(&path),
    };
    bytes.map(MebiBytes::holding).map_err(|error| failed(&path, &error))
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

fn failed(path: &Path, error: &io::Error) -> ApiError {
    let message = format!("the disk {} cannot be made: {error}", path.display());
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ApiError::resource_exhausted(message),
        _ => ApiError::internal(message),
    }
}
