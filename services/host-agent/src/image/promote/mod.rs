//! An image made of a **VM**: its root disk is copied while nobody writes to it, made flat, mended, cleaned of what made one machine of
//! it, and made small. A guest controls every byte of its disk, so all of that is done by tools in a cage ([`super::tool`]).

mod clean;
mod debugfs;
mod mend;
#[cfg(test)]
mod tests;

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::Weak,
    time::UNIX_EPOCH,
};

use async_trait::async_trait;
use contract::{
    ApiError, VmId,
    agent::{StagedImage, VmSpec},
    image::ImageConfig,
};
use tokio_util::sync::CancellationToken;

use super::{
    ROOTFS, identity, identity::Identity, manifest, progress::Reporter, stage::Staging, storage_error, tool::Patient,
};
use crate::disk::Snapshot;
use debugfs::Inside;

/// The copy's name in the staging directory until it is flat.
const COPY: &str = "disk";
/// What a root filesystem has at least one of.
const LAYOUT: [&str; 4] = ["bin", "sbin", "usr", "etc"];

/// What is asked of the owner of a VM's disk.
#[derive(Clone, Debug)]
pub struct Copying {
    /// Where the copy goes.
    pub into: PathBuf,
    /// Bytes that stay free on the host's disk beside all that the copy and its flat form take.
    pub reserve: u64,
    /// Ends it.
    pub cancel: CancellationToken,
}

/// A copy of a VM's root disk.
#[derive(Debug)]
pub struct Copied {
    /// The copy.
    pub snapshot: Snapshot,
    /// What the VM was to be.
    pub spec: VmSpec,
}

/// Who has the disks of this host's VMs.
#[async_trait]
pub trait Disks: Send + Sync + 'static {
    /// Copies a VM's root disk while nothing writes to it.
    ///
    /// # Errors
    /// `not_found`; `failed_precondition` for a VM whose disk cannot be copied now; `resource_exhausted`; `cancelled`.
    async fn copy(&self, vm: VmId, copying: Copying) -> Result<Copied, ApiError>;
}

/// What is to be made.
#[derive(Clone, Debug)]
pub(super) struct Order {
    pub vm: VmId,
    /// Who may log in as root besides.
    pub ssh_keys: Vec<String>,
    /// Whether the machine's identity stays in it.
    pub keep_identity: bool,
}

/// What an image says beside its files.
struct Frame {
    architecture: String,
    config: ImageConfig,
}

/// Makes the image in the staging's directory.
///
/// # Errors
/// The VM's disk cannot be copied now, holds no filesystem that can be used, or the host's disk is full.
pub(super) async fn make(staging: &Staging, order: Order) -> Result<StagedImage, ApiError> {
    staging.progress.phase("copying", 0);
    let disks = staging.images.disks.get().and_then(Weak::upgrade);
    let disks = disks.ok_or_else(|| ApiError::unavailable("the host does not serve its VMs yet"))?;
    let copying = Copying {
        into: staging.dir.join(COPY),
        reserve: staging.options.limits.reserve,
        cancel: staging.cancel.clone(),
    };
    // Not left on a cancel, which it looks out for itself: the owner of the disk may be writing here.
    staging.cache.high_water().check()?;
    let copied = disks.copy(order.vm, copying).await?;
    staging.cache.high_water().check()?;
    runtime::fault::point("agent/image.promote/copied");
    let frame = frame(staging.images.image(copied.spec.image), &copied.spec);
    let operation = staging.operation;
    staging
        .blocking(move |dir, progress, cancel| {
            let path = dir.join(ROOTFS);
            let modified = copied.snapshot.modified.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
            let go_on = |bytes| {
                progress.add(bytes);
                !cancel.is_cancelled()
            };
            copied
                .snapshot
                .flatten(&path, copied.spec.disk.bytes(), &go_on)
                .map_err(|error| interrupted(&path, &error))?;
            runtime::fault::point("agent/image.promote/flat");
            let patient = Patient::take(&path, operation, modified, cancel)?;
            work(&patient, &order, &copied.spec, progress)?;
            patient.give_back()?;
            runtime::fault::point("agent/image.promote/clean");
            describe(&path, frame, progress, cancel)
        })
        .await
}

/// That of the image the VM was made from; what the VM knows of it where it is gone.
fn frame(base: Option<StagedImage>, spec: &VmSpec) -> Frame {
    match base {
        Some(StagedImage { architecture, config, .. }) => Frame { architecture, config },
        None => Frame { architecture: manifest::architecture().to_owned(), config: spec.config.clone() },
    }
}

/// Mends the filesystem, cleans it, makes it small, and leaves nothing in it that was deleted.
fn work(patient: &Patient<'_>, order: &Order, spec: &VmSpec, progress: &Reporter) -> Result<(), ApiError> {
    progress.phase("checking", 0);
    mend::repair(patient)?;
    let inside = Inside(patient);
    let top = inside.list("")?;
    if !LAYOUT.iter().any(|name| top.iter().any(|entry| entry.name == *name)) {
        return Err(ApiError::failed_precondition("the VM's disk holds no root filesystem any more")
            .hint("none of /bin, /sbin, /usr and /etc is there: was it overwritten from inside?"));
    }
    progress.phase("cleaning", 0);
    clean::agent(&inside, &spec.name)?;
    if !order.keep_identity {
        clean::identity(&inside)?;
    }
    clean::seed_keys(&inside, &order.ssh_keys)?;
    progress.phase("shrinking", 0);
    mend::settle(patient)?;
    let journal = mend::drop_journal(patient)?;
    mend::shrink(patient)?;
    if let Some(journal) = journal {
        mend::make_journal(patient, &journal)?;
    }
    mend::forget(patient)?;
    mend::verify(patient)
}

/// The image by what is in the file now.
fn describe(
    path: &Path,
    frame: Frame,
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
    let (digest, rootfs_bytes) = identity::digest_of_file(path, go_on).map_err(|error| interrupted(path, &error))?;
    let Frame { architecture, config } = frame;
    let identity = Identity::new(&architecture, digest, rootfs_bytes, None, config.clone());
    Ok(StagedImage { digest: identity.digest()?, architecture, rootfs_bytes, config, kernel: None })
}

fn interrupted(path: &Path, error: &io::Error) -> ApiError {
    match error.kind() {
        io::ErrorKind::Interrupted => ApiError::cancelled("the staging was discarded"),
        io::ErrorKind::InvalidData => ApiError::failed_precondition(format!("the VM's disk cannot be read: {error}")),
        _ => storage_error(path, error),
    }
}
