//! **Pulls**: an image fetched from a source.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ImageSource;
use crate::{id::HostId, name::ImageName, operation::default_wait_ms};

/// Pulls an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PullRequest {
    /// Where from.
    pub source: ImageSource,
    /// The name it gets here.
    pub name: ImageName,
    /// The host that holds it; left out, the live host with most free disk space.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostId>,
    /// Where the name means another image already: move it to what the source means now, in the publication's own
    /// transaction. VMs keep the image they were made from.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub if_newer: bool,
    /// Hold the reply until the pull has ended.
    #[serde(default)]
    pub wait: bool,
    /// How long to hold it, in milliseconds.
    #[serde(default = "default_wait_ms")]
    pub timeout_ms: u64,
}
