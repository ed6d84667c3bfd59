//! **Kept disks**: data disks that outlive their VMs.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::{id::HostId, name::VmName, size::MebiBytes};

/// A data disk that outlives its VMs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KeptDisk {
    /// Its name.
    pub name: VmName,
    /// Its host.
    pub host: HostId,
    /// Its size.
    pub size: MebiBytes,
    /// The VM that has it now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<VmName>,
    /// When it was made.
    #[serde(with = "time::serde::rfc3339")]
    #[schemars(with = "String")]
    pub created_at: OffsetDateTime,
}

/// All kept disks.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct KeptDisks {
    /// By name.
    pub disks: Vec<KeptDisk>,
}

/// Names a kept disk.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DiskRef {
    /// Its name.
    pub disk: VmName,
}
