//! The **kernel** an image names: what its VMs boot that ask for none.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Lets an image name another kernel, or none. VMs keep the one they were made with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SetKernelRequest {
    /// Its name, id or digest, or how one of these two begins.
    pub image: String,
    /// The kernel's name, id or digest, or how one of these two begins; left out, none: the lab's default is booted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
}
