//! An image made of a **root filesystem** that somebody has: an ext4 file is taken as it is; a squashfs or erofs file, a tar archive or a
//! directory is written as one. Nothing of it is believed before it was looked at.

mod check;
mod directory;
mod erofs;
mod format;
mod given;
mod loops;
mod squashfs;
mod tree;

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use bus::Bus;
use contract::{
    ApiError, OperationId,
    agent::StagedImage,
    image::{FileSource, ImageConfig},
};
use tokio_util::sync::CancellationToken;

use super::{
    ROOTFS,
    identity::{self, Identity},
    limits::Limits,
    manifest,
    progress::Reporter,
    stage::Staging,
    storage_error,
};
use crate::upload::{self, GIVEN};
use format::Format;

pub(super) use given::take;

/// Where files for images may come from.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// Carries uploads and objects.
    pub bus: Option<Bus>,
    /// Directories of this host whose files may become images, with what is below them.
    pub dirs: Vec<PathBuf>,
}

/// Makes the image in the staging's directory.
///
/// # Errors
/// There is nothing, it is no root filesystem that a VM could boot, it is over a limit, or the disk is full.
pub(super) async fn make(staging: &Staging, from: &FileSource, config: ImageConfig) -> Result<StagedImage, ApiError> {
    take(staging, from).await?;
    runtime::fault::point("agent/image.register/taken");
    let (operation, limits) = (staging.operation, staging.options.limits);
    staging
        .blocking(move |dir, progress, cancel| {
            let work = Work { dir, operation, limits: &limits, progress, cancel };
            work.root()?;
            check::root(&dir.join(ROOTFS), operation, &config, progress, cancel)?;
            runtime::fault::point("agent/image.register/checked");
            let image = describe(&dir.join(ROOTFS), config, progress, cancel)?;
            upload::forget(dir).map_err(|error| storage_error(dir, &error))?;
            Ok(image)
        })
        .await
}

/// What one registration works with.
struct Work<'a> {
    dir: &'a Path,
    operation: OperationId,
    limits: &'a Limits,
    progress: &'a Reporter,
    cancel: &'a CancellationToken,
}

impl Work<'_> {
    /// Makes the root filesystem of what was given.
    fn root(&self) -> Result<(), ApiError> {
        let given = self.dir.join(GIVEN);
        let file = File::open(&given).map_err(|error| storage_error(&given, &error))?;
        match Format::of(&file).map_err(|error| storage_error(&given, &error))?? {
            Format::Ext4 => {
                let rootfs = self.dir.join(ROOTFS);
                // The same file, which the checks only read: an agent that begins anew finds what was given.
                fs::hard_link(&given, &rootfs).map_err(|error| storage_error(&rootfs, &error))
            }
            Format::Squashfs => squashfs::write(self, &given),
            Format::Erofs => erofs::write(self, &given),
            Format::Tar => tree::write(self, &given),
        }
    }
}

/// The image by what is in the file now, which is synced.
fn describe(
    path: &Path,
    config: ImageConfig,
    progress: &Reporter,
    cancel: &CancellationToken,
) -> Result<StagedImage, ApiError> {
    let file = File::open(path).map_err(|error| storage_error(path, &error))?;
    let length = file.sync_all().and_then(|()| file.metadata()).map_err(|error| storage_error(path, &error))?.len();
    progress.phase("hashing", length);
    let go_on = |bytes| {
        progress.add(bytes);
        !cancel.is_cancelled()
    };
    let hashed = identity::digest_of_file(path, go_on);
    let (digest, rootfs_bytes) = hashed.map_err(|error| match error.kind() {
        io::ErrorKind::Interrupted => ApiError::cancelled("the staging was discarded"),
        _ => storage_error(path, &error),
    })?;
    let architecture = manifest::architecture().to_owned();
    let identity = Identity::new(&architecture, digest, rootfs_bytes, None, config.clone());
    Ok(StagedImage { digest: identity.digest()?, architecture, rootfs_bytes, config, kernel: None })
}
