//! **Pushing** a bundle: packed, then sent to a registry, which is asked first what it has.

use std::path::PathBuf;

use contract::{
    ApiError,
    agent::{PushedBundle, StagedImage},
};
use tokio_util::sync::CancellationToken;

use super::{Documents, MANIFEST_TYPE, PACKED, Packed, Taken, kernel, packed};
use crate::{
    files,
    image::{
        ImageOptions,
        identity::{self, Identity},
        progress::Reporter,
        registry::{Content, Destination, Known},
    },
};

/// One push.
pub(in crate::image) struct Pushing {
    /// The image's root filesystem.
    pub rootfs: PathBuf,
    /// The image.
    pub image: StagedImage,
    /// The kernel it takes along.
    pub kernel: Option<Taken>,
    /// A directory of its own, for the packed root filesystem.
    pub dir: PathBuf,
    /// Where to.
    pub reference: String,
    /// Where registries have blobs that this host sent there before.
    pub known: Known,
    pub options: ImageOptions,
    pub progress: Reporter,
    pub cancel: CancellationToken,
}

impl Pushing {
    /// Packs the image and sends what the registry lacks, its manifest last. Whether it succeeds or not, the directory is gone afterwards.
    ///
    /// # Errors
    /// The registry refuses or stays away, a file cannot be read or written, or it was called off.
    pub(in crate::image) async fn run(&self) -> Result<PushedBundle, ApiError> {
        let outcome = self.packed_and_sent().await;
        let dir = self.dir.clone();
        let removed = tokio::task::spawn_blocking(move || files::remove_dir(&dir)).await;
        if let Ok(Err(error)) = removed {
            tracing::warn!(%error, dir = %self.dir.display(), "a packed image cannot be removed");
        }
        outcome
    }

    async fn packed_and_sent(&self) -> Result<PushedBundle, ApiError> {
        let mut registry = Destination::open(&self.reference, &self.options, self.known.clone())?;
        let packed = packed(&self.rootfs, &self.dir, &self.options, &self.progress, &self.cancel).await?;
        let kernel = kernel::packed(self.kernel.as_ref(), &self.dir, &self.progress, &self.cancel).await?;
        let config = self.image.config.clone();
        let identity =
            Identity::new(&self.image.architecture, packed.raw_digest.clone(), packed.raw_size, None, config);
        let documents = Documents::new(&identity, &packed, kernel.as_ref())?;
        registry
            .look_up([packed.digest.as_str()].into_iter().chain(kernel.as_ref().map(|kernel| kernel.digest.as_str())));
        runtime::fault::point("agent/image.push/packed");
        tokio::select! {
            sent = self.send(&registry, &packed, kernel.as_ref(), &documents) => {
                let sent_bytes = sent?;
                Ok(PushedBundle {
                    manifest: identity::digest(&documents.manifest),
                    image: identity.digest()?,
                    bundle_bytes: packed.size,
                    sent_bytes,
                })
            }
            () = self.cancel.cancelled() => Err(ApiError::cancelled("the push was called off")),
        }
    }

    /// Sends it all; gives the bytes the registry did not have.
    async fn send(
        &self,
        registry: &Destination,
        packed: &Packed,
        kernel: Option<&kernel::Packed>,
        documents: &Documents,
    ) -> Result<u64, ApiError> {
        self.progress.phase("pushing", packed.size + kernel.map_or(0, |kernel| kernel.size));
        let file = self.dir.join(PACKED);
        let mut sent = registry.blob(&packed.digest, packed.size, Content::File(&file), &self.progress).await?;
        if let Some(kernel) = kernel {
            let file = self.dir.join(kernel::PACKED);
            sent += registry.blob(&kernel.digest, kernel.size, Content::File(&file), &self.progress).await?;
        }
        let config = Content::Bytes(&documents.config);
        let digest = identity::digest(&documents.config);
        sent += registry.blob(&digest, documents.config.len() as u64, config, &self.progress).await?;
        runtime::fault::point("agent/image.push/blobs");
        registry.manifest(&documents.manifest, MANIFEST_TYPE).await?;
        Ok(sent)
    }
}
