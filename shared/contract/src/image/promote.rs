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
    /// The kernel its VMs boot, unless they ask for another.
    #[serde(default, skip_serializing_if = "PromotedKernel::is_of_vm")]
    pub kernel: PromotedKernel,
    /// Hold the reply until it has ended.
    #[serde(default)]
    pub wait: bool,
    /// How long to hold it, in milliseconds.
    #[serde(default = "default_wait_ms")]
    pub timeout_ms: u64,
}

/// The **kernel** a promoted image names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PromotedKernel {
    /// The one of the lab's that the VM boots, if it boots one. An image that was here already goes on naming what it names.
    #[default]
    OfVm,
    /// None: the lab's default is booted, or the host's own.
    Default,
    /// This one: its name, id or digest, or how one of these two begins.
    Named(String),
}

impl PromotedKernel {
    /// Whether nothing was said.
    pub fn is_of_vm(&self) -> bool {
        *self == Self::OfVm
    }
}
