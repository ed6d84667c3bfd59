//! A **bundle** is an image ready to boot, as an OCI artifact (image-spec 1.1): a manifest whose configuration is the image's
//! [identity](super::identity) and whose layer is its root filesystem, packed ([`packing`]). Whoever pulls one unpacks no layers and
//! makes no filesystem.
//!
//! The manifest depends on how the root filesystem was packed; the image's digest, which is the configuration's, does not.

mod export;
mod pack;
mod packing;
mod push;
pub(super) mod superblock;
mod unpack;

use contract::ApiError;
use serde_json::json;

use super::identity::{self, Identity};

pub(super) use export::Exporting;
pub(super) use pack::{PACKED, Packed, packed};
pub(super) use push::Pushing;
pub(super) use unpack::{Layer, unpack};

/// What the manifest calls itself.
pub(super) const ARTIFACT_TYPE: &str = "application/vnd.warren.image.v1";
/// The packed root filesystem.
pub(super) const ROOTFS_TYPE: &str = "application/vnd.warren.rootfs.v1+zstd";
/// The form of the manifest.
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

/// The documents of a bundle: its configuration and its manifest, as bytes.
pub(super) struct Documents {
    pub config: Vec<u8>,
    pub manifest: Vec<u8>,
}

impl Documents {
    /// Of an image whose root filesystem was packed so.
    pub(super) fn new(identity: &Identity, packed: &Packed) -> Result<Self, ApiError> {
        let config = identity.document()?;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "artifactType": ARTIFACT_TYPE,
            "config": { "mediaType": identity::MEDIA_TYPE, "digest": identity::digest(&config), "size": config.len() },
            "layers": [{ "mediaType": ROOTFS_TYPE, "digest": packed.digest, "size": packed.size }],
        });
        // serde_json keeps the keys of an object sorted, so the same parts give the same bytes.
        let manifest = serde_json::to_vec(&manifest)
            .map_err(|error| ApiError::internal(format!("a bundle's manifest cannot be written: {error}")))?;
        Ok(Self { config, manifest })
    }
}
