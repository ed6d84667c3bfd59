//! What clients **ask** for: a prepare, an export, a removal.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{DEFAULT_PATH, EXPORT_BYTES, EXPORT_ENTRIES, Source};
use crate::{id::SessionId, operation::default_wait_ms};

fn default_path() -> String {
    DEFAULT_PATH.to_owned()
}

/// How a tree gets to its place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Placing {
    /// Built aside and swapped in by one rename: the whole tree is the old one or the new one.
    #[default]
    Swap,
    /// Each file replaced by a rename of its own, in the tree that is there, so that processes in it see the changes.
    InPlace,
}

/// Puts a tree of files into a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PrepareRequest {
    /// The VM's name or id.
    pub vm: String,
    /// The directory in the VM, absolute.
    #[serde(default = "default_path")]
    pub path: String,
    /// Whose the files become: a user name or `uid[:gid]`; left out, root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Where they come from.
    pub source: Source,
    /// How they get to their place.
    #[serde(default)]
    pub placing: Placing,
    /// Go on where changes in the VM were never exported, or a directory is there that is no workspace: they are lost.
    #[serde(default)]
    pub force: bool,
    /// Remove what git ignores too (build outputs, caches), which otherwise stays.
    #[serde(default)]
    pub clean: bool,
    /// Hold the reply until the operation has ended.
    #[serde(default)]
    pub wait: bool,
    /// How long to hold it, in milliseconds.
    #[serde(default = "default_wait_ms")]
    pub timeout_ms: u64,
}

/// Takes the changes out of a workspace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExportRequest {
    /// The VM's name or id.
    pub vm: String,
    /// The workspace's directory; left out, the VM's only one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The byte stream that the caller listens on as its opener: it carries a tar archive in `stdout` frames, whose first entry,
    /// `changes.json`, is a [`ChangeList`](super::ChangeList); `tree/…` are the changed files, `git/…` objects of commits made in the VM.
    pub session: SessionId,
    /// Send the objects of commits that were made in the VM too.
    #[serde(default)]
    pub commits: bool,
    /// What is taken out becomes the base: the next export holds what changes from now on.
    #[serde(default)]
    pub advance: bool,
    /// Fail when the changed files have more bytes.
    #[serde(default = "export_bytes")]
    pub max_bytes: u64,
    /// Fail when more entries changed.
    #[serde(default = "export_entries")]
    pub max_entries: u64,
    /// Hold the reply until the operation has ended.
    #[serde(default)]
    pub wait: bool,
    /// How long to hold it, in milliseconds.
    #[serde(default = "default_wait_ms")]
    pub timeout_ms: u64,
}

fn export_bytes() -> u64 {
    EXPORT_BYTES
}

fn export_entries() -> u64 {
    EXPORT_ENTRIES
}

/// Names a workspace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WorkspaceRef {
    /// The VM's name or id.
    pub vm: String,
    /// The workspace's directory; left out, the VM's only one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
}

/// Forgets a workspace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RemoveRequest {
    /// The VM's name or id.
    pub vm: String,
    /// The workspace's directory; left out, the VM's only one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Keep the files; only what is known of them is forgotten.
    #[serde(default)]
    pub keep_files: bool,
    /// Go on where changes were never exported.
    #[serde(default)]
    pub force: bool,
    /// Hold the reply until the operation has ended.
    #[serde(default)]
    pub wait: bool,
    /// How long to hold it, in milliseconds.
    #[serde(default = "default_wait_ms")]
    pub timeout_ms: u64,
}
