//! Where images come from: a registry or an OCI layout directory. Both give documents and blobs by digest; nothing
//! of either is believed before its digest was checked.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use contract::{ApiError, image::ImageSource};
use futures::{StreamExt, TryStreamExt, stream::BoxStream};
use oci_client::{
    Client, Reference,
    client::{ClientConfig, ClientProtocol},
    errors::{OciDistributionError, OciErrorCode},
    manifest::OciDescriptor,
    secrets::RegistryAuth,
};
use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt;
use tokio_util::io::ReaderStream;

use super::{ImageOptions, manifest::Descriptor};

/// How long a registry may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// What Warren understands; an index names other platforms' manifests too.
const ACCEPTED: [&str; 4] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];

/// A stream of a blob's bytes.
pub(super) type Blob = BoxStream<'static, std::io::Result<bytes::Bytes>>;

/// An open source.
pub(super) enum Source {
    Registry { client: Client, reference: Reference, auth: RegistryAuth },
    Layout { dir: PathBuf, reference: Option<String> },
}

impl Source {
    pub(super) fn open(source: &ImageSource, options: &ImageOptions) -> Result<Self, ApiError> {
        match source {
            ImageSource::Registry(text) => {
                let reference: Reference = text
                    .parse()
                    .map_err(|error| ApiError::invalid_argument(format!("{text:?} is no image reference: {error}")))?;
                let registry = reference.resolve_registry().to_owned();
                let plain = is_loopback(&registry) || options.insecure_registries.contains(&registry);
                let config = ClientConfig {
                    protocol: if plain { ClientProtocol::Http } else { ClientProtocol::Https },
                    connect_timeout: Some(CONNECT),
                    read_timeout: Some(options.limits.stall),
                    ..Default::default()
                };
                let auth = credentials(&registry, options.docker_config.as_deref());
                Ok(Self::Registry { client: Client::new(config), reference, auth })
            }
            ImageSource::Layout { path, reference } => {
                let dir = PathBuf::from(path);
                if !dir.is_absolute() {
                    return Err(ApiError::invalid_argument(format!("the layout path {path:?} is not absolute")));
                }
                if !dir.join("oci-layout").is_file() {
                    return Err(ApiError::not_found(format!("{path} is no OCI image layout on this host"))
                        .hint("an image layout is a directory with a file oci-layout and an index.json"));
                }
                Ok(Self::Layout { dir, reference: reference.clone() })
            }
        }
    }

    /// The document the source's name points to, with its digest.
    pub(super) async fn root(&self, limit: u64) -> Result<(Vec<u8>, String), ApiError> {
        match self {
            Self::Registry { client, reference, auth } => {
                let (bytes, _) = client
                    .pull_manifest_raw(reference, auth, &ACCEPTED)
                    .await
                    .map_err(|error| registry_error(&error, reference))?;
                let digest = format!("sha256:{}", hex::encode(Sha256::digest(&bytes)));
                if let Some(wanted) = reference.digest()
                    && wanted != digest
                {
                    return Err(mismatch("the manifest", wanted, &digest));
                }
                bounded(bytes.to_vec(), limit).map(|bytes| (bytes, digest))
            }
            Self::Layout { dir, .. } => {
                let bytes = read_bounded(&dir.join("index.json"), limit).await?;
                let digest = format!("sha256:{}", hex::encode(Sha256::digest(&bytes)));
                Ok((bytes, digest))
            }
        }
    }

    /// Which of a layout's manifests is meant.
    pub(super) fn wanted(&self) -> Option<&str> {
        match self {
            Self::Registry { .. } => None,
            Self::Layout { reference, .. } => reference.as_deref(),
        }
    }

    /// A manifest by digest, checked.
    pub(super) async fn manifest(&self, descriptor: &Descriptor, limit: u64) -> Result<Vec<u8>, ApiError> {
        let bytes = match self {
            Self::Registry { client, reference, auth } => {
                let pinned = reference.clone_with_digest(descriptor.digest.clone());
                let (bytes, _) = client
                    .pull_manifest_raw(&pinned, auth, &ACCEPTED)
                    .await
                    .map_err(|error| registry_error(&error, &pinned))?;
                bounded(bytes.to_vec(), limit)?
            }
            Self::Layout { .. } => return self.document(descriptor, limit).await,
        };
        checked(bytes, descriptor)
    }

    /// A small blob by digest, checked.
    pub(super) async fn document(&self, descriptor: &Descriptor, limit: u64) -> Result<Vec<u8>, ApiError> {
        if descriptor.size > limit {
            return Err(ApiError::invalid_argument(format!("{} has more than {limit} bytes", descriptor.digest)));
        }
        let mut blob = self.blob(descriptor).await?;
        let mut bytes = Vec::new();
        while let Some(chunk) = blob.try_next().await.map_err(|error| broken(&descriptor.digest, &error))? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() as u64 > descriptor.size {
                break;
            }
        }
        checked(bytes, descriptor)
    }

    /// A blob's bytes, not checked yet.
    pub(super) async fn blob(&self, descriptor: &Descriptor) -> Result<Blob, ApiError> {
        match self {
            Self::Registry { client, reference, .. } => {
                let wanted = OciDescriptor {
                    digest: descriptor.digest.clone(),
                    size: i64::try_from(descriptor.size).unwrap_or(i64::MAX),
                    ..Default::default()
                };
                let sized = client
                    .pull_blob_stream(reference, &wanted)
                    .await
                    .map_err(|error| registry_error(&error, reference))?;
                Ok(sized.stream)
            }
            Self::Layout { dir, .. } => {
                let hash = descriptor.digest.trim_start_matches("sha256:");
                let path = dir.join("blobs/sha256").join(hash);
                let file = tokio::fs::File::open(&path).await.map_err(|error| {
                    ApiError::not_found(format!("{} is not in the layout: {error}", descriptor.digest))
                })?;
                Ok(ReaderStream::with_capacity(file, 256 * 1024).boxed())
            }
        }
    }
}

/// Registries on this machine are spoken to over http, as docker does.
pub(in crate::image) fn is_loopback(registry: &str) -> bool {
    let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host).trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// What docker's configuration holds for a registry; nobody's where it holds nothing.
pub(in crate::image) fn credentials(registry: &str, docker_config: Option<&Path>) -> RegistryAuth {
    let found = match docker_config {
        Some(dir) => std::fs::File::open(dir.join("config.json"))
            .ok()
            .and_then(|file| docker_credential::get_credential_from_reader(file, registry).ok()),
        None => docker_credential::get_credential(registry).ok(),
    };
    match found {
        Some(docker_credential::DockerCredential::UsernamePassword(user, password)) => {
            RegistryAuth::Basic(user, password)
        }
        Some(docker_credential::DockerCredential::IdentityToken(token)) => RegistryAuth::Bearer(token),
        None => RegistryAuth::Anonymous,
    }
}

async fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>, ApiError> {
    let mut bytes = Vec::new();
    let read = async { tokio::fs::File::open(path).await?.take(limit + 1).read_to_end(&mut bytes).await.map(drop) };
    let outcome: std::io::Result<()> = read.await;
    outcome.map_err(|error| ApiError::not_found(format!("{} cannot be read: {error}", path.display())))?;
    bounded(bytes, limit)
}

fn bounded(bytes: Vec<u8>, limit: u64) -> Result<Vec<u8>, ApiError> {
    if bytes.len() as u64 > limit {
        return Err(ApiError::invalid_argument(format!("a manifest has more than {limit} bytes")));
    }
    Ok(bytes)
}

fn checked(bytes: Vec<u8>, descriptor: &Descriptor) -> Result<Vec<u8>, ApiError> {
    let digest = format!("sha256:{}", hex::encode(Sha256::digest(&bytes)));
    if digest != descriptor.digest || bytes.len() as u64 != descriptor.size {
        return Err(mismatch("a document", &descriptor.digest, &digest));
    }
    Ok(bytes)
}

/// The error of bytes that are not what their digest says.
pub(super) fn mismatch(what: &str, wanted: &str, got: &str) -> ApiError {
    ApiError::failed_precondition(format!("digest mismatch: {what} should be {wanted} and is {got}"))
        .hint("the registry or its storage is damaged; push the image again")
}

/// The error of a download that broke.
pub(super) fn broken(digest: &str, error: &std::io::Error) -> ApiError {
    let causes = std::iter::successors(std::error::Error::source(error), |error| error.source());
    let text = causes.map(ToString::to_string).fold(error.to_string(), |all, cause| format!("{all}: {cause}"));
    // oci-client checks digests itself and says so in an io::Error.
    if text.to_lowercase().contains("digest") {
        return ApiError::failed_precondition(format!("digest mismatch: {digest}: {text}"))
            .hint("the registry or its storage is damaged; push the image again");
    }
    ApiError::unavailable(format!("the download of {digest} broke: {text}"))
}

fn registry_error(error: &OciDistributionError, reference: &Reference) -> ApiError {
    let registry = reference.resolve_registry();
    let text = error.to_string();
    match error {
        OciDistributionError::UnauthorizedError { .. } | OciDistributionError::AuthenticationFailure(_) => {
            ApiError::permission_denied(format!("{registry} refuses {reference}: {text}"))
                .hint("put credentials for it into the host's docker config.json")
        }
        OciDistributionError::ImageManifestNotFoundError(_) => {
            ApiError::not_found(format!("{reference} does not exist"))
        }
        OciDistributionError::RegistryError { envelope, .. } => {
            let codes: Vec<_> = envelope.errors.iter().map(|error| &error.code).collect();
            if codes.iter().any(|code| {
                matches!(
                    code,
                    OciErrorCode::ManifestUnknown
                        | OciErrorCode::NameUnknown
                        | OciErrorCode::BlobUnknown
                        | OciErrorCode::NotFound
                )
            }) {
                ApiError::not_found(format!("{reference} does not exist"))
            } else if codes.iter().any(|code| matches!(code, OciErrorCode::Unauthorized | OciErrorCode::Denied)) {
                ApiError::permission_denied(format!("{registry} refuses {reference}"))
            } else {
                ApiError::unavailable(format!("{registry} answers {text}"))
            }
        }
        OciDistributionError::ServerError { code: 404, .. } => {
            ApiError::not_found(format!("{reference} does not exist"))
        }
        OciDistributionError::ServerError { code: 401 | 403, .. } => {
            ApiError::permission_denied(format!("{registry} refuses {reference}"))
        }
        OciDistributionError::DigestError(_) => ApiError::failed_precondition(format!("digest mismatch: {text}")),
        OciDistributionError::RequestError(_)
        | OciDistributionError::IoError(_)
        | OciDistributionError::ServerError { .. } => {
            ApiError::unavailable(format!("the registry {registry} cannot be reached: {text}"))
                .hint("is its name right, and does it run?")
        }
        _ => ApiError::invalid_argument(format!("{registry} answers what is no image: {text}")),
    }
}
