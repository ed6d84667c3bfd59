//! Operations: durable records of slow requests.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;

use crate::{
    deadline,
    error::ApiError,
    id::{OperationId, VmId},
    verb::verbs,
};

/// Where an operation stands. `queued → running → succeeded | failed | cancelled`; a queued one may be
/// cancelled at once. The last three are final.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OperationState {
    /// Waiting for its resource or a worker.
    Queued,
    /// A worker holds its lease, or held it and is about to be replaced.
    Running,
    /// Ended well; `result` is set.
    Succeeded,
    /// Ended badly and undone; `error` is set.
    Failed,
    /// Ended on request and undone.
    Cancelled,
}

impl OperationState {
    /// Whether nothing will change any more.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }

    /// The state as it stands on the wire and in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

impl std::str::FromStr for OperationState {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Queued, Self::Running, Self::Succeeded, Self::Failed, Self::Cancelled]
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| format!("{text:?} is not one of queued, running, succeeded, failed, cancelled"))
    }
}

/// How far a phase is, in bytes or other units.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Progress {
    /// Units done.
    pub done: u64,
    /// Units in all; 0 when not known.
    pub total: u64,
}

/// One recorded step of an operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StepRecord {
    /// The step's name, e.g. `reserve`.
    pub name: String,
    /// `done`, `undone` or `owed` (its undo could not reach its host yet).
    pub state: String,
    /// When it was recorded.
    #[serde(with = "time::serde::rfc3339")]
    #[schemars(with = "String")]
    pub at: OffsetDateTime,
}

/// An operation as clients see it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Operation {
    /// Its id.
    pub id: OperationId,
    /// What it does: `vm.create`, `image.pull`, …
    pub kind: String,
    /// What it excludes others from: `vm:<id>`, `image:<name>`, …
    pub resource: String,
    /// Where it stands.
    pub state: OperationState,
    /// The step it is in, or was in last.
    pub phase: String,
    /// How far that phase is, where that can be said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// The request it carries out.
    pub request: Value,
    /// What it gave, once succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Value>,
    /// Why it failed, once failed or cancelled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ApiError>,
    /// Its recorded steps, in order.
    #[serde(default)]
    pub steps: Vec<StepRecord>,
    /// Whether a cancel was asked for.
    #[serde(default)]
    pub cancel_requested: bool,
    /// The worker that holds its lease.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<String>,
    /// The epoch of its claim on the resource; 0 while never claimed.
    pub epoch: i64,
    /// How often it was claimed: above 1, it was adopted or retried.
    pub attempts: i32,
    /// The operation that runs on the same resource now, if this one is queued behind it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits_for: Option<OperationId>,
    /// The trace it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
    /// When it was accepted.
    #[serde(with = "time::serde::rfc3339")]
    #[schemars(with = "String")]
    pub created_at: OffsetDateTime,
    /// When a worker took it first.
    #[serde(default, with = "time::serde::rfc3339::option")]
    #[schemars(with = "Option<String>")]
    pub started_at: Option<OffsetDateTime>,
    /// When it ended.
    #[serde(default, with = "time::serde::rfc3339::option")]
    #[schemars(with = "Option<String>")]
    pub finished_at: Option<OffsetDateTime>,
}

/// Names one operation.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OperationRef {
    /// Its id.
    pub id: OperationId,
}

/// Waits for one operation's end.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WaitRequest {
    /// Its id.
    pub id: OperationId,
    /// How long to hold the reply, in milliseconds (1 to 600 000; 50 000 when left out). When it
    /// runs out the reply is the operation as it stands, still unfinished.
    #[serde(default = "default_wait_ms")]
    pub timeout_ms: u64,
    /// Answer as soon as the phase or state differs from these, instead of only at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed_from: Option<Seen>,
}

/// What a waiting client saw last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Seen {
    /// The state it saw.
    pub state: OperationState,
    /// The phase it saw.
    pub phase: String,
    /// The progress it saw.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
}

/// The default of every `timeout_ms`.
pub fn default_wait_ms() -> u64 {
    deadline::WAIT_DEFAULT_MS
}

/// Lists operations, newest first.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListRequest {
    /// Only those in this state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<OperationState>,
    /// Only those of this kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Only those on this resource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource: Option<String>,
    /// How many at the most (1 to 500; 100 when left out).
    #[serde(default = "default_limit")]
    pub limit: u32,
    /// Only those older than this one: the last id of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<OperationId>,
}

/// The default of every list's `limit`.
pub fn default_limit() -> u32 {
    100
}

/// A page of operations.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct OperationList {
    /// The page.
    pub operations: Vec<Operation>,
    /// Whether there is more: ask again with `before` set to the last id here.
    pub more: bool,
}

verbs! {
    /// Shows one operation.
    Get = "warren.operation.get", false, deadline::QUICK, OperationRef => Operation;
    /// Lists operations, newest first.
    List = "warren.operation.list", false, deadline::QUICK, ListRequest => OperationList;
    /// Waits until an operation has ended, or has changed.
    Wait = "warren.operation.wait", false, deadline::WAITING, WaitRequest => Operation;
    /// Cancels an operation: at once while queued, at the next step boundary while running.
    Cancel = "warren.operation.cancel", true, deadline::QUICK, OperationRef => Operation;
}

/// The result of every operation on one VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VmResult {
    /// The VM.
    pub vm_id: VmId,
    /// Its name.
    pub name: crate::name::VmName,
    /// What did not take effect at once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// It was so already: nothing was done.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unchanged: bool,
}

impl VmResult {
    /// Everything took effect.
    pub fn of(vm_id: VmId, name: crate::name::VmName) -> Self {
        Self { vm_id, name, warnings: Vec::new(), unchanged: false }
    }
}
