//! **Pushes**: an image sent to a registry as a bundle.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::operation::default_wait_ms;

/// Pushes an image, ready to boot, to a registry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PushRequest {
    /// Its name or id.
    pub image: String,
    /// The registry reference it gets: `registry.example:5000/path/name:tag`. Registries are spoken to and logged in at as by a pull.
    pub reference: String,
    /// Hold the reply until the push has ended.
    #[serde(default)]
    pub wait: bool,
    /// How long to hold it, in milliseconds.
    #[serde(default = "default_wait_ms")]
    pub timeout_ms: u64,
}
