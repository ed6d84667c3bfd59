//! An **image** as clients see it, and how they name one.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::ImageConfig;
use crate::{
    agent::VmKernel,
    id::{HostId, ImageId},
    name::ImageName,
};

/// The fewest digits by which an id or a digest is found.
pub const PREFIX_MIN: usize = 8;

/// Names one image: by name, id, digest, or the unique beginning of an id or digest (at least
/// [`PREFIX_MIN`] digits).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageRef {
    /// Its name, id or digest, or how one of these two begins.
    pub image: String,
}

/// An image as clients see it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Image {
    /// Its id.
    pub id: ImageId,
    /// The name that was asked for, or the first of its names; the first digits of its digest where it has none.
    pub name: ImageName,
    /// All its names, in order.
    #[serde(default)]
    pub names: Vec<ImageName>,
    /// The digest of its manifest for this architecture: `sha256:…`.
    pub digest: String,
    /// Where it came from.
    pub source: String,
    /// OCI architecture, e.g. `amd64`.
    pub architecture: String,
    /// Size of its root filesystem, in bytes.
    pub rootfs_bytes: u64,
    /// What its author asked to be run.
    pub config: ImageConfig,
    /// The kernel of the lab's that it names, if it names one. It is no part of its digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<VmKernel>,
    /// The hosts that hold it.
    pub hosts: Vec<HostId>,
    /// Hosts that are to hold it and were found to lack it, or to have it damaged. A pull of it to such a host brings it back.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<HostId>,
    /// Since when it is known to have no name: it is removed some time after that, once no VM uses it.
    #[serde(default, with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub unnamed_at: Option<OffsetDateTime>,
    /// When it was published.
    #[serde(with = "time::serde::rfc3339")]
    #[schemars(with = "String")]
    pub created_at: OffsetDateTime,
}
