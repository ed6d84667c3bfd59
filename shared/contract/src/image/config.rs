//! An image's **config** is what its author asked to be run.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The most bytes of an [`ImageConfig`], as [`ImageConfig::size`] counts them: it stands in rows, messages and lists.
pub const CONFIG_MAX: usize = 64 * 1024;

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

impl ImageConfig {
    /// All its texts.
    pub fn texts(&self) -> impl Iterator<Item = &String> {
        self.entrypoint.iter().chain(&self.cmd).chain(&self.env).chain([&self.working_dir, &self.user])
    }

    /// The bytes of its texts, one more for each.
    pub fn size(&self) -> usize {
        self.texts().map(|text| text.len() + 1).sum()
    }
}
