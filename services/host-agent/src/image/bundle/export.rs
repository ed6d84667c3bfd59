//! **Exporting** a bundle: packed, then sent as a tar archive of an OCI layout (image-spec 1.1, `image-layout.md`), which any tool for such
//! archives reads.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use bus::{Bus, ByteStream};
use contract::{
    ApiError, SessionId,
    agent::{PushedBundle, StagedImage},
};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

use super::{ARTIFACT_TYPE, Documents, MANIFEST_TYPE, PACKED, Packed, Taken, kernel, packed};
use crate::{
    files,
    image::{
        ImageOptions,
        identity::{self, Identity},
        progress::Reporter,
        storage_error,
    },
};

/// How much of a file is read at once.
const PIECE: usize = 256 << 10;
/// How long whoever takes the archive may need for the last pieces that are on their way, a megabyte at the most.
const LAST: Duration = Duration::from_secs(120);
/// The unit of a tar archive.
const BLOCK: usize = 512;

/// One export.
pub(in crate::image) struct Exporting {
    /// The image's root filesystem.
    pub rootfs: PathBuf,
    /// The image.
    pub image: StagedImage,
    /// The kernel it takes along.
    pub kernel: Option<Taken>,
    /// What the archive calls it.
    pub name: String,
    /// A directory of its own, for the packed root filesystem.
    pub dir: PathBuf,
    /// Carries the archive.
    pub bus: Bus,
    /// The byte stream, whose opener takes it.
    pub session: SessionId,
    pub options: ImageOptions,
    pub progress: Reporter,
    pub cancel: CancellationToken,
}

impl Exporting {
    /// Packs the image and sends the archive. Whether it succeeds or not, the directory is gone afterwards.
    ///
    /// # Errors
    /// Nobody takes the archive to its end, a file cannot be read or written, or it was called off.
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
        // Its opener hears from the beginning that this lives, and is told why where it comes to nothing.
        let mut stream = ByteStream::accept(&self.bus, self.session).await?;
        let outcome = self.archive(&mut stream).await;
        match outcome {
            // Its last bytes are taken, or its opener is gone: what it has it can tell by the digests.
            Ok(pushed) => tokio::select! {
                () = stream.closed() => Ok(pushed),
                () = self.cancel.cancelled() => Err(ApiError::cancelled("the export was called off")),
                () = tokio::time::sleep(LAST) => Err(ApiError::unavailable(format!(
                    "the end of the archive was not taken within {} s",
                    LAST.as_secs()
                ))
                .hint("export it again")),
            },
            Err(error) => {
                stream.reset(error.message.clone()).await;
                Err(error)
            }
        }
    }

    async fn archive(&self, stream: &mut ByteStream) -> Result<PushedBundle, ApiError> {
        let packed = packed(&self.rootfs, &self.dir, &self.options, &self.progress, &self.cancel).await?;
        let kernel = kernel::packed(self.kernel.as_ref(), &self.dir, &self.progress, &self.cancel).await?;
        let config = self.image.config.clone();
        let identity =
            Identity::new(&self.image.architecture, packed.raw_digest.clone(), packed.raw_size, None, config);
        let documents = Documents::new(&identity, &packed, kernel.as_ref())?;
        runtime::fault::point("agent/image.export/packed");
        tokio::select! {
            sent = self.send(stream, &packed, kernel.as_ref(), &documents) => {
                let sent_bytes = sent?;
                Ok(PushedBundle {
                    manifest: identity::digest(&documents.manifest),
                    image: identity.digest()?,
                    bundle_bytes: packed.size,
                    sent_bytes,
                })
            }
            () = self.cancel.cancelled() => Err(ApiError::cancelled("the export was called off")),
        }
    }

    /// Sends the archive, small members first; gives its length.
    async fn send(
        &self,
        stream: &mut ByteStream,
        packed: &Packed,
        kernel: Option<&kernel::Packed>,
        documents: &Documents,
    ) -> Result<u64, ApiError> {
        self.progress.phase("sending", packed.size + kernel.map_or(0, |kernel| kernel.size));
        let index = index(&self.name, &self.image.architecture, &documents.manifest)?;
        let mut archive = Archive { stream, written: 0 };
        archive.bytes("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#).await?;
        archive.bytes("index.json", &index).await?;
        for document in [&documents.manifest, &documents.config] {
            archive.bytes(&blob(&identity::digest(document)), document).await?;
        }
        archive.file(&blob(&packed.digest), &self.dir.join(PACKED), packed.size, &self.progress).await?;
        if let Some(kernel) = kernel {
            let path = self.dir.join(kernel::PACKED);
            archive.file(&blob(&kernel.digest), &path, kernel.size, &self.progress).await?;
        }
        archive.end().await
    }
}

/// A blob's name in a layout.
fn blob(digest: &str) -> String {
    format!("blobs/sha256/{}", digest.trim_start_matches("sha256:"))
}

fn index(name: &str, architecture: &str, manifest: &[u8]) -> Result<Vec<u8>, ApiError> {
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{
            "mediaType": MANIFEST_TYPE,
            "artifactType": ARTIFACT_TYPE,
            "digest": identity::digest(manifest),
            "size": manifest.len(),
            "platform": { "architecture": architecture, "os": "linux" },
            "annotations": { "org.opencontainers.image.ref.name": name },
        }],
    });
    serde_json::to_vec(&index).map_err(|error| ApiError::internal(format!("an index cannot be written: {error}")))
}

/// A tar archive on its way.
struct Archive<'a> {
    stream: &'a mut ByteStream,
    written: u64,
}

impl Archive<'_> {
    async fn header(&mut self, name: &str, size: u64) -> Result<(), ApiError> {
        let mut header = tar::Header::new_gnu();
        header.set_size(size);
        header.set_mode(0o644);
        header.set_mtime(0);
        // Names are as long as a digest, which fits.
        header
            .set_path(name)
            .map_err(|error| ApiError::internal(format!("{name} has no place in an archive: {error}")))?;
        header.set_cksum();
        self.write(header.as_bytes()).await
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), ApiError> {
        self.stream.write_all(bytes).await.map_err(|error| {
            ApiError::unavailable(format!("the archive is not taken any more: {error}")).hint("export it again")
        })?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    async fn pad(&mut self, size: u64) -> Result<(), ApiError> {
        let over = usize::try_from(size % BLOCK as u64).unwrap_or(0);
        self.write(&[0; BLOCK][..(BLOCK - over) % BLOCK]).await
    }

    async fn bytes(&mut self, name: &str, bytes: &[u8]) -> Result<(), ApiError> {
        self.header(name, bytes.len() as u64).await?;
        self.write(bytes).await?;
        self.pad(bytes.len() as u64).await
    }

    async fn file(&mut self, name: &str, path: &Path, size: u64, progress: &Reporter) -> Result<(), ApiError> {
        self.header(name, size).await?;
        let mut file = tokio::fs::File::open(path).await.map_err(|error| storage_error(path, &error))?;
        let (mut left, mut piece) = (size, vec![0; PIECE]);
        while left > 0 {
            let wanted = usize::try_from(left).map_or(PIECE, |left| left.min(PIECE));
            file.read_exact(&mut piece[..wanted]).await.map_err(|error| storage_error(path, &error))?;
            self.write(&piece[..wanted]).await?;
            left -= wanted as u64;
            progress.add(wanted as u64);
        }
        self.pad(size).await
    }

    async fn end(mut self) -> Result<u64, ApiError> {
        self.write(&[0; 2 * BLOCK]).await?;
        self.stream.shutdown().await.map_err(|error| {
            ApiError::unavailable(format!("the archive is not taken any more: {error}")).hint("export it again")
        })?;
        Ok(self.written)
    }
}
