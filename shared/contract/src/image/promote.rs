//! **Promotions**: a VM's disk made an image.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{name::ImageName, operation::default_wait_ms};

/// Makes an image of a VM's root disk. What made one machine of it is taken out (its machine id, ssh host keys, random seed and leases),
/// and so is what was deleted in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PromoteRequest {
    /// The VM's name or id.
    pub vm: String,
    /// The name the image gets.
    pub name: ImageName,
    /// Take the name from the image that has it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub replace: bool,
    /// Leave in it what makes one machine of it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keep_identity: bool,
    /// OpenSSH public keys that may log in as root of every VM of the image (`/root/.ssh/authorized_keys`), beside those that may already.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ssh_keys: Vec<String>,
    /// Hold the reply until it has ended.
    #[serde(default)]
    pub wait: bool,
    /// How long to hold it, in milliseconds.
    #[serde(default = "default_wait_ms")]
    pub timeout_ms: u64,
}
