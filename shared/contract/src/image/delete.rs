//! **Deletes**: an image taken away.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::operation::default_wait_ms;

/// Takes a name away, and with the last name the image; by id or digest, the image with all its names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeleteRequest {
    /// Its name, id or digest, or how one of these two begins.
    pub image: String,
    /// Hold the reply until its files are gone too.
    #[serde(default)]
    pub wait: bool,
    /// How long to hold it, in milliseconds.
    #[serde(default = "default_wait_ms")]
    pub timeout_ms: u64,
}
