//! A **source** is where an image comes from.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where an image comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ImageSource {
    /// A registry reference, e.g. `127.0.0.1:5000/debian:12` or `…@sha256:…`. Loopback registries are
    /// spoken to over http, others over https unless the host-agent's configuration says otherwise.
    Registry(String),
    /// An OCI image layout directory on the host that stages it (an absolute path), with the name of the
    /// manifest (`org.opencontainers.image.ref.name`) where it holds several.
    Layout {
        /// Absolute path of the layout directory.
        path: String,
        /// Which manifest, where there are several.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reference: Option<String>,
    },
}

impl std::fmt::Display for ImageSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Registry(reference) => f.write_str(reference),
            Self::Layout { path, reference: None } => write!(f, "oci:{path}"),
            Self::Layout { path, reference: Some(reference) } => write!(f, "oci:{path}:{reference}"),
        }
    }
}
