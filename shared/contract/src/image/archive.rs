//! **Archives**: an image in one file, a tar archive of an OCI layout.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::FileSource;
use crate::{
    id::{HostId, SessionId},
    name::ImageName,
    operation::default_wait_ms,
};

/// Sends an image as an archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExportRequest {
    /// Its name, id or digest, or how one of these two begins.
    pub image: String,
    /// The byte stream, whose opener takes the archive.
    pub session: SessionId,
    /// Hold the reply until it is sent.
    #[serde(default)]
    pub wait: bool,
    /// How long to hold it, in milliseconds.
    #[serde(default = "default_wait_ms")]
    pub timeout_ms: u64,
}

/// Makes an image of an archive, checked as one that is pulled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ImportRequest {
    /// Where it is.
    pub source: FileSource,
    /// The name the image gets here.
    pub name: ImageName,
    /// The host that holds it; left out, the live host with most free disk space.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostId>,
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
