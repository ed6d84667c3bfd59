//! **Files** that images are made of: a host's, a client's, or of an object store.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::id::SessionId;

/// The longest [`FileSource::Upload`] `label`, in bytes.
pub const LABEL_MAX: usize = 255;

/// Where a file (or a directory) is that an image is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum FileSource {
    /// On the host that makes the image, below one of the directories its operator allows (`WARREN_IMAGE_DIRS`).
    Path(String),
    /// With the caller, who listens as the opener of that session and sends the file in its sparse form (crate `archive`); a directory
    /// as a tar archive. Where that breaks off it goes on ([`crate::upload`]).
    Upload {
        /// The byte stream.
        session: SessionId,
        /// What the caller calls the file; shown, at most [`LABEL_MAX`] bytes.
        #[serde(default)]
        label: String,
    },
    /// In a JetStream object store, `bucket/name`.
    Object(String),
}

impl std::fmt::Display for FileSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Path(path) => write!(f, "file:{path}"),
            Self::Upload { label, .. } => write!(f, "upload:{label}"),
            Self::Object(name) => write!(f, "object:{name}"),
        }
    }
}
