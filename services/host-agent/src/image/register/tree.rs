//! A **tar archive** of a root filesystem becomes one, by the road of layers.

use std::{fs::File, path::Path};

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
    let packed = Packed { descriptor: Descriptor::new(LABEL, size), diff_id: None, reader: Box::new(file) };
    work.progress.phase("unpacking", 0);
    let mut applier = Applier::new(&work.dir.join(ROOTFS), work.operation.0, work.limits, work.cancel)?;
    applier.layer(packed, work.progress)?;
    work.progress.phase("writing", 0);
    applier.finish().map(drop)
}
