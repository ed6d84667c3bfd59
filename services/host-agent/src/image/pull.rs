//! An image made of what was **pulled**: found by its source's name, downloaded, verified, unpacked and written as ext4; or
//! taken out of a bundle.

use std::{
    fs::File,
    io::BufReader,
    path::{Path, PathBuf},
    sync::Arc,
};

use contract::{ApiError, agent::StagedImage, image::ImageSource};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::{
    ROOTFS, bundle, download, ext4,
    identity::Rootfs,
    layer,
    limits::Limits,
    manifest::{self, Resolved},
    progress::Reporter,
    source::Source,
    stage::Staging,
    storage_error,
    tree::Tree,
};
use crate::files;

/// Makes the image in the staging's directory.
///
/// # Errors
/// The source is not there or not what it says it is, the image is over a limit, or the disk is full.
pub(super) async fn make(staging: &Staging, source: &ImageSource) -> Result<StagedImage, ApiError> {
    let resolved = staging.unless_discarded(fetch(staging, source)).await?;
    runtime::fault::point("agent/image.stage/downloaded");
    let span = tracing::info_span!("build", image.digest = %resolved.digest);
    let (operation, limits) = (staging.operation, staging.options.limits);
    staging
        .blocking(move |dir, progress, cancel| {
            span.in_scope(|| build(dir, resolved, operation.0, &limits, progress, cancel))
        })
        .await
}

/// Finds the image and downloads its layers.
async fn fetch(staging: &Staging, source: &ImageSource) -> Result<Resolved, ApiError> {
    let (limits, progress) = (staging.options.limits, &staging.progress);
    progress.phase("resolving", 0);
    let open = Arc::new(Source::open(source, &staging.options)?);
    let resolved =
        manifest::resolve(&open, &limits).instrument(tracing::info_span!("resolve", image.source = %source)).await?;
    let blobs: Vec<_> = resolved.layers.iter().map(|(descriptor, _)| descriptor.clone()).collect();
    let packed: u64 = blobs.iter().map(|blob| blob.size).sum();
    // The layers, unpacked about three times as large, and the image.
    staging.room(packed.saturating_mul(4))?;
    let layers = staging.dir.join("layers");
    tokio::fs::create_dir_all(&layers).await.map_err(|error| storage_error(&layers, &error))?;
    let span = tracing::info_span!("download", image.digest = %resolved.digest, bytes = packed);
    download::all(&open, blobs, &layers, &limits, progress).instrument(span).await?;
    Ok(resolved)
}

fn build(
    dir: &Path,
    resolved: Resolved,
    uuid: uuid::Uuid,
    limits: &Limits,
    progress: &Reporter,
    cancel: &CancellationToken,
) -> Result<StagedImage, ApiError> {
    let layers = dir.join("layers");
    if let Some(identity) = &resolved.identity {
        let rootfs_bytes = unbundle(dir, &resolved, &identity.rootfs, limits, progress, cancel)?;
        return end(dir, resolved, rootfs_bytes);
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
    let rootfs_bytes = ext4::write(&tree, &spools, &rootfs, uuid, progress, cancel)?;
    end(dir, resolved, rootfs_bytes)
}

/// Removes what was only needed until now.
fn end(dir: &Path, resolved: Resolved, rootfs_bytes: u64) -> Result<StagedImage, ApiError> {
    let layers = dir.join("layers");
    files::remove_dir(&layers).map_err(|error| storage_error(&layers, &error))?;
    let Resolved { digest, architecture, config, .. } = resolved;
    Ok(StagedImage { digest, architecture, rootfs_bytes, config })
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
