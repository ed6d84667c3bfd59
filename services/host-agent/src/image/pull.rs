//! An image made of what was **pulled**: found by its source's name, downloaded, verified, unpacked and written as ext4; or
//! taken out of a bundle.

use std::{
    io::BufReader,
    path::Path,
    pin::pin,
    sync::{Arc, Once},
};

use contract::{
    ApiError, ErrorCode, OperationId,
    agent::{StagedImage, StagedKernel},
    image::ImageSource,
};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::{
    ROOTFS, bundle,
    cache::Broken,
    download::{Download, Packed, Transfer},
    identity::Rootfs,
    layer::{self, Applier},
    limits::Limits,
    manifest::{self, Descriptor, Resolved},
    progress::Reporter,
    source::{Source, mismatch},
    stage::Staging,
};
use crate::kernel::KernelObjects;

/// How often an image is begun anew because what had come of a layer was damaged.
const ANEW: usize = 2;

/// Makes the image in the staging's directory.
///
/// # Errors
/// The source is not there or not what it says it is, the image is over a limit, or the disk is full.
pub(super) async fn make(staging: &Staging, source: &ImageSource) -> Result<StagedImage, ApiError> {
    staging.progress.phase("resolving", 0);
    let (source, resolved) = staging.unless_discarded(find(staging, source)).await?;
    let mut left = ANEW;
    loop {
        match begin(staging, &source, &resolved).await {
            Err(broken) if broken.anew && left > 0 => left -= 1,
            Err(broken) => return Err(broken.error),
            Ok(image) => return Ok(image),
        }
    }
}

/// Finds the image.
async fn find(staging: &Staging, source: &ImageSource) -> Result<(Source, Resolved), ApiError> {
    let span = tracing::info_span!("resolve", image.source = %source);
    let find = async {
        let open = Source::open(source, &staging.options).await?;
        let resolved = manifest::resolve(&open, &staging.options.limits).await?;
        Ok((open, resolved))
    };
    find.instrument(span).await
}

/// Downloads the image's layers and makes it of them while they come.
async fn begin(staging: &Staging, source: &Source, resolved: &Resolved) -> Result<StagedImage, Broken> {
    let blobs: Vec<_> = resolved.layers.iter().map(|(descriptor, _)| descriptor.clone()).collect();
    room(staging, source, &blobs).await?;
    let stop = staging.cancel.child_token();
    let (download, layers) = Download::begin(source, &staging.cache, &blobs, &stop)?;
    staging.progress.downloading(download.transfer());
    let span = tracing::info_span!("build", image.digest = %resolved.digest);
    let (operation, limits, resolved, told) =
        (staging.operation, staging.options.limits, resolved.clone(), stop.clone());
    let kernels = resolved.kernel.is_some().then(|| staging.images.kernels()).transpose()?;
    let mut building = pin!(staging.blocking_until(&stop, move |dir, progress, _| {
        let work = Work { dir, operation, limits: &limits, kernels, progress, cancel: &told };
        span.in_scope(|| work.build(resolved, layers))
    }));
    let downloaded = Once::new();
    let built = tokio::select! {
        built = &mut building => built,
        error = coming(&download, &downloaded) => {
            stop.cancel();
            drop(building.await);
            Err(error)
        }
    };
    staging.progress.downloading(Transfer::default());
    match built {
        Ok(image) => {
            downloaded.call_once(reached);
            Ok(image)
        }
        // A layer that did not come, or came damaged, is why it could not be made.
        Err(error) => {
            let told = download.broken();
            let doubtful =
                told.is_none() && matches!(error.code, ErrorCode::InvalidArgument | ErrorCode::FailedPrecondition);
            let told =
                if doubtful { staging.unless_discarded(async { Ok(download.damage().await) }).await? } else { told };
            Err(told.unwrap_or_else(|| error.into()))
        }
    }
}

fn reached() {
    runtime::fault::point("agent/image.stage/downloaded");
}

/// Why a layer does not come; it never ends otherwise.
async fn coming(download: &Download, downloaded: &Once) -> ApiError {
    if let Err(error) = download.whole().await {
        return error;
    }
    downloaded.call_once(reached);
    std::future::pending().await
}

/// Refuses what is sure not to fit: what is still to come to the cache, and the image, which is hardly ever smaller than its packed layers. How
/// large it becomes nobody says; that the disk does not fill up is looked at while it is written ([`Staging::blocking`]). What nobody uses
/// goes first.
async fn room(staging: &Staging, source: &Source, blobs: &[Descriptor]) -> Result<(), ApiError> {
    let packed: u64 = blobs.iter().map(|blob| blob.size).sum();
    let enough = || {
        let coming = match source {
            Source::Registry(_) => packed.saturating_sub(staging.cache.has(blobs)),
            // Its layers are read where they are.
            Source::Layout { .. } => 0,
        };
        staging.cache.high_water().check()?;
        staging.room(packed.saturating_add(coming))
    };
    if enough().is_ok() {
        return Ok(());
    }
    let (cache, keep) = (staging.cache.clone(), blobs.to_vec());
    let cleared = tokio::task::spawn_blocking(move || cache.clear(&keep)).await;
    if let Ok(Err(error)) = cleared {
        tracing::warn!(%error, "the cache of blobs cannot be cleared");
    }
    enough()
}

/// What the making of one image works with.
struct Work<'a> {
    dir: &'a Path,
    operation: OperationId,
    limits: &'a Limits,
    /// Who takes the kernel that comes along.
    kernels: Option<Arc<KernelObjects>>,
    progress: &'a Reporter,
    cancel: &'a CancellationToken,
}

impl Work<'_> {
    fn build(&self, resolved: Resolved, packed: Vec<Packed>) -> Result<StagedImage, ApiError> {
        if let Some(identity) = resolved.identity.clone() {
            let kernel = self.unbundle(&resolved, packed, &identity.rootfs)?;
            return Ok(end(resolved, identity.rootfs.size, kernel));
        }
        // The packed bytes are what is known of all layers together; those that are read count.
        self.progress.phase("unpacking", resolved.layers.iter().map(|(layer, _)| layer.size).sum());
        let mut applier = Applier::new(&self.dir.join(ROOTFS), self.operation.0, self.limits, self.cancel)?;
        for ((descriptor, diff_id), reader) in resolved.layers.iter().cloned().zip(packed) {
            applier.layer(layer::Packed { descriptor, diff_id: Some(diff_id), reader }, self.progress)?;
        }
        self.progress.phase("writing", 0);
        let rootfs_bytes = applier.finish()?;
        Ok(end(resolved, rootfs_bytes, None))
    }

    /// Takes a bundle's root filesystem out of its first layer, and the kernel, if one comes along, out of its second.
    fn unbundle(
        &self,
        resolved: &Resolved,
        packed: Vec<Packed>,
        rootfs: &Rootfs,
    ) -> Result<Option<StagedKernel>, ApiError> {
        let mut packed = packed.into_iter();
        let (Some((layer, _)), Some(reader)) = (resolved.layers.first(), packed.next()) else {
            return Err(ApiError::internal("a bundle has no layer"));
        };
        let layer = bundle::Layer { digest: &layer.digest, size: layer.size };
        let into = self.dir.join(ROOTFS);
        bundle::unpack(BufReader::new(reader), &layer, rootfs, &into, self.limits, self.progress, self.cancel)?;
        match (&resolved.kernel, &self.kernels, packed.next()) {
            (Some(digest), Some(kernels), Some(reader)) => self.kernel(digest, kernels, reader).map(Some),
            _ => Ok(None),
        }
    }

    /// Stages the kernel, which has to be the one that it is said to be.
    fn kernel(&self, digest: &str, kernels: &KernelObjects, reader: Packed) -> Result<StagedKernel, ApiError> {
        self.progress.phase("unpacking the kernel", 0);
        let kernel = kernels.take(self.operation, BufReader::new(reader), self.cancel);
        let kernel =
            kernel.map_err(|error| ApiError { message: format!("the bundle's kernel: {}", error.message), ..error })?;
        if kernel.digest != digest {
            return Err(mismatch("the bundle's kernel", digest, &kernel.digest));
        }
        Ok(kernel)
    }
}

fn end(resolved: Resolved, rootfs_bytes: u64, kernel: Option<StagedKernel>) -> StagedImage {
    let Resolved { digest, architecture, config, .. } = resolved;
    StagedImage { digest, architecture, rootfs_bytes, config, kernel }
}
