//! One staging, from a source to a whole, synced directory.

use std::{
    fs::File,
    io::BufReader,
    path::{Path, PathBuf},
    sync::Arc,
};

use contract::{ApiError, OperationId, agent::StagedImage, image::ImageSource};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::{
    ImageOptions, MANIFEST, ROOTFS, Record, bundle, download, ext4,
    identity::Rootfs,
    layer,
    limits::Limits,
    manifest::{self, Resolved},
    progress::Reporter,
    source::Source,
    storage_error,
    tree::Tree,
};
use crate::files;

/// What one staging needs.
pub(super) struct Staging {
    pub operation: OperationId,
    pub dir: PathBuf,
    pub source: ImageSource,
    pub options: ImageOptions,
    pub progress: Reporter,
    pub cancel: CancellationToken,
}

impl Staging {
    /// Does it all. The directory holds `manifest.json` when it is whole, and only then.
    pub(super) async fn run(&self) -> Result<StagedImage, ApiError> {
        let resolved = tokio::select! {
            fetched = self.fetch() => fetched?,
            () = self.cancel.cancelled() => return Err(ApiError::cancelled("the staging was discarded")),
        };
        runtime::fault::point("agent/image.stage/downloaded");
        let (dir, progress, cancel) = (self.dir.clone(), self.progress.clone(), self.cancel.clone());
        let (operation, limits) = (self.operation, self.options.limits);
        let span = tracing::info_span!("build", image.digest = %resolved.digest);
        // Not abandoned on a cancel, which it looks out for itself: nothing may write here once this has ended.
        let built = tokio::task::spawn_blocking(move || {
            span.in_scope(|| build(&dir, resolved, operation, &limits, &progress, &cancel))
        });
        built.await.map_err(|error| ApiError::internal(format!("the image's building failed: {error}")))?
    }

    /// Finds the image and downloads its layers.
    async fn fetch(&self) -> Result<Resolved, ApiError> {
        let limits = self.options.limits;
        self.progress.phase("resolving", 0);
        let source = Arc::new(Source::open(&self.source, &self.options)?);
        let resolved = manifest::resolve(&source, &limits)
            .instrument(tracing::info_span!("resolve", image.source = %self.source))
            .await?;
        let blobs: Vec<_> = resolved.layers.iter().map(|(descriptor, _)| descriptor.clone()).collect();
        let packed: u64 = blobs.iter().map(|blob| blob.size).sum();
        self.room(packed, limits.reserve)?;
        let layers = self.dir.join("layers");
        tokio::fs::create_dir_all(&layers).await.map_err(|error| storage_error(&layers, &error))?;
        let span = tracing::info_span!("download", image.digest = %resolved.digest, bytes = packed);
        download::all(&source, blobs, &layers, &limits, &self.progress).instrument(span).await?;
        Ok(resolved)
    }

    /// Refuses what cannot fit: the layers, unpacked about three times as large, and the image.
    fn room(&self, packed: u64, reserve: u64) -> Result<(), ApiError> {
        let free = files::free_bytes(&self.dir).map_err(|error| storage_error(&self.dir, &error))?;
        let needed = packed.saturating_mul(4).saturating_add(reserve);
        if free < needed {
            return Err(ApiError::resource_exhausted(format!(
                "the host's disk has {} MiB free and the image needs about {} MiB",
                free >> 20,
                needed >> 20
            ))
            .hint("remove images with `warren image rm`, or give the host more disk"));
        }
        Ok(())
    }
}

fn build(
    dir: &Path,
    resolved: Resolved,
    operation: OperationId,
    limits: &Limits,
    progress: &Reporter,
    cancel: &CancellationToken,
) -> Result<StagedImage, ApiError> {
    let layers = dir.join("layers");
    if let Some(identity) = &resolved.identity {
        let rootfs_bytes = unbundle(dir, &resolved, &identity.rootfs, limits, progress, cancel)?;
        return finish(dir, resolved, rootfs_bytes, operation);
    }
    progress.phase("unpacking", 0);
    let (mut spools, mut unpacked) = (Vec::new(), 0);
    for (n, described) in resolved.layers.iter().enumerate() {
        let (packed, spool) = (layers.join(n.to_string()), layers.join(format!("{n}.tar")));
        let budget = limits.unpacked - unpacked;
        unpacked += layer::unpack(&packed, described, &spool, budget, limits, progress, cancel)?;
        files::remove_file(&packed).map_err(|error| storage_error(&packed, &error))?;
        spools.push(spool);
    }
    let tree = merge(&resolved, &spools, limits)?;
    let rootfs = dir.join(ROOTFS);
    let rootfs_bytes = ext4::write(&tree, &spools, &rootfs, operation.0, progress, cancel)?;
    finish(dir, resolved, rootfs_bytes, operation)
}

/// Takes a bundle's root filesystem out of its layer.
fn unbundle(
    dir: &Path,
    resolved: &Resolved,
    rootfs: &Rootfs,
    limits: &Limits,
    progress: &Reporter,
    cancel: &CancellationToken,
) -> Result<u64, ApiError> {
    let (layer, _) = &resolved.layers[0];
    let (packed, into) = (dir.join("layers/0"), dir.join(ROOTFS));
    let reader = File::open(&packed).map_err(|error| storage_error(&packed, &error))?;
    let layer = bundle::Layer { digest: &layer.digest, size: layer.size };
    bundle::unpack(BufReader::new(reader), &layer, rootfs, &into, limits, progress, cancel)?;
    Ok(rootfs.size)
}

/// Removes what was only needed until now, and writes the record that makes the directory whole.
fn finish(dir: &Path, resolved: Resolved, rootfs_bytes: u64, operation: OperationId) -> Result<StagedImage, ApiError> {
    runtime::fault::point("agent/image.stage/written");
    let layers = dir.join("layers");
    files::remove_dir(&layers).map_err(|error| storage_error(&layers, &error))?;
    let image = StagedImage {
        digest: resolved.digest,
        architecture: resolved.architecture,
        rootfs_bytes,
        config: resolved.config,
    };
    let record = serde_json::to_vec_pretty(&Record { operation, image: image.clone() })
        .map_err(|error| ApiError::internal(error.to_string()))?;
    let path = dir.join(MANIFEST);
    files::write_atomically(&path, &record, 0o644).map_err(|error| storage_error(&path, &error))?;
    Ok(image)
}

fn merge(resolved: &Resolved, spools: &[PathBuf], limits: &Limits) -> Result<Tree, ApiError> {
    let (mut tree, mut entries) = (Tree::new(), 0u64);
    for (n, (spool, (descriptor, _))) in spools.iter().zip(&resolved.layers).enumerate() {
        // Whiteouts speak of the layers below, wherever in their own layer they stand.
        layer::entries(spool, &descriptor.digest, |entry| {
            tree.hide(&entry);
            Ok(())
        })?;
        layer::entries(spool, &descriptor.digest, |entry| {
            entries += 1;
            if entries > limits.entries {
                return Err(ApiError::invalid_argument(format!("the image has more than {} entries", limits.entries)));
            }
            tree.add(n, &descriptor.digest, entry)
        })?;
    }
    Ok(tree)
}
