//! Several VMs with one request: each gets an operation of its own, or an error of its own.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    deadline,
    error::ApiError,
    label::LabelSelector,
    name::VmName,
    operation::{Operation, default_wait_ms},
    verb::verbs,
};

/// The most VMs of one request.
pub const MANY_MAX: usize = 500;
/// The most VMs one request creates.
pub const CREATE_MANY_MAX: usize = 100;

/// Creates several VMs that differ in their names only.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateManyRequest {
    /// Their names (1 to 100).
    pub names: Vec<VmName>,
    /// The fields of `warren.vm.create` but `name`, `wait` and `timeout_ms`.
    pub create: serde_json::Map<String, serde_json::Value>,
    /// Hold the reply until each is done.
    #[serde(default)]
    pub wait: bool,
    /// How long to hold it, in milliseconds.
    #[serde(default = "default_wait_ms")]
    pub timeout_ms: u64,
}

/// What is done to many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ManyVerb {
    /// `vm.start`.
    Start,
    /// `vm.stop`.
    Stop,
    /// `vm.restart`.
    Restart,
    /// `vm.pause`.
    Pause,
    /// `vm.resume`.
    Resume,
    /// `vm.delete`.
    Delete,
}

/// Starts, stops, … or deletes several VMs: those named, or those with certain labels.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ManyRequest {
    /// What to do.
    pub verb: ManyVerb,
    /// Names or ids.
    #[serde(default)]
    pub vms: Vec<String>,
    /// All with these labels, in place of `vms`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<LabelSelector>,
    /// End the VMMs at once instead of asking the guests to power off.
    #[serde(default)]
    pub force: bool,
    /// Hold the reply until each is done.
    #[serde(default)]
    pub wait: bool,
    /// How long to hold it, in milliseconds.
    #[serde(default = "default_wait_ms")]
    pub timeout_ms: u64,
}

/// What became of one VM of many: either an operation or an error.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct OneOfMany {
    /// Its name, or what was asked for in its place.
    pub vm: String,
    /// The operation that was accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<Operation>,
    /// Why none was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ApiError>,
}

/// What became of each.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ManyReply {
    /// In the order asked for, by name for labels.
    pub results: Vec<OneOfMany>,
}

verbs! {
    /// Creates several VMs, each by an operation `vm.create` of its own.
    CreateMany = "warren.vm.create_many", true, deadline::WAITING, CreateManyRequest => ManyReply;
    /// Starts, stops, … or deletes several VMs, each by an operation of its own.
    Many = "warren.vm.many", true, deadline::WAITING, ManyRequest => ManyReply;
}
