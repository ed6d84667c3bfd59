//! **Bundles** on a host: images packed for a registry.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Fence, VmKernel};
use crate::{
    error::ApiError,
    id::{ImageId, SessionId},
    operation::Progress,
};

/// Starts pushing an image as a bundle, or asks how it goes. `image.discard` ends it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PushBundleRequest {
    /// The push; its operation id names the directory it packs in.
    pub fence: Fence,
    /// The image, which is here.
    pub image: ImageId,
    /// The kernel it takes along, which is here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<VmKernel>,
    /// The registry reference it is pushed to.
    pub reference: String,
    /// How long to hold the reply while nothing ends, in milliseconds.
    pub wait_ms: u64,
}

/// Starts sending an image as an archive, or asks how it goes. `image.discard` ends it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExportBundleRequest {
    /// The export; its operation id names the directory it packs in.
    pub fence: Fence,
    /// The image, which is here.
    pub image: ImageId,
    /// The kernel it takes along, which is here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<VmKernel>,
    /// What the archive calls the image.
    pub name: String,
    /// The byte stream, whose opener takes the archive.
    pub session: SessionId,
    /// How long to hold the reply while nothing ends, in milliseconds.
    pub wait_ms: u64,
}

/// How a push goes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum PushStatus {
    /// Still at it.
    Running {
        /// `packing`, `pushing`, `sending`.
        phase: String,
        /// Bytes.
        progress: Progress,
    },
    /// The registry has it all.
    Done {
        /// What it has.
        pushed: PushedBundle,
    },
    /// Failed; the registry may have some of its blobs, which no manifest names.
    Failed {
        /// Why.
        error: ApiError,
    },
}

/// A bundle in a registry, or in an archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PushedBundle {
    /// Digest of its manifest, by which a registry is asked for it.
    pub manifest: String,
    /// Digest of the image that a pull of it makes.
    pub image: String,
    /// Bytes of its packed root filesystem.
    pub bundle_bytes: u64,
    /// Bytes the registry did not have before; of an archive, all its bytes.
    pub sent_bytes: u64,
}
