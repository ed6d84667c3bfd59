//! **Registering** a root filesystem as an image.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{FileSource, ImageConfig};
use crate::{id::HostId, name::ImageName, operation::default_wait_ms};

/// Makes an image of a root filesystem: an ext4, squashfs or erofs file, a tar archive, or a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RegisterRequest {
    /// Where it is.
    pub source: FileSource,
    /// The name it gets here.
    pub name: ImageName,
    /// The host that holds it; left out, the live host with most free disk space.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostId>,
    /// What is run in VMs made from it.
    #[serde(default)]
    pub config: ImageConfig,
    /// The kernel its VMs boot, unless they ask for another: its name, id or digest, or how one of these two begins; left out, none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// Take the name from the image that has it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub replace: bool,
    /// Hold the reply until it is done.
    #[serde(default)]
    pub wait: bool,
    /// How long to hold it, in milliseconds.
    #[serde(default = "default_wait_ms")]
    pub timeout_ms: u64,
}
