//! **Kernels** on a host: staged, published, sent to other hosts, removed.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Fence, StagingHere};
use crate::{
    error::ApiError,
    id::{KernelId, OperationId, SessionId},
    operation::Progress,
};

/// Where a host takes a kernel's files from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum StageKernelSource {
    /// A file of this host, or a directory with the files of one kernel, below one of those its operator allows.
    Path(String),
    /// The opener of that byte stream, who sends one archive.
    Stream(SessionId),
}

/// Starts staging a kernel, or asks how it goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StageKernelRequest {
    /// The import or placement; its operation id names the staging directory.
    pub fence: Fence,
    /// Where from.
    pub source: StageKernelSource,
    /// What its digest has to be, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// How long to hold the reply while nothing ends, in milliseconds.
    pub wait_ms: u64,
}

/// How a staging goes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum StageKernelStatus {
    /// Still at it.
    Running {
        /// Bytes read of what is handed in; how many there will be is not known.
        progress: Progress,
    },
    /// Whole and synced in the staging directory.
    Done {
        /// What it is.
        kernel: StagedKernel,
    },
    /// Failed; the staging directory is gone.
    Failed {
        /// Why.
        error: ApiError,
    },
}

/// A staged kernel; stands in `manifest.json` beside its files too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StagedKernel {
    /// `sha256:…` of what it consists of.
    pub digest: String,
    /// What `uname -r` will say.
    pub release: String,
    /// OCI architecture.
    pub architecture: String,
    /// Size of its file and modules, in bytes.
    pub bytes: u64,
}

/// Makes a staged kernel visible under its id: one rename, synced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PublishKernelRequest {
    /// The import or placement.
    pub fence: Fence,
    /// The directory's final name.
    pub kernel: KernelId,
}

/// Removes a published kernel's files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RemoveKernelRequest {
    /// The operation.
    pub fence: Fence,
    /// The kernel.
    pub kernel: KernelId,
}

/// Opens a byte stream on which a kernel of this host is sent to whoever accepts it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SendKernelRequest {
    /// The kernel.
    pub kernel: KernelId,
    /// The byte stream, which this host opens.
    pub session: SessionId,
}

/// A kernel of the lab's as VMs and images name it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VmKernel {
    /// Its id, which names its directory on the host.
    pub id: KernelId,
    /// Its digest.
    pub digest: String,
    /// What `uname -r` says.
    pub release: String,
}

/// Asks what the host has of kernels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KernelInventoryRequest {
    /// Only of this one, without stagings and strays; left out, all there is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub only: Option<KernelId>,
}

/// What stands in a host's directory of kernels.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KernelsHere {
    /// The published ones, by id.
    pub kernels: Vec<KernelHere>,
    /// Those that were staged, or are being staged.
    pub stagings: Vec<StagingHere>,
    /// Names of what is not Warren's; the first ones.
    pub strays: Vec<String>,
}

/// A published kernel on a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KernelHere {
    /// The kernel.
    pub kernel: KernelId,
    /// The digest its record tells; nothing when that cannot be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// What is wrong with it; nothing when it is whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub damage: Option<String>,
    /// The operation that brought it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<OperationId>,
    /// What it takes of the disk, in bytes.
    pub disk_bytes: u64,
    /// How long it has been there, in seconds.
    pub age_s: u64,
}
