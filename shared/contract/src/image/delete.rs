//! **Deletes**: an image taken away.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::operation::default_wait_ms;

/// Deletes an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeleteRequest {
    /// Its name or id.
    pub image: String,
    /// Hold the reply until its files are gone too.
    #[serde(default)]
    pub wait: bool,
    /// How long to hold it, in milliseconds.
    #[serde(default = "default_wait_ms")]
    pub timeout_ms: u64,
}
