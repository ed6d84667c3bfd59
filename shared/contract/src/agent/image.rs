//! **Images** on a host: staged, published, removed.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Fence;
use crate::{
    error::ApiError,
    id::ImageId,
    image::{ImageConfig, ImageSource},
    operation::Progress,
};

/// Starts staging an image, or asks how it goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StageRequest {
    /// The pull; its operation id names the staging directory.
    pub fence: Fence,
    /// Where from.
    pub source: ImageSource,
    /// How long to hold the reply while nothing ends, in milliseconds.
    pub wait_ms: u64,
}

/// Asks what a source stands for now; nothing is downloaded but its manifests and configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ResolveRequest {
    /// Where from.
    pub source: ImageSource,
}

/// What a source stands for on this host's architecture.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ResolvedImage {
    /// Digest of the manifest for this architecture: what [`StagedImage::digest`] would be.
    pub digest: String,
    /// OCI architecture.
    pub architecture: String,
    /// Bytes of each layer as it is downloaded, lowest first.
    pub layers: Vec<u64>,
}

/// How a staging goes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum StageStatus {
    /// Still at it.
    Running {
        /// `resolving`, `downloading`, `writing`.
        phase: String,
        /// Bytes.
        progress: Progress,
    },
    /// Whole and synced in the staging directory.
    Done {
        /// What it is.
        image: StagedImage,
    },
    /// Failed; the staging directory is gone.
    Failed {
        /// Why.
        error: ApiError,
    },
}

/// A staged image; stands in `manifest.json` beside the root filesystem too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StagedImage {
    /// Digest of the manifest for this architecture.
    pub digest: String,
    /// OCI architecture.
    pub architecture: String,
    /// Size of the root filesystem, in bytes.
    pub rootfs_bytes: u64,
    /// What its author asked to be run.
    pub config: ImageConfig,
}

/// Makes a staged image visible under its id: one rename, synced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PublishRequest {
    /// The pull.
    pub fence: Fence,
    /// The directory's final name.
    pub image: ImageId,
}

/// Ends a staging and removes its directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DiscardRequest {
    /// The pull.
    pub fence: Fence,
}

/// Removes a published image's files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RemoveImageRequest {
    /// The operation.
    pub fence: Fence,
    /// The image.
    pub image: ImageId,
}
