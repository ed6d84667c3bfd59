//! **Pushing** a bundle: packed, then sent to a registry, which is asked first what it has.

use std::{path::Path, path::PathBuf, time::Duration};

use contract::{
    ApiError,
    agent::{PushedBundle, StagedImage},
};
use futures::{FutureExt, StreamExt, TryFutureExt, TryStreamExt, future::BoxFuture};
use oci_client::{
    Client, Reference, RegistryOperation,
    client::{ClientConfig, ClientProtocol},
    errors::OciDistributionError,
    secrets::RegistryAuth,
};
use tokio_util::{io::ReaderStream, sync::CancellationToken};

use super::{Documents, MANIFEST_TYPE, PACKED, Packed, Taken, kernel, packed};
use crate::{
    files,
    image::{
        ImageOptions,
        identity::{self, Identity},
        progress::Reporter,
        registry::{credentials, is_loopback},
    },
};

/// How long a registry may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// How often one blob is tried.
const TRIES: usize = 5;
/// The pause before the first repeat; it doubles.
const PAUSE: Duration = Duration::from_millis(300);
/// How much of a file is read at once.
const PIECE: usize = 256 << 10;

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
        let registry = Registry::open(&self.reference, &self.options)?;
        let packed = packed(&self.rootfs, &self.dir, &self.options, &self.progress, &self.cancel).await?;
        let kernel = kernel::packed(self.kernel.as_ref(), &self.dir, &self.progress, &self.cancel).await?;
        let config = self.image.config.clone();
        let identity =
            Identity::new(&self.image.architecture, packed.raw_digest.clone(), packed.raw_size, None, config);
        let documents = Documents::new(&identity, &packed, kernel.as_ref())?;
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
        registry: &Registry,
        packed: &Packed,
        kernel: Option<&kernel::Packed>,
        documents: &Documents,
    ) -> Result<u64, ApiError> {
        self.progress.phase("pushing", packed.size + kernel.map_or(0, |kernel| kernel.size));
        registry.log_in().await?;
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
        registry.manifest(&documents.manifest).await?;
        Ok(sent)
    }
}

#[derive(Clone, Copy)]
enum Content<'a> {
    File(&'a Path),
    Bytes(&'a [u8]),
}

/// The registry that takes the bundle.
struct Registry {
    client: Client,
    reference: Reference,
    auth: RegistryAuth,
}

impl Registry {
    fn open(text: &str, options: &ImageOptions) -> Result<Self, ApiError> {
        let reference: Reference = text
            .parse()
            .map_err(|error| ApiError::invalid_argument(format!("{text:?} is no image reference: {error}")))?;
        if reference.digest().is_some() {
            return Err(ApiError::invalid_argument(format!("{text} names a digest, which a push cannot choose"))
                .hint("push to a tag: registry.example:5000/path/name:tag"));
        }
        let registry = reference.resolve_registry().to_owned();
        let plain = is_loopback(&registry) || options.insecure_registries.contains(&registry);
        let client = Client::new(ClientConfig {
            protocol: if plain { ClientProtocol::Http } else { ClientProtocol::Https },
            connect_timeout: Some(CONNECT),
            read_timeout: Some(options.limits.stall),
            ..Default::default()
        });
        Ok(Self { client, reference, auth: credentials(&registry, options.docker_config.as_deref()) })
    }

    async fn log_in(&self) -> Result<(), ApiError> {
        self.tried(|| self.client.auth(&self.reference, &self.auth, RegistryOperation::Push).map_ok(drop).boxed()).await
    }

    /// Sends a blob unless it is there; gives how many bytes were sent.
    async fn blob(&self, digest: &str, size: u64, content: Content<'_>, progress: &Reporter) -> Result<u64, ApiError> {
        self.tried(|| self.blob_once(digest, size, content, progress).boxed()).await
    }

    async fn blob_once(
        &self,
        digest: &str,
        size: u64,
        content: Content<'_>,
        progress: &Reporter,
    ) -> Result<u64, OciDistributionError> {
        // Also before a repeat: the answer to a push that succeeded may have been lost.
        if self.client.blob_exists(&self.reference, digest).await? {
            progress.add(size);
            return Ok(0);
        }
        match content {
            Content::Bytes(bytes) => {
                self.client.push_blob(&self.reference, bytes.to_vec(), digest).await?;
            }
            Content::File(path) => {
                let file = tokio::fs::File::open(path).await?;
                let counted = Counted::new(progress);
                let seen = counted.clone();
                let bytes = ReaderStream::with_capacity(file, PIECE)
                    .map_err(OciDistributionError::from)
                    .inspect_ok(move |piece| seen.add(piece.len() as u64))
                    .boxed();
                let pushed = self.client.push_blob_stream(&self.reference, bytes, digest, Some(size)).await;
                if let Err(error) = pushed {
                    counted.take_back();
                    return Err(error);
                }
            }
        }
        Ok(size)
    }

    async fn manifest(&self, bytes: &[u8]) -> Result<(), ApiError> {
        let media = MANIFEST_TYPE.parse();
        let media = media.map_err(|_| ApiError::internal("the manifest's media type is no header value"))?;
        self.tried(move || {
            self.client.push_manifest_raw(&self.reference, bytes.to_vec(), Clone::clone(&media)).map_ok(drop).boxed()
        })
        .await
    }

    /// Tries again what may go better the next time.
    async fn tried<'a, T>(
        &'a self,
        work: impl Fn() -> BoxFuture<'a, Result<T, OciDistributionError>> + Send,
    ) -> Result<T, ApiError> {
        let mut pause = PAUSE;
        for left in (0..TRIES).rev() {
            match work().await.map_err(|error| self.told(&error)) {
                Err(error) if error.retryable && left > 0 => {
                    tracing::debug!(%error, "tried again");
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                }
                ended => return ended,
            }
        }
        Err(ApiError::unavailable("the registry was not tried"))
    }

    fn told(&self, error: &OciDistributionError) -> ApiError {
        let registry = self.reference.resolve_registry();
        let refused = || {
            ApiError::permission_denied(format!("{registry} refuses a push to {}", self.reference))
                .hint("put credentials for it into the host's docker config.json")
        };
        let text = files::chain(error);
        match error {
            OciDistributionError::UnauthorizedError { .. }
            | OciDistributionError::AuthenticationFailure(_)
            | OciDistributionError::ServerError { code: 401 | 403, .. } => refused(),
            OciDistributionError::ServerError { code: 400..500, .. } | OciDistributionError::RegistryError { .. } => {
                ApiError::failed_precondition(format!("{registry} does not take {}: {text}", self.reference))
            }
            _ => ApiError::unavailable(format!("the push to {registry} broke: {text}"))
                .hint("is its name right, and does it run?"),
        }
    }
}

/// What one try has sent, so that it can be taken back.
#[derive(Clone)]
struct Counted {
    progress: Reporter,
    sent: std::sync::Arc<std::sync::atomic::AtomicU64>,
}

impl Counted {
    fn new(progress: &Reporter) -> Self {
        Self { progress: progress.clone(), sent: std::sync::Arc::default() }
    }

    fn add(&self, bytes: u64) {
        self.sent.fetch_add(bytes, std::sync::atomic::Ordering::Relaxed);
        self.progress.add(bytes);
    }

    fn take_back(&self) {
        self.progress.take_back(self.sent.swap(0, std::sync::atomic::Ordering::Relaxed));
    }
}
