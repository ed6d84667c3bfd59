//! A **workspace** as clients see it, and lists of them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::About;
use crate::{
    id::{OperationId, VmId, WorkspaceId},
    name::VmName,
};

/// A workspace as clients see it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Workspace {
    /// Its id.
    pub id: WorkspaceId,
    /// Its VM.
    pub vm: VmId,
    /// The VM's name.
    pub vm_name: VmName,
    /// Its directory in the VM.
    pub path: String,
    /// Whose its files are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// What it was taken from.
    pub about: About,
    /// The prepare it shows: none before the first has succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<OperationId>,
    /// How many entries were put there.
    pub entries: u64,
    /// Their bytes.
    pub bytes: u64,
    /// When it was last prepared.
    #[serde(default, with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub prepared_at: Option<OffsetDateTime>,
    /// When its changes were last exported.
    #[serde(default, with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub exported_at: Option<OffsetDateTime>,
    /// The operation that holds its VM's workspaces now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<OperationId>,
    /// A transfer of which nobody could tell what it did, as the VM stopped just then: what is shown here may be what was before. It is found
    /// out when the VM runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unsettled: Option<OperationId>,
}

/// Lists workspaces.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListRequest {
    /// Only this VM's (name or id).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<String>,
    /// At most so many (1 to 1000; 100).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// Those after this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<WorkspaceId>,
}

/// A page of workspaces, by id.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Workspaces {
    /// The page.
    pub workspaces: Vec<Workspace>,
    /// There are more after the last.
    pub more: bool,
}
