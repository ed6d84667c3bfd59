//! Changing a VM: what is asked for, and what that means field by field.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    feature::PublishedPort,
    idle::IdleAction,
    label::{LabelKey, LabelValue},
    name::VmName,
    operation::{Operation, default_wait_ms},
    size::MebiBytes,
    vm::RestartPolicy,
};

/// Changes a VM, all or nothing. What is left out stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SetRequest {
    /// Its name or id.
    pub vm: String,
    /// Its new name; the guest's host name follows at its next start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<VmName>,
    /// Virtual CPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<u32>,
    /// Memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<MebiBytes>,
    /// Disk; it only grows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<MebiBytes>,
    /// Labels to set; `null` takes one away.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<LabelKey, Option<LabelValue>>,
    /// What happens when it ends although nobody stopped it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart: Option<RestartPolicy>,
    /// Delete it this many seconds from now; 0 takes that back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u64>,
    /// Do `idle_action` once nobody has used it for this many seconds from now on; 0 takes that back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_seconds: Option<u64>,
    /// What happens then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_action: Option<IdleAction>,
    /// Whether to refuse to delete it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deletion_protection: Option<bool>,
    /// Ports of the host that lead into the VM, in place of all it has; they change at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports: Option<Vec<PublishedPort>>,
    /// Only tell what would change.
    #[serde(default)]
    pub dry_run: bool,
    /// Hold the reply until it is done.
    #[serde(default)]
    pub wait: bool,
    /// How long to hold it, in milliseconds.
    #[serde(default = "default_wait_ms")]
    pub timeout_ms: u64,
}

/// When a change takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// At once.
    Live,
    /// When the VM, which is off, starts next.
    NextStart,
    /// When the VM, which runs, is restarted.
    NeedsRestart,
}

impl Effect {
    /// In words.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::NextStart => "next start",
            Self::NeedsRestart => "needs restart",
        }
    }
}

/// One field's change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FieldChange {
    /// Which field, e.g. `memory` or `labels.ci`.
    pub field: String,
    /// What it was; empty for nothing.
    pub from: String,
    /// What it becomes; empty for nothing.
    pub to: String,
    /// When.
    pub effect: Effect,
}

/// What a change means, and the operation that carries it out: none when nothing changes or for a dry run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SetReply {
    /// Field by field.
    pub plan: Vec<FieldChange>,
    /// Operation `vm.set`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<Operation>,
}
