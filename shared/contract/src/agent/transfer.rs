//! **Transfers** of workspaces into guests and out of them, as their host carries them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    id::{OperationId, SessionId, VmId},
    worktree::{ExportOrder, ImportOrder, RemoveOrder},
};

/// Where a host takes the files of a workspace from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ImportFrom {
    /// The opener of that byte stream, which speaks the tree protocol in frames.
    Session(SessionId),
    /// A directory of this host, below one of those its operator allows.
    Directory(String),
}

/// Begins to put a tree of files into a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ImportRequest {
    /// The VM.
    pub vm: VmId,
    /// Where the files come from.
    pub from: ImportFrom,
    /// What to do with them.
    pub order: ImportOrder,
}

/// Begins to take the changes of a workspace out of a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExportChangesRequest {
    /// The VM.
    pub vm: VmId,
    /// The byte stream, whose opener takes them.
    pub session: SessionId,
    /// What to take.
    pub order: ExportOrder,
}

/// Has a guest forget a workspace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ForgetRequest {
    /// The VM.
    pub vm: VmId,
    /// Which.
    pub order: RemoveOrder,
}

/// Names a transfer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TransferRequest {
    /// The VM.
    pub vm: VmId,
    /// The operation whose transfer it is.
    pub operation: OperationId,
    /// How long to hold the reply while it goes on, in milliseconds; at most [`deadline::AGENT_POLL_MS`](crate::deadline::AGENT_POLL_MS).
    #[serde(default)]
    pub wait_ms: u64,
}
