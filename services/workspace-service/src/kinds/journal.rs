//! The **journal** of a transfer: what its steps find out.

use contract::{
    ApiError, HostId,
    worktree::{TransferSummary, Workspace},
};
use operations::StepError;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// What the steps of a prepare or an export found out.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Journal {
    /// The VM's host.
    pub host: Option<HostId>,
    /// What was moved.
    pub summary: Option<TransferSummary>,
    /// The workspace afterwards.
    pub workspace: Option<Workspace>,
}

impl Journal {
    /// The VM's host, which the first step finds out.
    ///
    /// # Errors
    /// It did not.
    pub fn host(&self) -> Result<&HostId, StepError> {
        self.host.as_ref().ok_or_else(|| StepError::permanent(ApiError::internal("the journal names no host")))
    }

    /// What the operation shows when it has succeeded.
    pub fn result(&self) -> Value {
        json!({ "workspace": self.workspace, "summary": self.summary })
    }
}
