//! The **source** of a tree: where it comes from, and what is told of that.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::id::SessionId;

/// How much of a repository's history goes along.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum History {
    /// All commits that HEAD reaches.
    #[default]
    Full,
    /// The last so many commits (1 or more); the repository in the VM is shallow.
    Depth(u32),
    /// No repository at all: files only.
    None,
}

/// What a tree was taken from, as whoever took it tells; shown, and given back with an export.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct About {
    /// The directory or URL, without credentials; at most 1024 bytes.
    pub origin: String,
    /// The commit HEAD was at, in hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<String>,
    /// The branch HEAD was on; none when detached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub branch: Option<String>,
    /// The name of the branch's upstream, such as `origin/main`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream: Option<String>,
    /// The commit or tree that holds exactly what was put into the VM, in the repository it was taken from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
    /// How much history went along; left out for what is no repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub history: Option<History>,
}

/// Where the files of a prepare come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Source {
    /// From the caller, who listens as the opener of that session and speaks the tree protocol (crate `tree`).
    Upload {
        /// The byte stream.
        session: SessionId,
        /// What the tree was taken from.
        #[serde(default)]
        about: About,
    },
    /// A git repository that workspace-service reaches.
    Git {
        /// `https://`, `http://`, `ssh://`, `git://` or `file://` (where the service allows it).
        url: String,
        /// A branch, tag, or full commit id; left out, the remote's HEAD.
        #[serde(default, rename = "ref", skip_serializing_if = "Option::is_none")]
        reference: Option<String>,
        /// How much history goes along.
        #[serde(default)]
        history: History,
    },
    /// A directory on the VM's host, below one of those its operator allows (`WARREN_WORKSPACE_DIRS`).
    Host {
        /// Absolute.
        path: String,
    },
    /// A tar archive in a JetStream object store, `bucket/name`.
    Object(String),
}
