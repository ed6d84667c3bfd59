//! **Naming**: names are movable pointers to images.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{name::ImageName, operation::default_wait_ms};

/// Gives an image one more name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TagRequest {
    /// Its name, id or digest, or how one of these two begins.
    pub image: String,
    /// The name it gets.
    pub name: ImageName,
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

/// Changes a name; what it means stays.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RenameRequest {
    /// The name as it is.
    pub from: ImageName,
    /// The name as it is to be, which is free.
    pub to: ImageName,
    /// Hold the reply until it is done.
    #[serde(default)]
    pub wait: bool,
    /// How long to hold it, in milliseconds.
    #[serde(default = "default_wait_ms")]
    pub timeout_ms: u64,
}
