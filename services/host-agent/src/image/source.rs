//! Where images come from: a registry, or an OCI layout. Both give documents and layers by digest; nothing of either is believed before its
//! digest was checked.

use std::sync::Arc;

use contract::{ApiError, image::ImageSource};

use super::{ImageOptions, identity::digest, layout::Layout, manifest::Descriptor, registry::Registry};

/// An open source.
pub(super) enum Source {
    Registry(Arc<Registry>),
    Layout { layout: Arc<Layout>, reference: Option<String> },
}

impl Source {
    pub(super) async fn open(source: &ImageSource, options: &ImageOptions) -> Result<Self, ApiError> {
        match source {
            ImageSource::Registry(text) => Ok(Self::Registry(Arc::new(Registry::open(text, options)?))),
            ImageSource::Layout { path, reference } => {
                let path = path.clone();
                let layout = blocking(move || Layout::open(&path)).await?;
                Ok(Self::Layout { layout: Arc::new(layout), reference: reference.clone() })
            }
        }
    }

    /// The document the source's name points to, with its digest.
    pub(super) async fn root(&self, limit: u64) -> Result<(Vec<u8>, String), ApiError> {
        match self {
            Self::Registry(registry) => registry.root(limit).await,
            Self::Layout { layout, .. } => {
                let layout = layout.clone();
                let bytes = blocking(move || layout.read("index.json", limit)).await?;
                let digest = digest(&bytes);
                Ok((bytes, digest))
            }
        }
    }

    /// Which of a layout's manifests is meant.
    pub(super) fn wanted(&self) -> Option<&str> {
        match self {
            Self::Registry(_) => None,
            Self::Layout { reference, .. } => reference.as_deref(),
        }
    }

    /// A manifest by digest, checked.
    pub(super) async fn manifest(&self, descriptor: &Descriptor, limit: u64) -> Result<Vec<u8>, ApiError> {
        match self {
            Self::Registry(registry) => registry.manifest(descriptor, limit).await,
            Self::Layout { .. } => self.document(descriptor, limit).await,
        }
    }

    /// A small blob by digest, checked.
    pub(super) async fn document(&self, descriptor: &Descriptor, limit: u64) -> Result<Vec<u8>, ApiError> {
        if descriptor.size > limit {
            return Err(ApiError::invalid_argument(format!("{} has more than {limit} bytes", descriptor.digest)));
        }
        match self {
            Self::Registry(registry) => registry.document(descriptor).await,
            Self::Layout { layout, .. } => {
                let (layout, wanted) = (layout.clone(), descriptor.clone());
                let name = format!("blobs/sha256/{}", wanted.digest.trim_start_matches("sha256:"));
                checked(blocking(move || layout.read(&name, limit)).await?, descriptor)
            }
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| ApiError::internal(format!("a layout was not read: {error}")))?
}

/// The bytes, if they are what their descriptor says.
pub(super) fn checked(bytes: Vec<u8>, descriptor: &Descriptor) -> Result<Vec<u8>, ApiError> {
    let got = digest(&bytes);
    if got != descriptor.digest || bytes.len() as u64 != descriptor.size {
        return Err(mismatch("a document", &descriptor.digest, &got));
    }
    Ok(bytes)
}

/// The error of bytes that are not what their digest says.
pub(super) fn mismatch(what: &str, wanted: &str, got: &str) -> ApiError {
    ApiError::failed_precondition(format!("digest mismatch: {what} should be {wanted} and is {got}"))
        .hint("the registry or its storage is damaged; push the image again")
}
