//! An image's **config** is what its author asked to be run.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What an image's author asked to be run (OCI image-spec `config`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImageConfig {
    /// `Entrypoint`.
    #[serde(default)]
    pub entrypoint: Vec<String>,
    /// `Cmd`.
    #[serde(default)]
    pub cmd: Vec<String>,
    /// `Env`, each `NAME=value`.
    #[serde(default)]
    pub env: Vec<String>,
    /// `WorkingDir`; empty means `/`.
    #[serde(default)]
    pub working_dir: String,
    /// `User`; empty means root.
    #[serde(default)]
    pub user: String,
}
