//! The **kinds** of operations on VMs: what each does, step by step, with its undo beside it.

mod agent;
pub mod create;
pub mod delete;
mod image;
mod kernel;
pub mod lab;
mod pause;
mod power;
mod rows;
pub mod set;

use std::{sync::Arc, time::Duration};

use contract::{VmId, VmName, idle};
use operations::EngineBuilder;
use serde::{Deserialize, Serialize};

use crate::db::reservation::Reservations;

pub use delete::Delete;
pub use lab::{LabDown, LabUp};
pub use pause::{Pause, Resume};
pub use power::{Restart, Start, Stop};

/// What the kinds share.
#[derive(Debug)]
pub struct Lab {
    /// Who reserves and releases.
    pub reservations: Reservations,
    /// The lab's DNS domain.
    pub domain: String,
}

/// The stored request of every operation on a VM that exists.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VmOrder {
    /// The VM.
    pub vm_id: VmId,
    /// Its name when the order was given.
    pub name: VmName,
    /// Do not ask the guest to power off.
    pub force: bool,
    /// It was idle for so long: nobody asked for it now, its limit did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_seconds: Option<u64>,
}

impl VmOrder {
    /// Why the VM is where this order brings it, when that is not plain.
    pub fn reason(&self, what: &str) -> Option<String> {
        self.idle_seconds.map(|seconds| format!("{what} after {} idle", idle::in_words(seconds)))
    }
}

/// A host silent for this long is not waited for any more: three times what makes it count as down, which is longer than a
/// restart of its agent takes.
pub const HOST_GONE: Duration = Duration::from_secs(30);

/// Adds all kinds to an engine.
pub fn register(engine: EngineBuilder, lab: &Arc<Lab>) -> EngineBuilder {
    engine
        .kind(create::Create(lab.clone()))
        .kind(Start(lab.clone()))
        .kind(Stop(lab.clone()))
        .kind(Restart(lab.clone()))
        .kind(Pause(lab.clone()))
        .kind(Resume(lab.clone()))
        .kind(set::Set(lab.clone()))
        .kind(Delete(lab.clone()))
        .kind(LabUp(lab.clone()))
        .kind(LabDown(lab.clone()))
}
