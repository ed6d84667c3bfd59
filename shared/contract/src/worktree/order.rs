//! **Orders**: what a host and its guest are told to do with a workspace.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{About, Placing};
use crate::id::OperationId;

/// What a host and its guest are told of a prepare.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ImportOrder {
    /// The prepare; becomes the base's generation.
    pub operation: OperationId,
    /// The epoch of its claim on the VM's workspaces; a lower one than was seen is refused with `aborted`.
    pub epoch: i64,
    /// The directory.
    pub path: String,
    /// Whose the files become.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// How they get to their place.
    #[serde(default)]
    pub placing: Placing,
    /// Go on over changes that were never exported.
    #[serde(default)]
    pub force: bool,
    /// Remove what git ignores too.
    #[serde(default)]
    pub clean: bool,
    /// What the tree was taken from.
    #[serde(default)]
    pub about: About,
}

/// What a host and its guest are told of an export.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExportOrder {
    /// The export.
    pub operation: OperationId,
    /// The epoch of its claim on the VM's workspaces.
    pub epoch: i64,
    /// The directory.
    pub path: String,
    /// Send the objects of commits made in the VM.
    #[serde(default)]
    pub commits: bool,
    /// What is taken out becomes the base.
    #[serde(default)]
    pub advance: bool,
    /// Fail when the changed files have more bytes.
    pub max_bytes: u64,
    /// Fail when more entries changed.
    pub max_entries: u64,
}

/// What a host and its guest are told of a removal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RemoveOrder {
    /// The removal.
    pub operation: OperationId,
    /// The epoch of its claim on the VM's workspaces.
    pub epoch: i64,
    /// The directory.
    pub path: String,
    /// Keep the files.
    #[serde(default)]
    pub keep_files: bool,
    /// Go on where changes were never exported.
    #[serde(default)]
    pub force: bool,
}
