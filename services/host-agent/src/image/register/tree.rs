//! A **tar archive** of a root filesystem becomes one, by the road of layers.

use std::{fs::File, io::Read, path::Path};

use contract::ApiError;

use super::{
    super::{
        ROOTFS,
        layer::{Applier, Packed},
        manifest::Descriptor,
        storage_error,
    },
    Work,
};

/// What errors call the archive.
const LABEL: &str = "that was given";

/// Writes the archive's files as an ext4 filesystem, whatever it is compressed with.
///
/// # Errors
/// It is no archive, damaged, hostile, over a limit, or the disk is full.
pub(super) fn write(work: &Work<'_>, given: &Path) -> Result<(), ApiError> {
    let file = File::open(given).map_err(|error| storage_error(given, &error))?;
    let size = file.metadata().map_err(|error| storage_error(given, &error))?.len();
    unpack(work, size, size, file)
}

/// Writes the files of an archive that is read from somewhere, of a file of `size` bytes. It has `length` bytes as it is read, or 0 where
/// nobody knows.
///
/// # Errors
/// As [`write`], and an [`ApiError`] in an error of the reader as it is.
pub(super) fn unpack(
    work: &Work<'_>,
    size: u64,
    length: u64,
    reader: impl Read + Send + 'static,
) -> Result<(), ApiError> {
    let packed = Packed { descriptor: Descriptor::new(LABEL, size), diff_id: None, reader: Box::new(reader) };
    work.progress.phase("unpacking", length);
    let mut applier = Applier::new(&work.dir.join(ROOTFS), work.operation.0, work.limits, work.cancel)?;
    applier.layer(packed, work.progress)?;
    work.progress.phase("writing", 0);
    applier.finish().map(drop)
}
