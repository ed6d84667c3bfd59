//! Events: what happened, told once it is committed.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;
use uuid::Uuid;

/// An event as it stands in [`crate::subject::EVENT_STREAM`], on `warren.event.<area>.<id>.<what>`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Event {
    /// Unique; also the JetStream message id, which deduplicates.
    pub id: Uuid,
    /// When its transaction began.
    #[serde(with = "time::serde::rfc3339")]
    #[schemars(with = "String")]
    pub at: OffsetDateTime,
    /// Particulars: for `operation` its kind, resource, state, phase; for `vm` name, state, host, address; for `lab` the names of its VMs; for
    /// `image` name, digest; for `workspace` vm, vm_name, path, generation.
    pub data: Value,
}
