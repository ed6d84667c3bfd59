//! A **transfer** into or out of a guest: how it goes, and what it did.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::ApiError;

/// How a transfer into or out of a guest goes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum TransferStatus {
    /// The guest knows nothing of it: it never began, or the guest was started anew since.
    Unknown,
    /// Under way.
    Running {
        /// `comparing`, `receiving`, `placing`, `scanning`, `sending`.
        phase: String,
        /// Bytes of content moved so far.
        done: u64,
        /// Bytes to move; 0 while not known.
        total: u64,
    },
    /// Done.
    Done {
        /// What it did.
        summary: TransferSummary,
    },
    /// Failed; the tree is what it was.
    Failed {
        /// Why.
        error: ApiError,
    },
}

/// What a transfer did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TransferSummary {
    /// Entries of the whole tree (prepare) or entries that changed (export).
    pub entries: u64,
    /// Bytes of all of them.
    pub bytes: u64,
    /// Files whose content was moved.
    pub moved_files: u64,
    /// Bytes of content moved.
    pub moved_bytes: u64,
    /// Nothing had to change.
    #[serde(default)]
    pub unchanged: bool,
    /// What was left out or done otherwise, at most 64 lines.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}
