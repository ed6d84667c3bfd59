//! `vm.delete`: say so, have the host remove it, give everything back.

use std::sync::Arc;

use async_trait::async_trait;
use contract::{
    ApiError, HostId,
    operation::VmResult,
    vm::{Vm, VmState},
};
use operations::{Context, Kind, Step, StepError};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Lab, VmOrder, agent, rows};
use crate::{db::vm::Patch, domain::state::Event};

/// Deletes a VM with its disk, running or not.
pub struct Delete(pub Arc<Lab>);

/// Refuses to delete a VM that is protected.
///
/// # Errors
/// `failed_precondition`: it is.
pub fn protection(vm: &Vm) -> Result<(), ApiError> {
    if !vm.deletion_protection {
        return Ok(());
    }
    Err(ApiError::failed_precondition(format!("VM {} is protected against deletion", vm.name))
        .hint(format!("`warren vm set {} --deletion-protection off` takes that back", vm.name)))
}

/// What the steps found out.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Journal {
    host: Option<HostId>,
    was: Option<VmState>,
}

impl Kind for Delete {
    const NAME: &'static str = "vm.delete";
    type Request = VmOrder;
    type Journal = Journal;

    fn steps(&self) -> Vec<Box<dyn Step<Self>>> {
        vec![Box::new(Begin), Box::new(Remove), Box::new(Release)]
    }

    fn result(&self, order: &VmOrder, _: &Journal) -> Value {
        json!(VmResult::of(order.vm_id, order.name.clone()))
    }
}

/// Makes the row say that the VM is being deleted.
struct Begin;

#[async_trait]
impl Step<Delete> for Begin {
    fn name(&self) -> &'static str {
        "begin"
    }

    async fn run(&self, cx: &Context, kind: &Delete, order: &VmOrder, journal: &mut Journal) -> Result<(), StepError> {
        let row = rows::row(cx, &kind.0.domain, order.vm_id, &order.name).await?;
        // The handler asked already; it may have been set since.
        protection(&row.vm).map_err(StepError::permanent)?;
        journal.host = Some(row.vm.host);
        // Filled before the change: should the change's outcome be unknown, the undo still knows the way back.
        journal.was.get_or_insert(row.vm.state);
        rows::apply(cx, order.vm_id, &order.name, Event::Delete, &Patch::default()).await?;
        Ok(())
    }

    async fn undo(&self, cx: &Context, _: &Delete, order: &VmOrder, journal: &Journal) -> Result<(), StepError> {
        let was = journal.was.unwrap_or(VmState::Failed);
        let reason = format!("its delete was given up: {}", rows::failure(cx).await?.message);
        rows::take_back(cx, order.vm_id, Event::DeleteUndone { was }, Some(reason)).await
    }
}

/// Has the host remove all it has of the VM. Cannot be undone; what the host has then, its next report tells.
struct Remove;

#[async_trait]
impl Step<Delete> for Remove {
    fn name(&self) -> &'static str {
        "remove"
    }

    async fn run(&self, cx: &Context, _: &Delete, order: &VmOrder, journal: &mut Journal) -> Result<(), StepError> {
        let host = journal
            .host
            .as_ref()
            .ok_or_else(|| StepError::permanent(ApiError::internal("the journal of this delete names no host")))?;
        agent::remove(cx, host, order.vm_id).await
    }
}

/// Gives back name, address and room, and removes the row.
struct Release;

#[async_trait]
impl Step<Delete> for Release {
    fn name(&self) -> &'static str {
        "release"
    }

    async fn run(&self, cx: &Context, kind: &Delete, order: &VmOrder, _: &mut Journal) -> Result<(), StepError> {
        Ok(kind.0.reservations.release(order.vm_id, cx.epoch()).await.map_err(ApiError::from)?)
    }
}
