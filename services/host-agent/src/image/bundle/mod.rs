//! A **bundle** is an image ready to boot, as an OCI artifact (image-spec 1.1): a manifest whose configuration is the image's
//! [identity](super::identity) and whose layer is its root filesystem, packed ([`packing`]). Whoever pulls one unpacks no layers and
//! makes no filesystem. The kernel that the image names goes along in a layer beside ([`kernel`]).
//!
//! The manifest depends on how the root filesystem was packed; the image's digest, which is the configuration's, does not.

mod export;
mod kernel;
mod pack;
mod packing;
mod push;
pub(super) mod superblock;
mod unpack;

use contract::ApiError;
use serde_json::json;

use super::identity::{self, Identity};

pub(super) use export::Exporting;
pub(super) use kernel::{KERNEL_DIGEST, KERNEL_TYPE, Taken};
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
    /// Of an image whose root filesystem was packed so, and the kernel it takes along.
    pub(super) fn new(identity: &Identity, packed: &Packed, kernel: Option<&kernel::Packed>) -> Result<Self, ApiError> {
        let config = identity.document()?;
        let rootfs = json!({ "mediaType": ROOTFS_TYPE, "digest": packed.digest, "size": packed.size });
        let layers: Vec<_> = std::iter::once(rootfs).chain(kernel.map(kernel::Packed::descriptor)).collect();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "artifactType": ARTIFACT_TYPE,
            "config": { "mediaType": identity::MEDIA_TYPE, "digest": identity::digest(&config), "size": config.len() },
            "layers": layers,
        });
        // serde_json keeps the keys of an object sorted, so the same parts give the same bytes.
        let manifest = serde_json::to_vec(&manifest)
            .map_err(|error| ApiError::internal(format!("a bundle's manifest cannot be written: {error}")))?;
        Ok(Self { config, manifest })
    }
}
