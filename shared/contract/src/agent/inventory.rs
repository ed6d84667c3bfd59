//! The **inventory** of a host's images: what stands in its directories, for who has the rows to compare with. And the one
//! removal that needs no row.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::id::{ImageId, OperationId};

/// Asks for a page of the inventory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct InventoryRequest {
    /// Only images after this one: the last of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<ImageId>,
}

/// What a host has of images.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Inventory {
    /// A page of the published images, by id.
    pub images: Vec<ImageHere>,
    /// Whether there is more: ask again with `after` set to the last id here.
    pub more: bool,
    /// The stagings, by operation; on the first page only.
    pub stagings: Vec<StagingHere>,
    /// Names that are neither an image's nor an operation's, with the directory they are in; on the first page only, up to [`STRAYS_MAX`].
    pub strays: Vec<String>,
    /// The blobs kept for the next pull, broken downloads among them; on the first page only.
    #[serde(default)]
    pub cache_blobs: u64,
    /// What they take of the disk, in bytes.
    #[serde(default)]
    pub cache_bytes: u64,
}

/// How many strays an inventory names at the most.
pub const STRAYS_MAX: usize = 100;

/// An image's directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImageHere {
    /// The image, as the directory is called.
    pub image: ImageId,
    /// The digest its record has; absent when the record cannot be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// What is wrong with it: no record that can be read, or no root filesystem of the size in the record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub damage: Option<String>,
    /// The operations that published it; none when the record cannot be read.
    pub operations: Vec<OperationId>,
    /// What it takes of the disk, in bytes.
    pub disk_bytes: u64,
    /// For how long the directory has been as it is, in seconds.
    pub age_s: u64,
}

/// A staging directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StagingHere {
    /// The operation, as the directory is called.
    pub operation: OperationId,
    /// Whether this agent writes to it now.
    pub working: bool,
    /// The highest epoch this agent has seen of it; 0 when it knows of none.
    pub epoch: i64,
    /// What it takes of the disk, in bytes.
    pub disk_bytes: u64,
    /// For how long nothing came into the directory or left it, in seconds.
    pub age_s: u64,
}

/// Removes an image's directory that no row speaks of, if it still is what the inventory said. It has no fence: that no
/// publication came since is told by the operations in its record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ReclaimRequest {
    /// The image.
    pub image: ImageId,
    /// The operations that published it, as the inventory named them.
    pub operations: Vec<OperationId>,
}
